"""Linear encoders against closed forms: water-filling, doubled γ, and logistic modes."""

import math

import numpy as np
import pytest
import torch

from analysis import theory
from analysis.experiments.linear_encoders import (
    batch_optimum,
    crossing_times,
    descent,
    graph_problem,
    linear_optimum,
    linear_problem,
    modes,
    optimal_powers,
    powers,
    train_encoder,
    view_covariances,
)

MU = np.array([0.03, 0.1, 0.2, 0.4, 0.7, 0.9])
GAMMA, ALPHA, D = 0.05, 20.0, 4


def filled(gamma, **kwargs):
    return np.sort(theory.water_filling(MU, gamma, ALPHA, D, **kwargs))[::-1][:D]


def test_problem_has_the_modes_it_was_asked_for():
    sigma, sigma_a = linear_problem(MU[::-1], seed=3)
    np.testing.assert_allclose(modes(sigma, sigma_a), MU, atol=1e-12)
    assert abs(sigma - np.diag(np.diag(sigma))).max() > 0.01


def test_encoders_of_batches_open_fewer_modes_than_those_of_all_inputs():
    """At γα/2 = 1 all six modes are open; in batches of 6 the settled α of B8 closes some, whatever the basis of W."""
    options = {"d": 6, "gamma": 0.02, "alpha": 100.0}
    found = powers(batch_optimum(MU, batch=6, **options), np.eye(6))
    settled = theory.settled_alpha(MU, 0.02, 100.0, 6, b=6)
    predicted, without = (np.sort(theory.water_filling(MU, 0.02, a, 6))[::-1] for a in (settled, 100.0))
    assert (without > 0).sum() == 6
    assert (predicted > 0).sum() < 6
    assert abs(found - predicted).max() < 0.03 * found.max()
    assert abs(found - predicted).max() < abs(found - without).max() / 2


def test_view_covariances_of_shared_and_own_parts():
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal((200_000, 2)), rng.standard_normal((2, 200_000, 2))
    mu = np.array([0.2, 0.7])
    views = torch.tensor(np.sqrt(1 - mu) * shared + np.sqrt(mu) * own) * torch.tensor([1.0, 3.0])
    sigma, sigma_a = view_covariances(views)
    np.testing.assert_allclose(sigma, np.diag([1, 9]), atol=0.06)
    np.testing.assert_allclose(modes(sigma, sigma_a), mu, atol=0.01)


