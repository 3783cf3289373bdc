"""What the loss of a run can be, before the run is started: `simdino preflight`.

`eps` is the paper's ε, which the rate squares: α = d/ε². `simdino.losses.official_scaling` translates the numbers of
the official code.
"""

import math
from dataclasses import replace
from typing import Literal, NamedTuple

from simdino.config import DINO, Config
from simdino.losses import check_numbers

from . import theory


class Preflight(NamedTuple):
    """What the expansion term γ·R of a run can be, before it is started; print it to read it as sentences."""

    collapsed: float  # with all features equal, nats
    isotropic: float  # of random unit vectors, nats
    attainable: float  # the largest mean over batches, nats
    ceiling: float  # the largest of one batch, and attainable if that batch has all images, nats
    collapse_number: float  # χ
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def preflight(
    *,
    n: int,
    d: int,
    eps: float,
    gamma: float | Literal["balanced", "bounded", "official"],
    world_size: int = 1,
    gathered: bool = False,
    stop_gradient: bool = True,
    rate_of: Literal["student", "mean"] = "student",
    images: int | None = None,
    global_crops: int = 2,
    local_crops: int = 0,
    measured: float | None = None,
) -> Preflight:
    """Range of the logged expansion term γ·R and stability of total collapse, from the configuration alone.

    collapsed = γ/2·log(1 + α),  isotropic = γ·(rate of n random unit vectors),  ceiling = γR* = γ·r/2·log(1 + α/r)
    collapse number χ = γα²/(1 + α),  α = d/ε²,  r = min(n, d)

    Batches of many more images than they hold can attain the isotropic value and no more on average; R* is the limit
    of one batch of all images (`theory.attainable_rate`).

    Total collapse is linearly stable iff χ·(1 − 1/n) < c·μ_min, where μ_min ≤ 1 is the smallest share of a direction's
    variance that differs between views. c = 1 for a stop-gradient teacher and the rate of the student's features. c = 2
    without the stop-gradient, as the alignment then has twice the gradient, and also for the rate of the mean of
    student and teacher, which has half the gradient (the official default, `expa_type` 1). So χ·(1 − 1/n) ≥ c is safe
    for every augmentation, and γ = 0 or n = 1 is safe for none. With local crops the share is a mean over the pairs of
    crops (`theory.crops_collapse_threshold`), and "every" needs local crops that vary no more than global ones.

    Args:
        n: images of one rank. One covariance takes n rows, or n·world_size if it is gathered.
        d: dimension of the features.
        eps: the paper's ε. `simdino.losses.official_scaling` translates the official code's eps and γ, and so does
            `simdino preflight --official`.
        gamma: γ, or the name of a rule of `theory.gamma_rules`.
        world_size: number of ranks.
        gathered: whether the rate is taken of the rows of all ranks together.
        stop_gradient: whether the teacher gets no gradient.
        rate_of: whose rate is taken, the "student"'s or that of the "mean" of student and teacher.
        images: that one trains on; None for many more than a batch has.
        global_crops: of an image, which the teacher sees.
        local_crops: of an image, which only the student sees.
        measured: a logged γ·R to judge.

    Raises:
        ValueError: a rule for gamma that there is not; fewer images than a batch has.

    >>> plan = preflight(n=64, d=256, eps=0.5, gamma=0.1)
    >>> round(plan.collapsed, 3), round(plan.isotropic, 3), round(plan.ceiling, 3)
    (0.347, 8.687, 9.066)
    >>> plan.sentences[2].split(": ")[1]
    'total collapse is unstable whatever the views.'
    """
    check_numbers(n=n, d=d, eps=eps, world_size=world_size, crops=global_crops, local_crops=local_crops)
    given = {"images": images, "measured": measured, "gamma": gamma}
    check_numbers(**{name: value for name, value in given.items() if not (value is None or isinstance(value, str))})
    rows = n * world_size if gathered else n
    if isinstance(gamma, str):
        rules = theory.gamma_rules(rows, d, eps) | {"official": theory.gamma_rules(n * world_size, d, eps)["official"]}
        if gamma not in rules:
            raise ValueError(f"gamma must be a number or one of {', '.join(rules)}, got {gamma!r}")
        gamma = rules[gamma]
    n = rows
    random = theory.rate_isotropic(n, d, eps)
    best = random if images is None or n == 1 else theory.attainable_rate(images, d, eps, b=n)
    low, random, best, high = (
        gamma * rate for rate in (theory.rate_collapsed(d, eps), random, best, theory.rate_maximum(n, d, eps))
    )
    chi, c = theory.collapse_number(d, eps, gamma), 1 if stop_gradient and rate_of == "student" else 2
    share = 1 - 1 / n  # of the features' variance, in a batch
    seen = chi * share
    number = f"The collapse number is {chi:.2f}; what counts in batches of {n} is {seen:.2f},"
    cause = "a stop-gradient teacher" if c == 1 else "the rate of a mean" if stop_gradient else "no stop-gradient"
    least = f"{c} ({cause})"
    sentences = [
        f"The expansion term lies between {low:.4f} (all features equal) and what batches of {n} of "
        f"{'many more' if images is None else images} images can attain on average, {best:.4f}; independent random "
        f"features score {random:.4f}. No batch exceeds {high:.4f} (R*), which training attains only if one batch has "
        "all images.",
        f"Spreading gains at most {best - low:.4f}: if the mean of 1 - cos between views stays above that, total "
        "collapse would have the lower loss.",
    ]
    if seen >= c:
        sentences.append(f"{number} at least {least}: total collapse is unstable whatever the views.")
    elif seen == 0:
        why = "gamma is 0" if gamma == 0 else "one row has no spread"
        sentences.append(f"{number} as {why}: total collapse is stable whatever the views.")
    else:
        safe = math.sqrt(2 * gamma * share * d / (c + math.sqrt(c * c + 4 * gamma * share * c)))  # ε at which seen = c
        sentences.append(
            f"{number} less than {least}: total collapse is stable if more than {seen / c:.0%} of every "
            f"direction's variance differs between views. Raise gamma to {gamma * c / seen:.2g}, or lower the paper's "
            f"epsilon to {safe:.2g} (eps of the official code, multiplied by the number of ranks unless covariances "
            f"are gathered, to {safe**2:.2g}), to be safe for all views."
        )
    if local_crops:
        pairs = global_crops + local_crops - 1
        implied = (seen / c * pairs - (global_crops - 1)) / local_crops
        sentences.append(
            f"With {local_crops} local crops the share that counts is "
            f"[{global_crops - 1}·μ + {local_crops}·μ_l]/{pairs}: μ of two global crops, and μ_l the variance of a "
            "local crop less its covariance with a global one, over the variance of a global one. "
            + (
                "It can exceed 1 only if local crops vary more than global ones, or against them."
                if seen >= c
                else f"If this run collapses and stays so, μ_l is above {max(implied, 0):.2f} in every direction."
            )
        )
    if n < d:
        sentences.append(f"{n} rows show at most {n} of {d} dimensions: enlarge the batch or gather the covariance.")
    if measured is not None and gamma > 0:
        sentences.append(
            f"The measured {measured:.4f} is {measured / best:.1%} of the attainable optimum, {measured / high:.1%} of "
            f"R* and {measured / low:.2f} times the collapsed value."
        )
    return Preflight(low, random, best, high, chi, tuple(sentences))


