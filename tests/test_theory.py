"""Each test quotes its proposition: algebra to 1e-10, optimization, dynamics, Monte Carlo, or recorded numbers."""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

from analysis import theory
from analysis.experiments.dino_map import linear_scores
from analysis.experiments.energies import coding_rate_energy, frame_potential_energy
from analysis.experiments.landscape import batch_descent, orthonormal_sets
from analysis.experiments.linear_encoders import linear_optimum, powers
from simdino.losses import coding_rate, simdino_loss, simdinov2_loss

RNG = np.random.default_rng
OFFICIAL = [  # head dimension, rows per rank, ranks, the code's eps, ceiling, collapsed: facts of the official recipes
    (256, 64, 8, 0.05, 0.4496, 0.0189),
    (256, 128, 8, 0.05, 0.560, 0.016),
    (256, 256, 2, 0.05, 1.798, 0.023),
    (256, 512, 2, 0.05, 1.499, 0.019),
    (256, 24, 1, 0.05, 2.935, 0.195),
    (256, 32, 1, 0.05, 2.858, 0.150),
    (256, 64, 16, 0.05, 0.280, 0.014),
    (256, 78, 32, 0.05, 0.187, 0.01094),
]


def rate(z, eps):
    n, d = z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * eps**2) * z.T @ z)[1]


