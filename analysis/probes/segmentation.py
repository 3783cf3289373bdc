"""Semantic segmentation on frozen patch features: a linear probe, nearest neighbors, class means; scored by IoU.

A segmenter maps patch features (n, gh, gw, d) to scores (n, classes, gh, gw). Its masks are the largest of the scores
after bilinear interpolation to whatever size the true masks have, which cover the same field as the features.
Masks (n, h, w) hold class indices below `classes`; `ignore` marks pixels without a label, which count nowhere.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..measures.inputs import Array, as_masks, as_patches, unit_rows
from ..measures.neighbors import largest_products
from ..measures.uncertainty import leave_one_out_interval

Segmenter = Callable[[Array], Float[Tensor, "n k gh gw"]]
ELEMENTS = 2**24  # of the largest temporary
UNLABELED = -100  # what `ignore` is turned into for the cross-entropy


def linear_segmenter(
    patches: Array,
    masks: Array,
    *,
    classes: int,
    ignore: int | None = None,
    steps: int = 2000,
    lr: int | float = 1e-3,
    weight_decay: int | float = 1e-4,
    batch: int = 16,
    pixels: int = 256,
    seed: int = 0,
) -> Segmenter:
    """Linear classifier of standardized patch features, trained on the pixels of the upsampled logits.

    Minimizes the cross-entropy of bilinearly interpolated logits over labeled pixels, as DINOv2's linear head does:
    features standardized per channel (there by batch normalization), AdamW, a linear warm-up over 4% of the steps,
    then a linear decay to 0. A step sees `pixels` random pixels of each of `batch` random images: an unbiased estimate
    of the loss over all pixels, at a fraction of its memory. No augmentation.

    patches (n, gh, gw, d), masks (n, h, w). A class without training pixels wins nowhere. Fully collapsed features
    predict the most frequent class everywhere.
    ValueError: labels outside 0..classes − 1 that are not `ignore`, no labeled pixel, NaN.

    Source: Oquab et al. 2023 (DINOv2, arXiv 2304.07193) section 7.4, "lin.", and its released segmentation head.
    """
    patches, masks = _training_set(patches, masks, classes, ignore)
    for name, value in (("steps", steps), ("lr", lr), ("batch", batch), ("pixels", pixels)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    labeled = torch.ones_like(masks, dtype=torch.bool) if ignore is None else masks != ignore
    labels, targets = masks[labeled].unique(return_inverse=True)  # the classes that are to be told apart
    targets = torch.full_like(masks, UNLABELED).masked_scatter(labeled, targets.to(masks.dtype))
    std, mean = torch.std_mean(patches, (0, 1, 2), correction=0)  # (d,)
    scale = torch.where(std > 0, 1 / std, 0)
    weight = torch.zeros(len(mean), len(labels), dtype=mean.dtype, device=mean.device)
    bias = torch.zeros_like(weight[0])

    def logits(z: Float[Tensor, "n gh gw d"]) -> Float[Tensor, "n l gh gw"]:
        return (((z - mean) * scale) @ weight + bias).movedim(-1, 1)

    generator = torch.Generator(patches.device).manual_seed(seed)

    def loss() -> Float[Tensor, ""]:
        rows = torch.randint(len(patches), (batch,), generator=generator, device=patches.device)
        grid, target = _random_pixels(targets[rows], pixels, generator)
        at = F.grid_sample(logits(patches[rows]), grid.to(mean), padding_mode="border", align_corners=False)
        total = F.cross_entropy(at[:, :, 0], target, ignore_index=UNLABELED, reduction="sum")
        return total / (target != UNLABELED).sum().clamp(min=1)

    _minimize(loss, [weight, bias], steps=steps, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def scores(patches: Array) -> Float[Tensor, "n k gh gw"]:
        known = logits(_queries(patches, mean))
        everything = known.new_full((len(known), classes, *known.shape[2:]), known.min().item() - 1)
        everything[:, labels.long()] = known
        return everything

    return scores


def knn_segmenter(
    patches: Array,
    masks: Array,
    *,
    classes: int,
    ignore: int | None = None,
    k: int = 30,
    temp: int | float = 0.02,
    chunk: int = 256,
) -> Segmenter:
    """Nearest-neighbor segmentation: a patch has the labels of the k training patches of the largest cosine.

    score_c = Σ exp(cos/temp) share_c / Σ exp(cos/temp) over them, share_c being class c's share of the
    labeled pixels of a training patch. Training patches without a label are left out. Exact, in blocks of `chunk`
    patches against tiles of the training set. Needs no training, so it says what the features know as they are.
    ValueError: k above the number of training patches with labels, a zero patch, as for `linear_segmenter`.

    Source: Balažević et al. 2023 (arXiv 2306.01667) section 3; k and temperature as in open-hummingbird-eval.
    """
    z, shares = _labeled_patches(patches, masks, classes, ignore)
    if not 1 <= k <= len(z):
        raise ValueError(f"k must be between 1 and the number of training patches with labels, {len(z)}, got {k}")
    for name, value in (("temp", temp), ("chunk", chunk)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")

    @torch.no_grad()
    def scores(patches: Array) -> Float[Tensor, "n k gh gw"]:
        found, patches = [], _queries(patches, z)
        for rows in unit_rows(patches.flatten(0, 2), "patches").split(chunk):
            similarity, neighbor = largest_products(rows, z, k)  # (c, k) both
            weight = (similarity / temp).softmax(1)
            # One neighbor after the other: (c, classes) each, where (c, k, classes) would not fit.
            found.append(sum(weight[:, i, None] * shares[neighbor[:, i]] for i in range(k)))
        return torch.cat(found).unflatten(0, patches.shape[:3]).movedim(-1, 1)

    return scores


def prototype_segmenter(patches: Array, masks: Array, *, classes: int, ignore: int | None = None) -> Segmenter:
    """Nearest class mean: the score of class c is the cosine with the mean of the unit patch features labeled c.

    prototype_c = Σ share_c z / ‖Σ share_c z‖ over training patches z, share_c being c's share of a patch's labeled
    pixels. Classes without training pixels score −2, and win nowhere. ValueError as for `knn_segmenter`.

    Source: Snell et al. 2017 (arXiv 1703.05175) for prototypes, here of cosines.
    """
    z, shares = _labeled_patches(patches, masks, classes, ignore)
    sums = shares.T @ z  # (classes, d)
    norm = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
    present = norm[:, 0] > 0
    prototypes = sums / norm.where(norm > 0, 1)

    def scores(patches: Array) -> Float[Tensor, "n k gh gw"]:
        cosines = unit_rows(_queries(patches, z), "patches") @ prototypes.T
        return cosines.masked_fill(~present, -2.0).movedim(-1, 1)  # not −∞, which interpolates to NaN

    return scores


@torch.no_grad()
def predict(segmenter: Segmenter, patches: Array, size: tuple[int, int]) -> Int[Tensor, "n h w"]:
    """Masks (n, h, w) of a size: the class of the largest bilinearly interpolated score; ties go to the lower class."""
    patches = as_patches(patches)
    with torch.autocast(patches.device.type, enabled=False):
        scores = segmenter(patches)
    step = max(1, ELEMENTS // (scores.shape[1] * size[0] * size[1]))
    upsampled = (F.interpolate(part, size, mode="bilinear", align_corners=False) for part in scores.split(step))
    return torch.cat([part.argmax(1) for part in upsampled])


class Confusion:
    """Pixels by true and predicted class, summed over any number of images, whose own counts are kept for the error."""

    def __init__(self, classes: int, *, ignore: int | None = None):
        self.classes, self.ignore = classes, ignore
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64)  # true × predicted
        self.images = torch.zeros(0, 3, classes, dtype=torch.int64)  # of each image: in both, predicted, true

    def update(self, predicted: Int[Tensor, "n h w"], masks: Array) -> "Confusion":
        """Count n more images; predicted and masks have one size, and what masks call `ignore` is not counted."""
        masks = as_masks(masks, len(predicted), classes=self.classes, ignore=self.ignore, device=predicted.device)
        if masks.shape != predicted.shape:
            raise ValueError(f"predicted masks {tuple(predicted.shape)} and masks {tuple(masks.shape)} differ in size")
        as_masks(predicted, len(masks), "predicted", classes=self.classes)
        image = torch.arange(len(masks), device=masks.device)[:, None, None]
        index = (image * self.classes + masks.long()) * self.classes + predicted  # (n, h, w)
        index = index.flatten() if self.ignore is None else index[masks != self.ignore]
        counts = index.bincount(minlength=len(masks) * self.classes**2).view(-1, self.classes, self.classes).cpu()
        self.matrix += counts.sum(0)
        each = torch.stack((counts.diagonal(dim1=1, dim2=2), counts.sum(1), counts.sum(2)), 1)  # (n, 3, classes)
        self.images = torch.cat((self.images, each))
        return self

    @property
    def iou(self) -> Float[Tensor, " k"]:
        """Intersection over union of each class, in [0, 1], higher is better; NaN for classes in no true mask."""
        return _iou(self._counted().sum(0))

    @property
    def miou(self) -> Float[Tensor, ""]:
        """Mean IoU of the classes that are in some true mask, seen in training or not."""
        return self.iou.nanmean()

    @property
    def pixel_accuracy(self) -> Float[Tensor, ""]:
        """Share of the labeled pixels that have their class."""
        both, _, true = self._counted().sum((0, 2)).double()
        return both / true

    def miou_interval(self, *, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of `miou` over images, with the segmenter as it is."""
        images = self._counted()
        images = images[images[:, 2].any(1)]
        if len(images) < 2:
            raise ValueError("an interval needs two images with labeled pixels, got 1")
        left_out = _iou(images.sum(0) - images).nanmean(1)  # a class that goes with its only image leaves the mean
        return leave_one_out_interval(self.miou.item(), left_out, level=level)

    def _counted(self) -> Int[Tensor, "n 3 k"]:
        if not self.images[:, 2].any():
            raise ValueError("no labeled pixel was counted")
        return self.images


