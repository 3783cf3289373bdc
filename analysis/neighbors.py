"""Nearest neighbours of features, exact and in tiles, and what two representations keep of each other's.

Distances are Euclidean, in float64. Neighbours are chosen by ‖a‖² + ‖b‖² − 2⟨a, b⟩, which tells distances apart down to
about 10⁻⁸ of the features' spread; the distances returned are those of the rows themselves, so that close pairs keep
their digits and duplicates are exactly 0 apart.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis._input import Array, as_features
from analysis.frames import squared_distances

ROWS, COLUMNS = 512, 4096  # of a tile of distances: 16 MiB, wide, since the nearest are sought in each tile


def nearest_neighbors(z: Array, *, k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest other rows, ascending, and their indices.

    z: `(n, d)`, n > k. Equal distances come in any order. Costs n²d operations and memory n·k, in tiles. Gradients
    flow through the distances. ValueError: k < 1, n ≤ k, NaN.
    """
    z = _centered(z, "z", k)
    with torch.no_grad():
        index = torch.cat([_nearest(z, rows, k) for rows in _rows(len(z))])  # (n, k)
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

    2/n · mean of the ranks in y of the k nearest neighbours in x; a rank is 1 + the number of samples that are closer,
    by more than rounding.

    x `(n, d)`, y `(n, e)`, n > k, rows of the same samples. Range (k + 1)/n (x tells who is near in y; 2/n where
    all are equally far) over 1 (x says
    nothing about y, in expectation) to 2. Not symmetric: x holds more than y where Δ(x → y) < Δ(y → x). Invariances as
    in `neighbor_overlap`. Not differentiable.

    Source: Glielmo et al. 2022 (arXiv 2104.15079) eq. 2; for k > 1 Wild et al. 2025.
    """
    x, y = _paired(x, y, k)
    n, (_, index) = len(x), nearest_neighbors(x, k=k)
    closer = torch.zeros((), dtype=torch.float64, device=y.device)
    slack = 16 * torch.finfo(y.dtype).eps * y.square().sum(1).max()
    for rows in _rows(n):
        near = index[rows]  # (rows, k)
        r2_near = torch.stack([(y[rows] - y[near[:, j]]).square().sum(1) for j in range(k)], 1)
        for r2, start in _tiles(y, rows):
            here = torch.arange(start, start + r2.shape[1], device=y.device)
            for j in range(k):  # the neighbour is not closer than itself, whatever the rounding
                closer += ((r2 < r2_near[:, j, None] - slack) & (here != near[:, j, None])).sum()
    return 2 / n * (1 + closer / (n * k))


def _rows(n: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS))


def _tiles(z: Float[Tensor, "n d"], rows: slice) -> Iterator[tuple[Float[Tensor, "rows columns"], int]]:
    """Squared distances of some rows to all, tile by tile, infinite to oneself; with the first index of each tile."""
    for start in range(0, len(z), COLUMNS):
        r2 = squared_distances(z[rows], z[start : start + COLUMNS])
        first, last = max(start, rows.start), min(start + r2.shape[1], rows.stop)
        own = torch.arange(first, max(first, last), device=z.device)  # often none
        r2[own - rows.start, own - start] = torch.inf
        yield r2, start


def _nearest(z: Float[Tensor, "n d"], rows: slice, k: int) -> Int[Tensor, "rows k"]:
    """Indices of the k nearest to each of some rows, kept while the tiles pass."""
    best = index = None
    for r2, start in _tiles(z, rows):
        near, at = r2.topk(min(k, r2.shape[1]), dim=1, largest=False)
        at = at + start
        if best is not None:
            near, at = torch.cat((best, near), 1), torch.cat((index, at), 1)
        best, order = near.topk(min(k, near.shape[1]), dim=1, largest=False)
        index = at.gather(1, order)
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
