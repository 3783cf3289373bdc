"""Frame measures on the configurations that make them extreme: simplex, Mercedes-Benz, icosahedron, bases, one line."""

import math

import pytest
import torch

from analysis import theory
from analysis.measures import pair_tiles
from analysis.measures.classes import simplex_distance
from analysis.measures.frames import (
    coherence,
    frame_bounds,
    frame_potential,
    frame_potential_bound,
    frame_potential_excess,
    orthonormal_distance,
    orthoplex_bound,
    self_clustering,
    sphere_potential,
    tight_frame_distance,
    tightness,
    welch_bound,
)
from analysis.measures.moments import Moments
from analysis.measures.pair_tiles import gram_cosines
from tests.configurations import (
    D,
    gaussian,
    icosahedron,
    mercedes,
    orthoplex,
    rotation,
    simplex,
    sphere,
    unbiased_bases,
)

# ---------------------------------------------------------------- cosines and coherence


def test_cosines_of_known_sets_in_the_order_of_pdist():
    torch.testing.assert_close(gram_cosines(simplex(5)), torch.full((10,), -0.25, dtype=D))
    torch.testing.assert_close(gram_cosines(icosahedron()).square(), torch.full((15,), 0.2, dtype=D))
    z = sphere(9, 4)
    torch.testing.assert_close(gram_cosines(z), 1 - torch.pdist(z).square() / 2)


@pytest.mark.parametrize(("z", "d"), [(mercedes(), 2), (icosahedron(), 3), (simplex(5), 4)])
def test_equiangular_tight_frames_reach_the_welch_bound(z, d):
    assert coherence(z).item() == pytest.approx(welch_bound(len(z), d))


def test_unbiased_bases_reach_the_orthoplex_bound_above_the_welch_bound():
    z = unbiased_bases()
    assert coherence(z).item() == pytest.approx(orthoplex_bound(12, 4))
    assert orthoplex_bound(12, 4) > welch_bound(12, 4)
    assert orthoplex_bound(10, 4) == 0  # d(d + 1)/2 vectors: it says nothing yet


def test_coherence_of_orthonormal_and_antipodal_rows_and_over_tiles(monkeypatch):
    assert coherence(torch.eye(4)).item() == 0
    assert coherence(orthoplex(3)).item() == 1
    z = sphere(50, 5)
    naive = max(abs(z[i] @ z[j]).item() for i in range(50) for j in range(i))
    for tile in (7, 49, 2048):
        monkeypatch.setattr(pair_tiles, "PAIR_TILE", tile)
        assert coherence(z).item() == pytest.approx(naive, abs=1e-14)


@pytest.mark.parametrize(("n", "d"), [(7, 3), (40, 4), (3, 8), (11, 4)])
def test_bounds_agree_with_the_theory_module_and_hold(n, d):
    assert welch_bound(n, d) == pytest.approx(theory.welch_coherence(n, d))
    if n > d * (d + 1) / 2:
        assert orthoplex_bound(n, d) == pytest.approx(theory.orthoplex_coherence(n, d))
    for seed in range(5):
        assert coherence(sphere(n, d, seed=seed)) >= max(welch_bound(n, d), orthoplex_bound(n, d))


@pytest.mark.parametrize("bound", [welch_bound, orthoplex_bound, frame_potential_bound])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (3, 0)])
def test_bounds_on_pairs_need_a_pair_and_a_dimension(bound, n, d):
    with pytest.raises(ValueError, match=f"a bound on pairs needs n ≥ 2 and d ≥ 1, got n={n}, d={d}"):
        bound(n, d)


# ---------------------------------------------------------------- frame potentials


@pytest.mark.parametrize("order", [2, 4, 6])
def test_potential_equals_a_loop_whatever_the_tiles(order, monkeypatch):
    z = sphere(30, 5)
    naive = sum((z[i] @ z[j]).item() ** order for i in range(30) for j in range(30) if i != j) / (30 * 29)
    for tile in (1, 7, 29, 2048):
        monkeypatch.setattr(pair_tiles, "PAIR_TILE", tile)
        assert frame_potential(z, order=order).item() == pytest.approx(naive, abs=1e-14)


def test_potentials_of_known_sets():
    assert frame_potential(simplex(5), order=4).item() == pytest.approx(1 / 4**4)
    assert frame_potential(icosahedron(), order=6).item() == pytest.approx(1 / 5**3)
    assert frame_potential(orthoplex(4), order=8).item() == pytest.approx(1 / 7)  # one opposite of seven others
    assert frame_potential(torch.ones(5, 4) / 2, order=4).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("z", "order"),
    [(mercedes(), 2), (icosahedron(), 2), (icosahedron(), 4), (unbiased_bases(), 4), (torch.eye(5, dtype=D), 2)],
)
def test_designs_and_orthonormal_rows_have_no_excess(z, order):
    assert frame_potential_excess(z, order=order).item() == pytest.approx(0, abs=1e-14)


