"""The boundary of total collapse: shares of variance, where growth begins, and simulations against the closed form."""

import math

import numpy as np
import pytest
import torch

from analysis import theory
from analysis.experiments.collapse_boundary import growth_boundary, simulated_boundary, view_shares
from analysis.experiments.linear_encoders import modes, view_covariances


def test_shares_of_variance_are_those_of_held_out_images_without_the_mean_and_dead_directions():
    rng, mu = np.random.default_rng(0), np.array([0.2, 0.7])
    shared, own = rng.standard_normal((40_000, 2)), rng.standard_normal((2, 40_000, 2))
    views = np.sqrt(1 - mu) * shared + np.sqrt(mu) * own + [9.0, 0.0]
    views = torch.tensor(np.concatenate([views, views[..., :1]], axis=2))  # one direction twice: a dead one
    np.testing.assert_allclose(view_shares(views[:, :20_000], views[:, 20_000:]), mu, atol=0.02)
    noise = torch.tensor(rng.standard_normal((2, 2, 50, 40)))  # all shares are 1, on few images some seem smaller
    assert modes(*view_covariances(noise[0] - noise[0].mean((0, 1))))[0] < 0.5
    assert view_shares(noise[0], noise[1]).mean() == pytest.approx(1, abs=0.1)


def test_growth_boundary_of_exponentials_is_where_the_exponent_is_zero():
    chi, t = np.geomspace(0.1, 0.8, 7), np.linspace(0, 4, 40)
    growth, boundary = growth_boundary(chi, np.exp(np.log(chi / 0.3)[:, None] * t))
    np.testing.assert_allclose(growth, np.log(chi / 0.3) * (t[10] - t[0]), atol=1e-12)
    assert boundary == pytest.approx(0.3, rel=1e-9)
    assert math.isnan(growth_boundary(chi, np.exp(-chi[:, None] * t))[1])


@pytest.mark.parametrize(("teacher", "c"), [("none", 2), ("stop-gradient", 1), ("stop-gradient, rate of the mean", 2)])
def test_B6_collapse_boundary_is_the_collapse_number(teacher, c):
    mu, alpha = np.array([0.15, 0.5, 0.8]), np.array([20.0, 320.0, 5.0])
    gamma = simulated_boundary(mu, alpha, teacher)
    chi = [theory.collapse_number(4, math.sqrt(4 / a), g) for a, g in zip(alpha, gamma, strict=True)]
    np.testing.assert_allclose(chi, c * mu, rtol=0.02)