DECIDED = 300  # steps within which differences die, if they do
_REDUCED = 2**18  # prototypes times images of a step, up to which a reduced network takes seconds


class Survival(NamedTuple):
    """Whether differences survive in one of DINO's runs, before it is started; print it to read it as sentences."""

    hidden_lag: float  # ε₁/(ε₁ + ε₂), which is below τ_t/τ_s where the teacher hides the lag of the center
    lives: float | None  # share of the reduced runs that live; None where there were none
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def survival(config: Config, *, draws: int = 3) -> Survival:
    """On which side one of DINO's runs is: whether the differences between images live or die, and what to change.

    A teacher that is slower than the center by the factor τ_s/τ_t − 1 hides the center's lag at every learning rate,
    in the linear range (`theory.hidden_lag`). What happens outside of it is read from reduced networks, whose scale is
    that of the small recipes (`experiments.dino_map.reduced_run`), in the first DECIDED steps at most.

    Args:
        config: the run's.
        draws: how many reduced networks.

    Raises:
        ValueError: a run that is none of DINO's or that has a teacher with a gradient.

    >>> from simdino.recipes import recipe
    >>> print(survival(recipe("dino-vits16-imagenet")).sentences[0])
    The teacher's pace is 4% of that of teacher and center together, below τ_t/τ_s = 40%: it hides the center's lag.
    """
    from .experiments.dino_map import differences_live, reduced_run

    o, objective = config.optim, config.objective
    if not isinstance(objective, DINO) or o.teacher == "student-with-gradient":
        raise ValueError(f"{config.recipe} is no run of DINO's behind a stop-gradient")
    momentum = {"student": 0.0, "frozen": 1.0}.get(o.teacher, o.ema)
    threshold = objective.teacher_temp / objective.student_temp
    if objective.centering == "sinkhorn":
        share, sentences = 0.0, ["Sinkhorn-Knopp balances every batch at once: there is no center that could be late."]
    elif objective.center_momentum == 1:
        share, sentences = 1.0, ["Without centering the mean of the outputs is held back by nothing."]
    else:
        share = theory.hidden_lag(momentum, objective.center_momentum)
        is_, hides = ("below", "hides") if share < threshold else ("above", "does not hide")
        sentences = [
            f"The teacher's pace is {share:.0%} of that of teacher and center together, {is_} τ_t/τ_s = "
            f"{threshold:.0%}: it {hides} the center's lag."
        ]
    if config.patches or config.model.prototypes * o.batch_size > _REDUCED:
        sentences.append("The network is too large for a reduced one, or has patches: nothing is said of how it ends.")
        return Survival(share, None, tuple(sentences))
    short = replace(config, optim=replace(o, steps=min(o.steps, DECIDED)))
    lives = sum(differences_live(reduced_run(short, seed=k).score_spread) for k in range(draws)) / draws
    sentences.append(
        f"Differences between images live in {round(lives * draws)} of {draws} reduced networks, which were right in "
        "two of three settings of notebook 23."
    )
    if lives <= 0.5:
        sentences.append("Take a slower teacher, a faster center or a lower learning rate.")
    return Survival(share, lives, tuple(sentences))