def test_the_plane_has_designs_of_any_strength():
    angles = torch.arange(5, dtype=D) * math.pi / 5  # five lines at 36°: all orders below 10
    z = torch.stack((angles.cos(), angles.sin()), 1)
    for order in (2, 4, 6, 8):
        assert frame_potential_excess(z, order=order).item() == pytest.approx(0, abs=1e-14)
    assert frame_potential_excess(z, order=10).item() > 1e-3


def test_a_tight_frame_need_not_be_a_design():
    assert frame_potential_excess(orthoplex(3), order=2).item() == pytest.approx(0, abs=1e-14)
    assert frame_potential_excess(orthoplex(3), order=4).item() > 0.09


@pytest.mark.parametrize("order", [2, 4, 6])
def test_independent_uniform_rows_have_the_sphere_potential(order):
    values = torch.stack([frame_potential(sphere(300, 4, seed=s), order=order) for s in range(20)])
    error = 4 * values.std().item() / math.sqrt(20)
    assert values.mean().item() == pytest.approx(sphere_potential(4, order=order), abs=error)


def test_sphere_potential_and_its_finite_bound_in_closed_form():
    assert sphere_potential(7) == pytest.approx(1 / 7)
    assert sphere_potential(5, order=4) == pytest.approx(3 / 35)
    assert sphere_potential(3, order=6) == pytest.approx(1 / 7)  # ∫ u⁶ du/2 on [−1, 1]
    assert frame_potential_bound(40, 4, order=4) == pytest.approx(4 / 39)
    assert frame_potential_bound(3, 8) == 0
    for n, d, order in [(40, 4, 4), (12, 3, 2), (6, 3, 6)]:  # the theory module counts the pairs of a row with itself
        assert frame_potential_bound(n, d, order=order) == pytest.approx(
            (n * theory.frame_potential_minimum(n, d, order) - 1) / (n - 1), abs=1e-15
        )


@pytest.mark.parametrize("order", [0, 3, -2])
def test_odd_orders_are_refused(order):
    with pytest.raises(ValueError, match="order must be even"):
        frame_potential(torch.eye(3), order=order)
    with pytest.raises(ValueError, match="order must be even"):
        sphere_potential(3, order=order)


def test_potential_gradient_through_recomputed_tiles(monkeypatch):
    monkeypatch.setattr(pair_tiles, "PAIR_TILE", 4)
    z = sphere(9, 3).requires_grad_()
    for order in (2, 4):
        assert torch.autograd.gradcheck(lambda z, p=order: frame_potential(z, order=p, normalize=True), (z,))


# ---------------------------------------------------------------- frame operator


def test_frame_bounds_of_known_frames():
    assert [b.item() for b in frame_bounds(mercedes())] == pytest.approx([1.5, 1.5])  # n/d
    assert [b.item() for b in frame_bounds(torch.diag(torch.tensor([1.0, 2.0, 3.0])))] == pytest.approx([1, 9])
    bounds = frame_bounds(torch.eye(5)[:3])
    assert (bounds.lower.item(), bounds.upper.item()) == pytest.approx((0, 1))


def test_frame_bounds_need_n_which_a_spectrum_has_lost():
    for f in (frame_bounds, tightness):
        with pytest.raises(ValueError, match=r"x must be Moments or features of shape \(n, d\), got \(3,\)"):
            f(torch.ones(3))


def test_frame_bounds_enclose_every_direction():
    z, u = gaussian(30, 4), sphere(200, 4, seed=1)
    lower, upper = frame_bounds(z)
    energy = (u @ z.T).square().sum(1)
    assert (energy >= lower - 1e-9).all()
    assert (energy <= upper + 1e-9).all()


@pytest.mark.parametrize("z", [mercedes(), icosahedron(), unbiased_bases(), orthoplex(4), 3 * orthoplex(4)])
def test_tight_frames_are_tight(z):
    assert tightness(z).item() == pytest.approx(1)
    assert tight_frame_distance(z).item() == pytest.approx(0, abs=1e-7)


def test_tight_frame_distance_is_that_to_the_frame_built_from_the_svd_and_to_no_other_less():
    z = gaussian(12, 4)
    u, s, v = torch.linalg.svd(z, full_matrices=False)
    distance = tight_frame_distance(z).item()
    assert distance == pytest.approx(((z - s.mean() * u @ v).norm() / z.norm()).item())
    for seed in range(20):
        other = torch.linalg.qr(z + 0.3 * gaussian(12, 4, seed=seed)).Q
        scale = (z * other).sum() / other.square().sum()
        assert (z - scale * other).norm() / z.norm() >= distance - 1e-12


