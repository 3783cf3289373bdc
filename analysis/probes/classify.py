"""Image classification from frozen features by what lies nearest: k-NN, and a few images a class.

Each takes train `(m, d)`, test `(n, d)` and their labels, and works on the features' device. Heads that are trained are
in `analysis.probes.heads`.
"""

from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

from analysis._input import Array, as_features, as_labels
from analysis.probes.neighbours import nearest


def accuracy_interval(accuracy: float | Tensor, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of an accuracy on n images: over images, with the probe as it is.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), in [0, 1]. ValueError: n < 1, no accuracy of n images.
    Source: Wilson 1927; Brown, Cai & DasGupta 2001 on its coverage.
    """
    hits = round(float(accuracy) * n) if n >= 1 and 0 <= accuracy <= 1 else -1
    if hits < 0 or abs(hits - float(accuracy) * n) > 1e-3:
        raise ValueError(f"accuracy must be a share of n images, got {float(accuracy)} of {n}")
    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


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
    chunk: int = 128,
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
    train, train_labels, test, test_labels = checked(train, train_labels, test, test_labels, unit=True)
    ks = sorted({int(k)} if isinstance(k, Integral) else set(map(int, k)))
    if not ks or ks[0] < 1 or ks[-1] > len(train):
        raise ValueError(f"k must be between 1 and the number of training samples, {len(train)}, got {k}")
    for name, value in (("temperature", temperature), ("top", top), ("chunk", chunk)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")

    classes = int(train_labels.max()) + 1
    index = torch.arange(classes, device=train.device)
    hits = torch.zeros(len(ks), dtype=torch.int64, device=train.device)
    for start in range(0, len(test), chunk):
        similarity, neighbour = nearest(test[start : start + chunk], train, ks[-1])  # (c, k) both, nearest first
        label = test_labels[start : start + chunk, None]  # (c, 1)
        # Votes relative to the nearest neighbour's: the same winner, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(weight), classes)
        for row, (first, last) in enumerate(zip([0, *ks], ks, strict=False)):
            votes.scatter_add_(1, train_labels[neighbour[:, first:last]], weight[:, first:last])
            own = votes.gather(1, label)
            ahead = (votes > own) | ((votes == own) & (index < label))  # (c, classes)
            hits[row] += (ahead.sum(1) < top).sum()
    accuracy = hits.double() / len(test)
    return accuracy[0] if isinstance(k, Integral) else dict(zip(ks, accuracy, strict=True))


@torch.no_grad()
def few_shot_accuracy(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    shots: Integral | Sequence[Integral] = 5,
    draws: int = 20,
    seed: int = 0,
) -> Float[Tensor, " draws"] | dict[int, Float[Tensor, " draws"]]:
    """Accuracy with a few training images a class, one value a draw of them: the nearest class mean of unit rows.

    class = argmax over classes of cos(z, Σ of the class' drawn rows z/‖z‖). One shot is the nearest neighbour. Nothing
    is tuned: a handful of images can hold none out.

    train `(m, d)`, test `(n, d)`, labels `(m,)` and `(n,)`. shots: one number, or several, which return {shots:
    accuracies}; the draws of fewer images lie inside those of more. Range [0, 1], higher is better; report mean and sd.
    ValueError: bad features or labels as in `knn_accuracy`, a class with fewer training samples than shots.

    Source: Snell et al. 2017 (arXiv 1703.05175); Wang et al. 2019 (SimpleShot, arXiv 1911.04623), L2N.
    """
    x, y, test, test_labels = checked(train, train_labels, test, test_labels, unit=True)
    counts = y.bincount()
    wanted = sorted({int(shots)} if isinstance(shots, Integral) else set(map(int, shots)))
    if not wanted or wanted[0] < 1 or draws < 1:
        raise ValueError(f"shots and draws must be positive, got {shots} and {draws}")
    if counts.min() < wanted[-1]:
        raise ValueError(f"{wanted[-1]} shots are more than the {counts.min().item()} training samples of a class")
    accuracies = {k: [] for k in wanted}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        order = shuffled_by_class(y, generator)
        first = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(wanted[-1], device=x.device)]  # (classes, k)
        for k in wanted:
            means = torch.nn.functional.normalize(x[first[:, :k]].mean(1), dim=1)  # (classes, d)
            accuracies[k].append(hits_of(test, test_labels, means.T, means.new_zeros(len(means))).double().mean())
    accuracies = {k: torch.stack(values) for k, values in accuracies.items()}
    return accuracies[wanted[0]] if isinstance(shots, Integral) else accuracies


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


def shuffled_by_class(labels: Int[Tensor, " m"], generator: torch.Generator) -> Int[Tensor, " m"]:
    """Indices of the samples, class by class, in random order within each."""
    key = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    return (labels + key.to(labels.device)).argsort()


def hits_of(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], weight: Tensor, bias: Tensor) -> Bool[Tensor, " n"]:
    """Whether the largest logit is the label's, in chunks; not where one is not finite, as of a diverged head."""
    hits = []
    for some, label in zip(x.split(4096), y.split(4096), strict=True):
        logits = some.to(weight) @ weight + bias  # (c, classes)
        hits.append((logits.argmax(1) == label) & logits.isfinite().all(1))
    return torch.cat(hits)
