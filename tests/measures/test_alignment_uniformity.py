"""Alignment, uniformity and the energies of pairs: known configurations, closed forms, tiles, gradients."""

import math

import pytest
import torch
from scipy.special import hyp0f1

from analysis.measures import pair_tiles
from analysis.measures.alignment_uniformity import (
    alignment,
    hyperspherical_energy,
    uniformity,
    uniformity_gap,
    uniformity_optimum,
)
from tests.configurations import D, gaussian, simplex, sphere


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


def test_uniformity_of_a_simplex_and_of_an_orthonormal_set():
    assert uniformity(simplex(6)).item() == pytest.approx(-2 * 2 * 6 / 5)
    assert uniformity(torch.eye(5, dtype=D), t=3).item() == pytest.approx(-6)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == pytest.approx(-8)


def test_uniformity_equals_the_mean_over_explicit_pairs_whatever_the_tiles(monkeypatch):
    z = sphere(50, 7)
    naive = torch.pdist(z).pow(2).mul(-2).exp().mean().log()
    assert uniformity(z).item() == pytest.approx(naive.item(), abs=1e-12)
    for tile in (1, 7, 49, 50):
        monkeypatch.setattr(pair_tiles, "PAIR_TILE", tile)
        assert uniformity(z).item() == pytest.approx(naive.item(), abs=1e-12)


def test_uniformity_gradient_is_that_of_explicit_pairs_through_recomputed_tiles(monkeypatch):
    monkeypatch.setattr(pair_tiles, "PAIR_TILE", 6)
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
    with pytest.raises(ValueError, match="d must be a positive integer"):
        uniformity_optimum(0)


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
    monkeypatch.setattr(pair_tiles, "PAIR_TILE", 7)
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
