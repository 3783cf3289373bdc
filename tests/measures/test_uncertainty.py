"""The jackknife against what it is for linear and quadratic statistics, and its coverage over repeated draws."""

import functools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from analysis import theory
from analysis.measures.moments import Moments
from analysis.measures.rates import coding_rate_of_spectrum
from analysis.measures.spectra import effective_rank, participation_ratio
from analysis.measures.uncertainty import (
    Interval,
    isotropic_reference,
    jackknife,
    leave_one_out_interval,
    permutation_reference,
    share_interval,
)


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def energy(m):
    return m.second_moment.trace()


def test_of_a_mean_it_is_the_standard_error_of_block_means():
    z = features(400, 3)
    blocks = [z[b::8].square().sum(1).mean().item() for b in range(8)]
    estimate = jackknife(energy, Moments.of(z, blocks=8))
    assert estimate.value == pytest.approx(np.mean(blocks))
    assert estimate.corrected == pytest.approx(np.mean(blocks))
    assert estimate.se == pytest.approx(np.std(blocks, ddof=1) / math.sqrt(8))
    assert (estimate.n, estimate.d, estimate.blocks) == (400, 3, 8)


def test_unequal_blocks_leave_a_mean_uncorrected():
    z = features(397, 3)
    estimate = jackknife(energy, Moments.of(z, blocks=8))
    assert estimate.corrected == pytest.approx(estimate.value, rel=1e-10)
    one = jackknife(energy, Moments.of(z[:392], blocks=8))
    assert estimate.se == pytest.approx(one.se, rel=0.2)


def test_of_a_square_it_removes_the_whole_bias():
    """‖mean‖² is biased by trace/n; the correction leaves the inner products of distinct block means."""
    z = features(400, 3)
    means = torch.stack([z[b::8].mean(0) for b in range(8)])
    products = means @ means.T
    expected = (products.sum() - products.trace()) / (8 * 7)
    estimate = jackknife(lambda m: m.mean.square().sum(), Moments.of(z, blocks=8))
    assert estimate.corrected == pytest.approx(expected.item())


def test_the_interval_is_students():
    estimate = jackknife(energy, Moments.of(features(400, 3), blocks=8))
    low, high = interval = estimate.interval(0.9)
    assert (interval.low, interval.high) == (low, high)
    assert (low + high) / 2 == pytest.approx(estimate.corrected)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.95, 7) * estimate.se)


def test_several_numbers_at_once_are_the_single_ones():
    m = Moments.of(features(400, 3), blocks=8)
    both = jackknife(lambda m: torch.stack([energy(m), participation_ratio(m)]), m)
    for i, measure in enumerate((energy, participation_ratio)):
        one = jackknife(measure, m)
        assert [t[i].item() for t in both[:3]] == pytest.approx(one[:3])
        assert [t[i].item() for t in both.interval()] == pytest.approx(one.interval())


class Draws(Moments):
    """Second moments of many samples at once, block by block: a measure of them has a number for each sample."""

    def __init__(self, scatters, rows):
        super().__init__(scatters.shape[-1])
        self.scatters, self.rows = scatters, rows  # (blocks, draws, d, d)
        self.n = rows * len(scatters)
        self.by_block = [Draws(part[None], rows) for part in scatters] if len(scatters) > 1 else []

    def without(self, *blocks):
        return Draws(self.scatters[[b for b in range(len(self.scatters)) if b not in blocks]], self.rows)

    def spectra(self):
        return torch.linalg.eigvalsh(self.scatters.sum(0) / self.n)  # (draws, d)


def entropy_rank(lam):
    p = lam / lam.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()


def rate_at_half(lam):
    return torch.log1p(lam.shape[-1] / 0.5**2 * lam).sum(-1) / 2


MEASURES = {"effective rank": entropy_rank, "rate": rate_at_half}
DRAWS, DIM = 400, 16
LAM = torch.logspace(0, -1.5, DIM, dtype=torch.float64)
SPECTRA = {"isotropic": torch.ones(DIM, dtype=torch.float64) / DIM, "falling": LAM / LAM.sum()}


