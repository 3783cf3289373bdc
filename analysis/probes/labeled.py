"""What backbones are worth on images with classes: k-NN, a few images of each class, linear classifiers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from simdino.data import load
from simdino.image_files import Files

from ..measures.neighbors import knn_accuracy
from .backbone import Backbone, Size, image_features
from .image import accuracy_interval, few_shot_accuracy, linear_probe, logistic_regression
from .results import Result

KS = (10, 20, 100, 200)  # numbers of neighbors that "knn" tries, if the training set is that large
SHOTS = (1, 5, 10)  # images of each class that "few-shot" tries, if the classes are that large

MakeResult = Callable[..., Result]  # of one set, backbone and task: from a measure, its value and the rest


class ImageSource(NamedTuple):
    """Where a set of images is."""

    name: str | None  # of `simdino.data`; None: what lies at the root says what it is
    root: Path | None = None

    @property
    def stem(self) -> str:
        """What it is called in a table."""
        return self.root.stem if self.root else self.name

    def __str__(self) -> str:
        return f"{self.name}={self.root}" if self.name and self.root else str(self.root or self.name)


def label_results(
    source: ImageSource,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    shown: str | None = None,
    size: Size = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    progress: bool = False,
    read: list[str] | None = None,
    **_,
) -> Iterator[Result]:
    """Results of tasks that need images with classes, one backbone after another.

    Args:
        source: the set of images.
        backbones: which are measured.
        tasks: names from `LABEL_TASKS`.
        shown: what the results call the set; None is its `stem`.
        size: of the images; None is their own, rounded up to whole patches of each backbone.
        train: how many training images are taken; None is all.
        test: how many test images.
        seed: of everything that is random.
        progress: show bars.
        read: gets a sentence on what was taken of files, and what was left.

    Raises:
        ValueError: images without classes; too few training images to have every class of the test images.
    """
    kind = source.name or ("npz" if source.root.is_file() else "folder")
    lazy = kind == "folder" and isinstance(size, int)  # files of any size, and more than memory holds
    images = load(kind, root=source.root, size=size if lazy else None, lazy=lazy)
    if not images.classes:
        raise ValueError(f"{', '.join(tasks)} need classes, and the images in {source} lie in no folders of classes")
    parts = [(images.train, images.train_labels, train), (images.test, images.test_labels, test)]
    chosen = [chosen_rows(len(labels), count, seed) for _, labels, count in parts]
    (x, y), (x_test, y_test) = ((_rows(x, rows), y[rows]) for (x, y, _), rows in zip(parts, chosen, strict=True))
    if read is not None and images.read:
        read.append(images.read)
    if absent := set(y_test.tolist()) - set(y.tolist()):
        more = f"--train {train} at random is too few" if train and train < len(images.train) else "bring some"
        raise ValueError(
            f"{source} has no training image of {len(absent)} of its {len(images.classes)} classes, such as "
            f"{images.classes[min(absent)]}, which test images have: {more}"
        )
    for backbone in backbones:
        options = {"size": size or whole_patches(x.shape[2:], backbone.patch), "progress": progress}
        z, z_test = (image_features(backbone, part, **options) for part in (x, x_test))
        for task in tasks:
            result = partial(Result, shown or source.stem, backbone.name, task)
            yield from LABEL_TASKS[task](result, z, y, z_test, y_test, seed=seed, progress=progress)


def _knn(
    result: MakeResult, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, **_
) -> Iterator[Result]:
    ks = [k for k in KS if k <= len(train)] or [len(train)]
    for k, accuracy in knn_accuracy(train, train_labels, test, test_labels, k=ks).items():
        yield accuracy_result(result, f"k-NN, k = {k}", accuracy, len(test))


def _few_shot(
    result: MakeResult, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, seed: int, **_
) -> Iterator[Result]:
    least = train_labels.unique(return_counts=True)[1].min()
    shots = [k for k in SHOTS if k <= least]
    for k, accuracies in few_shot_accuracy(train, train_labels, test, test_labels, shots=shots, seed=seed).items():
        mean, sd = accuracies.mean().item(), accuracies.std().item()
        yield result(f"{k}-shot", mean, sd=sd, n=len(test), note=f"n = {len(accuracies)} draws")


def _linear(
    result: MakeResult, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, **options
) -> Iterator[Result]:
    probe = linear_probe(train, train_labels, test, test_labels, **options)
    yield accuracy_result(result, "linear probe", probe.accuracy, len(test), note=f"lr = {probe.chosen:g}")


def _logistic(
    result: MakeResult, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, **options
) -> Iterator[Result]:
    probe = logistic_regression(train, train_labels, test, test_labels, **options)
    yield accuracy_result(result, "logistic regression", probe.accuracy, len(test), note=f"λ = {probe.chosen:g}")


def accuracy_result(result: MakeResult, measure: str, accuracy: Tensor, n: int, note: str = "") -> Result:
    """An accuracy of n images, with Wilson's interval."""
    low, high = accuracy_interval(accuracy, n)
    return result(measure, accuracy.item(), low, high, n=n, note=note)


def chosen_rows(n: int, count: int | None, seed: int) -> Int[Tensor, " rows"]:
    """`count` of n indices at random, in order; all if there are no more."""
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return chosen.sort().values


def _rows(images: Tensor | Files, rows: Int[Tensor, " rows"]) -> Tensor | Files:
    return Files([images.files[i] for i in rows], images.size) if isinstance(images, Files) else images[rows]


def whole_patches(size: Sequence[int], patch: int) -> tuple[int, int]:
    """A size with its sides rounded up to whole patches."""
    return tuple(-(-side // patch) * patch for side in size)


LABEL_TASKS = {"knn": _knn, "few-shot": _few_shot, "linear": _linear, "logistic": _logistic}
