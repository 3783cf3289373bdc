"""Images with masks, and videos with masks, from files. Nothing is downloaded, unpickled or cached."""

from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from simdino.array_files import npz_names, read_npz
from simdino.data import IMAGE_SUFFIXES, is_hidden
from simdino.image_files import TURNED, decoded

from .backbone import Size, resize_and_crop

UNLABELED_NAMES = ("unlabeled", "unlabelled", "void")  # how sets name the class of pixels without a label
VOID = 255  # what masks of 8 bits call pixels without a label, where they have classes beside it
COCO_CLASSES, COCO_THINGS = 201, range(1, 91)  # COCO's panoptic categories; those that are no things are stuff


class MaskSet(NamedTuple):
    """Images with masks of class indices: one part to train on, and one to test on."""

    train: UInt8[Tensor, "n 3 h w"]
    train_masks: Int[Tensor, "n h w"]
    test: UInt8[Tensor, "m 3 h w"]
    test_masks: Int[Tensor, "m h w"]
    classes: tuple[str, ...]  # the name of class i, which is its number where the set has no names
    ignore: int | None  # what masks call pixels without a label
    things: tuple[int, ...] | None  # the classes that are objects; None where that is unknown
    read: str = ""  # what was taken, and what was left


class Video(NamedTuple):
    """Frames with masks, in which 0 is the background and every other number an object."""

    frames: UInt8[Tensor, "t 3 h w"]
    masks: Int[Tensor, "t h w"]


def load_masks(root: str | Path, *, size: Size = None, ignore: int | None = None) -> MaskSet:
    """Images with masks, of a folder or of one .npz.

    A folder is root/train/images and root/train/masks, and the same in root/test or root/val; or root/images and
    root/masks, of which every fifth file, by name, is held out for testing. Masks are PNGs of one channel or with a
    palette, whose values are class indices, and have the stems of their images.

    An .npz has encoded files end to end in `data` and `mask_data`, which begin at `offsets` and `mask_offsets`, besides
    `split` (0 for training, the largest number for testing) and `names` of the classes.

    A mask of its image's aspect ratio but of another size is resized to it, by the nearest pixel. Objects are COCO's
    things, by its panoptic ids 1 to 90, and in a folder all classes but 0 and `ignore`.

    Args:
        root: the folder or the file.
        size: side or (height, width) in pixels that images and masks are resized to cover, and then cut to. None is for
            images that all have one size.
        ignore: what masks call pixels without a label; negative where every value is a class. None is the class that is
            named unlabeled, if there is one; without names it is 255, if there are classes beside it.

    Raises:
        ValueError: nothing there, an image without its mask, a mask with colors or of another aspect ratio than its
            image, masks of 0 and 255 alone without `ignore`, images of different sizes without `size`, or damage. The
            file is named.
    """
    root, classes, left = Path(root).expanduser(), (), []
    if root.is_file():
        arrays = _read_npz(root, "split", "names")
        split, classes = arrays["split"], tuple(map(str, arrays["names"]))
        last = max(1, split.max(initial=1))
        parts = [_encoded(arrays, np.flatnonzero(split == s), root) for s in (0, last)]
        between = int(((split != 0) & (split != last)).sum())
        left += [f"{between} images of splits between 0 and {last}"] if between else []
    elif (root / "train").is_dir():
        held_out = next((root / d for d in ("test", "val") if (root / d).is_dir()), root / "test")
        parts = [_pairs(d / "images", d / "masks", left) for d in (root / "train", held_out)]
        left += [
            f.name for f in sorted(root.iterdir()) if f not in (root / "train", held_out) and not is_hidden(f.name)
        ]
    else:
        pairs = _pairs(root / "images", root / "masks", left)
        left += [f.name for f in sorted(root.iterdir()) if f.name not in ("images", "masks") and not is_hidden(f.name)]
        parts = [[p for i, p in enumerate(pairs) if (i % 5 == 4) == test] for test in (False, True)]
    if not all(parts):
        fifth = (
            ": every fifth, by name, is held out to test on" if root.is_dir() and not (root / "train").is_dir() else ""
        )
        raise ValueError(f"{root} has no images to {'train' if not parts[0] else 'test'} on{fifth}")
    said = f"{root}: {len(parts[0])} training and {len(parts[1])} test images with masks"
    if ignore is None:
        ignore = next((i for i, name in enumerate(classes) if name.lower() in UNLABELED_NAMES), None)
        said += f"; {ignore}, {classes[ignore]}, is no label" if ignore is not None else ""
    train, test = (_stacked(part, size) for part in parts)
    if ignore is None and VOID in (values := sorted({int(v) for _, m in (train, test) for v in m.unique()})):
        if values in ([0, VOID], [VOID]):
            raise ValueError(
                f"the masks of {root} have no values but {' and '.join(map(str, values))}: say whether {VOID} is "
                f"without a label (--ignore {VOID}) or the object (--ignore -1)"
            )
        if len(classes) <= VOID:
            ignore, said = VOID, f"{said}; {VOID} is taken as no label (--ignore -1 makes it a class)"
    ignore = None if ignore is not None and ignore < 0 else ignore
    said += f"; left: {', '.join(left)}" if left else ""
    things = tuple(COCO_THINGS) if len(classes) == COCO_CLASSES and classes[1] == "person" else None
    labeled = [m if ignore is None else m.masked_fill(m == ignore, -1) for _, m in (train, test)]
    if not classes:
        classes = tuple(map(str, range(1 + max(int(m.max()) for m in labeled))))
        things = tuple(i for i in range(1, len(classes)) if i != ignore)
    outside = [v for v in (int(m.max()) for m in labeled) if v >= len(classes)]
    if outside:
        raise ValueError(
            f"the masks of {root} have the value {max(outside)}, and there are {len(classes)} names of classes"
        )
    return MaskSet(*train, *test, classes, ignore, things, said)


