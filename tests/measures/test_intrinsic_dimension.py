"""Intrinsic dimension: of ratios and manifolds that are known, with duplicates, against naive twins."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from analysis.measures.intrinsic_dimension import gride, levina_bickel, twonn
from tests.configurations import D, gaussian, rotation

ALL = {
    "twonn": twonn,
    "gride": gride,
    "gride 4": lambda z: gride(z, k=4),
    "levina_bickel": lambda z: levina_bickel(z, k=(4, 8)),
}


def sorted_distances(z):
    z = z.numpy()
    return np.sort(np.linalg.norm(z[:, None] - z, axis=2), 1)[:, 1:]


def triples(copies: int) -> torch.Tensor:
    """Three points at 0, 1 and 3, in places far apart: r₂/r₁ is 3, 2 and 1.5."""
    places = 1e6 * torch.arange(copies, dtype=D)
    points = places[:, None] + torch.tensor([0.0, 1, 3], dtype=D)
    return torch.stack((points.flatten(), torch.zeros(3 * copies, dtype=D)), 1)


def test_known_ratios():
    estimate = gride(triples(10))
    assert estimate.dimension.item() == pytest.approx(3 / math.log(9))
    assert estimate.se.item() == pytest.approx(estimate.dimension.item() / math.sqrt(30))
    assert (estimate.n, estimate.duplicates) == (30, 0)
    x, y = np.log(np.repeat([1.5, 2, 3], 10))[:27], -np.log(1 - np.arange(1, 28) / 30)
    assert twonn(triples(10)).dimension.item() == pytest.approx((x @ y) / (x @ x))
    bickel = levina_bickel(triples(10), k=(2, 2))  # m₂ = 1/log(r₂/r₁)
    assert bickel.dimension.item() == pytest.approx(np.mean(1 / np.log([1.5, 2, 3])))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_gride_maximizes_the_likelihood(k):
    z = gaussian(60, 3)
    r = sorted_distances(z)
    log_mu = np.log(r[:, 2 * k - 1] / r[:, k - 1])

    def minus_log_likelihood(i):
        tail = ((2 * k - 1) * i + 1) * log_mu.sum()
        return tail - 60 * np.log(i) - (k - 1) * np.log(np.expm1(i * log_mu)).sum()

    best = minimize_scalar(minus_log_likelihood, bounds=(0.01, 50), method="bounded", options={"xatol": 1e-9}).x
    h = 1e-3
    curvature = sum(c * minus_log_likelihood(best + s * h) for c, s in ((1, 1), (-2, 0), (1, -1))) / h**2
    estimate = gride(z, k=k)
    assert estimate.dimension.item() == pytest.approx(best, rel=1e-6)
    assert estimate.se.item() == pytest.approx(curvature**-0.5, rel=1e-4)


def test_levina_bickel_equals_the_formula():
    z = gaussian(50, 4)
    r = sorted_distances(z)
    values = [np.mean([1 / np.mean(np.log(row[k - 1] / row[: k - 1])) for row in r]) for k in range(4, 8)]
    assert levina_bickel(z, k=(4, 7)).dimension.item() == pytest.approx(np.mean(values))


def test_levina_bickel_leaves_out_rows_whose_neighbors_are_equally_far():
    z = torch.cat((torch.nn.functional.normalize(gaussian(40, 3), dim=1), torch.zeros(1, 3)))  # a center
    r = sorted_distances(z)[:40]
    estimate = levina_bickel(z, k=(4, 4))
    assert estimate.dimension.item() == pytest.approx(np.mean([1 / np.mean(np.log(row[3] / row[:3])) for row in r]))
    assert estimate.n == 40


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("name", ALL)
def test_dimension_of_a_subspace_whatever_the_space_around_it(name, d):
    estimate = ALL[name](gaussian(3000, d) @ gaussian(d, 20, seed=1))
    bias = {"levina_bickel": np.mean([(k - 1) / (k - 2) for k in range(4, 9)])}.get(name, 1.0)
    assert estimate.dimension.item() == pytest.approx(bias * d, rel=0.06, abs=4 * estimate.se.item())


def test_a_curve_has_one_dimension_where_its_rank_is_high():
    t = torch.linspace(0, 1, 2001, dtype=D)[:-1] + 2e-4 * gaussian(2000)
    curve = torch.cat(
        [torch.stack(((2 * math.pi * k * t).cos(), (2 * math.pi * k * t).sin()), 1) for k in range(1, 6)], 1
    )
    assert torch.linalg.matrix_rank(curve) == 10
    assert gride(curve, k=4).dimension.item() == pytest.approx(1, rel=0.5)


def test_noise_is_seen_at_small_scales_and_the_manifold_at_large_ones():
    z = torch.cat((gaussian(4000, 2), 0.03 * gaussian(4000, 6, seed=1)), 1)
    assert gride(z, k=1).dimension > gride(z, k=8).dimension > gride(z, k=64).dimension > 1.9


@pytest.mark.parametrize("name", ALL)
def test_duplicates_count_once_and_are_reported(name):
    z = gaussian(60, 3)
    alone, doubled = ALL[name](z), ALL[name](torch.cat((z, z[:20], z[:5])).flip(0))
    assert doubled.dimension.item() == pytest.approx(alone.dimension.item())
    assert (doubled.n, doubled.duplicates) == (60, 25)
    with pytest.raises(ValueError, match=r"needs at least \d+ different rows, got 1"):
        ALL[name](torch.full((40, 3), 0.1))


def test_nearly_equal_rows_in_single_precision_give_a_number():
    """Squared distances of 1e-24 vanish in float32, and their ratio would be NaN."""
    z = gaussian(200, 8).float()
    z[100:] = z[:100] + 1e-7 * gaussian(100, 8, seed=1).float()
    assert all(torch.isfinite(f(z).dimension) for f in ALL.values())


@pytest.mark.parametrize("name", ALL)
def test_rotation_translation_scale_and_order_do_not_matter(name):
    z = gaussian(60, 4)
    value = ALL[name](z).dimension.item()
    assert ALL[name](1e-3 * z.flip(0) @ rotation(4) + 5).dimension.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradients_types_and_the_simplex(name):
    f = ALL[name]
    assert torch.autograd.gradcheck(lambda z: f(z).dimension, (gaussian(14, 3).requires_grad_(),))
    z = gaussian(60, 4)
    assert f(z.numpy()).dimension.item() == f(z).dimension.item()
    assert f(z.bfloat16()).dimension.item() == pytest.approx(f(z.bfloat16().double()).dimension.item())
    assert f(torch.eye(12)).dimension.item() == math.inf  # all distances are equal
    z[1, 1] = math.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        f(z)


def test_bad_options_are_named():
    z = gaussian(30, 3)
    with pytest.raises(ValueError, match="discard must lie"):
        twonn(z, discard=1.0)
    with pytest.raises(ValueError, match="k must be a positive integer"):
        gride(z, k=0)
    for k, message in (((1, 5), r"k must satisfy 2 <= k\[0\] <= k\[1\]"), ((6, 5), "two positive integers in order")):
        with pytest.raises(ValueError, match=message):
            levina_bickel(z, k=k)
    with pytest.raises(ValueError, match="at least 31 different rows, got 30"):
        levina_bickel(z, k=(10, 30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_simplex_has_no_finite_dimension_in_any_rotation(dtype):
    z = torch.linalg.qr(gaussian(30, 30, seed=1)).Q.to(dtype)
    assert twonn(z).dimension == gride(z).dimension == levina_bickel(z).dimension == math.inf


def test_rows_that_rounding_makes_one_are_one():
    z = torch.tensor([[0.0], [1e-20], [1.0], [2.0], [3.5], [7.0]], dtype=torch.float64)
    found = gride(z)
    assert math.isfinite(found.dimension)
    assert (found.n, found.duplicates) == (5, 1)
    assert found.dimension.item() == pytest.approx(gride(z[1:]).dimension.item())
