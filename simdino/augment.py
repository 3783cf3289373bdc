"""Multi-crop of whole batches on the images' device: each view of each image draws its own parameters."""

import math
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from simdino.config import Crops

T = TypeVar("T")
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's convert("L")
TAPS = 4  # a blur kernel reaches 4 pixels to each side: torchvision's size 9
TABLE_BYTES = 2**25  # the most that the interpolation matrices of one pair of sizes may take, else they are computed
CHUNK_PIXELS = 2**16  # worked on together on a CPU, so that all passes stay in its cache


def multi_crop(
    images: UInt8[Tensor, "n c h w"], crops: Crops, generator: torch.Generator, *, part: tuple[int, int] = (0, 1)
) -> tuple[Float[Tensor, "g n c s s"], Float[Tensor, "l n c t t"]]:
    """Draw random global and local views of each image, as DINO's multi-crop.

    In order, as in the official code: a crop of random area and aspect (log-uniform in 3/4..4/3), bicubic antialiased
    resize, flip; with probability jitter_p brightness, contrast, saturation and hue; gray; Gaussian blur, σ uniform in
    0.1..2 px; solarization of global views above 128/255; mean and std (averaged to one value for gray images). One
    difference: the order of the four color operations is drawn once for a view, where torchvision draws it for each
    image. Gray images (c = 1) skip saturation, hue and gray. Equal generators give equal views; one on the CPU does so
    for every device.

    Args:
        images: uint8 (n, c, h, w), c 1 or 3.
        crops: how many views, of which sizes, how augmented.
        generator: of all the randomness.
        part: (k, m): the images are the k-th of m equal parts of a batch, and get the views that they get in the whole.

    Returns:
        Global views (g, n, c, s, s) and local views (l, n, c, t, t), float32, on the images' device.

    Raises:
        ValueError: images of another type or shape; mean and std for another number of channels.

    Source: Caron et al. 2021 (arXiv 2104.14294), appendix; torchvision's definitions of each operation.
    """
    _check(images)
    draws = draw_views(images.shape, crops, generator, device=images.device, part=part)
    return make_views(images, crops, moved(draws, images.device))


class ViewDraw(NamedTuple):
    """What one view of some images is made with."""

    parameters: Tensor  # (12, m): the fields of a `Draw`, one column for each image
    gray: Tensor  # indices (k,) of the images that turn gray
    blurred: Tensor
    solarized: Tensor
    order: tuple[int, ...]  # of the color operations


Draws = list[list[list[ViewDraw]]]  # of global and local views: of each view, one draw for each chunk of images


