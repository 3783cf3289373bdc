"""Nearest neighbours of features, exact and in tiles, and what two representations keep of each other's.

Distances are Euclidean, in float64. Neighbours are chosen by ‖a‖² + ‖b‖² − 2⟨a, b⟩, which tells distances apart down to
about 10⁻⁸ of the features' spread; the distances returned are those of the rows themselves, so that close pairs keep
their digits and duplicates are exactly 0 apart.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis._input import Array, as_features
from analysis.frames import TILE, squared_distances


def nearest_neighbors(z: Array, *, k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest other rows, ascending, and their indices.

    z: `(n, d)`, n > k. Equal distances come in any order. Costs n²d operations and memory n·k, in tiles. Gradients
    flow through the distances. ValueError: k < 1, n ≤ k, NaN.
    """
    z = _centered(z, "z", k)
    with torch.no_grad():
        index = torch.cat([_nearest(z, start, k) for start in range(0, len(z), TILE)])  # (n, k)
    distances = torch.stack([(z - z[index[:, j]]).norm(dim=1) for j in range(k)], 1)  # (n, k)
    distances, order = distances.sort(dim=1, stable=True)  # what rounding has swapped
    return distances, index.gather(1, order)


def neighbor_overlap(x: Array, y: Array, *, k: int) -> Float[Tensor, ""]:
    """Neighbour overlap: the share of a sample's k nearest neighbours in x that are among its k nearest in y.

    x `(n, d)`, y `(n, e)`, n > k, rows of the same samples. Range 0 to 1 (the same neighbours); k/(n − 1) in
    expectation for independent representations, so compare at equal n and k. Symmetric. Invariant to rotation,
    translation and scale of each. Not differentiable. Equal distances come in any order: noise if all rows are equal.

    Source: Doimo et al. 2020 (arXiv 2007.03506) eq. 1.
    """
    (_, a), (_, b) = (nearest_neighbors(z, k=k) for z in _paired(x, y, k))
    shared = torch.stack([(a == b[:, j, None]).any(1) for j in range(k)])  # (k, n)
    return shared.double().mean()


def information_imbalance(x: Array, y: Array, *, k: int = 1) -> Float[Tensor, ""]:
    """Information imbalance Δ(x → y): how far down in y's order of neighbours the nearest neighbour in x comes.

    2/n · mean of the ranks in y of the k nearest neighbours in x; a rank is 1 + the number of samples that are closer.

    x `(n, d)`, y `(n, e)`, n > k, rows of the same samples. Range (k + 1)/n (x tells who is near in y) over 1 (x says
    nothing about y, in expectation) to 2. Not symmetric: x holds more than y where Δ(x → y) < Δ(y → x). Invariances as
    in `neighbor_overlap`. Not differentiable.

    Source: Glielmo et al. 2022 (arXiv 2104.15079) eq. 2; for k > 1 Wild et al. 2025.
    """
    x, y = _paired(x, y, k)
    n, (_, index) = len(x), nearest_neighbors(x, k=k)
    closer = torch.zeros((), dtype=torch.float64, device=y.device)
    for start in range(0, n, TILE):
        near = index[start : start + TILE]  # (rows, k)
        r2_near = torch.stack([(y[start : start + TILE] - y[near[:, j]]).square().sum(1) for j in range(k)], 1)
        for other in range(0, n, TILE):
            r2 = squared_distances(y[start : start + TILE], y[other : other + TILE])
            if other == start:
                r2.fill_diagonal_(torch.inf)
            here = torch.arange(other, other + r2.shape[1], device=y.device)
            for j in range(k):  # the neighbour is not closer than itself, whatever the rounding
                closer += ((r2 < r2_near[:, j, None]) & (here != near[:, j, None])).sum()
    return 2 / n * (1 + closer / (n * k))


def _nearest(z: Float[Tensor, "n d"], start: int, k: int) -> Int[Tensor, "rows k"]:
    """Indices of the k nearest to each row of one tile, kept while the tiles of the others pass."""
    rows = z[start : start + TILE]
    best = index = None
    for other in range(0, len(z), TILE):
        r2 = squared_distances(rows, z[other : other + TILE])
        if other == start:
            r2.fill_diagonal_(torch.inf)
        here = torch.arange(other, other + r2.shape[1], device=z.device).expand_as(r2)
        best, index = (r2, here) if best is None else (torch.cat((best, r2), 1), torch.cat((index, here), 1))
        best, at = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        index = index.gather(1, at)
    return index


def _centered(z: Array, name: str, k: int) -> Float[Tensor, "n d"]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    z = as_features(z, name, min_rows=k + 1).double()
    z = z - z[:1].detach()  # measured from a row, equal rows are exactly zero
    return z - z.mean(0)


def _paired(x: Array, y: Array, k: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    x, y = _centered(x, "x", k).detach(), _centered(y, "y", k).detach()
    if len(x) != len(y):
        raise ValueError(f"x and y must have rows of the same samples, got {len(x)} and {len(y)}")
    return x, y.to(x.device)
