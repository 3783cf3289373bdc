"""Named image sets as uint8 tensors on the device. Nothing is ever downloaded, unpickled or cached."""

import functools
import gzip
import os
import struct
import zlib
from collections import Counter
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from simdino.array_files import read_npz
from simdino.config import recognized
from simdino.image_files import Files, Paths, decoded, require
from simdino.runs import CHECKOUT

# The photographs inside scikit-image's wheel. Left out: drawings and synthetic patterns, the phase image `cell`,
# the near-empty `clock_motion`, and `motorcycle_right` (the other eye's view of motorcycle_left).
PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
    "text.png",
)
PAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "mnist": "https://yann.lecun.com/exdb/mnist/",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist",
}
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
BUILT_IN_SETS = ("photos", "digits")  # that need no files
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")  # of no class
PART_NAMES = ("train", "test", "val", "training", "testing", "validation", "valid", "dev", "eval")  # in any letters
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


class Dataset(NamedTuple):
    """Images and class indices of a training and a held-out part; `classes[i]` names class i.

    Images without classes have None for labels, and () for classes.
    """

    train: UInt8[Tensor, "n c h w"] | Files
    train_labels: Int64[Tensor, " n"] | None
    test: UInt8[Tensor, "m c h w"] | Files
    test_labels: Int64[Tensor, " m"] | None
    classes: tuple[str, ...]
    read: str = ""  # of files: what was taken, and what was left


def load(
    name: str,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    device: str | torch.device = "cpu",
    lazy: bool = False,
) -> Dataset:
    """Load a named image set: `digits` and `photos` need no files, the others read what is at `root`.

    A `folder` is root/train/<class>/* with root/test or root/val, or root/<class>/* where every fifth file of a class,
    by name, is held out; in either the images may lie in no folders of classes, and have no labels then. Images in
    folders inside a class's are its own; hidden files and folders, and those of systems, are left. `cifar10` and
    `cifar100` are the original binary files, `mnist` and `fashion_mnist` the original idx files, packed (.gz) or not.
    An `npz` is one file with the arrays `data` (encoded images end to end), `offsets`, `labels`, `split` (0 is
    training) and `names`.

    Args:
        name: a key of `DATASETS`.
        root: a path from the current folder or, if there is no such path, from the checkout: runs start in any folder.
        size: side in pixels (short side resized, bicubic and antialiased, then the center cropped); None is native.
        device: where images and labels are.
        lazy: whether a folder's images are `Files`, decoded when they are asked for: for sets that memory cannot hold.

    Returns:
        Images uint8 (N, c, h, w) and labels int64 (N,) of both parts; labels are None for images without classes.

    Raises:
        ValueError: an unknown name, a damaged file, or images of unequal sizes.
        FileNotFoundError: a file that is not there, by its name.
    """
    if root is not None and not (root := Path(root).expanduser()).exists():
        root = CHECKOUT / root if (CHECKOUT / root).exists() else root
    if name not in DATASETS and Path(name).expanduser().exists():
        raise ValueError(f"{name} is a path and no image set: your own images are data.name=folder,data.root={name}")
    if recognized(name, DATASETS, "image set") in BUILT_IN_SETS:
        if root is not None:
            remedy = f"your own images are data.name=folder,data.root={root}"
            raise ValueError(f"root must be None for {name}, which is built from an installed package: {remedy}")
    elif root is None:
        raise ValueError(f"root must say where the files of {name} are{_page(name)}")
    elif not root.exists():
        raise FileNotFoundError(f"root {root} does not exist{_page(name)}")
    if lazy and (name != "folder" or size is None):
        raise ValueError(f"images can be decoded while training for a folder and a size only, not {name} at {size}")
    train, train_labels, test, test_labels, classes, *read = DATASETS[name](root, size, *[True] * lazy)
    parts = []
    for part, images, labels in (("training", train, train_labels), ("test", test, test_labels)):
        if not len(images):
            fifth = name == "folder" and not (root / "train").is_dir()
            why = ": every fifth of a class, by name, is held out for it, and no class has five" if fifth else ""
            raise ValueError(f"{name} at {root} has no {part} images{why}")
        if labels is not None:
            labels = torch.as_tensor(labels).long().to(device)
            if labels.min() < 0 or labels.max() >= len(classes):
                raise ValueError(f"{name} at {root} has {part} labels outside 0..{len(classes) - 1}")
        parts += [images if lazy else _resized(torch.as_tensor(images), size).to(device), labels]
    return Dataset(*parts, tuple(map(str, classes)), *read)


