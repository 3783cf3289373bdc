"""Coding rates: one function with the loss, its bounds, class rates, and the range of a run before it is started."""

import math

import pytest
import torch

import simdino.losses
from analysis import theory
from analysis.measures import rates
from analysis.measures.moments import Moments
from analysis.measures.rates import class_rates, coding_rate_of_spectrum, rate_optimality, rate_reduction
from analysis.measures.spectra import eigenvalues
from analysis.planning import preflight
from simdino.losses import coding_rate, official_scaling

EPS = 0.5


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(z, eps=EPS):
    n, d = z.shape
    return torch.logdet(torch.eye(d, dtype=z.dtype) + d / (n * eps**2) * z.T @ z) / 2


def test_the_diagnostic_is_the_loss():
    assert rates.coding_rate is simdino.losses.coding_rate


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 6), (4, 10)])
def test_spectrum_moments_and_features_give_the_rate_of_the_loss(n, d):
    z = features(n, d)
    expected = naive(z)
    torch.testing.assert_close(coding_rate(z, eps=EPS), expected)
    for x in (z, z.numpy(), Moments.of(z)):
        torch.testing.assert_close(coding_rate_of_spectrum(x, eps=EPS), expected)
    torch.testing.assert_close(coding_rate_of_spectrum(eigenvalues(z), eps=EPS, d=d), expected)
    centered = naive(z - z.mean(0))
    for x in (z, Moments.of(z)):
        torch.testing.assert_close(coding_rate_of_spectrum(x, eps=EPS, center=True), centered)


def test_a_spectrum_needs_the_dimension():
    for d in (None, 2):
        with pytest.raises(ValueError, match="at least 3"):
            coding_rate_of_spectrum(torch.ones(3), eps=EPS, d=d)


@pytest.mark.parametrize(("n", "d"), [(4, 10), (10, 10)])
def test_optimality_of_orthonormal_rows_and_of_collapse(n, d):
    eye = torch.eye(d, dtype=torch.float64)[:n]
    for x in (eye, Moments.of(eye)):
        optimal = rate_optimality(x, eps=EPS)
        assert optimal.of_ceiling.item() == pytest.approx(1, abs=1e-12)
        assert optimal.ceiling == pytest.approx(n / 2 * math.log(1 + d / EPS**2 / n), abs=1e-12)
        assert optimal.collapsed < optimal.isotropic < optimal.ceiling
    collapsed = rate_optimality(torch.ones(n, d), eps=EPS, normalize=True)
    assert collapsed.measured.item() == pytest.approx(collapsed.collapsed, rel=1e-5)


@pytest.mark.parametrize("n", [32, 64, 256])
def test_random_unit_vectors_are_isotropic(n):
    """Up to the correction of relative order 1/d to the law's asymptotic mean, +0.4 % at n = d = 64."""
    draws = [rate_optimality(features(n, 64, seed), eps=EPS, normalize=True).of_isotropic for seed in range(20)]
    assert torch.stack(draws).mean().item() == pytest.approx(1, abs=0.005)


def test_optimality_needs_unit_rows():
    for x in (features(9, 3), Moments.of(features(9, 3))):
        with pytest.raises(ValueError, match="unit-norm"):
            rate_optimality(x, eps=EPS)


def test_class_rates_and_reduction_are_their_definition():
    z, labels = features(50, 4), torch.arange(50) % 7 // 3  # 3 classes of unequal size
    parts = [z[labels == k] for k in range(3)]
    expected = torch.stack([naive(p) for p in parts])
    reduction = naive(z) - sum(len(p) / 50 * naive(p) for p in parts)
    for args in ((z, labels), (z.numpy(), labels.numpy()), (Moments.of(z, labels),)):
        torch.testing.assert_close(class_rates(*args, eps=EPS), expected)
        torch.testing.assert_close(rate_reduction(*args, eps=EPS), reduction)


