"""Features as frames: coherence, frame potentials, bounds and the distances to the optimal configurations.

Unit vectors that minimize the second-order potential are a tight frame, those that minimize all even orders up to p a
projective design, and those that minimize the coherence an equiangular frame: three grades of "spread out". Results are
0-d float64 tensors. All of them are invariant to rotation and to the order of rows; the potentials and the coherence
are also invariant to the sign of each row, since a frame is a set of lines.
"""

import math
from numbers import Integral
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import betaln
from torch import Tensor

from simdino.losses import check_numbers

from .. import theory
from .gradients import square_root
from .inputs import Array, as_features
from .moments import Moments, features_or_moments, gram
from .pair_tiles import pair_max, pair_mean, unit_features
from .spectra import eigenvalues

_EXACT = 128  # largest order whose potential on the sphere is computed as a product


def coherence(z: Array, *, normalize: bool = False) -> Float[Tensor, ""]:
    """Coherence: the cosine of the closest two lines.

    max_{i≠j} |⟨zᵢ, zⱼ⟩|

    The range is `welch_bound(n, d)` to 1, and lower is more spread. An equiangular tight frame reaches the bound, two
    equal or opposite rows give 1.

    Args:
        z: (n, d), n ≥ 2, rows on the unit sphere.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: rows that are not of unit norm, without normalize=True; fewer than 2 rows; NaN.

    Source: Welch 1974; Strohmer & Heath 2003.

    >>> coherence(torch.eye(4)).item()
    0.0
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    return pair_max(z, torch.abs)


def welch_bound(n: int, d: int) -> float:
    """Welch bound: the least coherence of n unit vectors in ℝᵈ, by their second moment.

    √((n − d)/(d(n − 1))), and 0 for n ≤ d

    Vectors reach it exactly if they form an equiangular tight frame, which in ℝᵈ needs n ≤ d(d + 1)/2.

    Raises:
        ValueError: n < 2 or d < 1.

    Source: Welch 1974.

    >>> welch_bound(3, 2)  # three lines in the plane, at 120°
    0.5
    """
    _check_size(n, d)
    return theory.welch_coherence(n, d)


def orthoplex_bound(n: int, d: int) -> float:
    """Orthoplex bound: the least coherence of more than d(d + 1)/2 unit vectors in ℝᵈ.

    1/√d, and 0 for n ≤ d(d + 1)/2, where it says nothing

    Above that number of vectors it beats the Welch bound, and mutually unbiased bases reach it.

    Raises:
        ValueError: n < 2 or d < 1.

    Source: Conway, Hardin & Sloane 1996.

    >>> orthoplex_bound(12, 4), orthoplex_bound(10, 4)
    (0.5, 0.0)
    """
    _check_size(n, d)
    return theory.orthoplex_coherence(n, d) if n > d * (d + 1) // 2 else 0.0


def frame_potential(z: Array, *, order: int = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """Frame potential of an even order p: the mean p-th power of the cosines of all pairs.

    mean_{i<j} ⟨zᵢ, zⱼ⟩ᵖ

    The range is `frame_potential_bound` to 1 (one line), and lower is more spread. Order 2 is least for tight frames,
    all orders up to p are least for projective designs, and p → ∞ sees only the closest pair. Independent isotropic
    rows give `sphere_potential` in expectation. Order 2 costs O(n·d·min(n, d)), the others O(n²d) in tiles.

    Args:
        z: (n, d), n ≥ 2, rows on the unit sphere.
        order: p, even and at least 2.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: an odd order; rows that are not of unit norm, without normalize=True; fewer than 2 rows; NaN.

    Source: Benedetto & Fickus 2003 (order 2, as a sum over all n² pairs); Ehler & Okoudjou 2012 (order p).

    >>> frame_potential(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item()  # one pair of three is a line
    0.3333333333333333
    """
    _check_order(order)
    z = unit_features(z, normalize=normalize, min_rows=2)
    if order > 2:
        return pair_mean(z, lambda cosine: cosine**order)
    z, n = z.double(), len(z)
    square = gram(z if n >= z.shape[1] else z.mT).square().sum()  # ‖zᵀz‖²_F = ‖zzᵀ‖²_F
    return (square - z.square().sum(1).square().sum()) / (n * (n - 1))


def sphere_potential(d: int, *, order: int = 2) -> float:
    """Expected p-th power of the cosine of two independent uniform unit vectors in ℝᵈ.

    E⟨x, y⟩ᵖ = 1·3···(p − 1) / (d(d + 2)···(d + p − 2)), which is 1/d for order 2 and 3/(d(d + 2)) for order 4

    Args:
        d: the dimension.
        order: p, even and at least 2.

    Raises:
        ValueError: an odd order, or a d that is no positive integer.

    >>> sphere_potential(2, order=4)  # the mean of cos⁴ on a circle
    0.375
    """
    _check_order(order)
    check_numbers(d=d)
    if d == 1:
        return 1.0
    if order <= _EXACT:
        return math.prod((2 * j + 1) / (d + 2 * j) for j in range(order // 2))
    return math.exp(betaln((order + 1) / 2, (d - 1) / 2) - betaln(1 / 2, (d - 1) / 2))


def frame_potential_bound(n: int, d: int, *, order: int = 2) -> float:
    """Least frame potential of n unit vectors in ℝᵈ.

    max(0, (n·a − 1)/(n − 1)),  a = `sphere_potential(d, order=order)`

    This is the mean over all n² pairs, which is at least a, less the n pairs of a vector with itself. Vectors reach it
    exactly if they are orthonormal (order 2, n ≤ d) or form a projective p-design.

    Raises:
        ValueError: n < 2, d < 1, or an odd order.

    Source: Sidelnikov 1974; Welch 1974.

    >>> frame_potential_bound(5, 2)
    0.375
    """
    _check_size(n, d)
    return max(0.0, (n * sphere_potential(d, order=order) - 1) / (n - 1))


def frame_potential_excess(z: Array, *, order: int = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """Frame potential minus its bound.

    0 is optimal, and (1 − a)/(n − 1) is as good as random (where n·a > 1), a = `sphere_potential(d, order=order)`.

    Args:
        z: (n, d), n ≥ 2, rows on the unit sphere.
        order: p, even and at least 2.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: as in `frame_potential`.

    >>> frame_potential_excess(torch.eye(4)).item()
    0.0
    """
    z = as_features(z)
    potential = frame_potential(z, order=order, normalize=normalize)
    return potential - frame_potential_bound(*z.shape, order=order)


class FrameBounds(NamedTuple):
    """The frame bounds A and B; unpacks as (lower, upper)."""

    lower: Float[Tensor, ""]
    upper: Float[Tensor, ""]


def frame_bounds(x: Array | Moments) -> FrameBounds:
    """Frame bounds A and B: the extreme eigenvalues of the frame operator zᵀz.

    A‖u‖² ≤ Σᵢ ⟨u, zᵢ⟩² ≤ B‖u‖² for all u, both attained

    0 ≤ A ≤ B, and A = 0 where the rows do not span ℝᵈ, as for n < d. A = B is a tight frame; both are then n/d for unit
    rows.

    Args:
        x: features (n, d) or `Moments`.

    Raises:
        ValueError: a spectrum, which has lost n; NaN.

    Source: Duffin & Schaeffer 1952.

    >>> lower, upper = frame_bounds(torch.diag(torch.tensor([1.0, 2.0])))
    >>> round(lower.item(), 6), round(upper.item(), 6)
    (1.0, 4.0)
    """
    x = features_or_moments(x)
    if not isinstance(x, Moments) and x.ndim != 2:
        raise ValueError(f"x must be Moments or features of shape (n, d), got {tuple(x.shape)}: a spectrum has lost n")
    lam = eigenvalues(x)
    n, d = (x.n, x.d) if isinstance(x, Moments) else x.shape
    return FrameBounds(n * lam[-1] if n >= d else torch.zeros_like(lam[-1]), n * lam[0])


def tightness(x: Array | Moments) -> Float[Tensor, ""]:
    """Tightness A/B, the ratio of the frame bounds: one over the condition number of zᵀz.

    1 is a tight frame and 0 a set that does not span ℝᵈ (total collapse included), so higher is healthier. The weakest
    direction decides alone; `tight_frame_distance` averages over all of them.

    Args:
        x: features (n, d) or `Moments`.

    Raises:
        ValueError: as in `frame_bounds`.

    >>> round(tightness(torch.diag(torch.tensor([1.0, 2.0]))).item(), 6)
    0.25
    """
    lower, upper = frame_bounds(x)
    return torch.where(upper > 0, lower / torch.where(upper > 0, upper, 1.0), 0.0)


def tight_frame_distance(x: Array | Moments) -> Float[Tensor, ""]:
    """Relative distance of the features to the nearest tight frame.

    min_T ‖z − T‖_F/‖z‖_F = √(Σ(σ − σ̄)²/Σσ²) over the r = min(n, d) singular values

    The nearest T has the same singular vectors and all singular values σ̄; for n ≤ d it has orthogonal rows of equal
    norm. The range is 0 (the flat spectrum, which maximizes the coding rate) to √(1 − 1/r) (rank one and, by
    definition, features that are zero). Lower is healthier. It is invariant to scale.

    Args:
        x: features (n, d), `Moments`, or a spectrum of full length.

    Source: Mirsky 1960 (the minimum); Benedetto & Fickus 2003 (tight frames as optima).

    >>> round(tight_frame_distance(torch.ones(9, 4)).item(), 4)  # one line: √(3/4)
    0.866
    """
    sigma = square_root(eigenvalues(x))
    energy = sigma.square().sum()
    share = (sigma - sigma.mean()).square().sum() / torch.where(energy > 0, energy, 1.0)
    return square_root(torch.where(energy > 0, share, 1 - 1 / len(sigma)))


def orthonormal_distance(z: Array) -> Float[Tensor, ""]:
    """Root mean square distance of each row to the nearest n ≤ d orthonormal rows.

    min_Q ‖z − Q‖_F/√n = √(mean (σ − 1)²),  attained by the polar factor Q = UVᵀ

    0 is the optimum of the coding rate for n ≤ d unit rows; total collapse of unit rows gives √(2 − 2/√n). Lower is
    healthier. It is not invariant to scale.

    Args:
        z: (n, d), n ≤ d.

    Raises:
        ValueError: n > d, NaN.

    Source: Fan & Hoffman 1955.

    >>> round(orthonormal_distance(3 * torch.eye(4)).item(), 6)
    2.0
    """
    z = as_features(z)
    if len(z) > z.shape[1]:
        raise ValueError(f"z has more rows than dimensions, {tuple(z.shape)}: they cannot be orthonormal")
    return square_root((square_root(len(z) * eigenvalues(z)) - 1).square().mean())


def self_clustering(z: Array, *, normalize: bool = False) -> Float[Tensor, ""]:
    """Self-clustering: how far the rows cluster, 0 for random ones and 1 for one line.

    (d·‖G‖²_F − n(d + n − 1)) / ((d − 1)(n − 1)n) = (d·FP − 1)/(d − 1),  G = zzᵀ,  FP = `frame_potential(z)`

    The range is −1/(n − 1) (tight frames, n ≥ d) to 1, independent isotropic rows have expectation 0, and lower is
    healthier. It is a second-order quantity: opposite rows count as one cluster.

    Args:
        z: (n, d), n ≥ 2 and d ≥ 2, rows on the unit sphere.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: rows that are not of unit norm, without normalize=True; n or d below 2; NaN.

    Source: Tsitsulin et al. 2023 (arXiv 2305.16562).

    >>> self_clustering(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item()
    1.0
    """
    z, d = as_features(z), z.shape[-1]
    if d < 2:
        raise ValueError("self_clustering needs d ≥ 2: in one dimension all rows lie on one line")
    return (d * frame_potential(z, normalize=normalize) - 1) / (d - 1)


def _check_order(order: int) -> None:
    if not isinstance(order, Integral) or not 2 <= order <= 10**18 or order % 2:
        raise ValueError(f"order must be even and at least 2, got {order}")


def _check_size(n: int, d: int) -> None:
    if not isinstance(n, Integral) or not isinstance(d, Integral) or n < 2 or d < 1:
        raise ValueError(f"a bound on pairs needs n ≥ 2 and d ≥ 1, got n={n}, d={d}")
