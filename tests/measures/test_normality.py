"""Normality: every statistic against scipy or its formula, its expectation under the null, and what it does not see."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from analysis.measures.normality import STATISTICS, bhep, sliced_normality
from tests.configurations import D, gaussian, rotation

NULL = {
    "epps_pulley": 1 - 1 / math.sqrt(3),
    "cramer_von_mises": 1 / 6,
    "watson": 1 / 12,
    "anderson_darling": 1,
}


# --- Epps–Pulley


def epps_pulley(p: torch.Tensor) -> torch.Tensor:
    """n ∫ |φ_n − φ|² w dt in closed form: all pairs of Gaussian kernels."""
    pairs = (-(p[:, None] - p).square() / 2).exp().mean()
    return len(p) * (pairs - 2 / math.sqrt(2) * (-p.square() / 4).exp().mean() + 1 / math.sqrt(3))


def test_normality_in_one_dimension_is_the_closed_form():
    for z in (gaussian(200, 1), 0.5 * gaussian(50, 1) + 1, torch.linspace(-3, 3, 20, dtype=D)[:, None]):
        assert sliced_normality(z, directions=3).item() == pytest.approx(epps_pulley(z[:, 0]).item(), rel=1e-8)


def test_normal_samples_have_the_expectation_of_the_null_at_any_n():
    for n in (10, 400):
        values = torch.stack([sliced_normality(gaussian(n, 8, seed=s), directions=16, seed=s) for s in range(100)])
        error = 4 * values.std().item() / 10
        assert values.mean().item() == pytest.approx(1 - 1 / math.sqrt(3), abs=error)


def test_normality_of_collapse_grows_with_n_and_departures_are_seen():
    value = 1 - math.sqrt(2) + 1 / math.sqrt(3)
    for n in (1, 100):
        assert sliced_normality(torch.zeros(n, 5)).item() == pytest.approx(n * value)
    z = gaussian(2000, 8)
    sphere = torch.nn.functional.normalize(z, dim=1)
    assert sliced_normality(z).item() < 1
    assert sliced_normality(sphere).item() > 100  # as it is, not rescaled
    assert sliced_normality(sphere * math.sqrt(8)).item() < 5  # close, though bounded in eight dimensions
    assert sliced_normality(z * torch.tensor([3.0] + [0.3] * 7)).item() > 10


def test_normality_depends_on_its_seed_alone():
    z = gaussian(50, 6)
    assert sliced_normality(z, seed=1) == sliced_normality(z, seed=1)
    assert sliced_normality(z, seed=1) != sliced_normality(z, seed=2)
    torch.manual_seed(0)
    first = torch.rand(())
    torch.manual_seed(0)
    sliced_normality(z)
    assert torch.rand(()) == first  # the global generator is left alone
    with pytest.raises(ValueError, match="directions"):
        sliced_normality(z, directions=0)


# --- the other statistics, of one projection


def naive(statistic: str, y: np.ndarray) -> float:
    """As the source or scipy has it, from one sample (n,)."""
    n, y = len(y), np.sort(y)
    i, p = np.arange(1, n + 1), stats.norm.cdf(y)
    if statistic == "epps_pulley":
        return epps_pulley(torch.from_numpy(y)).item()
    if statistic == "cramer_von_mises":
        return stats.cramervonmises(y, "norm").statistic
    if statistic == "watson":
        return stats.cramervonmises(y, "norm").statistic - n * (p.mean() - 0.5) ** 2
    if statistic == "anderson_darling":  # n ∫ (F_n − Φ)²/(Φ(1 − Φ)) dΦ, piece by piece
        pieces = zip(np.r_[0, p], np.r_[p, 1], np.r_[0, i] / n, strict=True)
        integrand = lambda u, f: (f - u) ** 2 / (u * (1 - u))  # noqa: E731
        return n * sum(integrate.quad(integrand, a, b, args=(f,))[0] for a, b, f in pieces)
    if statistic == "jarque_bera":
        return stats.jarque_bera(y).statistic
    return 1 - np.corrcoef(y, stats.norm.ppf((i - 3 / 8) / (n + 1 / 4)))[0, 1] ** 2


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("n", [5, 60])
def test_statistic_of_one_projection_is_the_sources(statistic, n):
    for z in (gaussian(n, 1), gaussian(n, 1).exp() - 1):
        for seed in (0, 3):  # the only directions are 1 and −1
            u = torch.nn.functional.normalize(torch.randn(1, 1, dtype=D, generator=torch.Generator().manual_seed(seed)))
            value = sliced_normality(z, statistic=statistic, directions=1, seed=seed).item()
            assert value == pytest.approx(naive(statistic, (z * u)[:, 0].numpy()), rel=1e-6)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_slices_average_over_directions_that_depend_on_the_seed_alone(statistic):
    z = gaussian(40, 6)
    u = torch.nn.functional.normalize(torch.randn(6, 5, dtype=D, generator=torch.Generator().manual_seed(7)), dim=0)
    expected = np.mean([naive(statistic, y.numpy()) for y in (z @ u).T])
    assert sliced_normality(z, statistic=statistic, directions=5, seed=7).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("statistic", NULL)
@pytest.mark.parametrize("n", [3, 50])
def test_expectation_under_the_null_is_known_at_any_n(statistic, n):
    values = torch.stack(
        [sliced_normality(gaussian(n, 4, seed=s), statistic=statistic, directions=8, seed=s) for s in range(300)]
    )
    assert values.mean().item() == pytest.approx(NULL[statistic], abs=4 * values.std().item() / math.sqrt(300))


def test_null_values_of_the_shape_statistics():
    values = torch.stack(
        [sliced_normality(gaussian(2000, 2, seed=s), statistic="jarque_bera", directions=4) for s in range(100)]
    )
    assert values.mean().item() == pytest.approx(2, abs=0.1 + 4 * values.std().item() / 10)
    assert sliced_normality(gaussian(5000, 2), statistic="shapiro_francia").item() < 0.002


def test_what_each_statistic_does_not_see():
    z = gaussian(500, 3)
    for statistic in STATISTICS:
        value = sliced_normality(z, statistic=statistic).item()
        moved = [sliced_normality(w, statistic=statistic).item() for w in (3 * z, z + 1, z.pow(3))]
        if statistic in ("jarque_bera", "shapiro_francia"):
            assert moved[:2] == pytest.approx([value] * 2)
        else:
            assert moved[0] > 3 * value
            assert moved[1] > 3 * value
        assert moved[2] > 3 * value


@pytest.mark.parametrize("statistic", STATISTICS)
def test_collapse_and_a_single_row_have_a_value(statistic):
    expected = {"jarque_bera": math.inf, "shapiro_francia": 1.0}
    for z in (torch.full((30, 4), 0.1), torch.zeros(30, 4), torch.full((1, 4), 0.1)):
        value = sliced_normality(z, statistic=statistic).item()
        assert value == expected.get(statistic, value)
        assert not math.isnan(value)
    far = sliced_normality(torch.full((30, 4), 100.0), statistic=statistic).item()
    assert math.isfinite(far) or statistic == "jarque_bera"


def test_unknown_statistic_is_named():
    plain = inspect.unwrap(sliced_normality)  # as it is outside of tests, where annotations are not checked
    with pytest.raises(ValueError, match="statistic must be one of epps_pulley, cramer_von_mises, "):
        plain(gaussian(5, 2), statistic="lilliefors")


@pytest.mark.parametrize("statistic", STATISTICS)
def test_gradients_types_and_layouts(statistic):
    def f(z):
        return sliced_normality(z, statistic=statistic, directions=4)

    z = gaussian(8, 3).requires_grad_()
    assert torch.autograd.gradcheck(f, (z,))
    z = z.detach()
    assert f(z).dtype == D
    torch.testing.assert_close(f(torch.cat((z, z), 1)[:, :3]), f(z))
    torch.testing.assert_close(f(z.numpy()), f(z))
    torch.testing.assert_close(f(z.bfloat16()), f(z), atol=0.05, rtol=0.05)
    z[2, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        f(z)


# --- BHEP


def naive_bhep(y: torch.Tensor, beta: float) -> float:
    n, d = y.shape
    pairs = (-(beta**2) / 2 * torch.cdist(y, y).square()).exp().sum() / n
    own = (-(beta**2) / (2 * (1 + beta**2)) * y.square().sum(1)).exp().sum() * (1 + beta**2) ** (-d / 2)
    return (pairs - 2 * own + n * (1 + 2 * beta**2) ** (-d / 2)).item()


def test_bhep_equals_explicit_pairs_and_henze_and_zirklers_smoothing(monkeypatch):
    monkeypatch.setattr("analysis.measures.pair_tiles.PAIR_TILE", 7)
    z, n, d = gaussian(40, 3) @ gaussian(3, 3, seed=1) + 2, 40, 3
    lam, v = torch.linalg.eigh(torch.cov(z.T, correction=0))
    y = (z - z.mean(0)) @ v @ torch.diag(lam**-0.5)
    beta = ((2 * d + 1) * n / 4) ** (1 / (d + 4)) / math.sqrt(2)
    assert bhep(z).item() == pytest.approx(naive_bhep(y, beta))
    assert bhep(z, beta=0.7).item() == pytest.approx(naive_bhep(y, 0.7))
    assert bhep(z, beta=0.7, standardize=False).item() == pytest.approx(naive_bhep(z, 0.7))


def test_bhep_in_one_dimension_is_epps_pulley():
    z = gaussian(50, 1)
    assert bhep(z, beta=1, standardize=False).item() == pytest.approx(epps_pulley(z[:, 0]).item())


def test_bhep_under_the_null():
    d, beta = 3, 0.8
    a = 1 + 2 * beta**2
    for n, standardize, expected in [
        (5, False, 1 - a ** (-d / 2)),
        (60, False, 1 - a ** (-d / 2)),
        (400, True, 1 - a ** (-d / 2) * (1 + d * beta**2 / a + d * (d + 2) * beta**4 / (2 * a**2))),
    ]:
        values = torch.stack([bhep(gaussian(n, d, seed=s), beta=beta, standardize=standardize) for s in range(200)])
        assert values.mean().item() == pytest.approx(expected, rel=0.02, abs=4 * values.std().item() / math.sqrt(200))


def test_bhep_is_affine_invariant_and_sees_other_shapes():
    z = gaussian(300, 3)
    assert bhep(z @ gaussian(3, 3, seed=1) + 4).item() == pytest.approx(bhep(z).item())
    assert bhep(z.flip(0) @ rotation(3), standardize=False, beta=1).item() == pytest.approx(
        bhep(z, standardize=False, beta=1).item()
    )
    for other in (z.pow(3), z.exp(), torch.nn.functional.normalize(z, dim=1)):
        assert bhep(other).item() > 5 * bhep(z).item()


def test_bhep_of_singular_covariances_is_the_largest_value():
    for z in (torch.full((10, 3), 0.1), gaussian(3, 5), gaussian(20, 2) @ gaussian(2, 3, seed=1), torch.ones(1, 2)):
        assert bhep(z).item() == 4 * len(z)
    zeros = torch.zeros(10, 3, dtype=D)
    assert bhep(zeros, beta=1, standardize=False).item() == pytest.approx(10 * (1 - 2 * 2**-1.5 + 3**-1.5))
    with pytest.raises(ValueError, match="beta must be positive"):
        bhep(gaussian(9, 2), beta=0)


def test_bhep_gradient():
    for options in ({}, {"beta": 0.5}, {"beta": 1, "standardize": False}):
        assert torch.autograd.gradcheck(lambda z, o=options: bhep(z, **o), (gaussian(7, 2).requires_grad_(),))