@functools.cache
def estimates(spectrum, measure, multiple, order):
    """The truth, and the jackknife of 400 Gaussian samples of `multiple` · d rows in 16 blocks."""
    lam, rows = SPECTRA[spectrum], multiple * DIM // 16
    z = torch.randn(16, DRAWS, rows, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * lam.sqrt()
    function = MEASURES[measure]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = jackknife(lambda m: function(m.spectra()), Draws(z.mT @ z, rows), order=order)
    return function(lam).item(), found


@pytest.mark.parametrize(("multiple", "order"), [(10, 1), (5, 2)])
@pytest.mark.parametrize("measure", MEASURES)
def test_coverage_is_nominal(measure, multiple, order):
    """400 draws have a standard error of 0.011."""
    truth, found = estimates("falling", measure, multiple, order)
    low, high = found.interval()
    assert ((low <= truth) & (truth <= high)).double().mean().item() == pytest.approx(0.95, abs=0.03)
    assert found.se.square().mean().sqrt() / found.corrected.std() == pytest.approx(1, abs=0.12)


def test_at_a_maximum_the_error_is_up_to_the_root_of_two_too_large():
    """The first order vanishes, for which the jackknife's variance is 2(B − 2)/(B − 1) times the truth."""
    truth, found = estimates("isotropic", "effective rank", 40, 1)
    ratio = (found.se.square().mean().sqrt() / found.corrected.std()).item()
    assert ratio == pytest.approx(math.sqrt(2 * 14 / 15), abs=0.1)
    low, high = found.interval()
    assert ((low <= truth) & (truth <= high)).double().mean() >= 0.95


@pytest.mark.parametrize("measure", MEASURES)
def test_each_order_removes_most_of_the_bias_that_is_left(measure):
    (truth, first), (_, second) = (estimates("falling", measure, 5, order) for order in (1, 2))
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.se, second.se)
    bias = [abs(x.mean().item() - truth) for x in (first.value, first.corrected, second.corrected)]
    noise = 2.5 * second.corrected.std().item() / DRAWS**0.5
    assert bias[1] <= 0.15 * bias[0]
    assert bias[2] <= 0.5 * bias[1] + noise


def test_order_2_is_exact_for_a_bias_of_two_orders():
    """θ_n = θ + a/n + b/n², of the same features whatever n: not a line of noise."""
    m = Moments.of(features(320, 2), blocks=16)
    estimate = jackknife(lambda m: 3 + 40 / m.n - 500 / m.n**2, m, order=2)
    assert estimate.corrected == pytest.approx(3, abs=1e-12)
    assert jackknife(lambda m: 3 + 40 / m.n, m).corrected == pytest.approx(3, abs=1e-12)
    assert abs(jackknife(lambda m: 3 + 40 / m.n - 500 / m.n**2, m).corrected - 3) > 1e-3


def test_order_2_leaves_a_mean_alone():
    m = Moments.of(features(320, 2), blocks=16)
    assert jackknife(energy, m, order=2).corrected == pytest.approx(energy(m).item(), rel=1e-12)


def test_order_2_needs_blocks_that_can_be_quartered():
    with pytest.raises(ValueError, match="order 2 needs equal blocks in a multiple of four, got block sizes"):
        jackknife(energy, Moments.of(features(60, 2), blocks=6), order=2)


def test_the_bootstrap_over_rows_misses_the_truth():
    """Resampled rows repeat, so its whole 95 % interval lies below the estimate, which is below the truth already."""
    rng, covered, below = np.random.default_rng(0), 0, 0
    for seed in range(10):
        z = features(300, 12, seed)
        resampled = [effective_rank(z[rng.integers(300, size=300)]).item() for _ in range(40)]
        low, high = np.quantile(resampled, [0.025, 0.975])
        covered += low <= 12 <= high
        below += high < effective_rank(z).item()
    assert covered == 0
    assert below >= 9


