"""Small worlds of DINO's loss: scores that are linear in white features, and a reduced network that can die.

Temperatures, momenta and the center mean what they mean in `simdino.losses.dino_loss`. Nothing here knows the
predictions of `theory`.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.special import softmax
from torch import Tensor

from simdino.config import DINO, Config
from simdino.losses import dino_loss, sinkhorn_knopp
from simdino.optim import schedules, teacher_temperature

# Of the untrained network of the small recipes, as the log of its first step shows them: 1 − ‖E z‖², and what of it
# two views of an image share.
SHARE, CONSISTENCY = 0.26, 0.9
# |E t − c| of steps 2 to 4 without lag (center momentum 0, no teacher, learning rate 1e-3, seed 0) sums to 2.86 in the
# real network; in the reduced one to 1.98, 2.73 and 3.17 at scales 1, 1.5 and 2 (means of four seeds).
SCALE = 1.65
INPUTS, HIDDEN = 16, 64


def linear_scores(
    variances: Float[np.ndarray, " d"],
    rho: Float[np.ndarray, " d"],
    *,
    rate: float,
    student_temp: float,
    teacher_temp: float,
    teacher_momentum: float,
    center_momentum: float | None,
    prototypes: int = 8,
    steps: int = 100,
    size: float = 1e-7,
    seed: int = 0,
) -> Float[np.ndarray, "t d+1"]:
    """Descend DINO's loss of two views by the full gradient, with scores that are linear in features, from tiny scores.

    s = Wx,   x = (1, √v·(√ρ·shared + √(1−ρ)·own))

    The first direction is the mean, which all images share. The others are white and uncorrelated in the sample, of the
    variance v and the consistency ρ.

    Args:
        variances: (d,) v of each direction.
        rho: (d,) ρ of each.
        rate: the learning rate.
        student_temp: τ_s.
        teacher_temp: τ_t.
        teacher_momentum: λ; 0 is a teacher that equals the student.
        center_momentum: m; None balances the targets by Sinkhorn's iterations, in float32: with a larger size.
        prototypes: K.
        steps: of the descent.
        size: of the initial weights.
        seed: of features and weights.

    Returns:
        (steps + 1, d + 1) the norm of the student's scores of each direction, the mean first, for unit features.
    """
    rng, d = np.random.default_rng(seed), len(variances)
    n = 4 * (3 * d + 1)
    parts = np.linalg.qr(np.column_stack([np.ones(n), rng.standard_normal((n, 3 * d))]))[0][:, 1:] * n**0.5
    shared, own = parts[:, :d], (parts[:, d : 2 * d], parts[:, 2 * d :])
    root, scale = np.sqrt(rho), np.sqrt(variances)
    views = [np.column_stack([np.ones(n), scale * (root * shared + np.sqrt(1 - rho) * e)]) for e in own]
    student = rng.standard_normal((prototypes, d + 1)) * size
    student -= student.mean(0)
    teacher, center, sizes = student.copy(), np.zeros(prototypes), [np.linalg.norm(student, axis=0)]
    for _ in range(steps):
        scores = [x @ teacher.T for x in views]
        gradient = np.zeros_like(student)
        for x, t in zip(views, scores[::-1], strict=True):
            if center_momentum is None:
                q = sinkhorn_knopp(torch.from_numpy(t), temp=teacher_temp).numpy()
            else:
                q = softmax((t - center) / teacher_temp, axis=1)
            p = softmax(x @ student.T / student_temp, axis=1)
            gradient += (p - q).T @ x / (2 * n * student_temp)
        if center_momentum is not None:
            center = center_momentum * center + (1 - center_momentum) * np.mean(scores, axis=(0, 1))
        student = student - rate * gradient
        teacher = teacher_momentum * teacher + (1 - teacher_momentum) * student
        sizes.append(np.linalg.norm(student, axis=0))
    return np.array(sizes)


class ReducedRun(NamedTuple):
    """What a reduced network's scores did at each step, as `simdino.losses.dino_loss` measures them."""

    center_distance: Float[np.ndarray, " t"]
    score_spread: Float[np.ndarray, " t"]


