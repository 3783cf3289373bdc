"""Images with masks, and videos with masks, from files. Nothing is downloaded, unpickled or cached."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from simdino.data import IMAGE_SUFFIXES
from simdino.image_files import decoded

from .backbone import Size, resize_and_crop

UNLABELED_NAMES = ("unlabeled", "unlabelled", "void")  # how sets name the class of pixels without a label
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
        ignore: what masks call pixels without a label; None is the class that is named unlabeled, if there is one.

    Raises:
        ValueError: nothing there, an image without its mask, a mask with colors or of another aspect ratio than its
            image, images of different sizes without `size`, or damage. The file is named.
    """
    root, classes = Path(root).expanduser(), ()
    if root.is_file():
        arrays = _read_npz(root, "split", "names")
        split, classes = arrays["split"], tuple(map(str, arrays["names"]))
        parts = [_encoded(arrays, np.flatnonzero(split == s), root) for s in (0, max(1, split.max(initial=1)))]
    elif (root / "train").is_dir():
        held_out = next((root / d for d in ("test", "val") if (root / d).is_dir()), root / "test")
        parts = [_pairs(d / "images", d / "masks") for d in (root / "train", held_out)]
    else:
        pairs = _pairs(root / "images", root / "masks")
        parts = [[p for i, p in enumerate(pairs) if (i % 5 == 4) == test] for test in (False, True)]
    if not all(parts):
        raise ValueError(f"{root} has no images to {'train' if not parts[0] else 'test'} on")
    if ignore is None:
        ignore = next((i for i, name in enumerate(classes) if name.lower() in UNLABELED_NAMES), None)
    train, test = (_stacked(part, size) for part in parts)
    things = tuple(COCO_THINGS) if len(classes) == COCO_CLASSES and classes[1] == "person" else None
    if not classes:
        labeled = [m if ignore is None else m.masked_fill(m == ignore, -1) for _, m in (train, test)]
        classes = tuple(map(str, range(1 + max(int(m.max()) for m in labeled))))
        things = tuple(i for i in range(1, len(classes)) if i != ignore)
    return MaskSet(*train, *test, classes, ignore, things)


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
        folders = sorted((root / "JPEGImages/480p").glob("*/"))
        sequences = {d.name: lambda d=d: _pairs(d, root / "Annotations/480p" / d.name) for d in folders}
    else:
        sequences = {d.name: lambda d=d: _pairs(d / "images", d / "masks") for d in sorted(root.glob("*/"))}
    if not sequences:
        raise ValueError(f"{root} has no sequences")
    for name, pairs in sequences.items():
        found = pairs()
        if not found:
            raise ValueError(f"the sequence {name} of {root} has no frames")
        yield name, Video(*_stacked(found, size))


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An open .npz; a ValueError that names it where it cannot be read, or where the block says what is wrong."""
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz of images: {error}") from None


class _Pair(NamedTuple):
    """An image and its mask, files or their content, and a name for messages."""

    name: str
    image: Path | BytesIO
    mask: Path | BytesIO


def _pairs(images: Path, masks: Path) -> list[_Pair]:
    """The files of two folders, by name; ValueError unless each has its partner in the other folder."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    found = {f.stem: f for f in sorted(images.iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES}
    labeled = {f.stem: f for f in masks.iterdir() if f.suffix.lower() == ".png"}
    lonely = sorted(found.keys() ^ labeled.keys())
    if lonely:
        here, there = (images, masks) if lonely[0] in found else (masks, images)
        raise ValueError(f"{here.name}/{lonely[0]} of {images.parent} has no partner in {there.name}")
    return [_Pair(str(f), f, labeled[stem]) for stem, f in found.items()]


def _read_npz(path: Path, *more: str) -> dict[str, np.ndarray]:
    """The arrays of a set: the encoded files, and `more` arrays, the first of which has an entry for each image."""
    names = ("data", "offsets", "mask_data", "mask_offsets", *more)
    with open_npz(path) as file:
        missing = set(names) - set(file.files)
        if missing:
            raise ValueError(f"it has no array {', '.join(sorted(missing))}")
        arrays = {name: file[name] for name in names}
    for key in ("", "mask_"):
        offsets, size = arrays[f"{key}offsets"], len(arrays[f"{key}data"])
        if len(offsets) != len(arrays[more[0]]) + 1 or (np.diff(offsets) <= 0).any() or offsets[-1] > size:
            raise ValueError(f"{path} is damaged: {key}data, {key}offsets and {more[0]} do not fit together")
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
    pixels = torch.from_numpy(decoded([(name, pair.image)], None))
    from PIL import Image  # which `decoded` has asked for

    try:
        with Image.open(pair.mask) as im:
            mode, labels = im.mode, np.array(im)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask of {name} is not a readable image: {error}") from None
    if labels.ndim != 2:
        raise ValueError(f"the mask of {name} has colors ({mode}), not class indices")
    (h, w), (mask_h, mask_w) = pixels.shape[2:], labels.shape
    if abs(mask_h * w - mask_w * h) > (h + w) / 2:
        raise ValueError(
            f"the mask of {name} is {mask_h}x{mask_w} and does not have the aspect ratio of its {h}x{w} image"
        )
    labels = torch.from_numpy(labels.astype(np.float32))[None, None]
    if labels.shape[2:] != (h, w):
        labels = torch.nn.functional.interpolate(labels, (h, w), mode="nearest-exact")
    return pixels, labels
