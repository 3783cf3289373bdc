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
from torch import Tensor
from torch.nn.functional import normalize

from .linear_encoders import crossing_times, view_covariances


def view_shares(train: Float[Tensor, "2 n m"], test: Float[Tensor, "2 k m"]) -> Float[np.ndarray, " alive"]:
    """Shares μ of the variance that differs between views, ascending: directions found on `train`, measured on `test`.

    Both centered by the training mean, since the constant is no spread around total collapse. On the images that they
    were searched on the smallest shares would be biased low. Directions with less than a millionth of the mean variance
    are left out.
    """
    mean = train.mean((0, 1))
    (sigma, sigma_a), (seen, seen_a) = (view_covariances(x - mean) for x in (train, test))
    _, v = eigh(sigma_a, sigma + 1e-6 * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    found, differing, all_ = (np.einsum("ij,ik,kj->j", v, a, v) for a in (sigma, seen_a, seen))
    return np.sort((differing / all_)[found > 0.5])  # else most of the found variance is the ridge's


def growth_boundary(
    chi: Float[np.ndarray, " k"], spread: Float[np.ndarray, "k t"]
) -> tuple[Float[np.ndarray, " k"], float | np.floating]:
    """Growth of log spread from the third to the last quarter of its times, and the χ at which it first passes 0.

    chi: a geometric grid, ascending; between two of its values the growth is interpolated. nan if it never passes.
    """
    quarter = spread.shape[1] // 4
    growth = np.log(spread[:, -quarter:]).mean(1) - np.log(spread[:, -2 * quarter : -quarter]).mean(1)
    place = crossing_times(np.exp(growth)[:, None], 1.0, dt=np.log(chi[1] / chi[0]))[0]
    return growth, chi[0] * np.exp(place)


Teacher = Literal["none", "stop-gradient", "stop-gradient, rate of the mean"]


def simulated_boundary(
    mu: Float[np.ndarray, " s"],
    alpha: Float[np.ndarray, " s"],
    teacher: Teacher,
    *,
    d: int = 4,
    n: int = 32,
    steps: int = 100,
    rounds: int = 11,
) -> Float[np.ndarray, " s"]:
    """The γ at which total collapse turns unstable, by bisection over simulations of an affine encoder on the sphere.

    z = normalize(u + Wx) with a tiny W is descended for `steps`: collapse is stable if the spread W has shrunk. Views
    x = √(1-μ) s + √μ e share s; s and the two e are white, centered and uncorrelated in the sample of n images.
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
