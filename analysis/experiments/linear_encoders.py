"""Linear encoders z = Wx of the loss: optimized, descended, distilled, and trained on views of images.

Σ = E xxᵀ and Σ_a = ½ E (x - x')(x - x')ᵀ for two views x, x' of an image; μ are their generalized eigenvalues, the
shares of a mode's variance that differ between views. The loss of a linear encoder is
tr WΣ_aWᵀ - (γ/2) logdet(I + αWΣWᵀ). Its powers are the eigenvalues of WΣWᵀ, largest first. Nothing here knows the
predictions of `theory`.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize

from simdino.losses import simdino_loss


class Covariances(NamedTuple):
    """What a linear encoder sees of its inputs: their covariance Σ, and Σ_a, the part that differs between views."""

    sigma: Float[np.ndarray, "m m"]
    sigma_a: Float[np.ndarray, "m m"]


def linear_problem(mu: Float[np.ndarray, " m"], *, seed: int = 0) -> Covariances:
    """Covariances whose generalized eigenvalues are given, in a random basis that is not orthogonal.

    Args:
        mu: (m,) the generalized eigenvalues of (Σ_a, Σ).

    >>> modes(*linear_problem(np.array([0.5, 0.1]))).round(6).tolist()
    [0.1, 0.5]
    """
    rng, m = np.random.default_rng(seed), len(mu)
    left, right = (np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(2))
    basis = left * np.linspace(0.8, 1.2, m) @ right
    return Covariances(basis @ basis.T, basis * mu @ basis.T)


def graph_problem(joint: Float[np.ndarray, "m m"]) -> Covariances:
    """Covariances of free functions on m views, which are linear in the one-hot code of the view.

    Σ is diagonal, with the probabilities of the views, and Σ_a = Σ - joint. Their generalized eigenvalues are those of
    the normalized Laplacian of the augmentation graph, the first of which is 0, that of the constant function.

    Args:
        joint: (m, m) the probability that two views are a pair, of one image; it is made symmetric.

    Source: HaoChen et al. 2021 (arXiv 2106.04156), for the augmentation graph.

    >>> modes(*graph_problem(np.full((2, 2), 0.25))).round(6).tolist()  # views that tell nothing of each other
    [0.0, 1.0]
    """
    joint = (joint + joint.T) / 2
    sigma = np.diag(joint.sum(1))
    return Covariances(sigma, sigma - joint)


def view_covariances(views: Float[Tensor, "2 n m"]) -> Covariances:
    """Estimates of Σ and Σ_a, uncentered, from two views of each of n images.

    >>> views = torch.tensor([[[1.0, 1.0], [-1.0, 1.0]], [[1.0, -1.0], [-1.0, -1.0]]])
    >>> view_covariances(views).sigma_a.tolist()  # the second coordinate changes its sign: ½ · 2²
    [[0.0, 0.0], [0.0, 2.0]]
    """
    x = views.double().cpu().numpy()
    difference, count = x[0] - x[1], 2 * x.shape[1]
    return Covariances(np.einsum("vni,vnj->ij", x, x, optimize=True) / count, difference.T @ difference / count)


def modes(sigma: Float[np.ndarray, "m m"], sigma_a: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"]:
    """The generalized eigenvalues μ of (Σ_a, Σ), ascending: the shares of variance that differ between views.

    >>> modes(np.eye(2), np.diag([0.5, 0.1])).round(6).tolist()
    [0.1, 0.5]
    """
    return eigh(sigma_a, sigma, eigvals_only=True).clip(min=0)  # Σ_a ≥ 0: what is below is rounding


def powers(w: Float[np.ndarray, "*t d m"], sigma: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "*t d"]:
    """The powers of an encoder, the eigenvalues of WΣWᵀ, largest first.

    Args:
        w: (..., d, m) an encoder W, or several.
        sigma: (m, m) the covariance Σ of the inputs.

    >>> powers(np.diag([1.0, 2.0]), np.eye(2)).tolist()
    [4.0, 1.0]
    """
    return np.linalg.eigvalsh(w @ sigma @ w.mT)[..., ::-1]


def linear_optimum(
    sigma: Float[np.ndarray, "m m"],
    sigma_a: Float[np.ndarray, "m m"],
    *,
    d: int,
    gamma: int | float,
    alpha: int | float,
    norm: int | float | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "d m"]:
    """The encoder W that minimizes the loss, by L-BFGS from a random start.

    Args:
        sigma, sigma_a: (m, m) the covariances of the inputs.
        d: the dimension of the features.
        gamma: γ, the weight of the rate.
        alpha: α in the rate ½ logdet(I + αWΣWᵀ).
        norm: the value at which E‖z‖² = tr WΣWᵀ is held by rescaling W; None leaves it free.
        seed: of the start.

    >>> w = linear_optimum(np.eye(1), np.array([[0.125]]), d=1, gamma=1.0, alpha=1.0)
    >>> powers(w, np.eye(1)).round(4).tolist()  # γ/(2μ) - 1/α
    [3.0]
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


