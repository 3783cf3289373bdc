"""Minima, Hessians and saddles against the closed forms of the propositions."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analysis import theory
from analysis.experiments.energies import (
    barlow_twins_energy,
    batch_energy,
    coding_rate_energy,
    dino_energy,
    frame_potential_energy,
    infonce_energy,
    koleo_energy,
    mmcr_energy,
    sigreg_energy,
    spectral_contrastive_energy,
    uniformity_energy,
    vicreg_energy,
    wmse_energy,
)
from analysis.experiments.landscape import (
    batch_descent,
    curvature_split,
    geodesic,
    harmonic_frame,
    hessian_spectrum,
    minimize,
    mixture_rates,
    nullity,
    optimum_spectra,
    orthonormal_sets,
    patch_collapse_path,
    random_points,
    rate_maxima,
    saddle,
)

GRID = [(n, d, eps) for n, d in [(2, 6), (6, 6), (7, 6), (9, 4), (24, 3), (40, 12)] for eps in (0.1, 0.5, 2.0)]
PAIRS = [(3, 5), (5, 5), (7, 5), (9, 4), (12, 3)]  # nullities 9, 10, 14, 18, 19
PAIRS += [(2, 2), (3, 2), (4, 2), (5, 2), (2, 6), (4, 6), (6, 6), (7, 6), (8, 6), (5, 4), (6, 4), (6, 3), (10, 3)]
PAIRS += [(5, 3), (11, 5), (3, 9)]
GOLDEN = (1 + math.sqrt(5)) / 2
ICOSAHEDRON = [[0, 1, GOLDEN], [0, 1, -GOLDEN], [1, GOLDEN, 0], [1, -GOLDEN, 0], [GOLDEN, 0, 1], [-GOLDEN, 0, 1]]
ICOSAHEDRON = normalize(torch.tensor(ICOSAHEDRON, dtype=torch.float64), dim=1)


def off_diagonal_mean(z, power):
    cosines = (z @ z.mT)[~torch.eye(len(z), dtype=torch.bool)]
    return cosines.pow(power).mean().item()


def test_A1_every_restart_reaches_the_bound():
    found = rate_maxima(GRID, restarts=20)
    bound = np.array([theory.rate_maximum(*row) for row in GRID])
    assert (abs(found[["best", "worst"]].to_numpy() / bound[:, None] - 1) < 1e-10).all()
    assert found["gradient_norm"].max() < 1e-10


@pytest.mark.parametrize(
    ("n", "d", "attained"), [(5, 4, True), (6, 4, True), (7, 3, True), (5, 3, False), (7, 5, False)]
)
def test_A1_the_centered_bound_is_not_attained_by_d_plus_two_points_if_that_is_odd(n, d, attained):
    found = minimize(coding_rate_energy(0.5, center=True), n, d, restarts=20)
    gap = theory.rate_maximum(n, d, 0.5, center=True) + found.energies.min().item()
    assert abs(gap) < 1e-10 if attained else gap > 1e-3


@pytest.mark.parametrize("pair", PAIRS)
def test_A2_nullity_of_the_hessian_is_the_dimension_of_the_optimal_set(pair):
    (spectrum,) = optimum_spectra([pair]).values()
    assert nullity(spectrum) == theory.optimal_set_dimension(*pair)
    assert spectrum.max() < 1e-9


@pytest.mark.parametrize(("n1", "d1", "n2", "d2"), [(6, 2, 3, 3), (5, 2, 2, 1), (7, 3, 4, 2), (4, 1, 3, 2)])
def test_A3_saddle_has_the_predicted_positive_curvature_and_no_other(n1, d1, n2, d2):
    energy, (z, direction) = coding_rate_energy(0.5), saddle(n1, d1, n2, d2)
    curvature, multiplicity = theory.saddle_curvature(n1, d1, n2, d2, 0.5)
    (gradient,) = torch.autograd.grad(energy(at := z.clone().requires_grad_()), at)
    torch.testing.assert_close(gradient, (gradient * z).sum(1, keepdim=True) * z, atol=1e-12, rtol=0)
    spectrum = -hessian_spectrum(energy, z)
    np.testing.assert_allclose(spectrum[spectrum > 1e-9], [curvature] * multiplicity, atol=1e-10)
    t = torch.tensor([0.0, 1e-3], dtype=torch.float64)
    low, high = -energy(geodesic(z, direction, t=t))
    assert 2 * (high - low).item() / 1e-6 == pytest.approx(curvature, rel=1e-4)


def test_A4_every_epsilon_has_the_same_optima_as_the_frame_potential():
    tight = minimize(frame_potential_energy(), 9, 4).z
    for eps in (0.05, 1.0, 5.0):
        found = minimize(coding_rate_energy(eps), 9, 4).z
        torch.testing.assert_close(found.mT @ found / 9, torch.eye(4, dtype=torch.float64) / 4, atol=1e-9, rtol=0)
        assert -coding_rate_energy(eps)(tight).item() == pytest.approx(theory.rate_maximum(9, 4, eps), abs=1e-10)


@pytest.mark.parametrize("pair", [(3, 5), (5, 5), (7, 5), (12, 3)])
def test_E2_trace_of_the_hessian_is_the_same_at_every_optimum(pair):
    for seed in range(2):
        (spectrum,) = optimum_spectra([pair], eps=0.3, seed=seed).values()
        assert spectrum.sum() == pytest.approx(theory.hessian_trace(*pair, 0.3), rel=1e-10)


def test_E2_a_projective_design_has_one_curvature():
    spectrum = -hessian_spectrum(coding_rate_energy(0.3), ICOSAHEDRON)
    np.testing.assert_allclose(np.sort(spectrum)[:5], theory.hessian_trace(6, 3, 0.3) / 5, rtol=1e-10)
    assert nullity(spectrum) == 7


def test_B2_pairs_make_the_icosahedron_where_the_full_batch_makes_any_tight_frame():
    found = minimize(coding_rate_energy(0.3, batch=2), 6, 3, restarts=5)
    assert -found.energies.max().item() == pytest.approx(theory.pair_rate_maximum(6, 3, 0.3), rel=1e-10)
    cosines = found.points @ found.points.mT
    np.testing.assert_allclose(cosines[:, ~torch.eye(6, dtype=torch.bool)].square(), 0.2, atol=1e-9)
    full = minimize(coding_rate_energy(0.3), 6, 3).z
    cosines = (full @ full.mT)[~torch.eye(6, dtype=torch.bool)].square()
    assert cosines.max() - cosines.min() > 0.3


def test_B2_batches_reach_a_design_at_every_size_up_to_n_minus_two():
    eps, n, d = math.sqrt(0.05), 12, 3
    bound = (n * theory.frame_potential_minimum(n, d, 4) - 1) / (n - 1)  # without self pairs: 0.1273
    for batch in (2, 4):  # 66 pairs, 495 quadruples
        z = minimize(coding_rate_energy(eps, batch=batch), n, d, tol=1e-9, seed=1).z
        assert off_diagonal_mean(z, 4) == pytest.approx(bound, rel=2e-3)
    free = minimize(coding_rate_energy(eps, batch=n - 1), n, d, tol=1e-9, seed=1).z
    assert off_diagonal_mean(free, 4) > 1.05 * bound


def test_C3_minima_reach_the_known_optima():
    found = minimize(frame_potential_energy(4), 12, 3, restarts=5)
    assert found.energies.min().item() == pytest.approx(theory.frame_potential_minimum(12, 3, 4), rel=1e-10)
    for n, d in ((5, 4), (8, 4), (12, 3)):  # simplex, cross-polytope, icosahedron
        found = minimize(uniformity_energy(), n, d, restarts=10)
        assert found.energies.min().item() == pytest.approx(theory.uniformity_minimum(n, d), abs=1e-10)


CLOSED = {  # energy, n, d, its minimum
    "spectral contrastive": (
        spectral_contrastive_energy(),
        9,
        4,
        (9 * theory.frame_potential_minimum(9, 4) - 1) / 8 - 2,
    ),
    "MMCR, n > d": (mmcr_energy(), 9, 4, -theory.nuclear_norm_maximum(9, 4)),
    "MMCR, n < d": (mmcr_energy(), 3, 5, -theory.nuclear_norm_maximum(3, 5)),
    "InfoNCE": (infonce_energy(), 5, 4, theory.infonce_minimum(5, 4)),
    "VICReg": (vicreg_energy(), 9, 4, theory.vicreg_minimum(9, 4)),
    "W-MSE": (wmse_energy(), 9, 4, theory.wmse_minimum(9, 4)),
    "Barlow Twins": (barlow_twins_energy(), 9, 4, 0.0),
}


@pytest.mark.parametrize("name", CLOSED)
def test_C3_neighboring_losses_reach_their_known_optima(name):
    energy, n, d, minimum = CLOSED[name]
    found = minimize(energy, n, d, restarts=10, max_iter=500)
    assert found.energies.min().item() == pytest.approx(minimum, abs=1e-9)


def test_C3_losses_of_second_order_share_the_optima_of_the_rate_and_barlow_twins_does_not():
    flat = torch.eye(4, dtype=torch.float64) / 4
    for energy in (mmcr_energy(), vicreg_energy(), spectral_contrastive_energy(), wmse_energy()):
        z = minimize(energy, 9, 4, restarts=10, max_iter=500).z
        torch.testing.assert_close(z.mT @ z / 9, flat, atol=1e-6, rtol=0)
    z = minimize(barlow_twins_energy(), 9, 4, max_iter=500).z
    assert (z.mT @ z / 9 - flat).norm() > 1e-2


def test_C3_koleo_of_the_simplex_is_its_minimum():
    simplex = torch.eye(5, dtype=torch.float64) - 1 / 5
    value = koleo_energy()(normalize(simplex, dim=1)).item()
    assert value == pytest.approx(theory.koleo_minimum(5, 4), abs=1e-10)
    assert value < koleo_energy()(random_points(5, 4, restarts=200)).min().item()


def test_sigreg_is_the_integral_it_stands_for_and_sees_gaussians():
    z, t = random_points(30, 6)[0], torch.linspace(-9, 9, 401, dtype=torch.float64)
    directions = torch.tensor(np.random.default_rng(0).standard_normal((6, 256)))
    x = math.sqrt(6) * z @ normalize(directions, dim=0)  # (n, slices)
    empirical = torch.exp(1j * t[:, None, None] * x).mean(1)  # (t, slices)
    distance = (empirical - torch.exp(-(t**2) / 2)[:, None]).abs() ** 2
    expected = torch.trapezoid(distance * torch.exp(-(t**2) / 2)[:, None] / math.sqrt(2 * math.pi), t, dim=0).mean()
    torch.testing.assert_close(sigreg_energy()(z), expected, atol=1e-10, rtol=0)
    collapsed = z[:1].expand(30, 6)
    assert sigreg_energy(slices=32)(random_points(300, 64)[0]) < 5e-3 < 0.1 < sigreg_energy()(collapsed)


def test_wmse_is_the_distance_of_whitened_views_that_differ_by_little_noise():
    generator = torch.Generator().manual_seed(0)
    z = random_points(40, 3)[0] * torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    views = z + 1e-4 * torch.randn(2, 4000, 40, 3, generator=generator, dtype=torch.float64)
    centered = views - views.mean(2, keepdim=True)
    factor = torch.linalg.cholesky(centered.mT @ centered / 40)
    white = torch.linalg.solve_triangular(factor, centered.mT, upper=False)  # (2, 4000, 3, 40)
    measured = (white[0] - white[1]).square().sum(1).mean() / 3 / 1e-8
    torch.testing.assert_close(measured, wmse_energy()(z), rtol=0.1, atol=0)


def test_C1_dino_without_centering_is_blind_to_collapse_and_with_it_is_not():
    prototypes = torch.eye(6, dtype=torch.float64)
    collapsed, spread = prototypes[[0] * 6], prototypes
    blind, centered = dino_energy(prototypes), dino_energy(prototypes, center=True)
    torch.testing.assert_close(blind(collapsed), blind(spread), atol=1e-12, rtol=0)
    assert centered(spread) < centered(collapsed) - 0.5


def test_batched_energies_equal_the_mean_over_batches():
    z = random_points(6, 3, restarts=2)
    for batch in (2, 4):  # smaller and larger than d
        for center in (False, True):
            values = coding_rate_energy(0.5, batch=batch, center=center)(z)
            members = torch.combinations(torch.arange(6), batch)
            each = torch.stack([coding_rate_energy(0.5, center=center)(z[:, m]) for m in members])
            torch.testing.assert_close(values, each.mean(0), atol=1e-10, rtol=0)
    sampled = coding_rate_energy(0.5, batch=2, samples=20_000)(z)
    torch.testing.assert_close(sampled, coding_rate_energy(0.5, batch=2)(z), atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="samples"):
        coding_rate_energy(0.5, batch=20)(random_points(60, 3))


def test_restarts_are_independent_of_their_company():
    together = minimize(uniformity_energy(), 9, 3, restarts=7, block=3)
    apart = minimize(uniformity_energy(), 9, 3, restarts=7, block=1)
    torch.testing.assert_close(together.energies, apart.energies, atol=1e-12, rtol=0)
    assert together.energies.unique().numel() > 1
    torch.testing.assert_close(uniformity_energy()(together.z), together.energies.min())
    torch.testing.assert_close(together.points.norm(dim=-1), torch.ones(7, 9, dtype=torch.float64))


def test_minimize_finds_the_smallest_eigenvectors_of_a_quadratic_form():
    a = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    found = minimize(lambda z: torch.einsum("...ni,ij,...nj->...", z, a, z), 3, 8, restarts=4)
    torch.testing.assert_close(found.energies, torch.full((4,), 3.0, dtype=torch.float64), atol=1e-12, rtol=0)
    assert found.gradient_norms.max() <= 1e-12
    spectrum = hessian_spectrum(lambda z: torch.einsum("...ni,ij,...nj->...", z, a, z), found.z)
    np.testing.assert_allclose(spectrum, np.repeat(2.0 * np.arange(1, 8), 3), atol=1e-9)


def test_lanczos_agrees_with_the_dense_hessian():
    energy, (z, _) = coding_rate_energy(0.5), saddle(6, 2, 3, 3)
    np.testing.assert_allclose(hessian_spectrum(energy, z, k=3), hessian_spectrum(energy, z)[:3], atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(5, 2), (9, 4), (7, 5), (4, 4), (5, 1), (6, 5)])
def test_harmonic_frames_are_unit_norm_and_tight(n, d):
    z = harmonic_frame(n, d)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(n, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.mT @ z, n / d * torch.eye(d, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("patch_gamma", [0.0, 0.1])
def test_constant_patches_cost_the_rates_that_they_lack(patch_gamma):
    """Without a rate of patches nothing: the path stays at the minimum; with one it starts there and ends above it."""
    options = {"eps": 0.5, "gamma": 0.1, "patch_gamma": patch_gamma}
    losses = patch_collapse_path(np.linspace(0, 1, 5), n=6, d=6, m=3, **options)
    least = theory.patch_loss_minimum(6, 6, 0.5, 0.1, patch_gamma=patch_gamma, masked=[3] * 12)
    constant = theory.loss_minimum(6, 6, 0.5, 0.1) - 2 * patch_gamma * theory.rate_collapsed(6, 0.5)
    assert losses[0] == pytest.approx(least, abs=1e-10)
    assert losses[-1] == pytest.approx(constant, abs=1e-6)
    assert (losses >= least - 1e-10).all()


def test_orthonormal_sets_have_their_means_where_they_were_asked_to_be():
    directions = torch.cat(
        [random_points(6, 5)[0], torch.tensor([[1.0, 1, 1, 0, 0]], dtype=torch.float64) / math.sqrt(3)]
    )
    z = orthonormal_sets(3, directions)
    torch.testing.assert_close(z @ z.mT, torch.eye(3, dtype=torch.float64).expand(7, 3, 3), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.sum(1) / math.sqrt(3), directions, atol=1e-12, rtol=0)


def test_impossible_configurations_are_named():
    with pytest.raises(ValueError, match="at most d = 2"):
        orthonormal_sets(3, random_points(1, 2)[0])
    with pytest.raises(ValueError, match="must be even"):
        frame_potential_energy(3)
    with pytest.raises(ValueError, match="tight frame"):
        harmonic_frame(2, 3)
    with pytest.raises(ValueError, match="n1 > d1"):
        saddle(2, 2, 3, 3)
    with pytest.raises(ValueError, match="restarts"):
        minimize(frame_potential_energy(), 3, 2, restarts=0)


@pytest.mark.parametrize(("n", "d"), [(4, 3), (6, 3), (10, 5), (16, 6), (14, 7), (28, 7)])
def test_B2_pairs_make_equiangular_tight_frames_wherever_they_exist(n, d):
    z = minimize(coding_rate_energy(0.5, batch=2), n, d, restarts=6).z
    cosines = (z @ z.mT)[~torch.eye(n, dtype=torch.bool)].abs()
    np.testing.assert_allclose(cosines, theory.welch_coherence(n, d), atol=1e-8)


def test_B2_curvature_of_pairs_is_that_of_all_even_potentials_and_ends_at_n_minus_one():
    eps, orders = 0.5, range(1, 16)
    full = coding_rate_energy(eps)
    free = [curvature_split(frame_potential_energy(2 * k), ICOSAHEDRON, reference=full)[0] for k in orders]
    measured = [curvature_split(coding_rate_energy(eps, batch=b), ICOSAHEDRON, reference=full)[0] for b in (2, 3, 4, 5)]
    two_body = theory.even_potential_weights(2, 3, eps, orders) @ free * 6 / 5  # potentials count the 1/n self pairs
    assert free[0] == pytest.approx(0, abs=1e-12)
    assert measured[0] == pytest.approx(two_body, rel=1e-9)
    assert min(measured[:3]) > 1e-3 > 1e-12 > abs(measured[3])


def test_curvature_split_of_a_quadratic_form():
    a, z = torch.diag(torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)), torch.eye(3, dtype=torch.float64)[:1]
    form = lambda z: torch.einsum("...ni,ij,...nj->...", z, a, z) / 2  # noqa: E731  curvatures 2 and 5 at z
    flat = lambda z: z[..., 1].square().sum(-1)  # noqa: E731
    assert curvature_split(form, z, reference=flat) == pytest.approx((5, 2), abs=1e-12)


def test_batch_descent_climbs_the_rate_and_small_batches_come_closer_to_a_design():
    eps, n, d = math.sqrt(0.05), 24, 3
    small, full = (batch_descent(n, d, batch=b, eps=eps, epochs=150, restarts=4) for b in (2, n))
    torch.testing.assert_close(full.norm(dim=-1), torch.ones(4, n, dtype=torch.float64))
    torch.testing.assert_close(
        full.mT @ full / n, torch.eye(d, dtype=torch.float64).expand(4, d, d) / d, atol=1e-2, rtol=0
    )
    assert np.mean([off_diagonal_mean(z, 4) for z in small]) < np.mean([off_diagonal_mean(z, 4) for z in full]) - 0.003


def test_mixture_rates_are_means_over_all_batches_with_repetition():
    z, law = random_points(4, 3, seed=1)[0], np.array([0.1, 0.2, 0.3, 0.4])
    expected = sum(
        law[i] * law[j] * law[k] * -coding_rate_energy(0.5)(z[[i, j, k]]).item()
        for i in range(4)
        for j in range(4)
        for k in range(4)
    )
    laws = np.array([law, [1, 0, 0, 0]])
    found = mixture_rates(z, laws, batch=3, eps=0.5)
    np.testing.assert_allclose(found, [expected, theory.rate_collapsed(3, 0.5)], rtol=1e-12)


@pytest.mark.parametrize(("positive", "batch"), [(True, 2), (True, 4), (False, 3)])
def test_batches_of_infonce_have_the_optimum_of_all_points_where_that_is_the_simplex(positive, batch):
    energy = infonce_energy(0.5, positive=positive)
    of_batches = minimize(batch_energy(energy, batch=batch), 6, 5)
    assert energy(of_batches.z).item() == pytest.approx(minimize(energy, 6, 5).energies.item(), abs=1e-10)
    pairs = minimize(batch_energy(infonce_energy(0.5), batch=2), 6, 5)  # without the positive only the mean counts
    assert energy(pairs.z).item() > energy(of_batches.z).item() + 1e-3


def test_batch_energy_of_the_rate_is_the_rate_of_batches():
    z = random_points(7, 3, restarts=2)
    expected = coding_rate_energy(0.5, batch=4)(z)
    torch.testing.assert_close(batch_energy(coding_rate_energy(0.5), batch=4)(z), expected, rtol=1e-12, atol=0)
