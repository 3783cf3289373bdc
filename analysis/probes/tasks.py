"""What backbones are worth on data: each task that the data allow, as rows of one table.

Data are a name ("photos", "digits"), `name=path` for the other sets of `simdino.data` (cifar10=...), or a path: an
.npz or a folder, whose contents say what it is: images with labels, images with masks, or videos with masks.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simdino.config import recognized
from simdino.data import DATASETS, load
from simdino.image_files import Files

from ..measures.neighbors import knn_accuracy
from ..measures.uncertainty import leave_one_out_interval
from .backbone import Backbone, extract_features, fit, image_features
from .discovery import (
    average_precision,
    average_precision_interval,
    boxes,
    localized,
    mask_iou,
    maskcut,
    regions,
    tokencut,
    upsample,
)
from .image import accuracy_interval, few_shot_accuracy, linear_probe, logistic_regression
from .masks import MaskSet, Size, load_masks, load_videos
from .results import Result
from .segmentation import knn_segmenter, linear_segmenter, prototype_segmenter
from .segmentation import segmentation_confusion as confusion_of
from .video import davis_scores, propagate

TASKS = dict.fromkeys(("knn", "few-shot", "linear", "logistic"), "labels")  # task -> kind of data
TASKS |= {"segment": "masks", "discover": "masks", "video": "video"}
BUILT_IN = ("photos", "digits")
KS, SHOTS = (10, 20, 100, 200), (1, 5, 10)  # of them those that the training set allows
SMALLEST = 1 / 256  # of an image's area: smaller regions are no true objects; COCO's small ones are under 1/225


def probe_backbones(
    backbones: Sequence[Backbone],
    data: Sequence[str | Path],
    *,
    tasks: Sequence[str] | None = None,
    size: Size = None,
    train: int | None = None,
    test: int | None = None,
    sequences: int | None = None,
    ignore: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Measure backbones on sets of images: one row for each measure, set and backbone, with the columns of `Result`.

    tasks: names out of `TASKS`; None is all that the data allow. size: side or (height, width) of the images in pixels;
    None is their own, up to the next multiples of each backbone's patch. train, test: how many images of each part to
    take, at random; sequences: how many of a video set, the first ones; None is all. "discover" takes both parts, of
    sets that say which classes are objects. ignore: what masks call pixels without a label; None as in `load_masks`.
    Backbones of one name are allowed: seeds. ValueError: an unknown task, data of no known kind, a task without data.
    """
    kinds = {str(name): data_kind(name) for name in data}
    possible = [task for task, kind in TASKS.items() if kind in kinds.values()]
    asked = [recognized(task, TASKS, "task") for task in tasks or possible]
    for task in asked:
        if TASKS[task] not in kinds.values():
            raise ValueError(f"{task} needs {TASKS[task]}, which none of the data have: {', '.join(kinds)}")
    counts = {"train": train, "test": test, "sequences": sequences}
    for part, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{part} must be at least 1, got {count}")
    options = counts | {"size": size, "ignore": ignore, "seed": seed, "progress": progress}
    rows = []
    for name, kind in kinds.items():
        rows += KINDS[kind](name, backbones, [task for task in asked if TASKS[task] == kind], **options)
    missing = set(tasks or ()) - {row.task for row in rows}
    if missing:
        raise ValueError(f"{missing.pop()} has nothing to work on in {', '.join(kinds)}")
    return pd.DataFrame(rows, columns=Result._fields)


def existing(paths: Sequence[str | Path]) -> list[Path]:
    """Those of some paths that are there; relative ones start at the project, whatever folder a notebook runs in."""
    found = [Path(__file__).parents[2] / Path(path).expanduser() for path in paths]
    return [path.resolve() for path in found if path.exists()]


def data_kind(data: str | Path) -> str:
    """What a set holds: "labels" (images with classes), "masks" (images with masks) or "video"."""
    path = Path(data).expanduser()
    if data in BUILT_IN or _named(str(data)):
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


