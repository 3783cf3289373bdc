"""Objects without labels: normalized cuts of the graph of an image's patches, scored by CorLoc and mask AP.

Images are cut one at a time, so that no matrix is larger than (patches of an image)².
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.linalg import eigh
from torch import Tensor

from ..measures.inputs import Array, as_masks, as_patches, as_tensor, unit_rows
from ..measures.uncertainty import Interval, share_interval

WEAK_EDGE = 1e-5  # between patches that are not alike, where the papers have it
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # from which COCO calls an object found
MOST_OBJECTS = 100  # in an image that COCO counts, the ones of the largest scores


class Cut(NamedTuple):
    """The relaxed indicator y of a normalized cut, one number for each node of the graph, and its eigenvalue λ."""

    indicator: Float[Tensor, " p"]
    eigenvalue: float


class Objects(NamedTuple):
    """Objects found in one image, in the order in which they were found."""

    masks: Bool[Tensor, "m gh gw"]
    scores: Float[Tensor, " m"]  # 1 − λ, λ being the eigenvalue of the cut


def normalized_cut(weights: Array) -> Cut:
    """The normalized cut of a graph in two, relaxed to real numbers.

    the second smallest y of (D − W) y = λ D y, with D = diag(W 1)

    y stands for the indicator of the partition in A and B with the least Ncut = cut/vol(A) + cut/vol(B). λ is a lower
    bound on that Ncut, and lies in [0, p/(p − 1)]. The sign of y is arbitrary, and so is y where λ is no simple
    eigenvalue.

    Args:
        weights: (p, p) symmetric and positive edges W.

    Raises:
        ValueError: weights that are not symmetric, not positive or not (p, p) with p ≥ 2.

    Source: Shi & Malik 2000, eq. 6 and 11.

    >>> two_pairs = torch.tensor([[1, 1, 0.1, 0.1], [1, 1, 0.1, 0.1], [0.1, 0.1, 1, 1], [0.1, 0.1, 1, 1]])
    >>> indicator, eigenvalue = normalized_cut(two_pairs)
    >>> (indicator > 0).tolist() in ([True, True, False, False], [False, False, True, True])
    True
    >>> round(eigenvalue, 6)  # 0.4/4.4 + 0.4/4.4
    0.181818
    """
    weights = as_tensor(weights, "weights")
    w = weights.numpy(force=True).astype(np.float64)
    if w.ndim != 2 or len(w) < 2 or w.shape[0] != w.shape[1] or not (w > 0).all() or not np.allclose(w, w.T):
        raise ValueError(f"weights must be symmetric, positive and (p, p) with p at least 2, got shape {w.shape}")
    root = 1 / np.sqrt(w.sum(1))
    values, vectors = eigh(np.eye(len(w)) - root[:, None] * w * root, subset_by_index=[1, 1])
    return Cut(torch.from_numpy(vectors[:, 0] * root).to(weights.device), float(values[0]))


@torch.no_grad()
def tokencut(patches: Array, *, tau: int | float = 0.2) -> Bool[Tensor, "gh gw"]:
    """TokenCut: the mask of the most salient object of an image.

    Patches are joined by an edge of 1 where their cosine exceeds tau, and by one of 10⁻⁵ elsewhere. The graph is cut in
    two where the second eigenvector exceeds its mean. The side with the patch of the largest |entry| is the foreground,
    and the object is the connected component (4-neighbors) of the foreground that holds this patch. No object is found
    where all edges are alike, as in collapsed features.

    Args:
        patches: (gh, gw, d) patch features of the image.
        tau: cosine from which patches are alike.

    Raises:
        ValueError: a zero patch, NaN, or another shape.

    Source: Wang et al. 2022 (TokenCut, arXiv 2202.11539), without its edge refinement.

    >>> labels = torch.zeros(4, 5, dtype=torch.int64)
    >>> labels[1:3, 1:3] = 1
    >>> torch.equal(tokencut(torch.eye(2)[labels]), labels == 1)
    True
    """
    z = unit_rows(as_patches(patches, rank="gh gw d"), "patches")
    found = _cut_object(z, torch.ones(z.shape[:2], dtype=torch.bool), tau, corners=False)
    mask = found.mask if found else torch.zeros(z.shape[:2], dtype=torch.bool)
    return mask.to(z.device)


@torch.no_grad()
def maskcut(patches: Array, *, objects: int = 3, tau: int | float = 0.15) -> Objects:
    """MaskCut: the masks of several objects of an image, found one after the other.

    Each is found as in `tokencut`, and its patches leave the graph before the next cut. A side that holds three or four
    corners of the image is never foreground. The search ends where all edges are alike, or with an object of at most
    1 % of the patches, which is dropped.

    Args:
        patches: (gh, gw, d) patch features of the image.
        objects: how many are found at most.
        tau: cosine from which patches are alike.

    Raises:
        ValueError: a zero patch, NaN, or another shape.

    Source: Wang et al. 2023 (CutLER, arXiv 2301.11320) section 3.2, without its conditional random field. There the
    patches of what was found keep edges of 10⁻⁵, and the choice of the foreground depends on the eigenvector's sign.

    >>> labels = torch.zeros(6, 9, dtype=torch.int64)
    >>> labels[1:3, 1:3], labels[3:5, 5:8] = 1, 2
    >>> maskcut(torch.eye(3)[labels]).masks.sum((1, 2)).sort().values.tolist()
    [4, 6]
    """
    z = unit_rows(as_patches(patches, rank="gh gw d"), "patches")
    free = torch.ones(z.shape[:2], dtype=torch.bool)
    masks, scores = [], []
    for _ in range(objects):
        found = _cut_object(z, free, tau, corners=True)
        if found is None or found.mask.sum() <= 0.01 * free.numel():
            break
        masks.append(found.mask)
        scores.append(1 - found.eigenvalue)
        free = free & ~found.mask
    masks = torch.stack(masks) if masks else free.new_zeros(0, *free.shape)
    return Objects(masks.to(z.device), torch.tensor(scores, device=z.device))


def upsample_masks(masks: Bool[Tensor, "m gh gw"], size: tuple[int, int]) -> Bool[Tensor, "m h w"]:
    """Masks of patches as masks of pixels: each pixel has the value of the patch that holds its center.

    Args:
        masks: (m, gh, gw) masks, of which there may be none.
        size: (h, w) in pixels.

    >>> upsample_masks(torch.eye(2).bool()[None], (2, 4))[0].int().tolist()
    [[1, 1, 0, 0], [0, 0, 1, 1]]
    """
    if not len(masks):
        return masks.new_zeros(0, *size)
    return F.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0.5


def connected_regions(mask: Array, *, classes: Sequence[int], min_area: int | float = 1) -> Bool[Tensor, "g h w"]:
    """Connected components (8-neighbors) of the classes of a mask, each component a mask of its own.

    They stand for objects where a mask knows classes and no instances. Objects of a class that touch are one region,
    and an occluded object may be several.

    Args:
        mask: (h, w) class of each pixel.
        classes: those whose regions are wanted.
        min_area: pixels of the smallest region that counts.

    Raises:
        ValueError: a mask that is no (h, w) of non-negative integers.

    >>> mask = torch.tensor([[1, 0, 2], [1, 0, 2], [0, 0, 1]])
    >>> connected_regions(mask, classes=(1,)).sum((1, 2)).tolist()
    [2, 1]
    """
    mask = as_masks(as_tensor(mask, "mask")[None], 1, "mask")[0]
    pixels, found = mask.numpy(force=True), []
    for c in np.intersect1d(pixels, classes):
        labels, count = ndimage.label(pixels == c, np.ones((3, 3)))
        found += [region for i in range(1, count + 1) if (region := labels == i).sum() >= min_area]
    found = np.stack(found) if found else np.zeros((0, *pixels.shape), dtype=bool)
    return torch.from_numpy(found).to(mask.device)


def bounding_boxes(masks: Bool[Tensor, "m h w"]) -> Int[Tensor, "m 4"]:
    """Smallest box (left, top, right, bottom) around each mask, right and bottom exclusive; zeros for an empty mask.

    >>> bounding_boxes(torch.tensor([[[0, 1, 1], [0, 1, 0]]]).bool()).tolist()
    [[1, 0, 3, 2]]
    """
    found = torch.zeros(len(masks), 4, dtype=torch.int64, device=masks.device)
    for row, mask in zip(found, masks, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        if len(y):
            row[:] = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return found


def box_iou(x: Int[Tensor, "m 4"], y: Int[Tensor, "g 4"]) -> Float[Tensor, "m g"]:
    """Intersection over union of all pairs of boxes (left, top, right, bottom), in [0, 1]; 0 where both are empty.

    >>> box_iou(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 0, 3, 2], [0, 0, 2, 4]])).tolist()[0][1]
    0.5
    """
    y = y.to(x.device)
    low, high = torch.maximum(x[:, None, :2], y[None, :, :2]), torch.minimum(x[:, None, 2:], y[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)  # (m, g)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (x, y)]
    return both / (area[0][:, None] + area[1] - both).clamp(min=1).double()


def mask_iou(x: Bool[Tensor, "m h w"], y: Bool[Tensor, "g h w"]) -> Float[Tensor, "m g"]:
    """Intersection over union of all pairs of masks, in [0, 1]; 0 where both are empty.

    >>> mask_iou(torch.tensor([[[1, 1, 0]]]).bool(), torch.tensor([[[1, 0, 0]], [[0, 0, 1]]]).bool()).tolist()
    [[0.5, 0.0]]
    """
    x, y = x.flatten(1).double(), y.flatten(1).to(x.device).double()
    both = x @ y.T
    return both / (x.sum(1)[:, None] + y.sum(1) - both).clamp(min=1)


def correctly_localized(box: Int[Tensor, " 4"], truth: Int[Tensor, "g 4"]) -> bool:
    """Whether a box has an IoU of at least ½ with one of the true boxes of its image.

    CorLoc is the share of images where it has; images without an object are left out.

    Args:
        box: (4,) left, top, right and bottom.
        truth: (g, 4) the true boxes.

    Source: Deselaers et al. 2012; Siméoni et al. 2021 (arXiv 2109.14279) for the images that are left out.

    >>> correctly_localized(torch.tensor([0, 0, 4, 4]), torch.tensor([[1, 0, 5, 4]]))  # IoU 12/20
    True
    """
    return bool((box_iou(box[None], truth) >= 0.5).any())


def average_precision(
    ious: Sequence[Float[Tensor, "_ _"]],
    scores: Sequence[Float[Tensor, " _"]],
    *,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> Float[Tensor, " t"]:
    """COCO's average precision over all images, without regard to classes, at each IoU threshold.

    AP = mean over recalls r = 0, 0.01, ..., 1 of the largest precision at recall r or more

    In an image, the objects found take the true ones in the order of their scores: each takes the one of the largest
    IoU that is still free, if that IoU reaches the threshold. At most 100 objects in an image count, and equal scores
    count in the order of the images. The range is 0 to 1, and higher is better. The mean of the result is COCO's AP;
    its first entry is AP50.

    Args:
        ious: for each image the (m, g) IoU of the objects found with the true ones.
        scores: for each image the (m,) scores of the objects found.
        thresholds: t IoUs from which an object counts as found.

    Returns:
        (t,) average precisions.

    Raises:
        ValueError: no true object in any image.

    Source: Lin et al. 2014 (COCO), as in pycocotools, with all areas and no crowds.

    >>> ious, scores = [torch.tensor([[0.9], [0.1]])], [torch.tensor([0.8, 0.7])]  # the better one is right
    >>> average_precision(ious, scores, thresholds=[0.5, 0.95]).tolist()
    [1.0, 0.0]
    """
    return _precision([_matched(iou, s, thresholds) for iou, s in zip(ious, scores, strict=True)])


def average_precision_interval(
    ious: Sequence[Float[Tensor, "_ _"]], scores: Sequence[Float[Tensor, " _"]], *, level: float = 0.95
) -> Interval:
    """Confidence interval over images of COCO's AP, the mean of `average_precision`.

    It is the `share_interval` over images. In simulations, intervals of 95 % held the truth in 95 % of samples.

    Args:
        ious: as for `average_precision`, as are scores.
        level: the probability of the interval.

    Raises:
        ValueError: fewer than two images with true objects.

    >>> average_precision_interval([torch.eye(2)] * 3, [torch.ones(2)] * 3) == (1, 1)  # perfect in each image
    True
    """
    images = [_matched(iou, s, IOU_THRESHOLDS) for iou, s in zip(ious, scores, strict=True)]
    if sum(image.total > 0 for image in images) < 2:
        raise ValueError("an interval needs two images with true objects")
    value = _precision(images).mean().item()
    left_out = [_precision(images[:i] + images[i + 1 :]).mean() for i in range(len(images))]
    return share_interval(value, torch.stack(left_out), level=level)


class _CutObject(NamedTuple):
    """An object, and the eigenvalue λ of the cut that found it."""

    mask: Bool[Tensor, "gh gw"]
    eigenvalue: float


def _cut_object(
    z: Float[Tensor, "gh gw d"], free: Bool[Tensor, "gh gw"], tau: float, *, corners: bool
) -> _CutObject | None:
    """The object that the normalized cut of the free patches finds; None where all edges are alike.

    corners: a side with three corners of the image is background.
    """
    rows = z[free.to(z.device)]  # (p, d)
    alike = (rows @ rows.T > tau).cpu()
    alike.fill_diagonal_(True)
    if alike.all() or not alike.triu(1).any():
        return None
    y, eigenvalue = normalized_cut(torch.where(alike, 1.0, WEAK_EDGE))
    grid = torch.zeros(free.shape, dtype=y.dtype)
    grid[free] = y
    side = torch.zeros_like(free)
    side[free] = y > y.mean()
    seed = grid.abs().argmax()
    if not side.flatten()[seed]:
        side, grid = free & ~side, -grid
    if corners and side[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        side, grid = free & ~side, -grid
        seed = grid.argmax()
    labels, _ = ndimage.label(side.numpy())
    return _CutObject(torch.from_numpy(labels == labels.flat[int(seed)]) & side, eigenvalue)


class _Matches(NamedTuple):
    """The objects found in one image, in the order of their scores, and whether each is a true one."""

    hits: Bool[Tensor, "m t"]  # by threshold
    scores: Float[Tensor, " m"]
    total: int  # true objects


def _matched(iou: Float[Tensor, "m g"], scores: Float[Tensor, " m"], thresholds: Sequence[float]) -> _Matches:
    """Objects take the true one of the largest IoU that is still free, those of the largest scores first."""
    order = scores.argsort(descending=True, stable=True)[:MOST_OBJECTS]
    hits = torch.zeros(len(order), len(thresholds), dtype=torch.bool)
    for j, threshold in enumerate(thresholds):
        free = iou.clone()
        for i, row in enumerate(order if iou.shape[1] else []):
            best, at = free[row].max(0)
            if best >= threshold:
                hits[i, j] = True
                free[:, at] = -1
    return _Matches(hits, scores[order], iou.shape[1])


def _precision(images: Sequence[_Matches]) -> Float[Tensor, " t"]:
    """Precision at each threshold, averaged over COCO's 101 recalls."""
    total = sum(image.total for image in images)
    if not total:
        raise ValueError("there is no true object")
    order = torch.cat([image.scores for image in images]).argsort(descending=True, stable=True)
    right = torch.cat([image.hits for image in images])[order].mT.double().cumsum(1)  # (t, m)
    precision = right / torch.arange(1, right.shape[1] + 1)
    if len(order):
        precision = precision.flip(1).cummax(1).values.flip(1)  # the largest at this recall or more
    recalls = torch.from_numpy(np.linspace(0, 1, 101))  # NumPy's rounding is COCO's
    at = torch.searchsorted(right / total, recalls.repeat(len(right), 1))
    return F.pad(precision, (0, 1)).gather(1, at).mean(1)