def draw_views(
    shape: tuple[int, int, int, int],
    crops: Crops,
    generator: torch.Generator,
    *,
    device: torch.device | str,
    part: tuple[int, int] = (0, 1),
) -> Draws:
    """Draw what `make_views` makes the views of some images with, on the generator's device.

    Args:
        shape: of the images, (n, c, h, w).
        crops: how many views, of which sizes, how augmented.
        generator: of all the randomness.
        device: where views are made; on a CPU in chunks that its cache holds.
        part: as in `multi_crop`.
    """
    blur, solarized = crops.blur_p, crops.solarize_p
    kinds = (  # the last: the odds of blur and solarization, of the first view of a kind and of the other ones
        (crops.global_crops, crops.global_scale, ((blur[0], solarized[0]), (blur[1], solarized[1]))),
        (crops.local_crops, crops.local_scale, 2 * ((blur[2], solarized[2]),)),
    )
    n, _, h, w = shape
    k, parts = part
    chunk = max(CHUNK_PIXELS // (h * w), 16) if torch.device(device).type == "cpu" else max(n, 1)

    def of_view(scale: tuple[float, float], odds: tuple[float, float]) -> list[ViewDraw]:
        draws = torch.stack(random_draw(n * parts, (h, w), crops, scale, odds, generator))
        draws = draws[:, n * k : n * (k + 1)]  # (12, n)
        order = torch.randperm(4, generator=generator, device=generator.device).tolist() if crops.jitter > 0 else []
        return [_view_draw(some, tuple(order)) for some in draws.split(chunk, 1)]

    return [[of_view(scale, odds[i > 0]) for i in range(views)] for views, scale, odds in kinds]


def _view_draw(draws: Tensor, order: tuple[int, ...]) -> ViewDraw:
    draw = Draw(*draws)
    return ViewDraw(draws, *(flag.nonzero()[:, 0] for flag in (draw.gray, draw.sigma, draw.solarize)), order)


def make_views(
    images: UInt8[Tensor, "n c h w"], crops: Crops, draws: Draws
) -> tuple[Float[Tensor, "g n c s s"], Float[Tensor, "l n c t t"]]:
    """Make the views that were drawn for some images; see `multi_crop`.

    Args:
        images: uint8 (n, c, h, w), on the device of the draws.
        crops: as for the draws.
        draws: what `draw_views` drew.
    """
    n, c = images.shape[:2]
    made = []
    for views, size in zip(draws, (crops.global_size, crops.local_size), strict=True):
        out = torch.empty(len(views), n, c, size, size, device=images.device)
        for view, chunks in zip(out, views, strict=True):
            sizes = [chunk.parameters.shape[1] for chunk in chunks]
            for into, some, draw in zip(view.split(sizes), images.split(sizes), chunks, strict=True):
                into.copy_(_view(some, draw, size))
        made.append(_normalized(out, crops))
    return made[0], made[1]


def moved(tree: T, device: torch.device | str) -> T:
    """Copy the host's tensors of nested tuples, lists and dictionaries to a device, all in one copy.

    They are packed into one buffer, pinned for a GPU, so that nothing waits for the copy.

    >>> moved({"a": torch.ones(2), "b": [3]}, "cpu")
    {'a': tensor([1., 1.]), 'b': [3]}
    """
    if torch.device(device).type == "cpu":
        return tree
    leaves, spec = tree_flatten(tree)
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    flat = [leaves[i].contiguous().view(-1).view(torch.uint8) for i in at]
    sizes = [len(x) + -len(x) % 8 for x in flat]  # each tensor begins at a multiple of 8 bytes
    packed = torch.cat([F.pad(x, (0, size - len(x))) for x, size in zip(flat, sizes, strict=True)])
    packed = packed.pin_memory() if torch.device(device).type == "cuda" else packed
    there = packed.to(device, non_blocking=True).split(sizes)
    for i, x, some in zip(at, flat, there, strict=True):
        leaves[i] = some[: len(x)].view(leaves[i].dtype).view(leaves[i].shape)
    return tree_unflatten(leaves, spec)


class Draw(NamedTuple):
    """The parameters of one view, each (n,) float: a value for each image."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor  # 0 or 1
    brightness: Tensor  # factors; 1 where nothing is to change
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # turns; 0 where nothing is to change
    gray: Tensor  # 0 or 1
    sigma: Tensor  # pixels; 0 where nothing is to change
    solarize: Tensor  # 0 or 1


def random_draw(
    n: int,
    hw: tuple[int, int],
    crops: Crops,
    scale: tuple[float, float],
    odds: tuple[float, float],
    generator: torch.Generator,
) -> Draw:
    """Draw the random parameters of one view of n images, on the generator's device.

    Args:
        n: how many images.
        hw: their height and width.
        crops: how views are augmented.
        scale: smallest and largest share of an image's area.
        odds: of blur and of solarization.
        generator: of the randomness.
    """
    blur_p, solarize_p = odds
    u = torch.rand(10, n, generator=generator, device=generator.device)
    jittered = u[0] < crops.jitter_p

    def factor(column: int, reach: float) -> Tensor:  # uniform in 1 ± reach, not below 0
        low = max(0.0, 1 - crops.jitter * reach)
        return torch.where(jittered, low + u[column] * (1 + crops.jitter * reach - low), 1.0)

    return Draw(
        *random_boxes(n, hw, scale, generator),
        flip=(u[5] < 0.5 * crops.flip).float(),
        brightness=factor(1, 0.4),
        contrast=factor(2, 0.4),
        saturation=factor(3, 0.2),
        hue=min(0.1 * crops.jitter, 0.5) * (2 * u[4] - 1) * jittered,
        gray=(u[6] < crops.gray_p).float(),
        sigma=(0.1 + 1.9 * u[8]) * (u[7] < blur_p),
        solarize=(u[9] < solarize_p).float(),
    )


def random_boxes(
    n: int, hw: tuple[int, int], scale: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw boxes of whole pixels as torchvision's RandomResizedCrop.

    The share of the area is uniform in `scale`, the aspect log-uniform in 3/4..4/3. The first of ten draws that fits in
    the image is taken, else the largest centered box of such an aspect.

    Args:
        n: how many boxes.
        hw: height and width of the images.
        scale: smallest and largest share of the area.
        generator: of the randomness.

    Returns:
        Top, left, height and width, each (n,).
    """
    h, w = hw
    u = torch.rand(4, n, 10, generator=generator, device=generator.device)
    area = h * w * (scale[0] + u[0] * (scale[1] - scale[0]))  # (n, 10)
    aspect = torch.exp(math.log(3 / 4) + u[1] * math.log(16 / 9))
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width >= 1) & (width <= w) & (height >= 1) & (height <= h)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)
    height = torch.where(found, height.gather(1, first)[:, 0], float(min(h, round(w * 4 / 3))))
    width = torch.where(found, width.gather(1, first)[:, 0], float(min(w, round(h * 4 / 3))))
    top = torch.where(found, torch.floor(u[2, :, 0] * (h - height + 1)), torch.floor((h - height) / 2))
    left = torch.where(found, torch.floor(u[3, :, 0] * (w - width + 1)), torch.floor((w - width) / 2))
    return top, left, height, width


