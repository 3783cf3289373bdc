"""Nearest neighbors of features, exact and in tiles, and what two representations keep of each other's.

Distances are Euclidean, in float64. Neighbors are chosen by ‖a‖² + ‖b‖² − 2⟨a, b⟩, which tells distances apart down to
about 10⁻⁸ of the features' spread; the distances returned are those of the rows themselves, so that close pairs keep
their digits and duplicates are exactly 0 apart.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inputs import Array, as_features, as_labels, centered
from .pairs import squared_distances

NEIGHBORS = 20  # of a k-NN classifier, unless it is asked for another number
BANK_TILE = 65536  # training rows that are compared with the queries at a time
ROWS, COLUMNS = 512, 4096  # of a tile of distances: 16 MiB, wide, since the nearest are sought in each tile


def nearest_neighbors(z: Array, *, k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the k nearest other rows, ascending, and their indices.

    z: `(n, d)`, n > k. Equal distances come in any order. Costs n²d operations and memory n·k, in tiles. Gradients
    flow through the distances. ValueError: k < 1, n ≤ k, NaN.
    """
    z = _centered_rows(z, "z", k)
    with torch.no_grad():
        index = torch.cat([_largest_of_tiles(_own_tiles(z, rows), k)[1] for rows in _rows(len(z))])  # (n, k)
    distances = torch.stack([(z - z[index[:, j]]).norm(dim=1) for j in range(k)], 1)  # (n, k)
    distances, order = distances.sort(dim=1, stable=True)  # what rounding has swapped
    return distances, index.gather(1, order)


def neighbor_overlap(x: Array, y: Array, *, k: int) -> Float[Tensor, ""]:
    """Neighbor overlap: the share of a sample's k nearest neighbors in x that are among its k nearest in y.

    x `(n, d)`, y `(n, e)`, n > k, rows of the same samples. Range 0 to 1 (the same neighbors); k/(n − 1) in
    expectation for independent representations, so compare at equal n and k. Symmetric. Invariant to rotation,
    translation and scale of each. Not differentiable. Equal distances come in any order: noise if all rows are equal.

    Source: Doimo et al. 2020 (arXiv 2007.03506) eq. 1.
    """
    (_, a), (_, b) = (nearest_neighbors(z, k=k) for z in _paired(x, y, k))
    shared = torch.stack([(a == b[:, j, None]).any(1) for j in range(k)])  # (k, n)
    return shared.double().mean()