def sphere(rng, n, d):
    z = rng.standard_normal((n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


FORMS = {
    name: form
    for name, form in inspect.getmembers(theory, inspect.isfunction)
    if form.__module__ == theory.__name__ and not name.startswith("_")
}


@pytest.mark.parametrize("name", FORMS)
def test_every_closed_form_names_its_proposition_and_shows_a_number(name):
    assert FORMS[name].__doc__.split(": ")[0] in theory.PROPOSITIONS
    assert f"{name}(" in FORMS[name].__doc__.partition(">>> ")[2]


@pytest.mark.parametrize("proposition", theory.PROPOSITIONS)
def test_every_proposition_has_a_function_a_test_and_a_notebook(proposition):
    assert any(form.__doc__.startswith(f"{proposition}: ") for form in FORMS.values())
    tests = "".join(
        (Path(__file__).parent / name).read_text() for name in ("test_theory.py", "experiments/test_landscape.py")
    )
    assert re.search(rf"^def test_{proposition}_", tests, re.MULTILINE)
    notebooks = "".join(path.read_text() for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    assert re.search(rf"\b{proposition}\b", notebooks), "no notebook shows it"


# A ---------------------------------------------------------------------------------------------------------------


def test_A1_orthonormal_rows_and_tight_frames_reach_the_bound():
    assert rate(np.eye(3, 5), 0.3) == pytest.approx(theory.rate_maximum(3, 5, 0.3), abs=1e-10)
    angle = 2 * np.pi * np.arange(7) / 7
    heptagon = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert rate(heptagon, 0.3) == pytest.approx(theory.rate_maximum(7, 2, 0.3), abs=1e-10)


def test_A1_simplex_reaches_the_centered_bound():
    simplex = np.eye(5) - 1 / 5
    simplex /= np.linalg.norm(simplex, axis=1, keepdims=True)
    simplex = simplex @ np.linalg.svd(simplex)[2][:4].T  # (5, 4)
    assert rate(simplex - simplex.mean(0), 0.3) == pytest.approx(theory.rate_maximum(5, 4, 0.3, center=True), abs=1e-10)
    assert theory.rate_maximum(1, 4, 0.3, center=True) == 0


@pytest.mark.parametrize(("n", "d"), [(3, 8), (8, 8), (40, 8)])
def test_A1_random_features_lie_between_collapse_and_the_bound(n, d):
    values = [rate(sphere(RNG(seed), n, d), 0.5) for seed in range(50)]
    assert theory.rate_collapsed(d, 0.5) < min(values)
    assert max(values) < theory.rate_maximum(n, d, 0.5)
    assert rate(np.eye(1, d).repeat(n, 0), 0.5) == pytest.approx(theory.rate_collapsed(d, 0.5), abs=1e-10)


@pytest.mark.parametrize(("d", "rows", "ranks", "eps", "ceiling", "collapsed"), OFFICIAL)
def test_A1_ceiling_and_collapsed_value_of_the_official_recipes(d, rows, ranks, eps, ceiling, collapsed):
    precision, gamma = math.sqrt(ranks * eps), (d + ranks * rows) / (d * ranks * rows)
    digits = 10.0 ** -(len(str(ceiling)) - 2), 10.0 ** -(len(str(collapsed)) - 2)
    assert gamma * theory.rate_maximum(rows, d, precision) == pytest.approx(ceiling, abs=0.51 * digits[0])
    assert gamma * theory.rate_collapsed(d, precision) == pytest.approx(collapsed, abs=0.51 * digits[1])


def test_A2_dimension_of_the_optimal_set():
    recorded = {(3, 5): 9, (5, 5): 10, (7, 5): 14, (9, 4): 18, (12, 3): 19}
    assert {pair: theory.optimal_set_dimension(*pair) for pair in recorded} == recorded
    for n, d in [(2, 6), (6, 6), (7, 6), (30, 6)]:
        orbit = theory.optimal_set_dimension(n, d) - theory.optimal_set_dimension(n, d, modulo_rotations=True)
        rank = min(n, d)
        assert orbit == rank * (rank - 1) / 2 + rank * (d - rank)  # dimension of the rotations that move r vectors


@pytest.mark.parametrize("d", [2, 5])
def test_A4_small_and_large_alpha_are_the_frame_potential_and_the_log_volume(d):
    z = torch.tensor(sphere(RNG(0), 20, d))
    small, large = 1e-4, 1e10
    expansion = small / 2 - small**2 / 4 * frame_potential_energy()(z).item()
    assert -coding_rate_energy(math.sqrt(d / small))(z).item() == pytest.approx(expansion, abs=small**3)
    volume = torch.logdet(z.mT @ z / 20).item() / 2 + d / 2 * math.log(large)
    assert -coding_rate_energy(math.sqrt(d / large))(z).item() == pytest.approx(volume, abs=1e-7)
    assert theory.spectral_curvature(20, d, math.sqrt(d / small)) == pytest.approx(small**2 / 2, rel=1e-4)
    assert theory.spectral_curvature(20, d, math.sqrt(d / large)) == pytest.approx(d**2 / 2, rel=1e-8)


@pytest.mark.parametrize(("n", "d"), [(20, 6), (4, 6)])
def test_A4_curvature_along_a_spectral_direction(n, d):
    rank, alpha, h = min(n, d), d / 0.3**2, 1e-4
    v = RNG(1).standard_normal(rank)
    v = (v - v.mean()) / np.linalg.norm(v - v.mean())
    values = [0.5 * np.log1p(alpha * (1 / rank + t * v)).sum() for t in (-h, 0, h)]
    measured = -(values[0] - 2 * values[1] + values[2]) / h**2
    assert measured == pytest.approx(theory.spectral_curvature(n, d, 0.3), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(3, 8), (8, 8), (40, 8)])
def test_A5_gradient_bound_is_tight(n, d):
    alpha = d / 0.3**2

    def gradient_norm(z):
        return np.linalg.norm(alpha / n * z @ np.linalg.inv(np.eye(d) + alpha / n * z.T @ z))

    bound = theory.gradient_bound(n, d, 0.3)
    u, _, vt = np.linalg.svd(RNG(0).standard_normal((n, d)), full_matrices=False)
    assert gradient_norm(math.sqrt(n / alpha) * u @ vt) == pytest.approx(bound, abs=1e-10)
    assert max(gradient_norm(10.0**k * sphere(RNG(seed), n, d)) for k in (-2, -1, 0, 1) for seed in range(20)) < bound


def test_A5_three_rules_for_gamma_differ_by_a_factor_of_twenty():
    rules = theory.gamma_rules(512, 256, math.sqrt(0.05))
    assert rules["balanced"] == pytest.approx(0.0009, abs=5e-5)
    assert rules["bounded"] == pytest.approx(0.0198, abs=5e-5)
    assert rules["official"] == pytest.approx(0.0059, abs=5e-5)
    bound = theory.gradient_bound(512, 256, math.sqrt(0.05))
    assert 4 * rules["balanced"] * bound == pytest.approx(2 / math.sqrt(512), abs=1e-10)
    assert rules["bounded"] * bound == pytest.approx(0.5, abs=1e-10)


@pytest.mark.parametrize(("n", "d"), [(3, 8), (8, 8), (40, 8)])
def test_A5_gradient_norms_follow_from_spectrum_and_alignment(n, d):
    z, t = (torch.tensor(sphere(RNG(seed), n, d)) for seed in (0, 1))
    z.requires_grad_()
    alpha, rank = d / 0.3**2, min(n, d)
    value = torch.logdet(torch.eye(d) + alpha / n * z.mT @ z) / 2
    expected = torch.autograd.grad(value, z)[0].norm().item()
    spectrum = np.linalg.eigvalsh((z.mT @ z / n).detach().numpy())
    assert theory.rate_gradient(spectrum, n, 0.3) == pytest.approx(expected, abs=1e-10)
    flat = np.where(np.arange(d) < rank, 1 / rank, 0)
    assert theory.rate_gradient(flat, n, 0.3) == pytest.approx(alpha / math.sqrt(n) / (1 + alpha / rank), abs=1e-10)
    tight = np.where(np.arange(d) < rank, 1 / alpha, 0)
    assert theory.rate_gradient(tight, n, 0.3) == pytest.approx(theory.gradient_bound(n, d, 0.3), abs=1e-10)
    alignment = (z - t).square().sum(1).mean() / 2
    expected = torch.autograd.grad(alignment, z)[0].norm().item()
    assert theory.alignment_gradient(alignment.item(), n) == pytest.approx(expected, abs=1e-10)
    assert expected < theory.alignment_gradient(2, n) == pytest.approx(2 / math.sqrt(n), abs=1e-10)


# B ---------------------------------------------------------------------------------------------------------------


def test_B1_minimum_of_the_loss_is_the_rate_alone():
    assert theory.loss_minimum(6, 3, 0.5, 0.1) == pytest.approx(-0.1 * theory.rate_maximum(6, 3, 0.5), abs=1e-10)
    assert theory.loss_minimum(6, 3, 0.5, 0.1, b=6) == theory.loss_minimum(6, 3, 0.5, 0.1)
    of_batches = theory.loss_minimum(10**9, 3, 0.5, 0.1, b=6)
    assert of_batches == pytest.approx(-0.1 * theory.rate_isotropic(6, 3, 0.5), rel=1e-6)


def test_B2_pair_rate_is_the_rate_of_two_points():
    for seed in range(5):
        z = sphere(RNG(seed), 2, 7)
        assert theory.pair_rate(z[0] @ z[1], 7, 0.4) == pytest.approx(rate(z, 0.4), abs=1e-10)


def test_B2_even_frame_potentials_give_the_pair_rate_exactly():
    orders = np.arange(1, 400)
    weights = theory.even_potential_weights(2, 4, 0.5, orders)
    for c in (0.0, 0.3, -0.9):
        series = math.log1p(2 * 4) - (weights * c ** (2 * orders)).sum()  # α/2 = 8
        assert series == pytest.approx(theory.pair_rate(c, 4, 0.5), abs=1e-10)
    relative = [np.divide(*theory.even_potential_weights(b, 4, 0.5, [2, 1])) for b in (2, 4, 8, 64)]
    assert relative == sorted(relative, reverse=True)  # larger batches see less of the high orders


def test_B2_triple_rate_is_the_rate_of_three_points():
    for seed in range(5):
        z = sphere(RNG(seed), 3, 7)
        cosines = z[0] @ z[1], z[1] @ z[2], z[2] @ z[0]
        assert theory.triple_rate(*cosines, 7, 0.4) == pytest.approx(rate(z, 0.4), abs=1e-10)


def test_B2_frame_potentials_do_not_determine_the_rate_of_three_points():
    in_a_plane = torch.tensor([[1, 0, 0], [0.5, math.sqrt(0.75), 0], [-0.5, math.sqrt(0.75), 0]], dtype=torch.float64)
    in_space = torch.linalg.cholesky(torch.full((3, 3), 0.5, dtype=torch.float64) + 0.5 * torch.eye(3))
    for order in (2, 4, 6, 8):
        potential = frame_potential_energy(order)
        assert potential(in_a_plane).item() == pytest.approx(potential(in_space).item(), abs=1e-12)
    plane, space = (-coding_rate_energy(0.5)(z).item() for z in (in_a_plane, in_space))
    assert plane == pytest.approx(theory.triple_rate(0.5, 0.5, -0.5, 3, 0.5), abs=1e-10)
    assert space == pytest.approx(theory.triple_rate(0.5, 0.5, 0.5, 3, 0.5), abs=1e-10)
    assert space > plane + 0.2


def test_B2_leaving_one_point_of_a_tight_frame_out_gives_a_constant():
    angle = 2 * np.pi * np.arange(5) / 5
    pentagon = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    skew = np.concatenate([np.eye(2), np.stack([np.cos(angle[:3] * 5 / 3 + 0.3), np.sin(angle[:3] * 5 / 3 + 0.3)], 1)])
    expected = theory.leave_one_out_rate(5, 2, 0.5)
    for z in (pentagon, skew):
        assert [rate(np.delete(z, i, axis=0), 0.5) for i in range(5)] == pytest.approx([expected] * 5, abs=1e-10)
        assert -coding_rate_energy(0.5, batch=4)(torch.tensor(z)).item() == pytest.approx(expected, abs=1e-10)
    assert theory.leave_one_out_rate(5, 5, 0.5) == pytest.approx(rate(np.eye(4, 5), 0.5), abs=1e-10)
    with pytest.raises(ValueError, match=r"needs n >= max\(2, d\)"):
        theory.leave_one_out_rate(4, 5, 0.5)


def tight_frames(n, d, count):
    """Unit-norm tight frames in general position, by alternating between tight frames and unit vectors."""
    frames = []
    for seed in range(count):
        z = sphere(RNG(seed), n, d)
        for _ in range(4000):
            u, _, vt = np.linalg.svd(z, full_matrices=False)
            z = u @ vt
            z /= np.linalg.norm(z, axis=1, keepdims=True)
        np.testing.assert_allclose(z.T @ z, n / d * np.eye(d), atol=1e-12)
        frames.append(z)
    return frames


def test_B9_batches_tell_tight_frames_apart_by_the_fourth_powers():
    n, d, eps = 9, 4, math.sqrt(40)  # α = 0.1
    frames = tight_frames(n, d, 6)
    fourth = [((z @ z.T) ** 4).sum() - n for z in frames]
    assert np.ptp(fourth) > 0.1
    for b in range(2, 8):
        rates = [-coding_rate_energy(eps, batch=b)(torch.tensor(z)).item() for z in frames]
        slope, constant = np.polyfit(fourth, rates, 1)
        assert slope == pytest.approx(theory.batch_rate_slope(n, d, b, eps), rel=0.004)
        assert np.std(rates - constant - slope * np.array(fourth)) < 0.02 * np.std(rates)
    for b in (8, 9):
        assert theory.batch_rate_slope(n, d, b, eps) == pytest.approx(0, abs=1e-18)
        assert np.ptp([coding_rate_energy(eps, batch=b)(torch.tensor(z)).item() for z in frames]) < 1e-12
    with pytest.raises(ValueError, match="batches of b <= n"):
        theory.batch_rate_slope(n, d, 10, eps)


def test_B9_pairs_follow_the_expansion_of_their_closed_form():
    n, d, eps = 6, 3, 20.0
    weight = theory.even_potential_weights(2, d, eps, [2])[0] / (n * (n - 1))  # of F, the sum over ordered pairs
    assert theory.batch_rate_slope(n, d, 2, eps) == pytest.approx(-weight, rel=1e-12)


@pytest.mark.parametrize(
    ("shares", "d", "owned"),
    [
        ([0.5, 0.2, 0.15, 0.1, 0.05], 3, 1),
        ([0.05, 0.4, 0.1, 0.32, 0.08, 0.05], 3, 2),
        ([0.3, 0.25, 0.2, 0.15, 0.1], 3, 0),
        ([0.5, 0.26, 0.14, 0.06, 0.04], 4, 3),
        ([0.6, 0.3, 0.1], 5, 3),
    ],
)
@pytest.mark.parametrize("alpha", [2.0, 200.0])
def test_B12_direct_optimization_gives_the_predicted_owners_and_eigenvalues(shares, d, owned, alpha):
    k, weights = len(shares), np.sqrt(shares)[:, None]
    spectrum, owners = theory.imbalanced_optimum(shares, d)
    assert spectrum.sum() == pytest.approx(1, abs=1e-12)

    def loss(flat):
        v = flat.reshape(k, d)
        norm = np.linalg.norm(v, axis=1, keepdims=True)
        z = v / norm
        gram = np.eye(d) + alpha * (weights * z).T @ (weights * z)
        g = -alpha * weights**2 * np.linalg.solve(gram, z.T).T
        return -0.5 * np.linalg.slogdet(gram)[1], ((g - (g * z).sum(1, keepdims=True) * z) / norm).ravel()

    start = RNG(0).standard_normal(k * d)
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-11}
    v = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(k, d)
    z = v / np.linalg.norm(v, axis=1, keepdims=True)
    found = np.linalg.eigvalsh((weights * z).T @ (weights * z))[::-1]
    np.testing.assert_allclose(found, spectrum, atol=1e-5)
    others = abs(z @ z.T - np.eye(k)).max(1)
    np.testing.assert_array_equal(others < 1e-4, owners)
    assert owners.sum() == owned


def test_B12_of_an_exact_tie_the_larger_classes_own_and_bad_shares_are_named():
    spectrum, owners = theory.imbalanced_optimum([1 / 3] * 3, 3)
    assert owners.all()
    np.testing.assert_allclose(spectrum, 1 / 3)
    assert theory.imbalanced_optimum([0.25] * 4, 2).spectrum.tolist() == [0.5, 0.5]
    for bad in ([0.5, 0.6], [1.5, -0.5], [[1.0]]):
        with pytest.raises(ValueError, match="sum to 1"):
            theory.imbalanced_optimum(bad, 2)


def test_B2_welch_and_orthoplex_bounds():
    golden = (1 + math.sqrt(5)) / 2
    lines = np.array(
        [[0, 1, golden], [0, 1, -golden], [1, golden, 0], [1, -golden, 0], [golden, 0, 1], [-golden, 0, 1]]
    )
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    cosines = abs(lines @ lines.T)[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(cosines, theory.welch_coherence(6, 3), atol=1e-10)  # the icosahedron, all c² = 1/5
    assert theory.pair_rate(cosines[0], 3, 0.5) == pytest.approx(theory.pair_rate_maximum(6, 3, 0.5), abs=1e-10)
    assert theory.welch_coherence(3, 5) == 0
    bases = [np.eye(2), np.array([[1, 1], [1, -1]]) / math.sqrt(2)]  # two mutually unbiased bases of the plane
    assert abs(bases[0] @ bases[1].T).max() == pytest.approx(theory.orthoplex_coherence(4, 2), abs=1e-10)
    with pytest.raises(ValueError, match="orthoplex"):
        theory.orthoplex_coherence(3, 2)


def linear_problem(seed, m, mu):
    """Covariances (Σ, Σ_a) with the generalized eigenvalues mu, in a random basis."""
    rng = RNG(seed)
    a = rng.standard_normal((m, m)) + 2 * np.eye(m)
    return a @ a.T, a @ np.diag(mu) @ a.T


def linear_loss(w, sigma, sigma_a, gamma, alpha, weight=1.0):
    """The loss of a linear encoder and its gradient."""
    gram = np.eye(len(w)) + alpha * w @ sigma @ w.T
    value = weight * np.trace(w @ sigma_a @ w.T) - gamma / 2 * np.linalg.slogdet(gram)[1]
    return value, 2 * weight * w @ sigma_a - gamma * alpha * np.linalg.solve(gram, w @ sigma)


MU = np.array([0.9, 0.03, 0.4, 0.1, 0.7, 0.2])


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.2, 1.0])
def test_B3_optimization_fills_the_spectrum_like_water(gamma):
    sigma, sigma_a = linear_problem(0, 6, MU)
    alpha, d = 20.0, 4

    def flat(x):
        value, gradient = linear_loss(x.reshape(d, 6), sigma, sigma_a, gamma, alpha)
        return value, gradient.ravel()

    start = RNG(1).standard_normal(d * 6) * 0.3
    w = minimize(flat, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 0, "gtol": 1e-10})
    w = w.x.reshape(d, 6)
    powers = theory.water_filling(MU, gamma, alpha, d)
    np.testing.assert_allclose(np.linalg.eigvalsh(w @ sigma @ w.T), np.sort(powers)[-d:], atol=1e-6)
    assert (powers > 0).sum() == min(d, (theory.collapse_threshold(gamma, alpha) > MU).sum())


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.2, 1.0])
def test_B3_water_filling_under_a_norm_constraint(gamma):
    sigma, sigma_a = (torch.tensor(a) for a in linear_problem(0, 6, MU))
    alpha, d = 20.0, 4

    def flat(x):
        w = torch.tensor(x.reshape(d, 6), requires_grad=True)
        unit = w / torch.trace(w @ sigma @ w.T).sqrt()
        covariance = unit @ sigma @ unit.T
        loss = torch.trace(unit @ sigma_a @ unit.T) - gamma / 2 * torch.logdet(torch.eye(d) + alpha * covariance)
        return loss.item(), torch.autograd.grad(loss, w)[0].numpy().ravel()

    best = minimize(flat, RNG(1).standard_normal(24), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-11})
    w = best.x.reshape(d, 6)
    covariance = w @ sigma.numpy() @ w.T
    powers = theory.water_filling(MU, gamma, alpha, d, norm=1.0)
    assert powers.sum() == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance) / np.trace(covariance), np.sort(powers)[-d:], atol=1e-6)