@pytest.mark.parametrize("gamma", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("norm", [None, 1.0])
def test_B3_optimizer_fills_the_spectrum_like_water(gamma, norm):
    sigma, sigma_a = linear_problem(MU)
    w = linear_optimum(sigma, sigma_a, d=D, gamma=gamma, alpha=ALPHA, norm=norm)
    np.testing.assert_allclose(powers(w, sigma), filled(gamma, norm=norm), atol=1e-6)


def test_B3_free_functions_of_views_fill_the_spectrum_of_the_augmentation_graph_and_their_mean_most():
    rng = np.random.default_rng(0)
    views = rng.dirichlet(np.full(15, 0.3), 10)  # ten images, 15 views that they share
    sigma, sigma_a = graph_problem(views.T @ views / 10)
    mu = modes(sigma, sigma_a)
    assert mu[0] == pytest.approx(0, abs=1e-12)
    assert mu[-1] < 1 + 1e-9
    for gamma in (0.01, 0.05):
        w = linear_optimum(sigma, sigma_a, d=D, gamma=gamma, alpha=ALPHA, norm=1.0)
        filled = theory.water_filling(mu, gamma, ALPHA, D, norm=1.0)
        np.testing.assert_allclose(powers(w, sigma), filled[:D], atol=1e-6)
        mean = w @ np.diag(sigma)  # the columns of w are the features of the views
        assert mean @ mean == pytest.approx(filled.max(), abs=1e-6)
        assert filled.max() > 1 / D


@pytest.mark.parametrize(("momentum", "doubling"), [(None, 1), (0.0, 2), (0.9, 2)])
def test_B4_descent_rests_at_the_water_filling_of_its_teacher(momentum, doubling):
    sigma, sigma_a = linear_problem(MU)
    path = descent(sigma, sigma_a, d=D, gamma=GAMMA, alpha=ALPHA, momentum=momentum, lr=0.3, steps=8000, every=8000)
    assert path.shape == (2, D, 6)
    np.testing.assert_allclose(powers(path, sigma)[-1], filled(doubling * GAMMA), atol=1e-9)


@pytest.mark.parametrize("rate_of", ["student", "mean"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_E1_a_stop_gradient_doubles_gamma_only_if_the_rate_is_the_students(rate_of, momentum):
    sigma, sigma_a = linear_problem(MU)
    options = {"d": D, "gamma": GAMMA, "alpha": ALPHA, "lr": 0.3, "steps": 8000, "every": 8000}
    found = powers(descent(sigma, sigma_a, momentum=momentum, rate_of=rate_of, **options)[-1], sigma)
    np.testing.assert_allclose(found, filled(theory.effective_gamma(GAMMA, rate_of=rate_of)), atol=1e-9)
    rests = np.sort(theory.distillation_fixed_point(MU, GAMMA, ALPHA, D, rate_of=rate_of))[::-1][:D]
    np.testing.assert_allclose(found, rests, atol=1e-9)


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_B5_modes_cross_a_level_when_predicted(momentum):
    lr, mu, start = 0.02, np.array([0.05, 0.1, 0.2]), 1e-6
    options = {"d": 4, "gamma": GAMMA, "alpha": ALPHA, "lr": lr, "scale": math.sqrt(start), "orthogonal": True}
    path = descent(np.eye(3), np.diag(mu), momentum=momentum, steps=2000, **options)
    times = crossing_times((path**2).sum(1), 0.02, dt=lr)
    stop = momentum is not None
    expected = [theory.mode_time(start, 0.02, m, GAMMA, ALPHA, stop_gradient=stop) for m in mu]
    np.testing.assert_allclose(times, expected, rtol=0.02)  # Euler steps against the flow


def test_crossing_times_are_interpolated_and_missing_where_there_is_no_crossing():
    t = np.arange(10.0)
    times = crossing_times(np.stack([np.exp(t - 4.5), np.full(10, 0.1)], axis=1), 1.0, dt=0.5)
    np.testing.assert_allclose(times, [2.25, np.nan])


def test_B3_encoder_trained_on_batches_has_the_predicted_spectrum():
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor([0.05, 0.2, 0.9])
    parts = torch.randn(3, 20_000, 3, generator=generator)
    views = (1 - mu).sqrt() * parts[0] + mu.sqrt() * parts[1:]
    torch.manual_seed(0)
    encoder = torch.nn.Linear(3, 3, bias=False)
    train_encoder(encoder, views, gamma=0.05, eps=math.sqrt(3 / ALPHA), unit=False, steps=600)
    found = powers(encoder.weight.detach().double().numpy(), view_covariances(views)[0])
    expected = np.sort(theory.water_filling(mu.double().numpy(), 0.05, ALPHA, 3))[::-1]
    np.testing.assert_allclose(found, expected, atol=0.03 * expected[0])
    assert expected[2] == 0 < expected[1]


def test_B3_every_way_to_solve_a_grid_of_problems_agrees():
    problems = [(MU, {"d": D, "gamma": gamma, "alpha": ALPHA}) for gamma in (0.03, 0.3)]
    for (kind, found), norm in zip(optimal_powers(problems, seed=1).items(), (None, 1.0, None), strict=True):
        for p, gamma in zip(found, (0.03, 0.3), strict=True):
            np.testing.assert_allclose(p, filled(gamma, norm=norm), atol=1e-6, err_msg=kind)
