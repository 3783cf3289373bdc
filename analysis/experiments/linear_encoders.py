"""Linear encoders z = Wx of the loss: optimized, descended, distilled, trained on views of images, and on the sphere.

Σ = E xxᵀ and Σ_a = ½ E (x - x')(x - x')ᵀ for two views x, x' of an image; μ their generalized eigenvalues, the share of
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


def linear_problem(
    mu: Float[np.ndarray, " m"], *, seed: int = 0
) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
    """Covariances (Σ, Σ_a) whose generalized eigenvalues are mu, in a random, not orthogonal basis."""
    rng, m = np.random.default_rng(seed), len(mu)
    left, right = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
    basis = left * np.linspace(0.8, 1.2, m) @ right
    return basis @ basis.T, basis * mu @ basis.T


def graph_problem(joint: Float[np.ndarray, "m m"]) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
    """(Σ, Σ_a) of free functions on m views, one-hot inputs, of which joint[x, x'] is the probability as a pair.

    Σ is diagonal, with the probabilities of the views, and Σ_a = Σ - joint: their generalized eigenvalues are those of
    the normalized Laplacian of the augmentation graph, the first of them 0, of the constant function.
    """
    joint = (joint + joint.T) / 2
    sigma = np.diag(joint.sum(1))
    return sigma, sigma - joint


def view_covariances(views: Float[Tensor, "2 n m"]) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "m m"]]:
    """Estimates of (Σ, Σ_a), uncentered, from two views of each of n images as rows."""
    x = views.double().numpy()
    difference = x[0] - x[1]
    return np.einsum("vni,vnj->ij", x, x, optimize=True) / (2 * x.shape[1]), difference.T @ difference / (
        2 * x.shape[1]
    )


def modes(sigma: Float[np.ndarray, "m m"], sigma_a: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
    """The generalized eigenvalues μ of (Σ_a, Σ), ascending."""
    return eigh(sigma_a, sigma, eigvals_only=True).clip(min=0)  # Σ_a ≥ 0: what is below is rounding


@torch.no_grad()
def last_layer_modes(encoder: torch.nn.Module, views: Float[Tensor, "2 n m"]) -> Float[np.ndarray, " h"]:
    """Generalized eigenvalues μ, ascending, of what the last linear layer of an encoder gets from views, its bias a 1.

    encoder: a `Linear`, or a `Sequential` that ends with one. Given its input the last layer is a linear encoder, so
    that `theory.water_filling` of these μ is where it rests, whatever is below it.
    """
    *below, last = encoder if isinstance(encoder, torch.nn.Sequential) else [encoder]
    x = torch.nn.Sequential(*below)(views)
    x = x if last.bias is None else torch.nn.functional.pad(x, (0, 1), value=1.0)
    return modes(*view_covariances(x))


def powers(w: Float[np.ndarray, "*t d m"], sigma: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "*t d"]:
    """Eigenvalues of WΣWᵀ, largest first."""
    return np.linalg.eigvalsh(w @ sigma @ w.mT)[..., ::-1]


def linear_optimum(
    sigma: Float[np.ndarray, "m m"],
    sigma_a: Float[np.ndarray, "m m"],
    *,
    d: int,
    gamma: float,
    alpha: float,
    norm: float | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "d m"]:
    """The encoder W that minimizes the loss, by L-BFGS from a random start.

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
    sigma: Float[np.ndarray, "m m"],
    sigma_a: Float[np.ndarray, "m m"],
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
) -> Float[np.ndarray, "t d m"]:
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
    problems: list[tuple[Float[np.ndarray, " m"], dict]], *, lr: float = 0.25, steps: int = 6000, seed: int = 0
) -> dict[str, list[Float[np.ndarray, " d"]]]:
    """Powers found for (μ, {d, gamma, alpha}) in a random basis: by L-BFGS, also at E‖z‖² = 1, and by descent."""
    found = {"optimized": [], "optimized, E‖z‖² = 1": [], "gradient descent": []}
    for mu, options in problems:
        sigma, sigma_a = linear_problem(mu, seed=seed)
        path = descent(sigma, sigma_a, **options, momentum=None, lr=lr, steps=steps, every=steps, seed=seed)
        one = (linear_optimum(sigma, sigma_a, **options, norm=norm, seed=seed) for norm in (None, 1.0))
        for values, w in zip(found.values(), (*one, path[-1]), strict=True):
            values.append(powers(w, sigma))
    return found


def crossing_times(
    powers: Float[np.ndarray, "t m"], level: float | Float[np.ndarray, " m"], *, dt: float
) -> Float[np.ndarray, " m"]:
    """When each mode first exceeds its level, interpolated in its logarithm; nan for a mode that never does."""
    above = powers > level
    i = above.argmax(0)
    column = np.arange(powers.shape[1])
    low, high = np.log(powers[np.maximum(i - 1, 0), column]), np.log(powers[i, column])
    times = dt * (i - 1 + (np.log(level) - low) / np.where(high > low, high - low, 1))
    return np.where(above.any(0) & (i > 0), times, np.nan)


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
    optimizer = torch.optim.Adam(encoder.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z = encoder(views[:, torch.randint(views.shape[1], (batch,), generator=generator)])  # (2, batch, d)
        z = normalize(z, dim=-1) if unit else z
        loss, _ = simdino_loss(z, z, gamma=gamma, eps=eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoder
