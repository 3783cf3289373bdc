"""Segmentation: configurations with a known IoU, naive twins, and what unlabeled, absent and ill-sized masks mean."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from analysis.probes import segmentation
from analysis.probes.backbone import extract_features, load_backbone
from analysis.probes.masks import load_masks
from analysis.probes.segmentation import (
    Confusion,
    knn_segmenter,
    linear_segmenter,
    patch_labels,
    prototype_segmenter,
    segmentation_confusion,
)
from tests.configurations import gaussian, rotation

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
K = 4
SEGMENTERS = {
    "linear": lambda *args, **kw: linear_segmenter(*args, **{"steps": 200, "lr": 0.05, **kw}),
    "knn": lambda *args, **kw: knn_segmenter(*args, **{"k": 3, **kw}),
    "prototype": prototype_segmenter,
}


def labeled(n: int = 6, gh: int = 5, gw: int = 7, seed: int = 0):
    """Masks (n, gh, gw) of K classes, and patches whose features are a rotation of the labels' indicators."""
    masks = torch.randint(0, K, (n, gh, gw), generator=torch.Generator().manual_seed(seed))
    return (F.one_hot(masks, K).double() @ rotation(K)).float(), masks


def noisy(n: int = 6, seed: int = 0):
    patches, masks = labeled(n, seed=seed)
    return patches.double() + 0.4 * gaussian(*patches.shape, seed=seed + 1), masks


def larger(masks, scale: int = 6):
    return masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


# --- Segmenters


@pytest.mark.parametrize("name", SEGMENTERS)
def test_features_that_are_the_labels_are_perfect(name):
    patches, masks = labeled()
    segmenter = SEGMENTERS[name](patches, masks, classes=K)
    assert segmentation_confusion(segmenter, patches, masks, classes=K).miou == 1


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_straight_border_between_patches_is_met_to_the_pixel(name):
    masks = torch.zeros(4, 6, 8, dtype=torch.int64)
    masks[:, :, 4:] = 1
    patches = F.one_hot(masks, 2).float() @ rotation(2).float()
    segmenter = SEGMENTERS[name](patches, larger(masks), classes=2)
    assert segmentation_confusion(segmenter, patches, larger(masks), classes=2).miou == 1


@pytest.mark.parametrize("name", SEGMENTERS)
def test_labels_where_there_is_none_do_not_matter(name):
    patches, masks = noisy()
    masks[:, 2:4] = 9
    other = patches.clone()
    other[:, 2:4] = gaussian(*other[:, 2:4].shape, seed=5)
    options = {"steps": 1500} if name == "linear" else {}
    a, b = (SEGMENTERS[name](x, masks, classes=K, ignore=9, **options) for x in (patches, other))
    test, true = noisy(seed=3)
    if name == "linear":  # standardized by other statistics: the same optimum, approached by another way
        agreement = (
            (segmentation.predict_masks(a, test, (5, 7)) == segmentation.predict_masks(b, test, (5, 7))).double().mean()
        )
        assert agreement > 0.95
    else:
        torch.testing.assert_close(a(test), b(test))
    true[:, 0] = 9
    confusion = segmentation_confusion(a, test, true, classes=K, ignore=9)
    assert confusion.matrix.sum() == (true != 9).sum()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_class_without_training_pixels_is_never_predicted_and_counts_as_missed(name):
    patches, masks = labeled()
    train = masks.masked_fill(masks == 2, 7)
    segmenter = SEGMENTERS[name](patches, train, classes=K, ignore=7)
    confusion = segmentation_confusion(segmenter, patches, masks, classes=K)
    assert confusion.matrix[:, 2].sum() == 0
    assert confusion.iou[2] == 0
    assert confusion.miou < 0.75 + 1e-9


@pytest.mark.parametrize("name", SEGMENTERS)
def test_masks_may_have_any_size_and_types_do_not_matter(name):
    patches, masks = labeled()
    odd = F.interpolate(masks[:, None].float(), (17, 23), mode="nearest-exact")[:, 0].long()
    segmenter = SEGMENTERS[name](patches, odd, classes=K)
    confusion = segmentation_confusion(segmenter, patches, odd, classes=K)
    assert confusion.miou > 0.7  # corners are rounded
    half = SEGMENTERS[name](patches.bfloat16(), odd.to(torch.uint8).numpy(), classes=K)
    assert segmentation_confusion(
        half, patches.bfloat16(), odd.to(torch.uint8), classes=K
    ).miou.item() == pytest.approx(confusion.miou.item(), abs=0.05)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_blocks_change_nothing(name, monkeypatch):
    (patches, masks), (test, true) = noisy(), noisy(seed=3)
    segmenter = SEGMENTERS[name](patches, masks, classes=K, **({"chunk": 11} if name == "knn" else {}))
    whole = segmentation_confusion(segmenter, test, larger(true), classes=K)
    monkeypatch.setattr(segmentation, "SCORE_ELEMENTS", 1)
    parts = segmentation_confusion(segmenter, test, larger(true), classes=K)
    assert torch.equal(whole.matrix, parts.matrix)
    assert torch.equal(whole.by_image, parts.by_image)