def load_videos(root: str | Path, *, size: Size = None) -> Iterator[tuple[str, Video]]:
    """Names and videos of a set, one after the other: DAVIS, a folder, or one .npz.

    DAVIS is root/JPEGImages/480p/<sequence>/*.jpg and root/Annotations/480p/<sequence>/*.png. A folder is
    root/<sequence>/images and root/<sequence>/masks. An .npz is as for `load_masks`, with `sequence`, an index into
    `names`, and `frame` instead of `split`.

    Args:
        root: the folder or the file.
        size: as for `load_masks`.

    Raises:
        ValueError: no sequences, a sequence without frames, or as `load_masks`.
    """
    root = Path(root).expanduser()
    if root.is_file():
        arrays = _read_npz(root, "sequence", "frame", "names")
        order = np.lexsort((arrays["frame"], arrays["sequence"]))
        sequences = {
            str(name): lambda i=i: _encoded(arrays, order[arrays["sequence"][order] == i], root)
            for i, name in enumerate(arrays["names"])
        }
    elif (root / "JPEGImages").is_dir():
        folders = _shown(root / "JPEGImages/480p")
        sequences = {d.name: lambda d=d: _pairs(d, root / "Annotations/480p" / d.name) for d in folders}
    else:
        sequences = {d.name: lambda d=d: _pairs(d / "images", d / "masks") for d in _shown(root)}
    if not sequences:
        raise ValueError(f"{root} has no sequences")
    for name, pairs in sequences.items():
        found = pairs()
        if not found:
            raise ValueError(f"the sequence {name} of {root} has no frames")
        frames, masks = _stacked(found, size)
        objects = [v for v in masks.unique().tolist() if v]
        if VOID in objects and len(objects) > 1:
            raise ValueError(
                f"the sequence {name} of {root} has objects and the value {VOID}: write 0 where that is no object"
            )
        yield name, Video(frames, masks)


