"""Objects without labels: normalized cuts of the graph of an image's patches, scored by CorLoc and mask AP.

One image at a time, so that no matrix is larger than (patches of an image)².
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

from ..measures.inputs import Array, as_masks, as_patches, unit_rows
from ..measures.uncertainty import leave_one_out_interval

WEAK = 1e-5  # weight of the edges between patches that are not alike
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # COCO's IoUs
MOST = 100  # objects an image that COCO counts


class Objects(NamedTuple):
    """Objects found in one image, in the order in which they were."""

    masks: Bool[Tensor, "m gh gw"]
    scores: Float[Tensor, " m"]  # 1 − λ, λ being the eigenvalue of the cut


def normalized_cut(weights: Array) -> tuple[Float[Tensor, " p"], float]:
    """Second smallest y of (D − W) y = λ D y, and its λ, for the symmetric, positive weights W (p, p) of a graph.

    y is the real relaxation of the indicator of the partition with the least Ncut = cut/vol(A) + cut/vol(B), on which
    λ is a lower bound; λ ∈ [0, p/(p − 1)]. The sign of y is arbitrary, and so is y where λ is no simple eigenvalue.

    Source: Shi & Malik 2000, eq. 6 and 11.
    """
    w = np.asarray(torch.as_tensor(weights).cpu(), dtype=np.float64)
    if w.ndim != 2 or len(w) < 2 or w.shape[0] != w.shape[1] or not (w > 0).all() or not np.allclose(w, w.T):
        raise ValueError(f"weights must be symmetric, positive and (p, p) with p at least 2, got shape {w.shape}")
    root = 1 / np.sqrt(w.sum(1))
    values, vectors = eigh(np.eye(len(w)) - root[:, None] * w * root, subset_by_index=[1, 1])
    return torch.from_numpy(vectors[:, 0] * root), float(values[0])


@torch.no_grad()
def tokencut(patches: Array, *, tau: int | float = 0.2) -> Bool[Tensor, "gh gw"]:
    """The one object of an image, given its patch features (gh, gw, d).

    Patches are joined by 1 where their cosine exceeds tau, else by 10⁻⁵. The graph is cut in two where the second
    eigenvector exceeds its mean; foreground is the side with the patch of the largest |entry|, and the object is that
    patch's connected component of it (4-neighbors). No object where all edges are alike, as in collapsed features.

    Source: Wang et al. 2022 (TokenCut, arXiv 2202.11539), without its edge refinement.
    """
    z = unit_rows(as_patches(patches, rank="gh gw d"), "patches")
    found = _cut(z, torch.ones(z.shape[:2], dtype=torch.bool), tau, corners=False)
    return found[0] if found else torch.zeros(z.shape[:2], dtype=torch.bool)


@torch.no_grad()
def maskcut(patches: Array, *, objects: int = 3, tau: int | float = 0.15) -> Objects:
    """Find up to `objects` objects of an image, given its patch features (gh, gw, d).

    As `tokencut`, again and again: the patches of what was found leave the graph before the next cut. A side that
    holds three or four corners of the image is never foreground. Ends where all edges are alike, or with an object of
    at most 1% of the patches.

    Source: Wang et al. 2023 (CutLER, arXiv 2301.11320) section 3.2, without its conditional random field. There the
    patches of what was found keep edges of 10⁻⁵, and the choice of the foreground depends on the eigenvector's sign.
    """
    z = unit_rows(as_patches(patches, rank="gh gw d"), "patches")
    free = torch.ones(z.shape[:2], dtype=torch.bool)
    masks, scores = [], []
    for _ in range(objects):
        found = _cut(z, free, tau, corners=True)
        if found is None or found[0].sum() <= 0.01 * free.numel():
            break
        masks.append(found[0])
        scores.append(1 - found[1])
        free = free & ~found[0]
    return Objects(torch.stack(masks) if masks else free.new_zeros(0, *free.shape), torch.tensor(scores))


def upsample(masks: Bool[Tensor, "m gh gw"], size: tuple[int, int]) -> Bool[Tensor, "m h w"]:
    """Masks of patches as masks of pixels: each pixel has the value of the patch that holds its center."""
    if not len(masks):
        return masks.new_zeros(0, *size)
    return F.interpolate(masks[None].float(), size, mode="nearest-exact")[0] > 0.5


def regions(mask: Array, *, classes: Sequence[int], min_area: int | float = 1) -> Bool[Tensor, "g h w"]:
    """Connected components (8-neighbors) of each of some classes of a mask (h, w), from `min_area` pixels on.

    Stands for objects where a mask knows classes and no instances: touching objects of a class are one region, an
    occluded object may be several.
    """
    mask = as_masks(torch.as_tensor(mask)[None], 1, "mask")[0].cpu().numpy()
    found = []
    for c in np.intersect1d(mask, classes):
        labels, count = ndimage.label(mask == c, np.ones((3, 3)))
        found += [region for i in range(1, count + 1) if (region := labels == i).sum() >= min_area]
    return torch.from_numpy(np.stack(found) if found else np.zeros((0, *mask.shape), dtype=bool))


def boxes(masks: Bool[Tensor, "m h w"]) -> Int[Tensor, "m 4"]:
    """Smallest box (left, top, right, bottom) around each mask, right and bottom exclusive; zeros around nothing."""
    found = torch.zeros(len(masks), 4, dtype=torch.int64)
    for row, mask in zip(found, masks, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        if len(y):
            row[:] = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return found


def box_iou(x: Int[Tensor, "m 4"], y: Int[Tensor, "g 4"]) -> Float[Tensor, "m g"]:
    """Intersection over union of all pairs of boxes; 0 where both are empty."""
    low, high = torch.maximum(x[:, None, :2], y[None, :, :2]), torch.minimum(x[:, None, 2:], y[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)  # (m, g)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (x, y)]
    return both / (area[0][:, None] + area[1] - both).clamp(min=1).double()


def mask_iou(x: Bool[Tensor, "m h w"], y: Bool[Tensor, "g h w"]) -> Float[Tensor, "m g"]:
    """Intersection over union of all pairs of masks; 0 where both are empty."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    both = x @ y.T
    return both / (x.sum(1)[:, None] + y.sum(1) - both).clamp(min=1)


