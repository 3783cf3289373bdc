"""Encoded images: decoded all at once, when they are asked for, or ahead by processes while training."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader


class Files:
    """Image files that behave as the tensor of all their images, uint8 (N, 3, size, size), decoded when indexed."""

    def __init__(self, files: Sequence[Path], size: int):
        self.files, self.size, self.shape = list(files), size, (len(files), 3, size, size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Sequence[int] | Tensor | slice) -> UInt8[Tensor, "b 3 s s"]:
        files = self.files[index] if isinstance(index, slice) else [self.files[i] for i in index]
        return torch.as_tensor(decoded(((str(f), f) for f in files), self.size))

    __getitems__ = __getitem__  # how a DataLoader asks for a batch at once


def batches(
    images: UInt8[Tensor, "n c h w"] | Files,
    order: Iterable[Int64[Tensor, " b"]],
    *,
    workers: int,
    device: str | torch.device,
) -> Iterator[UInt8[Tensor, "b c h w"]]:
    """Yield the images of one batch after another.

    Args:
        images: all of them, as a tensor or as files.
        order: the indices of each batch (b,).
        workers: processes that decode files ahead.
        device: where the batches are needed.
    """
    if isinstance(images, Tensor):
        yield from (images[index] for index in order)
        return
    options = {"num_workers": workers, "collate_fn": _same, "pin_memory": torch.device(device).type == "cuda"}
    for batch in DataLoader(images, batch_sampler=(index.tolist() for index in order), **options):
        yield batch.to(device, non_blocking=True)


def _same(batch: Tensor) -> Tensor:
    return batch


def decoded(encoded: Iterable[tuple[str, object]], size: int | None) -> np.ndarray:
    """Decode images on a few threads.

    Args:
        encoded: of each image a name, for messages, and a path or file object.
        size: side in pixels (short side resized, then the center square); None keeps the images' own.

    Returns:
        All images, uint8 (N, 3, h, w).

    Raises:
        ValueError: what is no readable image, by its name, or images of different sizes without `size`.
    """
    require("PIL", "pillow", "reading image files")
    from PIL import Image, ImageOps

    def decode(item: tuple[str, object]) -> np.ndarray:
        try:
            with Image.open(item[1]) as im:
                im = im.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{item[0]} is not a readable image: {error}") from error
        if size is not None and im.size != (size, size):
            im = ImageOps.fit(im, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(im)

    encoded = list(encoded)
    with ThreadPoolExecutor() as pool:
        out = list(pool.map(decode, encoded))
    for (name, _), image in zip(encoded, out, strict=True):
        if image.shape != out[0].shape:
            h, w = image.shape[:2]
            raise ValueError(f"size is needed, as the images differ: {encoded[0][0]} and {name} ({w}x{h})")
    return np.stack(out).transpose(0, 3, 1, 2).copy() if out else np.empty((0, 3, 1, 1), np.uint8)


def require(module: str, package: str, purpose: str) -> None:
    """Refuse, in one sentence, what an optional package is needed for and absent."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"{purpose} needs {package}: pip install -e '.[train]'")
