"""Encoded images: decoded all at once, when they are asked for, or ahead by processes while training."""

import math
import os
import signal
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

TURNED = "turned upright by EXIF"  # what is said of such images


class Paths:
    """The paths of many files in one array of bytes.

    Processes that are forked to decode files share it. Of a list of strings each would come to have a copy of its own,
    as counting references to a string writes beside it.

    Args:
        paths: of the files, as strings or `Path`s; they are taken one at a time.

    >>> paths = Paths(["cats/1.png", "dogs/1.png"])
    >>> len(paths), paths[1]
    (2, 'dogs/1.png')
    """

    def __init__(self, paths: Iterable[str | os.PathLike]):
        text, ends = bytearray(), array("q", [0])
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        self.text, self.ends = np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int | Int64[Tensor, ""]) -> str:
        i = range(len(self))[i]
        return os.fsdecode(self.text[self.ends[i] : self.ends[i + 1]].tobytes())


class Files:
    """Image files that behave as the tensor of all their images, uint8 (N, 3, size, size), decoded when indexed.

    Args:
        files: their paths.
        size: side in pixels (short side resized, then the center square).
    """

    def __init__(self, files: Paths | Iterable[str | os.PathLike], size: int):
        self.files, self.size = files if isinstance(files, Paths) else Paths(files), size
        self.shape = (len(self.files), 3, size, size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Sequence[int] | Tensor | slice) -> UInt8[Tensor, "b 3 s s"]:
        files = [self.files[i] for i in (range(len(self))[index] if isinstance(index, slice) else index)]
        return torch.as_tensor(decoded(zip(files, files, strict=True), self.size))

    __getitems__ = __getitem__  # how a DataLoader asks for a batch at once


def batches(
    images: Files, order: Iterable[Int64[Tensor, " b"]], *, workers: int, device: str | torch.device
) -> Iterator[UInt8[Tensor, "b c h w"]]:
    """Yield the images of one batch after another; who leaves before the last closes it, which ends the processes.

    Args:
        images: all of them.
        order: the indices of each batch (b,).
        workers: processes that decode files ahead, each on one core; `workers_needed` says how many.
        device: where the batches are needed.
    """
    options = {"num_workers": workers, "collate_fn": _same, "pin_memory": torch.device(device).type == "cuda"}
    options |= {"worker_init_fn": _deaf} if workers else {}
    for batch in DataLoader(images, batch_sampler=(index.tolist() for index in order), **options):
        yield batch.to(device, non_blocking=True)


def _same(batch: Tensor) -> Tensor:
    return batch


def _deaf(_: int) -> None:
    """Let a process that decodes ignore what stops the training one, which ends it; Ctrl-C is sent to both."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def workers_needed(images: Files, rate: float, *, sample: int = 32) -> int:
    """Measure how many processes decode a wanted number of images a second: its ratio to what one process does.

    Some images are read and decoded here, one after another. It takes about a third of a second, more where a disk is
    slow, and says nothing of how many cores there are: with fewer than it says, training waits for images.

    Args:
        images: what is to be decoded.
        rate: images/s that are wanted, say of all devices that this host feeds.
        sample: how many images are measured, spread evenly over all.

    Raises:
        ValueError: an image that cannot be read, by its name, or a rate that is not positive.
    """
    if not rate > 0:
        raise ValueError(f"rate must be a positive number of images/s, not {rate}")
    chosen = np.linspace(0, len(images) - 1, min(sample, len(images))).round().astype(int).tolist()
    images[chosen[:1]]  # the first one loads the reader
    start = time.perf_counter()
    for i in chosen:
        images[[i]]
    return math.ceil(rate * (time.perf_counter() - start) / len(chosen))


def decoded(encoded: Iterable[tuple[str, object]], size: int | None, notes: Counter[str] | None = None) -> np.ndarray:
    """Decode images on a few threads; on one in a process that is itself one of several.

    They are turned upright where EXIF says how. 16 bits are brought to 8, transparency is left. Several frames, and
    values whose range nobody says, are refused.

    Args:
        encoded: of each image a name, for messages, and a path or file object.
        size: side in pixels (short side resized, then the center square); None keeps the images' own.
        notes: counts what was done to images that another reader may not do.

    Returns:
        All images, uint8 (N, 3, h, w).

    Raises:
        ValueError: what is no readable image, by its name, or images of different sizes without `size`.
    """
    require("PIL", "pillow", "reading image files")
    from PIL import Image, ImageOps

    def decode(item: tuple[str, object]) -> tuple[np.ndarray, list[str]]:
        try:
            with Image.open(item[1]) as im:
                im, said = _rgb(im)
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            raise ValueError(f"{item[0]} is not a readable image: {error}") from error
        if size is not None and im.size != (size, size):
            im = ImageOps.fit(im, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(im), said

    encoded = list(encoded)
    with ThreadPoolExecutor(1 if get_worker_info() else None) as pool:
        out = list(pool.map(decode, encoded))
    if notes is not None:
        notes.update(note for _, said in out for note in said)
    out = [image for image, _ in out]
    for (name, _), image in zip(encoded, out, strict=True):
        if image.shape != out[0].shape:
            h, w = image.shape[:2]
            raise ValueError(f"size is needed, as the images differ: {encoded[0][0]} and {name} ({w}x{h})")
    return np.stack(out).transpose(0, 3, 1, 2).copy() if out else np.empty((0, 3, 1, 1), np.uint8)


def _rgb(im: "PIL.Image.Image") -> tuple["PIL.Image.Image", list[str]]:  # noqa: F821
    """An open image in 8-bit RGB and upright, and what was done to it."""
    from PIL import Image, ImageOps

    said = []
    if any(";16" in str(tile) for tile in getattr(im, "tile", ())) and not im.mode.startswith("I"):
        said.append("with 16 bits, brought to 8")  # by Pillow
    if getattr(im, "n_frames", 1) > 1 and im.format != "MPO":  # whose others are previews, or for the other eye
        raise ValueError(f"it has {im.n_frames} frames or pages, and one is expected: save each as an image of its own")
    if im.getexif().get(0x0112) in range(2, 9):  # the orientation; 1 is upright, and others mean nothing
        im, said = ImageOps.exif_transpose(im), [*said, TURNED]
    if im.mode.startswith("I;16") or (im.mode == "I" and im.format in ("PNG", "PPM")):
        levels = np.asarray(im).astype(np.float64) / 257
        im, said = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)), [*said, "with 16 bits, brought to 8"]
    elif im.mode in ("I", "F"):
        kind = "32-bit" if im.mode == "I" else "real"
        raise ValueError(f"its values are {kind} numbers whose range nobody says: save it with 8 bits")
    if im.has_transparency_data:
        said.append("with transparency, which is left")
        im = im.convert("RGBA")
    return im.convert("RGB"), said


def require(module: str, package: str, purpose: str) -> None:
    """Refuse, in one sentence, what an optional package is needed for and absent."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"{purpose} needs {package}: pip install -e '.[train]'")
