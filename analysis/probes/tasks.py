"""What backbones are worth on data: every task that the data allow, as rows of one table.

Data are a name ("photos", "digits"), `name=path` for the other sets of `simdino.data` (cifar10=...), or a path to an
.npz or a folder, whose content says what it is: images with labels, images with masks, or videos with masks. What could
be a name or a path is refused: ./photos is the path, photos= the name.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from simdino.config import recognized
from simdino.data import BUILT_IN_SETS, DATASETS
from simdino.runs import Run

from ..files import is_name, located
from ..measures.uncertainty import share_interval
from .backbone import BASELINES, Backbone, Size, extract_features, is_run, resize_and_crop
from .discovery import (
    average_precision,
    average_precision_interval,
    bounding_boxes,
    connected_regions,
    correctly_localized,
    mask_iou,
    maskcut,
    tokencut,
    upsample_masks,
)
from .labeled import ImageSource, MakeResult, accuracy_result, chosen_rows, label_results, whole_patches
from .masks import MaskSet, load_masks, load_videos, npz_kind
from .results import Result
from .segmentation import knn_segmenter, linear_segmenter, prototype_segmenter, segmentation_confusion
from .video import davis_scores, propagate_masks

# Each task, and the kind of data that it needs.
TASKS = dict.fromkeys(("knn", "few-shot", "linear", "logistic"), "labels")
TASKS |= {"segment": "masks", "discover": "masks", "video": "video"}
SMALLEST_OBJECT = 1 / 256  # of an image's area; smaller regions are no true objects. COCO's small ones are under 1/225


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
    """Measure backbones on sets of images: a row for each measure, set and backbone, with the columns of `Result`.

    The table's `attrs["read"]` says of each set from files what was taken and what was left.

    Args:
        backbones: which may have equal names, as seeds of one recipe do.
        data: names and paths, as above.
        tasks: names from `TASKS`; None is all that the data allow.
        size: side or (height, width) of the images in pixels. None is their own, rounded up to whole patches of each
            backbone.
        train: how many training images of each set are taken, at random; None is all.
        test: how many test images. "discover" trains nothing, and takes both parts of sets that say which classes are
            objects.
        sequences: how many videos of each set are taken, the first ones; None is all.
        ignore: what masks call pixels without a label; None as in `load_masks`.
        seed: of everything that is random.
        progress: show bars.

    Raises:
        ValueError: an unknown task, data of no known kind, or a task that none of the data allow.
    """
    sources = list(dict.fromkeys(map(_source, data)))
    kinds, said = [_kind(source) for source in sources], ", ".join(map(str, sources))
    possible = [task for task, kind in TASKS.items() if kind in kinds]
    asked = [recognized(task, TASKS, "task") for task in tasks or possible]
    for task in asked:
        if TASKS[task] not in kinds:
            raise ValueError(f"{task} needs {TASKS[task]}, which none of the data have: {said}")
    counts = {"train": train, "test": test, "sequences": sequences}
    for part, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{part} must be at least 1, got {count}")
    options = counts | {"size": size, "ignore": ignore, "seed": seed, "progress": progress}
    rows, read, stems = [], [], [source.stem for source in sources]
    for source, kind in zip(sources, kinds, strict=True):
        wanted = [task for task in asked if TASKS[task] == kind]
        if wanted:
            shown = source.stem if stems.count(source.stem) == 1 else str(source)
            rows += KINDS[kind](source, backbones, wanted, shown=shown, read=read, **options)
    missing = set(tasks or ()) - {row.task for row in rows}
    if missing:
        raise ValueError(f"{missing.pop()} has nothing to work on in {said}")
    table = pd.DataFrame(rows, columns=Result._fields)
    table.attrs["read"] = list(dict.fromkeys(read))
    return table


def existing_paths(paths: Sequence[str | Path]) -> list[Path]:
    """Those of some paths that exist; relative ones are looked for in the project, too (`files.located`).

    >>> existing_paths(["analysis/probes", "nowhere/at/all"])[0].name
    'probes'
    """
    return [found.resolve() for found in map(located, paths) if found]


def data_kind(data: str | Path) -> str:
    """The kind of a set: "labels" (images with classes), "masks" (images with masks) or "video" (with masks).

    Args:
        data: name or path, as above.

    Raises:
        ValueError: nothing of that name, or a file that is no .npz.

    >>> data_kind("photos"), data_kind("cifar10=/data/cifar")
    ('labels', 'labels')
    """
    return _kind(_source(data))


def as_trained(what: Sequence[str]) -> tuple[list[str], list[int]]:
    """The data that runs were trained on, as `probe_backbones` takes them, and the sides of the images, in pixels.

    Args:
        what: paths and names as for `load_backbones`.

    Returns:
        Each once, of all runs; no sides where another network than a run's is among them.
    """
    others = [w for w in what if not is_name(w, BASELINES, "and rename that for the baseline")]
    paths = [Path(w).expanduser() for w in others]
    configs = [Run.load(path).config for path in paths if path.is_dir() and is_run(path)]
    data = sorted({f"{c['data']['name']}={c['data']['root'] or ''}" for c in configs})
    return data, sorted({c["crops"]["global_size"] for c in configs}) if len(configs) == len(others) else []


def _source(data: str | Path) -> ImageSource:
    if is_name(data, BUILT_IN_SETS, f"{data}= for the set"):
        return ImageSource(data, None)
    path = Path(data).expanduser()
    name, equals, root = str(data).partition("=")
    if equals and name in DATASETS and not path.exists():
        return ImageSource(name, Path(root).expanduser() if root else None)
    return ImageSource(None, path)


def _kind(source: ImageSource) -> str:
    """The kind of a set, as `data_kind` has it."""
    name, path = source
    if name:
        return "labels"
    if path.is_file():
        return npz_kind(path)
    if not path.is_dir():
        raise ValueError(f"there are no data {path}: neither a name ({', '.join(DATASETS)}) nor a path")
    inside = [path, path / "train", *path.glob("*/")]
    masked = [folder for folder in inside if (folder / "masks").is_dir()]
    if (path / "JPEGImages").is_dir() or (masked and masked[0] not in inside[:2]):
        return "video"
    return "masks" if masked else "labels"


# --- Images with masks


class _Part(NamedTuple):
    """The training or the test images of a set as patch features, and their masks."""

    patches: Float[Tensor, "n gh gw d"]
    masks: Int[Tensor, "n h w"]


def _mask_results(
    source: ImageSource,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    shown: str,
    size: Size,
    train: int | None,
    test: int | None,
    ignore: int | None,
    seed: int,
    progress: bool,
    read: list[str],
    **_,
) -> Iterator[Result]:
    images = load_masks(source.root, size=size, ignore=ignore)
    read.append(images.read)
    parts = [(images.train, images.train_masks, train), (images.test, images.test_masks, test)]
    chosen = [chosen_rows(len(x), count, seed) for x, _, count in parts]
    parts = [(x[rows], masks[rows]) for (x, masks, _), rows in zip(parts, chosen, strict=True)]
    for backbone in backbones:
        wanted = whole_patches(images.train.shape[2:], backbone.patch)
        patches = [extract_features(backbone, x, size=wanted, progress=progress).patches for x, _ in parts]
        masks = [_resized_masks(y, wanted) for _, y in parts]
        for task in tasks:
            result = partial(Result, shown, backbone.name, task)
            yield from MASK_TASKS[task](result, *map(_Part, patches, masks), images, seed)


def _segment(result: MakeResult, train: _Part, test: _Part, images: MaskSet, seed: int) -> Iterator[Result]:
    options = {"classes": len(images.classes), "ignore": images.ignore}
    segmenters = {
        "linear": linear_segmenter(*train, **options, seed=seed),
        "k-NN": knn_segmenter(*train, **options),
        "prototypes": prototype_segmenter(*train, **options),
    }
    for kind, segmenter in segmenters.items():
        confusion = segmentation_confusion(segmenter, *test, **options)
        low, high = confusion.miou_interval()
        n = confusion.labeled_images
        yield result(f"mIoU, {kind}", confusion.miou.item(), low, high, n=n)
        for label, iou in zip(images.classes, confusion.iou.tolist(), strict=True):
            if not math.isnan(iou):  # the class is in the test set
                yield result(f"IoU of {label}, {kind}", iou, n=n, detail=True)


def _discover(result: MakeResult, train: _Part, test: _Part, images: MaskSet, _) -> Iterator[Result]:
    if images.things is None:
        return
    patches, masks = (torch.cat(both).cpu() for both in zip(train, test, strict=True))  # nothing is trained: both count
    size, area = masks.shape[1:], SMALLEST_OBJECT * masks[0].numel()
    truth = [connected_regions(mask, classes=images.things, min_area=area) for mask in masks]
    true_boxes = {i: bounding_boxes(objects) for i, objects in enumerate(truth) if len(objects)}
    n = len(true_boxes)  # images with an object
    if n < 2:
        raise ValueError(f"discover needs two images with objects of at least {area:g} pixels")
    found_boxes = {i: bounding_boxes(upsample_masks(tokencut(patches[i])[None], size))[0] for i in true_boxes}
    whole_image = torch.tensor([0, 0, size[1], size[0]])
    hits = sum(correctly_localized(found_boxes[i], boxes) for i, boxes in true_boxes.items())
    blind = sum(correctly_localized(whole_image, boxes) for boxes in true_boxes.values()) / n
    corloc = torch.tensor(hits / n, dtype=torch.float64)
    yield accuracy_result(result, "CorLoc, TokenCut", corloc, n, note=f"the box around the whole image: {blind:.3f}")
    found = [maskcut(z) for z in patches]  # also where there is no object, which costs precision
    ious = [mask_iou(upsample_masks(objects.masks, size), true) for objects, true in zip(found, truth, strict=True)]
    scores, n = [objects.scores for objects in found], len(found)
    precision, (low, high) = average_precision(ious, scores), average_precision_interval(ious, scores)
    note = f"{sum(map(len, truth))} regions are true objects"
    yield result("mask AP, MaskCut", precision.mean().item(), low, high, n=n, note=note)
    yield result("mask AP50, MaskCut", precision[0].item(), n=n)


# --- Videos with masks


def _video_results(
    source: ImageSource,
    backbones: Sequence[Backbone],
    tasks: Sequence[str],
    *,
    shown: str,
    size: Size,
    sequences: int | None,
    progress: bool,
    read: list[str],
    **_,
) -> Iterator[Result]:
    """J and F of DAVIS: means over objects, intervals over sequences."""
    (task,) = tasks
    scores = [[] for _ in backbones]  # of each sequence, by backbone, since names may be equal
    taken = []
    for name, (frames, masks) in islice(load_videos(source.root, size=size), sequences):
        taken.append(f"{name} {len(frames)}")
        for backbone, known in zip(backbones, scores, strict=True):
            wanted = whole_patches(frames.shape[2:], backbone.patch)
            truth = _resized_masks(masks, wanted)
            patches = extract_features(backbone, frames, size=wanted, progress=progress).patches
            found = davis_scores(propagate_masks(patches, truth[0]), truth)
            known.append(torch.stack((found.j.mean(1), found.f.mean(1)), 1))  # (objects, 2)
    read.append(f"{source.root}: {len(taken)} videos of so many frames: {', '.join(taken)}")
    for backbone, each in zip(backbones, scores, strict=True):
        result = partial(Result, shown, backbone.name, task)
        values = torch.cat([torch.cat((s, s.mean(1, keepdim=True)), 1) for s in each])  # (objects, J F J&F)
        sequence = torch.repeat_interleave(torch.tensor([len(s) for s in each]))
        left_out = [values[sequence != i].mean(0) for i in range(len(each))]
        for column, measure in ((2, "J&F mean"), (0, "J mean"), (1, "F mean")):
            mean, n = values[:, column].mean().item(), len(each)
            low, high = share_interval(mean, torch.stack(left_out)[:, column]) if n > 1 else (None, None)
            yield result(measure, mean, low, high, n=n)


# --- Shared by all


def _resized_masks(masks: Int[Tensor, "n h w"], size: tuple[int, int]) -> Int[Tensor, "n new_h new_w"]:
    """Masks resized and cut as their images are."""
    return resize_and_crop(masks[:, None].float(), size, mode="nearest-exact")[:, 0].to(masks.dtype)


MASK_TASKS = {"segment": _segment, "discover": _discover}
KINDS: dict[str, Callable[..., Iterator[Result]]] = {
    "labels": label_results,
    "masks": _mask_results,
    "video": _video_results,
}