def test_B3_limits_of_water_filling():
    assert theory.water_filling([0.0, 0.5], 0.1, 10, 2)[0] == math.inf
    np.testing.assert_allclose(theory.water_filling([0.3], 0.1, 10, 1, norm=1.0), [1.0])
    np.testing.assert_allclose(theory.water_filling([0.2] * 5, 0.1, 10, 5, norm=1.0), [0.2] * 5, atol=1e-12)
    assert (theory.water_filling([0.2, 0.1, 0.3], 0.1, 100, 1) > 0).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="mu"):
        theory.water_filling([np.nan], 0.1, 10, 1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_B4_self_distillation_rests_where_gamma_is_doubled_whatever_the_momentum(momentum):
    mu, gamma, alpha, d = MU[1:5], 0.05, 20.0, 3
    sigma, sigma_a = np.eye(4), np.diag(mu)  # a rotation away from the general case
    student = teacher = RNG(0).standard_normal((d, 4)) * 0.3
    for _ in range(4000):
        expansion = gamma * alpha * np.linalg.solve(np.eye(d) + alpha * student @ sigma @ student.T, student @ sigma)
        student = student - 0.2 * (student @ sigma - teacher @ (sigma - sigma_a) - expansion)
        teacher = momentum * teacher + (1 - momentum) * student
    measured = np.linalg.eigvalsh(student @ sigma @ student.T)
    np.testing.assert_allclose(measured, np.sort(theory.distillation_fixed_point(mu, gamma, alpha, d))[-d:], atol=1e-10)
    assert abs(measured - np.sort(theory.water_filling(mu, gamma, alpha, d))[-d:]).max() > 0.1


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_B5_modes_grow_in_the_predicted_time(stop_gradient):
    mu, gamma, alpha, c = np.array([0.05, 0.1, 0.2]), 0.05, 50.0, 1 if stop_gradient else 2
    start = 1e-6
    w = np.linalg.qr(RNG(0).standard_normal((3, 3)))[0] * math.sqrt(start)  # orthogonal columns

    def flow(_, x):
        w = x.reshape(3, 3)
        expansion = gamma * alpha * np.linalg.solve(np.eye(3) + alpha * w @ w.T, w)
        return (expansion - c * w * mu).ravel()

    times = np.array([theory.mode_time(start, 0.05, m, gamma, alpha, stop_gradient=stop_gradient) for m in mu])
    assert (np.diff(times) > 0).all()
    solution = solve_ivp(flow, (0, times.max()), w.ravel(), t_eval=times, rtol=1e-10, atol=1e-13)
    powers = (solution.y.reshape(3, 3, 3) ** 2).sum(0)  # (mode, time)
    np.testing.assert_allclose(np.diag(powers), 0.05, rtol=1e-6)
    velocity = theory.mode_velocity(0.02, 0.1, gamma, alpha, stop_gradient=stop_gradient)
    time = theory.mode_time(0.02, 0.02 + 1e-6, 0.1, gamma, alpha, stop_gradient=stop_gradient)
    assert 1e-6 / time == pytest.approx(velocity, rel=1e-4)
    with pytest.raises(ValueError, match="rest power"):
        theory.mode_time(0.1, 100.0, 0.1, gamma, alpha)


def test_B5_modes_that_share_a_direction_compete():
    gamma, alpha, start, level = 0.05, 50.0, 1e-6, 0.05
    w = np.array([[1.0, 1.0], [0.0, 0.0]]) * math.sqrt(start)  # parallel columns
    time = theory.mode_time(start, level, 0.1, gamma, alpha)
    for _ in range(int(time / 0.01)):
        expansion = gamma * alpha * np.linalg.solve(np.eye(2) + alpha * w @ w.T, w)
        w = w + 0.01 * (expansion - w * 0.1)
    assert (w**2).sum(0) == pytest.approx([level / 2] * 2, rel=0.2)  # half the power each: the decoupled law fails


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_B5_gram_matrix_follows_its_own_law_whatever_the_columns_are(stop_gradient):
    mu, gamma, alpha, c = np.array([0.05, 0.1, 0.2]), 0.05, 50.0, 1 if stop_gradient else 2
    w = RNG(1).standard_normal((3, 3)) * 0.1

    def flow(_, x):
        w = x.reshape(3, 3)
        return (gamma * alpha * np.linalg.solve(np.eye(3) + alpha * w @ w.T, w) - c * w * mu).ravel()

    def law(_, g):
        return theory.gram_velocity(g.reshape(3, 3), mu, gamma, alpha, stop_gradient=stop_gradient).ravel()

    how = {"t_span": (0, 20), "rtol": 1e-11, "atol": 1e-13}
    end = solve_ivp(flow, y0=w.ravel(), **how).y[:, -1].reshape(3, 3)
    gram = solve_ivp(law, y0=(w.T @ w).ravel(), **how).y[:, -1].reshape(3, 3)
    np.testing.assert_allclose(gram, end.T @ end, atol=1e-8)
    assert abs(end.T @ end - w.T @ w).max() > 0.1
    velocity = [theory.mode_velocity(0.3, m, gamma, alpha, stop_gradient=stop_gradient) for m in mu]
    gram = theory.gram_velocity(0.3 * np.eye(3), mu, gamma, alpha, stop_gradient=stop_gradient)
    np.testing.assert_allclose(gram, np.diag(velocity), atol=1e-12)


def test_B5_start_powers_are_what_earlier_columns_leave():
    w, mu = RNG(0).standard_normal((4, 6)), np.array([0.5, 0.1, 0.3, 0.9, 0.2, 0.8])
    powers = theory.start_powers(w, mu)
    before = np.zeros((4, 0))
    for i in np.argsort(mu):
        left = w[:, i] - before @ np.linalg.pinv(before) @ w[:, i]
        assert powers[i] == pytest.approx(left @ left, abs=1e-12)
        before = np.column_stack([before, w[:, i]])
    orthogonal = np.linalg.qr(w)[0][:, :3] * [1, 2, 3]
    np.testing.assert_allclose(theory.start_powers(orthogonal, [0.3, 0.1, 0.2]), [1, 4, 9], atol=1e-12)


def test_B5_start_powers_give_the_times_of_columns_that_share_directions():
    mu, gamma, alpha, time = np.array([0.1, 0.25, 0.33, 0.38, 0.42]), 0.05, 20.0, np.linspace(0, 60, 6001)
    ends = theory.water_filling(mu, gamma, alpha, 5) / 2
    errors = {"columns": [], "start_powers": []}
    for seed in range(4):
        w = RNG(seed).standard_normal((5, 5)) * math.sqrt(1e-6 / 5)
        law = lambda _, g: theory.gram_velocity(g.reshape(5, 5), mu, gamma, alpha, stop_gradient=False).ravel()  # noqa: E731
        path = solve_ivp(law, (0, 60), (w.T @ w).ravel(), t_eval=time, rtol=1e-7, atol=1e-13, method="LSODA").y
        measured = time[(path.reshape(5, 5, -1)[range(5), range(5)] > ends[:, None]).argmax(1)]
        for name, start in (("columns", (w**2).sum(0)), ("start_powers", theory.start_powers(w, mu))):
            how = [gamma, alpha]
            times = [theory.mode_time(*x, *how, stop_gradient=False) for x in zip(start, ends, mu, strict=True)]
            errors[name] += list(abs(measured / times - 1))
    assert np.mean(errors["start_powers"]) < 0.01 < 0.05 < np.mean(errors["columns"])


def simulate_collapse(mu, alpha, factor, *, stop_gradient, d=4, n=48):
    """Growth of an affine encoder's spread around total collapse, at `factor` times the predicted threshold."""
    eps, c = math.sqrt(d / alpha), 1 if stop_gradient else 2
    gamma = factor * c * mu / theory.collapse_number(d, eps, 1.0)
    parts = RNG(0).standard_normal((n, 6))
    parts = torch.tensor(np.linalg.qr(parts - parts.mean(0))[0] * math.sqrt(n))  # centered, white, uncorrelated
    views = [math.sqrt(1 - mu) * parts[:, :2] + math.sqrt(mu) * parts[:, k : k + 2] for k in (2, 4)]
    w = torch.tensor(RNG(1).standard_normal((d, 2)) * 1e-4, requires_grad=True)
    u = torch.eye(d, dtype=torch.float64)[0]
    start = w[1:].norm().item()
    for _ in range(150):
        z = [torch.nn.functional.normalize(u + view @ w.T, dim=1) for view in views]
        targets = [t.detach() if stop_gradient else t for t in z]
        # the official pairs are (teacher 1, student 2) and (teacher 2, student 1)
        alignment = sum((1 - (a * b).sum(1)).mean() for a, b in zip(z, reversed(targets), strict=True)) / 2
        expansion = sum(0.5 * torch.logdet(torch.eye(d) + alpha / n * a.T @ a) for a in z) / 2
        (gradient,) = torch.autograd.grad(alignment - gamma * expansion, w)
        with torch.no_grad():
            w -= gradient / mu
    return w[1:].norm().item() / start


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize(("mu", "alpha"), [(0.3, 20.0), (0.8, 320.0)])
def test_B6_collapse_is_stable_below_the_collapse_number_and_left_above(stop_gradient, mu, alpha):
    assert simulate_collapse(mu, alpha, 0.9, stop_gradient=stop_gradient) < 1e-2
    assert simulate_collapse(mu, alpha, 1.1, stop_gradient=stop_gradient) > 1e2


@pytest.mark.parametrize(("rows", "ranks", "expected"), [(64, 8, 3.7), (64, 16, 1.56), (78, 32, 0.685)])
def test_B6_collapse_number_of_the_official_recipes(rows, ranks, expected):
    gamma = (256 + rows * ranks) / (256 * rows * ranks)
    measured = theory.collapse_number(256, math.sqrt(ranks * 0.05), gamma)
    assert measured == pytest.approx(expected, abs=0.05 if rows * ranks == 512 else 0.005)


def test_B6_spread_next_to_collapse_is_read_off_the_rate():
    u, eps = np.eye(5)[0], 0.5
    z = u + 1e-4 * RNG(0).standard_normal((4000, 5))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    spread = ((z - z.mean(0)) ** 2).sum(1).mean()
    assert theory.collapse_spread(rate(z, eps), 5, eps) == pytest.approx(spread, rel=1e-3)


@pytest.mark.parametrize("b", [2, 3, 4])
def test_B7_mean_rate_of_batches_is_concave_along_mixtures_of_laws(b):
    rng, t = RNG(b), np.linspace(0, 1, 5)
    z = sphere(rng, 6, 3)
    rates = np.array([rate(z[list(i)], 0.3) for i in np.ndindex(*[6] * b)]).reshape([6] * b)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(6) / 2, size=2)
        means = []
        for mixture in (1 - t)[:, None] * p + t[:, None] * q:
            mean = rates
            for _ in range(b):
                mean = mean @ mixture
            means.append(mean)
        assert np.diff(means, 2).max() < -1e-6


