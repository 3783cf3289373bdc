"""Features as frames: coherence, frame potentials, bounds and the distances to the optimal configurations.

A set of unit vectors that minimises the second-order potential is a tight frame, one that minimises all even orders
up to p a projective design, one that minimises the coherence an equiangular frame: three grades of "spread out".
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from analysis._input import Array, as_features, require_unit_rows

TILE = 2048  # rows of a tile: pairs are visited in blocks of 2048 × 2048, never as one (n, n) matrix


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
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_min(0)


def _pair_tiles(
    z: Float[Tensor, "n d"], pairing: Callable, reduce: Callable[[Tensor], Tensor]
) -> list[Float[Tensor, ""]]:
    """reduce(pairing of rows i < j), tile by tile; in a backward pass each tile is computed again, and not stored."""

    def tile(a: Tensor, b: Tensor, on_diagonal: bool) -> Tensor:
        values = pairing(a, b)
        if on_diagonal:
            values = values[torch.ones_like(values, dtype=torch.bool).triu(1)]
        return reduce(values)

    recompute = z.requires_grad and torch.is_grad_enabled() and len(z) > TILE
    reduced = []
    with torch.autocast(z.device.type, enabled=False):
        for i in range(0, len(z), TILE):
            for j in range(i, len(z), TILE):
                if i == j and i + 1 == len(z):
                    continue  # one last row has no pair in its own tile
                args = (z[i : i + TILE], z[j : j + TILE], i == j)
                reduced.append(checkpoint(tile, *args, use_reentrant=False) if recompute else tile(*args))
    return reduced


def pair_mean(
    z: Float[Tensor, "n d"], kernel: Callable[[Tensor], Tensor], *, pairing: Callable = inner_products
) -> Float[Tensor, ""]:
    """Mean over the pairs i < j of kernel(pairing(z_i, z_j)), in memory independent of n, summed in float64."""
    pairs = len(z) * (len(z) - 1) / 2
    sums = _pair_tiles(z, pairing, lambda values: kernel(values).sum(dtype=torch.float64))
    return (torch.stack(sums).sum() / pairs).to(z.dtype)
