"""Video object segmentation without training: masks of the first frame, carried on by nearest neighbors of patches.

Masks (t, h, w) are 0 at the background, and every other number that occurs in them is an object.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simdino.losses import check_numbers

from ..measures.inputs import Array, as_masks, as_patches, as_tensor, unit_rows
from .segmentation import patch_labels

SIMILARITY_ELEMENTS = 2**24  # of the largest matrix of cosines: 64 MiB


@torch.no_grad()
def propagate_masks(
    patches: Array,
    mask: Array,
    *,
    neighbors: int = 5,
    context: int = 7,
    radius: int = 12,
    temp: int | float = 0.1,
) -> Int[Tensor, "t h w"]:
    """Masks of all frames from that of the first, carried on by the patch features: DINO's protocol.

    A patch takes the mean label of the `neighbors` patches of the largest cosine, weighted by exp(cos/temp). They are
    sought among the patches of the first frame and of the last `context` frames that are at most `radius` rows and
    columns away; patches that tie with the last of them count, too. Labels of the first frame are those of the patches'
    centers, and all later ones stay soft. They are interpolated bilinearly to (h, w), those of each object and of the
    background are stretched to [0, 1], and the largest wins. An object that covers no patch's center is lost at once.

    Args:
        patches: (t, gh, gw, d) patch features of the frames.
        mask: (h, w) mask of the first frame.
        neighbors: patches that vote, more than 0.
        context: frames before the current one that are searched beside the first one, more than 0.
        radius: rows and columns in patches.
        temp: temperature of the votes.

    Returns:
        the masks, the first of which is the given one.

    Raises:
        ValueError: shapes that do not fit, a zero patch, NaN.

    Source: Caron et al. 2021 (DINO, arXiv 2104.14294), eval_video_segmentation; Jabri et al. 2020 (arXiv 2006.14613).

    >>> masks = torch.tensor([[[7, 0, 0, 0]], [[0, 7, 0, 0]], [[0, 0, 7, 0]]])  # object 7 moves to the right
    >>> torch.equal(propagate_masks(torch.eye(2)[(masks > 0).long()], masks[0]), masks)
    True
    """
    z = unit_rows(as_patches(patches), "patches")
    mask = as_masks(as_tensor(mask, "mask")[None], 1, "mask", device=z.device)
    check_numbers(neighbors=neighbors, context=context, temp=temp, radius=radius)
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
    """Patch-level IoU of the foreground carried from one frame to another in one step.

    A patch is foreground if more than half of its pixels are. It is predicted to be, if more than half of the label is
    that its nearest patches of the first frame vote for. They vote with their shares of foreground pixels, as in
    `propagate_masks` but without a neighborhood. It is a quick look at two frames of your own; "video" among the tasks
    follows whole videos with `propagate_masks`. The range is 0 to 1, and higher is better; 1 if both are empty.

    Args:
        patches: (2, gh, gw, d) patch features of the two frames.
        masks: (2, h, w) masks; foreground is what is not 0.
        neighbors: patches that vote.
        temp: temperature of the votes.

    Raises:
        ValueError: other than two frames, a zero patch, NaN.

    >>> masks = torch.tensor([[[1, 0, 0, 0]], [[0, 0, 0, 1]]])
    >>> transfer_iou(torch.eye(2)[masks], masks).item()
    1.0
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
    """The region similarity J of DAVIS, the IoU of two masks.

    J = |A ∩ B| / |A ∪ B|

    The range is 0 to 1, and higher is better; 1 if both are empty.

    Args:
        predicted: (..., h, w) masks.
        truth: (..., h, w) true masks.

    Source: Perazzi et al. 2016, section 5.1.

    >>> region_similarity(torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])).item()
    0.5
    """
    union = (predicted | truth).sum((-2, -1)).double()
    return torch.where(union > 0, (predicted & truth).sum((-2, -1)) / union.clamp(min=1), 1)