def test_B7_the_uniform_law_beats_tight_frames_that_are_optimal_in_one_batch():
    d, b, eps = 4, 6, 0.5
    axes = RNG(0).integers(d, size=(20_000, b))
    frame = np.mean([rate(np.eye(d)[i], eps) for i in axes[:4000]])  # the orthonormal basis as a law
    uniform = [rate(sphere(rng, b, d), eps) for rng in map(RNG, range(4000))]
    assert frame < np.mean(uniform) - 10 * np.std(uniform) / math.sqrt(len(uniform))
    assert np.mean(uniform) == pytest.approx(theory.rate_isotropic(b, d, eps), rel=0.03)  # asymptotic in d


@pytest.mark.parametrize("n", [32, 80])
def test_B7_points_that_are_optimal_for_batches_reach_the_attainable_rate(n):
    d, b, eps = 8, 16, 0.5
    points = batch_descent(n, d, batch=b, eps=eps, epochs=600)
    mean = -coding_rate_energy(eps, batch=b, samples=20_000)(points).item()
    uniform = coding_rate(torch.tensor(sphere(RNG(0), 50_000 * b, d)).view(-1, b, d), eps=eps).mean().item()
    excess = theory.attainable_rate(n, d, eps, b=b) - theory.rate_isotropic(b, d, eps)
    assert mean - uniform == pytest.approx(excess, rel=0.1)