def digits(root: None, size: int | None) -> tuple:
    """Read scikit-learn's 1,797 handwritten digits, gray 8x8, gray levels 0..16 spread to 0..255.

    The last 360 are the test part: the set is ordered by writer, so most of them come from writers not trained on.
    """
    require("sklearn", "scikit-learn", "digits")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.as_tensor(bunch.images * (255 / 16)).round().to(torch.uint8)[:, None]  # (1797, 1, 8, 8)
    return x[:-360], bunch.target[:-360], x[-360:], bunch.target[-360:], [str(i) for i in range(10)]


def photos(root: None, size: int | None) -> tuple:
    """Cut 8,000 + 1,600 gray 32x32 crops out of the 16 photographs inside scikit-image; the label is the picture.

    Each picture is cut into five upright bands: test crops lie in the second and fourth, training crops in the others,
    all 4 px clear of the border, so the parts share no pixel. Every second crop is 32 px of the picture, the others
    are 64 px halved. All pictures are turned gray because 8 of the 16 are: color would give the rest away. Crops with
    next to no contrast (standard deviation under 4 of 255: empty sky, black frame) are drawn anew in both parts. The
    draws have a fixed seed. By raw pixels (20-NN, cosine) 18 in 100 are right, by centered ones 27, by chance 6.
    """
    require("skimage", "scikit-image", "photos")
    folder = Path(find_spec("skimage").origin).parent / "data"
    for file in PHOTOS:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"photos needs {file} inside scikit-image, where release 0.26 has it")
    train, test = (crops.copy() for crops in _photo_crops(folder))  # (N, 1, 32, 32)
    names = [file.split(".")[0] for file in PHOTOS]
    return train, np.repeat(np.arange(16), 500), test, np.repeat(np.arange(16), 100), names


