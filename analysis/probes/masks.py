"""Images with masks from files: sets to segment, and videos. Nothing is downloaded, unpickled or cached."""

import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from simdino.image_files import decoded

from .backbone import fit

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
UNLABELED_NAMES = ("unlabeled", "unlabelled", "void")  # names of the class that is none
COCO_CLASSES, COCO_THINGS = 201, range(1, 91)  # panoptic category ids: the others are stuff
Size = int | tuple[int, int] | None
Item = tuple[str, Path | BytesIO, Path | BytesIO]  # name for messages, image, mask


class MaskSet(NamedTuple):
    """Images (n, 3, h, w) with masks (n, h, w) of class indices, a part to train on and one to test on."""

    train: UInt8[Tensor, "n 3 h w"]
    train_masks: Int[Tensor, "n h w"]
    test: UInt8[Tensor, "m 3 h w"]
    test_masks: Int[Tensor, "m h w"]
    classes: tuple[str, ...]  # classes[i] names class i, by its number where nobody did
    ignore: int | None  # what masks call pixels without a label
    things: tuple[int, ...] | None  # the classes that are objects; None: nobody knows


class Video(NamedTuple):
    """Frames (t, 3, h, w) with masks (t, h, w): 0 background, 1, 2, ... objects."""

    frames: UInt8[Tensor, "t 3 h w"]
    masks: Int[Tensor, "t h w"]


def load_masks(root: str | Path, *, size: Size = None, ignore: int | None = None) -> MaskSet:
    """Images with masks: a folder, or one .npz.

    Folder: root/train/images, root/train/masks and the same in root/test or root/val; or root/images and root/masks,
    of which every fifth file, by name, is held out. Masks are PNGs of one channel or a palette whose values are class
    indices, with the stems of their images. .npz: encoded files end to end in `data` and `mask_data` with `offsets` and
    `mask_offsets`, `split` (0 trains, the largest tests) and `names` of the classes.
    size: side or (height, width) in pixels that images and masks are resized to cover, then cut to; None: they have one
    size. A mask of another size than its image, but of its shape, is resized to it; masks are resized by the nearest
    pixel. ignore: None is the class that `names` calls unlabeled, if there is one. Objects are COCO's things, by its
    panoptic ids 1 to 90, and of a folder all classes but 0 and `ignore`.

    ValueError, naming the file: nothing there, an image without its mask, a mask with colors or of another shape than
    its image, unequal sizes without `size`, damage.
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
    """Sequences with a mask a frame, one after the other, by name: DAVIS, a folder, or one .npz.

    DAVIS: root/JPEGImages/480p/<sequence>/*.jpg and root/Annotations/480p/<sequence>/*.png. Folder:
    root/<sequence>/images and root/<sequence>/masks. .npz: as for `load_masks`, with `sequence`, an index into `names`,
    and `frame` in the place of `split`. size and errors as there.
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


def _pairs(images: Path, masks: Path) -> list[Item]:
    """(name, image, mask) of two folders, by name; ValueError unless each file of one has its partner in the other."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    found = {f.stem: f for f in sorted(images.iterdir()) if f.suffix.lower() in SUFFIXES}
    labeled = {f.stem: f for f in masks.iterdir() if f.suffix.lower() == ".png"}
    lonely = sorted(found.keys() ^ labeled.keys())
    if lonely:
        here, there = (images, masks) if lonely[0] in found else (masks, images)
        raise ValueError(f"{here.name}/{lonely[0]} of {images.parent} has no partner in {there.name}")
    return [(str(f), f, labeled[stem]) for stem, f in found.items()]


def _read_npz(path: Path, *more: str) -> dict[str, np.ndarray]:
    names = ("data", "offsets", "mask_data", "mask_offsets", *more)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = set(names) - set(file.files)
            if missing:
                raise ValueError(f"it has no array {', '.join(sorted(missing))}")
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, AttributeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npz of images with masks: {error}") from None
    for key in ("", "mask_"):
        offsets, size = arrays[f"{key}offsets"], len(arrays[f"{key}data"])
        if len(offsets) != len(arrays[more[0]]) + 1 or (np.diff(offsets) <= 0).any() or offsets[-1] > size:
            raise ValueError(f"{path} is damaged: {key}data, {key}offsets and {more[0]} do not fit together")
    return arrays


def _encoded(arrays: dict[str, np.ndarray], rows: Int[np.ndarray, " n"], path: Path) -> list[Item]:
    def file(key: str, i: int) -> BytesIO:
        first, last = arrays[f"{key}offsets"][i : i + 2]
        return BytesIO(arrays[f"{key}data"][first:last].tobytes())

    return [(f"image {i} of {path}", file("", i), file("mask_", i)) for i in rows.tolist()]


def _stacked(pairs: list[Item], size: Size) -> tuple[Tensor, Tensor]:
    images, masks = [], []
    for name, *files in pairs:
        image, mask = _decoded(name, *files)
        if size is not None:
            image, mask = (fit(image.float() / 255, size) * 255).round().byte(), fit(mask, size, mode="nearest-exact")
        if images and image.shape != images[0].shape:
            (h, w), (first_h, first_w) = image.shape[2:], images[0].shape[2:]
            raise ValueError(f"{name} is {h}x{w}, others before it {first_h}x{first_w}: give a size")
        images.append(image)
        masks.append(mask[:, 0])
    masks = torch.cat(masks)
    return torch.cat(images), masks.to(torch.int16 if masks.max() < 2**15 else torch.int32)


def _decoded(name: str, image: Path | BytesIO, mask: Path | BytesIO) -> tuple[Tensor, Tensor]:
    """Image (1, 3, h, w) uint8 and mask (1, 1, h, w) float32, which is exact for class indices."""
    pixels = torch.from_numpy(decoded([(name, image)], None))
    from PIL import Image  # which `decoded` has asked for

    try:
        with Image.open(mask) as im:
            mode, labels = im.mode, np.array(im)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask of {name} is not a readable image: {error}") from None
    if labels.ndim != 2:
        raise ValueError(f"the mask of {name} has colors ({mode}), not class indices")
    (h, w), (mask_h, mask_w) = pixels.shape[2:], labels.shape
    if abs(mask_h * w - mask_w * h) > (h + w) / 2:
        raise ValueError(f"the mask of {name} is {mask_h}x{mask_w}, which is not the shape of its {h}x{w}")
    labels = torch.from_numpy(labels.astype(np.float32))[None, None]
    if labels.shape[2:] != (h, w):
        labels = torch.nn.functional.interpolate(labels, (h, w), mode="nearest-exact")
    return pixels, labels