def boundary_f(
    predicted: Bool[Tensor, "n h w"], truth: Bool[Tensor, "n h w"], *, tolerance: float = 0.008
) -> Float[Tensor, " n"]:
    """The contour accuracy F of DAVIS: how well the boundaries of two masks agree.

    F = 2PR/(P + R)

    P is the share of the predicted boundary within ⌈tolerance · √(h² + w²)⌉ pixels of the true one, and R the share of
    the true boundary within that distance of the predicted one. A pixel is boundary if it differs from its right, lower
    or lower right neighbor. The range is 0 to 1, and higher is better; 1 if both boundaries are empty, 0 if one is.

    Args:
        predicted: (n, h, w) masks.
        truth: (n, h, w) true masks.
        tolerance: distance, as a share of the image's diagonal.

    Source: Perazzi et al. 2016, section 5.1; Martin et al. 2004; tolerance and boundary as in davis2017-evaluation.

    >>> square = torch.zeros(1, 60, 80, dtype=torch.bool)
    >>> square[:, 10:20, 10:20] = True
    >>> boundary_f(square.roll(1, 1), square).item()  # one pixel lower, which is as far as the tolerance reaches here
    1.0
    """
    reach = math.ceil(tolerance * math.hypot(*truth.shape[-2:]))
    offset = torch.arange(-reach, reach + 1, device=truth.device)
    disc = (offset[:, None] ** 2 + offset**2 <= reach**2).float()[None, None]

    def matched(some: Tensor, other: Tensor) -> Float[Tensor, " n"]:
        """Share of a boundary that is near another one; NaN if it is empty."""
        near = F.conv2d(other[:, None].float(), disc, padding=reach)[:, 0] > 0.5
        return (some & near).sum((1, 2)) / some.sum((1, 2)).double()

    ours, theirs = _boundary(predicted), _boundary(truth)
    precision, recall = matched(ours, theirs), matched(theirs, ours)
    both_empty = precision.isnan() & recall.isnan()
    f = 2 * precision * recall / (precision + recall)
    return torch.where(both_empty, 1, f.nan_to_num(0))


class DavisScores(NamedTuple):
    """J and F of each object in the frames that DAVIS scores: all but the first, which is given, and the last.

    >>> DavisScores(j=torch.tensor([[1.0, 0.5]]), f=torch.tensor([[1.0, 1.0]])).summary["J&F mean"]
    0.875
    """

    j: Float[Tensor, "o t"]
    f: Float[Tensor, "o t"]

    @property
    def summary(self) -> dict[str, float]:
        """Means, and recalls (the share above ½), over frames and objects; in [0, 1], higher is better."""
        j, f = self.j.mean().item(), self.f.mean().item()
        recall = {f"{name} recall": (x > 0.5).double().mean().item() for name, x in (("J", self.j), ("F", self.f))}
        return {"J&F mean": (j + f) / 2, "J mean": j, "F mean": f} | recall


def davis_scores(predicted: Array, truth: Array) -> DavisScores:
    """J and F of the masks of a video, for each object of the true masks, as in DAVIS.

    Args:
        predicted: (t, h, w) masks.
        truth: (t, h, w) true masks, t ≥ 3.

    Raises:
        ValueError: masks of different sizes, fewer than three frames, or no object.

    Source: Pont-Tuset et al. 2017 (arXiv 1704.00675); davis2017-evaluation, semi-supervised.

    >>> truth = torch.ones(4, 5, 6, dtype=torch.int64)
    >>> davis_scores(truth, truth).j  # one object in two frames
    tensor([[1., 1.]], dtype=torch.float64)
    """
    predicted = as_tensor(predicted, "predicted")
    truth = as_tensor(truth, "truth", device=predicted.device)
    truth = as_masks(truth, len(truth), "truth")
    predicted = as_masks(predicted, len(truth), "predicted")
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
    return DavisScores(*map(torch.stack, zip(*scores, strict=True)))


def _votes(
    queries: Float[Tensor, "q d"],
    keys: Float[Tensor, "m d"],
    labels: Float[Tensor, "m k"],
    near: Bool[Tensor, "q p"],
    neighbors: int,
    temp: float,
) -> Float[Tensor, "q k"]:
    """Weighted mean of the labels of each query's nearest keys.

    Keys are whole frames of p patches; near: the patches of a frame that may vote for a query.
    """
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
    """The index of the largest label at each pixel, after each label that occurs is stretched to [0, 1]."""
    soft = F.interpolate(labels[None], size, mode="bilinear", align_corners=False)[0]
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    return torch.where(high > low, (soft - low) / (high - low), (soft > 0).to(soft)).argmax(0)


def _boundary(mask: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Pixels that differ from their right, lower or lower right neighbor."""
    padded = F.pad(mask[:, None].float(), (0, 1, 0, 1), mode="replicate")[:, 0] > 0.5
    right, lower, diagonal = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)