def test_B7_limits_and_bad_batches():
    assert theory.attainable_rate(16, 8, 0.5, b=16) == theory.rate_maximum(16, 8, 0.5)
    levels = [theory.attainable_rate(n, 8, 0.5, b=16) for n in (16, 17, 20, 40, 200, 10**6)]
    assert (np.diff(levels) < 0).all()
    for b in (1, 17):
        with pytest.raises(ValueError, match="2 <= b <= n"):
            theory.attainable_rate(16, 8, 0.5, b=b)


@pytest.mark.parametrize("b", [32, 64])
def test_B8_a_batch_has_the_mean_gradient_of_the_rate_at_a_smaller_alpha(b):
    d, alpha = 64, 1280.0
    lam = np.arange(1, d + 1) ** -1.0
    lam /= lam.sum()
    z = RNG(0).standard_normal((300, b, d)) * np.sqrt(lam)
    gamma = np.swapaxes(z, 1, 2) @ z / b
    inverse = np.linalg.inv(np.eye(d) + alpha * gamma)
    measured = (1 - np.einsum("kii->ki", inverse)).mean(0) / (2 * lam)  # ½ ((I + αΓ)⁻¹ αΓ)ᵢᵢ/λᵢ
    alpha_b = theory.batch_alpha(lam, b, alpha)
    np.testing.assert_allclose(measured, alpha_b / (1 + alpha_b * lam) / 2, rtol=0.05)
    assert abs(alpha / (1 + alpha * lam) / 2 / measured - 1).max() > 0.5  # α itself is far off


def test_B8_close_to_collapse_only_the_share_of_a_batch_is_missing():
    for b in (16, 64, 256):
        assert theory.batch_alpha([1.0], b, 1e6) / 1e6 == pytest.approx(1 - 1 / b, abs=1e-5)
    assert theory.batch_alpha([0.0], 4, 7.0) == 7