def test_knn_equals_a_loop_over_patches():
    (patches, masks), (test, _) = noisy(3), noisy(1, seed=3)
    masks[0, 0, 0] = 9
    scores = knn_segmenter(patches, masks, classes=K, ignore=9, k=5, temp=0.3)(test)
    bank = [(z, c) for z, c in zip(patches.flatten(0, 2), masks.flatten().tolist(), strict=True) if c != 9]
    for i, z in enumerate(test[0].flatten(0, 1)):
        near = sorted(bank, key=lambda pair: -F.cosine_similarity(z, pair[0], dim=0).item())[:5]
        weights = [math.exp(F.cosine_similarity(z, x, dim=0).item() / 0.3) for x, _ in near]
        votes = [sum(w for w, (_, c) in zip(weights, near, strict=True) if c == k) / sum(weights) for k in range(K)]
        torch.testing.assert_close(scores[0].flatten(1)[:, i], torch.tensor(votes, dtype=torch.float64))


def test_prototypes_are_means_weighted_by_pixels():
    a, b, c = rotation(3)
    patches = torch.stack((a, b, c))[None, None].float()  # (1, 1, 3, 3)
    masks = torch.tensor([[[0, 0, 0, 1, 1, 1]]])  # of two pixels a patch: the middle one is half and half
    scores = prototype_segmenter(patches, masks, classes=2)(patches)
    long, short = 1 / math.sqrt(1.25), 0.5 / math.sqrt(1.25)
    torch.testing.assert_close(scores[0, :, 0], torch.tensor([[long, short, 0], [0, short, long]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["knn", "prototype"])
def test_cosines_are_invariant_to_rotation_and_scale(name):
    (patches, masks), (test, _) = noisy(), noisy(seed=3)
    scores = SEGMENTERS[name](patches, masks, classes=K)(test)
    turned = SEGMENTERS[name](3 * patches @ rotation(K, seed=7), masks, classes=K)(0.1 * test @ rotation(K, seed=7))
    torch.testing.assert_close(turned, scores)


def test_the_linear_probe_is_invariant_to_shift_and_scale_of_channels():
    (patches, masks), (test, _) = noisy(), noisy(seed=3)
    scale, shift = torch.tensor([0.1, 1, 10, 3.0]).double(), torch.tensor([5.0, 0, -3, 1]).double()
    scores = linear_segmenter(patches, masks, classes=K, steps=50)(test)
    moved = linear_segmenter(patches * scale + shift, masks, classes=K, steps=50)(test * scale + shift)
    torch.testing.assert_close(moved, scores)


def test_of_collapsed_features_the_linear_probe_knows_the_frequencies():
    masks = torch.zeros(8, 4, 5, dtype=torch.int64)
    masks[:, :1] = 1  # a quarter
    collapsed = torch.ones(8, 4, 5, 3)
    segmenter = linear_segmenter(collapsed, masks, classes=2, lr=0.02)
    assert segmenter(collapsed).softmax(1)[0, 1].mean().item() == pytest.approx(0.25, abs=0.01)
    confusion = segmentation_confusion(segmenter, collapsed, masks, classes=2)
    assert confusion.iou.tolist() == [0.75, 0]
    assert confusion.pixel_accuracy == 0.75


def test_the_linear_probe_trains_on_the_upsampled_logits():
    """Random pixels of the logits are those of the interpolated logits, also where patches do not divide the mask."""
    logits, masks = gaussian(3, K, 5, 7), torch.randint(0, K, (3, 19, 31))
    grid, target = segmentation._random_pixels(masks, 400, torch.Generator().manual_seed(0))
    at = F.grid_sample(logits, grid.double(), padding_mode="border", align_corners=False)[:, :, 0]
    whole = F.interpolate(logits, (19, 31), mode="bilinear", align_corners=False)
    x, y = (((grid[:, 0, :, i] + 1) * side / 2 - 0.5).round().long() for i, side in ((0, 31), (1, 19)))
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(at, whole[rows, :, y, x].mT, atol=1e-5, rtol=1e-5)
    assert torch.equal(target, masks[rows, y, x])
    assert len({(i, j) for i, j in zip(x[0].tolist(), y[0].tolist(), strict=True)}) > 250  # of 589


def test_the_linear_probe_reaches_the_optimum_of_logistic_regression():
    patches, masks = noisy(20)
    segmenter = linear_segmenter(patches, masks, classes=K, steps=2000, lr=0.02, weight_decay=0)
    loss = F.cross_entropy(segmenter(patches), masks)
    z = patches.flatten(0, 2)
    weight = torch.zeros(K, K + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(z, weight[:, :K], weight[:, K]), masks.flatten())
        value.backward()
        return value

    optimum = optimizer.step(closure) and closure()
    assert optimum.item() <= loss.item() < optimum.item() * 1.002


def test_the_seed_decides_everything():
    patches, masks = noisy()
    a, b = (linear_segmenter(patches, masks, classes=K, steps=20, seed=4)(patches) for _ in range(2))
    assert torch.equal(a, b)


# --- Labels of patches


@pytest.mark.parametrize("size", [(12, 15), (13, 17), (3, 5), (2, 4)])
def test_patches_share_the_pixels_whose_centers_they_hold(size):
    masks = torch.randint(0, K, (2, *size), generator=torch.Generator().manual_seed(0))
    shares = patch_labels(masks, (3, 5), classes=K, ignore=3)
    for image, mask in enumerate(masks.tolist()):
        counts = torch.zeros(3, 5, K)
        for y, row in enumerate(mask):
            for x, c in enumerate(row):
                if c != 3:
                    counts[math.floor((y + 0.5) / size[0] * 3), math.floor((x + 0.5) / size[1] * 5), c] += 1
        torch.testing.assert_close(shares[image], counts / counts.sum(-1, keepdim=True).clamp(min=1))


# --- Confusion


def test_iou_of_a_case_by_hand():
    true = torch.tensor([[[0, 0, 1, 1], [0, 2, 9, 9]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [0, 1, 0, 3]]])
    confusion = Confusion(5, ignore=9).update(predicted, true)
    iou = confusion.iou
    assert iou[:3].tolist() == [2 / 3, 2 / 4, 0]  # class 1: 2 of 4; class 2 is missed
    assert iou[3:].isnan().all()  # in no mask, though 3 was predicted where there is no label
    assert confusion.miou.item() == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert confusion.pixel_accuracy.item() == pytest.approx(4 / 6)
    assert confusion.matrix.tolist()[:3] == [[2, 1, 0, 0, 0], [0, 2, 0, 0, 0], [0, 1, 0, 0, 0]]


def test_a_class_that_is_only_predicted_costs_the_others_alone():
    true, predicted = torch.zeros(1, 2, 2, dtype=torch.int64), torch.tensor([[[0, 0], [0, 1]]])
    confusion = Confusion(2).update(predicted, true)
    assert confusion.miou == 0.75


def test_streaming_is_the_same_as_at_once():
    g = torch.Generator().manual_seed(0)
    predicted, true = torch.randint(0, K, (2, 7, 6, 5), generator=g)
    whole, parts = Confusion(K).update(predicted, true), Confusion(K)
    for rows in torch.arange(7).split(3):
        parts.update(predicted[rows], true[rows].to(torch.uint8).numpy())
    assert torch.equal(whole.matrix, parts.matrix)
    assert torch.equal(whole.by_image, parts.by_image)
    assert torch.equal(whole.by_image[:, 0].sum(0), whole.matrix.diagonal())


def test_ignore_may_be_any_integer():
    true = torch.tensor([[[255, 1], [0, 1]]], dtype=torch.uint8)
    predicted = torch.tensor([[[0, 1], [0, 1]]])
    assert Confusion(2, ignore=255).update(predicted, true).miou == 1
    with pytest.raises(ValueError, match="below classes=2, but for ignore=-1, got 255"):  # no uint8 is -1
        Confusion(2, ignore=-1).update(predicted, true)


def test_the_interval_of_a_mean_over_images_is_students():
    """One class, of which every image has as many pixels: IoU is the mean of the images' shares of it."""
    hits = torch.tensor([3, 7, 10, 6, 8])
    predicted = (torch.arange(10) >= hits[:, None]).long()[:, None]  # (5, 1, 10), 0 where right
    confusion = Confusion(2).update(predicted, torch.zeros(5, 1, 10, dtype=torch.int64))
    low, high = confusion.miou_interval(level=0.9)
    shares = (hits / 10).double()
    expected = stats.t.interval(0.9, 4, loc=shares.mean().item(), scale=shares.std().item() / math.sqrt(5))
    assert (low, high) == pytest.approx(expected)


def test_images_without_labels_do_not_narrow_the_interval():
    g = torch.Generator().manual_seed(0)
    predicted, true = torch.randint(0, K, (2, 6, 9, 9), generator=g)
    confusion = Confusion(K, ignore=9).update(predicted, true)
    before = confusion.miou_interval()
    confusion.update(predicted, torch.full_like(true, 9))
    assert confusion.miou_interval() == before
    assert confusion.labeled_images == 6


# --- Errors


def test_bad_input_is_named():
    patches, masks = labeled()
    good = {"patches": patches, "masks": masks, "classes": K}
    nan, zero = patches.clone(), patches.clone()
    nan[0, 0, 0, 0], zero[1, 2, 3] = torch.nan, 0
    both = [
        ({"masks": masks + 1}, "masks must be below classes=4, got 4"),
        ({"masks": masks - 1}, "masks must not be negative, got -1"),
        ({"masks": masks.float()}, "masks must be integers"),
        ({"masks": masks[1:]}, r"masks must have shape \(6, h, w\)"),
        ({"masks": masks[0]}, "masks must have shape"),
        ({"masks": torch.full_like(masks, 9), "ignore": 9}, "masks have no labeled pixel"),
        ({"patches": nan}, "patches contains NaN"),
        ({"patches": patches[0]}, r"patches must have shape \(n, gh, gw, d\)"),
    ]
    for change, message in both:
        for segmenter in SEGMENTERS.values():
            with pytest.raises(ValueError, match=message):
                segmenter(**(good | change))
    for segmenter, change, message in [
        (knn_segmenter, {"k": 211}, "k must be between 1 and the number of training patches with labels, 210"),
        (knn_segmenter, {"k": 0}, "k must be"),
        (knn_segmenter, {"temp": 0}, "temp must be positive"),
        (knn_segmenter, {"chunk": 0}, "chunk must be a positive integer"),
        (knn_segmenter, {"patches": zero}, "patches has a zero row"),
        (prototype_segmenter, {"patches": zero}, "patches has a zero row"),
        (linear_segmenter, {"steps": 0}, "steps must be a positive integer"),
        (linear_segmenter, {"pixels": -1}, "pixels must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            segmenter(**(good | change))


def test_bad_predictions_are_named():
    true = torch.zeros(2, 3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="differ in size"):
        Confusion(2).update(true[:, 1:], true)
    with pytest.raises(ValueError, match="predicted must be below classes=2, got 2"):
        Confusion(2).update(true + 2, true)
    with pytest.raises(ValueError, match="no labeled pixel was counted"):
        _ = Confusion(2, ignore=0).update(true, true).miou
    with pytest.raises(ValueError, match="an interval needs two images"):
        Confusion(2).update(true[:1], true[:1]).miou_interval()


# --- A real network


@pytest.mark.skipif(not SHARED.is_dir(), reason="the road scenes and weights (../shared/data) are not here")
def test_dense_features_of_a_real_network_segment_road_scenes():
    """13 training and 8 test scenes at 224 × 168; all 367 and 233 give 0.42 and 0.14."""
    images = load_masks(SHARED / "camvid_seg/camvid_224x168.npz")
    train, test, options = slice(None, None, 30), slice(None, None, 30), {"classes": 12, "ignore": images.ignore}
    tenth = load_backbone(SHARED / "vits14_imgfocus/vits14_imgfocus_fp16.safetensors", block=9, device="cpu")
    miou = {}
    for backbone in (tenth, load_backbone("pixels", device="cpu")):
        patches = [extract_features(backbone, x).patches for x in (images.train[train], images.test[test])]
        probe = linear_segmenter(patches[0], images.train_masks[train], steps=200, lr=3e-3, **options)
        confusion = segmentation_confusion(probe, patches[1], images.test_masks[test], **options)
        miou[backbone.name] = confusion.miou.item()
        assert confusion.iou[:11].isfinite().all()
        assert confusion.iou[11].isnan()  # unlabeled
    assert miou[tenth.name] > 0.35
    assert miou[tenth.name] > 2.5 * miou["pixels"]
