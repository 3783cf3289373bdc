"""How sure a diagnostic is: block jackknife, and what features without structure would have scored.

Spectral diagnostics of n samples are biased by the noise in the spectrum, by a term of order d/n. The bootstrap over
rows is no remedy: resampled rows repeat, so that its values have the bias twice and its interval misses the truth. The
jackknife over blocks estimates the bias and removes it.
"""

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers

from .inputs import Array, as_features, unit_rows
from .moments import CHUNK, Moments

Measure = Callable[[Moments], Tensor | float]


class Interval(NamedTuple):
    """A confidence interval; unpacks as (low, high), floats or tensors (k,) for a measure of k numbers."""

    low: float | Float[Tensor, " k"]
    high: float | Float[Tensor, " k"]


class Estimate(NamedTuple):
    """A diagnostic of n samples in d dimensions, its standard error and its value without the bias of small samples.

    value, se and corrected are floats, or tensors (k,) for a measure of k numbers.
    """

    value: float | Float[Tensor, " k"]
    se: float | Float[Tensor, " k"]
    corrected: float | Float[Tensor, " k"]
    n: int
    d: int
    blocks: int

    def interval(self, level: float = 0.95) -> Interval:
        """Confidence interval: corrected ± t·se, with Student's t of blocks − 1 degrees of freedom.

        >>> estimate = Estimate(value=5.0, se=0.1, corrected=5.2, n=1000, d=10, blocks=16)
        >>> [round(end, 3) for end in estimate.interval(0.95)]
        [4.987, 5.413]
        """
        half = student_quantile(level, self.blocks - 1) * self.se
        return Interval(self.corrected - half, self.corrected + half)


def student_quantile(level: float, freedom: int) -> float:
    """Half width of a two-sided interval of Student's t, in standard errors.

    Args:
        level: the probability of the interval, such as 0.95.
        freedom: degrees of freedom.

    >>> round(student_quantile(0.95, 15), 3)
    2.131
    """
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, freedom))