def batch_powers(mu, gamma, alpha, b, *, draws=150):
    """The best powers for the mean rate of drawn batches: a convex problem, as the optimum shares its basis with μ."""
    x = torch.tensor(RNG(0).standard_normal((draws, b, len(mu))))

    def loss(p):
        p = torch.tensor(p, requires_grad=True)
        rates = 0.5 * torch.logdet(torch.eye(b, dtype=p.dtype) + alpha / b * (x * p) @ x.mT)
        value = (torch.tensor(mu) * p).sum() - gamma * rates.mean()
        return value.item(), torch.autograd.grad(value, p)[0].numpy()

    return minimize(loss, np.full(len(mu), 0.1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(mu)).x


@pytest.mark.parametrize("b", [8, 16, 64])
def test_B8_linear_encoders_on_batches_fill_like_water_at_the_settled_alpha(b):
    mu, gamma, alpha, d = np.linspace(0.05, 0.95, 16), 0.02, 320.0, 16
    measured = batch_powers(mu, gamma, alpha, b)
    settled = theory.settled_alpha(mu, gamma, alpha, d, b=b)
    predicted, without = (theory.water_filling(mu, gamma, a, d) for a in (settled, alpha))
    assert abs(measured - predicted).max() < 0.015 * measured.max()
    assert abs(measured - predicted).max() < abs(measured - without).max() / 3
    one = theory.settled_alpha(mu, gamma, alpha, d, b=b, norm=1)
    powers_at_one = theory.water_filling(mu, gamma, one, d, norm=1)
    assert theory.batch_alpha(powers_at_one, b, alpha) == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("b", [8, 12])
def test_B8_modes_that_batches_close_are_open_at_alpha_itself(b):
    mu, gamma, alpha, d = np.linspace(0.2, 3.1, 16), 0.02, 320.0, 16
    assert (theory.water_filling(mu, gamma, alpha, d) > 0).all()
    settled = theory.settled_alpha(mu, gamma, alpha, d, b=b)
    predicted, measured = (theory.water_filling(mu, gamma, settled, d) > 0).sum(), batch_powers(mu, gamma, alpha, b)
    assert predicted < 16
    assert abs((measured > 1e-5).sum() - predicted) <= 1


def test_B10_each_mode_opens_at_its_gamma():
    alpha, d = 20.0, 5
    gammas = theory.opening_gammas(MU, alpha, d)
    assert len(gammas) == d - 1
    assert (np.diff(gammas) > 0).all()
    sigma, sigma_a = linear_problem(0, 6, MU)
    for k, gamma in enumerate(gammas, start=1):
        for factor, expected in ((0.97, k), (1.03, k + 1)):
            w = linear_optimum(sigma, sigma_a, d=d, gamma=factor * gamma, alpha=alpha, norm=1)
            assert (powers(w, sigma) > 1e-6).sum() == expected


def test_B10_its_first_rung_is_the_collapse_number():
    d, eps, mu = 4, 0.5, np.array([0.7, 0.0, 0.3])
    first = theory.opening_gammas(mu, d / eps**2, d)[0]
    assert theory.collapse_number(d, eps, first) == pytest.approx(2 * 0.3, abs=1e-10)
    assert theory.opening_gammas([0.2, 0.2, 0.4], 10, 3)[0] == 0  # equal modes share the power at every γ


def grown_with_local_crops(factor, mu, sizes, *, local=3, d=4, n=48, alpha=20.0):
    """Growth of an affine encoder's spread around total collapse with local crops, `factor` times B11's threshold."""
    eps, (scale, rho) = math.sqrt(d / alpha), sizes
    threshold = theory.crops_collapse_threshold(mu, scale**2 - rho, global_crops=2, local_crops=local)
    parts = RNG(0).standard_normal((n, 1 + 2 + local))
    parts = torch.tensor(np.linalg.qr(parts - parts.mean(0))[0] * math.sqrt(n))  # centered, white, uncorrelated
    common, *own = parts.split(1, dim=1)
    shared = rho / math.sqrt(1 - mu)  # of a local crop, so that its covariance with a global one is rho
    views = [math.sqrt(1 - mu) * common + math.sqrt(mu) * x for x in own[:2]]
    views += [shared * common + math.sqrt(scale**2 - shared**2) * x for x in own[2:]]
    w = torch.tensor(RNG(1).standard_normal((d, 1)) * 1e-4, requires_grad=True)
    u, start = torch.eye(d, dtype=torch.float64)[0], w[1:].norm().item()
    gamma = factor * threshold / theory.collapse_number(d, eps, 1.0)
    for _ in range(200):
        z = torch.stack([torch.nn.functional.normalize(u + view @ w.T, dim=1) for view in views])
        loss, _ = simdino_loss(z, z[:2].detach(), eps=eps, gamma=float(gamma))
        (gradient,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            w -= gradient / threshold
    return w[1:].norm().item() / start


@pytest.mark.parametrize(("mu", "sizes"), [(0.3, (1.0, 0.2)), (0.8, (0.5, 0.2)), (0.5, (1.4, 0.6))])
def test_B11_collapse_with_local_crops_is_stable_below_the_threshold_and_left_above(mu, sizes):
    assert grown_with_local_crops(0.9, mu, sizes) < 1e-3
    assert grown_with_local_crops(1.1, mu, sizes) > 1e2


def test_B11_without_local_crops_is_the_share_of_two_views():
    assert theory.crops_collapse_threshold(0.3, 0.9, global_crops=4) == pytest.approx(0.3, abs=1e-15)
    assert theory.crops_collapse_threshold(0.3, 0.3, local_crops=10) == pytest.approx(0.3, abs=1e-15)
    with pytest.raises(ValueError, match="no pair"):
        theory.crops_collapse_threshold(0.3, 0.9, global_crops=1)


# C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("gamma", [0.003, 0.03])
def test_B14_growth_of_a_network_under_any_preconditioner_follows_from_two_gradients(stop_gradient, gamma):
    """Two layers with a nonlinearity, next to collapse; the step is P times the gradient of the training loss."""
    d, eps, n = 5, 0.3, 64
    torch.manual_seed(0)
    views = torch.randn(2, n, 3, dtype=torch.float64) + 2 * torch.randn(n, 3, dtype=torch.float64)
    shapes = [(6, 3), (d, 6), (d,)]
    first, second, bias = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    parameters = [first, second * 1e-3, bias]
    scales = [torch.rand_like(p) + 0.1 for p in parameters]  # P

    def features(first, second, bias):
        return torch.nn.functional.normalize((views @ first.T).tanh() @ second.T + bias, dim=-1)

    def spread(z):
        return 1 - z.mean(1).square().sum(-1).mean()  # of each view alone: what a batch sees

    def gradient(value):
        own = [p.clone().requires_grad_() for p in parameters]
        return torch.autograd.grad(value(features(*own)), own)

    inner = lambda a, b: sum((x * p * y).sum().item() for x, p, y in zip(a, scales, b, strict=True))  # noqa: E731
    of_spread, of_alignment = gradient(spread), gradient(lambda z: (1 - (z[0] * z[1]).sum(-1)).mean())
    now = spread(features(*parameters)).item()
    speed, share = inner(of_spread, of_spread) / (2 * now), inner(of_spread, of_alignment) / inner(of_spread, of_spread)

    target = (lambda z: z.detach()) if stop_gradient else (lambda z: z)
    step = gradient(lambda z: simdino_loss(z, target(z), eps=eps, gamma=gamma)[0])
    small = 1e-4 / speed
    after = [p - small * scale * g for p, scale, g in zip(parameters, scales, step, strict=True)]
    growth = math.log(spread(features(*after)).item() / now) / small
    chi = theory.collapse_number(d, eps, gamma)
    expected = theory.spread_growth(speed, share, chi, 10**9, stop_gradient=stop_gradient)
    assert growth == pytest.approx(expected, rel=1e-3)
    assert (chi > (1 if stop_gradient else 2) * share) == (growth > 0)


def test_C1_cross_entropy_is_blind_to_collapse():
    rng = RNG(0)
    q, p = rng.dirichlet(np.ones(5), 8), rng.dirichlet(np.ones(5), 8)
    assert sum(theory.cross_entropy_parts(q, p)) == pytest.approx(-(q * np.log(p)).sum(1).mean(), abs=1e-10)
    collapsed, spread = np.eye(5)[[0] * 5], np.eye(5)
    assert theory.cross_entropy_parts(collapsed, collapsed) == theory.cross_entropy_parts(spread, spread) == (0, 0)


def masked(tokens):
    """Tokens of crops, each (m_c, d), as `simdinov2_loss` packs them, with their weights."""
    weights = [torch.full((len(t),), 1 / len(t) / len(tokens), dtype=torch.float64) for t in tokens]
    return torch.cat(tokens), torch.cat(weights)


def test_C2_constant_patches_are_a_global_optimum_and_a_rate_of_patches_excludes_them():
    n, d, eps, gamma = 8, 6, 0.5, 0.1
    angle = 2 * torch.pi / n * torch.outer(torch.arange(n), torch.arange(1, 4)).double()
    image = torch.cat([angle.cos(), angle.sin()], 1).expand(2, n, d) / math.sqrt(3)  # a tight frame, in both views
    counts = [2, 3, 2, 4, 3, 2, 2, 3] * 2
    constant = [torch.eye(d, dtype=torch.float64)[:1].expand(m, d) for m in counts]
    spread = [orthonormal_sets(m, u[None])[0] for m, u in zip(counts, image.flatten(0, 1), strict=True)]

    def loss(tokens, patch_gamma, student=image):
        packed, weights = masked(tokens)
        terms = {"eps": eps, "gamma": gamma, "patch_gamma": patch_gamma}
        return simdinov2_loss(student, student, packed, packed, weights, **terms)[0].item()

    minimum = theory.patch_loss_minimum(n, d, eps, gamma)
    assert minimum == theory.loss_minimum(n, d, eps, gamma)
    assert loss(constant, 0.0) == pytest.approx(minimum, abs=1e-10)
    assert loss(spread, 0.0) == pytest.approx(minimum, abs=1e-10)
    other = torch.tensor(sphere(RNG(0), n, d)).expand(2, n, d)
    assert loss(constant, 0.0, other) > minimum + 1e-3

    minimum = theory.patch_loss_minimum(n, d, eps, gamma, patch_gamma=0.2, masked=counts)
    missing = np.mean([theory.rate_maximum(m, d, eps) for m in counts]) + theory.rate_maximum(16, d, eps)
    missing -= 2 * theory.rate_collapsed(d, eps)
    assert loss(spread, 0.2) == pytest.approx(minimum, abs=1e-7)  # the loss counts tokens in float32
    assert loss(constant, 0.2) == pytest.approx(minimum + 0.2 * missing, abs=1e-7)


def test_C4_an_anchor_cuts_constant_patches_off_and_leaves_the_minimum():
    """Any anchor's cosines are reached in crops of P patches, and constant ones cost as said."""
    n, p, d, weight = 3, 4, 6, 0.7
    rng, image = RNG(0), torch.eye(d, dtype=torch.float64)[:3].expand(2, n, d)
    anchors = [torch.tensor(sphere(rng, p, d)) for _ in range(2 * n)]
    turned = [a @ torch.tensor(np.linalg.qr(rng.standard_normal((d, d)))[0]) for a in anchors]
    constant = [torch.tensor(sphere(rng, 1, d)).expand(p, d) for _ in anchors]

    def loss(tokens, anchor):
        packed, weights = masked(tokens)
        options = {"eps": 0.5, "gamma": 0.1, "gram_weight": weight}
        return simdinov2_loss(image, image, packed, packed, weights, masked(anchor)[0], **options)[0].item()

    minimum = theory.patch_loss_minimum(n, d, 0.5, 0.1)
    cost = np.mean([theory.constant_patches_cost((a @ a.T).numpy()) for a in anchors])
    assert cost > 0.5
    assert loss(turned, anchors) == pytest.approx(minimum, abs=1e-10)
    assert loss(constant, anchors) == pytest.approx(minimum + weight * cost, abs=1e-10)
    assert loss(constant, constant) == pytest.approx(minimum, abs=1e-10)  # an anchor that has collapsed itself
    frames = [torch.eye(d, dtype=torch.float64)[:p]] * (2 * n)
    assert loss(constant, frames) == pytest.approx(minimum + weight * (1 - 1 / p), abs=1e-10)


def test_C5_the_rate_is_the_information_of_noisy_labels():
    """From the definitions: I = h(y) − h(y | w), and its derivative in log α is half of the probe's error."""
    rng, n, d, eps, noise = RNG(0), 7, 4, 0.6, 1.3
    z = sphere(rng, n, d)
    prior = noise**2 * d / (n * eps**2)  # τ², with the ridge nε²/d = σ²/τ²
    of_labels = np.linalg.slogdet(noise**2 * np.eye(n) + prior * z @ z.T)[1]
    information = (of_labels - n * math.log(noise**2)) / 2
    spectrum = np.linalg.eigvalsh(z.T @ z / n)
    assert theory.probe_information(spectrum, d=d, eps=eps) == pytest.approx(information, abs=1e-10)
    assert information == pytest.approx(rate(z, eps), abs=1e-10)
    h = 1e-4
    up, down = (theory.probe_information(spectrum, d=d, eps=eps * math.exp(t)) for t in (-h / 2, h / 2))
    slope = (up - down) / (2 * h)  # in log α = log d − 2 log ε
    assert theory.probe_error(spectrum, d=d, eps=eps) == pytest.approx(2 * slope, rel=1e-6)


def test_C5_the_best_ridge_probe_has_that_error_and_variance():
    """The mean squared error matrix of ŵ = (ZᵀZ + rI)⁻¹Zᵀy from its definition: bias of w ~ N(0, τ²I), and noise."""
    rng, n, d, eps = RNG(1), 9, 4, 0.6
    z = sphere(rng, n, d)
    spectrum = np.linalg.eigvalsh(z.T @ z / n)
    prior = d / (n * eps**2)

    def of(ridge):
        shrink = np.linalg.inv(z.T @ z + ridge * np.eye(d))
        bias, response = shrink @ z.T @ z - np.eye(d), shrink @ z.T
        return prior * bias @ bias.T + response @ response.T  # of unit noise

    best = n * eps**2 / d
    error = [np.trace(z.T @ z @ of(ridge)) for ridge in (best, 0.8 * best, 1.25 * best)]
    assert error[0] == pytest.approx(theory.probe_error(spectrum, d=d, eps=eps), abs=1e-10)
    assert error[0] < min(error[1:])
    bound = theory.probe_variance_bound(d, eps)
    assert n * np.linalg.eigvalsh(of(best))[-1] == pytest.approx(1 / (spectrum[0] + eps**2 / d), abs=1e-10)
    assert n * np.linalg.eigvalsh(of(best))[-1] > bound
    z = np.concatenate([np.eye(d)] * 2 + [-np.eye(d)])
    n, prior, best = len(z), d / (len(z) * eps**2), len(z) * eps**2 / d
    assert n * np.linalg.eigvalsh(of(best))[-1] == pytest.approx(bound, abs=1e-10)


def test_C3_known_optima():
    simplex = np.eye(5) - 1 / 5
    simplex /= np.linalg.norm(simplex, axis=1, keepdims=True)
    cross = np.concatenate([np.eye(4), -np.eye(4)])
    for z, n in ((simplex, 5), (cross, 8)):
        distance = np.linalg.norm(z[:, None] - z, axis=-1)[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        uniformity = math.log(np.exp(-2 * distance**2).mean())
        assert uniformity == pytest.approx(theory.uniformity_minimum(n, 4), abs=1e-10)
        if n == 5:
            assert -np.log(distance.min(1)).mean() == pytest.approx(theory.koleo_minimum(5, 4), abs=1e-10)
    assert math.isnan(theory.uniformity_minimum(7, 4))
    assert math.isnan(theory.wmse_minimum(4, 4))
    assert math.isnan(theory.koleo_minimum(7, 4))
    assert np.linalg.norm(cross, "nuc") == pytest.approx(theory.nuclear_norm_maximum(8, 4), abs=1e-10)
    assert ((cross @ cross.T) ** 2).mean() == pytest.approx(theory.frame_potential_minimum(8, 4), abs=1e-10)
    moments = [np.mean(sphere(RNG(0), 200_000, 4)[:, 0] ** (2 * k)) for k in (1, 2, 3)]
    uniform = [theory.frame_potential_minimum(10**9, 4, order) for order in (2, 4, 6)]
    np.testing.assert_allclose(moments, uniform, rtol=0.02)
    with pytest.raises(ValueError, match="must be even, got 3"):
        theory.frame_potential_minimum(8, 4, 3)


DINO = {"student_temp": 0.1, "teacher_temp": 0.04}


def linear_steps(momentum, center, *, eta, rho, variances, steps):
    """Sizes over a descent of linear scores, (t, d + 1), in which the first direction, the mean, has this η."""
    options = DINO | {"teacher_momentum": momentum, "center_momentum": center, "rate": eta * 8 * 0.1, "steps": steps}
    return linear_scores(np.array(variances), np.array(rho), **options)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_C6_directions_of_a_linear_model_follow_the_map_and_grow_above_the_threshold(momentum):
    eta, rho, variances, steps = 0.01, [0.2, 0.5, 0.9], [0.5, 1.0, 2.0], 20
    sizes = linear_steps(momentum, 0.5, eta=eta, rho=rho, variances=variances, steps=steps)[:, 1:]
    for size, share, variance in zip(sizes.T, rho, variances, strict=True):
        step = theory.direction_map(eta * variance, share, teacher_momentum=momentum, **DINO)
        grown = np.linalg.matrix_power(step, steps) @ [1, 1]
        assert size[-1] / size[0] == pytest.approx(grown[0], rel=1e-4)
        grows = theory.sharpened_consistency(share, **DINO) > 1
        assert (np.linalg.eigvals(step).real.max() > 1) == grows == (size[-1] > size[-5])


@pytest.mark.parametrize(("momentum", "center"), [(0.0, 0.0), (0.0, 0.5), (0.0, 0.9), (0.9, 0.5), (0.99, 0.99)])
def test_C7_the_mean_of_a_linear_model_turns_unstable_at_the_critical_step(momentum, center):
    momenta = {"teacher_momentum": momentum, "center_momentum": center}
    eta = theory.critical_step(**momenta, **DINO)
    if momentum == 0:
        assert eta == pytest.approx((1 - center) / (1 / 0.04 - center / 0.1), rel=1e-6)
    for factor, grows in [(0.9, False), (1.1, True)]:
        steps = round(60 / (1 - max(momentum, center)))
        sizes = linear_steps(momentum, center, eta=factor * eta, rho=[0.1], variances=[0.1], steps=min(steps, 2000))
        first, *_, last = np.array_split(sizes[:, 0], 4)
        assert (last.max() > first.max()) == grows
        step = theory.mean_map(factor * eta, **momenta, **DINO)
        mean = np.linalg.matrix_power(step, 20) @ [1, 1, 0]
        assert sizes[20, 0] / sizes[0, 0] == pytest.approx(abs(mean[0]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_C7_sinkhorn_has_no_lag_and_is_stable_up_to_the_students_own_limit(momentum):
    eta = theory.critical_step(teacher_momentum=momentum, center_momentum=None, **DINO)
    assert eta == pytest.approx(2 * 0.1, rel=1e-6)
    for factor in (0.5, 0.9, 1.1):  # at small scores the mean follows (1 − η/τ_s)ᵗ, whatever the teacher does
        options = DINO | {"teacher_momentum": momentum, "center_momentum": None, "rate": factor * eta * 8 * 0.1}
        sizes = linear_scores(np.array([0.1]), np.array([0.1]), **options, steps=12, size=3e-4)[:, 0]
        np.testing.assert_allclose(sizes / sizes[0], abs(1 - factor * eta / 0.1) ** np.arange(13), rtol=0.02, atol=5e-3)


def test_C7_a_teacher_hides_the_lag_of_the_center_iff_it_is_slow_enough():
    """In continuous time; real roots alone would call 0.25 < 0.4 stable at every rate, and it is not."""
    assert theory.hidden_lag(0.996, 0.9) < 0.4 < theory.hidden_lag(0.99, 0.99)
    slow = theory.critical_step(teacher_momentum=0.996, center_momentum=0.9, **DINO)
    assert slow == pytest.approx(2 * 0.1, rel=0.02)  # the student's own limit
    assert theory.critical_step(teacher_momentum=0.99, center_momentum=0.99, **DINO) < 0.01 * slow
    for ratio, stable in [(0.95, True), (1.05, False)]:  # of ε₁ to where ε₁/(ε₁ + ε₂) = 0.4
        fast = 1e-3 * 0.4 / 0.6 * ratio
        assert (theory.hidden_lag(1 - fast, 1 - 1e-3) < 0.4) == stable
        radius = [
            np.abs(np.linalg.eigvals(theory.mean_map(eta, teacher_momentum=1 - fast, center_momentum=1 - 1e-3, **DINO)))
            for eta in np.geomspace(1e-6, 0.19, 40)
        ]
        assert (np.max(radius) <= 1) == stable
    assert theory.critical_step(teacher_momentum=0.9, center_momentum=1.0, **DINO) == 0


def test_C8_a_slow_teacher_makes_directions_grow_alike_whatever_their_variance():
    eta, rho = 1e-3 * np.array([1.0, 4.0]), 0.9
    slow = theory.direction_growth(100 * eta, rho, teacher_momentum=0.9999, **DINO)
    np.testing.assert_allclose(slow, 1e-4 * (0.9 / 0.4 - 1), rtol=2e-3)
    fast = theory.direction_growth(1e-5 * eta, rho, teacher_momentum=0.5, **DINO)
    np.testing.assert_allclose(fast, 1e-5 * eta * (0.9 / 0.04 - 10), rtol=1e-5)
    for e in 1e-2 * eta:
        largest = np.linalg.eigvals(theory.direction_map(e, rho, teacher_momentum=0.999, **DINO)).max()
        g = theory.direction_growth(e, rho, teacher_momentum=0.999, **DINO)
        assert g == pytest.approx(math.log(largest), rel=5e-3)
    sizes = linear_steps(0.99, 0.5, eta=0.02, rho=[0.9, 0.9], variances=[1.0, 4.0], steps=200)
    alone = linear_steps(0.0, 0.5, eta=1e-4, rho=[0.9, 0.9], variances=[1.0, 4.0], steps=200)
    (slow_low, slow_high), (low, high) = (np.log(x[-1, 1:] / x[-50, 1:]) for x in (sizes, alone))
    assert high / low == pytest.approx(4, rel=0.01)
    assert 1 < slow_high / slow_low < 1.2


# D ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "d", "eps"), [(64, 64, 0.05), (256, 64, 0.5), (16, 64, 0.5), (64, 256, 0.63), (70, 64, 3.0)]
)
def test_D1_isotropic_rate_matches_monte_carlo(n, d, eps):
    values = [rate(sphere(RNG(seed), n, d), eps) for seed in range(30)]
    assert theory.rate_isotropic(n, d, eps) == pytest.approx(np.mean(values), rel=0.005)
    assert np.mean(values) < theory.rate_maximum(n, d, eps)


@pytest.mark.parametrize(("n", "d", "eps"), [(64, 64, 0.22), (256, 64, 0.5), (16, 64, 0.5), (64, 256, 0.63)])
def test_D1_isotropic_gradient_matches_monte_carlo(n, d, eps):
    draws = [sphere(RNG(seed), n, d) for seed in range(30)]
    values = [theory.rate_gradient(np.linalg.eigvalsh(z.T @ z / n), n, eps) for z in draws]
    assert theory.isotropic_gradient(n, d, eps) == pytest.approx(np.mean(values), rel=0.01)
    assert np.mean(values) < theory.gradient_bound(n, d, eps)


def test_D1_isotropic_value_of_the_published_run():
    eps, gamma = math.sqrt(8 * 0.05), (256 + 512) / (256 * 512)  # 8 ranks of 64, covariance not gathered
    assert gamma * theory.rate_isotropic(64, 256, eps) == pytest.approx(0.4294, abs=0.0007)
    assert 0.4238 / (gamma * theory.rate_maximum(64, 256, eps)) == pytest.approx(0.943, abs=5e-4)


@pytest.mark.parametrize("n", [4, 16, 100])
def test_D1_sampled_rate_of_a_flat_spectrum_is_the_isotropic_one(n):
    flat = theory.sampled_rate(np.full(16, 1 / 16), n, d=16, eps=0.3)
    assert flat == pytest.approx(theory.rate_isotropic(n, 16, 0.3), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(8, 16), (16, 16), (64, 16), (32, 64), (64, 64)])
def test_D1_sampled_rate_is_the_mean_over_gaussian_samples_and_below_the_populations(n, d):
    """Asymptotic in d: what is left of the error falls as 1/d."""
    spectrum = 1 / np.arange(1, d + 1)
    spectrum /= spectrum.sum()
    rates = [rate(RNG(seed).standard_normal((n, d)) * np.sqrt(spectrum), 0.3) for seed in range(2000)]
    expected = theory.sampled_rate(spectrum, n, d=d, eps=0.3)
    assert expected == pytest.approx(np.mean(rates), rel=0.3 / d)
    assert expected < theory.sampled_rate(spectrum, 4 * n, d=d, eps=0.3)
    population = np.log1p(d / 0.3**2 * spectrum).sum() / 2
    assert theory.sampled_rate(spectrum, 10**7, d=d, eps=0.3) == pytest.approx(population, rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(64, 64), (200, 32), (32, 200)])
def test_D1_white_noise_has_its_ranks_in_closed_form(n, d):
    lam, r, y = theory.white_noise_spectrum(n, d), min(n, d), min(n, d) / max(n, d)
    assert lam.sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(lam) < 0).all()
    assert math.exp(-(lam * np.log(lam)).sum()) == pytest.approx(r * math.exp(-y / 2), rel=0.01)
    assert 1 / (lam**2).sum() == pytest.approx(1 / (1 / n + 1 / d), rel=0.01)
    expected = np.mean([np.linalg.svd(sphere(RNG(s), n, d), compute_uv=False) ** 2 / n for s in range(20)], axis=0)
    np.testing.assert_allclose(lam, expected, atol=0.02 * lam[0])
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        theory.white_noise_spectrum(0, 3)


def pairs(rng, n, d, cosines):
    """Unit vectors s, t (n, d) with these cosines, in isotropic directions."""
    s, t = sphere(rng, n, d), sphere(rng, n, d)
    t -= (s * t).sum(1, keepdims=True) * s
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    c = np.broadcast_to(cosines, n)[:, None]
    return s, c * s + np.sqrt(1 - c**2) * t


@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.6, 1.0])
def test_D2_the_mean_of_pairs_has_the_rate_of_unit_vectors_at_another_eps(cosine):
    s, t = pairs(RNG(0), 12, 7, cosine)
    mean = (s + t) / 2
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert rate(mean, 0.4) == pytest.approx(rate(unit, theory.eps_of_mean(0.4, cosine)), abs=1e-10)


