"""Image classification from frozen features: a few images a class, and linear heads, by SGD and to the optimum.

Each takes train `(m, d)`, test `(n, d)` and their labels, and works on the features' device. What is swept (learning
rates, regularization) is chosen on a held-out part of the training set, never by the test set. The k-NN classifier is
`measures.neighbors.knn_accuracy`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from ..measures.inputs import Array
from ..measures.neighbors import as_train_and_test


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

    class = argmax over classes of cos(z, Σ of the class' drawn rows z/‖z‖). One shot is the nearest neighbor. Nothing
    is tuned: a handful of images can hold none out.

    train `(m, d)`, test `(n, d)`, labels `(m,)` and `(n,)`. shots: one number, or several, which return {shots:
    accuracies}; the draws of fewer images lie inside those of more. Range [0, 1], higher is better; report mean and sd.
    ValueError: bad features or labels as in `knn_accuracy`, a class with fewer training samples than shots.

    Source: Snell et al. 2017 (arXiv 1703.05175); Wang et al. 2019 (SimpleShot, arXiv 1911.04623), L2N.
    """
    x, y, test, test_labels = as_train_and_test(train, train_labels, test, test_labels, normalize=True)
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


LRS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)  # of 256 samples
L2 = tuple(10 ** (-i / 2) for i in range(2, 11))  # of features at the r.m.s. distance 1 from their mean


class Probe(NamedTuple):
    """A trained probe's accuracy on the test set, and how it was chosen."""

    accuracy: Float[Tensor, ""]
    chosen: float  # of the values swept, the best on the held-out part
    held_out: dict[float, float]  # the accuracy there of each


