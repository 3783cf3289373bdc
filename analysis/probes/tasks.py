"""What backbones are worth on data: each task that the data allow, as rows of one table.

Data are a name ("photos", "digits"), `name=path` for the other sets of `simdino.data` (cifar10=...), or a path: an
.npz or a folder, whose contents say what it is: images with labels, images with masks, or videos with masks.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.probes.backbone import Backbone, image_features
from analysis.probes.classify import accuracy_interval, few_shot_accuracy, knn_accuracy
from analysis.probes.heads import linear_probe, logistic_regression
from simdino.config import nearest
from simdino.data import DATASETS, load

TASKS = {"knn": "labels", "few-shot": "labels", "linear": "labels", "logistic": "labels"}  # task -> kind of data
KS, SHOTS = (10, 20, 100, 200), (1, 5, 10)  # of them those that the training set allows
Size = int | tuple[int, int] | None


class Result(NamedTuple):
    """One measure of one backbone on one set; low and high bound its 95% confidence interval over n images."""

    data: str
    backbone: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None  # over random draws
    n: int | None = None  # images, or sequences, of the test set
    note: str = ""


def evaluate(
    backbones: Sequence[Backbone],
    data: Sequence[str | Path],
    *,
    tasks: Sequence[str] | None = None,
    size: Size = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """A row a measure, set and backbone: the columns of `Result`.

    tasks: names out of `TASKS`; None is all that the data allow. size: side or (height, width) of the images in
    pixels; None is their own, up to the next multiples of each backbone's patch. train, test: how many images of each
    part to take, at random; None is all. ValueError: an unknown task, data of no known kind, a task without data.
    """
    kinds = {str(name): data_kind(name) for name in data}
    asked = (
        [nearest(task, TASKS, "task") for task in tasks] if tasks else [t for t in TASKS if TASKS[t] in kinds.values()]
    )
    for task in asked:
        if TASKS[task] not in kinds.values():
            raise ValueError(f"{task} needs {TASKS[task]}, which none of the data have: {', '.join(kinds)}")
    options = {"size": size, "train": train, "test": test, "seed": seed, "progress": progress}
    rows = []
    for name, kind in kinds.items():
        rows += KINDS[kind](name, backbones, [task for task in asked if TASKS[task] == kind], **options)
    return pd.DataFrame(rows, columns=Result._fields)


def table(results: pd.DataFrame) -> str:
    """The results as a text for people: a row a measure, a column a backbone; mean ± sd, or value [interval]."""
    cells = [
        f"{r.value:.3f}"
        + (f" ± {r.sd:.3f}" if pd.notna(r.sd) else f" [{r.low:.3f}, {r.high:.3f}]" if pd.notna(r.low) else "")
        for r in results.itertuples()
    ]
    columns = list(dict.fromkeys(results["backbone"]))
    rows = list(dict.fromkeys(zip(results["data"], results["measure"], strict=True)))
    wide = results.assign(cell=cells).pivot(index=["data", "measure"], columns="backbone", values="cell")
    return wide.loc[rows, columns].fillna("-").rename_axis(columns=None).to_string()


def data_kind(data: str | Path) -> str:
    """What a set holds: "labels" (images with classes), "masks" (images with masks) or "video"."""
    path = Path(data).expanduser()
    if data in ("photos", "digits") or str(data).partition("=")[0] in DATASETS:
        return "labels"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                names = set(file.files)
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not an .npz of images: {error}") from None
        return "video" if "sequence" in names else "masks" if "mask_data" in names else "labels"
    if not path.is_dir():
        raise ValueError(f"there are no data {data}: neither a name ({', '.join(DATASETS)}) nor a path")
    inside = [path, path / "train", *path.glob("*/")]
    masked = [folder for folder in inside if (folder / "masks").is_dir()]
    if (path / "JPEGImages").is_dir() or (masked and masked[0] not in inside[:2]):
        return "video"
    return "masks" if masked else "labels"


def classification(
    name: str,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    size: Size = None,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Result]:
    """Results of the tasks of images with labels."""
    kind, _, root = name.rpartition("=") if name.partition("=")[0] in DATASETS else ("", "", name)
    if name in ("photos", "digits"):
        images = load(name)
    else:
        kind = kind or ("npz" if Path(root).is_file() else "folder")
        images = load(kind, root=root, size=size if kind == "folder" and isinstance(size, int) else None)
    parts = [(images.train, images.train_labels, train), (images.test, images.test_labels, test)]
    chosen = [_some(len(labels), count, seed) for _, labels, count in parts]
    (x, y), (x_test, y_test) = (
        (images[rows], labels[rows]) for (images, labels, _), rows in zip(parts, chosen, strict=True)
    )
    for backbone in backbones:
        options = {"size": size or _multiples(x.shape[2:], backbone.patch), "progress": progress}
        bank, queries = (image_features(backbone, part, **options) for part in (x, x_test))
        data = bank, y, queries, y_test
        for task in tasks:
            for row in CLASSIFIERS[task](*data, seed=seed, progress=progress):
                yield Result(Path(name).stem, backbone.name, n=len(y_test), **row)


def _knn(*data: Tensor, **_) -> Iterator[dict]:
    ks = [k for k in KS if k <= len(data[0])] or [len(data[0])]
    for k, accuracy in knn_accuracy(*data, k=ks).items():
        yield _accuracy(f"k-NN, k = {k}", accuracy, len(data[2]))


def _few_shot(*data: Tensor, seed: int, **_) -> Iterator[dict]:
    least = data[1].unique(return_counts=True)[1].min()
    shots = [k for k in SHOTS if k <= least]
    for k, accuracies in few_shot_accuracy(*data, shots=shots, seed=seed).items():
        mean, sd = accuracies.mean().item(), accuracies.std().item()
        yield {"measure": f"{k}-shot", "value": mean, "sd": sd, "note": f"n = {len(accuracies)} draws"}


def _linear(*data: Tensor, **options) -> Iterator[dict]:
    probe = linear_probe(*data, **options)
    yield _accuracy("linear probe", probe.accuracy, len(data[2]), note=f"lr = {probe.chosen:g}")


def _logistic(*data: Tensor, **options) -> Iterator[dict]:
    probe = logistic_regression(*data, **options)
    yield _accuracy("logistic regression", probe.accuracy, len(data[2]), note=f"λ = {probe.chosen:g}")


def _accuracy(measure: str, accuracy: Tensor, n: int, note: str = "") -> dict:
    low, high = accuracy_interval(accuracy, n)
    return {"measure": measure, "value": accuracy.item(), "low": low, "high": high, "note": note}


def _some(n: int, count: int | None, seed: int) -> Tensor:
    """`count` of n indices at random, in order; all if there are no more."""
    if count is not None and count < 1:
        raise ValueError(f"train and test must be at least 1, got {count}")
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return chosen.sort().values


def _multiples(size: Sequence[int], patch: int) -> tuple[int, int]:
    """A size with its sides rounded up to whole patches."""
    return tuple(-(-side // patch) * patch for side in size)


CLASSIFIERS = {"knn": _knn, "few-shot": _few_shot, "linear": _linear, "logistic": _logistic}
KINDS: dict[str, Callable[..., Iterator[Result]]] = {"labels": classification}