def batch_optimum(
    mu: Float[np.ndarray, " m"],
    *,
    d: int,
    batch: int,
    gamma: int | float,
    alpha: int | float,
    draws: int = 150,
    max_iter: int = 300,
    seed: int = 0,
) -> Float[np.ndarray, "d m"]:
    """The encoder W that minimizes the loss with the mean rate of drawn batches of normal inputs.

    tr WΣ_aWᵀ - γ mean ½ logdet(I + (α/b) XWᵀWXᵀ),   Σ = I,   Σ_a = diag(μ)

    The optimizer is L-BFGS from a random start.

    Args:
        mu: (m,) the shares of the variances that differ between views.
        d: the dimension of the features.
        batch: b, inputs in a batch.
        gamma: γ, the weight of the rate.
        alpha: α of the rate.
        draws: how many batches X are drawn, once.
        max_iter: the largest number of iterations.
        seed: of the batches and of the start.

    >>> w = batch_optimum(np.array([0.125]), d=1, batch=1000, gamma=1.0, alpha=1.0)
    >>> round(powers(w, np.eye(1)).item(), 1)  # close to γ/(2μ) - 1/α
    3.0
    """
    rng, m = np.random.default_rng(seed), len(mu)
    x, share = torch.tensor(rng.standard_normal((draws, batch, m))), torch.tensor(mu)

    def loss(flat):
        w = torch.tensor(flat.reshape(d, m), requires_grad=True)
        z = x @ w.mT
        gram = z.mT @ z if d < batch else z @ z.mT
        rates = 0.5 * torch.logdet(torch.eye(gram.shape[-1], dtype=w.dtype) + alpha / batch * gram)
        value = (w.square() * share).sum() - gamma * rates.mean()
        return value.item(), torch.autograd.grad(value, w)[0].numpy().ravel()

    options = {"maxiter": max_iter, "ftol": 0, "gtol": 1e-9, "maxcor": 30}
    start = rng.standard_normal(d * m) * 0.1
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(d, m)


