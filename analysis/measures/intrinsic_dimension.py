"""Intrinsic dimension of the manifold that features lie on, from the distances to their nearest neighbors.

Where the density is constant over a few neighbors, the distances r₁ ≤ r₂ ≤ … of a sample grow as in ℝᴵ, whatever d
is: features on a curved surface have a high rank and a low I. In more than about 20 dimensions distances would need far
more samples than anybody has, and all three estimates are too low. Equal rows have no ratio of distances: they count
once, and the result says how many were left out. Dimensions are 0-d float64 tensors and carry gradients. They are
invariant to rotation, translation and scale, and cost n²d operations.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers

from .inputs import Array, as_ends, as_features, centered
from .neighbors import nearest_neighbors

DISTANCE_ROUNDING = 1e-5  # relative differences of distances below this are those of rows stored in float32


class IntrinsicDimension(NamedTuple):
    """An estimate of the intrinsic dimension, and of its error.

    >>> line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0]])
    >>> gride(line).n, gride(line).duplicates
    (4, 1)
    """

    dimension: Float[Tensor, ""]
    se: Float[Tensor, ""]  # the standard error, if rows were independent
    n: int  # rows used
    duplicates: int  # rows left out because they are copies of another


def twonn(z: Array, *, discard: int | float = 0.1) -> IntrinsicDimension:
    """TwoNN: the dimension I for which the ratio μ = r₂/r₁ has the distribution function F(μ) = 1 − μ⁻ᴵ.

    I = the slope through the origin of −log(1 − F) on log μ, with F = i/n at the i-th smallest of n ratios.

    The largest ratios, a share `discard` of them, are left out of the fit. The standard error is about I/√(rows kept).
    The range is above 0, and +∞ if all distances are equal, as in a simplex. `gride(z, k=1)` is the maximum likelihood
    for the same ratios.

    Args:
        z: (n, d) features with at least three different rows.
        discard: the share of the ratios that is left out, in [0, 1).

    Raises:
        ValueError: too few different rows, discard outside [0, 1), NaN.

    Source: Facco et al. 2017 (arXiv 1803.06992).

    >>> plane = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 50)
    >>> round(twonn(plane).dimension.item())  # in 50 dimensions
    2
    """
    check_numbers(discard=discard)
    if discard == 1:
        raise ValueError(f"discard must lie in [0, 1), got {discard}")
    distances, duplicates = _distances(z, 2)
    log_mu, n = _log_ratio(distances, 2, 1).sort().values, len(distances)
    kept = max(1, min(int(n * (1 - discard)), n - 1))  # the last F is 1 and has no logarithm
    log_mu = log_mu[:kept]
    tail = -torch.log1p(-torch.arange(1, kept + 1, dtype=log_mu.dtype, device=log_mu.device) / n)
    slope = _ratio(log_mu @ tail, log_mu @ log_mu)
    return IntrinsicDimension(slope, slope.detach() / kept**0.5, n, duplicates)


def gride(z: Array, *, k: int = 1) -> IntrinsicDimension:
    """GRIDE: the maximum likelihood of the dimension I, given the ratios μ = r₂ₖ/rₖ; larger k look at larger scales.

    I maximizes n·log I + (k − 1) Σ log(μᴵ − 1) − ((2k − 1)I + 1) Σ log μ;  for k = 1 that is I = n/Σ log μ.

    The standard error comes from the curvature at the maximum. The range is above 0, and +∞ if all distances are equal,
    as in a simplex. Where I changes with k, it is the dimension of noise at small k, where it is higher, and of the
    manifold at large k.

    Args:
        z: (n, d) features with at least 2k + 1 different rows.
        k: the neighbor whose distance is compared with that of neighbor 2k.

    Raises:
        ValueError: k < 1, too few different rows, NaN.

    Source: Denti et al. 2022 (arXiv 2104.13832) eq. 13; Facco et al. 2017 for k = 1.

    >>> plane = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 50)
    >>> round(gride(plane, k=4).dimension.item())  # in 50 dimensions
    2
    """
    check_numbers(k=k)
    distances, duplicates = _distances(z, 2 * k)
    log_mu, n = _log_ratio(distances, 2 * k, k), len(distances)
    total = log_mu.sum()
    low, high = (c * _ratio(n, total).detach() for c in (2 * k / (3 * k - 1), 1))  # the root lies between

    def slope(dimension: Tensor, log_mu: Tensor) -> Tensor:
        """The slope of the log-likelihood; log μ·(k − 1)/(1 − μ⁻ᴵ) tends to (k − 1)/I as μ tends to 1."""
        x = dimension * log_mu
        terms = torch.where(x > 0, x / -torch.expm1(torch.where(x > 0, -x, -1.0)), 1.0)
        return (n + (k - 1) * terms.sum()) / dimension - (2 * k - 1) * log_mu.sum()

    for _ in range(60):
        middle = (low + high) / 2
        rising = slope(middle, log_mu.detach()) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    dimension = (low + high) / 2
    ratio = torch.exp(-dimension * log_mu.detach())
    spread = torch.where(ratio < 1, log_mu.detach() * ratio.sqrt() / (1 - ratio), 1 / dimension)
    curvature = n / dimension**2 + (k - 1) * spread.square().sum()
    newton = dimension + slope(dimension, log_mu) / curvature  # moves nothing, and carries the gradient
    resolved = torch.isfinite(dimension)
    return IntrinsicDimension(
        torch.where(resolved, newton, torch.inf), torch.where(resolved, curvature**-0.5, torch.inf), n, duplicates
    )


def levina_bickel(z: Array, *, k: tuple[int, int] = (10, 20)) -> IntrinsicDimension:
    """Levina & Bickel's estimate: the maximum likelihood of the dimension at each row, averaged over rows and over k.

    m_k = [Σ_{j<k} log(r_k/r_j)/(k − 1)]⁻¹ at a row with the neighbor distances r₁ ≤ r₂ ≤ …

    The range is above 0. E m_k = I·(k − 1)/(k − 2) if the density is constant over k neighbors, so that small k read
    high; curvature and edges make large k read low. The standard error comes from the spread over rows, whose
    neighborhoods overlap: it is too small. A row whose k[0] nearest rows are equally far, to five digits, is left out,
    which n shows. It is +∞ if that happens to all rows, as in a simplex.

    Args:
        z: (n, d) features with more than k[1] different rows.
        k: the smallest and the largest number of neighbors, both included.

    Raises:
        ValueError: k not 2 ≤ k[0] ≤ k[1], too few different rows, NaN.

    Source: Levina & Bickel 2004, eq. 8-9.

    >>> plane = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 50)
    >>> round(levina_bickel(plane).dimension.item())  # in 50 dimensions
    2
    """
    low, high = as_ends(k, "k")
    if low < 2:
        raise ValueError(f"k must satisfy 2 <= k[0] <= k[1], got {k}")
    distances, duplicates = _distances(z, high)
    logs = distances.log()  # (n, k)
    counts = torch.arange(1, high, dtype=logs.dtype, device=logs.device)
    inverse = (logs[:, 1:] - logs[:, :-1].cumsum(1) / counts)[:, low - 2 :]  # 1/m_k for k = low, …, high
    apart = (inverse > DISTANCE_ROUNDING).all(1)
    estimates = (1 / inverse[apart]).mean(1)  # (n,), one for each row
    if not len(estimates):
        return IntrinsicDimension(0 * logs.sum() + torch.inf, torch.full_like(logs[0, 0], torch.inf), 0, duplicates)
    se = estimates.detach().std() / len(estimates) ** 0.5
    return IntrinsicDimension(estimates.mean(), se, len(estimates), duplicates)


def _distances(z: Array, k: int) -> tuple[Float[Tensor, "n k"], int]:
    """Distances to the k nearest of the other different rows, and the number of rows that are copies of one before."""
    z = centered(as_features(z).double())  # as the distances are taken: what rounds to one row here is one
    _, group = z.detach().unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(z), device=z.device)
    first = first.scatter_reduce(0, group, torch.arange(len(z), device=z.device), "amin")
    if len(first) < k + 1:
        raise ValueError(f"z needs at least {k + 1} different rows, got {len(first)}")
    return nearest_neighbors(z[first.sort().values], k=k).distances, len(z) - len(first)


def _log_ratio(distances: Float[Tensor, "n k"], far: int, near: int) -> Float[Tensor, " n"]:
    """log(r_far/r_near) of each row; all 0 if none is above rounding, as in a simplex."""
    log_mu = (distances[:, far - 1] / distances[:, near - 1]).log()
    return torch.where(log_mu.detach().max() > DISTANCE_ROUNDING, log_mu, 0 * log_mu)


def _ratio(a: Tensor | int | float, b: Tensor) -> Tensor:
    """a/b, and +∞ where b is 0."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), torch.inf)
