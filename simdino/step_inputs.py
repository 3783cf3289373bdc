"""What a training step draws on the host, all of it before anything is computed: images, views, masks, temperature."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simdino.augment import Draws, block_masks, draw_views
from simdino.config import DINO, Config, derived_seed
from simdino.optim import teacher_temperature


class Hidden(NamedTuple):
    """The patches of some images' global views that the student does not see, p of each view."""

    masks: Tensor  # True where a patch is hidden (g·n, p)
    rows: Tensor  # the hidden patches, counted over all views (m,), then padding
    weights: Tensor  # 1/(hidden patches of the view)/(all views) of each (m,); 0 for padding
    share: Tensor  # 0-d: how many there are, as a share of those of all groups that meet on this rank


class Inputs(NamedTuple):
    """What one part of a batch is trained with."""

    images: Tensor  # which ones (n,)
    views: Draws
    hidden: Hidden | None  # None for an objective without patches
    teacher_temp: Tensor  # 0-d


def step_inputs(
    config: Config, shape: tuple[int, ...], step: int, *, device: str, rank: int = 0, world: int = 1
) -> list[Inputs]:
    """Draw the inputs of one step, on the host; `simdino.augment.moved` takes them to a device in one copy.

    All randomness follows from the run's seed and the step, whatever the device and however many ranks there are.

    Args:
        config: the run's.
        shape: of all training images, (N, c, h, w).
        step: which one.
        device: where the views will be made.
        rank: whose inputs.
        world: how many ranks share the batch.

    Returns:
        Those of each part of the batch that is on this rank.
    """
    o, parts = config.optim, max(config.optim.groups, world)
    rows, share = o.batch_size // parts, parts // world
    images = batch_indices(shape[0], o.batch_size, config.seed, step).split(rows)
    masks = patch_masks(config, step) if config.patches else None
    temp = teacher_temperature(o, config.objective.teacher_temp, step) if isinstance(config.objective, DINO) else 1.0
    inputs = []
    for k in range(rank * share, (rank + 1) * share):
        generator = torch.Generator().manual_seed(derived_seed("crops", config.seed, step))
        views = draw_views((rows, *shape[1:]), config.crops, generator, device=device, part=(k, parts))
        hidden = None if masks is None else hidden_patches(masks, config, part=(k, parts), share=share)
        inputs.append(Inputs(images[k], views, hidden, torch.tensor(temp, dtype=torch.float64)))
    return inputs


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the images of one step, of a fresh permutation every epoch; an incomplete last batch is left out.

    Args:
        n: how many images there are.
        batch_size: images in each step.
        seed: the run's.
        step: which one, over all epochs.

    >>> torch.cat([batch_indices(6, 2, seed=0, step=i) for i in range(3)]).sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, derived_seed("order", seed, epoch))[batch * batch_size : (batch + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def patch_masks(config: Config, step: int) -> Tensor:
    """Draw which patches of a step's global views are hidden, (g, n, p) of the whole batch."""
    side, c, n = config.crops.global_size // config.model.patch, config.crops, config.optim.batch_size
    generator = torch.Generator().manual_seed(derived_seed("masks", config.seed, step))
    masks = block_masks(c.global_crops * n, (side, side), ratio=c.mask_ratio, p=c.mask_p, generator=generator)
    return masks.flatten(1).unflatten(0, (c.global_crops, n))


def hidden_patches(masks: Tensor, config: Config, *, part: tuple[int, int] = (0, 1), share: int = 1) -> Hidden:
    """List the hidden patches of a part of a batch, padded to as many as there can be: all steps have one shape.

    Args:
        masks: of the whole batch (g, n, p).
        config: the run's.
        part: (k, m): the k-th of m equal parts of the batch.
        share: how many parts are on one rank.
    """
    k, parts = part
    counts = masks.unflatten(1, (parts, -1)).sum((0, 2, 3)) + 1e-9  # of each part
    own = masks.unflatten(1, (parts, -1))[:, k].flatten(0, 1)  # (g·n/m, p)
    rows = own.flatten().nonzero()[:, 0]
    padding = (0, most_hidden(config, parts) - len(rows))
    weights = F.pad(patch_weights(own), padding)
    return Hidden(own, F.pad(rows, padding), weights, counts[k % share :: share].sum() / counts.sum())


def most_hidden(config: Config, parts: int = 1) -> int:
    """Return the largest number of patches that can be hidden in one of several equal parts of a batch.

    Each masked view of a batch has a share of its own, from an even division of `crops.mask_ratio`; in a part of the
    batch all may be among the largest.
    """
    c, views = config.crops, config.crops.global_crops * config.optim.batch_size
    p, masked = (c.global_size // config.model.patch) ** 2, int(c.mask_p * views)
    most = torch.floor(p * torch.linspace(*c.mask_ratio, masked + 1)[1:]).int()
    return int(most[-(views // parts) :].sum()) if masked else 0


def patch_weights(masks: Tensor) -> Tensor:
    """Weigh the masked patches so that each masked crop counts alike: 1/(masked patches of the crop)/(all crops).

    Args:
        masks: the hidden patches, crop by crop (n, p).

    Returns:
        A weight for each hidden patch (m,), crop after crop; those of a masked crop sum to 1/n.

    >>> patch_weights(torch.tensor([[True, True, False], [False, False, False]])).tolist()
    [0.25, 0.25]
    """
    return (masks / masks.sum(1, keepdim=True).clamp(min=1))[masks] / len(masks)