def _shown(folder: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones and those of operating systems."""
    return [d for d in sorted(folder.glob("*/")) if not is_hidden(d.name)]


class _Pair(NamedTuple):
    """An image and its mask, files or their content, and a name for messages."""

    name: str
    image: Path | BytesIO
    mask: Path | BytesIO


def _pairs(images: Path, masks: Path, left: list[str] | None = None) -> list[_Pair]:
    """The files of two folders, by name; ValueError unless each has its partner in the other folder.

    What is in them besides, hidden files aside, is added to `left`.
    """
    found, labeled = ({}, {})
    for folder, files, suffixes in ((images, found, IMAGE_SUFFIXES), (masks, labeled, (".png",))):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        others = []
        for file in sorted(f for f in folder.iterdir() if not is_hidden(f.name)):
            if file.suffix.lower() not in suffixes or file.is_dir():
                others.append(file.name)
            elif (other := files.setdefault(file.stem, file)) != file:
                raise ValueError(f"{folder} has {other.name} and {file.name}: masks belong to images by their stems")
        if others and left is not None:
            left.append(f"{len(others)} in {folder} that are no {'/'.join(suffixes)} ({others[0]})")
    lonely = sorted(found.keys() ^ labeled.keys())
    if lonely:
        here, there = (images, masks) if lonely[0] in found else (masks, images)
        raise ValueError(f"{here.name}/{lonely[0]} of {images.parent} has no partner in {there.name}")
    return [_Pair(str(f), f, labeled[stem]) for stem, f in found.items()]


def npz_kind(path: Path) -> str:
    """The kind of a set in an .npz, by its arrays: "video", "masks" or "labels".

    Raises:
        ValueError: a file that is no .npz.
    """
    names = npz_names(path)
    return "video" if "sequence" in names else "masks" if "mask_data" in names else "labels"


def _read_npz(path: Path, *more: str) -> dict[str, np.ndarray]:
    """The arrays of a set: the encoded files, and `more` arrays, the first of which has an entry for each image."""
    arrays = read_npz(path, ("data", "offsets", "mask_data", "mask_offsets", *more))
    for name, array in arrays.items():
        if array.ndim != 1 or (name != "names" and array.dtype.kind not in "iu"):
            raise ValueError(f"{path} is damaged: {name} must be {'text' if name == 'names' else 'whole numbers'} (n,)")
    for key in ("", "mask_"):
        data, offsets = arrays[f"{key}data"], arrays[f"{key}offsets"].astype(np.int64)
        fits = len(offsets) == len(arrays[more[0]]) + 1 and offsets[0] >= 0 and offsets[-1] <= len(data)
        if not fits or (np.diff(offsets) <= 0).any() or data.dtype != np.uint8:
            raise ValueError(f"{path} is damaged: {key}data, {key}offsets and {more[0]} do not fit together")
    if any(len(arrays[name]) != len(arrays[more[0]]) for name in more[1:] if name != "names"):
        raise ValueError(f"{path} is damaged: {' and '.join(more[:-1])} do not fit together")
    return arrays


def _encoded(arrays: dict[str, np.ndarray], rows: Int[np.ndarray, " n"], path: Path) -> list[_Pair]:
    """The images and masks of some rows of an .npz."""

    def file(key: str, i: int) -> BytesIO:
        first, last = arrays[f"{key}offsets"][i : i + 2]
        return BytesIO(arrays[f"{key}data"][first:last].tobytes())

    return [_Pair(f"image {i} of {path}", file("", i), file("mask_", i)) for i in rows.tolist()]


def _stacked(pairs: list[_Pair], size: Size) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, "n h w"]]:
    """Images and masks of one size, resized and cut to it if it is given."""
    images, masks = [], []
    for pair in pairs:
        image, mask = _decoded(pair)
        if size is not None:
            image = (resize_and_crop(image.float() / 255, size) * 255).round().byte()
            mask = resize_and_crop(mask, size, mode="nearest-exact")
        if images and image.shape != images[0].shape:
            (h, w), (first_h, first_w) = image.shape[2:], images[0].shape[2:]
            raise ValueError(f"{pair.name} is {h}x{w}, others before it {first_h}x{first_w}: give a size")
        images.append(image)
        masks.append(mask[:, 0])
    masks = torch.cat(masks)
    return torch.cat(images), masks.to(torch.int16 if masks.max() < 2**15 else torch.int32)


def _decoded(pair: _Pair) -> tuple[UInt8[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """An image and its mask as float32, which is exact for class indices."""
    name = pair.name
    notes: Counter[str] = Counter()
    pixels = torch.from_numpy(decoded([(name, pair.image)], None, notes))
    if notes[TURNED]:
        raise ValueError(f"{name} is {TURNED}, and its mask is not: save the image as it is seen, without orientation")
    from PIL import Image  # which `decoded` has asked for

    try:
        with Image.open(pair.mask) as im:
            mode, labels = im.mode, np.array(im)
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask of {name} is not a readable image: {error}") from None
    if labels.ndim != 2:
        raise ValueError(f"the mask of {name} has colors ({mode}), not class indices")
    if mode == "F" or labels.max(initial=0) >= 2**24 or labels.min(initial=0) < 0:
        raise ValueError(f"the mask of {name} has values ({mode}) that are no class indices")
    (h, w), (mask_h, mask_w) = pixels.shape[2:], labels.shape
    if abs(mask_h * w - mask_w * h) > (h + w) / 2:
        raise ValueError(
            f"the mask of {name} is {mask_h}x{mask_w} and does not have the aspect ratio of its {h}x{w} image"
        )
    labels = torch.from_numpy(labels.astype(np.float32))[None, None]
    if labels.shape[2:] != (h, w):
        labels = torch.nn.functional.interpolate(labels, (h, w), mode="nearest-exact")
    return pixels, labels
