"""Features as frames: coherence, frame potentials, bounds and the distances to the optimal configurations.

A set of unit vectors that minimizes the second-order potential is a tight frame, one that minimizes all even orders
up to p a projective design, one that minimizes the coherence an equiangular frame: three grades of "spread out".
Results are 0-d float64 tensors. All of them are invariant to rotation and to the order of rows; the potentials and the
coherence also to the sign of each row, since a frame is a set of lines.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .. import theory
from .inputs import Array, as_features
from .moments import Moments, gram
from .pairs import _pair_tiles, inner_products, pair_mean, unit_features
from .spectra import eigenvalues


def coherence(z: Array, *, normalize: bool = False) -> Float[Tensor, ""]:
    """Coherence max_{i≠j} |⟨zᵢ, zⱼ⟩|, the cosine of the closest two lines.

    z: `(n, d)`, n ≥ 2, rows on the unit sphere, or `normalize=True`. Range `welch_bound(n, d)` to 1, lower is more
    spread; an equiangular tight frame reaches the bound, two equal or opposite rows give 1.

    Source: Welch 1974; Strohmer & Heath 2003.
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    return _pair_tiles(z, inner_products, lambda values: values.abs().max()).max().double()


def welch_bound(n: int, d: int) -> float:
    """Least coherence of n unit vectors in ℝᵈ by their second moment: √((n − d)/(d(n − 1))), 0 for n ≤ d.

    Equality iff the vectors form an equiangular tight frame, which in ℝᵈ needs n ≤ d(d + 1)/2. Source: Welch 1974.
    """
    _check_size(n, d)
    return theory.welch_coherence(n, d)


def orthoplex_bound(n: int, d: int) -> float:
    """Least coherence of more than d(d + 1)/2 unit vectors in ℝᵈ: 1/√d; 0 for fewer, of which it says nothing.

    Above that number it beats the Welch bound; mutually unbiased bases reach it. Source: Conway, Hardin & Sloane 1996.
    """
    _check_size(n, d)
    return theory.orthoplex_coherence(n, d) if n > d * (d + 1) // 2 else 0.0