def test_distance_of_one_line_and_of_nothing():
    line = torch.ones(9, 4)
    assert tight_frame_distance(line).item() == pytest.approx(math.sqrt(3 / 4))
    assert tight_frame_distance(torch.zeros(9, 4)).item() == pytest.approx(math.sqrt(3 / 4))
    assert tightness(torch.zeros(9, 4)).item() == 0
    assert tight_frame_distance(torch.eye(6)[:4]).item() == pytest.approx(0, abs=1e-7)  # n < d: orthonormal rows


def test_orthonormal_distance():
    q = rotation(6)[:4]
    assert orthonormal_distance(q).item() == pytest.approx(0, abs=1e-7)
    assert orthonormal_distance(3 * q).item() == pytest.approx(2)
    assert orthonormal_distance(torch.eye(6)[:1].repeat(4, 1)).item() == pytest.approx(math.sqrt(2 - 2 / 2))
    z = gaussian(4, 6)
    u, _, v = torch.linalg.svd(z, full_matrices=False)
    assert orthonormal_distance(z).item() == pytest.approx(((z - u @ v).norm() / 2).item())
    with pytest.raises(ValueError, match="more rows than dimensions"):
        orthonormal_distance(gaussian(7, 6))


def test_features_moments_and_spectrum_agree():
    z = gaussian(30, 4)
    assert tightness(Moments.of(z)).item() == pytest.approx(tightness(z).item())
    assert tight_frame_distance(Moments.of(z)).item() == pytest.approx(tight_frame_distance(z).item())
    spectrum = torch.linalg.svdvals(z).square() / 30
    assert tight_frame_distance(spectrum).item() == pytest.approx(tight_frame_distance(z).item())


# ---------------------------------------------------------------- what all share

ON_PAIRS = {"coherence": coherence, "potential": frame_potential, "potential4": lambda z: frame_potential(z, order=4)}
ALL = ON_PAIRS | {"tightness": tightness, "tight_frame_distance": tight_frame_distance, "simplex": simplex_distance}


@pytest.mark.parametrize("name", ALL)
def test_rotation_and_order_do_not_matter(name):
    z = sphere(40, 6)
    assert ALL[name](z @ rotation(6)).item() == pytest.approx(ALL[name](z).item(), abs=1e-12)
    assert ALL[name](z.flip(0)).item() == pytest.approx(ALL[name](z).item(), abs=1e-12)


@pytest.mark.parametrize("name", [name for name in ALL if name != "simplex"])
def test_the_sign_of_a_row_does_not_matter(name):
    z = sphere(40, 6)
    signs = torch.where(torch.arange(40) % 3 == 0, -1.0, 1.0)[:, None]
    assert ALL[name](signs * z).item() == pytest.approx(ALL[name](z).item(), abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_half_precision_strides_numpy_autocast_and_few_rows(name):
    f, z = ALL[name], sphere(24, 6)
    value = f(z)
    assert value.shape == ()
    assert value.dtype == D
    assert f(torch.cat((z, z), 1)[:, :6]).item() == pytest.approx(value.item(), abs=1e-14)
    assert f(z.numpy()).item() == value.item()
    assert f(z.bfloat16()).item() == pytest.approx(value.item(), abs=0.02)
    assert torch.isfinite(f(sphere(3, 50)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert f(z.float()).item() == pytest.approx(value.item(), abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_nan_is_refused(name):
    z = sphere(10, 4)
    z[3, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        ALL[name](z)


@pytest.mark.parametrize("name", ON_PAIRS)
def test_pairs_need_two_rows_on_the_sphere(name):
    with pytest.raises(ValueError, match="unit-norm"):
        ON_PAIRS[name](2 * sphere(10, 4))
    with pytest.raises(ValueError, match="at least 2 rows"):
        ON_PAIRS[name](sphere(1, 4))


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


def test_potential_of_the_sphere_at_any_order():
    """In ℝ³ the cosine is uniform on [−1, 1], and E cosᵖ = 1/(p + 1)."""
    for order in (2, 128, 130, 10**6, 10**12):
        assert sphere_potential(3, order=order) * (order + 1) == pytest.approx(1, rel=1e-9)
    assert sphere_potential(1, order=10**12) == 1
    assert frame_potential(torch.eye(3), order=10**12).item() == 0
    for order in (3, 0, -2, 10**30):
        with pytest.raises(ValueError, match="order must be even"):
            sphere_potential(3, order=order)
