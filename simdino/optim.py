"""What an optimizer's step depends on besides the gradient: parameter groups, schedules, clipping."""

import math
import re

import torch
from torch import Tensor, nn

from simdino.config import Optim
from simdino.vit import Network


def parameter_groups(network: Network, o: Optim) -> list[dict]:
    """Parameters by `factor` of the learning rate and `decay`, of the weight decay: 0 for biases and normalization.

    factor = layer_decay^(depth + 1 − layer), layer 0 being tokens and patch embedding (times patch_embed_lr), layer
    i + 1 block i, and depth + 1 what comes after, the heads included.
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


def schedules(o: Optim, step: int) -> tuple[float, float, float]:
    """Learning rate (linear warm-up, then cosine), weight decay and teacher momentum (cosines) at a step."""

    def cosine(first: float, last: float, done: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    warmup, done = round(o.warmup * o.steps), step / o.steps
    if step < warmup:
        rate = _ramp(o, o.lr_start, o.lr, warmup, step)
    else:
        rate = cosine(o.lr, o.lr_end, (step - warmup) / max(o.steps - warmup, 1))
    return rate, cosine(o.weight_decay, o.weight_decay_end, done), cosine(o.ema, o.ema_end, done)


def teacher_temperature(o: Optim, last: float, step: int) -> float:
    """DINO's teacher temperature at a step: from teacher_temp_start linearly up to `last`, if it is warmed up."""
    warmup = round(o.teacher_temp_warmup * o.steps) if o.teacher_temp_start else 0
    return _ramp(o, o.teacher_temp_start, last, warmup, step) if step < warmup else last


def _ramp(o: Optim, first: float, last: float, length: int, step: int) -> float:
    """The value at a step of a linear warm-up of `length` steps, which the last of them reaches, or the next."""
    return first + (last - first) * step / max(length - (o.warmup_reaches == "last"), 1)


def clip_gradients(network: Network, o: Optim) -> Tensor:
    """Scale gradients down to norm o.clip: of all together, of each module (backbone, heads), or of each tensor.

    Returns the norm of all before clipping. o.clip 0: left as they are.
    """
    parameters = [p for p in network.parameters() if p.grad is not None]
    if not o.clip:
        return nn.utils.get_total_norm([p.grad for p in parameters])
    if o.clip_by == "all":
        return nn.utils.clip_grad_norm_(parameters, o.clip)
    parts = network.children() if o.clip_by == "module" else [[p] for p in parameters]
    parts = [part.parameters() if isinstance(part, nn.Module) else part for part in parts]
    return torch.stack([nn.utils.clip_grad_norm_(part, o.clip) for part in parts]).norm()
