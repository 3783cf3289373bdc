"""The jackknife against what it is for linear and quadratic statistics, and its coverage over repeated draws."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from analysis import theory
from analysis.measures.moments import Moments
from analysis.measures.rates import coding_rate_of_spectrum
from analysis.measures.spectra import effective_rank, eigenvalues, participation_ratio
from analysis.measures.uncertainty import (
    Interval,
    _counted_twice,
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


MEASURES = {
    "effective_rank": effective_rank,
    "singular": lambda x: effective_rank(x, of="singular_values"),
    "participation_ratio": participation_ratio,
    "rate": lambda x: coding_rate_of_spectrum(x, eps=0.5, d=12),
}


@pytest.fixture(scope="module")
def draws():
    """200 draws of 25·d Gaussian rows in d = 12, isotropic and with λ_j ∝ 1/j: the truth and all estimates."""
    d, out = 12, {}

    def measure(x):
        lam = eigenvalues(x)
        return torch.stack([function(lam) for function in MEASURES.values()])

    for name, lam in {"isotropic": torch.ones(d), "power law": 1 / torch.arange(1.0, d + 1)}.items():
        lam = lam.double() / lam.sum()
        some = [jackknife(measure, Moments.of(features(25 * d, d, i) * lam.sqrt(), blocks=10)) for i in range(200)]
        value, se, corrected, low, high = torch.stack(
            [torch.stack([*e[:3], *e.interval(0.95)]) for e in some], -1
        ).numpy()
        for k, key in enumerate(MEASURES):
            columns = {"value": value, "se": se, "corrected": corrected, "low": low, "high": high}
            out[name, key] = measure(lam)[k].item(), {name: column[k] for name, column in columns.items()}
    return out


def coverage(truth, estimates):
    return np.mean((estimates["low"] <= truth) & (truth <= estimates["high"]))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("spectrum", ["isotropic", "power law"])
def test_coverage_is_nominal(draws, spectrum, measure):
    """Also where the first order vanishes, which it does for the ranks of an isotropic spectrum."""
    truth, estimates = draws[spectrum, measure]
    assert 0.90 <= coverage(truth, estimates) <= 0.98
    assert 0.85 <= estimates["se"].mean() / estimates["corrected"].std() <= 1.15


@pytest.mark.parametrize("blocks", [4, 9, 16])
def test_the_second_order_is_not_counted_twice(blocks):
    """Σ_{a≠b} ⟨x_a, x_b⟩/m² of the m blocks that are left, in 20,000 draws: all of it is of second order."""
    x = torch.randn(blocks, 5, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def without(*out):
        kept = x[[b for b in range(blocks) if b not in out]]
        return (kept.sum(0).square().sum(0) - kept.square().sum((0, 1))) / len(kept) ** 2

    value, left_out = without(), torch.stack([without(b) for b in range(blocks)])
    both_out = torch.stack([without(b, (b + 1) % blocks) for b in range(blocks)])
    counted = (blocks - 1) / blocks * (left_out - left_out.mean(0)).square().sum(0)
    twice = _counted_twice(value, left_out, both_out, torch.full((blocks, 1), 1 / blocks), torch.tensor(math.inf))
    truth = 2 * 5 / (blocks * (blocks - 1))
    assert counted.mean().item() == pytest.approx(2 * (blocks - 2) / (blocks - 1) * truth, rel=0.02)
    assert (counted - twice).mean().item() == pytest.approx(truth, rel=0.03)
    bounded = _counted_twice(value, left_out, both_out, torch.full((blocks, 1), 1 / blocks), counted)
    assert (bounded <= counted / 2).all()


def test_the_correction_removes_most_of_the_bias(draws):
    for truth, estimates in draws.values():
        bias, left = (abs(estimates[k].mean() - truth) for k in ("value", "corrected"))
        assert left <= 0.15 * bias + 2.5 * estimates["corrected"].std() / math.sqrt(200)


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
    with pytest.warns(UserWarning, match="n/d = 9.0 is below 10"):
        jackknife(energy, Moments.of(features(36, 4), blocks=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jackknife(energy, Moments.of(features(40, 4), blocks=4))


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
