"""Named image sets as uint8 tensors on the device. Nothing is ever downloaded, unpickled or cached."""

import functools
import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

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
    by name, is held out; in either the images may lie in no folders of classes, and have no labels then. `cifar10` and
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
    *arrays, classes = DATASETS[name](root, size, *[True] * lazy)
    parts = []
    for part, images, labels in (("training", *arrays[:2]), ("test", *arrays[2:])):
        if not len(images):
            raise ValueError(f"{name} at {root} has no {part} images")
        if labels is not None:
            labels = torch.as_tensor(labels).long().to(device)
            if labels.min() < 0 or labels.max() >= len(classes):
                raise ValueError(f"{name} at {root} has {part} labels outside 0..{len(classes) - 1}")
        parts += [images if lazy else _resized(torch.as_tensor(images), size).to(device), labels]
    return Dataset(*parts, tuple(map(str, classes)))


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

    Images that lie in no folder of a class have no labels: root/train/*, or root/*.
    """
    held_out = next((root / d for d in ("test", "val") if (root / d).is_dir()), None)
    if (root / "train").is_dir():
        if held_out is None:
            raise FileNotFoundError(f"{root} has a train folder but neither test nor val beside it")
        classes = _subfolders(root / "train")
        unknown = set(_subfolders(held_out)) - set(classes)
        if unknown:
            raise ValueError(f"{held_out} has the class {min(unknown)}, which {root / 'train'} has not")
        parts = [(root / "train", lambda k: True), (held_out, lambda k: True)]
    else:
        classes = _subfolders(root)
        parts = [(root, lambda k: k % 5 != 4), (root, lambda k: k % 5 == 4)]
    out = []
    for path, chosen in parts:
        paths, labels = _labeled_paths(path, classes, chosen)
        out += [Files(paths, size) if lazy else decoded(zip(paths, paths, strict=True), size), labels]
    return *out, classes


def _labeled_paths(path: Path, classes: list[str], chosen: Callable[[int], bool]) -> tuple[Paths, np.ndarray | None]:
    """The image files of a folder, without those whose place in their class is not chosen; their classes, if any."""
    counts = []

    def files() -> Iterator[str]:
        for name in classes or [""]:
            some = [file for k, file in enumerate(_image_files(path / name)) if chosen(k)]
            counts.append(len(some))
            yield from some

    paths = Paths(files())
    return paths, np.repeat(np.arange(len(classes)), counts) if classes else None


def _subfolders(path: Path) -> list[str]:
    """The class folders in a folder; none where it has images instead."""
    names = sorted(p.name for p in path.iterdir() if p.is_dir())
    if not names and not _image_files(path):
        raise FileNotFoundError(f"{path} has neither class folders nor images")
    return names


def _image_files(path: Path) -> list[str]:
    names = sorted(os.listdir(path)) if path.is_dir() else []
    return [os.path.join(path, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]


def npz(root: Path, size: int | None) -> tuple:
    """Read one .npz of encoded images end to end (`data`, `offsets`), `labels`, `split` (0 is training), `names`."""
    try:
        with np.load(root, allow_pickle=False) as z:
            missing = {"data", "offsets", "labels", "split", "names"} - set(z.files)
            if missing:
                raise ValueError(f"it has no array {', '.join(sorted(missing))}")
            data, offsets, labels, split, names = (z[k] for k in ("data", "offsets", "labels", "split", "names"))
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zlib.error, BadZipFile) as error:
        raise ValueError(f"{root} is not an .npz of images: {error}") from error
    if not (len(labels) == len(split) == len(offsets) - 1) or (np.diff(offsets) <= 0).any() or offsets[-1] > len(data):
        raise ValueError(f"{root} is damaged: offsets, labels, split and data do not fit together")
    out = []
    for part in (np.flatnonzero(split == 0), np.flatnonzero(split != 0)):
        encoded = ((f"image {i} of {root}", BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())) for i in part)
        out += [decoded(encoded, size), labels[part].astype(np.int64)]
    return *out, names


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

    return *rows(train, 50_000), *rows([test], 10_000), (root / names).read_text().split()


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
