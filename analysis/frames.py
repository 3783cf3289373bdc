"""Features as frames: coherence, frame potentials, bounds and the distances to the optimal configurations.

A set of unit vectors that minimises the second-order potential is a tight frame, one that minimises all even orders
up to p a projective design, one that minimises the coherence an equiangular frame: three grades of "spread out".
Results are 0-d float64 tensors. All of them are invariant to rotation and to the order of rows; the potentials and the
coherence also to the sign of each row, since a frame is a set of lines.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from analysis import theory
from analysis._input import Array, as_features, require_unit_rows
from analysis.moments import Moments, gram
from analysis.spectra import eigenvalues

TILE = 1024  # rows of a tile: pairs are visited in blocks of 1024 × 1024, which fit a cache, never as one (n, n) matrix


def unit_features(z: Array, *, normalize: bool, min_rows: int = 1) -> Float[Tensor, "n d"]:
    """Features on the unit sphere: normalised on request, a ValueError if they are neither."""
    z = as_features(z, normalize=normalize, min_rows=min_rows)
    if not normalize:
        require_unit_rows(z)
    return z


def inner_products(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "p q"]:
    """⟨a_i, b_j⟩."""
    return a @ b.T


def squared_distances(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "p q"]:
    """‖a_i − b_j‖² ≥ 0; centre the rows first, or two that nearly coincide far from the origin lose their digits."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_min_(0)


def _pair_tiles(
    z: Float[Tensor, "n d"], pairing: Callable, reduce: Callable[[Tensor], Tensor]
) -> Float[Tensor, " tiles"]:
    """reduce(pairing of rows i < j), tile by tile; in a backward pass each tile is computed again, and not stored."""

    def tile(a: Tensor, b: Tensor, on_diagonal: bool) -> Tensor:
        values = pairing(a, b)
        if on_diagonal:
            values = values[torch.ones_like(values, dtype=torch.bool).triu(1)]
        return reduce(values)

    starts = range(0, len(z), TILE)
    tiles = [(i, j) for i in starts for j in starts if i < j or (i == j and i + 1 < len(z))]  # a last row has no pair
    with torch.autocast(z.device.type, enabled=False):
        arguments = ((z[i : i + TILE], z[j : j + TILE], i == j) for i, j in tiles)
        if z.requires_grad and torch.is_grad_enabled():
            recompute = partial(checkpoint, tile, use_reentrant=False) if len(z) > TILE else tile
            return torch.stack([recompute(*given) for given in arguments])
        reduced = torch.empty(len(tiles), dtype=torch.float64, device=z.device)
        for k, given in enumerate(arguments):
            reduced[k] = tile(*given)  # small results kept apart would lie between the tiles, and fragment the memory
    return reduced


def pair_mean(
    z: Float[Tensor, "n d"], kernel: Callable[[Tensor], Tensor], *, pairing: Callable = inner_products
) -> Float[Tensor, ""]:
    """Mean over the pairs i < j of kernel(pairing(z_i, z_j)), in memory independent of n, summed in float64."""
    pairs = len(z) * (len(z) - 1) / 2
    sums = _pair_tiles(z, pairing, lambda values: kernel(values).sum(dtype=torch.float64))
    return sums.sum() / pairs


def gram_cosines(z: Array, *, normalize: bool = False) -> Float[Tensor, " pairs"]:
    """Cosines ⟨zᵢ, zⱼ⟩ of all pairs i < j, in the order of `torch.pdist`, `(n(n − 1)/2,)`: O(n²) by nature.

    Equiangular frames have one absolute value, a simplex only −1/(n − 1), isotropic features variance 1/d.
    Rows on the unit sphere, or `normalize=True`.
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    with torch.autocast(z.device.type, enabled=False):
        return inner_products(z, z)[torch.ones(len(z), len(z), dtype=torch.bool, device=z.device).triu(1)]


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

    x: features `(n, d)`, `Moments` or a spectrum of full length. Range 0 (the flat spectrum, which maximises the
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


def simplex_distance(z: Array) -> Float[Tensor, ""]:
    """Distance of the Gram matrix to a regular simplex (simplex equiangular tight frame), both of norm 1.

    ‖G/‖G‖_F − E/‖E‖_F‖_F,  G = zzᵀ,  E = I − 11ᵀ/n.

    z: `(n, d)`, n ≥ 2: class means for neural collapse, centred by the caller. Range 0 (reached only if n ≤ d + 1)
    to √2 (all rows equal, and by definition all zero); lower is closer. By traces, without the (n, n) matrix, hence
    resolved to 10⁻⁸. Invariant to scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186), NC2; in this form Zhu et al. 2021 (arXiv 2105.02375).
    """
    z = as_features(z, min_rows=2).double()
    n = len(z)
    norm = gram(z if n >= z.shape[1] else z.mT).square().sum().sqrt()  # ‖G‖_F
    overlap = (z.square().sum() - z.sum(0).square().sum() / n) / math.sqrt(n - 1)  # ⟨G, E⟩/‖E‖_F
    return (2 - 2 * (overlap / torch.where(norm > 0, norm, 1.0)).clamp(0, 1)).sqrt()


def _singular_values(lam: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    return torch.where(lam > 0, torch.where(lam > 0, lam, 1.0).sqrt(), 0.0)  # √ has no gradient at 0


def _check_order(order: int) -> None:
    if order < 2 or order % 2:
        raise ValueError(f"order must be even and at least 2, got {order}")


def _check_size(n: int, d: int) -> None:
    if n < 2 or d < 1:
        raise ValueError(f"a bound on pairs needs n ≥ 2 and d ≥ 1, got n={n}, d={d}")
