"""Collapse measures on configurations whose values are known, against naive twins, and at degenerate input."""

import math

import pytest
import torch
from scipy.special import hyp0f1

from analysis.measures import pairs
from analysis.measures.collapse import (
    alignment,
    feature_std,
    hyperspherical_energy,
    mean_collapse,
    uniformity,
    uniformity_gap,
    uniformity_optimum,
)
from analysis.measures.frames import self_clustering
from analysis.measures.moments import Moments
from analysis.measures.spectra import effective_rank
from tests.configurations import D, gaussian, rotation, simplex, sphere

# ---------------------------------------------------------------- alignment


def test_alignment_of_known_pairs():
    x = torch.eye(3, dtype=D)
    assert alignment(x, x).item() == 0
    assert alignment(x, -x).item() == 4  # antipodal: ‖2x‖²
    assert alignment(x, x.roll(1, 0)).item() == pytest.approx(2)  # orthogonal
    assert alignment(x, x.roll(1, 0), power=1).item() == pytest.approx(math.sqrt(2))


def test_alignment_is_two_minus_twice_the_cosine_and_averages_over_pairs_of_views():
    views = sphere(3, 50, 6)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum((2 - 2 * (views[a] * views[b]).sum(1)).mean() for a, b in pairs) / 3
    assert alignment(views).item() == pytest.approx(expected.item())
    assert alignment(views[0], views[1]).item() == pytest.approx(alignment(views[:2]).item())


def test_alignment_of_independent_views_is_two():
    assert alignment(sphere(40_000, 8), sphere(40_000, 8, seed=1)).item() == pytest.approx(2, abs=0.02)


def test_alignment_rejects_views_that_do_not_correspond():
    x = sphere(10, 4)
    with pytest.raises(ValueError, match="x and y must be views of the same samples"):
        alignment(x, sphere(9, 4))
    with pytest.raises(ValueError, match="at least 2 views"):
        alignment(x[None])
    with pytest.raises(ValueError, match="unit-norm"):
        alignment(2 * x, x)
    assert alignment(2 * x, x, normalize=True).item() == pytest.approx(0, abs=1e-30)


# ---------------------------------------------------------------- uniformity


def test_uniformity_of_a_simplex_and_of_an_orthonormal_set():
    assert uniformity(simplex(6)).item() == pytest.approx(-2 * 2 * 6 / 5)
    assert uniformity(torch.eye(5, dtype=D), t=3).item() == pytest.approx(-6)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-8)


def test_uniformity_equals_the_mean_over_explicit_pairs_whatever_the_tiles(monkeypatch):
    z = sphere(50, 7)
    naive = torch.pdist(z).pow(2).mul(-2).exp().mean().log()
    assert uniformity(z).item() == pytest.approx(naive.item(), abs=1e-12)
    for tile in (1, 7, 49, 50):
        monkeypatch.setattr(pairs, "PAIR_TILE", tile)
        assert uniformity(z).item() == pytest.approx(naive.item(), abs=1e-12)


def test_uniformity_gradient_is_that_of_explicit_pairs_through_recomputed_tiles(monkeypatch):
    monkeypatch.setattr(pairs, "PAIR_TILE", 6)
    z, twin = sphere(20, 4).requires_grad_(), sphere(20, 4).requires_grad_()
    uniformity(z).backward()
    torch.pdist(twin).pow(2).mul(-2).exp().mean().log().backward()
    torch.testing.assert_close(z.grad, twin.grad)


@pytest.mark.parametrize(("d", "t"), [(2, 2.0), (3, 0.5), (64, 2.0), (1024, 2.0)])
def test_uniformity_optimum_is_the_hypergeometric_closed_form(d, t):
    assert uniformity_optimum(d, t=t) == pytest.approx(-2 * t + math.log(hyp0f1(d / 2, t * t)), abs=1e-12)


def test_uniformity_optimum_on_the_ordinary_sphere_and_at_large_t():
    assert uniformity_optimum(3, t=2) == pytest.approx(-4 + math.log(math.sinh(4) / 4), abs=1e-12)
    t = 1000.0  # sinh(2t)/(2t) overflows
    assert uniformity_optimum(3, t=t) == pytest.approx(-math.log(4 * t), rel=1e-9)


def test_uniform_samples_have_no_gap_and_a_cluster_has():
    assert uniformity_gap(sphere(4000, 6)).item() == pytest.approx(0, abs=0.02)
    assert uniformity_gap(sphere(50, 6)[:1].repeat(9, 1)).item() == pytest.approx(-uniformity_optimum(6))
    assert uniformity_gap(simplex(7)).item() < 0