def frame_potential(z: Array, *, order: int = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """Frame potential of an even order p: mean_{i<j} ⟨zᵢ, zⱼ⟩ᵖ.

    z: `(n, d)`, n ≥ 2, rows on the unit sphere, or `normalize=True`. Range `frame_potential_bound` to 1 (one line);
    lower is more spread: order 2 is least for tight frames, all orders up to p for projective designs, and p → ∞
    sees only the closest pair. Independent isotropic rows give `sphere_potential` in expectation. Order 2 costs
    O(n·d·min(n, d)), the others O(n²d) in tiles. ValueError: an odd order, rows off the sphere, NaN.

    Source: Benedetto & Fickus 2003 (order 2, as a sum over all n² pairs); Ehler & Okoudjou 2012 (order p).
    """
    _check_order(order)
    z = unit_features(z, normalize=normalize, min_rows=2)
    if order > 2:
        return pair_mean(z, lambda cosine: cosine**order)
    z, n = z.double(), len(z)
    square = gram(z if n >= z.shape[1] else z.mT).square().sum()  # ‖zᵀz‖²_F = ‖zzᵀ‖²_F
    return (square - z.square().sum(1).square().sum()) / (n * (n - 1))


def sphere_potential(d: int, *, order: int = 2) -> float:
    """E⟨x, y⟩ᵖ of independent uniform unit vectors in ℝᵈ: 1·3···(p − 1) / (d(d + 2)···(d + p − 2)).

    1/d for order 2, 3/(d(d + 2)) for order 4.
    """
    _check_order(order)
    return math.prod((2 * j + 1) / (d + 2 * j) for j in range(order // 2))


def frame_potential_bound(n: int, d: int, *, order: int = 2) -> float:
    """Least frame potential of n unit vectors in ℝᵈ: max(0, (n·a − 1)/(n − 1)) with a = `sphere_potential`.

    The mean over all n² pairs, which is at least a, less the n pairs of a vector with itself. Equality iff the
    vectors are orthonormal (order 2, n ≤ d) or form a projective p-design. Source: Sidelnikov 1974; Welch 1974.
    """
    _check_size(n, d)
    return max(0.0, (n * sphere_potential(d, order=order) - 1) / (n - 1))


def frame_potential_excess(z: Array, *, order: int = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """`frame_potential` minus its bound: 0 is optimal, (1 − a)/(n − 1) as good as random (where n·a > 1).

    Arguments and errors as in `frame_potential`; a = `sphere_potential(d, order=order)`.
    """
    potential = frame_potential(z, order=order, normalize=normalize)
    return potential - frame_potential_bound(*z.shape, order=order)


def frame_bounds(x: Array | Moments) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Frame bounds (A, B): the extreme eigenvalues of the frame operator zᵀz.

    A‖u‖² ≤ Σᵢ ⟨u, zᵢ⟩² ≤ B‖u‖² for all u, both attained.

    x: features `(n, d)` or `Moments`. 0 ≤ A ≤ B; A = 0 where the rows do not span ℝᵈ, as for n < d. A = B: a tight
    frame, with the value n/d for unit rows.

    Source: Duffin & Schaeffer 1952.
    """
    if not isinstance(x, Moments) and x.ndim != 2:
        raise ValueError(f"x must be Moments or features of shape (n, d), got {tuple(x.shape)}: a spectrum has lost n")
    lam = eigenvalues(x)
    n, d = (x.n, x.d) if isinstance(x, Moments) else x.shape
    return n * lam[-1] if n >= d else torch.zeros_like(lam[-1]), n * lam[0]


def tightness(x: Array | Moments) -> Float[Tensor, ""]:
    """A/B of the frame bounds: 1 is a tight frame, 0 a set that does not span ℝᵈ (total collapse included).

    One over the condition number of zᵀz, so the weakest direction decides alone: `tight_frame_distance` averages.
    """
    lower, upper = frame_bounds(x)
    return torch.where(upper > 0, lower / torch.where(upper > 0, upper, 1.0), 0.0)


def tight_frame_distance(x: Array | Moments) -> Float[Tensor, ""]:
    """Relative distance to the nearest tight frame: min_T ‖z − T‖_F/‖z‖_F.

    √(Σ(σ − σ̄)²/Σσ²) over the r = min(n, d) singular values; the nearest T has the same singular vectors and all
    singular values σ̄. For n ≤ d that is a T with orthogonal rows of equal norm.

    x: features `(n, d)`, `Moments` or a spectrum of full length. Range 0 (the flat spectrum, which maximizes the
    coding rate) to √(1 − 1/r) (rank one, and by definition zero features). Lower is healthier. Invariant to scale.

    Source: Mirsky 1960 (the minimum); Benedetto & Fickus 2003 (tight frames as optima).
    """
    sigma = _singular_values(eigenvalues(x))
    energy = sigma.square().sum()
    share = (sigma - sigma.mean()).square().sum() / torch.where(energy > 0, energy, 1.0)
    return torch.where(energy > 0, share, 1 - 1 / len(sigma)).sqrt()


def orthonormal_distance(z: Array) -> Float[Tensor, ""]:
    """Root mean square distance per row to the nearest n ≤ d orthonormal rows: min_Q ‖z − Q‖_F/√n.

    √(mean (σ − 1)²); Q = UVᵀ is the polar factor. 0 is the optimum of the coding rate for n ≤ d unit rows; total
    collapse of unit rows gives √(2 − 2/√n). Not invariant to scale. ValueError: n > d.

    Source: Fan & Hoffman 1955.
    """
    z = as_features(z)
    if len(z) > z.shape[1]:
        raise ValueError(f"z has more rows than dimensions, {tuple(z.shape)}: they cannot be orthonormal")
    return (_singular_values(len(z) * eigenvalues(z)) - 1).square().mean().sqrt()


def _singular_values(lam: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    return torch.where(lam > 0, torch.where(lam > 0, lam, 1.0).sqrt(), 0.0)  # √ has no gradient at 0


def _check_order(order: int) -> None:
    if order < 2 or order % 2:
        raise ValueError(f"order must be even and at least 2, got {order}")


def _check_size(n: int, d: int) -> None:
    if n < 2 or d < 1:
        raise ValueError(f"a bound on pairs needs n ≥ 2 and d ≥ 1, got n={n}, d={d}")


def self_clustering(z: Array, *, normalize: bool = False) -> Float[Tensor, ""]:
    """Self-clustering: how far the rows cluster, 0 for random ones and 1 for one line.

    (d·‖G‖²_F − n(d + n − 1)) / ((d − 1)(n − 1)n) = (d·FP − 1)/(d − 1),  G = zzᵀ,  FP = `frame_potential(z)`.

    z: `(n, d)`, n, d ≥ 2, rows on the unit sphere, or `normalize=True`. Range −1/(n − 1) (tight frames; n ≥ d) to 1;
    independent isotropic rows have expectation 0. Lower is healthier. It is a second-order quantity: opposite rows
    count as one cluster. ValueError: rows off the sphere, n or d below 2, NaN.

    Source: Tsitsulin et al. 2023 (arXiv 2305.16562).
    """
    z, d = as_features(z), z.shape[-1]
    if d < 2:
        raise ValueError("self_clustering needs d ≥ 2: in one dimension all rows lie on one line")
    return (d * frame_potential(z, normalize=normalize) - 1) / (d - 1)