def linear_probe(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    lrs: Sequence[float] = LRS,
    epochs: int = 100,
    batch: int = 256,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Accuracy of a linear classifier trained by SGD on frozen features: DINO's protocol, on stored features.

    Softmax cross-entropy, momentum 0.9, no weight decay, learning rate lr·batch/256 · ½(1 + cos(π epoch/epochs)), from
    zero weights. All rates are trained at once on the training set without a share `held_out` of each class, which
    chooses one (the lower of equals); that one is trained anew on all of it. Range [0, 1], higher is better.

    train `(m, d)`, test `(n, d)`, labels `(m,)` and `(n,)`. Features are taken as they are: rates are of their scale.
    The official evaluation differs: new random crops each epoch, and the class tokens of a ViT-S's last four blocks.
    ValueError: bad features or labels as in `knn_accuracy`, no class with two samples, a rate that is not positive.

    Source: Caron et al. 2021 (DINO), official eval_linear; Oquab et al. 2023 (DINOv2) sweeps rates in one pass.
    """
    x, y, test, test_labels = as_train_and_test(train, train_labels, test, test_labels)
    lrs = sorted(set(map(float, lrs)))
    if not lrs or not lrs[0] > 0 or not math.isfinite(lrs[-1]) or epochs < 1 or batch < 1:
        raise ValueError(f"lrs, epochs and batch must be positive, got {lrs}, {epochs}, {batch}")
    held = _held_out(y, held_out, seed)
    options = {"epochs": epochs, "batch": batch, "seed": seed, "progress": progress}
    weight, bias = _sgd(x[~held], y[~held], int(y.max()) + 1, lrs, **options)
    scores = [hits_of(x[held], y[held], w, b).double().mean().item() for w, b in zip(weight, bias, strict=True)]
    chosen = lrs[int(np.argmax(scores))]
    weight, bias = _sgd(x, y, int(y.max()) + 1, [chosen], **options)
    accuracy = hits_of(test, test_labels, weight[0], bias[0]).double().mean()
    return Probe(accuracy, chosen, dict(zip(lrs, scores, strict=True)))


def logistic_regression(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    l2: Sequence[float] = L2,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Accuracy of multinomial logistic regression by L-BFGS: the linear probe without learning rate and schedule.

    Minimizes mean cross-entropy + λ/2 E‖x − x̄‖² ‖W‖² (the bias is free) in float64, λ over `l2`, each from the
    solution of the next stronger one. A share `held_out` of each class chooses λ (the stronger of equals); that one is
    fitted anew on the whole training set. Range [0, 1], higher is better; shifted, rotated and scaled features have
    the same.

    train `(m, d)`, test `(n, d)`, labels `(m,)` and `(n,)`.
    ValueError: bad features or labels as in `knn_accuracy`, no class with two samples, a λ that is not positive.

    Source: Oquab et al. 2023 (DINOv2), Radford et al. 2021 (CLIP): λ is swept on held-out data.
    scikit-learn's C is 1/(λm) for features with E‖x − x̄‖² = 1.
    """
    x, y, test, test_labels = as_train_and_test(train, train_labels, test, test_labels)
    l2 = sorted(set(map(float, l2)), reverse=True)
    if not l2 or not l2[-1] > 0 or not math.isfinite(l2[0]):
        raise ValueError(f"l2 must be positive, got {l2}")
    held = _held_out(y, held_out, seed)
    classes = int(y.max()) + 1
    solutions = _lbfgs(x[~held], y[~held], classes, l2, progress=progress)
    scores = [hits_of(x[held], y[held], *solution).double().mean().item() for solution in solutions]
    best = int(np.argmax(scores))
    (solution,) = _lbfgs(x, y, classes, [l2[best]], start=solutions[best])
    accuracy = hits_of(test, test_labels, *solution).double().mean()
    return Probe(accuracy, l2[best], dict(zip(l2, scores, strict=True)))


def _held_out(labels: Int[Tensor, " m"], share: float, seed: int) -> Bool[Tensor, " m"]:
    """A random share of each class, one sample at least of a class that has two."""
    if not 0 < share < 1:
        raise ValueError(f"held_out must be a share between 0 and 1, got {share}")
    counts = labels.bincount()
    take = torch.where(counts > 1, (share * counts).long().clamp(min=1), 0)
    if not take.any():
        raise ValueError("train has no class with two samples, of which one could be held out")
    order = shuffled_by_class(labels, torch.Generator().manual_seed(seed))
    rank = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
    held = torch.zeros_like(labels, dtype=torch.bool)
    held[order] = rank < take[labels[order]]
    return held


@torch.no_grad()
def _sgd(
    x: Float[Tensor, "m d"],
    y: Int[Tensor, " m"],
    classes: int,
    lrs: Sequence[float],
    *,
    epochs: int,
    batch: int,
    seed: int,
    progress: bool,
) -> tuple[Float[Tensor, "l d k"], Float[Tensor, "l k"]]:
    """Softmax regressions at all learning rates, as one matrix product a step; the gradient is written out."""
    x = torch.cat((x, x.new_ones(len(x), 1)), 1)  # the bias is the weight of a one
    weight = x.new_zeros(x.shape[1], len(lrs), classes)
    velocity, rate = torch.zeros_like(weight), x.new_tensor(lrs)[:, None] * batch / 256
    generator = torch.Generator().manual_seed(seed)
    for epoch in tqdm(
        range(epochs), desc="linear probe", unit="epoch", leave=False, disable=None if progress else True
    ):
        cosine = (1 + math.cos(math.pi * epoch / epochs)) / 2
        for some in torch.randperm(len(x), generator=generator).to(x.device).split(batch):
            gradient = (x[some] @ weight.flatten(1)).unflatten(1, weight.shape[1:]).softmax(2)  # (b, l, k)
            gradient[torch.arange(len(some), device=x.device), :, y[some]] -= 1
            velocity.mul_(0.9).add_((x[some].T @ gradient.flatten(1)).view_as(weight), alpha=1 / len(some))
            weight -= cosine * rate * velocity
    return weight[:-1].movedim(1, 0), weight[-1]


@contextmanager
def _one_thread(alone: bool) -> Iterator[None]:
    """torch in one thread, if alone: between products of a millisecond its threads and SciPy's, which wait for work
    at full speed, take the cores from each other, and everything is slower by a factor of 30 and more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if alone else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _lbfgs(
    x: Float[Tensor, "m d"],
    y: Int[Tensor, " m"],
    classes: int,
    l2: Sequence[float],
    *,
    start: tuple[Tensor, Tensor] | None = None,
    progress: bool = False,
) -> list[tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]]:
    """Weights and bias of `logistic_regression` for each λ, found from those of the one before, the first from `start`.

    Solved in the principal axes of the features, each scaled by 1/√(λ + variance/4), where the Hessian is near the
    identity: a change of variables, not of the problem.
    """
    m, d = x.shape
    x = x.double()
    mean = x.mean(0)
    x = x - mean
    size = x.square().sum(1).mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    x = x / size
    variance, axes = torch.linalg.eigh((x.T @ x if m >= d else x @ x.T) / m)  # ascending
    keep = variance > max(m, d) * torch.finfo(x.dtype).eps * variance[-1]
    variance, axes = variance[keep], axes[:, keep]
    axes = axes if m >= d else x.T @ axes / (m * variance).sqrt()  # (d, r)
    x = x @ axes  # (m, r)
    target = torch.nn.functional.one_hot(y, classes).double()
    w, b = start or (x.new_zeros(d, classes), x.new_zeros(classes))
    v, b = axes.T @ w * size, b + mean @ w
    solutions = []
    for strength in tqdm(l2, desc="logistic regression", unit="λ", leave=False, disable=None if progress else True):
        scale = (strength + variance / 4).rsqrt()[:, None]  # (r, 1)
        z, penalty = x * scale[:, 0], strength * scale.square()

        def loss(flat: np.ndarray, z: Tensor = z, penalty: Tensor = penalty) -> tuple[float, np.ndarray]:
            u, b = torch.as_tensor(flat, device=z.device).view(-1, classes).split((z.shape[1], 1))
            log_p = (z @ u + b).log_softmax(1)
            residual = (log_p.exp() - target) / m
            value = -(log_p * target).sum() / m + (penalty * u.square()).sum() / 2
            gradient = torch.cat((z.T @ residual + penalty * u, residual.sum(0, keepdim=True)))
            return value.item(), gradient.flatten().cpu().numpy()

        first = torch.cat((v / scale, b[None])).flatten().cpu().numpy()
        options = {"maxiter": 1000, "maxfun": 2000, "gtol": 1e-6, "ftol": 0}
        with _one_thread(x.numel() * classes < 1e8):
            found = minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
        found = torch.as_tensor(found, device=x.device).view(-1, classes)
        v, b = found[:-1] * scale, found[-1]
        w = axes @ v / size
        solutions.append((w, b - mean @ w))
    return solutions