def test_uniformity_gap_is_the_difference_at_any_t():
    z = simplex(6)
    for t in (0.5, 3):
        expected = -t * 2 * 6 / 5 - uniformity_optimum(z.shape[1], t=t)
        assert uniformity_gap(z, t=t).item() == pytest.approx(expected)
        assert uniformity_gap(7 * z, t=t, normalize=True).item() == pytest.approx(expected)


def test_uniformity_near_collapse_keeps_its_digits_in_single_precision():
    point, spread = sphere(1, 16).float(), 1e-5
    z = torch.nn.functional.normalize(point + spread * gaussian(300, 16).float(), dim=1)
    r2 = torch.pdist(z.double()).square()  # about 3e-9, below the resolution of 2 − 2cos in float32
    value = uniformity(z, t=1e6).item()
    assert value == pytest.approx(r2.mul(-1e6).exp().mean().log().item(), rel=1e-3)


def test_uniformity_refuses_features_off_the_sphere():
    with pytest.raises(ValueError, match="pass normalize=True"):
        uniformity(3 * sphere(10, 4))
    assert uniformity(3 * sphere(10, 4), normalize=True).item() == pytest.approx(uniformity(sphere(10, 4)).item())
    with pytest.raises(ValueError, match="at least 2 rows"):
        uniformity(sphere(1, 4))
    with pytest.raises(ValueError, match="d ≥ 1"):
        uniformity_optimum(0)


# ---------------------------------------------------------------- energies


def test_energy_of_a_simplex_for_any_order():
    r2 = 2 * 6 / 5
    assert hyperspherical_energy(simplex(6)).item() == pytest.approx(-math.log(r2) / 2)
    for s in (1, 2, 3.5):
        assert hyperspherical_energy(simplex(6), s=s).item() == pytest.approx(r2 ** (-s / 2))


def test_energy_of_uniform_samples_on_the_ordinary_sphere():
    # E −log r = ½ − log 2 and E 1/r = 1 for two independent uniform points
    z = sphere(5000, 3)
    assert hyperspherical_energy(z).item() == pytest.approx(0.5 - math.log(2), abs=0.01)
    assert hyperspherical_energy(z, s=1).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("s", [0, 1, 2])
def test_energy_equals_explicit_pairs_also_when_they_nearly_coincide(s, monkeypatch):
    monkeypatch.setattr(pairs, "PAIR_TILE", 7)
    for spread in (1, 1e-6):
        z = torch.nn.functional.normalize(sphere(1, 5) + spread * gaussian(20, 5), dim=1)
        r = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")[torch.ones(20, 20).triu(1) == 1]
        naive = (-r.log() if s == 0 else r**-s).mean()
        assert hyperspherical_energy(z, s=s).item() == pytest.approx(naive.item(), rel=1e-6)


def test_energy_is_infinite_where_rows_coincide_and_its_gradient_is_right():
    assert hyperspherical_energy(torch.eye(3)[[0, 0, 1]]).item() == math.inf
    z = sphere(6, 3).requires_grad_()
    for s in (0, 2):
        assert torch.autograd.gradcheck(lambda z, s=s: hyperspherical_energy(z, s=s, normalize=True), (z,))
    with pytest.raises(ValueError, match="s must not be negative"):
        hyperspherical_energy(z, s=-1)


# ---------------------------------------------------------------- clusters


def test_self_clustering_of_known_sets():
    assert self_clustering(torch.ones(5, 4) / 2).item() == pytest.approx(1)
    assert self_clustering(torch.eye(6, dtype=D)).item() == pytest.approx(-1 / 5)
    assert self_clustering(torch.cat((torch.eye(3), torch.eye(3)))).item() == pytest.approx(-1 / 5)  # any tight frame
    values = torch.stack([self_clustering(sphere(50, 8, seed=s)) for s in range(50)])
    assert values.mean().item() == pytest.approx(0, abs=4 * values.std().item() / math.sqrt(50))


def test_self_clustering_is_the_papers_formula():
    z, n, d = sphere(20, 5), 20, 5
    expected = (d * (z @ z.T).square().sum() - n * (d + n - 1)) / ((d - 1) * (n - 1) * n)
    assert self_clustering(z).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="d ≥ 2"):
        self_clustering(torch.ones(4, 1))


# ---------------------------------------------------------------- complete collapse


def test_feature_std_of_known_spreads():
    assert feature_std(torch.cat((torch.eye(4), -torch.eye(4)))).item() == pytest.approx(1)  # isotropic
    line = sphere(1, 64)
    z = torch.cat((line, -line))  # rank one, yet the value is ‖u‖₁/√d ≈ √(2/π): it sees complete collapse only
    assert feature_std(z).item() == pytest.approx(line.abs().sum().item() / 8)
    assert feature_std(sphere(100_000, 8)).item() == pytest.approx(1, abs=0.01)