def test_too_few_rows_are_warned_of():
    with pytest.warns(UserWarning, match="n/d = 9.0 is below 10: .* order=2 removes the second"):
        jackknife(energy, Moments.of(features(36, 4), blocks=4))
    with pytest.warns(UserWarning, match="n/d = 4.0 is below 5: .* two orders"):
        jackknife(energy, Moments.of(features(16, 4), blocks=4), order=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jackknife(energy, Moments.of(features(40, 4), blocks=4))
        jackknife(energy, Moments.of(features(20, 4), blocks=4), order=2)


def test_blocks_are_needed():
    for m in (Moments.of(features(40, 4)), Moments.of(features(3, 4), blocks=4)):
        with pytest.raises(ValueError, match="two or more non-empty blocks"):
            jackknife(energy, m)


def test_leaving_one_out_of_a_mean_gives_students_interval():
    x = features(7, 1).flatten()
    left_out = (x.sum() - x) / 6
    expected = stats.t.interval(0.9, 6, loc=x.mean().item(), scale=stats.sem(x.numpy()))
    assert leave_one_out_interval(x.mean().item(), left_out, level=0.9) == pytest.approx(expected)
    assert leave_one_out_interval(x.mean().item(), left_out.numpy(), level=0.9) == pytest.approx(expected)


def test_leaving_one_out_covers_a_ratio_of_sums():
    """Like IoU: Σa/Σb over 200 images with a ≤ b, b exponential and a/b uniform, whose truth is ½; 40 give 93%."""
    rng = np.random.default_rng(0)
    b = rng.exponential(size=(1000, 200))
    a = b * rng.uniform(size=b.shape)
    ratio = a.sum(1) / b.sum(1)
    left_out = (a.sum(1, keepdims=True) - a) / (b.sum(1, keepdims=True) - b)
    bounds = np.array([leave_one_out_interval(float(r), out) for r, out in zip(ratio, left_out, strict=True)])
    assert ((bounds[:, 0] <= 0.5) & (bounds[:, 1] >= 0.5)).mean() == pytest.approx(0.95, abs=0.02)


def test_no_interval_of_a_share_leaves_zero_to_one():
    for value, left_out in ((0.95, [0.9, 0.95, 1.0]), (0.05, [0.0, 0.05, 0.1]), (0.5, [0.2, 0.5, 0.8])):
        left_out = torch.tensor(left_out)
        low, high = leave_one_out_interval(value, left_out)
        assert low < 0 or high > 1
        assert share_interval(value, left_out) == (max(low, 0.0), min(high, 1.0))


def test_leaving_one_out_needs_two_finite_values():
    with pytest.raises(ValueError, match="left_out needs at least 2 rows, got 1"):
        leave_one_out_interval(1.0, torch.ones(1))
    with pytest.raises(ValueError, match="left_out contains NaN"):
        leave_one_out_interval(1.0, torch.tensor([1.0, torch.nan]))
    assert leave_one_out_interval(1.0, torch.ones(3)) == Interval(low=1, high=1)


def test_isotropic_reference_is_the_closed_form():
    """Marchenko-Pastur for the rate, 1/PR = 1/n + 1/d for the participation ratio."""
    rate = isotropic_reference(lambda m: coding_rate_of_spectrum(m, eps=0.5), 256, 64, draws=8)
    assert rate.mean == pytest.approx(theory.rate_isotropic(256, 64, 0.5), rel=2e-3)
    assert 0 < rate.sd < 0.01 * rate.mean
    ratio = isotropic_reference(participation_ratio, 256, 64, draws=8)
    assert ratio.mean == pytest.approx(1 / (1 / 256 + 1 / 64), rel=1e-2)
    assert ratio == isotropic_reference(participation_ratio, 256, 64, draws=8)


def test_permutation_reference_keeps_variances_and_destroys_dependence():
    z = features(500, 1) @ torch.ones(1, 8, dtype=torch.float64) + 0.1 * features(500, 8, 1)  # one direction and noise
    assert participation_ratio(z) < 1.1
    reference = permutation_reference(participation_ratio, z, draws=5)
    assert reference.mean == pytest.approx(1 / (1 / 500 + 1 / 8), rel=0.02)
    trace = permutation_reference(energy, z, draws=5)
    assert trace.mean == pytest.approx(energy(Moments.of(z)).item())
    assert trace.sd == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match="draws"):
        permutation_reference(energy, z, draws=1)
