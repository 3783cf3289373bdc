"""Multi-crop on the whole batch against the usual pipeline, one Pillow image after another; same operations and odds.

    python benchmarks/augment.py

Prints CPU microseconds per crop on one thread and the ratio, from interleaved rounds of one process (median of each).
"""

import math
import random
import time
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from simdino.augment import multi_crop
from simdino.config import Crops

CASES = ((32, 32), (32, 16), (96, 96), (96, 32))  # image side, crop side


def pillow_view(image: np.ndarray, size: int, crops: Crops, rng: random.Random) -> torch.Tensor:
    """One view of one (h, w, 3) uint8 image -> (3, size, size), as torchvision's Pillow transforms do it."""
    im = Image.fromarray(image)
    im = im.crop(_box(im.width, im.height, crops.global_scale, rng)).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5 * crops.flip:
        im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < crops.jitter_p:
        for operation in rng.sample((_brightness, _contrast, _saturation, _hue), 4):
            im = operation(im, crops.jitter, rng)
    if rng.random() < crops.gray_p:
        im = im.convert("L").convert("RGB")
    if rng.random() < crops.blur_p:
        im = im.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < crops.solarize_p:
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


def main(images: int = 128, rounds: int = 7) -> None:
    torch.set_num_threads(1)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    print(f"{images} images, one thread, CPU time per crop, median of {rounds} interleaved rounds")
    print(f"{'image -> crop':>14} {'Pillow':>10} {'ours':>10} {'ratio':>7}")
    for side, size in CASES:
        # smooth pictures: noise would be kinder to nobody, and photographs are smooth
        x = torch.nn.functional.interpolate(torch.rand(images, 3, 8, 8), (side, side), mode="bicubic").clamp_(0, 1)
        x = (255 * x).byte()
        arrays = x.permute(0, 2, 3, 1).contiguous().numpy()
        crops = Crops(global_size=size, global_crops=2)
        times: dict[str, list[float]] = {"pillow": [], "ours": []}
        for _ in range(rounds + 1):
            start = time.thread_time()
            torch.stack([pillow_view(a, size, crops, rng) for a in arrays for _ in range(2)])
            middle = time.thread_time()
            multi_crop(x, crops, generator)
            times["pillow"].append(middle - start)
            times["ours"].append(time.thread_time() - middle)
        pillow, ours = (1e6 * median(t[1:]) / (2 * images) for t in times.values())  # the first round warms up
        print(f"{side:>8} -> {size:<2} {pillow:>8.0f}us {ours:>8.0f}us {pillow / ours:>6.1f}x")


if __name__ == "__main__":
    main()
