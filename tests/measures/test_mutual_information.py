"""Shared information of views: closed forms for directions, classes and collapse; naive twins; no information."""

import math

import pytest
import torch

from analysis.measures.mutual_information import dime, infonce_bound
from tests.configurations import D, gaussian, rotation, sphere


def one_hot(classes: int, copies: int) -> torch.Tensor:
    return torch.eye(classes, dtype=D).repeat(copies, 1)


# --- InfoNCE


def test_bound_of_orthonormal_rows_is_the_closed_form():
    for n, t in [(6, 0.5), (9, 0.1)]:
        z = torch.eye(n, dtype=D)
        expected = math.log(n) - math.log(1 + (n - 1) * math.exp(-1 / t))
        assert infonce_bound(z, z, temp=t).item() == pytest.approx(expected)


def test_bound_of_classes_is_the_information_and_of_samples_log_n():
    z = one_hot(5, 8)
    assert infonce_bound(z, z, temp=0.01).item() == pytest.approx(math.log(5))
    assert infonce_bound(sphere(40, 32), sphere(40, 32), temp=0.01).item() == pytest.approx(math.log(40))


def test_bound_of_total_collapse_is_zero_and_of_independent_views_below():
    z = sphere(1, 4).repeat(10, 1)
    assert infonce_bound(z, z, temp=0.1).item() == pytest.approx(0, abs=1e-12)
    for s in range(10):
        assert infonce_bound(sphere(64, 8, seed=2 * s), sphere(64, 8, seed=2 * s + 1), temp=0.2).item() < 0


def test_bound_is_below_the_mutual_information_of_a_gaussian_channel():
    """Rows (cos φ, sin φ) with y rotated by small noise: I = log 2π − h(noise), known, and less than log n."""
    n, sigma, values = 512, 0.3, []
    for s in range(5):
        phi = 2 * math.pi * torch.rand(n, dtype=D, generator=torch.Generator().manual_seed(s))
        views = torch.stack([torch.stack((a.cos(), a.sin()), 1) for a in (phi, phi + sigma * gaussian(n, seed=s))])
        values.append([infonce_bound(views, temp=t).item() for t in (0.02, sigma**2, 0.5)])
    information = math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    best = torch.tensor(values).mean(0)
    assert (best < information + 0.05).all()
    assert best[1].item() == pytest.approx(information, abs=0.1)  # τ = σ² is nearly the right critic
    assert best[1] > best[0]
    assert best[1] > best[2]


def test_bound_equals_cross_entropy_in_both_directions_and_averages_pairs(monkeypatch):
    views, t = sphere(3, 25, 6), 0.3
    expected = []
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        logits = views[a] @ views[b].T / t
        entropy = [torch.nn.functional.cross_entropy(x, torch.arange(25)) for x in (logits, logits.T)]
        expected.append(math.log(25) - sum(entropy) / 2)
    for tile in (4, 25, 64):
        monkeypatch.setattr("analysis.measures.mutual_information.PAIR_TILE", tile)
        assert infonce_bound(views, temp=t).item() == pytest.approx(torch.stack(expected).mean().item())
    assert infonce_bound(views[1], views[0], temp=t).item() == pytest.approx(expected[0].item())


# --- DiME


def entropy(k, order=1.0):
    lam = torch.linalg.eigvalsh(k / len(k)).clamp(min=0)
    lam = lam[lam > 0] / lam.sum()
    return -(lam * lam.log()).sum() if order == 1 else lam.pow(order).sum().log() / (1 - order)


def test_dime_equals_explicit_kernels():
    views, n = sphere(2, 20, 5), 20
    for order, bandwidth in [(1, None), (1.01, 0.8), (2, 0.5)]:
        if bandwidth is None:
            x, y = (z @ z.T for z in views)
        else:
            x, y = ((-torch.cdist(z, z).square() / (2 * bandwidth**2)).exp() for z in views)
        generator = torch.Generator().manual_seed(3)
        orders = [torch.randperm(n, generator=generator) for _ in range(4)]
        apart = torch.stack([entropy(x * y[p][:, p], order) for p in orders]).mean()
        value = dime(views, order=order, bandwidth=bandwidth, permutations=4, seed=3)
        assert value.item() == pytest.approx((apart - entropy(x * y, order)).item())


