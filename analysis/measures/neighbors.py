"""Nearest neighbors of features, exact and in tiles: how two representations share them, and how they classify.

`nearest_neighbors`, `neighbor_overlap` and `information_imbalance` measure Euclidean distances between the rows of one
set, in float64. Neighbors are chosen by ‖a‖² + ‖b‖² − 2⟨a, b⟩, which tells distances apart down to about 10⁻⁸ of the
features' spread; the distances returned are those of the rows themselves, so that close pairs keep their digits and
duplicates are exactly 0 apart. `knn_accuracy` is the k-NN classifier of frozen features: it looks up test rows in a
training set by their cosines. Both keep the best of one tile of scores after the other, so that no matrix of all pairs
is formed.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simdino.losses import check_numbers

from .inputs import Array, as_features, centered, centered_features, paired_features, paired_labels
from .pair_tiles import squared_distances

NEIGHBORS, KNN_TEMP = 20, 0.07  # of a k-NN classifier, unless it is asked for others; the temperature is DINO's
BANK_TILE = 65536  # training rows that are compared with the queries at a time
TILE_ROWS, TILE_COLUMNS = 512, 4096  # of a tile of distances: 16 MiB, wide, since the nearest are sought in each tile


# --- Neighbors within a set


class Neighbors(NamedTuple):
    """The k nearest other rows of each row, nearest first.

    >>> near = nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), k=2)
    >>> near.indices[2].tolist(), near.distances[2].tolist()  # of the last row
    ([1, 0], [2.0, 3.0])
    """

    distances: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]


def nearest_neighbors(z: Array, *, k: int) -> Neighbors:
    """Distances of each row to its k nearest other rows, ascending, and the indices of those rows.

    Equal distances come in any order. Gradients flow through the distances. The search costs n²d operations and, in
    tiles, memory n·k.

    Args:
        z: (n, d) features, n > k.
        k: the number of neighbors.

    Raises:
        ValueError: k < 1, n ≤ k, NaN.

    >>> nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), k=1).indices.flatten().tolist()
    [1, 0, 1]
    """
    z = centered_features(z, min_rows=_rows_needed(k))
    with torch.no_grad():
        indices = torch.cat([_largest_of_tiles(_own_tiles(z, rows), k).indices for rows in _rows(len(z))])  # (n, k)
    distances = torch.stack([(z - z[indices[:, j]]).norm(dim=1) for j in range(k)], 1)  # (n, k)
    distances, order = distances.sort(dim=1, stable=True)  # what rounding has swapped
    return Neighbors(distances, indices.gather(1, order))


def neighbor_overlap(x: Array, y: Array, *, k: int) -> Float[Tensor, ""]:
    """Neighbor overlap: the share of a sample's k nearest neighbors in x that are also among its k nearest in y.

    The range is 0 to 1, where all samples have the same neighbors in both. Independent representations have k/(n − 1)
    in expectation, so compare at equal n and k. Symmetric in x and y. Invariant to rotation, translation and scale of
    each. Equal distances come in any order, and so it is noise if all rows are equal. Not differentiable.

    Args:
        x: (n, d) features, n > k.
        y: (n, e) features of the same samples, row by row.
        k: the number of neighbors.

    Raises:
        ValueError: k < 1, n ≤ k, different n, NaN.

    Source: Doimo et al. 2020 (arXiv 2007.03506) eq. 1.

    >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> neighbor_overlap(x, -2 * x, k=1).item(), neighbor_overlap(x, x[[0, 2, 1, 3]], k=1).item()
    (1.0, 0.0)
    """
    a, b = (nearest_neighbors(z, k=k).indices for z in _centered_pair(x, y, k))
    shared = torch.stack([(a == b[:, j, None]).any(1) for j in range(k)])  # (k, n)
    return shared.double().mean()


def information_imbalance(x: Array, y: Array, *, k: int = 1) -> Float[Tensor, ""]:
    """Information imbalance Δ(x → y): how far down in y's order of neighbors the nearest neighbor in x comes.

    2/n · the mean rank in y of the k nearest neighbors in x; a rank is 1 + the number of samples that are closer in y.

    The range is from (k + 1)/n, where x tells who is near in y, to 2. It is 1 in expectation where x says nothing about
    y, and 2/n where all samples are equally far in y, because a sample counts as closer only by more than rounding. It
    is not symmetric: x holds more than y where Δ(x → y) < Δ(y → x). Invariant to rotation, translation and scale of
    each. Not differentiable.

    Args:
        x: (n, d) features, n > k.
        y: (n, e) features of the same samples, row by row.
        k: the number of neighbors.

    Raises:
        ValueError: k < 1, n ≤ k, different n, NaN.

    Source: Glielmo et al. 2022 (arXiv 2104.15079) eq. 2; for k > 1 Wild et al. 2025.

    >>> plane = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    >>> line = plane[:, :1]  # who is near in the plane is near on the line, but not the other way around
    >>> information_imbalance(plane, line).item() < 0.2, information_imbalance(line, plane).item() > 0.3
    (True, True)
    """
    x, y = _centered_pair(x, y, k)
    n, indices = len(x), nearest_neighbors(x, k=k).indices
    closer = torch.zeros((), dtype=torch.float64, device=y.device)
    slack = 16 * torch.finfo(y.dtype).eps * y.square().sum(1).max()
    for rows in _rows(n):
        near = indices[rows]  # (rows, k)
        r2_near = torch.stack([(y[rows] - y[near[:, j]]).square().sum(1) for j in range(k)], 1)
        for score, start in _own_tiles(y, rows):
            here = torch.arange(start, start + score.shape[1], device=y.device)
            for j in range(k):  # the neighbor is not closer than itself, whatever the rounding
                closer += ((-score < r2_near[:, j, None] - slack) & (here != near[:, j, None])).sum()
    return 2 / n * (1 + closer / (n * k))


# --- The k-NN classifier


@torch.no_grad()
def knn_accuracy(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    k: Integral | Sequence[Integral] = NEIGHBORS,
    temp: int | float = KNN_TEMP,
    top: int = 1,
    chunk: int = 128,
) -> Float[Tensor, ""] | dict[int, Float[Tensor, ""]]:
    """Accuracy of the weighted k-nearest-neighbor classifier, by DINO's protocol.

    votes of a class = Σ over the k nearest training rows of exp(cos/temp)·[label = class];
    a hit if the true class is among the `top` with the most votes.

    The range is [0, 1], and higher is better. Ties go to the lower class, also among classes without a vote, as in the
    official code, whose top-5 therefore counts classes that no neighbor has. It is blind to scale: the rounding noise
    of a fully collapsed network classifies like an untrained one, so compare with an untrained network, and read
    `mean_collapse`. The search is exact, on the features' device, and forms no (n, m) matrix.

    Args:
        train: (m, d) features; rows are normalized, the cosine being part of the definition.
        train_labels: (m,) class of each.
        test: (n, d) features.
        test_labels: (n,) class of each.
        k: the number of neighbors, or several of them for one pass.
        temp: the temperature that divides the cosines.
        top: how many classes may be named.
        chunk: test rows at a time.

    Returns:
        the accuracy, or {k: accuracy} if several k are given.

    Raises:
        ValueError: k above m, a zero row, a test class without training samples, different d, NaN.

    Source: Wu et al. 2018 (arXiv 1805.01978) section 3.4; Caron et al. 2021 (DINO), official eval_knn, T = 0.07.

    >>> train, test = torch.eye(2), torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 3.0], [1.0, 4.0]])
    >>> knn_accuracy(train, torch.tensor([0, 1]), test, torch.tensor([0, 1, 1, 0]), k=1).item()
    0.75
    """
    train, train_labels, test, test_labels = as_train_and_test(train, train_labels, test, test_labels, normalize=True)
    check_numbers(temp=temp, top=top, chunk=chunk)
    ks = as_counts(k, "k")
    if ks[-1] > len(train):
        raise ValueError(f"k must be between 1 and the number of training samples, {len(train)}, got {k}")

    classes = int(train_labels.max()) + 1
    index = torch.arange(classes, device=train.device)
    hits = torch.zeros(len(ks), dtype=torch.int64, device=train.device)
    for queries, labels in zip(test.split(chunk), test_labels.split(chunk), strict=True):
        cosines, neighbors = largest_products(queries, train, ks[-1])  # (c, k) both, nearest first
        # Votes relative to the nearest neighbor's: the same winner, and no overflow at small temperatures.
        weight = ((cosines - cosines[:, :1]) / temp).exp()
        votes, label = weight.new_zeros(len(weight), classes), labels[:, None]  # label: (c, 1)
        for row, (first, last) in enumerate(zip([0, *ks], ks, strict=False)):
            votes.scatter_add_(1, train_labels[neighbors[:, first:last]], weight[:, first:last])
            own = votes.gather(1, label)
            ahead = (votes > own) | ((votes == own) & (index < label))  # (c, classes)
            hits[row] += (ahead.sum(1) < top).sum()
    accuracy = hits.double() / len(test)
    return accuracy[0] if isinstance(k, Integral) else dict(zip(ks, accuracy, strict=True))


def knn_accuracy_with_misses(
    train: Tensor, train_labels: Tensor | None, test: Tensor, test_labels: Tensor | None
) -> float:
    """`knn_accuracy` of recorded features, in which a test row that cannot be looked up is a miss, not an error.

    That is a row whose class has no training row, or a row of zeros, as of a dead network. Training rows of zeros are
    nobody's neighbors. It takes `NEIGHBORS` neighbors, or all if there are fewer.

    Args:
        train: (m, d) features.
        train_labels: (m,) class of each; None of images without classes.
        test: (n, d) features.
        test_labels: (n,) class of each, or None.

    Returns:
        the share of all n rows that are hits, from 0 to 1; NaN without labels.

    Raises:
        ValueError: different d, NaN.

    >>> knn_accuracy_with_misses(torch.eye(2)[:1], torch.tensor([0]), torch.eye(2)[[0, 0]], torch.tensor([0, 7]))
    0.5
    """
    if train_labels is None or test_labels is None:
        return math.nan
    sizes, test = (len(train), len(test)), test.to(train.device)
    train_labels, test_labels, _ = paired_labels(train_labels, test_labels, sizes=sizes, device=train.device)
    given = train.any(1)
    train, train_labels = train[given], train_labels[given]
    known = torch.isin(test_labels, train_labels) & test.any(1)
    if not known.any():
        return 0.0
    hits = knn_accuracy(train, train_labels, test[known], test_labels[known], k=min(NEIGHBORS, len(train)))
    return hits.item() * known.double().mean().item()


# --- What the classifier shares with the other probes


class TrainAndTest(NamedTuple):
    """A training and a test set as `as_train_and_test` returns them: of one type, on one device, without gradients.

    >>> sets = as_train_and_test(torch.eye(2).bfloat16(), torch.tensor([4, 9]), torch.eye(2), torch.tensor([9, 9]))
    >>> sets.train.dtype, sets.test_labels.tolist()
    (torch.float32, [1, 1])
    """

    train: Float[Tensor, "m d"]
    train_labels: Int[Tensor, " m"]  # from 0 to classes − 1
    test: Float[Tensor, "n d"]
    test_labels: Int[Tensor, " n"]


def as_train_and_test(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, normalize: bool = False
) -> TrainAndTest:
    """The data of a classification probe, checked, with labels counted through the classes of the training set.

    Args:
        train: (m, d) features.
        train_labels: (m,) class of each, any non-negative integers, or names.
        test: (n, d) features.
        test_labels: (n,) class of each.
        normalize: puts all rows on the unit sphere.

    Raises:
        ValueError: different d, a test class without training samples, labels of another shape or type, NaN, and zero
            rows with normalize=True.

    >>> as_train_and_test(torch.eye(3), torch.tensor([7, 3, 7]), torch.eye(3)[:1], torch.tensor([3])).train_labels
    tensor([1, 0, 1])
    """
    train = as_features(train, "train", normalize=normalize)
    test = as_features(test, "test", normalize=normalize, device=train.device)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train and test must have the same dimension, got {train.shape[1]} and {test.shape[1]}")
    sizes = len(train), len(test)
    train_labels, test_labels, names = paired_labels(train_labels, test_labels, sizes=sizes, device=train.device)
    classes, train_labels = train_labels.unique(return_inverse=True)
    test_labels = test_labels.contiguous()
    missing = test_labels[~torch.isin(test_labels, classes)]
    if len(missing):
        shown = missing[0].item() if names is None else repr(names[missing[0]])
        raise ValueError(f"test_labels has class {shown}, of which train_labels has no sample")
    test_labels = torch.searchsorted(classes, test_labels)
    return TrainAndTest(train.detach(), train_labels, test.detach().to(train.dtype), test_labels)


def as_counts(given: Integral | Iterable[Integral], name: str) -> list[int]:
    """One number or several, each of them once, ascending.

    Args:
        given: positive integers.
        name: what messages call them.

    Raises:
        ValueError: none, or one that is no positive integer.

    >>> as_counts(5, "k"), as_counts([20, 5, 5], "k")
    ([5], [5, 20])
    """
    several = list(given) if isinstance(given, Iterable) else [given]
    for count in several:
        check_numbers(**{name: count})
    if not several:
        raise ValueError(f"{name} must be a positive integer, or several, got none")
    return sorted({int(count) for count in several})


class TopK(NamedTuple):
    """The k largest scores of each row and the columns where they are, largest first, as `torch.topk` has them.

    >>> largest_products(torch.tensor([[3.0, 8.0, 5.0]]), torch.eye(3), 2).indices.tolist()
    [[1, 2]]
    """

    values: Float[Tensor, "c k"]
    indices: Int[Tensor, "c k"]


def largest_products(queries: Float[Tensor, "c d"], bank: Float[Tensor, "m d"], k: int) -> TopK:
    """The k largest inner products of each query with the rows of a bank, and the indices of those rows.

    Args:
        queries: (c, d) rows that are looked up; the products of all c of them with a tile of the bank are in memory.
        bank: (m, d) rows among which they are looked up, m ≥ k.
        k: how many.

    >>> found = largest_products(torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 1.0]]), 1)
    >>> found.values.tolist(), found.indices.tolist()
    ([[3.0], [1.0]], [[1], [1]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        tiles = ((queries @ bank[i : i + BANK_TILE].T, i) for i in range(0, len(bank), BANK_TILE))
        return _largest_of_tiles(tiles, k)


# --- Tiles


def _centered_pair(x: Array, y: Array, k: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    x, y = paired_features(x, y, min_rows=_rows_needed(k))
    return centered(x).detach(), centered(y).detach()


def _rows_needed(k: int) -> int:
    """How many rows a sample with k neighbors takes."""
    check_numbers(k=k)
    return k + 1


def _rows(n: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE_ROWS, n)) for start in range(0, n, TILE_ROWS))


def _own_tiles(z: Float[Tensor, "n d"], rows: slice) -> Iterator[tuple[Float[Tensor, "rows columns"], int]]:
    """Minus the squared distances of some rows to all, tile by tile, −∞ to oneself; with the first index of each."""
    for start in range(0, len(z), TILE_COLUMNS):
        score = -squared_distances(z[rows], z[start : start + TILE_COLUMNS])
        first, last = max(start, rows.start), min(start + score.shape[1], rows.stop)
        own = torch.arange(first, max(first, last), device=z.device)  # often none
        score[own - rows.start, own - start] = -torch.inf
        yield score, start


def _largest_of_tiles(tiles: Iterable[tuple[Tensor, int]], k: int) -> TopK:
    """The k largest scores of each row, kept while tiles of scores (c, t), with their first column, pass."""
    best = None
    for score, start in tiles:
        values, columns = _largest(score, min(k, score.shape[1]))
        columns = columns + start
        if best is not None:
            values, columns = torch.cat((best.values, values), 1), torch.cat((best.indices, columns), 1)
        values, order = values.topk(min(k, values.shape[1]))
        best = TopK(values, columns.gather(1, order))
    return best


def _largest(x: Float[Tensor, "c t"], k: int) -> tuple[Float[Tensor, "c k"], Int[Tensor, "c k"]]:
    """`x.topk(k)` in about one pass: the k largest lie in the k groups of columns with the largest maxima."""
    t = x.shape[1]
    g = math.isqrt(t // (4 * k))  # columns per group: t/g maxima and g·k members are left to search
    if g < 2:
        return x.topk(k)
    groups = t // g
    grouped = x[:, : g * groups].unflatten(1, (g, groups))  # column j is in group j % groups
    chosen = grouped.amax(1).topk(k, sorted=False).indices  # (c, k)
    members = grouped.gather(2, chosen[:, None].expand(-1, g, -1)).flatten(1)  # (c, g·k)
    values, order = torch.cat((members, x[:, g * groups :]), 1).topk(k)  # and those in no group
    inside = order < g * k
    column = chosen.gather(1, order % k) + groups * (order // k)
    return values, torch.where(inside, column, order - g * k + g * groups)