def _named(data: str) -> tuple[str, str] | None:
    """The two sides of `name=path`."""
    name, equals, path = data.partition("=")
    return (name, path) if equals and name in DATASETS else None


def classification_tasks(
    name: str,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    size: Size,
    train: int | None,
    test: int | None,
    seed: int,
    progress: bool,
    **_,
) -> Iterator[Result]:
    """Results of the tasks of images with labels."""
    if name in BUILT_IN:
        images = load(name)
    else:
        kind, root = _named(name) or ("npz" if Path(name).expanduser().is_file() else "folder", name)
        lazy = kind == "folder" and isinstance(size, int)  # files of any size, and more than memory holds
        images = load(kind, root=root, size=size if lazy else None, lazy=lazy)
    parts = [(images.train, images.train_labels, train), (images.test, images.test_labels, test)]
    chosen = [_some(len(labels), count, seed) for _, labels, count in parts]
    (x, y), (x_test, y_test) = ((_rows(x, rows), y[rows]) for (x, y, _), rows in zip(parts, chosen, strict=True))
    for backbone in backbones:
        options = {"size": size or _multiples(x.shape[2:], backbone.patch), "progress": progress}
        bank, queries = (image_features(backbone, part, **options) for part in (x, x_test))
        data = bank, y, queries, y_test
        for task in tasks:
            for row in CLASSIFIERS[task](*data, seed=seed, progress=progress):
                yield Result(Path(name).stem, backbone.name, task, n=len(y_test), **row)


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


def dense_tasks(
    name: str,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    size: Size,
    train: int | None,
    test: int | None,
    ignore: int | None,
    seed: int,
    progress: bool,
    **_,
) -> Iterator[Result]:
    """Results of the tasks of images with masks."""
    images = load_masks(name, size=size, ignore=ignore)
    chosen = [_some(len(part), count, seed) for part, count in ((images.train, train), (images.test, test))]
    parts = [(images.train, images.train_masks), (images.test, images.test_masks)]
    parts = [(x[rows], masks[rows]) for (x, masks), rows in zip(parts, chosen, strict=True)]
    for backbone in backbones:
        wanted = _multiples(images.train.shape[2:], backbone.patch)
        patches = [extract_features(backbone, x, size=wanted, progress=progress).patches for x, _ in parts]
        masks = [_fitted(y, wanted) for _, y in parts]
        for task in tasks:
            for row in DENSE[task](patches, masks, images, seed):
                yield Result(Path(name).stem, backbone.name, task, **row)


def _segment(patches: list[Tensor], masks: list[Tensor], images: MaskSet, seed: int) -> Iterator[dict]:
    options = {"classes": len(images.classes), "ignore": images.ignore}
    segmenters = {
        "linear": linear_segmenter(patches[0], masks[0], **options, seed=seed),
        "k-NN": knn_segmenter(patches[0], masks[0], **options),
        "prototypes": prototype_segmenter(patches[0], masks[0], **options),
    }
    for kind, segmenter in segmenters.items():
        confusion = confusion_of(segmenter, patches[1], masks[1], **options)
        low, high = confusion.miou_interval()
        n = int(confusion.images[:, 2].any(1).sum())  # with a label
        yield {"measure": f"mIoU, {kind}", "value": confusion.miou.item(), "low": low, "high": high, "n": n}
        for label, iou in zip(images.classes, confusion.iou.tolist(), strict=True):
            if iou == iou:  # the class is in the test set
                yield {"measure": f"IoU of {label}, {kind}", "value": iou, "n": n, "detail": True}


