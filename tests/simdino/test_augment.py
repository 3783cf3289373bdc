"""Each operation against its definition or Pillow's, the draws against their distributions, masks against records."""

import colorsys
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simdino import augment
from simdino.augment import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    block_masks,
    center_view,
    gaussian_blur,
    grayscale,
    multi_crop,
    random_boxes,
    random_draw,
    resized_crop,
    solarize,
)
from simdino.config import Crops

ORACLE = Path(__file__).parents[1] / "data" / "oracle.json"
PLAIN = Crops(flip=False, jitter=0.0, gray_p=0.0, blur_p=(0.0,) * 3, solarize_p=(0.0,) * 3, global_scale=(1.0, 1.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 8, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth color pictures, uint8."""
    x = F.interpolate(torch.rand(n, 3, 6, 6, generator=generator(seed)), (side, side), mode="bicubic").clamp_(0, 1)
    return (255 * x).round().byte()


def crop(x: torch.Tensor, box: tuple[int, int, int, int], size: int, flip: int = 0) -> torch.Tensor:
    """The same box (top, left, height, width) of each image."""
    return resized_crop(x, *(torch.full((len(x),), float(v)) for v in (*box, flip)), size)


def whole(x: torch.Tensor, size: int, flip: int = 0) -> torch.Tensor:
    return crop(x, (0, 0, *x.shape[2:]), size, flip)


# Crop, resize, flip


@pytest.mark.parametrize("table", [0, 2**25])
def test_a_crop_of_the_whole_at_its_own_size_is_the_image(table, monkeypatch):
    monkeypatch.setattr(augment, "TABLE_BYTES", table)
    x = pictures()
    torch.testing.assert_close(whole(x, 32), x / 255, atol=1e-5, rtol=0)


def test_a_flip_mirrors_and_a_second_one_restores():
    x = pictures()
    once = whole(x, 32, flip=1)
    torch.testing.assert_close(once, x.flip(3) / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole((255 * once).round().byte(), 32, flip=1), x / 255, atol=1e-5, rtol=0)


def test_a_ramp_halved_is_the_ramp_at_the_new_pixel_centers():
    # A symmetric kernel whose weights sum to 1 reproduces a straight line: output i lies at 2i + 1/2. The clipped
    # kernel at the border does not, so the outermost three pixels are left out.
    ramp = (4 * torch.arange(32)).byte().expand(1, 1, 32, 32)
    expected = 4 * (2 * torch.arange(16) + 0.5) / 255
    torch.testing.assert_close(whole(ramp, 16)[0, 0, :, 3:-3], expected[3:-3].expand(16, 10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("table", [0, 2**25])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_a_crop_is_the_antialiased_bicubic_resize_of_the_slice(size, table, monkeypatch):
    monkeypatch.setattr(augment, "TABLE_BYTES", table)
    x = torch.randint(0, 256, (4, 3, 40, 48), dtype=torch.uint8, generator=generator())
    boxes = torch.tensor([[0, 0, 40, 48], [3, 4, 20, 18], [7, 2, 9, 40], [39, 47, 1, 1]])
    y = resized_crop(x, *boxes.T.float(), torch.zeros(4), size)
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        part = x[i : i + 1, :, top : top + h, left : left + w] / 255
        expected = F.interpolate(part, (size, size), mode="bicubic", antialias=True).clamp(0, 1)[0]
        torch.testing.assert_close(y[i], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("box", "size"), [((0, 0, 32, 32), 16), ((4, 6, 20, 17), 32), ((8, 8, 9, 12), 16)])
def test_a_crop_is_pillows_within_its_rounding(box, size):
    image = pytest.importorskip("PIL.Image")
    x = pictures()
    top, left, h, w = box
    for one, ours in zip(x, crop(x, box, size), strict=True):
        im = image.fromarray(one.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
        theirs = np.asarray(im.resize((size, size), image.Resampling.BICUBIC))
        assert np.abs(255 * ours.permute(1, 2, 0).numpy() - theirs).max() <= 4  # it rounds after each axis


def test_center_view_is_the_normalized_middle_square():
    x = pictures(2, 48)[:, :, :32]  # (2, 3, 32, 48)
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (PLAIN.mean, PLAIN.std))
    torch.testing.assert_close(center_view(x, 32, PLAIN), (x[:, :, :, 8:40] / 255 - mean) / std, atol=1e-4, rtol=0)


# Color: x is in [0, 1], a factor or shift per image


def colors(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=generator())


@pytest.mark.parametrize("operation", [adjust_brightness, adjust_contrast, adjust_saturation])
def test_factor_one_changes_nothing(operation):
    torch.testing.assert_close(operation(colors(), torch.ones(4)), colors(), atol=1e-6, rtol=0)


def test_factor_zero_is_black_the_mean_gray_and_gray():
    x, zero = colors(), torch.zeros(4)
    assert not adjust_brightness(x, zero).any()
    means = grayscale(x).mean((1, 2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(adjust_contrast(x, zero), means, atol=1e-6, rtol=0)
    torch.testing.assert_close(adjust_saturation(x, zero), grayscale(x).expand_as(x))


def test_gray_is_the_itu_weighted_sum():
    red, green, blue = torch.eye(3).view(3, 3, 1, 1)[:, None]
    assert [grayscale(c).item() for c in (red, green, blue)] == pytest.approx([0.299, 0.587, 0.114])
    one = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(grayscale(one), one)


def test_a_third_of_a_turn_permutes_the_pure_colors_and_any_other():
    # hue + 1/3: red -> green -> blue -> red, so the channels move on by one
    pure = torch.eye(3).view(3, 3, 1, 1)
    torch.testing.assert_close(adjust_hue(pure, torch.full((3,), 1 / 3)), pure.roll(1, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(adjust_hue(colors(), torch.full((4,), 1 / 3)), colors().roll(1, 1), atol=1e-5, rtol=0)


def test_hue_is_that_of_hsv_everywhere():
    x = torch.cat([colors(1).flatten(2), torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T[None]], 2)
    for turns in (0.0, 0.07, -0.1, 0.5):
        y = adjust_hue(x[..., None], torch.tensor([turns]))[0, :, :, 0]
        for old, new in zip(x[0].T.tolist(), y.T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*old)
            assert new == pytest.approx(colorsys.hsv_to_rgb((h + turns) % 1, s, v), abs=2e-6)


def test_solarize_inverts_from_128_on():
    x = torch.tensor([0, 127, 128, 255]).view(1, 1, 1, 4) / 255
    torch.testing.assert_close(solarize(x).flatten(), torch.tensor([0, 127, 127, 0]) / 255, atol=1e-7, rtol=0)


def test_blur_of_a_point_is_the_kernel_and_keeps_the_mean():
    x = torch.zeros(2, 1, 21, 21)
    x[:, :, 10, 10] = 1
    y = gaussian_blur(x, torch.tensor([0.7, 1.5]))
    for one, sigma in zip(y[:, 0], (0.7, 1.5), strict=True):
        taps = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * sigma**2))
        kernel = taps / taps.sum()
        torch.testing.assert_close(one[6:15, 6:15], torch.outer(kernel, kernel), atol=1e-6, rtol=0)
        assert one.sum().item() == pytest.approx(1, abs=1e-6)


def test_blur_reflects_at_the_edges():
    x = colors(1)[:, :, :12]
    taps = torch.exp(-(torch.arange(-4, 5) ** 2) / 2.0)
    kernel = torch.outer(taps, taps).div(taps.sum() ** 2).expand(3, 1, 9, 9)
    expected = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), kernel, groups=3)
    torch.testing.assert_close(gaussian_blur(x, torch.ones(1)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "levels"),
    [
        (lambda x: adjust_brightness(x, torch.full((len(x),), 1.3)), ("Brightness", 1.3), 1),
        (lambda x: adjust_contrast(x, torch.full((len(x),), 0.7)), ("Contrast", 0.7), 1.5),
        (lambda x: adjust_saturation(x, torch.full((len(x),), 1.2)), ("Color", 1.2), 1.5),
        (solarize, "solarize", 0.01),
        (lambda x: gaussian_blur(x, torch.full((len(x),), 1.0)), "blur", 4),
    ],
    ids=["brightness", "contrast", "saturation", "solarize", "blur"],
)
def test_color_operations_are_pillows_within_its_rounding(ours, theirs, levels):
    image = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance, ImageFilter, ImageOps

    x = pictures()
    for one, mine in zip(x, ours(x / 255), strict=True):
        im = image.fromarray(one.permute(1, 2, 0).numpy())
        if theirs == "solarize":
            im = ImageOps.solarize(im, 128)
        elif theirs == "blur":  # Pillow's is three box filters, and repeats the edge pixel: compare inside
            im = im.filter(ImageFilter.GaussianBlur(1.0))
        else:
            im = getattr(ImageEnhance, theirs[0])(im).enhance(theirs[1])
        inside = slice(4, -4) if theirs == "blur" else slice(None)
        gap = 255 * mine.permute(1, 2, 0).numpy() - np.asarray(im)
        assert np.abs(gap[inside, inside]).max() <= levels


# The draws


def test_boxes_have_the_asked_areas_and_aspects_and_lie_inside():
    top, left, h, w = random_boxes(20_000, (224, 224), (0.25, 1.0), generator())
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 224).all()
    assert (left + w <= 224).all()
    aspect, area = w / h, w * h / 224**2
    assert 0.74 < aspect.min() < 0.77
    assert 1.30 < aspect.max() < 1.35
    assert aspect.log().mean().abs() < 0.005  # log-uniform: symmetric, of variance (2 log 4/3)²/12 where all fit
    assert 0.246 < area.min() < 0.26
    small = random_boxes(20_000, (224, 224), (0.05, 0.25), generator(1))
    assert (small[2] * small[3] / 224**2).mean().item() == pytest.approx(0.15, abs=0.002)
    assert (small[3] / small[2]).log().std().item() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.005)
    # the corner is uniform over the places that are left
    assert (small[0] / (224 - small[2])).mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_box_that_never_fits_falls_back_to_the_center():
    top, left, h, w = random_boxes(3, (8, 64), (1.0, 1.0), generator())
    assert (h == 8).all()
    assert (w == 11).all()  # 8 · 4/3
    assert (top == 0).all()
    assert (left == 26).all()


def test_parameters_have_their_probabilities_and_ranges():
    crops = Crops()
    d = random_draw(20_000, (32, 32), crops, crops.global_scale, (crops.blur_p[0], crops.solarize_p[0]), generator())
    for share, p in (
        (d.flip, 0.5),
        (d.gray, 0.2),
        (d.solarize, 0.1),
        ((d.sigma > 0).float(), 0.5),
        ((d.hue != 0).float(), 0.8),
        ((d.brightness != 1).float(), 0.8),
    ):
        assert share.mean().item() == pytest.approx(p, abs=0.012)
    for factor, reach in ((d.brightness, 0.4), (d.contrast, 0.4), (d.saturation, 0.2), (1 + d.hue, 0.1)):
        changed = factor[factor != 1]
        assert changed.min().item() == pytest.approx(1 - reach, abs=1e-3)
        assert changed.max().item() == pytest.approx(1 + reach, abs=1e-3)
        assert changed.mean().item() == pytest.approx(1, abs=0.01)
    blurred = d.sigma[d.sigma > 0]
    assert blurred.mean().item() == pytest.approx(1.05, abs=0.02)
    assert torch.equal(d.brightness == 1, d.contrast == 1)  # one image's jitter is on or off as a whole


# Multi-crop


def test_views_have_their_shapes_and_without_randomness_are_the_normalized_image():
    x = pictures()
    views, local = multi_crop(x, replace(PLAIN, local_crops=3), generator())
    assert views.shape == (2, 8, 3, 32, 32)
    assert local.shape == (3, 8, 3, 16, 16)
    for view in views:
        torch.testing.assert_close(view, center_view(x, 32, PLAIN), atol=1e-4, rtol=0)
    assert multi_crop(x, PLAIN, generator())[1].shape == (0, 8, 3, 16, 16)


def test_a_seed_fixes_the_views_and_another_changes_them():
    x, crops = pictures(), Crops(local_crops=2)
    first, again, other = (multi_crop(x, crops, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_views_do_not_depend_on_the_chunks(monkeypatch):
    x = pictures(40)
    whole_batch = multi_crop(x, Crops(), generator())[0]
    monkeypatch.setattr(augment, "CHUNK_PIXELS", 1)  # then 16 images a chunk
    torch.testing.assert_close(multi_crop(x, Crops(), generator())[0], whole_batch, atol=1e-5, rtol=0)


def test_each_image_and_each_view_has_its_own_draw():
    same = pictures(1).expand(16, -1, -1, -1)
    views, _ = multi_crop(same, Crops(), generator())
    distances = torch.cdist(views.flatten(0, 1).flatten(1), views.flatten(0, 1).flatten(1))
    assert (distances + torch.eye(32) * 99).min() > 0.1


def test_the_batch_is_each_images_operations_in_the_drawn_order():
    # The naive twin: one image at a time, by plain operations, from the same draw.
    x, crops = pictures(12), Crops(global_crops=1)
    g = generator(5)
    d = random_draw(12, (32, 32), crops, crops.global_scale, (crops.blur_p[0], crops.solarize_p[0]), g)
    order = torch.randperm(4, generator=g).tolist()
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (crops.mean, crops.std))
    views = multi_crop(x, crops, generator(5))[0][0]
    for i in range(12):
        t, le, h, w = (int(v[i]) for v in d[:4])
        y = F.interpolate(x[i : i + 1, :, t : t + h, le : le + w] / 255, (32, 32), mode="bicubic", antialias=True)
        y = y.clamp(0, 1).flip(3) if d.flip[i] else y.clamp(0, 1)
        operations = [(adjust_brightness, d.brightness), (adjust_contrast, d.contrast)]
        operations += [(adjust_saturation, d.saturation), (adjust_hue, d.hue)]
        for k in order:
            y = operations[k][0](y, operations[k][1][i : i + 1])
        y = grayscale(y).expand_as(y) if d.gray[i] else y
        y = gaussian_blur(y, d.sigma[i : i + 1]) if d.sigma[i] > 0 else y
        y = solarize(y) if d.solarize[i] else y
        torch.testing.assert_close(views[i], (y[0] - mean) / std, atol=1e-3, rtol=0)


def test_gray_images_work_and_are_normalized_by_the_average():
    x = pictures()[:, :1]
    views, _ = multi_crop(x, PLAIN, generator())
    expected = (x / 255 - np.mean(PLAIN.mean)) / np.mean(PLAIN.std)
    torch.testing.assert_close(views[0], expected.float(), atol=1e-4, rtol=0)
    assert multi_crop(x, Crops(local_crops=1), generator())[1].isfinite().all()


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="images must be uint8"):
        multi_crop(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), PLAIN, generator())
    with pytest.raises(ValueError, match=r"crops\.mean"):
        multi_crop(pictures(), replace(PLAIN, mean=(0.5,)), generator())


# Block masks


def test_masks_hide_the_stratified_share_of_half_the_images():
    masks = block_masks(64, (14, 14), generator=generator())
    share = masks.float().mean((1, 2))
    assert (share > 0).sum() == 32
    hidden = share[share > 0].sort().values
    assert torch.allclose(hidden, torch.linspace(0.1, 0.5, 33)[:-1] + 0.00625, atol=0.03)
    assert not torch.equal(masks, block_masks(64, (14, 14), generator=generator(1)))
    assert torch.equal(masks, block_masks(64, (14, 14), generator=generator()))
    assert not block_masks(4, (3, 5), p=0.0, generator=generator()).any()


@pytest.mark.parametrize(("case", "side"), [("224_16", 14), ("32_4", 8), ("96_8", 12), ("28_4", 7)])
def test_masks_are_the_official_ones_in_distribution(case, side):
    for wanted, mean, std, _, most, exact in json.loads(ORACLE.read_text())["masks"][case]["rows"]:
        ratio = (wanted + 0.5) / side**2
        masks = block_masks(2000, (side, side), ratio=(ratio, ratio), p=1.0, generator=generator())
        count = masks.sum((1, 2)).float()
        assert count.max() == most == wanted
        # standard errors of a difference of two means of 2000: std·√(2/2000), and √(2 q(1 − q)/2000) of a share
        assert count.mean().item() == pytest.approx(mean, abs=4 * std * math.sqrt(2 / 2000))
        assert (count == wanted).float().mean().item() == pytest.approx(exact, abs=0.036)