def jackknife(measure: Measure, moments: Moments, *, order: Literal[1, 2] = 1) -> Estimate:
    """Delete-one-block jackknife of any function of `Moments`: its value, standard error and value without bias.

    With h_b = n/n_b and pseudo-values θ_b = h_b·θ − (h_b − 1)·θ₋_b:
    se² = (1/B) Σ (θ_b − θ̃)²/(h_b − 1),  θ̃ = Bθ − Σ(1 − 1/h_b)·θ₋_b
    corrected = θ̃ of order 1, (8θ − 6θ_{n/2} + θ_{n/4})/3 of order 2

    Order 1 removes the bias of order 1/n, and is for n ≥ 10 d; it warns below. Order 2 removes 1/n² as well, by
    Richardson's extrapolation from halves and quarters of the blocks: with θ_n = θ + a/n + b/n² the weights cancel a
    and b. θ_{n/2} and θ_{n/4} are means over eight ways to split the blocks; one way alone has a seventh more error.
    Intervals of 95 %, of Gaussian features with the spectra of three trained networks (effective ranks 7, 35 and 52,
    d = 64, 16 blocks, 400 samples each, so ± 2 %), hold the truth in

                          effective rank     coding rate
        n = 10 d, order 1  94.3 to 96.0 %   94.3 to 96.5 %
        n = 5 d,  order 1  91.7 to 94.0 %   93.5 to 94.3 %
        n = 5 d,  order 2  92.0 to 94.3 %   93.8 to 95.5 %

    The variance counts twice what is of second order in the noise, as any jackknife's does. That is little for real
    features; at a maximum, such as the ranks of isotropic features, it is all of it, and se is up to √2 too large.

    It costs B + 1 evaluations of the measure, and 48 more of order 2; one that returns several numbers (k,) at once
    saves decompositions. It is valid for smooth measures of independent rows: not for a count, nor for the largest or
    smallest eigenvalue of a flat spectrum (stable rank), nor where views of one image are in different blocks (see
    `Moments`).

    Args:
        measure: a function of `Moments` that returns a number or a tensor (k,).
        moments: made with `blocks`; 16 is a good number.
        order: of the bias that is removed; for 2, blocks come in multiples of four and have equal sizes to a row.

    Raises:
        ValueError: fewer than two blocks, or an empty one; for order 2, blocks that cannot be quartered.

    Source: Quenouille 1956; Tukey 1958; Busing, Meijer & van der Leeden 1999, eq. 2-4 (unequal blocks); Efron & Stein
    1981 (what is counted twice).

    >>> moments = Moments.of(torch.arange(40.0)[:, None], blocks=4)
    >>> estimate = jackknife(lambda m: m.mean[0], moments)  # of a mean: the standard error of the block means
    >>> estimate.value, round(estimate.se, 4)
    (19.5, 0.6455)
    """
    sizes = [part.n for part in moments.by_block]
    if len(sizes) < 2 or min(sizes) == 0:
        raise ValueError(f"jackknife needs Moments with two or more non-empty blocks, got block sizes {sizes}")
    n, d, blocks = moments.n, moments.d, len(sizes)
    if order == 2 and (blocks % 4 or max(sizes) > min(sizes) + 1):
        raise ValueError(f"order 2 needs equal blocks in a multiple of four, got block sizes {sizes}")
    least = 10 if order == 1 else 5
    if n < least * d:
        rest = "the first order of the bias; order=2 removes the second" if order == 1 else "two orders of the bias"
        warnings.warn(f"n/d = {n / d:.1f} is below {least}: the correction removes only {rest}", stacklevel=2)
    value = torch.as_tensor(measure(moments), dtype=torch.float64)  # () or (k,)

    def without(*out: int) -> Tensor:
        return torch.as_tensor(measure(moments.without(*out)), dtype=torch.float64)

    left_out = torch.stack([without(b) for b in range(blocks)])
    share = (torch.tensor(sizes).to(value) / n).view(-1, *[1] * value.ndim)  # (blocks, 1...): 1/h
    corrected = blocks * value - ((1 - share) * left_out).sum(0)
    pseudo = (value - (1 - share) * left_out) / share
    variance = ((pseudo - corrected).square() * share / (1 - share)).mean(0)
    if order == 2:
        halves, quarters = (torch.stack([without(*out) for out in _other_parts(blocks, k)]).mean(0) for k in (2, 4))
        corrected = (8 * value - 6 * halves + quarters) / 3
    value, se, corrected = (t.item() if t.ndim == 0 else t for t in (value, variance.sqrt(), corrected))
    return Estimate(value, se, corrected, n, d, blocks)


def _other_parts(blocks: int, parts: int) -> list[list[int]]:
    """What is outside of each of equally many blocks, of eight random ways to split all, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    splits = [torch.randperm(blocks, generator=generator).tolist() for _ in range(8)]
    size = blocks // parts
    return [order[:i] + order[i + size :] for order in splits for i in range(0, blocks, size)]


def leave_one_out_error(left_out: Array) -> Float[np.ndarray, "..."] | np.floating:
    """Standard error of a measure of n independent samples, from its values without each of them.

    se² = (n − 1)/n Σ(θ₋ᵢ − θ̄)²

    Of a mean, this is the ordinary standard error. Values that are NaN are left out.

    Args:
        left_out: (n, ...) values of the measure, each without one sample.

    Returns:
        (...) standard errors.

    Source: Quenouille 1956; Tukey 1958.

    >>> x = np.random.default_rng(0).normal(size=50)
    >>> bool(np.isclose(leave_one_out_error((x.sum() - x) / 49), x.std(ddof=1) / 50**0.5))
    True
    """
    theta = np.asarray(left_out.cpu() if isinstance(left_out, Tensor) else left_out, dtype=np.float64)
    return np.sqrt((len(theta) - 1) * np.nanvar(theta, axis=0))


def leave_one_out_interval(value: float, left_out: Array, *, level: float = 0.95) -> Interval:
    """Confidence interval of a measure of n independent samples, from its values without each of them.

    value ± t·se,  se² = (n − 1)/n Σ(θ₋ᵢ − θ̄)²,  Student's t with n − 1 degrees of freedom

    Of a mean, this is the ordinary interval. It serves smooth functions of sums over samples, images or sequences, such
    as IoU. In simulations with mean IoU, whose rare classes are in few images, it held the truth in 87 to 96 % of the
    samples, while 95 % percentiles of the bootstrap did in 38 to 86 %.

    Args:
        value: the measure of all samples.
        left_out: (n,) its values, each without one sample.
        level: the probability of the interval.

    Raises:
        ValueError: fewer than two samples, NaN.

    Source: Quenouille 1956; Tukey 1958.

    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> low, high = leave_one_out_interval(2.0, (x.sum() - x) / 2)  # 2 ± 4.303/√3
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    theta = as_features(torch.as_tensor(left_out)[:, None], "left_out", min_rows=2).double()
    half = student_quantile(level, len(theta) - 1) * leave_one_out_error(theta).item()
    return Interval(value - half, value + half)