def _discover(patches: list[Tensor], masks: list[Tensor], images: MaskSet, _) -> Iterator[dict]:
    if images.things is None:
        return
    patches, masks = torch.cat(patches), torch.cat(masks)  # nothing is trained, so both parts count
    size, area = masks.shape[1:], SMALLEST * masks[0].numel()
    truth = [regions(mask, classes=images.things, min_area=area) for mask in masks]
    some = [i for i, objects in enumerate(truth) if len(objects)]
    if len(some) < 2:
        raise ValueError(f"discover needs two images with objects of at least {area:g} pixels")
    whole = sum(localized(torch.tensor([0, 0, size[1], size[0]]), boxes(truth[i])) for i in some) / len(some)
    hits = sum(localized(boxes(upsample(tokencut(patches[i])[None], size))[0], boxes(truth[i])) for i in some)
    corloc, note = torch.tensor(hits / len(some), dtype=torch.float64), f"the box around the whole image: {whole:.3f}"
    yield _accuracy("CorLoc, TokenCut", corloc, len(some), note) | {"n": len(some)}
    found = [maskcut(z) for z in patches]  # also where nothing is to be found: that costs precision
    ious = [mask_iou(upsample(objects.masks, size), true) for objects, true in zip(found, truth, strict=True)]
    scores, n = [objects.scores for objects in found], len(found)
    precision, (low, high) = average_precision(ious, scores), average_precision_interval(ious, scores)
    ap = {"measure": "mask AP, MaskCut", "value": precision.mean().item(), "low": low, "high": high, "n": n}
    yield ap | {"note": f"{sum(map(len, truth))} regions are true objects"}
    yield {"measure": "mask AP50, MaskCut", "value": precision[0].item(), "n": n}


def propagation(
    name: str,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    size: Size,
    sequences: int | None,
    progress: bool,
    **_,
) -> Iterator[Result]:
    """Results on videos with masks: J and F of DAVIS, means over objects, intervals over sequences."""
    scores = [[] for _ in backbones]  # of each backbone, whose names need not differ, each sequence
    for _, (frames, masks) in islice(load_videos(name, size=size), sequences):
        for backbone, known in zip(backbones, scores, strict=True):
            wanted = _multiples(frames.shape[2:], backbone.patch)
            truth = _fitted(masks, wanted)
            patches = extract_features(backbone, frames, size=wanted, progress=progress).patches
            found = davis_scores(propagate(patches, truth[0]), truth)
            known.append(torch.stack((found.j.mean(1), found.f.mean(1)), 1))  # (objects, 2)
    for backbone, each in zip(backbones, scores, strict=True):
        values = torch.cat([torch.cat((s, s.mean(1, keepdim=True)), 1) for s in each])  # (objects, J F J&F)
        sequence = torch.repeat_interleave(torch.tensor([len(s) for s in each]))
        left_out = [values[sequence != i].mean(0) for i in range(len(each))]
        for column, measure in ((2, "J&F mean"), (0, "J mean"), (1, "F mean")):
            mean, n = values[:, column].mean().item(), len(each)
            low, high = leave_one_out_interval(mean, torch.stack(left_out)[:, column]) if n > 1 else (None, None)
            yield Result(Path(name).stem, backbone.name, *tasks, measure, mean, low, high, n=n)


def _fitted(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks cut and resized as their images are."""
    return fit(masks[:, None].float(), size, mode="nearest-exact")[:, 0].to(masks.dtype)


def _some(n: int, count: int | None, seed: int) -> Tensor:
    """`count` of n indices at random, in order; all if there are no more."""
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    return chosen.sort().values


def _rows(images: Tensor | Files, rows: Tensor) -> Tensor | Files:
    return Files([images.files[i] for i in rows], images.size) if isinstance(images, Files) else images[rows]


def _multiples(size: Sequence[int], patch: int) -> tuple[int, int]:
    """A size with its sides rounded up to whole patches."""
    return tuple(-(-side // patch) * patch for side in size)


CLASSIFIERS = {"knn": _knn, "few-shot": _few_shot, "linear": _linear, "logistic": _logistic}
DENSE = {"segment": _segment, "discover": _discover}
KINDS: dict[str, Callable[..., Iterator[Result]]] = {
    "labels": classification_tasks,
    "masks": dense_tasks,
    "video": propagation,
}
