"""Multi-crop on the whole batch against the usual pipeline, one Pillow image after another; same operations and odds.

    python benchmarks/augment.py

Prints CPU microseconds per crop on one thread and the ratios, from interleaved rounds of one process (median of each).
The peers: a lean pipeline on bare Pillow, written below; and torchvision's transforms, which most people use and which
spend about as much again on drawing parameters and checking types (where torchvision is installed; `-` elsewhere).
"""

import math
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from simdino.augment import multi_crop
from simdino.config import Crops

# torchvision's published wheels are built for CUDA: beside a CPU torch they import only if two operators, which no
# transform uses, are known by name.
STAND_IN = torch.library.Library("torchvision", "FRAGMENT")
if not torch.cuda.is_available():
    STAND_IN.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    STAND_IN.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

CASES = ((32, 32), (32, 16), (96, 96), (96, 32))  # image side, crop side
PEERS = ("Pillow", "torchvision")


def pillow_view(image: np.ndarray, size: int, crops: Crops, rng: random.Random) -> torch.Tensor:
    """Make one view (3, size, size) of one uint8 image (h, w, 3), as torchvision's Pillow transforms do it."""
    im = Image.fromarray(image)
    im = im.crop(_box(im.width, im.height, crops.global_scale, rng)).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5 * crops.flip:
        im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < crops.jitter_p:
        for operation in rng.sample((_brightness, _contrast, _saturation, _hue), 4):
            im = operation(im, crops.jitter, rng)
    if rng.random() < crops.gray_p:
        im = im.convert("L").convert("RGB")
    if rng.random() < crops.blur_p[0]:
        im = im.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < crops.solarize_p[0]:
        im = ImageOps.solarize(im, 128)
    x = torch.from_numpy(np.array(im)).permute(2, 0, 1).float().div_(255)
    return x.sub_(torch.tensor(crops.mean).view(3, 1, 1)).div_(torch.tensor(crops.std).view(3, 1, 1))


def _box(w: int, h: int, scale: tuple[float, float], rng: random.Random) -> tuple[int, int, int, int]:
    for _ in range(10):
        area, aspect = w * h * rng.uniform(*scale), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        cw, ch = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < cw <= w and 0 < ch <= h:
            x, y = rng.randint(0, w - cw), rng.randint(0, h - ch)
            return x, y, x + cw, y + ch
    return 0, 0, w, h  # square images: the central fallback is the image


def _brightness(im: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(im).enhance(rng.uniform(max(0, 1 - 0.4 * strength), 1 + 0.4 * strength))


def _contrast(im: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageEnhance.Contrast(im).enhance(rng.uniform(max(0, 1 - 0.4 * strength), 1 + 0.4 * strength))


def _saturation(im: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageEnhance.Color(im).enhance(rng.uniform(max(0, 1 - 0.2 * strength), 1 + 0.2 * strength))


def _hue(im: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    h, s, v = im.convert("HSV").split()
    shift = round(rng.uniform(-0.1 * strength, 0.1 * strength) * 255)
    h = Image.fromarray((np.array(h, np.int16) + shift).astype(np.uint8))  # wraps around, as hue does
    return Image.merge("HSV", (h, s, v)).convert("RGB")


def torchvision_view(size: int, crops: Crops) -> Callable[[np.ndarray], torch.Tensor] | None:
    """Build the same of torchvision's Pillow transforms; None where torchvision is absent."""
    try:
        from torchvision import transforms as t
    except ImportError:
        return None
    jitter = t.ColorJitter(0.4 * crops.jitter, 0.4 * crops.jitter, 0.2 * crops.jitter, 0.1 * crops.jitter)
    blur = t.Lambda(lambda im: im.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))))
    return t.Compose(
        [
            Image.fromarray,
            t.RandomResizedCrop(size, crops.global_scale, interpolation=t.InterpolationMode.BICUBIC),
            t.RandomHorizontalFlip(0.5 * crops.flip),
            t.RandomApply([jitter], crops.jitter_p),
            t.RandomGrayscale(crops.gray_p),
            t.RandomApply([blur], crops.blur_p[0]),
            t.RandomSolarize(128, crops.solarize_p[0]),
            t.ToTensor(),
            t.Normalize(crops.mean, crops.std),
        ]
    )


def main(images: int = 128, rounds: int = 7) -> None:
    torch.set_num_threads(1)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    print(f"{images} images, 2 crops each, one thread: CPU time per crop, median of {rounds} interleaved rounds")
    print(f"{'image -> crop':>14} {'ours':>9} {'Pillow':>18} {'torchvision':>18}")
    for side, size in CASES:
        x = torch.nn.functional.interpolate(
            torch.rand(images, 3, 8, 8), (side, side), mode="bicubic"
        )  # smooth pictures
        x = (255 * x.clamp_(0, 1)).byte()
        arrays = [a for a in x.permute(0, 2, 3, 1).contiguous().numpy() for _ in range(2)]
        crops = Crops(global_size=size, global_crops=2)
        ways = {
            "ours": partial(multi_crop, x, crops, generator),
            "Pillow": partial(_one_by_one, arrays, partial(pillow_view, size=size, crops=crops, rng=rng)),
        }
        if view := torchvision_view(size, crops):
            ways["torchvision"] = partial(_one_by_one, arrays, view)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds + 1):
            for name, way in ways.items():
                start = time.thread_time()
                way()
                times[name].append(time.thread_time() - start)
        cost = {name: 1e6 * median(t[1:]) / (2 * images) for name, t in times.items()}  # the first round warms up
        peers = [f"{cost[p]:>8.0f}us {cost[p] / cost['ours']:>6.1f}x" if p in cost else f"{'-':>17}" for p in PEERS]
        print(f"{side:>8} -> {size:<3}{cost['ours']:>8.0f}us  {'  '.join(peers)}")


def _one_by_one(arrays: list[np.ndarray], view: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
    return torch.stack([view(a) for a in arrays])


if __name__ == "__main__":
    main()
