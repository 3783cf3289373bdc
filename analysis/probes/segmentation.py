"""Semantic segmentation from frozen patch features: linear probe, nearest neighbors and class means, scored by IoU.

A segmenter maps patch features (n, gh, gw, d) to scores (n, classes, gh, gw). Its masks are the classes of the largest
scores after bilinear interpolation to the size of the true masks, which cover the same field as the features. Masks
(n, h, w) hold class indices below `classes`, and `ignore` where pixels have no label and count nowhere.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from simdino.losses import check_numbers

from ..measures.inputs import Array, as_masks, as_patches, unit_rows
from ..measures.neighbors import largest_products
from ..measures.uncertainty import Interval, share_interval

Segmenter = Callable[[Array], Float[Tensor, "n k gh gw"]]
SCORE_ELEMENTS = 2**24  # of the largest block of scores that are interpolated at once: 64 MiB
UNLABELED = -100  # what `ignore` becomes for the cross-entropy


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
    """Linear classifier of standardized patch features, trained on pixels of the upsampled logits.

    It minimizes the cross-entropy of bilinearly interpolated logits over labeled pixels, as DINOv2's linear head does.
    Features are standardized per channel (there by batch normalization). AdamW warms up linearly over 4 % of the steps,
    and then decays linearly to 0. Each step sees `pixels` random pixels of each of `batch` random images, an unbiased
    estimate of the loss over all pixels at a fraction of its memory. There is no augmentation. A class without training
    pixels wins nowhere. Fully collapsed features predict the most frequent class everywhere.

    Args:
        patches: (n, gh, gw, d) patch features of the training images.
        masks: (n, h, w) class of each pixel.
        classes: number of classes.
        ignore: what masks call pixels without a label.
        steps: of the optimizer.
        lr: the largest learning rate.
        weight_decay: of AdamW.
        batch: images in a step.
        pixels: of each image in a step.
        seed: of the images and pixels of the steps.

    Raises:
        ValueError: labels that are neither `ignore` nor in 0..classes − 1, no labeled pixel, NaN.

    Source: Oquab et al. 2023 (DINOv2, arXiv 2304.07193) section 7.4, "lin.", and its released segmentation head.

    >>> masks = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])
    >>> patches = torch.eye(2)[masks]
    >>> segmenter = linear_segmenter(patches, masks, classes=2, steps=20, lr=0.1)
    >>> torch.equal(predict_masks(segmenter, patches, (2, 4)), masks)
    True
    """
    patches, masks = _training_set(patches, masks, classes, ignore)
    check_numbers(steps=steps, lr=lr, weight_decay=weight_decay, batch=batch, pixels=pixels)
    labeled = torch.ones_like(masks, dtype=torch.bool) if ignore is None else masks != ignore
    labels, targets = masks[labeled].unique(return_inverse=True)  # the classes that are to be told apart
    targets = torch.full_like(masks, UNLABELED).masked_scatter(labeled, targets.to(masks.dtype))
    std, mean = torch.std_mean(patches, (0, 1, 2), correction=0)  # (d,)
    scale = torch.where(std > 0, 1 / std, 0)
    weight = torch.zeros(len(mean), len(labels), dtype=mean.dtype, device=mean.device)
    bias = torch.zeros_like(weight[0])

    def logits(z: Float[Tensor, "n gh gw d"]) -> Float[Tensor, "n l gh gw"]:
        return (((z - mean) * scale) @ weight + bias).movedim(-1, 1)

    generator = torch.Generator().manual_seed(seed)  # on the CPU: every device has the same draws

    def loss() -> Float[Tensor, ""]:
        rows = torch.randint(len(patches), (batch,), generator=generator).to(patches.device)
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
    """Nearest-neighbor segmentation: a patch gets the labels of the k training patches of the largest cosine.

    score_c = Σ exp(cos/temp) share_c / Σ exp(cos/temp) over the k,  share_c = class c's share of their labeled pixels

    Training patches without a label are left out. The search is exact, in blocks of `chunk` patches against tiles of
    the training set. Since nothing is trained, it says what the features know as they are.

    Args:
        patches: (n, gh, gw, d) patch features of the training images.
        masks: (n, h, w) class of each pixel.
        classes: number of classes.
        ignore: what masks call pixels without a label.
        k: neighbors that vote.
        temp: temperature of the votes.
        chunk: patches that are looked up at a time.

    Raises:
        ValueError: k above the number of training patches with a label, a zero patch, or as `linear_segmenter`.

    Source: Balažević et al. 2023 (arXiv 2306.01667) section 3; k and temperature as in open-hummingbird-eval.

    >>> masks = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])
    >>> patches = torch.eye(2)[masks]
    >>> torch.equal(predict_masks(knn_segmenter(patches, masks, classes=2, k=3), patches, (2, 4)), masks)
    True
    """
    z, shares = _labeled_patches(patches, masks, classes, ignore)
    check_numbers(k=k, temp=temp, chunk=chunk)
    if k > len(z):
        raise ValueError(f"k must be between 1 and the number of training patches with labels, {len(z)}, got {k}")

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
    """Nearest class mean: the score of class c is the cosine of a patch with the mean of the unit patches labeled c.

    prototype_c = Σ share_c z / ‖Σ share_c z‖ over training patches z,  share_c = class c's share of its labeled pixels

    Classes without training pixels score −2, and win nowhere.

    Args:
        patches: (n, gh, gw, d) patch features of the training images.
        masks: (n, h, w) class of each pixel.
        classes: number of classes.
        ignore: what masks call pixels without a label.

    Raises:
        ValueError: a zero patch, or as `linear_segmenter`.

    Source: Snell et al. 2017 (arXiv 1703.05175) for prototypes, here of cosines.

    >>> masks = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])
    >>> prototype_segmenter(torch.eye(2)[masks], masks, classes=2)(torch.eye(2)[None, None])[0, :, 0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
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
def predict_masks(segmenter: Segmenter, patches: Array, size: tuple[int, int]) -> Int[Tensor, "n h w"]:
    """Masks of a segmenter: the class of the largest bilinearly interpolated score at each pixel.

    Ties go to the lower class.

    Args:
        segmenter: what the functions of this module return.
        patches: (n, gh, gw, d) patch features.
        size: (h, w) of the masks in pixels.

    >>> masks = torch.tensor([[[0, 1]]])
    >>> predict_masks(prototype_segmenter(torch.eye(2)[masks], masks, classes=2), torch.eye(2)[masks], (1, 4)).tolist()
    [[[0, 0, 1, 1]]]
    """
    patches = as_patches(patches)
    with torch.autocast(patches.device.type, enabled=False):
        scores = segmenter(patches)
    step = max(1, SCORE_ELEMENTS // (scores.shape[1] * size[0] * size[1]))
    upsampled = (F.interpolate(part, size, mode="bilinear", align_corners=False) for part in scores.split(step))
    return torch.cat([part.argmax(1) for part in upsampled])


class Confusion:
    """Pixels counted by their true and their predicted class, over any number of images.

    The counts of each image are kept for confidence intervals over images.

    Args:
        classes: number of classes.
        ignore: what true masks call pixels without a label, which are not counted.

    >>> confusion = Confusion(2).update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]))
    >>> confusion.iou.tolist(), round(confusion.pixel_accuracy.item(), 3)
    ([0.5, 0.5], 0.667)
    """

    def __init__(self, classes: int, *, ignore: int | None = None):
        self.classes, self.ignore = classes, ignore
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64)  # true × predicted
        self.by_image = torch.zeros(0, 3, classes, dtype=torch.int64)  # pixels of each class: in both, predicted, true

    def update(self, predicted: Int[Tensor, "n h w"], masks: Array) -> "Confusion":
        """Count more images.

        Args:
            predicted: (n, h, w) class of each pixel.
            masks: (n, h, w) true class of each pixel.

        Returns:
            itself.

        Raises:
            ValueError: sizes that differ, or classes that are not below `classes`.
        """
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
        self.by_image = torch.cat((self.by_image, each))
        return self

    @property
    def iou(self) -> Float[Tensor, " k"]:
        """Intersection over union of each class, in [0, 1], higher is better; NaN for a class in no true mask."""
        return _iou(self._counted().sum(0))

    @property
    def miou(self) -> Float[Tensor, ""]:
        """Mean IoU of the classes that are in some true mask, whether they were seen in training or not."""
        return self.iou.nanmean()

    @property
    def pixel_accuracy(self) -> Float[Tensor, ""]:
        """Share of the labeled pixels whose predicted class is the true one."""
        both, _, true = self._counted().sum((0, 2)).double()
        return both / true

    @property
    def labeled_images(self) -> int:
        """How many images have a labeled pixel."""
        return int(self.by_image[:, 2].any(1).sum())

    def miou_interval(self, *, level: float = 0.95) -> Interval:
        """Confidence interval of `miou` over images, with the segmenter as it is; see `share_interval`.

        Raises:
            ValueError: fewer than two images with labeled pixels.
        """
        images = self._counted()
        images = images[images[:, 2].any(1)]
        if len(images) < 2:
            raise ValueError("an interval needs two images with labeled pixels, got 1")
        left_out = _iou(images.sum(0) - images).nanmean(1)  # a class that goes with its only image leaves the mean
        return share_interval(self.miou.item(), left_out, level=level)

    def _counted(self) -> Int[Tensor, "n 3 k"]:
        if not self.labeled_images:
            raise ValueError("no labeled pixel was counted")
        return self.by_image


def segmentation_confusion(
    segmenter: Segmenter, patches: Array, masks: Array, *, classes: int, ignore: int | None = None
) -> Confusion:
    """The `Confusion` of a segmenter on images that it was not trained on.

    Args:
        segmenter: what the functions of this module return.
        patches: (n, gh, gw, d) patch features.
        masks: (n, h, w) true class of each pixel, of any size.
        classes: number of classes.
        ignore: what masks call pixels without a label.

    Raises:
        ValueError: labels that are neither `ignore` nor in 0..classes − 1, NaN.

    >>> masks = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])
    >>> segmenter = prototype_segmenter(torch.eye(2)[masks], masks, classes=2)
    >>> segmentation_confusion(segmenter, torch.eye(2)[masks], masks, classes=2).miou.item()
    1.0
    """
    patches = as_patches(patches)
    confusion, masks = Confusion(classes, ignore=ignore), as_masks(masks, len(patches), classes=classes, ignore=ignore)
    step = max(1, SCORE_ELEMENTS // (classes * masks[0].numel()))
    for some, true in zip(patches.split(step), masks.split(step), strict=True):
        confusion.update(predict_masks(segmenter, some, true.shape[1:]), true)
    return confusion


def patch_labels(
    masks: Int[Tensor, "n h w"], grid: tuple[int, int], *, classes: int, ignore: int | None = None
) -> Float[Tensor, "n gh gw k"]:
    """Share of each class among the labeled pixels of each patch; all 0 for a patch without a labeled pixel.

    A pixel belongs to the patch that holds its center, whether or not the grid divides the mask's size.

    Args:
        masks: (n, h, w) class of each pixel.
        grid: (gh, gw) patches of an image.
        classes: number of classes, k.
        ignore: what masks call pixels without a label.

    >>> patch_labels(torch.tensor([[[0, 0, 0, 1]]]), (1, 2), classes=2)[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
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
    """The index of the cell that holds each pixel's center, where a side is divided into equal cells."""
    return (2 * torch.arange(side, device=device) + 1) * cells // (2 * side)


def _iou(counts: Int[Tensor, "*b 3 k"]) -> Float[Tensor, "*b k"]:
    """IoU of each class from its pixels in both masks, in the predicted and in the true one."""
    both, predicted, true = counts.double().unbind(-2)
    return torch.where(true > 0, both / (predicted + true - both), torch.nan)


def _training_set(patches: Array, masks: Array, classes: int, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Patches and masks, checked, on one device."""
    patches = as_patches(patches)
    masks = as_masks(masks, len(patches), classes=classes, ignore=ignore, device=patches.device)
    if ignore is not None and not (masks != ignore).any():
        raise ValueError("masks have no labeled pixel")
    return patches, masks


def _queries(patches: Array, like: Float[Tensor, "*m d"]) -> Float[Tensor, "n gh gw d"]:
    """Patches to segment, of the type, on the device and of the dimension d of those in training."""
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
) -> None:
    """Minimize a random loss by AdamW, whose rate rises over 4 % of the steps and then falls to 0, both linearly."""
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
    at = torch.randint(h * w, (n, pixels), generator=generator).to(masks.device)
    x, y = (2 * (at % w) + 1) / w - 1, (2 * (at // w) + 1) / h - 1
    return torch.stack((x, y), -1)[:, None], masks.flatten(1).gather(1, at).long()
