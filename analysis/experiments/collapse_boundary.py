"""The boundary of total collapse (B6): what decides it in the features, where growth begins, and simulations of it.

The features of a collapsed network are one unit vector u and a small spread around it. μ are the shares of the spread's
variance that differ between the views of an image, and χ is the collapse number. Nothing here knows the predictions of
`theory`.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh
from torch import Tensor
from torch.nn.functional import normalize

from .linear_encoders import crossing_times, view_covariances


def view_shares(train: Float[Tensor, "2 n m"], test: Float[Tensor, "2 k m"]) -> Float[np.ndarray, " alive"]:
    """The shares μ of the features' variance that differ between views, measured on images that were held out.

    The directions are found on `train`: on the images that they were searched on, the smallest shares would be biased
    low. Both sets are centered by the mean of `train`, since the constant is no spread around total collapse.

    Args:
        train: (2, n, m) features of two views of each of n images, which give the directions and the mean.
        test: (2, k, m) features of two views of each of k other images, which give the shares.

    Returns:
        the shares, ascending; directions with less than a millionth of the mean variance are left out.

    >>> shared, own = [1.0, 1.0, -1.0, -1.0], ([1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0])
    >>> views = torch.stack([torch.tensor([shared, x]).T for x in own])  # the second coordinates are uncorrelated
    >>> (view_shares(views, views).round(4) + 0.0).tolist()
    [0.0, 1.0]
    """
    mean = train.mean((0, 1))
    (sigma, sigma_a), (seen, seen_a) = (view_covariances(x.to(mean.device) - mean) for x in (train, test))
    _, v = eigh(sigma_a, sigma + 1e-6 * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    found, differing, all_ = (np.einsum("ij,ik,kj->j", v, a, v) for a in (sigma, seen_a, seen))
    alive = found > 0.5  # else most of the found variance is the ridge's
    return np.sort(differing[alive] / all_[alive])


class GrowthBoundary(NamedTuple):
    """How much the spread of runs grew, and where growth begins."""

    growth: Float[np.ndarray, " k"]  # of log spread, per run
    chi: float | np.floating  # nan where no run grew


def growth_boundary(chi: Float[np.ndarray, " k"], spread: Float[np.ndarray, "k t"]) -> GrowthBoundary:
    """The growth of log spread from the third to the last quarter of each run, and the χ at which it first passes 0.

    Args:
        chi: (k,) the collapse number of each run, an ascending geometric grid; the growth is interpolated in between.
        spread: (k, t) the spread of each run over time.

    >>> time = np.arange(8.0)
    >>> chi, spread = np.array([1.0, 4.0]), np.exp([-time, time])  # as fast a decay as a growth: halfway, in log χ
    >>> round(float(growth_boundary(chi, spread).chi), 6)
    2.0
    """
    quarter = spread.shape[1] // 4
    growth = np.log(spread[:, -quarter:]).mean(1) - np.log(spread[:, -2 * quarter : -quarter]).mean(1)
    place = crossing_times(np.exp(growth)[:, None], 1.0, dt=np.log(chi[1] / chi[0]))[0]
    return GrowthBoundary(growth, chi[0] * np.exp(place))


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

    z = normalize(u + Wx),   x = √(1-μ) s + √μ e

    The loss is descended from a tiny W, and collapse is stable if the spread W has shrunk at the end. The two views of
    an image share s; s and the two e are white, centered and uncorrelated in the sample.

    Args:
        mu: (s,) the share of the variance that differs between views, for each setting.
        alpha: (s,) α = d/ε² for each setting.
        teacher: "none" (both views carry gradients), "stop-gradient" (teacher = student), or the same with the rate of
            (student + teacher)/2, the default of the official code (`expa_type=1`).
        d: the dimension of the features.
        n: how many images.
        steps: of each descent.
        rounds: of the bisection, which starts from γ between 1e-4 and 10.

    Returns:
        (s,) the γ of each setting.
    """
    mu, alpha = torch.tensor(mu), torch.tensor(alpha)
    low, high = torch.full_like(mu, 1e-4).log(), torch.full_like(mu, 10.0).log()
    for _ in range(rounds):
        middle = (low + high) / 2
        grows = _spread_growth(mu, alpha, middle.exp(), teacher, d, n, steps) > 1
        low, high = torch.where(grows, low, middle), torch.where(grows, middle, high)
    return ((low + high) / 2).exp().numpy()


def _spread_growth(
    mu: Float[Tensor, " s"],
    alpha: Float[Tensor, " s"],
    gamma: Float[Tensor, " s"],
    teacher: Teacher,
    d: int,
    n: int,
    steps: int,
) -> Float[Tensor, " s"]:
    """The ratio of the final to the initial spread of the encoders (s, d, 2), all settings descended at once."""
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
