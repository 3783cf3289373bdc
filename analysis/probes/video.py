"""Video object segmentation without training: the first frame's masks, carried on by nearest neighbors of patches.

Masks (t, h, w) are 0 for the background; every other number that occurs is an object.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..measures.inputs import Array, as_masks, as_patches, unit_rows
from .segmentation import patch_labels

SIMILARITY_ELEMENTS = 2**24  # of the largest matrix of similarities


@torch.no_grad()
def propagate(
    patches: Array,
    mask: Array,
    *,
    neighbors: int = 5,
    context: int = 7,
    radius: int = 12,
    temp: int | float = 0.1,
) -> Int[Tensor, "t h w"]:
    """Masks of all frames, given the first frame's (h, w) and the patch features (t, gh, gw, d): DINO's protocol.

    A patch takes the mean label of the `neighbors` patches of the largest cosine, weighted by exp(cos/temp),
    among those of the first and of the last `context` frames that are at most `radius` rows and columns away; what
    ties with the last of them counts, too. The first frame's labels are those of the patches' centers; all later ones
    stay soft. A frame's labels are interpolated bilinearly to (h, w), each object's and the background's stretched to
    [0, 1], and the largest wins. An object that covers no patch's center is lost at once.

    Returns the masks, the given one first. ValueError: sizes that do not fit, a zero patch, NaN.

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), eval_video_segmentation; Jabri et al. 2020 (arXiv 2006.14613).
    """
    z = unit_rows(as_patches(patches), "patches")
    mask = as_masks(torch.as_tensor(mask)[None], 1, "mask", device=z.device)
    for name, value in (("neighbors", neighbors), ("context", context), ("temp", temp)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if radius < 0:
        raise ValueError(f"radius must not be negative, got {radius}")
    t, gh, gw, _ = z.shape
    z = z.flatten(1, 2)  # (t, p, d)
    small = F.interpolate(mask[None].float(), (gh, gw), mode="nearest-exact")[0, 0].to(mask.dtype)
    kinds = mask.unique()  # (k,)
    labels = [(small.flatten()[:, None] == kinds).to(z.dtype)]  # (p, k) each
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij"))
    near = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()).to(z.device) <= radius  # (p, p)
    masks = [mask[0]]
    for frame in range(1, t):
        seen = [0, *range(max(1, frame - context), frame)]
        known = torch.cat([labels[i] for i in seen])  # (c·p, k)
        labels.append(_votes(z[frame], z[seen].flatten(0, 1), known, near, neighbors, temp))
        masks.append(kinds[_sharp(labels[-1].T.unflatten(1, (gh, gw)), mask.shape[1:])])
    return torch.stack(masks)


def transfer_iou(patches: Array, masks: Array, *, neighbors: int = 5, temp: int | float = 0.1) -> Float[Tensor, ""]:
    """Patch-level IoU of the foreground carried from one frame to another in one step, without a neighborhood.

    patches (2, gh, gw, d), masks (2, h, w), foreground where not 0. A patch is foreground if more than half of its
    pixels are; it is said to be, if more than half of the label is that its nearest patches vote for, as in
    `propagate`, out of the first frame's shares of foreground pixels. In [0, 1], higher is better; 1 if both are empty.
    """
    z = unit_rows(as_patches(patches), "patches")
    masks = as_masks(masks, len(z), device=z.device)
    if len(z) != 2:
        raise ValueError(f"patches must be of two frames, got {len(z)}")
    share = patch_labels((masks > 0).long(), z.shape[1:3], classes=2).flatten(1, 2).to(z.dtype)  # (2, p, 2)
    z = z.flatten(1, 2)
    near = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device)
    voted = _votes(z[1], z[0], share[0], near, neighbors, temp)
    return region_similarity(voted[:, 1:] > 0.5, share[1, :, 1:] > 0.5)


def region_similarity(predicted: Bool[Tensor, "*b h w"], truth: Bool[Tensor, "*b h w"]) -> Float[Tensor, "*b"]:
    """J of DAVIS: |A ∩ B| / |A ∪ B| of two masks, in [0, 1], higher is better; 1 if both are empty.

    Source: Perazzi et al. 2016, section 5.1.
    """
    union = (predicted | truth).sum((-2, -1)).double()
    return torch.where(union > 0, (predicted & truth).sum((-2, -1)) / union.clamp(min=1), 1)


def boundary_f(
    predicted: Bool[Tensor, "n h w"], truth: Bool[Tensor, "n h w"], *, tolerance: float = 0.008
) -> Float[Tensor, " n"]:
    """F of DAVIS: 2PR/(P + R) of the masks' boundaries, in [0, 1], higher is better.

    P: share of the predicted boundary within ⌈tolerance · √(h² + w²)⌉ pixels of the true one; R: the other way round.
    A pixel is boundary if it differs from its right, lower or lower right neighbor. An empty boundary has P = R = 1
    against an empty one, else F = 0.

    Source: Perazzi et al. 2016, section 5.1; Martin et al. 2004; tolerance and boundary as in davis2017-evaluation.
    """
    reach = math.ceil(tolerance * math.hypot(*truth.shape[-2:]))
    offset = torch.arange(-reach, reach + 1, device=truth.device)
    disc = (offset[:, None] ** 2 + offset**2 <= reach**2).float()[None, None]

    def matched(some: Tensor, other: Tensor) -> Float[Tensor, " n"]:
        """Share of a boundary that is near another one; NaN if there is no boundary."""
        near = F.conv2d(other[:, None].float(), disc, padding=reach)[:, 0] > 0.5
        return (some & near).sum((1, 2)) / some.sum((1, 2)).double()

    ours, theirs = _boundary(predicted), _boundary(truth)
    precision, recall = matched(ours, theirs), matched(theirs, ours)
    both_empty = precision.isnan() & recall.isnan()
    f = 2 * precision * recall / (precision + recall)
    return torch.where(both_empty, 1, f.nan_to_num(0))


class Scores(NamedTuple):
    """J and F of each object in each frame but the first, which is given, and the last, which DAVIS leaves out."""

    j: Float[Tensor, "o t"]
    f: Float[Tensor, "o t"]

    @property
    def summary(self) -> dict[str, float]:
        """Means and recalls (share of frames above 1/2) over frames and objects; in [0, 1], higher is better."""
        j, f = self.j.mean().item(), self.f.mean().item()
        recall = {f"{name} recall": (x > 0.5).double().mean().item() for name, x in (("J", self.j), ("F", self.f))}
        return {"J&F mean": (j + f) / 2, "J mean": j, "F mean": f} | recall


def davis_scores(predicted: Array, truth: Array) -> Scores:
    """J and F of a sequence's masks (t, h, w), t ≥ 3, for each object of the true masks, as in DAVIS.

    ValueError: masks of different sizes, fewer than three frames, no object.

    Source: Pont-Tuset et al. 2017 (arXiv 1704.00675); davis2017-evaluation, semi-supervised.
    """
    truth = torch.as_tensor(truth)
    truth = as_masks(truth, len(truth), "truth")
    predicted = as_masks(predicted, len(truth), "predicted", device=truth.device)
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {tuple(predicted.shape)} and truth {tuple(truth.shape)} differ in size")
    objects = truth[truth > 0].unique()
    if len(truth) < 3 or not len(objects):
        got = f"{len(truth)} frames and {len(objects)} objects"
        raise ValueError(f"a sequence needs three frames and an object, got {got}")
    scores = []
    for label in objects:
        ours, theirs = predicted[1:-1] == label, truth[1:-1] == label
        scores.append((region_similarity(ours, theirs), boundary_f(ours, theirs)))
    return Scores(*map(torch.stack, zip(*scores, strict=True)))


def _votes(
    queries: Float[Tensor, "q d"],
    keys: Float[Tensor, "m d"],
    labels: Float[Tensor, "m k"],
    near: Bool[Tensor, "q p"],
    neighbors: int,
    temp: float,
) -> Float[Tensor, "q k"]:
    """Mean of the labels of each query's nearest keys, weighted; keys are whole frames of p, `near` holds for each."""
    found, frames = [], len(keys) // near.shape[1]
    for rows, allowed in zip(
        *(x.split(max(1, SIMILARITY_ELEMENTS // len(keys))) for x in (queries, near)), strict=True
    ):
        with torch.autocast(rows.device.type, enabled=False):
            similarity = rows @ keys.T
        similarity = similarity.masked_fill(~allowed.repeat(1, frames), -torch.inf)  # (c, m)
        best = similarity.topk(min(neighbors, len(keys))).values  # (c, neighbors), the largest first
        weight = ((similarity - best[:, :1]) / temp).exp().where(similarity >= best[:, -1:], 0)
        found.append(weight @ labels / weight.sum(1, keepdim=True))
    return torch.cat(found)


def _sharp(labels: Float[Tensor, "k gh gw"], size: tuple[int, int]) -> Int[Tensor, "h w"]:
    """The largest label of each pixel, each label stretched to [0, 1] over the frame first, where it occurs at all."""
    soft = F.interpolate(labels[None], size, mode="bilinear", align_corners=False)[0]
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    return torch.where(high > low, (soft - low) / (high - low), (soft > 0).to(soft)).argmax(0)


def _boundary(mask: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    padded = F.pad(mask[:, None].float(), (0, 1, 0, 1), mode="replicate")[:, 0] > 0.5
    right, lower, diagonal = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)
