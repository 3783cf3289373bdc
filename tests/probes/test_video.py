"""Mask propagation: objects whose path is known, a naive twin, and DAVIS's measures by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from analysis.probes import video
from analysis.probes.backbone import extract_features, load_backbone
from analysis.probes.masks import load_videos
from analysis.probes.video import boundary_f, davis_scores, propagate_masks, region_similarity, transfer_iou
from tests.configurations import gaussian

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def moving(t: int = 12, side: int = 4, h: int = 16, w: int = 24, step: int = 1):
    """Masks (t, h, w) of two squares that move sideways, and patches whose features say what is there."""
    masks = torch.zeros(t, h, w, dtype=torch.int64)
    for frame in range(t):
        x = 1 + step * frame
        masks[frame, 2 : 2 + side, x : x + side] = 1
        masks[frame, 9 : 9 + side, w - x - side : w - x] = 2
    return torch.eye(3)[masks], masks


# --- Propagation


def test_perfect_features_carry_masks_exactly():
    patches, masks = moving()
    predicted = propagate_masks(patches, masks[0])
    assert torch.equal(predicted, masks)
    scores = davis_scores(predicted, masks)
    assert scores.j.shape == (2, 10)
    assert scores.summary == {"J&F mean": 1, "J mean": 1, "F mean": 1, "J recall": 1, "F recall": 1}


def test_of_features_that_stand_still_the_mask_does():
    """A square of side a that has moved by s is met by (a − s)/(a + s)."""
    patches, masks = moving(t=4, side=6)
    predicted = propagate_masks(patches[:1].expand_as(patches), masks[0])
    assert torch.equal(predicted, masks[:1].expand_as(masks))
    j = davis_scores(predicted, masks).j  # frames 1 and 2
    torch.testing.assert_close(j, torch.tensor([[5 / 7, 4 / 8]] * 2, dtype=torch.float64))


def test_what_moves_further_than_the_radius_is_lost():
    """Only the background is in reach of where the object has gone, and where it was has nothing like it any more."""
    patches, masks = moving(t=3, side=2, w=40, step=8)
    assert torch.equal(propagate_masks(patches, masks[0], radius=9)[1], masks[1])
    assert not propagate_masks(patches, masks[0], radius=6)[1].any()


def test_the_context_is_as_long_as_it_says():
    """An object that is hidden for longer than the context lasts is found by the first frame, if it is near enough."""
    _, masks = moving(t=9, side=3, step=0)
    masks[masks == 2] = 0
    masks[1:8] = 0
    patches = torch.eye(2)[masks]
    assert torch.equal(propagate_masks(patches, masks[0], context=2)[8], masks[8])
    patches[8], masks[8] = patches[8].roll(9, 1), masks[8].roll(9, 1)
    assert torch.equal(propagate_masks(patches, masks[0], context=2, radius=9)[8], masks[8])
    assert not propagate_masks(patches, masks[0], context=2, radius=5)[8].any()


@pytest.mark.parametrize("elements", [2**24, 1])
def test_equals_the_protocol_step_by_step(elements, monkeypatch):
    monkeypatch.setattr(video, "SIMILARITY_ELEMENTS", elements)
    t, gh, gw, k, context, radius = 6, 5, 6, 3, 2, 2
    z = gaussian(t, gh, gw, 4).numpy()
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    mask = torch.randint(0, k, (gh, gw), generator=torch.Generator().manual_seed(0))
    labels = [np.eye(k)[mask.numpy()]]
    masks = [mask.numpy()]
    for frame in range(1, t):
        out = np.zeros((gh, gw, k))
        for y in range(gh):
            for x in range(gw):
                found = [
                    (math.exp(float(z[frame, y, x] @ z[i, v, u]) / 0.1), labels[i][v, u])
                    for i in [0, *range(max(1, frame - context), frame)]
                    for v in range(gh)
                    for u in range(gw)
                    if abs(v - y) <= radius and abs(u - x) <= radius
                ]
                best = sorted(found, key=lambda pair: -pair[0])[:5]
                out[y, x] = sum(a * label for a, label in best) / sum(a for a, _ in best)
        labels.append(out)
        masks.append(((out - out.min((0, 1))) / np.ptp(out, (0, 1))).argmax(-1))
    predicted = propagate_masks(torch.from_numpy(z), mask, context=context, radius=radius)
    assert (predicted.numpy() == np.stack(masks)).all()


def test_masks_have_the_size_of_the_given_one():
    patches, masks = moving(t=4)
    large = masks.repeat_interleave(7, 1).repeat_interleave(7, 2)
    predicted = propagate_masks(patches.numpy(), large[0].to(torch.uint8).numpy())
    assert predicted.shape == large.shape
    assert davis_scores(predicted, large).summary["J mean"] > 0.9  # corners are rounded
    assert torch.equal(propagate_masks(patches.half(), large[0]), propagate_masks(patches.double(), large[0]))


def test_an_object_without_a_patch_is_lost_and_one_that_is_everywhere_stays():
    patches, _ = moving(t=3)
    mask = torch.zeros(16 * 7, 24 * 7, dtype=torch.int64)
    mask[0, 0] = 1  # no patch has its center there
    assert not propagate_masks(patches, mask)[1:].any()
    assert (propagate_masks(patches, torch.ones_like(mask)) == 1).all()


def test_collapsed_features_vote_alike_everywhere():
    """All ties count: a patch has the mean label of its whole neighborhood, here of the whole frame."""
    patches, masks = moving(t=3)
    one = torch.ones_like(patches)
    near = torch.ones(384, 384, dtype=torch.bool)
    labels = torch.eye(3)[masks[0].flatten()]
    votes = video._votes(one[1].flatten(0, 1), one[0].flatten(0, 1), labels, near, 5, 0.1)
    torch.testing.assert_close(votes, labels.mean(0).expand_as(votes))
    assert (propagate_masks(one, masks[0], radius=24)[1:] == 0).all()


def test_transfer_of_a_mask_to_another_frame():
    patches, masks = moving()
    assert transfer_iou(patches[[0, 10]], masks[[0, 10]]) == 1
    still = transfer_iou(patches[[0, 0]], masks[[0, 2]])  # two squares of side 4, moved by 2
    assert still.item() == pytest.approx(2 / 6)
    empty = torch.zeros_like(masks[:2])
    assert transfer_iou(patches[:2], empty) == 1


# --- Measures


def test_region_similarity_by_hand():
    a = torch.tensor([[[1, 1, 0]], [[0, 0, 0]], [[0, 0, 0]]]).bool()
    b = torch.tensor([[[0, 1, 1]], [[0, 0, 0]], [[0, 1, 0]]]).bool()
    assert region_similarity(a, b).tolist() == [1 / 3, 1, 0]


def square(y: int, x: int, side: int = 12, h: int = 60, w: int = 80):
    mask = torch.zeros(1, h, w, dtype=torch.bool)
    mask[:, y : y + side, x : x + side] = True
    return mask


def test_boundaries_of_known_shapes():
    """The diagonal is 100, so boundaries agree within one pixel."""
    a, empty = square(10, 10), torch.zeros(1, 60, 80, dtype=torch.bool)
    both = a | square(40, 60)
    pairs = [(a, a), (empty, empty), (a, empty), (empty, a), (a, square(11, 10)), (a, square(40, 60))]
    assert [boundary_f(x, y).item() for x, y in pairs] == [1, 1, 0, 0, 1, 0]
    assert boundary_f(both, a).item() == pytest.approx(2 * 0.5 / 1.5)  # half of the predicted boundary is right
    assert boundary_f(a, both).item() == pytest.approx(2 * 0.5 / 1.5)
    assert boundary_f(a, square(10, 13)).item() < 1
    assert boundary_f(a, square(10, 13), tolerance=0.03) == 1


def naive_f(predicted: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    def boundary(mask):
        h, w = mask.shape
        out = np.zeros_like(mask)
        for y in range(h):
            for x in range(w):
                for dy, dx in ((0, 1), (1, 0), (1, 1)):
                    v, u = min(y + dy, h - 1), min(x + dx, w - 1)
                    out[y, x] |= mask[y, x] != mask[v, u]
        return out

    reach = math.ceil(tolerance * math.sqrt(sum(s**2 for s in truth.shape)))
    grid = np.arange(-reach, reach + 1)
    disc = grid[:, None] ** 2 + grid**2 <= reach**2
    ours, theirs = boundary(predicted), boundary(truth)
    precision = (ours & binary_dilation(theirs, disc)).sum() / ours.sum()
    recall = (theirs & binary_dilation(ours, disc)).sum() / theirs.sum()
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("tolerance", [0.008, 0.05])
def test_boundary_f_equals_a_loop_over_pixels(tolerance):
    g = torch.Generator().manual_seed(0)
    blobs = torch.nn.functional.interpolate(torch.rand(6, 1, 5, 6, generator=g), (50, 64), mode="bicubic")[:, 0] > 0.5
    predicted, truth = blobs[:3], blobs[3:]
    expected = [naive_f(a.numpy(), b.numpy(), tolerance) for a, b in zip(predicted, truth, strict=True)]
    assert boundary_f(predicted, truth, tolerance=tolerance).tolist() == pytest.approx(expected)


def test_first_and_last_frame_are_not_scored_and_objects_count_alike():
    _, masks = moving(t=5)
    predicted = masks.clone()
    predicted[0], predicted[-1] = 0, 0
    predicted[predicted == 2] = 0
    scores = davis_scores(predicted, masks)
    assert scores.j.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert scores.summary["J&F mean"] == 0.5
    assert scores.summary["J recall"] == 0.5


def test_objects_may_have_any_numbers():
    """Binary masks are often stored as 0 and 255: that is one object, and not 254 that nobody sees."""
    patches, masks = moving()
    numbers = torch.tensor([0, 255, 7])
    predicted = propagate_masks(patches, numbers[masks[0]].to(torch.uint8))
    assert torch.equal(predicted.long(), numbers[masks])
    assert torch.equal(davis_scores(predicted, numbers[masks]).j, torch.ones(2, 10, dtype=torch.float64))
    lost = davis_scores(0 * predicted, numbers[masks])
    assert not lost.j.any()
    assert not lost.f.any()


# --- Errors


def test_bad_input_is_named():
    patches, masks = moving(t=4)
    nan, zero = patches.clone(), patches.clone()
    nan[1, 0, 0, 0], zero[0, 0, 0] = torch.nan, 0
    for change, message in [
        ({"patches": nan}, "patches contains NaN"),
        ({"patches": zero}, "patches has a zero row"),
        ({"patches": patches[0]}, "patches must have shape"),
        ({"mask": masks}, "mask must have shape"),
        ({"mask": masks[0].float()}, "mask must be integers"),
        ({"mask": masks[0] - 1}, "mask must not be negative"),
        ({"neighbors": 0}, "neighbors must be a positive integer"),
        ({"context": 0}, "context must be a positive integer"),
        ({"temp": 0}, "temp must be positive"),
        ({"radius": -1}, "radius must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            propagate_masks(**({"patches": patches, "mask": masks[0]} | change))
    for predicted, truth, message in [
        (masks[:, 1:], masks, "differ in size"),
        (masks[1:], masks, "predicted must have shape"),
        (masks[:2], masks[:2], "needs three frames and an object, got 2 frames"),
        (0 * masks, 0 * masks, "needs three frames and an object, got 4 frames and 0 objects"),
    ]:
        with pytest.raises(ValueError, match=message):
            davis_scores(predicted, truth)
    with pytest.raises(ValueError, match="patches must be of two frames, got 4"):
        transfer_iou(patches, masks)


# --- A real network


@pytest.mark.skipif(not SHARED.is_dir(), reason="the videos and weights (../shared/data) are not here")
def test_dense_features_of_a_real_network_carry_masks_over_ten_frames():
    pairs = [
        (v.frames[[0, 10]], v.masks[[0, 10]]) for _, v in load_videos(SHARED / "davis12_video/davis12_392x224.npz")
    ]
    tenth = load_backbone(SHARED / "vits14_imgfocus/vits14_imgfocus_fp16.safetensors", block=9, device="cpu")
    means = {}
    for backbone in (tenth, load_backbone("pixels", device="cpu")):
        ious = [transfer_iou(extract_features(backbone, frames).patches, masks) for frames, masks in pairs]
        means[backbone.name] = torch.stack(ious).mean().item()
    assert len(pairs) == 12
    assert means[tenth.name] > 0.84
    assert means["pixels"] == pytest.approx(0.25, abs=0.01)