def segmentation_confusion(
    segmenter: Segmenter, patches: Array, masks: Array, *, classes: int, ignore: int | None = None
) -> Confusion:
    """The `Confusion` of a segmenter on images it was not trained on; masks (n, h, w) of any size."""
    patches = as_patches(patches)
    confusion, masks = Confusion(classes, ignore=ignore), as_masks(masks, len(patches), classes=classes, ignore=ignore)
    step = max(1, ELEMENTS // (classes * masks[0].numel()))
    for some, true in zip(patches.split(step), masks.split(step), strict=True):
        confusion.update(predict(segmenter, some, true.shape[1:]), true)
    return confusion


def patch_labels(
    masks: Int[Tensor, "n h w"], grid: tuple[int, int], *, classes: int, ignore: int | None = None
) -> Float[Tensor, "n gh gw k"]:
    """Share of each class among the labeled pixels of each patch; all 0 for a patch without one.

    A pixel belongs to the patch that holds its center, whether or not the grid divides the mask's size.
    """
    gh, gw = grid
    row, column = (_cells(side, cells, masks.device) for side, cells in zip(masks.shape[1:], grid, strict=True))
    patch = row[:, None] * gw + column  # (h, w)
    shares = []
    for mask in masks:
        index = patch * classes + mask
        index = index.flatten() if ignore is None else index[mask != ignore]
        counts = index.bincount(minlength=gh * gw * classes).view(gh, gw, classes).float()
        shares.append(counts / counts.sum(-1, keepdim=True).clamp(min=1))
    return torch.stack(shares)


def _cells(side: int, cells: int, device: torch.device) -> Int[Tensor, " side"]:
    """Which of equal cells along a side holds each pixel's center."""
    return (2 * torch.arange(side, device=device) + 1) * cells // (2 * side)


def _iou(counts: Int[Tensor, "*b 3 k"]) -> Float[Tensor, "*b k"]:
    both, predicted, true = counts.double().unbind(-2)
    return torch.where(true > 0, both / (predicted + true - both), torch.nan)


def _training_set(patches: Array, masks: Array, classes: int, ignore: int | None) -> tuple[Tensor, Tensor]:
    patches = as_patches(patches)
    masks = as_masks(masks, len(patches), classes=classes, ignore=ignore, device=patches.device)
    if ignore is not None and not (masks != ignore).any():
        raise ValueError("masks have no labeled pixel")
    return patches, masks


def _queries(patches: Array, like: Float[Tensor, "*m d"]) -> Float[Tensor, "n gh gw d"]:
    """Patches to segment, in the type, the device and the dimension of those that the segmenter was trained on."""
    patches = as_patches(patches).to(like)
    if patches.shape[-1] != like.shape[-1]:
        raise ValueError(f"patches must have d = {like.shape[-1]}, as in training, got {patches.shape[-1]}")
    return patches


def _labeled_patches(patches: Array, masks: Array, classes: int, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Unit features (m, d) of the training patches that have a labeled pixel, and their shares of classes (m, k)."""
    patches, masks = _training_set(patches, masks, classes, ignore)
    shares = patch_labels(masks, patches.shape[1:3], classes=classes, ignore=ignore).flatten(0, 2)
    labeled = shares.any(1)
    return unit_rows(patches.flatten(0, 2)[labeled], "patches"), shares[labeled].to(patches.dtype)


def _minimize(
    loss: Callable[[], Tensor], parameters: list[Tensor], *, steps: int, lr: int | float, weight_decay: int | float
):
    """AdamW on a random loss, the rate warming up over 4% of the steps and then falling to 0, both linearly."""
    optimizer = torch.optim.AdamW([p.requires_grad_() for p in parameters], lr=lr, weight_decay=weight_decay)
    warmup = max(1.0, 0.04 * steps)
    ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 1 - step / steps))
    with torch.autocast(parameters[0].device.type, enabled=False), torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            ramp.step()
    for p in parameters:
        p.requires_grad_(False)


def _random_pixels(masks: Int[Tensor, "n h w"], pixels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pixels of each mask: their centers (n, 1, pixels, 2) for `grid_sample`, and their labels (n, pixels)."""
    n, h, w = masks.shape
    at = torch.randint(h * w, (n, pixels), generator=generator, device=masks.device)
    x, y = (2 * (at % w) + 1) / w - 1, (2 * (at // w) + 1) / h - 1
    return torch.stack((x, y), -1)[:, None], masks.flatten(1).gather(1, at).long()