def _view(images: Tensor, draw: ViewDraw, size: int) -> Tensor:
    """Make one view of each image, (n, c, size, size) in [0, 1]."""
    at = Draw(*draw.parameters)
    x = resized_crop(images, at.top, at.left, at.height, at.width, at.flip, size)
    color = x.shape[1] == 3
    operations = (
        (adjust_brightness, at.brightness, True),
        (adjust_contrast, at.contrast, True),
        (adjust_saturation, at.saturation, color),
        (adjust_hue, at.hue, color),
    )
    for operation, parameter, applies in (operations[k] for k in draw.order):
        if applies:
            x = operation(x, parameter)
    # The next three apply to some images only, which the host knows, so that no device is waited for
    if color and len(draw.gray):
        x.index_copy_(0, draw.gray, grayscale(x.index_select(0, draw.gray)).expand(-1, 3, -1, -1))
    if len(draw.blurred):
        sigma = at.sigma.index_select(0, draw.blurred)
        x.index_copy_(0, draw.blurred, gaussian_blur(x.index_select(0, draw.blurred), sigma))
    if len(draw.solarized):
        x.index_copy_(0, draw.solarized, solarize(x.index_select(0, draw.solarized)))
    return x


def center_view(images: UInt8[Tensor, "n c h w"], size: int, crops: Crops) -> Float[Tensor, "n c s s"]:
    """Make the view for evaluation: short side resized to `size` (bicubic, antialiased), center square, normalized."""
    _check(images)
    n, _, h, w = images.shape
    side = torch.full((n,), float(min(h, w)), device=images.device)
    top, left, flip = (torch.full_like(side, v) for v in ((h - min(h, w)) // 2, (w - min(h, w)) // 2, 0))
    return _normalized(resized_crop(images, top, left, side, side, flip, size), crops)


def resized_crop(
    images: UInt8[Tensor, "n c h w"],
    top: Float[Tensor, " n"],
    left: Float[Tensor, " n"],
    height: Float[Tensor, " n"],
    width: Float[Tensor, " n"],
    flip: Float[Tensor, " n"],
    size: int,
) -> Float[Tensor, "n c s s"]:
    """Resize each image's own box of whole pixels to size×size in [0, 1].

    Y = A X Bᵀ, one interpolation matrix per image and axis

    The matrices are Keys' cubic (a = −½), widened by the reduction (antialiased), with taps clipped to the box. Values
    past [0, 1] are clipped, as by Pillow.

    Args:
        images: uint8 (n, c, h, w).
        top: first row of the box (n,).
        left: first column (n,).
        height: rows (n,).
        width: columns (n,).
        flip: 1 where the result is mirrored left to right, else 0 (n,).
        size: side of the result in pixels.
    """
    rows = _interpolation_of(top, height, torch.zeros_like(flip), images.shape[2], size)
    columns = _interpolation_of(left, width, flip, images.shape[3], size)
    return _sandwich(rows, images.float().mul_(1 / 255), columns).clamp_(0, 1)


def _interpolation_of(start: Tensor, length: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    """Read `_interpolation` from a table where that is small: another start only shifts the matrix."""
    if 16 * (side + 1) * size * side > TABLE_BYTES:
        return _interpolation(start, length, flip, side, size)
    return _table(side, size, start.device)[flip.long(), length.long(), side - start.long()]


@lru_cache(maxsize=8)
def _table(side: int, size: int, device: torch.device) -> Tensor:
    """(2, side + 1, side + 1, size, side): the matrix of each flip, length and side − start; a strided view."""
    lengths = torch.arange(side + 1.0, device=device).clamp(min=1)  # no crop has length 0
    starts = torch.full_like(lengths, side)
    wide = torch.stack([_interpolation(starts, lengths, torch.full_like(lengths, f), 2 * side, size) for f in (0, 1)])
    return wide.unfold(3, side, 1).transpose(2, 3)


def _interpolation(start: Tensor, length: Tensor, flip: Tensor, side: int, size: int) -> Tensor:
    """(n, size, side) matrices that resample [start, start + length) to `size` points; rows sum to 1."""
    start, length, flip = (t[:, None, None] for t in (start, length, flip))
    i = torch.arange(size, device=start.device)[:, None] + 0.5  # (size, 1)
    j = torch.arange(side, device=start.device) + 0.5  # (side,)
    step = length / size
    center = start + torch.where(flip > 0, size - i, i) * step  # (n, size, 1)
    t = ((j - center) / step.clamp(min=1)).abs_()  # (n, size, side)
    # Keys' kernel in its two knots q = (2 − t)₊, p = (1 − t)₊: ½q²(q − 1) + p²(1 − 2p), free of branches
    q = (2 - t).clamp_(min=0)
    r = q - 1
    p = r.clamp(min=0)
    weight = q.square_().mul_(r).mul_(0.5).addcmul_(p.square(), 1 - 2 * p)
    weight *= (j > start) & (j < start + length)
    return weight.div_(weight.sum(2, keepdim=True))


def _sandwich(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """rows X columnsᵀ per image: (n, s, h), (n, c, h, w), (n, t, w) -> (n, c, s, t)."""
    n, c, h, w = x.shape
    half = torch.bmm(x.reshape(n, c * h, w), columns.transpose(1, 2)).view(n, c, h, -1)
    return rows[:, None] @ half


def adjust_brightness(x: Float[Tensor, "n c h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Multiply: factor·x, clipped to [0, 1]."""
    return (x * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(x: Float[Tensor, "n c h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Blend with the image's mean gray: factor·x + (1 − factor)·mean, clipped to [0, 1]."""
    mean = x.mean((2, 3), keepdim=True)  # gray is linear: the mean's gray is the gray's mean
    return (x * _per_image(factor)).add_((1 - _per_image(factor)) * grayscale(mean)).clamp_(0, 1)


def adjust_saturation(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with the image in gray: factor·x + (1 − factor)·gray(x), clipped to [0, 1]."""
    return torch.lerp(grayscale(x), x, _per_image(factor)).clamp_(0, 1)


def adjust_hue(x: Float[Tensor, "n 3 h w"], turns: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Shift the HSV hue by `turns` of the color circle.

    channel k = min + c·clamp(6·|H − H_k| − 1, 0, 1)

    with chroma c = max − min and hue H, where H_k = 1/2, 5/6, 1/6 is the complement of red, green, blue, and |·| is
    measured around the circle.
    """
    r, g, b = x.unbind(1)
    least = x.amin(1)
    chroma = x.amax(1) - least
    # In units of the chroma above the least channel, H is (1 + g + b − r)/6 where g ≥ b, and minus that elsewhere:
    # the six cases of the textbook in one, without torch.where, which is 20 times slower than arithmetic on a CPU.
    rest = (g + b).sub_(r).sub_(least).div_(chroma.clamp(min=1e-12)).add_(1)
    hue = rest.copysign_(g - b).mul_(1 / 6)
    complement = _constant((1 / 2, 5 / 6, 1 / 6), x.device)
    away = hue[:, None] + (_per_image(turns) - complement)  # (n, 3, h, w)
    away = away.sub_(away.round()).abs_().mul_(6).sub_(1).clamp_(0, 1)
    return away.mul_(chroma[:, None]).add_(least[:, None])


def grayscale(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Turn color into gray, 0.299 R + 0.587 G + 0.114 B; a gray image stays as it is."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.split(1, 1)
    return r.mul(LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def gaussian_blur(x: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Blur each image by a separable Gaussian of its own σ > 0 pixels: 9 taps that sum to 1, edges reflected."""
    offsets = torch.arange(TAPS + 1, device=x.device)
    taps = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))  # (n, 5)
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)
    rows, columns = (torch.mm(taps, _shifts(side, x.device)).view(-1, side, side) for side in x.shape[2:])
    return _sandwich(rows, x, columns)


@lru_cache(maxsize=8)
def _shifts(side: int, device: torch.device) -> Tensor:
    """(5, side²): row k, as a side×side matrix, adds the pixels k to the left and k to the right, edges reflected."""
    i = torch.arange(side)
    period = max(2 * (side - 1), 1)
    out = torch.zeros(TAPS + 1, side, side)
    for k in range(-TAPS, TAPS + 1):
        j = (i + k) % period
        out[abs(k), i, torch.minimum(j, period - j) % side] += 1
    return out.flatten(1).to(device)


def solarize(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Invert what is bright: 1 − x where x ≥ 128/255, else x."""
    above = (x - 127.99 / 255).sign_()  # arithmetic, as torch.where is slow on a CPU
    return above.mul_(0.5 - x).add_(0.5)


def block_masks(
    n: int,
    grid: tuple[int, int],
    *,
    ratio: tuple[float, float] = (0.1, 0.5),
    p: float = 0.5,
    generator: torch.Generator,
) -> Bool[Tensor, "n rows columns"]:
    """Draw masks of random blocks for masked image modeling, on the generator's device.

    ⌊p·n⌋ of the n masks, at random places, hide about a share of the grid that is stratified over `ratio`; the others
    hide nothing. Blocks of 4 patches up to what is still wanted (at most half the grid), with an aspect log-uniform in
    0.3..1/0.3, are added until the share is reached or ten in a row did not fit: a mask may end slightly short of it.

    Args:
        n: how many masks.
        grid: rows and columns of patches.
        ratio: smallest and largest share of the patches that a mask hides.
        p: share of the masks that hide something.
        generator: of the randomness.

    Returns:
        True where a patch is hidden.

    Source: Bao et al. 2021 (BEiT, arXiv 2106.08254), as in the official DINOv2 code.
    """
    (rows, columns), count, device = grid, int(p * n), generator.device
    edges = torch.linspace(*ratio, count + 1, device=device)
    u = torch.rand(count, generator=generator, device=device)
    wanted = torch.floor(rows * columns * (edges[:-1] + u * (edges[1:] - edges[:-1])))
    masks = torch.zeros(n, rows, columns, dtype=torch.bool, device=device)
    hidden, misses = masks[:count], torch.zeros(count, device=device)
    i, j = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    while (active := (wanted > 0) & (misses < 10)).any():
        u = torch.rand(4, count, generator=generator, device=device)
        most = wanted.clamp(max=rows * columns / 2)
        area, aspect = 4 + u[0] * (most - 4), torch.exp((2 * u[1] - 1) * math.log(1 / 0.3))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        top, left = torch.floor(u[2] * (rows - height + 1)), torch.floor(u[3] * (columns - width + 1))
        top, left, bottom, right = (t[:, None, None] for t in (top, left, top + height, left + width))
        new = (i >= top) & (i < bottom) & (j >= left) & (j < right) & ~hidden
        gain = new.sum((1, 2))
        fits = active & (height < rows) & (width < columns) & (gain > 0) & (gain <= most)
        hidden |= new & fits[:, None, None]
        wanted = wanted - gain * fits
        misses = torch.where(fits, 0, misses + 1)
    return masks[torch.randperm(n, generator=generator, device=device)]


def _normalized(x: Tensor, crops: Crops) -> Tensor:
    mean, std = crops.mean, crops.std
    if x.shape[-3] == 1:
        mean, std = ((torch.tensor(m).mean().item(),) for m in (mean, std))
    if len(mean) != x.shape[-3] or len(std) != x.shape[-3]:
        raise ValueError(f"crops.mean and crops.std must have {x.shape[-3]} values, one per channel.")
    return x.sub_(_constant(mean, x.device)).div_(_constant(std, x.device))


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel (c, 1, 1), copied to a device once."""
    return torch.tensor(values).view(-1, 1, 1).to(device)


def _per_image(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (n, 1 or 3, h, w), not {images.dtype} {tuple(images.shape)}.")
