"""Linear encoders z = Wx of the loss: optimised, descended, distilled, trained on views of images, and on the sphere.

Σ = E xxᵀ and Σ_a = ½ E (x - x')(x - x')ᵀ for two views x, x' of an image; μ their generalised eigenvalues, the share of
a mode's variance that differs between views. The loss of a linear encoder is tr WΣ_aWᵀ - (γ/2) logdet(I + αWΣWᵀ).
Nothing here knows the predictions of `theory`. Powers are the eigenvalues of WΣWᵀ, largest first.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize

from simdino.losses import simdino_loss

Array = np.ndarray


def linear_problem(mu: Float[Array, " m"], *, seed: int = 0) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """Covariances (Σ, Σ_a) whose generalised eigenvalues are mu, in a random, not orthogonal basis."""
    rng, m = np.random.default_rng(seed), len(mu)
    left, right = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
    basis = left * np.linspace(0.8, 1.2, m) @ right
    return basis @ basis.T, basis * mu @ basis.T


def graph_problem(joint: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """(Σ, Σ_a) of free functions on m views, one-hot inputs, of which joint[x, x'] is the probability as a pair.

    Σ is diagonal, with the probabilities of the views, and Σ_a = Σ - joint: their generalised eigenvalues are those of
    the normalised Laplacian of the augmentation graph, the first of them 0, of the constant function.
    """
    joint = (joint + joint.T) / 2
    sigma = np.diag(joint.sum(1))
    return sigma, sigma - joint


def view_covariances(views: Float[Tensor, "2 n m"]) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """Estimates of (Σ, Σ_a), uncentred, from two views of each of n images as rows."""
    x = views.double().numpy()
    difference = x[0] - x[1]
    return np.einsum("vni,vnj->ij", x, x, optimize=True) / (2 * x.shape[1]), difference.T @ difference / (
        2 * x.shape[1]
    )


def modes(sigma: Float[Array, "m m"], sigma_a: Float[Array, "m m"]) -> Float[Array, " m"]:
    """The generalised eigenvalues μ of (Σ_a, Σ), ascending."""
    return eigh(sigma_a, sigma, eigvals_only=True).clip(min=0)  # Σ_a ≥ 0: what is below is rounding


@torch.no_grad()
def last_layer_modes(encoder: torch.nn.Module, views: Float[Tensor, "2 n m"]) -> Float[Array, " h"]:
    """Generalised eigenvalues μ, ascending, of what the last linear layer of an encoder gets from views, its bias a 1.

    encoder: a `Linear`, or a `Sequential` that ends with one. Given its input the last layer is a linear encoder, so
    that `theory.water_filling` of these μ is where it rests, whatever is below it.
    """
    *below, last = encoder if isinstance(encoder, torch.nn.Sequential) else [encoder]
    x = torch.nn.Sequential(*below)(views)
    x = x if last.bias is None else torch.nn.functional.pad(x, (0, 1), value=1.0)
    return modes(*view_covariances(x))


def view_shares(train: Float[Tensor, "2 n m"], test: Float[Tensor, "2 k m"]) -> Float[Array, " alive"]:
    """Shares μ of the variance that differs between views, ascending: directions found on `train`, measured on `test`.

    Both centred by the training mean, since the constant is no spread around total collapse. On the images that they
    were searched on the smallest shares would be biased low. Directions with less than a millionth of the mean variance
    are left out.
    """
    mean = train.mean((0, 1))
    (sigma, sigma_a), (seen, seen_a) = (view_covariances(x - mean) for x in (train, test))
    _, v = eigh(sigma_a, sigma + 1e-6 * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    found, differing, all_ = (np.einsum("ij,ik,kj->j", v, a, v) for a in (sigma, seen_a, seen))
    return np.sort((differing / all_)[found > 0.5])  # else most of the found variance is the ridge's


def powers(w: Float[Array, "*t d m"], sigma: Float[Array, "m m"]) -> Float[Array, "*t d"]:
    """Eigenvalues of WΣWᵀ, largest first."""
    return np.linalg.eigvalsh(w @ sigma @ w.mT)[..., ::-1]


def linear_optimum(
    sigma: Float[Array, "m m"],
    sigma_a: Float[Array, "m m"],
    *,
    d: int,
    gamma: float,
    alpha: float,
    norm: float | None = None,
    seed: int = 0,
) -> Float[Array, "d m"]:
    """The encoder W that minimises the loss, by L-BFGS from a random start.

    norm: the value at which E‖z‖² = tr WΣWᵀ is held by rescaling W; None leaves it free.
    """
    white = np.linalg.inv(np.linalg.cholesky(sigma))
    m, eye = white @ sigma_a @ white.T, np.eye(d)  # in whitened inputs

    def loss(flat):
        v = flat.reshape(d, -1)
        scale = 1.0 if norm is None else np.sqrt(norm) / np.linalg.norm(v)
        u = scale * v
        covariance = eye + alpha * u @ u.T
        value = np.vdot(u @ m, u) - gamma / 2 * np.linalg.slogdet(covariance)[1]
        gradient = 2 * u @ m - gamma * alpha * np.linalg.solve(covariance, u)
        if norm is not None:
            gradient -= np.vdot(gradient, u) / norm * u
        return value, (scale * gradient).ravel()

    start = np.random.default_rng(seed).standard_normal(d * len(m)) * 0.3
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-10, "maxcor": 30}
    u = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(d, -1)
    return (u if norm is None else np.sqrt(norm) * u / np.linalg.norm(u)) @ white


def descent(
    sigma: Float[Array, "m m"],
    sigma_a: Float[Array, "m m"],
    *,
    d: int,
    gamma: float,
    alpha: float,
    momentum: float | None,
    lr: float,
    steps: int,
    every: int = 1,
    scale: float = 0.3,
    orthogonal: bool = False,
    rate_of: Literal["student", "mean"] = "student",
    seed: int = 0,
) -> Float[Array, "t d m"]:
    """The encoder every few steps of gradient descent, the start included.

    momentum=None: both views carry gradients, d/dW of the alignment is 2WΣ_a. momentum=ρ: the other view is seen by a
    teacher without gradient, W_t ← ρW_t + (1-ρ)W after each step (ρ = 0: the student itself), and the derivative is
    WΣ - W_t(Σ - Σ_a); rate_of: the rate is that of W, or of (W + W_t)/2, which passes half of its gradient. The start
    has entries of standard deviation `scale`, or orthogonal columns of that norm.
    """
    w = np.random.default_rng(seed).standard_normal((d, len(sigma)))
    w = scale * (np.linalg.qr(w)[0] if orthogonal else w)
    teacher, eye, path = w, np.eye(d), [w]
    for step in range(1, steps + 1):
        alignment = 2 * w @ sigma_a if momentum is None else w @ sigma - teacher @ (sigma - sigma_a)
        share, rated = (1.0, w) if momentum is None or rate_of == "student" else (0.5, (w + teacher) / 2)
        expansion = alpha * np.linalg.solve(eye + alpha * rated @ sigma @ rated.T, rated @ sigma)
        w = w - lr * (alignment - gamma * share * expansion)
        if momentum is not None:
            teacher = momentum * teacher + (1 - momentum) * w
        if step % every == 0:
            path.append(w)
    return np.stack(path)


def solutions(
    problems: list[tuple[Float[Array, " m"], dict]], *, lr: float = 0.25, steps: int = 6000, seed: int = 0
) -> dict[str, list[Float[Array, " d"]]]:
    """Powers found for (μ, {d, gamma, alpha}) in a random basis: by L-BFGS, also at E‖z‖² = 1, and by descent."""
    found = {"optimised": [], "optimised, E‖z‖² = 1": [], "gradient descent": []}
    for mu, options in problems:
        sigma, sigma_a = linear_problem(mu, seed=seed)
        path = descent(sigma, sigma_a, **options, momentum=None, lr=lr, steps=steps, every=steps, seed=seed)
        one = (linear_optimum(sigma, sigma_a, **options, norm=norm, seed=seed) for norm in (None, 1.0))
        for values, w in zip(found.values(), (*one, path[-1]), strict=True):
            values.append(powers(w, sigma))
    return found


def crossing_times(powers: Float[Array, "t m"], level: float | Float[Array, " m"], *, dt: float) -> Float[Array, " m"]:
    """When each mode first exceeds its level, interpolated in its logarithm; nan for a mode that never does."""
    above = powers > level
    i = above.argmax(0)
    column = np.arange(powers.shape[1])
    low, high = np.log(powers[np.maximum(i - 1, 0), column]), np.log(powers[i, column])
    times = dt * (i - 1 + (np.log(level) - low) / np.where(high > low, high - low, 1))
    return np.where(above.any(0) & (i > 0), times, np.nan)


def growth_boundary(
    chi: Float[Array, " k"], spread: Float[Array, "k t"]
) -> tuple[Float[Array, " k"], float | np.floating]:
    """Growth of log spread from the third to the last quarter of its times, and the χ at which it first passes 0.

    chi: a geometric grid, ascending; between two of its values the growth is interpolated. nan if it never passes.
    """
    quarter = spread.shape[1] // 4
    growth = np.log(spread[:, -quarter:]).mean(1) - np.log(spread[:, -2 * quarter : -quarter]).mean(1)
    place = crossing_times(np.exp(growth)[:, None], 1.0, dt=np.log(chi[1] / chi[0]))[0]
    return growth, chi[0] * np.exp(place)


def train_encoder(
    encoder: torch.nn.Module,
    views: Float[Tensor, "2 n m"],
    *,
    gamma: float,
    eps: float,
    unit: bool,
    batch: int = 500,
    steps: int = 2000,
    lr: float = 1e-2,
    seed: int = 0,
) -> torch.nn.Module:
    """Train an encoder (m -> d) in place on random batches of two views with `simdino_loss` and Adam; return it.

    Both views carry gradients. unit: features are put on the unit sphere. The learning rate falls to 0 as a cosine.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(encoder.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        z = encoder(views[:, torch.randint(views.shape[1], (batch,), generator=generator)])  # (2, batch, d)
        z = normalize(z, dim=-1) if unit else z
        loss, _ = simdino_loss(z, z, gamma=gamma, eps=eps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return encoder


Teacher = Literal["none", "stop-gradient", "stop-gradient, rate of the mean"]


def collapse_boundary(
    mu: Float[Array, " s"],
    alpha: Float[Array, " s"],
    teacher: Teacher,
    *,
    d: int = 4,
    n: int = 32,
    steps: int = 100,
    rounds: int = 11,
) -> Float[Array, " s"]:
    """The γ at which total collapse turns unstable, by bisection over simulations of an affine encoder on the sphere.

    z = normalise(u + Wx) with a tiny W is descended for `steps`: collapse is stable if the spread W has shrunk. Views
    x = √(1-μ) s + √μ e share s; s and the two e are white, centred and uncorrelated in the sample of n images.
    teacher: "none" (both views carry gradients), "stop-gradient" (teacher = student), and the same with the rate of
    (student + teacher)/2, the default of the official code (`expa_type=1`).
    """
    mu, alpha = torch.tensor(mu), torch.tensor(alpha)
    low, high = torch.full_like(mu, 1e-4).log(), torch.full_like(mu, 10.0).log()
    for _ in range(rounds):
        middle = (low + high) / 2
        grows = _spread_growth(mu, alpha, middle.exp(), teacher, d, n, steps) > 1
        low, high = torch.where(grows, low, middle), torch.where(grows, middle, high)
    return ((low + high) / 2).exp().numpy()


def _spread_growth(mu, alpha, gamma, teacher, d, n, steps):
    """Ratio of the final to the initial spread of the encoders (s, d, 2), all settings descended at once."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(n, 6, generator=generator, dtype=mu.dtype)
    parts = torch.linalg.qr(parts - parts.mean(0)).Q * n**0.5
    own = torch.stack([parts[:, 2:4], parts[:, 4:]])
    share = mu[:, None, None, None]
    views = (1 - share).sqrt() * parts[:, :2] + share.sqrt() * own  # (s, 2, n, 2)
    u, eye = torch.eye(d, dtype=mu.dtype)[0], torch.eye(d, dtype=mu.dtype)
    start = 1e-4 * torch.randn(len(mu), d, 2, generator=generator, dtype=mu.dtype)
    w = start
    for _ in range(steps):
        w = w.detach().requires_grad_()
        z = normalize(u + views @ w.mT[:, None], dim=-1)  # (s, 2, n, d)
        target = z if teacher == "none" else z.detach()
        rated = (z + target) / 2 if teacher.endswith("mean") else z
        alignment = (1 - (z * target.flip(1)).sum(-1)).mean((1, 2))
        gram = eye + (alpha / n)[:, None, None, None] * rated.mT @ rated
        rate = torch.linalg.cholesky(gram).diagonal(dim1=-2, dim2=-1).log().sum(-1).mean(1)
        (gradient,) = torch.autograd.grad((alignment - gamma * rate).sum(), w)
        w = w - 0.5 / mu[:, None, None] * gradient
    return w.detach()[:, 1:].norm(dim=(1, 2)) / start[:, 1:].norm(dim=(1, 2))