def reduced_run(
    config: Config, *, seed: int = 0, scale: float = SCALE, share: float = SHARE, rho: float = CONSISTENCY
) -> ReducedRun:
    """Train what is left of a network without its images: a narrow block and head, on a constant and differences.

    x = √m·(√(1 − share), √(share/(m − 1))·(√ρ·shared + √(1 − ρ)·own)),   m = 16
    h = x + Ax + a,   h ← h + MLP(norm h),   scores = cos(head(norm h), prototypes)

    The loss with its center, softmaxes, temperatures and teacher, the schedules, AdamW and the clipping are those of
    the run. The stem A begins as zero; block and head have the real ones' layers without attention, of a sixth and an
    eighth of their widths. So that a narrow layer's outputs start as large and move as fast as those of the wide one
    that it stands for, weights start larger by the root of the ratio of the widths, and learning rates by the ratio.

    What kills differences is depth: while all samples have one target, what they share drives stem, block and hidden
    units alike, the norms shrink what they do not share, and no gradient holds it. A head without hidden layers always
    recovers.

    Args:
        config: of a DINO run with two global crops and nothing else: widths, prototypes, batch, loss and optimizer.
        seed: of weights and samples.
        scale: of all learning rates, the one free number of an architecture and its optimizer. It is measured by how
            far the mean scores move in three of the first steps of one run, not by what survives.
        share: of the inputs' squared norm that differs between images, as in the features of an untrained network.
        rho: the consistency of the differences, the same.

    Raises:
        ValueError: a configuration that is none of DINO's, or whose targets carry a gradient.
    """
    o, objective = config.optim, config.objective
    if not isinstance(objective, DINO) or config.patches or o.teacher == "student-with-gradient":
        raise ValueError("a reduced run is one of DINO's, behind a stop-gradient and without patches")
    momentum = {"student": 0.0, "frozen": 1.0}.get(o.teacher)
    draw = torch.Generator().manual_seed(seed)
    student, groups = _narrow(config, scale, draw)
    teacher = [p.detach().clone() for p in student]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, weight_decay=0.0)
    factors = [group["factor"] for group in optimizer.param_groups]
    size = torch.full((INPUTS,), (share / (INPUTS - 1)) ** 0.5)
    center, seen = torch.zeros(config.model.prototypes), []
    for step in range(o.steps):
        rate, decay, ema = schedules(o, step)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group.update(lr=rate * factor, weight_decay=decay / factor)
        shared, *own = torch.randn(3, o.batch_size, INPUTS, generator=draw)
        x = INPUTS**0.5 * size * (rho**0.5 * shared + (1 - rho) ** 0.5 * torch.stack(own))  # (2, n, m)
        x[..., 0] = (INPUTS * (1 - share)) ** 0.5
        with torch.no_grad():
            targets = _scores(teacher, x)
        temperature = teacher_temperature(o, objective.teacher_temp, step)
        options = vars(objective) | {"teacher_temp": temperature, "center": center}
        loss, terms = dino_loss(_scores(student, x), targets, **options)
        optimizer.zero_grad()
        loss.backward()
        if o.clip:
            torch.nn.utils.clip_grad_norm_(student, o.clip)
        optimizer.step()
        center = terms["center"]
        torch._foreach_lerp_(teacher, [p.detach() for p in student], 1 - (ema if momentum is None else momentum))
        seen.append(torch.stack([terms["center_distance"], terms["score_spread"]]))
    return ReducedRun(*torch.stack(seen, 1).double().numpy())


def _narrow(config: Config, scale: float, draw: torch.Generator) -> tuple[list[Tensor], list[dict]]:
    """Weights and biases of stem, block and head, and the prototypes; and the optimizer's groups with their factors."""
    m = config.model
    units = INPUTS * m.mlp_ratio
    narrow = [(INPUTS, INPUTS), (round(units), INPUTS), (INPUTS, round(units))]
    narrow += [(HIDDEN, INPUTS), (HIDDEN, HIDDEN), (m.out, HIDDEN)]
    wide = (m.dim, m.dim, m.dim * m.mlp_ratio, m.dim, m.hidden, m.hidden)
    parameters, groups = [], []
    for i, ((rows, columns), real) in enumerate(zip(narrow, wide, strict=True)):
        size = 0.02 * (real / columns) ** 0.5 if i else 0.0  # the stem begins as the identity
        weight = size * torch.randn(rows, columns, generator=draw)
        parameters += [weight.requires_grad_(), torch.zeros(rows, requires_grad=True)]
        factors = (scale * real / columns, scale)
        groups += [{"params": [p], "factor": f} for p, f in zip(parameters[-2:], factors, strict=True)]
    parameters.append((0.02 * torch.randn(m.prototypes, m.out, generator=draw)).requires_grad_())
    return parameters, [*groups, {"params": parameters[-1:], "factor": scale}]


def _scores(parameters: list[Tensor], x: Tensor) -> Tensor:
    """The scores of the prototypes, cosines, behind stem, block and head."""
    *weights, prototypes = parameters
    stem, up, down, first, second, third = zip(weights[::2], weights[1::2], strict=True)
    x = x + F.linear(x, *stem)
    x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), *up)), *down)
    x = F.layer_norm(x, x.shape[-1:])
    for layer in (first, second):
        x = F.gelu(F.linear(x, *layer))
    return F.normalize(F.linear(x, *third), dim=-1) @ F.normalize(prototypes, dim=-1).T


def differences_live(spread: Float[np.ndarray, " t"]) -> bool:
    """Whether differences between samples have survived: at the end, their scores spread half as far as at the start.

    mean of the last ten steps' √E‖t − E t‖² ≥ ½ · the first step's

    Args:
        spread: (t,) `score_spread` of each step.

    >>> differences_live(np.array([1.0, 2.0, 0.7])), differences_live(np.array([1.0, 2.0] + [0.1] * 10))
    (True, False)
    """
    return bool(np.mean(spread[-10:]) >= spread[0] / 2)