@functools.lru_cache(maxsize=1)  # a second of work, which one process would do anew for each of its runs
def _photo_crops(folder: Path) -> list[np.ndarray]:
    """The training and the test crops of all photographs, picture by picture, (N, 1, 32, 32) each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    parts: dict[bool, list] = {False: [], True: []}
    for file in PHOTOS:
        with Image.open(folder / file) as im:
            im = im.convert("L")
        im.thumbnail((640, 640), Image.Resampling.LANCZOS)  # two are far larger: bring all to one scale
        for test, count in ((False, 500), (True, 100)):
            for i in range(count):
                parts[test].append(_photo_crop(im, 32 * (1 + i % 2), test, rng))
    return [np.stack(parts[test])[:, None] for test in (False, True)]


def _photo_columns(width: int, test: bool) -> np.ndarray:
    """(width,) bool: the picture columns a part may use, 4 px clear of the border to the other part."""
    band = np.arange(width) * 5 // width
    other = np.isin(band, (1, 3)) != test
    return ~np.convolve(other, np.ones(9, int), mode="same").astype(bool)


def _photo_crop(im, side: int, test: bool, rng: np.random.Generator) -> np.ndarray:
    free = np.convolve(~_photo_columns(im.width, test), np.ones(side, int), mode="valid") == 0
    while True:
        x, y = int(rng.choice(np.flatnonzero(free))), int(rng.integers(im.height - side + 1))
        # crop before resize: Pillow's resize(box=...) would read past the box
        crop = np.asarray(im.crop((x, y, x + side, y + side)).resize((32, 32), 3))
        if crop.std() >= 4:
            return crop


def folder(root: Path, size: int | None, lazy: bool = False) -> tuple:
    """Read root/train/<class>/* with root/test or root/val, or root/<class>/* with every fifth file held out.

    Images that lie in no folder of a class have no labels: root/train/*, or root/*. What was taken and left is said.
    """
    held_out = next((root / d for d in ("test", "val") if (root / d).is_dir()), None)
    if (root / "train").is_dir():
        if held_out is None:
            raise FileNotFoundError(f"{root} has a train folder but neither test nor val beside it")
        places = (root / "train", held_out)
    else:
        places = (root, root)
    listed = [_listing(place) for place in dict.fromkeys(places)]
    first, last = listed[0], listed[-1]
    classes = list(first.files)
    if not classes and not first.loose:
        said = f"; it has {first.left_words()}" if first.left else ""
        raise FileNotFoundError(f"{places[0]} has neither class folders nor images{said}")
    if len(wrong := [name for name in classes if name.lower() in PART_NAMES]) > 1:  # one can be a class, as of trains
        found = " and ".join(wrong)
        raise ValueError(
            f"{found} in {places[0]} are no classes, by their names: parts are called train, and test or val"
        )
    if len(classes) == 1 and first.nested == len(first.files[classes[0]]):
        inner = places[0] / classes[0]
        raise ValueError(f"all images lie in folders inside {inner}: if these are the classes, the root is {inner}")
    unknown = set(last.files) - set(classes)
    if unknown:
        raise ValueError(f"{held_out} has the class {min(unknown)}, which {root / 'train'} has not")
    out, counts, notes = [], [], Counter()
    for part, (place, found) in enumerate(zip(places, (first, last), strict=True)):
        chosen = (lambda k: (k % 5 == 4) == part) if place == root else (lambda k: True)  # noqa: B023  used at once
        groups = [found.files.get(name, []) for name in classes] if classes else [found.loose]
        groups = [[file for k, file in enumerate(group) if chosen(k)] for group in groups]
        counts.append([len(group) for group in groups])
        paths = Paths(file for group in groups for file in group)
        images = Files(paths, size) if lazy else decoded(zip(paths, paths, strict=True), size, notes)
        out += [images, np.repeat(np.arange(len(classes)), counts[-1]) if classes else None]
    return *out, classes, _said(root, classes, counts, listed, notes, places)


class _Listing(NamedTuple):
    """The images in a folder, and what else is in it."""

    files: dict[str, list[str]]  # of each class that has any, those in folders inside it, too
    loose: list[str]  # in no class's folder
    nested: int  # images in folders inside a class's
    left: Counter[str]

    def left_words(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.left.items())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or an operating system's own.

    >>> is_hidden(".DS_Store"), is_hidden("__MACOSX"), is_hidden("cats")
    (True, True, False)
    """
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _listing(path: Path) -> _Listing:
    """List the images of a folder by class; hidden files and folders are left, and counted with all else."""
    left, files, nested = Counter(), {}, 0

    def visible(names: list[str], *, folders: bool) -> list[str]:
        hidden = [name for name in names if is_hidden(name)]
        left["hidden folders" if folders else "hidden files"] += len(hidden)
        return sorted(set(names) - set(hidden))

    def images(here: str, names: list[str]) -> list[str]:
        found = []
        for name in visible(names, folders=False):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                found.append(os.path.join(here, name))
            else:
                left[f"files of another kind ({suffix or 'without a suffix'})"] += 1
        return found

    entries = list(os.scandir(path)) if path.is_dir() else []
    loose = images(str(path), [entry.name for entry in entries if not entry.is_dir()])
    for name in visible([entry.name for entry in entries if entry.is_dir()], folders=True):
        found = []
        for here, inside, names in os.walk(path / name):
            linked = [folder for folder in inside if os.path.islink(os.path.join(here, folder))]
            left["links to folders"] += len(linked)
            inside[:] = visible([folder for folder in inside if folder not in linked], folders=True)
            own = images(here, names)
            nested += len(own) * (here != str(path / name))
            found += own
        if found:
            files[name] = found
        else:
            left["folders without images"] += 1
    if files and loose:
        left["images in no class's folder"] += len(loose)
    return _Listing(files, loose, nested, +left)


def _said(
    root: Path,
    classes: list[str],
    counts: list[list[int]],
    listed: list[_Listing],
    notes: Counter[str],
    places: tuple[Path, Path],
) -> str:
    """What was taken of a folder, and what was left."""
    train, test = map(sum, counts)
    said = f"{root}: {train} training and {test} test images"
    if places[0] == places[1]:
        said += " (every fifth of a class, by name)" if classes else " (every fifth, by name)"
    if classes:
        each = [f"{name} {a} + {b}" for name, a, b in zip(classes, *counts, strict=True)]
        shown = each if len(each) <= 12 else [*each[:5], "…", each[-1]]
        said += f" of {len(classes)} classes: {', '.join(shown)}"
    if nested := sum(found.nested for found in listed):
        said += f"; {nested} of them lie in folders inside a class's"
    said += "".join(f"; {count} {note}" for note, count in notes.items())
    left = sum((found.left for found in listed), Counter())
    if places[0] != root:
        others = [d.name for d in root.iterdir() if d.is_dir() and d not in places and not is_hidden(d.name)]
        left.update(
            {f"other folder{'s' * (len(others) > 1)} ({', '.join(sorted(others))})": len(others)} if others else {}
        )
    return said + (f"; left: {', '.join(f'{count} {what}' for what, count in left.items())}" if left else "")


def npz(root: Path, size: int | None) -> tuple:
    """Read one .npz of encoded images end to end (`data`, `offsets`), `labels`, `split` (0 is training), `names`."""
    names = ("data", "offsets", "labels", "split", "names")
    arrays = read_npz(root, names)
    for name in names[:-1]:
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iub":
            raise ValueError(f"{root} is damaged: {name} must be whole numbers (n,), not {arrays[name].dtype}")
    data, offsets, labels, split, classes = arrays.values()
    if (
        not (len(labels) == len(split) == len(offsets) - 1)
        or data.dtype != np.uint8
        or offsets[0] < 0
        or (np.diff(offsets.astype(np.int64)) <= 0).any()
        or offsets[-1] > len(data)
        or classes.ndim != 1
    ):
        raise ValueError(f"{root} is damaged: offsets, labels, split and data do not fit together")
    out, notes = [], Counter()
    for part in (np.flatnonzero(split == 0), np.flatnonzero(split != 0)):
        encoded = ((f"image {i} of {root}", BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())) for i in part)
        out += [decoded(encoded, size, notes), labels[part].astype(np.int64)]
    said = "".join(f"; {count} {note}" for note, count in notes.items())
    parts = f"{len(out[0])} training and {len(out[2])} test images"
    return *out, classes, f"{root}: {parts} of {len(classes)} classes{said}"


def cifar10(root: Path, size: int | None) -> tuple:
    """Read the original binary version: data_batch_1.bin to _5.bin, test_batch.bin; 1 + 3,072 bytes per image."""
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar(root, "cifar10", "cifar-10-batches-bin", train, "test_batch.bin", "batches.meta.txt")


def cifar100(root: Path, size: int | None) -> tuple:
    """Read the original binary version with the 100 fine labels: train.bin, test.bin; 2 + 3,072 bytes per image."""
    return _cifar(root, "cifar100", "cifar-100-binary", ["train.bin"], "test.bin", "fine_label_names.txt")


def _cifar(root: Path, name: str, directory: str, train: list[str], test: str, names: str) -> tuple:
    root = root / directory if (root / directory).is_dir() else root
    version = "cifar-10-binary.tar.gz" if name == "cifar10" else "cifar-100-binary.tar.gz"
    where = f"unpack {version} from {PAGES[name]}"
    for f in (*train, test, names):
        if not (root / f).is_file():
            pickled = [
                p for p in ("data_batch_1", "train", "cifar-10-batches-py", "cifar-100-python") if (root / p).exists()
            ]
            kind = " holds the pickled python version, which is never read:" if pickled else f" has no {f}:"
            raise FileNotFoundError(f"{root}{kind} {where}")
    head = 1 if name == "cifar10" else 2  # CIFAR-100 puts the coarse label before the fine one

    def rows(files: list[str], count: int) -> tuple[np.ndarray, np.ndarray]:
        blocks = []
        for f in files:
            raw = np.fromfile(root / f, np.uint8)
            if raw.size != count // len(files) * (head + 3072):
                raise ValueError(f"{root / f} is damaged: {raw.size} bytes, not {count // len(files) * (head + 3072)}")
            blocks.append(raw.reshape(-1, head + 3072))
        block = np.concatenate(blocks)
        return block[:, head:].reshape(-1, 3, 32, 32), block[:, head - 1].astype(np.int64)

    return *rows(train, 50_000), *rows([test], 10_000), (root / names).read_text(encoding="utf-8").split()


def mnist(root: Path, size: int | None) -> tuple:
    """Read the original idx files: train-images-idx3-ubyte, train-labels-idx1-ubyte, the two t10k ones; .gz or not."""
    return *_idx_set(root, "mnist"), [str(i) for i in range(10)]


def fashion_mnist(root: Path, size: int | None) -> tuple:
    """Read the original idx files of Fashion-MNIST, named as MNIST's, .gz or not."""
    return *_idx_set(root, "fashion_mnist"), FASHION


def _idx_set(root: Path, name: str) -> list[np.ndarray]:
    out = []
    for part in ("train", "t10k"):
        images = _idx(root, f"{part}-images-idx3-ubyte", name)[:, None]  # (N, 1, 28, 28)
        labels = _idx(root, f"{part}-labels-idx1-ubyte", name).astype(np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{root} is damaged: {len(images)} {part} images but {len(labels)} labels")
        out += [images, labels]
    return out


def _idx(root: Path, file: str, name: str) -> np.ndarray:
    """Read an idx file: 0, 0, type (8 is uint8), number of axes, big-endian lengths, then the bytes."""
    path = next((p for p in (root / file, root / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{root} has neither {file} nor {file}.gz{_page(name)}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        axes = int(file.split("idx")[1][0])
        magic, *shape = struct.unpack(f">{1 + axes}I", raw[: 4 * (1 + axes)])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    body = np.frombuffer(raw, np.uint8, offset=4 * (1 + axes))
    if magic != 0x0800 + axes or body.size != np.prod(shape):
        raise ValueError(f"{path} is damaged: its header does not fit its {len(raw)} bytes")
    return body.reshape(shape).copy()  # frombuffer's own array is read-only


def _resized(x: UInt8[Tensor, "n c h w"], size: int | None) -> UInt8[Tensor, "n c s t"]:
    """Resize the short side to `size`, then take the center square."""
    if size is None or x.shape[2:] == (size, size):
        return x
    h, w = x.shape[2:]
    hw = [max(size, round(side * size / min(h, w))) for side in (h, w)]
    small = [F.interpolate(part.float(), hw, mode="bicubic", antialias=True) for part in x.split(1024)]
    top, left = (hw[0] - size) // 2, (hw[1] - size) // 2
    return torch.cat([s[:, :, top : top + size, left : left + size].round().clamp(0, 255).byte() for s in small])


def _page(name: str) -> str:
    return f" (official page: {PAGES[name]})" if name in PAGES else ""


DATASETS = {f.__name__: f for f in (digits, photos, folder, npz, cifar10, cifar100, mnist, fashion_mnist)}