@pytest.mark.parametrize(("n", "d"), [(64, 256), (128, 64)])
@pytest.mark.parametrize(("cosine", "every"), [(0.2, 2), (0.86, 8)])
def test_D2_isotropic_rate_of_the_mean_matches_monte_carlo_and_unequal_cosines_stay_below(n, d, cosine, every):
    eps = 0.63
    expected = theory.rate_isotropic(n, d, theory.eps_of_mean(eps, cosine))
    equal = [rate(sum(pairs(RNG(seed), n, d, cosine)) / 2, eps) for seed in range(30)]
    assert np.mean(equal) == pytest.approx(expected, rel=0.005)
    spread = np.where(np.arange(n) % every, 1, 1 - every * (1 - cosine))  # of the same mean
    unequal = [rate(sum(pairs(RNG(seed), n, d, spread)) / 2, eps) for seed in range(30)]
    assert np.mean(unequal) < np.mean(equal) - 3 * np.std(equal) / math.sqrt(30)


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5)])
def test_D2_the_cosine_that_a_rate_needs_is_the_one_of_the_optimum(n, d):
    for cosine in (-0.5, 0.0, 0.7, 1.0):
        ceiling = theory.rate_maximum(n, d, theory.eps_of_mean(0.3, cosine))
        assert theory.mean_cosine_bound(ceiling, n, d, 0.3) == pytest.approx(cosine, abs=1e-10)
    s, t = pairs(RNG(1), n, d, RNG(2).uniform(-0.5, 1, n))
    assert theory.mean_cosine_bound(rate((s + t) / 2, 0.3), n, d, 0.3) <= (s * t).sum(1).mean()