def localized(box: Int[Tensor, " 4"], truth: Int[Tensor, "g 4"]) -> bool:
    """Whether a box has an IoU of at least ½ with one of the true ones; CorLoc is the share of images where it has.

    Source: Deselaers et al. 2012; images without an object are left out, as in Siméoni et al. 2021 (arXiv 2109.14279).
    """
    return bool((box_iou(box[None], truth) >= 0.5).any())


def average_precision(
    ious: Sequence[Float[Tensor, "_ _"]],
    scores: Sequence[Float[Tensor, " _"]],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Float[Tensor, " t"]:
    """COCO's average precision, classes aside, at each IoU threshold; their mean is AP, the first is AP50.

    ious: for each image the IoU of the m found objects with the g true ones; scores: of the found ones. In an image the
    best object first takes the true one of the largest IoU that is free, if that reaches the threshold. AP is the mean
    over recalls 0, 0.01, ..., 1 of the largest precision at that recall or more. In [0, 1], higher is better; at most
    100 objects an image count, equal scores count in the order of the images.
    ValueError: no true object.

    Source: Lin et al. 2014 (COCO), as in pycocotools, with all areas and no crowds.
    """
    return _precision([_matched(iou, s, thresholds) for iou, s in zip(ious, scores, strict=True)])


def average_precision_interval(
    ious: Sequence[Float[Tensor, "_ _"]], scores: Sequence[Float[Tensor, " _"]], *, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval over images of the mean of `average_precision`; in simulations it held the truth in 95%."""
    images = [_matched(iou, s, THRESHOLDS) for iou, s in zip(ious, scores, strict=True)]
    if sum(image.total > 0 for image in images) < 2:
        raise ValueError("an interval needs two images with true objects")
    value = _precision(images).mean().item()
    left_out = [_precision(images[:i] + images[i + 1 :]).mean() for i in range(len(images))]
    return leave_one_out_interval(value, torch.stack(left_out), level=level)


def _cut(z: Float[Tensor, "gh gw d"], free: Bool[Tensor, "gh gw"], tau: float, *, corners: bool):
    """(object, λ) of the least normalized cut of the free patches; None where all edges are alike."""
    rows = z[free.to(z.device)]  # (p, d)
    alike = (rows @ rows.T > tau).cpu()
    alike.fill_diagonal_(True)
    if alike.all() or not alike.triu(1).any():
        return None
    y, value = normalized_cut(torch.where(alike, 1.0, WEAK))
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
    return torch.from_numpy(labels == labels.flat[int(seed)]) & side, value


class _Found(NamedTuple):
    """What was found in one image, and which of it is right."""

    hits: Bool[Tensor, "m t"]  # by threshold
    scores: Float[Tensor, " m"]
    total: int  # true objects


def _matched(iou: Float[Tensor, "m g"], scores: Float[Tensor, " m"], thresholds: Sequence[float]) -> _Found:
    """Found objects, the best first, take the true one that they meet best, if it is still free."""
    order = scores.argsort(descending=True, stable=True)[:MOST]
    hits = torch.zeros(len(order), len(thresholds), dtype=torch.bool)
    for j, threshold in enumerate(thresholds):
        free = iou.clone()
        for i, row in enumerate(order if iou.shape[1] else []):
            best, at = free[row].max(0)
            if best >= threshold:
                hits[i, j] = True
                free[:, at] = -1
    return _Found(hits, scores[order], iou.shape[1])


def _precision(images: Sequence[_Found]) -> Float[Tensor, " t"]:
    """Precision at each threshold, averaged over 101 recalls."""
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