def descent(
    sigma: Float[np.ndarray, "m m"],
    sigma_a: Float[np.ndarray, "m m"],
    *,
    d: int,
    gamma: int | float,
    alpha: int | float,
    momentum: int | float | None,
    lr: int | float,
    steps: int,
    every: int = 1,
    scale: int | float = 0.3,
    orthogonal: bool = False,
    rate_of: Literal["student", "mean"] = "student",
    seed: int = 0,
) -> Float[np.ndarray, "t d m"]:
    """The path of an encoder under gradient descent on the loss, or under self-distillation.

    If both views carry gradients, the derivative of the alignment in W is 2WΣ_a. If the other view is seen by a teacher
    W_t without gradient, it is WΣ - W_t(Σ - Σ_a), and W_t ← ρW_t + (1-ρ)W after each step.

    Args:
        sigma, sigma_a: (m, m) the covariances of the inputs.
        d: the dimension of the features.
        gamma: γ, the weight of the rate.
        alpha: α in the rate ½ logdet(I + αWΣWᵀ).
        momentum: ρ of the teacher, 0 for one that is the student itself; None lets both views carry gradients.
        lr: the step size.
        steps: how many steps.
        every: how many steps lie between two encoders that are kept.
        scale: the standard deviation of the entries of the start, or the norm of its columns if they are orthogonal.
        orthogonal: start from orthogonal columns.
        rate_of: take the rate of the student W, or of (W + W_t)/2, which passes half of its gradient on.
        seed: of the start.

    Returns:
        (t, d, m) the encoders that were kept, the start first.

    >>> options = {"d": 1, "gamma": 1.0, "alpha": 1.0, "momentum": None, "lr": 0.5, "steps": 500, "every": 500}
    >>> path = descent(np.eye(1), np.array([[0.125]]), **options)
    >>> powers(path[-1], np.eye(1)).round(4).tolist()  # γ/(2μ) - 1/α
    [3.0]
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


def optimal_powers(
    problems: list[tuple[Float[np.ndarray, " m"], dict]], *, lr: int | float = 0.25, steps: int = 6000, seed: int = 0
) -> dict[str, list[Float[np.ndarray, " d"]]]:
    """The powers of optimal linear encoders in random bases, found in three ways.

    Args:
        problems: for each, its modes μ (m,) and the options d, gamma and alpha of its loss.
        lr, steps: of the descent.
        seed: of the bases and of the starts.

    Returns:
        for each way ("optimized" by L-BFGS, "optimized, E‖z‖² = 1" and "gradient descent") the powers for each problem.

    >>> found = optimal_powers([(np.array([0.125]), {"d": 1, "gamma": 1.0, "alpha": 1.0})], steps=500)
    >>> {way: powers[0].round(4).tolist() for way, powers in found.items()}  # γ/(2μ) - 1/α where it is free
    {'optimized': [3.0], 'optimized, E‖z‖² = 1': [1.0], 'gradient descent': [3.0]}
    """
    found = {"optimized": [], "optimized, E‖z‖² = 1": [], "gradient descent": []}
    for mu, options in problems:
        sigma, sigma_a = linear_problem(mu, seed=seed)
        path = descent(sigma, sigma_a, **options, momentum=None, lr=lr, steps=steps, every=steps, seed=seed)
        one = (linear_optimum(sigma, sigma_a, **options, norm=norm, seed=seed) for norm in (None, 1.0))
        for values, w in zip(found.values(), (*one, path[-1]), strict=True):
            values.append(powers(w, sigma))
    return found


def crossing_times(
    powers: Float[np.ndarray, "t m"], level: int | float | Float[np.ndarray, " m"], *, dt: int | float
) -> Float[np.ndarray, " m"]:
    """The times at which modes first exceed a level, interpolated in the logarithms of their powers.

    Args:
        powers: (t, m) the power of each mode over time.
        level: one for all modes, or (m,) one for each.
        dt: the time between two rows.

    Returns:
        (m,) the times; nan for a mode that starts above its level or never exceeds it.

    >>> crossing_times(np.array([[1.0, 1.0], [16.0, 2.0]]), 4.0, dt=1.0).tolist()
    [0.5, nan]
    """
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
    gamma: int | float,
    eps: int | float,
    unit: bool,
    batch: int = 500,
    steps: int = 2000,
    lr: int | float = 1e-2,
    seed: int = 0,
) -> torch.nn.Module:
    """Train an encoder in place, on random batches of two views with `simdino_loss` and Adam, and return it.

    Both views carry gradients, and the learning rate falls from `lr` to 0 as a cosine.

    Args:
        encoder: a network from m to d dimensions.
        views: (2, n, m) two views of each of n images.
        gamma: γ, the weight of the rate.
        eps: ε of the rate.
        unit: put the features on the unit sphere.
        batch: how many images in a batch.
        steps: how many batches.
        lr: the learning rate at the start.
        seed: of the batches.
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