def test_feature_std_is_the_formula():
    z = gaussian(30, 5)
    unit = z / z.norm(dim=1, keepdim=True)
    expected = sum(math.sqrt(((c - c.mean()) ** 2).mean()) for c in unit.T) / 5 * math.sqrt(5)
    assert feature_std(z).item() == pytest.approx(expected)


def test_mean_collapse_of_known_means():
    assert mean_collapse(torch.ones(7, 3)).item() == 1
    assert mean_collapse(torch.eye(5, dtype=D)).item() == pytest.approx(1 / 5)
    assert mean_collapse(simplex(5)).item() == pytest.approx(0, abs=1e-30)
    z = sphere(40, 6)
    assert mean_collapse(z).item() == pytest.approx((z @ z.T).mean().item())  # the mean cosine over all n² pairs


def test_mean_collapse_of_moments_is_that_of_features():
    z = 0.3 + gaussian(40, 6)
    assert mean_collapse(Moments.of(z)).item() == pytest.approx(mean_collapse(z).item())
    assert mean_collapse(Moments.of(torch.zeros(4, 3))).item() == 1
    with pytest.raises(ValueError, match="no rows"):
        mean_collapse(Moments(3))


def test_independent_isotropic_features_hold_one_nth_in_their_mean():
    values = [mean_collapse(sphere(20, 50, seed=s)).item() for s in range(100)]
    assert sum(values) / 100 == pytest.approx(1 / 20, rel=0.03)


def test_rounding_noise_around_one_point_is_collapse_though_its_centered_rank_is_full():
    z = 1 + 1e-3 * gaussian(2000, 32)
    assert effective_rank(z, center=True).item() > 31  # looks healthy
    assert mean_collapse(z).item() > 0.99999
    assert feature_std(z).item() < 0.01


def test_total_collapse_has_a_value_everywhere():
    for z in (torch.zeros(6, 3), torch.ones(6, 3), torch.ones(1, 3)):
        assert feature_std(z).item() == pytest.approx(0, abs=1e-6)
        assert mean_collapse(z).item() == 1
    unit = torch.eye(3)[:1].repeat(6, 1)
    assert alignment(unit, unit).item() == 0
    assert uniformity(unit).item() == 0


def test_extreme_scales_neither_overflow_nor_vanish():
    z = gaussian(50, 4).float()
    for scale in (1e-30, 1e30):
        assert mean_collapse(z * scale).item() == pytest.approx(mean_collapse(z).item(), rel=1e-4)
        assert feature_std(z * scale).item() == pytest.approx(feature_std(z).item(), rel=1e-4)


# ---------------------------------------------------------------- what all share

ON_UNIT = {
    "uniformity": uniformity,
    "uniformity_gap": uniformity_gap,
    "energy": hyperspherical_energy,
    "self_clustering": self_clustering,
}
ON_ROWS = ON_UNIT | {"feature_std": feature_std, "mean_collapse": mean_collapse}
ROTATION_INVARIANT = {name: f for name, f in ON_ROWS.items() if name != "feature_std"}


@pytest.mark.parametrize("name", ON_ROWS)
def test_order_of_samples_does_not_matter(name):
    z = sphere(40, 6)
    assert ON_ROWS[name](z.flip(0)).item() == pytest.approx(ON_ROWS[name](z).item(), abs=1e-12)


@pytest.mark.parametrize("name", ROTATION_INVARIANT)
def test_rotation_does_not_matter(name):
    z = sphere(40, 6)
    assert ON_ROWS[name](z @ rotation(6)).item() == pytest.approx(ON_ROWS[name](z).item(), abs=1e-12)


@pytest.mark.parametrize("name", ON_ROWS)
def test_half_precision_strides_numpy_and_few_rows(name):
    f, z = ON_ROWS[name], sphere(24, 6)
    value = f(z)
    assert value.shape == ()
    assert value.dtype == D
    assert f(torch.cat((z, z), 1)[:, :6]).item() == value.item()
    assert f(z.numpy()).item() == value.item()
    half = f(z.bfloat16())
    assert half.item() == pytest.approx(value.item(), abs=0.03)
    assert torch.isfinite(f(sphere(3, 50)))  # n < d
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert f(z.float()).item() == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize("name", ON_ROWS)
def test_nan_and_wrong_rank_are_value_errors(name):
    z = sphere(10, 4)
    z[3, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        ON_ROWS[name](z)
    with pytest.raises(ValueError, match="shape"):
        ON_ROWS[name](sphere(4))


@pytest.mark.parametrize("name", ON_ROWS)
def test_gradients_are_right(name):
    z = sphere(7, 3).requires_grad_()
    f = (lambda z: ON_UNIT[name](z, normalize=True)) if name in ON_UNIT else ON_ROWS[name]
    assert torch.autograd.gradcheck(f, (z,))