def test_dime_of_classes_is_their_information():
    """Permuted, the pairs of K classes fill K² cells evenly but for n/K² samples a cell."""
    z = one_hot(3, 100)
    assert dime(z, z).item() == pytest.approx(math.log(3), abs=0.02)
    assert dime(z, torch.eye(3, dtype=D).repeat_interleave(100, 0)).item() == pytest.approx(0, abs=0.02)


def test_dime_of_collapse_of_orthogonal_rows_and_of_independent_views():
    point, identity = sphere(1, 4).repeat(10, 1), torch.eye(12, dtype=D)
    assert dime(point, point).item() == pytest.approx(0, abs=1e-9)
    assert dime(identity, identity).item() == pytest.approx(0, abs=1e-9)
    values = torch.stack([dime(sphere(30, 5, seed=2 * s), sphere(30, 5, seed=2 * s + 1), seed=s) for s in range(40)])
    assert values.mean().item() == pytest.approx(0, abs=4 * values.std().item() / math.sqrt(40))
    x = sphere(30, 5)
    assert dime(x, x).item() > values.max().item()


# --- Both

BOTH = {
    "infonce": lambda *views, **kw: infonce_bound(*views, temp=0.3, **kw),
    "dime": lambda *views, **kw: dime(*views, permutations=3, **kw),
}


@pytest.mark.parametrize("name", BOTH)
def test_rotation_of_both_and_a_common_order_do_not_matter(name):
    views, f = sphere(2, 24, 5), BOTH[name]
    value = f(views).item()
    assert f(views @ rotation(5)).item() == pytest.approx(value)
    assert f(7 * views, normalize=True).item() == pytest.approx(value)
    if name == "infonce":
        assert f(views.flip(1)).item() == pytest.approx(value)


@pytest.mark.parametrize("name", BOTH)
def test_types_gradients_and_bad_input(name):
    views, f = sphere(2, 8, 4), BOTH[name]
    value = f(views)
    assert value.dtype == D
    assert value.shape == ()
    assert f(views.numpy()).item() == value.item()
    assert f(views[0].bfloat16(), views[1].bfloat16()).item() == pytest.approx(value.item(), abs=0.02)
    assert torch.autograd.gradcheck(lambda v: f(v, normalize=True), (views.clone().requires_grad_(),))
    for bad, message in [
        ((2 * views,), "unit-norm"),
        ((views[0], views[1][:5]), "views of the same samples"),
        ((views[:1],), "at least 2 views"),
        ((views[:, :1],), "at least 2 samples"),
        ((views[0],), "views must have shape"),
        ((views * torch.nan,), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            f(*bad)


def test_gradient_through_recomputed_tiles(monkeypatch):
    monkeypatch.setattr("analysis.measures.mutual_information.PAIR_TILE", 3)
    views = sphere(2, 8, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: infonce_bound(v, temp=0.3, normalize=True), (views,))


def test_bad_options_are_named():
    views = sphere(2, 8, 4)
    for f, options, message in [
        (infonce_bound, {"temp": 0}, "temp must be positive"),
        (dime, {"bandwidth": 0.0}, "bandwidth must be positive"),
        (dime, {"permutations": 0}, "permutations must be a positive integer"),
        (dime, {"order": -1}, "order must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            f(views, **options)


@pytest.mark.parametrize("order", [0, 0.1, 1])
def test_dime_counts_no_eigenvalue_of_rounding(order):
    """Three orthogonal directions: log 3 of either order, as far as permutations of 300 samples decorrelate them."""
    views = torch.eye(3, dtype=torch.float64).repeat_interleave(100, 0)
    turned = views @ torch.linalg.qr(gaussian(3, 3, seed=1)).Q
    assert dime(turned, turned, order=order, permutations=3).item() == pytest.approx(math.log(3), abs=0.02)


def test_dime_takes_clusters_far_apart():
    z = (100 * gaussian(5, 2, seed=1)).repeat_interleave(20, 0) + 1e-3 * gaussian(100, 2, seed=2)
    assert dime(z, z, bandwidth=1.0).item() == pytest.approx(math.log(5), abs=0.1)