def test_rate_reduction_of_orthogonal_classes_and_of_equal_ones():
    """k classes, each equal to its own basis vector: R = d/2 log(1+α/d), each R_k = ½ log(1+α)."""
    z, alpha = torch.eye(5, dtype=torch.float64).repeat(4, 1), 5 / EPS**2
    orthogonal = 5 / 2 * math.log1p(alpha / 5) - 0.5 * math.log1p(alpha)
    assert rate_reduction(z, torch.arange(20) % 5, eps=EPS).item() == pytest.approx(orthogonal)
    assert rate_reduction(z, torch.arange(20) // 5, eps=EPS).item() == pytest.approx(0, abs=1e-12)


def test_rate_reduction_is_invariant_to_rotation_and_class_names_and_never_negative():
    z, labels = features(60, 4) + 1, torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    value = rate_reduction(z, labels, eps=EPS)
    assert value >= 0
    rotation = torch.linalg.qr(features(4, 4)).Q
    torch.testing.assert_close(rate_reduction(z @ rotation, labels, eps=EPS), value)
    torch.testing.assert_close(rate_reduction(z, 2 * (2 - labels), eps=EPS), value)  # classes 1 and 3 are empty


def test_rate_reduction_has_the_gradient_of_its_formula():
    z, labels = features(12, 3).requires_grad_(), torch.arange(12) % 2
    assert torch.autograd.gradcheck(lambda x: rate_reduction(x, labels, eps=EPS), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_low_precision_input_is_upcast(dtype):
    z, labels = (3 * features(50, 4)).to(dtype), torch.arange(50) % 2
    torch.testing.assert_close(
        rate_reduction(z, labels, eps=EPS).double(), rate_reduction(z.double(), labels, eps=EPS), rtol=1e-4, atol=1e-5
    )


def test_bad_input_is_named():
    z = features(6, 3)
    with pytest.raises(ValueError, match="features need labels"):
        class_rates(z, eps=EPS)
    with pytest.raises(ValueError, match="labels must have shape"):
        rate_reduction(z, torch.zeros(5, dtype=torch.int64), eps=EPS)
    with pytest.raises(ValueError, match="Moments with classes"):
        rate_reduction(Moments.of(z), eps=EPS)
    with pytest.raises(ValueError, match="NaN"):
        class_rates(z * math.nan, torch.zeros(6, dtype=torch.int64), eps=EPS)


# --- before a run: what users of the official code saw (ranks × batch of one view on one rank, eps = .05, d = 256)

REPORTED = [  # batch, ranks, ceiling, collapsed, collapse number
    (64, 8, 0.4496, 0.0189, 3.74),  # README, the published log
    (128, 8, 0.560, 0.016, 3.12),  # SimDINOv2 reference
    (256, 2, 1.798, 0.023, 14.99),  # issue 48: the global batch of the README
    (512, 2, 1.499, 0.019, 12.50),  # issue 41
    (24, 1, 2.935, 0.195, 233.3),  # issue 12
    (32, 1, 2.858, 0.150, 180.0),  # issue 50
    (64, 16, 0.280, 0.014, 1.56),  # issue 29: collapsed
    (78, 32, 0.187, 0.01094, 0.69),  # issue 20: collapsed, then NaN
]


def official(batch, ranks, d=256, eps=0.05):
    """Settings of the official code with local covariances."""
    eps, gamma = official_scaling(d, batch, eps, world_size=ranks)
    return {"n": batch, "d": d, "eps": eps, "gamma": gamma}


@pytest.mark.parametrize(("batch", "ranks", "ceiling", "collapsed", "number"), REPORTED)
def test_preflight_of_reported_configurations(batch, ranks, ceiling, collapsed, number):
    flight = preflight(**official(batch, ranks))
    assert flight.ceiling == pytest.approx(ceiling, abs=6e-4)
    assert flight.collapsed == pytest.approx(collapsed, abs=6e-4)
    assert flight.collapse_number == pytest.approx(number, rel=8e-3)
    assert flight.collapsed < flight.isotropic < flight.ceiling
    assert ("unstable whatever the views" in str(flight)) == (number >= 1)


@pytest.mark.parametrize(
    ("batch", "ranks", "logged"), [(64, 8, 0.4238), (24, 1, 2.858), (32, 1, 2.74), (78, 32, 0.0109)]
)
def test_reported_values_lie_in_the_range(batch, ranks, logged):
    flight = preflight(**official(batch, ranks), measured=logged)
    assert flight.collapsed - 5e-5 <= logged <= flight.ceiling
    assert f"{logged:.4f} is" in flight.sentences[-1]


def test_what_batches_attain_falls_from_the_ceiling_to_isotropy_with_the_number_of_images():
    settings = official(64, 8)
    levels = [preflight(**settings, images=images).attainable for images in (64, 256, 10**4, None)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == preflight(**settings).ceiling
    assert levels[-1] == preflight(**settings).isotropic
    with pytest.raises(ValueError, match="2 <= b <= n"):
        preflight(**settings, images=63)


def test_a_collapse_with_local_crops_says_how_much_of_them_is_not_shared():
    """Of issue 29: χ·(1 − 1/64) = c·[μ + 10·μ_l]/11 at the boundary, where two global crops may share nothing."""
    settings = official(64, 16) | {"rate_of": "mean", "local_crops": 10}
    text = str(preflight(**settings))
    implied = float(text.split("μ_l is above ")[1].split(" ")[0])
    seen = preflight(**settings).collapse_number * (1 - 1 / 64)
    assert 2 * theory.crops_collapse_threshold(1, implied, local_crops=10) == pytest.approx(seen, abs=0.01)
    assert "vary more than global ones" in str(preflight(**official(64, 8) | {"local_crops": 10}))
    assert "local crops" not in str(preflight(**official(64, 8)))


def test_issue_20_had_collapsed_and_the_published_run_is_nearly_random_isotropy():
    collapsed = preflight(**official(78, 32))
    assert collapsed.collapsed == pytest.approx(0.0109, abs=5e-5)
    published = preflight(**official(64, 8))
    assert 0.4238 / published.ceiling == pytest.approx(0.943, abs=1e-3)
    assert 0.4238 / published.isotropic == pytest.approx(0.987, abs=2e-3)
    assert published.isotropic == pytest.approx(0.4294, abs=7e-4)  # Monte Carlo of such batches


def test_the_way_out_of_a_stable_collapse_is_one():
    """Both pieces of advice bring the collapse number to its threshold, up to the two digits that are printed."""
    for stop_gradient, c in ((True, 1), (False, 2)):
        settings = official(78, 32)
        text = str(preflight(**settings, stop_gradient=stop_gradient))
        gamma = float(text.split("Raise gamma to ")[1].split(",")[0])
        eps = float(text.split("epsilon to ")[1].split(" ")[0])
        share = 1 - 1 / settings["n"]
        assert preflight(**settings | {"gamma": gamma}).collapse_number * share == pytest.approx(c, rel=0.05)
        assert preflight(**settings | {"eps": eps}).collapse_number * share == pytest.approx(c, rel=0.1)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_batch_of_n_sees_its_own_variance_only(stop_gradient):
    """χ just above c is unstable for all views in large batches, and not in batches of 4: χ(1 − 1/4) < c."""
    gamma = (1 if stop_gradient else 2) * 1.02 / theory.collapse_number(16, 0.5, 1.0)
    settings = {"d": 16, "eps": 0.5, "gamma": gamma, "stop_gradient": stop_gradient}
    assert "unstable whatever the views" in str(preflight(n=1000, **settings))
    assert "stable if more than 76%" in str(preflight(n=4, **settings))  # 0.75 · 1.02


def test_gathered_rows_enter_one_covariance_and_gamma_may_be_a_rule():
    given = {"d": 64, "eps": 0.5}
    assert preflight(n=16, world_size=4, gathered=True, gamma=0.1, **given) == preflight(n=64, gamma=0.1, **given)
    assert preflight(n=16, world_size=4, gamma=0.1, **given) == preflight(n=16, gamma=0.1, **given)
    for rule in ("balanced", "bounded", "official"):
        expected = preflight(n=64, gamma=theory.gamma_rules(64, 64, 0.5)[rule], **given)
        assert preflight(n=16, world_size=4, gathered=True, gamma=rule, **given) == expected
    local = preflight(n=16, world_size=4, gamma="official", **given)  # of the global batch, whatever is gathered
    assert local == preflight(n=16, gamma=(64 + 64) / (64 * 64), **given)
    with pytest.raises((ValueError, TypeError), match="gamma"):
        preflight(n=16, gamma="paper", **given)


def test_without_an_expansion_term_or_a_second_row_collapse_is_stable():
    for n, gamma, cause in ((64, 0.0, "gamma is 0"), (1, 0.1, "one row has no spread")):
        flight = preflight(n=n, d=16, eps=0.5, gamma=gamma, measured=0.1)
        assert f"as {cause}: total collapse is stable whatever the views" in str(flight)
        assert flight.collapse_number == theory.collapse_number(16, 0.5, gamma)


def test_the_rate_of_the_mean_doubles_what_collapse_needs():
    """Of (student + teacher)/2, the official default, the rate has half the gradient: stable below χ = 2·μ.

    The two runs that collapsed are then on the stable side for ordinary views, those that did not are not.
    """
    for batch, ranks, stable in ((64, 16, True), (78, 32, True), (64, 8, False), (128, 8, False)):
        text = str(preflight(**official(batch, ranks), rate_of="mean"))
        assert ("is stable" in text) is stable
        assert "unstable" in str(preflight(**official(64, 16)))  # c = 1 would have called one of them safe


def test_transrate_is_the_rate_reduction_of_centered_features():
    """R(z) − (1/K) Σ_k R(z_k) with R = ½ logdet(I + zᵀz/(nε)), of centered features, as its authors have it."""
    labels, e = torch.arange(60) % 3, 1e-2
    z = features(60, 5) + labels[:, None]
    z = z - z.mean(0)

    def rate(x):
        return torch.logdet(torch.eye(5, dtype=x.dtype) + x.T @ x / (len(x) * e)) / 2

    expected = rate(z) - sum(rate(z[labels == k]) for k in range(3)) / 3
    assert rate_reduction(z, labels, eps=math.sqrt(5 * e)).item() == pytest.approx(expected.item())
