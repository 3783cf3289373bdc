"""Sums and extremes over all pairs of rows, in memory that does not grow with n.

Pairs are visited in tiles of 1024 × 1024, which fit a cache, and never as one (n, n) matrix.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .inputs import Array, as_features, require_unit_rows

PAIR_TILE = 1024  # rows of a tile


def unit_features(z: Array, *, normalize: bool, min_rows: int = 1) -> Float[Tensor, "n d"]:
    """Features on the unit sphere: normalized on request, and otherwise required to be there.

    Args:
        z: (n, d).
        normalize: divide each row by its norm.
        min_rows: the smallest allowed n.

    Raises:
        ValueError: rows that are not of unit norm, without normalize=True; or as in `as_features`.

    >>> unit_features(torch.tensor([[3.0, 4.0]]), normalize=True)
    tensor([[0.6000, 0.8000]])
    """
    z = as_features(z, normalize=normalize, min_rows=min_rows)
    if not normalize:
        require_unit_rows(z)
    return z


def inner_products(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "p q"]:
    """Inner products ⟨aᵢ, bⱼ⟩ of all rows of two sets.

    >>> inner_products(torch.eye(2), torch.ones(1, 2))
    tensor([[1.],
            [1.]])
    """
    return a @ b.T


def squared_distances(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "p q"]:
    """Squared distances ‖aᵢ − bⱼ‖² ≥ 0 of all rows of two sets.

    Center the rows first: two that nearly coincide far from the origin lose their digits here.

    >>> squared_distances(torch.eye(2), torch.zeros(1, 2))
    tensor([[1.],
            [1.]])
    """
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_min_(0)


def _pair_tiles(
    z: Float[Tensor, "n d"], pairing: Callable, reduce: Callable[[Tensor], Tensor]
) -> Float[Tensor, " tiles"]:
    """reduce(pairing of the rows i < j) of each tile; a backward pass computes the tiles again and stores none."""

    def tile(a: Tensor, b: Tensor, on_diagonal: bool) -> Tensor:
        values = pairing(a, b)
        if on_diagonal:
            values = values[torch.ones_like(values, dtype=torch.bool).triu(1)]
        return reduce(values)

    starts = range(0, len(z), PAIR_TILE)
    tiles = [(i, j) for i in starts for j in starts if i < j or (i == j and i + 1 < len(z))]  # a last row has no pair
    with torch.autocast(z.device.type, enabled=False):
        arguments = ((z[i : i + PAIR_TILE], z[j : j + PAIR_TILE], i == j) for i, j in tiles)
        if z.requires_grad and torch.is_grad_enabled():
            recompute = partial(checkpoint, tile, use_reentrant=False) if len(z) > PAIR_TILE else tile
            return torch.stack([recompute(*given) for given in arguments])
        reduced = torch.empty(len(tiles), dtype=torch.float64, device=z.device)
        for k, given in enumerate(arguments):
            reduced[k] = tile(*given)  # small results kept apart would lie between the tiles, and fragment the memory
    return reduced


def pair_mean(
    z: Float[Tensor, "n d"], kernel: Callable[[Tensor], Tensor], *, pairing: Callable = inner_products
) -> Float[Tensor, ""]:
    """Mean of a function of all pairs of rows i < j, summed in float64 in memory that does not grow with n.

    mean_{i<j} kernel(pairing(zᵢ, zⱼ))

    Args:
        z: (n, d), n ≥ 2.
        kernel: the function, of a tensor of paired values, element by element.
        pairing: of two sets of rows (p, d) and (q, d), a value for each pair (p, q).

    >>> pair_mean(torch.tensor([[1.0], [2.0], [3.0]]), lambda squares: squares, pairing=squared_distances).item()
    2.0
    """
    pairs = len(z) * (len(z) - 1) / 2
    sums = _pair_tiles(z, pairing, lambda values: kernel(values).sum(dtype=torch.float64))
    return sums.sum() / pairs


def pair_max(z: Float[Tensor, "n d"], kernel: Callable[[Tensor], Tensor]) -> Float[Tensor, ""]:
    """Largest value of a function of the inner products of rows i < j, in memory that does not grow with n.

    max_{i<j} kernel(⟨zᵢ, zⱼ⟩)

    Args:
        z: (n, d), n ≥ 2.
        kernel: the function, of a tensor of inner products, element by element.

    >>> pair_max(torch.tensor([[1.0], [-2.0], [3.0]]), torch.abs).item()
    6.0
    """
    return _pair_tiles(z, inner_products, lambda values: kernel(values).max()).max().double()


def gram_cosines(z: Array, *, normalize: bool = False) -> Float[Tensor, " pairs"]:
    """Cosines ⟨zᵢ, zⱼ⟩ of all pairs i < j, in the order of `torch.pdist`.

    Equiangular frames have cosines of one absolute value, a simplex has −1/(n − 1) only, and those of isotropic
    features have variance 1/d. Time and memory are O(n²) by nature.

    Args:
        z: (n, d), n ≥ 2, rows on the unit sphere.
        normalize: divide each row by its norm first.

    Returns:
        (n(n − 1)/2,) cosines.

    Raises:
        ValueError: rows that are not of unit norm, without normalize=True; fewer than 2 rows; NaN.

    >>> gram_cosines(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    tensor([ 0.,  0., -1.])
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    with torch.autocast(z.device.type, enabled=False):
        return inner_products(z, z)[torch.ones(len(z), len(z), dtype=torch.bool, device=z.device).triu(1)]
