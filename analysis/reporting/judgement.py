"""The judgement of features: one of six, with its reason, from a few numbers and thresholds that are all here."""

import math
from enum import StrEnum
from typing import Literal, NamedTuple

from .. import theory

# A head that keeps less than this share of the coding rate of random directions, above a single point's, has collapsed.
KEPT = 0.5
# A backbone with a smaller centered effective rank has collapsed: one direction is all that tells samples apart.
RANK = 2.0
# Views of one sample that are further apart than this share of the distance of different samples are a view problem.
VIEWS = 0.5

JudgedAs = Literal["head", "backbone"]


class Judgement(StrEnum):
    """What `report` says of features."""

    HEALTHY = "healthy"
    MEAN_COLLAPSE = "mean collapse"
    CLASS_COLLAPSE = "class collapse"
    DIMENSIONAL_COLLAPSE = "dimensional collapse"
    VIEW_PROBLEM = "view problem"
    TOO_FEW_SAMPLES = "too few samples to judge"

    @property
    def is_collapse(self) -> bool:
        """Whether it is one of the three collapses."""
        return self in (Judgement.MEAN_COLLAPSE, Judgement.CLASS_COLLAPSE, Judgement.DIMENSIONAL_COLLAPSE)


class Verdict(NamedTuple):
    """A judgement and the reason for it, in sentences."""

    judgement: Judgement
    reason: str


def judge(
    n: int,
    d: int,
    *,
    rate: float,
    mean: float,
    eps: float,
    rank: float,
    within: float | None = None,
    views: float | None = None,
    judged_as: JudgedAs = "head",
) -> Verdict:
    """The judgement of unit rows (n, d) from the numbers that it rests on; the first of these that holds.

    With s = (R − R_collapsed)/(R_isotropic − R_collapsed), the part kept of the coding rate that random directions
    have over a single point (`kept_of_rate`):

    - mean collapse. head: s < ½, and the mean's energy explains more of the missing rate than the shape of the
      spectrum does. backbone: E‖z − z̄‖² < ε², the mean alone is a code of precision ε for every feature.
    - class collapse: E‖z − z̄_class‖² < ε², by the same argument.
    - dimensional collapse. head: s < ½. backbone: centered effective rank below 2.
    - view problem: two views of a sample differ by more than half of what views of different samples do.
    - too few samples to judge: n < d.
    - healthy: none of these.

    A loss asks the features of a head to spread, hence s. Nothing asks a backbone to: a common mean and a steep
    spectrum are what networks that work have there.

    Args:
        n, d: samples and dimensions.
        rate: coding rate in nats.
        mean: ‖E z‖²/E‖z‖².
        eps: the paper's ε of the rate.
        rank: effective rank of the centered features.
        within: E‖z − z̄_class‖², where there are labels.
        views: E‖z − z′‖² of two views of a sample over that of different samples, where there are views.
        judged_as: "head" or "backbone".

    Source: ours; s at ½ still passes λⱼ ∝ 1/j, known from healthy networks and from cortex, at any d in use (s = 0.8 at
    d = 64, 0.7 at 2,048), and λⱼ ∝ 1/j² no longer (s < 0.45 from d = 64 on).

    >>> judge(1000, 64, rate=10.0, mean=0.9, eps=0.2, rank=40.0).judgement
    <Judgement.MEAN_COLLAPSE: 'mean collapse'>
    >>> judge(1000, 64, rate=10.0, mean=0.9, eps=0.2, rank=40.0, judged_as="backbone").judgement
    <Judgement.HEALTHY: 'healthy'>
    """
    if judged_as not in ("head", "backbone"):
        raise ValueError(f'judged_as must be "head" or "backbone", got {judged_as!r}')
    kept, complete = kept_of_rate(n, d, rate, eps), 1 - mean < eps**2
    scale = f"The features keep {max(kept, 0):.0%} of the coding rate that random directions have over a single point"
    if judged_as == "head":
        collapsed = kept < KEPT
        by_mean = collapsed and _mean_explains_more(n, d, rate, mean, eps)
        few = f"{scale}: they use too few of {d} dimensions, or use them too unevenly."
    else:
        collapsed, by_mean = complete or rank < RANK, complete
        few = f"Centered, the features have an effective rank of {rank:.2g}: one direction tells samples apart."
    if collapsed and by_mean:
        where = ": the r.m.s. distance from one point is below ε" if complete else ""
        extent = "Complete" if complete else "Partial"
        says = f"{extent} mean collapse{where}. {scale}, and {mean:.1%} of their energy is their common mean."
        return Verdict(Judgement.MEAN_COLLAPSE, says)
    if within is not None and within < eps**2:
        says = f"E‖z − class mean‖² = {within:.2g} is below ε² = {eps**2:.2g}: only the class is left."
        return Verdict(Judgement.CLASS_COLLAPSE, says)
    if collapsed:
        return Verdict(Judgement.DIMENSIONAL_COLLAPSE, few)
    if views is not None and views > VIEWS:
        says = f"Two views of one sample are {views:.0%} as far apart as views of different samples."
        return Verdict(Judgement.VIEW_PROBLEM, says)
    if n < d:
        says = f"{n} samples show at most {n} of {d} dimensions; nothing is wrong in those."
        return Verdict(Judgement.TOO_FEW_SAMPLES, says)
    common = f"{mean:.1%} of their energy is their common mean. Usefulness is another question."
    if judged_as == "head":
        return Verdict(Judgement.HEALTHY, f"{scale}; {common}")
    return Verdict(Judgement.HEALTHY, f"Centered effective rank {rank:.3g}; as a backbone may have it, {common}")


def kept_of_rate(n: int, d: int, rate: float, eps: float) -> float:
    """Where a coding rate lies between a single point (0) and random directions (1), at the same n and d.

    (R − R_collapsed)/(R_isotropic − R_collapsed); 1 in one dimension, where the two are equal.

    >>> kept_of_rate(1000, 64, theory.rate_isotropic(1000, 64, 0.2), 0.2)
    1.0
    """
    isotropic, lowest = theory.rate_isotropic(n, d, eps), theory.rate_collapsed(d, eps)
    return (rate - lowest) / (isotropic - lowest) if d > 1 else 1.0


def _mean_explains_more(n: int, d: int, rate: float, mean: float, eps: float) -> bool:
    """Whether the mean's energy costs at least as much rate as what remains has lost by its uneven spectrum."""
    spread = max(1 - mean, 1e-12)  # E‖z − z̄‖²
    even = 0.5 * math.log1p(d / eps**2 * mean) + theory.rate_isotropic(
        n, d, eps / math.sqrt(spread)
    )  # all but the mean
    return theory.rate_isotropic(n, d, eps) - even >= even - rate
