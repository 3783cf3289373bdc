"""What an optimizer's step depends on besides the gradient: parameter groups, schedules, clipping."""

import itertools
import math
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from simdino.config import Optim
from simdino.vit import Network


def parameter_groups(network: Network, o: Optim) -> list[dict]:
    """Group a network's parameters by their factors of the learning rate and of the weight decay.

    factor = layer_decay^(depth + 1 − layer)

    Layer 0 is the tokens and the patch embedding (times patch_embed_lr), layer i + 1 is block i, and depth + 1 is what
    comes after, the heads included. Biases and normalization have no weight decay.

    Args:
        network: whose parameters.
        o: the settings layer_decay and patch_embed_lr.

    Returns:
        Groups for a torch optimizer: `params`, with `factor` and `decay` (0 or 1) besides.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    top = len(network.backbone.blocks) + 1
    for name, p in network.named_parameters():
        block = re.match(r"backbone\.blocks\.(\d+)\.", name)
        last = name.startswith(("head.", "patch_head.", "backbone.norm."))
        layer = int(block[1]) + 1 if block else top if last else 0
        factor = o.layer_decay ** (top - layer)
        if name.startswith(("backbone.patch_embed.", "backbone.stem.")):
            factor *= o.patch_embed_lr
        groups.setdefault((factor, float(p.ndim > 1)), []).append(p)
    return [{"params": some, "factor": factor, "decay": decay} for (factor, decay), some in groups.items()]


class Schedule(NamedTuple):
    """What changes from step to step."""

    lr: float
    weight_decay: float
    ema: float  # the teacher's momentum


def schedules(o: Optim, step: int) -> Schedule:
    """Look up a step's learning rate (a linear warm-up, then a cosine), weight decay and momentum (cosines).

    >>> schedules(Optim(steps=100, lr=1.0, warmup=0.1), 5).lr
    0.5
    """

    def cosine(first: float, last: float, done: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    warmup, done = round(o.warmup * o.steps), step / o.steps
    if step < warmup:
        rate = _ramp(o, o.lr_start, o.lr, warmup, step)
    else:
        rate = cosine(o.lr, o.lr_end, (step - warmup) / max(o.steps - warmup, 1))
    return Schedule(rate, cosine(o.weight_decay, o.weight_decay_end, done), cosine(o.ema, o.ema_end, done))


def teacher_temperature(o: Optim, last: float, step: int) -> float:
    """Look up a step's teacher temperature: linear from teacher_temp_start to `last`, then `last`.

    >>> [teacher_temperature(Optim(steps=10, teacher_temp_start=0.02), 0.05, step) for step in (0, 9)]
    [0.02, 0.05]
    """
    warmup = round(o.teacher_temp_warmup * o.steps) if o.teacher_temp_start else 0
    return _ramp(o, o.teacher_temp_start, last, warmup, step) if step < warmup else last


def _ramp(o: Optim, first: float, last: float, length: int, step: int) -> float:
    """The value at a step of a linear warm-up over `length` steps; its end is reached in the last, or just after."""
    return first + (last - first) * step / max(length - (o.warmup_reaches == "last"), 1)


def clip_gradients(network: Network, o: Optim) -> Tensor:
    """Scale gradients down to a norm of at most o.clip; 0 leaves them as they are.

    Args:
        network: whose parameters' gradients.
        o: the settings `clip` and `clip_by`: the norm of all together, of each module (backbone, heads), or of each
            tensor.

    Returns:
        The norm of all together before clipping.
    """
    modules = [name.partition(".")[0] for name, p in network.named_parameters() if p.grad is not None]
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # (tensors,)
    total = norms.norm()
    if o.clip and o.clip_by == "all":
        torch._foreach_mul_(gradients, (o.clip / (total + 1e-6)).clamp(max=1))
    elif o.clip:
        if o.clip_by == "module":
            sizes = [len(list(of_one)) for _, of_one in itertools.groupby(modules)]
            norms = torch.cat([some.norm().expand(len(some)) for some in norms.split(sizes)])
        torch._foreach_mul_(gradients, list((o.clip / (norms + 1e-6)).clamp(max=1).unbind()))
    return total
