"""Features as frames: coherence, frame potentials, bounds and the distances to the optimal configurations.

A set of unit vectors that minimizes the second-order potential is a tight frame, one that minimizes all even orders
up to p a projective design, one that minimizes the coherence an equiangular frame: three grades of "spread out".
Results are 0-d float64 tensors. All of them are invariant to rotation and to the order of rows; the potentials and the
coherence also to the sign of each row, since a frame is a set of lines.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .inputs import Array, as_features, require_unit_rows

PAIR_TILE = (
    1024  # rows of a tile: pairs are visited in blocks of 1024 × 1024, which fit a cache, never as one (n, n) matrix
)


def unit_features(z: Array, *, normalize: bool, min_rows: int = 1) -> Float[Tensor, "n d"]:
    """Features on the unit sphere: normalized on request, a ValueError if they are neither."""
    z = as_features(z, normalize=normalize, min_rows=min_rows)
    if not normalize:
        require_unit_rows(z)
    return z


def inner_products(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "p q"]:
    """⟨a_i, b_j⟩."""
    return a @ b.T


def squared_distances(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> Float[Tensor, "p q"]:
    """‖a_i − b_j‖² ≥ 0; center the rows first, or two that nearly coincide far from the origin lose their digits."""
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