def information_imbalance(x: Array, y: Array, *, k: int = 1) -> Float[Tensor, ""]:
    """Information imbalance Δ(x → y): how far down in y's order of neighbors the nearest neighbor in x comes.

    2/n · mean of the ranks in y of the k nearest neighbors in x; a rank is 1 + the number of samples that are closer,
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
        for score, start in _own_tiles(y, rows):
            here = torch.arange(start, start + score.shape[1], device=y.device)
            for j in range(k):  # the neighbor is not closer than itself, whatever the rounding
                closer += ((-score < r2_near[:, j, None] - slack) & (here != near[:, j, None])).sum()
    return 2 / n * (1 + closer / (n * k))


def _rows(n: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS))


def _own_tiles(z: Float[Tensor, "n d"], rows: slice) -> Iterator[tuple[Float[Tensor, "rows columns"], int]]:
    """Minus the squared distances of some rows to all, tile by tile, −∞ to oneself; with the first index of each."""
    for start in range(0, len(z), COLUMNS):
        score = -squared_distances(z[rows], z[start : start + COLUMNS])
        first, last = max(start, rows.start), min(start + score.shape[1], rows.stop)
        own = torch.arange(first, max(first, last), device=z.device)  # often none
        score[own - rows.start, own - start] = -torch.inf
        yield score, start


def _centered_rows(z: Array, name: str, k: int) -> Float[Tensor, "n d"]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return centered(as_features(z, name, min_rows=k + 1).double())


def _paired(x: Array, y: Array, k: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    x, y = _centered_rows(x, "x", k).detach(), _centered_rows(y, "y", k).detach()
    if len(x) != len(y):
        raise ValueError(f"x and y must have rows of the same samples, got {len(x)} and {len(y)}")
    return x, y.to(x.device)


@torch.no_grad()
def knn_accuracy(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    k: Integral | Sequence[Integral] = 20,
    temp: int | float = 0.07,
    top: int = 1,
    chunk: int = 128,
) -> Float[Tensor, ""] | dict[int, Float[Tensor, ""]]:
    """Accuracy of the weighted k-nearest-neighbor classifier, DINO's protocol.

    class votes = Σ over the k nearest of exp(cos/temp) [label = class]; a hit if the true class is among
    the `top` largest. Ties go to the lower class, also among classes without a vote (as in the official code, whose
    top-5 therefore counts classes that no neighbor has).

    train `(m, d)`, test `(n, d)`, labels `(m,)` and `(n,)`; rows are normalized, the cosine being part of the
    definition. k: one number, or several for one pass, which return {k: accuracy}. Range [0, 1], higher is better.
    Exact, on the features' device, in chunks of `chunk` test rows: no (n, m) matrix. Blind to scale: the rounding
    noise of a fully collapsed network classifies like an untrained one. Compare with one, and read `mean_collapse`.
    ValueError: k above m, a zero row, a test class without training samples, different d, NaN.

    Source: Wu et al. 2018 (arXiv 1805.01978) section 3.4; Caron et al. 2021 (DINO), official eval_knn, T = 0.07.
    """
    train, train_labels, test, test_labels = checked(train, train_labels, test, test_labels, unit=True)
    ks = sorted({int(k)} if isinstance(k, Integral) else set(map(int, k)))
    if not ks or ks[0] < 1 or ks[-1] > len(train):
        raise ValueError(f"k must be between 1 and the number of training samples, {len(train)}, got {k}")
    for name, value in (("temp", temp), ("top", top), ("chunk", chunk)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")

    classes = int(train_labels.max()) + 1
    index = torch.arange(classes, device=train.device)
    hits = torch.zeros(len(ks), dtype=torch.int64, device=train.device)
    for start in range(0, len(test), chunk):
        similarity, neighbor = largest_products(
            test[start : start + chunk], train, ks[-1]
        )  # (c, k) both, nearest first
        label = test_labels[start : start + chunk, None]  # (c, 1)
        # Votes relative to the nearest neighbor's: the same winner, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temp).exp()
        votes = weight.new_zeros(len(weight), classes)
        for row, (first, last) in enumerate(zip([0, *ks], ks, strict=False)):
            votes.scatter_add_(1, train_labels[neighbor[:, first:last]], weight[:, first:last])
            own = votes.gather(1, label)
            ahead = (votes > own) | ((votes == own) & (index < label))  # (c, classes)
            hits[row] += (ahead.sum(1) < top).sum()
    accuracy = hits.double() / len(test)
    return accuracy[0] if isinstance(k, Integral) else dict(zip(ks, accuracy, strict=True))


def knn_of_known_classes(bank: Tensor, test: Tensor, labels: tuple[Tensor, Tensor]) -> float:
    """k-NN accuracy of test rows against a bank; a class or a feature (zero) that cannot be looked up is a miss."""
    given = bank.any(1)  # zero rows are nobody's neighbors
    bank, bank_labels = bank[given], labels[0][given]
    known = torch.isin(labels[1], bank_labels) & test.any(1)
    if not known.any():
        return 0.0
    hits = knn_accuracy(bank, bank_labels, test[known], labels[1][known], k=min(NEIGHBORS, len(bank)))
    return hits.item() * known.double().mean().item()


def checked(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, unit: bool = False
) -> tuple[Float[Tensor, "m d"], Int[Tensor, " m"], Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Features of one type on one device, and labels counted through the classes that the training set has."""
    train, test = as_features(train, "train", normalize=unit), as_features(test, "test", normalize=unit)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train and test must have the same dimension, got {train.shape[1]} and {test.shape[1]}")
    train_labels = as_labels(train_labels, len(train), device=train.device)
    test_labels = as_labels(test_labels, len(test), device=train.device)
    classes, train_labels = train_labels.unique(return_inverse=True)
    test_labels = test_labels.contiguous()
    missing = test_labels[~torch.isin(test_labels, classes)]
    if len(missing):
        raise ValueError(f"test_labels has class {missing[0].item()}, of which train_labels has no sample")
    return train.detach(), train_labels, test.detach().to(train), torch.searchsorted(classes, test_labels)


def largest_products(queries: Float[Tensor, "c d"], bank: Float[Tensor, "m d"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query and their rows in the bank, (c, k) both, nearest first."""
    with torch.autocast(queries.device.type, enabled=False):
        tiles = ((queries @ bank[i : i + BANK_TILE].T, i) for i in range(0, len(bank), BANK_TILE))
        return _largest_of_tiles(tiles, k)


def _largest_of_tiles(tiles: Iterable[tuple[Tensor, int]], k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row and their columns, largest first, kept while tiles of scores (c, t) pass."""
    best = index = None
    for score, start in tiles:
        values, columns = _largest(score, min(k, score.shape[1]))
        columns = columns + start
        if best is not None:
            values, columns = torch.cat((best, values), 1), torch.cat((index, columns), 1)
        best, order = values.topk(min(k, values.shape[1]))
        index = columns.gather(1, order)
    return best, index


def _largest(x: Float[Tensor, "c t"], k: int) -> tuple[Float[Tensor, "c k"], Int[Tensor, "c k"]]:
    """`x.topk(k)` in about one pass: the k largest lie in the k groups of columns with the largest maxima."""
    t = x.shape[1]
    g = math.isqrt(t // (4 * k))  # columns a group: t/g maxima and g·k members are left to search
    if g < 2:
        return x.topk(k)
    groups = t // g
    grouped = x[:, : g * groups].unflatten(1, (g, groups))  # column j is in group j % groups
    chosen = grouped.amax(1).topk(k, sorted=False).indices  # (c, k)
    members = grouped.gather(2, chosen[:, None].expand(-1, g, -1)).flatten(1)  # (c, g·k)
    values, order = torch.cat((members, x[:, g * groups :]), 1).topk(k)  # and the columns that are in no group
    inside = order < g * k
    column = chosen.gather(1, order % k) + groups * (order // k)
    return values, torch.where(inside, column, order - g * k + g * groups)
