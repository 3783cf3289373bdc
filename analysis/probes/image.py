"""Image classification from frozen features: a few images of each class, and linear heads by SGD or L-BFGS.

All take a training set (m, d) and a test set (n, d) with their labels, and work on the features' device. What is tried
out (learning rates, regularization) is chosen on a held-out part of the training set, never on the test set. The k-NN
classifier is `measures.neighbors.knn_accuracy`.
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

from simdino.losses import check_numbers

from ..measures.inputs import Array
from ..measures.neighbors import as_counts, as_train_and_test
from ..measures.uncertainty import Interval

# Learning rates that `linear_probe` tries, for batches of 256.
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
# Strengths λ that `logistic_regression` tries, from 0.1 to 10⁻⁵, for features at the r.m.s. distance 1 from their mean.
L2_STRENGTHS = tuple(10 ** (-i / 2) for i in range(2, 11))


# --- A few images of each class


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
    """Accuracy of the nearest class mean when only a few training images of each class are known.

    class of z = argmax_c cos(z, Σ z′/‖z′‖ over the drawn training images z′ of class c)

    One shot is the nearest neighbor among one image of each class. Nothing is tuned, because a handful of images can
    hold none out. The range is 0 to 1, and higher is better; report the mean and the standard deviation of the draws.

    Args:
        train: (m, d) features.
        train_labels: (m,) class of each.
        test: (n, d) features.
        test_labels: (n,) class of each.
        shots: images of each class, one number or several. The draws of fewer images are parts of those of more.
        draws: how often the images are drawn anew, at random.
        seed: of the draws.

    Returns:
        (draws,) accuracies, or {shots: accuracies} for several numbers of shots.

    Raises:
        ValueError: bad features or labels as in `knn_accuracy`, or a class with fewer training images than shots.

    Source: Snell et al. 2017 (arXiv 1703.05175); Wang et al. 2019 (SimpleShot, arXiv 1911.04623), L2N.

    >>> train, labels = torch.eye(2).repeat_interleave(3, 0), torch.arange(6) // 3  # three of each class
    >>> few_shot_accuracy(train, labels, torch.eye(2), torch.arange(2), shots=2, draws=3).tolist()
    [1.0, 1.0, 1.0]
    """
    x, y, test, test_labels = as_train_and_test(train, train_labels, test, test_labels, normalize=True)
    counts = y.bincount()
    wanted = as_counts(shots, "shots")
    check_numbers(draws=draws)
    if counts.min() < wanted[-1]:
        raise ValueError(f"{wanted[-1]} shots are more than the {counts.min().item()} training samples of a class")
    accuracies = {k: [] for k in wanted}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        order = shuffled_by_class(y, generator)
        first = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(wanted[-1], device=x.device)]  # (classes, k)
        for k in wanted:
            means = torch.nn.functional.normalize(x[first[:, :k]].mean(1), dim=1)  # (classes, d)
            accuracies[k].append(_hits(test, test_labels, means.T, means.new_zeros(len(means))).double().mean())
    accuracies = {k: torch.stack(values) for k, values in accuracies.items()}
    return accuracies[wanted[0]] if isinstance(shots, Integral) else accuracies


# --- Linear heads


class Probe(NamedTuple):
    """A trained linear head: its accuracy on the test set, and how its learning rate or regularization was chosen."""

    accuracy: Float[Tensor, ""]
    chosen: float  # of the values tried, the best on the held-out part
    held_out: dict[float, float]  # of each value tried, the accuracy on the held-out part


def linear_probe(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    lrs: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch: int = 256,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Accuracy of a linear classifier trained by SGD on frozen features: DINO's protocol, on stored features.

    learning rate = lr · batch/256 · ½(1 + cos(π epoch/epochs))

    The loss is the softmax cross-entropy, without weight decay. SGD with momentum 0.9 starts from zero weights. All
    rates are trained at once on the training set without a share `held_out` of each class. That share chooses one of
    them (the lower of equals), with which the classifier is trained anew on the whole training set. The range is 0 to
    1, and higher is better.

    Features are taken as they are, so that the right learning rate depends on their scale. The official evaluation
    differs: it sees new random crops in each epoch, and the class tokens of a ViT-S's last four blocks.

    Args:
        train: (m, d) features.
        train_labels: (m,) class of each.
        test: (n, d) features.
        test_labels: (n,) class of each.
        lrs: learning rates that are tried, for batches of 256.
        epochs: passes over the training set.
        batch: samples in a step.
        held_out: share of each class, between 0 and 1.
        seed: of the held-out part and of the order of the samples.
        progress: show a bar.

    Raises:
        ValueError: bad features or labels as in `knn_accuracy`, no class with two samples, or a learning rate that is
            not positive.

    Source: Caron et al. 2021 (DINO), official eval_linear. Oquab et al. 2023 (DINOv2) try all rates in one pass, too.

    >>> train, labels = torch.eye(2).repeat(10, 1), torch.arange(2).repeat(10)
    >>> probe = linear_probe(train, labels, torch.eye(2), torch.arange(2), lrs=(0.1, 1.0), epochs=5)
    >>> probe.accuracy.item(), probe.chosen  # both are right on the held-out part
    (1.0, 0.1)
    """
    x, y, test, test_labels = as_train_and_test(train, train_labels, test, test_labels)
    check_numbers(epochs=epochs, batch=batch)
    lrs = _positive(lrs, "lrs")
    held = _held_out(y, held_out, seed)
    options = {"epochs": epochs, "batch": batch, "seed": seed, "progress": progress}
    weight, bias = _sgd(x[~held], y[~held], int(y.max()) + 1, lrs, **options)
    scores = [_hits(x[held], y[held], w, b).double().mean().item() for w, b in zip(weight, bias, strict=True)]
    chosen = lrs[int(np.argmax(scores))]
    weight, bias = _sgd(x, y, int(y.max()) + 1, [chosen], **options)
    accuracy = _hits(test, test_labels, weight[0], bias[0]).double().mean()
    return Probe(accuracy, chosen, dict(zip(lrs, scores, strict=True)))


