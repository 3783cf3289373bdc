"""What the features are good for: probes that are trained, or in the case of k-NN not even that, on frozen features."""

from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor

from analysis._input import Array, as_features, as_labels, unit_rows

TRAIN_TILE = 32768  # training rows that are compared with a chunk at a time


@torch.no_grad()
def knn_accuracy(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    k: Integral | Sequence[Integral] = 20,
    temperature: int | float = 0.07,
    top: int = 1,
    chunk: int = 1024,
) -> Float[Tensor, ""] | dict[int, Float[Tensor, ""]]:
    """Accuracy of the weighted k-nearest-neighbour classifier, DINO's protocol.

    class votes = Σ over the k nearest of exp(cos/temperature) [label = class]; a hit if the true class is among
    the `top` largest. Ties go to the lower class, also among classes without a vote (as in the official code, whose
    top-5 therefore counts classes that no neighbour has).

    train `(m, d)`, test `(n, d)`, labels `(m,)` and `(n,)`; rows are normalised, the cosine being part of the
    definition. k: one number, or several for one pass, which return {k: accuracy}. Range [0, 1], higher is better.
    Exact, on the features' device, in chunks of `chunk` test rows: no (n, m) matrix. Blind to scale: the rounding
    noise of a fully collapsed network classifies like an untrained one. Compare with one, and read `mean_collapse`.
    ValueError: k above m, a zero row, a test class without training samples, different d, NaN.

    Source: Wu et al. 2018 (arXiv 1805.01978) section 3.4; Caron et al. 2021 (DINO), official eval_knn, T = 0.07.
    """
    train, test = unit_rows(as_features(train, "train"), "train"), unit_rows(as_features(test, "test"), "test")
    test = test.to(train)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train and test must have the same dimension, got {train.shape[1]} and {test.shape[1]}")
    ks = sorted({int(k)} if isinstance(k, Integral) else set(map(int, k)))
    if not ks or ks[0] < 1 or ks[-1] > len(train):
        raise ValueError(f"k must be between 1 and the number of training samples, {len(train)}, got {k}")
    for name, value in (("temperature", temperature), ("top", top), ("chunk", chunk)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    train_labels = as_labels(train_labels, len(train), device=train.device)
    test_labels = as_labels(test_labels, len(test), device=train.device)
    missing = test_labels[~torch.isin(test_labels, train_labels)]
    if len(missing):
        raise ValueError(f"test_labels has class {missing[0].item()}, of which train_labels has no sample")

    classes = int(train_labels.max()) + 1
    hits = torch.zeros(len(ks), dtype=torch.int64, device=train.device)
    for start in range(0, len(test), chunk):
        similarity, neighbour = _nearest(test[start : start + chunk], train, ks[-1])  # (c, k) both, nearest first
        # Votes relative to the nearest neighbour's: the same winner, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(weight), classes)
        for row, (first, last) in enumerate(zip([0, *ks], ks, strict=False)):
            votes.scatter_add_(1, train_labels[neighbour[:, first:last]], weight[:, first:last])
            best = votes.argsort(dim=1, descending=True, stable=True)[:, :top]  # (c, top)
            hits[row] += (best == test_labels[start : start + chunk, None]).sum()
    accuracy = hits.double() / len(test)
    return accuracy[0] if isinstance(k, Integral) else dict(zip(ks, accuracy, strict=True))


def _nearest(test: Float[Tensor, "c d"], train: Float[Tensor, "m d"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each test row and their training indices, (c, k) both, over tiles of train."""
    best = test.new_empty(len(test), 0)
    index = torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    with torch.autocast(test.device.type, enabled=False):
        for start in range(0, len(train), TRAIN_TILE):
            tile = test @ train[start : start + TRAIN_TILE].T  # (c, tile)
            values, columns = tile.topk(min(k, tile.shape[1]))
            values, order = torch.cat((best, values), 1).topk(min(k, best.shape[1] + values.shape[1]))
            index = torch.cat((index, columns + start), 1).gather(1, order)
            best = values
    return best, index