def share_interval(value: float, left_out: Array, *, level: float = 0.95) -> Interval:
    """`leave_one_out_interval` of a share, which no value outside [0, 1] can be.

    Args:
        value: the share of all samples.
        left_out: (n,) its values, each without one sample.
        level: the probability of the interval.

    Raises:
        ValueError: as in `leave_one_out_interval`.

    >>> share_interval(0.9, torch.tensor([0.8, 0.9, 1.0])).high
    1.0
    """
    low, high = leave_one_out_interval(value, left_out, level=level)
    return Interval(max(low, 0.0), min(high, 1.0))


class Reference(NamedTuple):
    """Mean and standard deviation of a diagnostic over draws of features without structure."""

    mean: float
    sd: float


def isotropic_reference(measure: Measure, n: int, d: int, *, draws: int = 16, seed: int = 0) -> Reference:
    """What a measure gives for n independent, uniformly random unit vectors in d dimensions.

    This is the reference for white features in a finite sample: compare a measured value with it, and not with the
    value of the population.

    Args:
        measure: a function of `Moments` that returns a number.
        n: number of rows.
        d: dimension of the features.
        draws: number of random sets, at least 2.
        seed: of the random numbers.

    >>> isotropic_reference(lambda m: m.second_moment.trace().round(decimals=6), 50, 4, draws=2)
    Reference(mean=1.0, sd=0.0)
    """
    check_numbers(n=n, d=d)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Moments:
        moments = Moments(d)
        for rows in torch.arange(n).split(max(CHUNK // d, 1)):
            moments.update(unit_rows(torch.randn(len(rows), d, generator=generator, dtype=torch.float64)))
        return moments

    return _reference(measure, draw, draws)


def permutation_reference(measure: Measure, z: Array, *, draws: int = 16, seed: int = 0) -> Reference:
    """What a measure gives when every column of the features is shuffled by itself.

    Shuffling keeps the distribution of each coordinate and destroys all dependence between coordinates: a spectrum like
    the shuffled one comes from unequal variances alone. It depends on the basis.

    Args:
        measure: a function of `Moments` that returns a number.
        z: (n, d).
        draws: number of shuffles, at least 2.
        seed: of the random numbers.

    Source: Horn 1965 (parallel analysis); Buja & Eyuboglu 1992 for permutations.

    >>> one_line = torch.arange(64.0)[:, None].repeat(1, 3)
    >>> top = lambda m: torch.linalg.eigvalsh(m.covariance)[-1] / m.covariance.trace()
    >>> top(Moments.of(one_line)).item() > 0.99, permutation_reference(top, one_line).mean < 0.5
    (True, True)
    """
    z = as_features(z)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: every device has the same draws

    def draw() -> Moments:
        order = torch.rand(z.shape, generator=generator).argsort(0).to(z.device)  # (n, d)
        return Moments.of(z.gather(0, order))

    return _reference(measure, draw, draws)


def _reference(measure: Measure, draw: Callable[[], Moments], draws: int) -> Reference:
    check_numbers(draws=draws)
    if draws < 2:
        raise ValueError(f"draws must be at least 2 for a standard deviation, got {draws}")
    values = torch.tensor([float(measure(draw())) for _ in range(draws)], dtype=torch.float64)
    return Reference(values.mean().item(), values.std().item())