def logistic_regression(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    l2: Sequence[float] = L2_STRENGTHS,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Accuracy of multinomial logistic regression by L-BFGS: a linear probe without learning rate and schedule.

    min over W and b of the mean cross-entropy + λ/2 E‖x − x̄‖² ‖W‖²

    The bias b is free. It is solved in float64 for each λ, from the solution of the next stronger one. A share
    `held_out` of each class chooses λ (the stronger of equals), with which the classifier is fitted anew on the whole
    training set. The range is 0 to 1, and higher is better. Invariant to shift, rotation and scale of the features.

    Args:
        train: (m, d) features.
        train_labels: (m,) class of each.
        test: (n, d) features.
        test_labels: (n,) class of each.
        l2: strengths λ that are tried. scikit-learn's C is 1/(λm), for features with E‖x − x̄‖² = 1.
        held_out: share of each class, between 0 and 1.
        seed: of the held-out part.
        progress: show a bar.

    Raises:
        ValueError: bad features or labels as in `knn_accuracy`, no class with two samples, or a λ that is not positive.

    Source: Oquab et al. 2023 (DINOv2) and Radford et al. 2021 (CLIP), who choose λ on held-out data.

    >>> train, labels = torch.eye(2).repeat(10, 1), torch.arange(2).repeat(10)
    >>> probe = logistic_regression(train, labels, torch.eye(2), torch.arange(2), l2=(0.01, 0.1))
    >>> probe.accuracy.item(), probe.chosen  # both are right on the held-out part
    (1.0, 0.1)
    """
    x, y, test, test_labels = as_train_and_test(train, train_labels, test, test_labels)
    l2 = _positive(l2, "l2")[::-1]
    held = _held_out(y, held_out, seed)
    classes = int(y.max()) + 1
    solutions = _lbfgs(x[~held], y[~held], classes, l2, progress=progress)
    scores = [_hits(x[held], y[held], *solution).double().mean().item() for solution in solutions]
    best = int(np.argmax(scores))
    (solution,) = _lbfgs(x, y, classes, [l2[best]], start=solutions[best])
    accuracy = _hits(test, test_labels, *solution).double().mean()
    return Probe(accuracy, l2[best], dict(zip(l2, scores, strict=True)))


# --- The interval


def accuracy_interval(accuracy: float | Tensor, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's confidence interval of an accuracy, over test images, for the classifier as it is.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n),  z the normal quantile

    It lies in [0, 1], also where p is 0 or 1.

    Args:
        accuracy: p, the share of hits.
        n: test images.
        level: the probability of the interval.

    Returns:
        its low and high end.

    Raises:
        ValueError: n < 1, or an accuracy that n images cannot have.

    Source: Wilson 1927; Brown, Cai & DasGupta 2001 on its coverage.

    >>> [round(end, 3) for end in accuracy_interval(0.8, 50)]
    [0.67, 0.888]
    """
    hits = round(float(accuracy) * n) if n >= 1 and 0 <= accuracy <= 1 else -1
    if hits < 0 or abs(hits - float(accuracy) * n) > 1e-3:
        raise ValueError(f"accuracy must be a share of n images, got {float(accuracy)} of {n}")
    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


# --- Shared by few shots and linear heads


def shuffled_by_class(labels: Int[Tensor, " m"], generator: torch.Generator) -> Int[Tensor, " m"]:
    """Indices of the samples, class by class, in random order within each class.

    >>> shuffled_by_class(torch.tensor([1, 0, 1]), torch.Generator())[0].item()
    1
    """
    key = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    return (labels + key.to(labels.device)).argsort()


def _hits(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], weight: Tensor, bias: Tensor) -> Bool[Tensor, " n"]:
    """Whether the largest logit is the label's, in chunks. No logit may be infinite or NaN, as of a diverged head."""
    hits = []
    for some, label in zip(x.split(4096), y.split(4096), strict=True):
        logits = some.to(weight) @ weight + bias  # (c, classes)
        hits.append((logits.argmax(1) == label) & logits.isfinite().all(1))
    return torch.cat(hits)


def _positive(values: Sequence[float], name: str) -> list[float]:
    """What a probe tries, each once, ascending."""
    values = sorted(set(map(float, values)))
    if not values or not values[0] > 0 or not math.isfinite(values[-1]):
        raise ValueError(f"{name} must be positive and finite, got {values}")
    return values


def _held_out(labels: Int[Tensor, " m"], share: float, seed: int) -> Bool[Tensor, " m"]:
    """A random share of each class, at least one sample of every class that has two."""
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


# --- The optimizers


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
    """Weights and biases of a softmax regression at each learning rate, all trained by one matrix product in a step."""
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
    """Run torch in one thread, if `alone`.

    Between products of a millisecond, torch's threads and SciPy's, which wait for work at full speed, take the cores
    from each other, and everything is slower by a factor of 30 and more.
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
    """Weights and bias of `logistic_regression` for each λ, each found from the one before, and the first from `start`.

    It is solved in the principal axes of the features, each scaled by 1/√(λ + variance/4), where the Hessian is near
    the identity. This changes the variables, and not the problem.
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
