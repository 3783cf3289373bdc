"""Objects by normalized cuts: graphs whose cut is known, objects by construction, CorLoc and AP by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.linalg import eigh

from analysis.probes.discovery import (
    average_precision,
    average_precision_interval,
    bounding_boxes,
    box_iou,
    connected_regions,
    correctly_localized,
    mask_iou,
    maskcut,
    normalized_cut,
    tokencut,
    upsample_masks,
)
from tests.configurations import gaussian, rotation


def blobs(a: int, b: int, weak: float):
    """Two cliques of a and b with edges of 1 inside, loops too, and `weak` between."""
    side = torch.arange(a + b) < a
    return torch.where(side[:, None] == side, 1.0, weak).double()


def scene(*objects: tuple[int, int, int, int], h: int = 12, w: int = 15, seed: int = 0):
    """Label map of rectangles (top, left, height, width) 1, 2, ... on 0, and patches with orthogonal features each."""
    labels = torch.zeros(h, w, dtype=torch.int64)
    for i, (top, left, height, width) in enumerate(objects):
        labels[top : top + height, left : left + width] = i + 1
    return torch.eye(8).double()[labels] @ rotation(8, seed=seed), labels


# --- The cut


@pytest.mark.parametrize(("a", "b", "weak"), [(4, 4, 0.1), (3, 9, 0.2), (20, 5, 1e-5)])
def test_two_blobs_are_cut_as_the_closed_form_says(a, b, weak):
    """The relaxation is exact: λ = Ncut = c/vol(A) + c/vol(B), c = abw, and y ∝ (1/vol(A), −1/vol(B))."""
    y, value = normalized_cut(blobs(a, b, weak))
    cut, volumes = a * b * weak, (a * (a + b * weak), b * (b + a * weak))
    assert value == pytest.approx(cut / volumes[0] + cut / volumes[1])
    expected = torch.cat((torch.full((a,), 1 / volumes[0]), torch.full((b,), -1 / volumes[1]))).double()
    torch.testing.assert_close(y / y[0], expected / expected[0])


def test_solves_the_generalized_problem():
    w = gaussian(9, 30).exp()
    w = w @ w.T
    y, value = normalized_cut(w)
    d = w.sum(1)
    torch.testing.assert_close(d * y - w @ y, value * d * y, atol=1e-9, rtol=1e-9)
    assert (d * y).sum().item() == pytest.approx(0, abs=1e-9)
    values, vectors = eigh(np.diag(d) - w.numpy(), np.diag(d))
    assert value == pytest.approx(values[1])
    torch.testing.assert_close((y / y[0]).numpy(), vectors[:, 1] / vectors[0, 1])


def test_lambda_is_a_bound_on_every_bipartition():
    w = gaussian(8, 8).exp()
    w = w + w.T
    _, value = normalized_cut(w)
    for code in range(1, 2**7):
        side = torch.tensor([code >> i & 1 for i in range(8)]).bool()
        cut = w[side][:, ~side].sum()
        assert value <= cut / w[side].sum() + cut / w[~side].sum() + 1e-12


# --- TokenCut and MaskCut


def test_the_object_is_the_smaller_side():
    patches, labels = scene((3, 4, 4, 5))
    assert torch.equal(tokencut(patches), labels == 1)
    assert torch.equal(maskcut(patches).masks, (labels == 1)[None])


def naive_tokencut(patches: np.ndarray, tau: float) -> np.ndarray:
    """The method as the paper has it, with explicit matrices."""
    grid = patches.shape[:2]
    z = patches.reshape(-1, patches.shape[-1])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    w = np.where(z @ z.T > tau, 1, 1e-5)
    d = np.diag(w.sum(1))
    y = eigh(d - w, d)[1][:, 1]
    side = y > y.mean()
    seed = np.abs(y).argmax()
    side = side if side[seed] else ~side
    labels, _ = ndimage.label(side.reshape(grid))
    return labels == labels.flat[seed]


@pytest.mark.parametrize("seed", range(5))
def test_tokencut_equals_the_paper_in_steps(seed):
    patches, _ = scene((2, 3, 5, 5), (8, 9, 3, 4), seed=seed)
    patches = patches + 0.25 * gaussian(*patches.shape, seed=seed)
    for tau in (0.0, 0.2, 0.5):
        assert (tokencut(patches, tau=tau).numpy() == naive_tokencut(patches.numpy(), tau)).all()


def test_only_the_component_of_the_seed_is_the_object():
    patches, labels = scene((1, 1, 3, 3), (7, 8, 4, 5))
    patches[labels == 2] = patches[labels == 1][0]  # one class in two places
    found = tokencut(patches)
    assert any(torch.equal(found, labels == i) for i in (1, 2))


def test_maskcut_finds_the_objects_one_after_the_other():
    patches, labels = scene((1, 1, 3, 3), (5, 4, 4, 4), (2, 10, 5, 4))
    found = maskcut(patches)
    assert len(found.masks) == 3
    assert {tuple(mask.nonzero().flatten().tolist()) for mask in found.masks} == {
        tuple((labels == i).nonzero().flatten().tolist()) for i in (1, 2, 3)
    }
    assert found.scores.min() > 0.99  # hardly an edge is cut
    assert len(maskcut(patches, objects=2).masks) == 2


def test_maskcut_takes_no_side_with_three_corners_for_the_object():
    patches, labels = scene((1, 1, 10, 13))  # the frame around it is the smaller side
    assert torch.equal(tokencut(patches), labels == 0)
    assert torch.equal(maskcut(patches, objects=1).masks, (labels == 1)[None])


def test_small_remains_are_no_objects():
    patches, _ = scene((3, 3, 4, 4), (9, 9, 1, 1))
    assert len(maskcut(patches).masks) == 1  # 1 of 180 patches is below 1%


def test_nothing_is_found_where_all_edges_are_alike():
    for patches in (torch.ones(4, 5, 3), torch.eye(20).view(4, 5, 20)):
        assert not tokencut(patches).any()
        assert maskcut(patches).masks.shape == (0, 4, 5)
        assert maskcut(patches).scores.shape == (0,)
    assert not tokencut(torch.ones(1, 1, 3)).any()


def test_scale_rotation_and_type_do_not_matter():
    patches, _ = scene((2, 3, 5, 5), (8, 9, 3, 4))
    patches = patches + 0.2 * gaussian(*patches.shape)
    found = tokencut(patches)
    for other in (3 * patches @ rotation(8), patches.float(), patches.bfloat16(), patches.numpy()):
        assert torch.equal(tokencut(other), found)


# --- True objects, boxes, overlaps


def test_regions_are_components_of_the_wanted_classes():
    mask = torch.tensor([[1, 0, 2, 2], [0, 1, 0, 2], [3, 3, 0, 1]])
    found = connected_regions(mask, classes=(1, 2, 9))
    assert found.int().sum((1, 2)).tolist() == [2, 1, 3]  # neighbors by a corner are one
    assert torch.equal(found.any(0), (mask == 1) | (mask == 2))
    assert len(connected_regions(mask, classes=(1, 2), min_area=2)) == 2
    assert connected_regions(mask, classes=()).shape == (0, 3, 4)


def test_boxes_and_their_overlaps_by_hand():
    masks = torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    masks[1, 0, 0] = masks[1, 4, 5] = True
    assert bounding_boxes(masks).tolist() == [[2, 1, 5, 3], [0, 0, 6, 5], [0, 0, 0, 0]]
    ious = box_iou(bounding_boxes(masks), torch.tensor([[2, 1, 5, 3], [3, 1, 6, 3], [0, 0, 1, 1]]))
    torch.testing.assert_close(ious[0], torch.tensor([1, 4 / 8, 0]).double())
    assert not ious[2].any()
    assert mask_iou(masks, masks)[0].tolist() == [1, 0, 0]
    assert mask_iou(masks, masks[:1] | masks[1:2])[:, 0].tolist() == [6 / 8, 2 / 8, 0]


def test_localized_from_a_half_on():
    truth = torch.tensor([[0, 0, 1, 1], [2, 1, 5, 3]])
    assert correctly_localized(torch.tensor([3, 1, 6, 3]), truth)  # 4 of 8
    assert not correctly_localized(torch.tensor([3, 1, 7, 3]), truth)  # 4 of 10
    assert not correctly_localized(torch.tensor([0, 0, 0, 0]), truth)


def test_upsampling_keeps_patches_whole():
    masks = torch.tensor([[[1, 0], [0, 1]]]).bool()
    assert torch.equal(upsample_masks(masks, (4, 6)), masks.repeat_interleave(2, 1).repeat_interleave(3, 2))
    assert upsample_masks(masks[:0], (4, 6)).shape == (0, 4, 6)


# --- Average precision


def test_average_precision_by_hand():
    """Three true objects; by score right, wrong, right: precision 1 up to recall ⅓, ⅔ up to recall ⅔, then 0."""
    ious = [torch.tensor([[0.9, 0.0], [0.0, 0.2]]), torch.tensor([[0.7]])]
    scores = [torch.tensor([0.9, 0.8]), torch.tensor([0.7])]
    ap = average_precision(ious, scores)
    assert ap.shape == (10,)
    expected = (34 * 1 + 33 * 2 / 3) / 101  # recalls 0 to 0.33, 0.34 to 0.66
    assert ap[:5].tolist() == pytest.approx([expected] * 5)  # IoU 0.5 to 0.7
    assert ap[5:9].tolist() == pytest.approx([34 / 101] * 4)  # 0.75 to 0.9: only the first is right
    assert ap[9] == 0


def test_an_object_is_found_once():
    ious, scores = [torch.tensor([[0.8], [0.9]])], [torch.tensor([0.9, 0.8])]
    assert average_precision(ious, scores, thresholds=[0.5]).tolist() == [1]  # the second is wrong, and too late
    assert average_precision(ious, [scores[0].flip(0)], thresholds=[0.85]).tolist() == [1]
    assert average_precision(ious, scores, thresholds=[0.85]).tolist() == [0.5]  # the better mask comes second


def test_the_best_free_object_is_taken():
    ious = [torch.tensor([[0.8, 0.7], [0.9, 0.1]])]
    first, second = torch.tensor([0.9, 0.8]), torch.tensor([0.8, 0.9])
    assert average_precision(ious, [first], thresholds=[0.5])[0].item() == pytest.approx(51 / 101)  # takes the second's
    assert average_precision(ious, [second], thresholds=[0.5])[0].item() == pytest.approx(1)


def test_precision_of_nothing_found_and_of_everything():
    none, scores = torch.zeros(0, 2), torch.zeros(0)
    assert not average_precision([none, torch.zeros(3, 0)], [scores, torch.ones(3)]).any()
    assert average_precision([torch.eye(3)], [torch.zeros(3)]).mean() == 1
    with pytest.raises(ValueError, match="there is no true object"):
        average_precision([torch.zeros(3, 0)], [torch.ones(3)])


def test_at_most_a_hundred_objects_an_image_count():
    ious = torch.zeros(101, 1)
    ious[100] = 1
    assert average_precision([ious], [torch.arange(101.0).flip(0)], thresholds=[0.5]) == 0
    assert average_precision([ious[1:]], [torch.arange(100.0).flip(0)], thresholds=[0.5]) > 0


def test_scores_count_by_their_order_alone():
    g = torch.Generator().manual_seed(0)
    ious = [torch.rand(4, 3, generator=g) for _ in range(6)]
    scores = [torch.rand(4, generator=g) for _ in range(6)]
    ap = average_precision(ious, scores)
    assert torch.equal(average_precision(ious, [s.exp() for s in scores]), ap)
    assert (ap.diff() <= 1e-12).all()  # a stricter threshold is met less often


def test_the_interval_narrows_with_the_root_of_the_images():
    g = torch.Generator().manual_seed(0)
    ious, scores = [torch.rand(3, 2, generator=g) for _ in range(20)], [torch.rand(3, generator=g) for _ in range(20)]
    value = average_precision(ious, scores).mean().item()
    low, high = average_precision_interval(ious, scores)
    assert low < value < high
    copies = average_precision_interval(ious * 4, scores * 4)  # their scores tie, so that AP is about the same
    assert (copies[1] - copies[0]) / (high - low) == pytest.approx(0.5, abs=0.05)
    assert average_precision_interval([torch.eye(2)] * 3, [torch.ones(2)] * 3) == (1, 1)
    with pytest.raises(ValueError, match="an interval needs two images with true objects"):
        average_precision_interval([torch.eye(2), torch.zeros(2, 0)], [torch.ones(2)] * 2)


# --- Errors


def test_bad_input_is_named():
    patches, labels = scene((3, 4, 4, 5))
    nan, zero = patches.clone(), patches.clone()
    nan[0, 0, 0], zero[1, 2] = torch.nan, 0
    for find in (tokencut, maskcut):
        for value, message in [
            (nan, "patches contains NaN"),
            (zero, "patches has a zero row"),
            (patches[0], r"patches must have shape \(gh, gw, d\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                find(value)
    for weights in (torch.ones(3, 4), torch.ones(1, 1), torch.zeros(3, 3), torch.tensor([[1.0, 2], [3, 1]])):
        with pytest.raises(ValueError, match="weights must be symmetric, positive"):
            normalized_cut(weights)
    with pytest.raises(ValueError, match="mask must be integers"):
        connected_regions(labels.float(), classes=(1,))