def test_D2_bad_cosines_are_named_and_arrays_are_taken():
    for cosine in (-1.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="cosine must lie in"):
            theory.eps_of_mean(0.5, cosine)
    np.testing.assert_allclose(theory.eps_of_mean(0.5, np.array([1.0, -0.5])), [0.5, 1.0])


@pytest.mark.parametrize("arguments", [(0, 4, 0.5), (4, 0, 0.5), (4, 4, 0.0), (4, 4, math.nan), (2.5, 4, 0.5)])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=r"^(n|d|eps) must be"):
        theory.rate_maximum(*arguments)


# E ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_of", ["student", "mean"])
def test_E1_gradient_of_self_distillation_is_half_the_joint_one_at_the_effective_gamma(rate_of):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).double()
    views = torch.randn(2, 12, 5, dtype=torch.float64)

    def gradient(gamma, *, joint):
        z = torch.nn.functional.normalize(network(views), dim=-1)
        options = {"eps": 0.5, "gamma": gamma, "rate_of": "student" if joint else rate_of}
        loss, _ = simdino_loss(z, z if joint else z.detach(), **options)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, network.parameters())])

    half = gradient(theory.effective_gamma(0.1, rate_of=rate_of), joint=True) / 2
    torch.testing.assert_close(gradient(0.1, joint=False), half, atol=1e-12, rtol=0)
    assert (gradient(0.1, joint=False) - gradient(0.15, joint=True) / 2).norm() > 1e-3
    with pytest.raises(ValueError, match="rate_of"):
        theory.effective_gamma(0.1, rate_of="teacher")


def test_D4_the_fourth_order_of_a_gaussian():
    """E⟨x, y⟩⁴ is the squared norm of the tensor E xᵢxⱼxₖxₗ, a sum of three pairings (Isserlis)."""
    rng = RNG(0)
    lam = rng.uniform(0.1, 1, 5)
    gamma = np.diag(lam)
    moment = sum(np.einsum(s, gamma, gamma) for s in ("ij,kl->ijkl", "ik,jl->ijkl", "il,jk->ijkl"))
    assert theory.gaussian_fourth_order(lam) == pytest.approx((moment**2).sum(), rel=1e-12)
    isotropic = theory.gaussian_fourth_order(np.full(64, 1 / 64))
    assert isotropic == pytest.approx(3 / (64 * 66) * (66 / 64) ** 2, rel=1e-12)
