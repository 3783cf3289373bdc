"""The best last layer: stationary as B13 says, water-filling where rows have one norm, and the same from any start."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.linalg import eigh

from analysis import theory
from analysis.experiments.last_layer import (
    balancing_gamma,
    last_layer_features,
    last_layer_inputs,
    last_layer_modes,
    last_layer_optimum,
    last_layer_spectrum,
    last_layer_weight,
    whitened,
)
from analysis.experiments.linear_encoders import modes, view_covariances
from simdino.losses import coding_rate, simdino_loss


def random_inputs(n=150, m=6, views=2, seed=0):
    """Views that share more of some directions than of others, with a mean and heavy tails, in a random basis."""
    rng, mu = np.random.default_rng(seed), np.geomspace(0.05, 0.8, m)
    h = np.sqrt(1 - mu) * rng.standard_normal((n, m)) + np.sqrt(mu) * rng.standard_normal((views, n, m))
    h = np.concatenate(
        [h * np.exp(0.5 * rng.standard_normal((n, 1))) @ rng.standard_normal((m, m)), 0 * h[..., :1] + 1], 2
    )
    return torch.tensor(h)


def own_alpha(spectrum, alpha, batch):
    """α/(1 + δ) by plain iteration of δ = (1/b) Σ αλ/(1 + αλ/(1 + δ))."""
    delta = 0.0
    for _ in range(500 if batch else 0):
        delta = (alpha * spectrum / (1 + alpha * spectrum / (1 + delta))).sum() / batch
    return alpha / (1 + delta)


@pytest.mark.parametrize("batch", [None, 8])
@pytest.mark.parametrize("stop_gradient", [False, True])
def test_B13_optimum_is_stationary_and_fills_water_by_reweighted_samples(batch, stop_gradient):
    h, d, gamma, eps = random_inputs(), 4, 0.1, 0.5
    found = last_layer_optimum(h, d=d, gamma=gamma, eps=eps, batch=batch, stop_gradient=stop_gradient, tolerance=1e-8)
    joint = theory.effective_gamma(gamma) if stop_gradient else gamma
    z, norms = last_layer_features(found.weight, h), np.linalg.norm(h.numpy() @ found.weight.T, axis=-1, keepdims=True)
    x, n = h.numpy() / norms, h.shape[1]
    alpha = own_alpha(found.spectrum, d / eps**2, batch)
    covariance = np.einsum("vni,vnj->ij", z, z) / (2 * n)
    m = np.linalg.inv(np.eye(d) + alpha * covariance)
    c, q = (z[0] * z[1]).sum(-1), np.einsum("vni,ij,vnj->vn", z, m, z)
    nu = 2 * (c - 1) + joint * alpha * q
    sigma = np.einsum("vni,vnj->ij", x, x) / (2 * n)
    sigma_a = (x[0] - x[1]).T @ (x[0] - x[1]) / (2 * n)
    cost = sigma_a + np.einsum("vn,vni,vnj->ij", nu, x, x) / (4 * n)
    gain = joint / 2 * alpha * m @ found.weight @ sigma
    assert np.linalg.norm(found.weight @ cost - gain) < 1e-6 * np.linalg.norm(gain)
    assert found.residual < 1e-6
    options = {"eps": eps, "batch": batch, "stop_gradient": stop_gradient}
    assert balancing_gamma(found.weight, h, **options) == pytest.approx(gamma, rel=1e-4)
    predicted = theory.water_filling(eigh(cost, sigma, eigvals_only=True), joint, alpha, d)
    np.testing.assert_allclose(np.sort(predicted)[::-1][:d], found.spectrum, atol=1e-6)


def test_gradient_is_that_of_the_loss_of_training():
    h, gamma, eps = random_inputs(views=3), 0.1, 0.5
    found = last_layer_optimum(h, d=4, gamma=gamma, eps=eps, stop_gradient=True, tolerance=1e-8)
    w = torch.tensor(found.weight, requires_grad=True)
    z = torch.nn.functional.normalize(h @ w.T, dim=-1)
    alignment = simdino_loss(z, z.detach(), gamma=0.0, eps=eps)[0]
    rate = gamma * coding_rate(z.flatten(0, 1), eps=eps)
    gradients = [torch.autograd.grad(x, w, retain_graph=True)[0].numpy() for x in (alignment, rate)]
    white = np.linalg.pinv(whitened(h)[1])  # in whitened coordinates
    pull, push = (gradient @ white for gradient in gradients)
    assert np.linalg.norm(pull - push) < 1e-6 * np.linalg.norm(push)


def test_two_starts_agree_on_the_spectrum_and_a_spare_input_changes_nothing():
    h, options = random_inputs(), {"d": 4, "gamma": 0.1, "eps": 0.5, "batch": 8, "tolerance": 1e-8}
    first, second = (last_layer_optimum(h, **options, seed=seed) for seed in (0, 1))
    np.testing.assert_allclose(first.spectrum, second.spectrum, atol=1e-7)
    twice = torch.cat([h, h[..., :1]], dim=-1)  # a direction in which nothing varies
    np.testing.assert_allclose(last_layer_optimum(twice, **options).spectrum, first.spectrum, atol=1e-7)


def test_B3_rows_of_one_norm_give_plain_water_filling():
    signs = np.array(list(product([-1.0, 1.0], repeat=4)))  # white, and any diagonal W gives rows of one norm
    flips = [1, 2, 3, 6]  # of 12 views of each image: one coordinate alone is turned in each
    turned = np.ones((12, 4))
    turned[np.arange(12), np.repeat(range(4), flips)] = -1
    pairs = np.stack([np.repeat(signs, 12, 0), np.repeat(signs, 12, 0) * np.tile(turned, (16, 1))])
    mu, gamma, eps = 2 * np.array(flips) / 12, 0.5, 0.5
    found = last_layer_optimum(torch.tensor(pairs), d=4, gamma=gamma, eps=eps, tolerance=1e-9)
    expected = theory.water_filling(mu, gamma, 4 / eps**2, 4, norm=1)
    np.testing.assert_allclose(found.spectrum, np.sort(expected)[::-1], atol=1e-7)


def test_a_last_layer_that_sees_nothing_but_the_constant_collapses():
    h = torch.ones(2, 5, 3, dtype=torch.float64)
    found = last_layer_optimum(h, d=3, gamma=0.1, eps=0.5)
    np.testing.assert_allclose(found.spectrum, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(last_layer_spectrum(found.weight, h), found.spectrum)


def test_white_inputs_are_white_in_float32_with_small_directions():
    h = torch.tensor(np.random.default_rng(0).standard_normal((2, 400, 3)) * [1.0, 1e-2, 1e-4], dtype=torch.float32)
    x, white = whitened(h)
    np.testing.assert_allclose(x.reshape(-1, 3).T @ x.reshape(-1, 3) / 800, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(h.double().numpy() @ white.T, x, atol=1e-10)
    assert math.isclose(abs(np.linalg.det(white)), 1e6, rel_tol=0.2)


def test_modes_of_the_last_layer_are_those_of_what_it_gets():
    views = torch.randn(2, 300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bare = torch.nn.Linear(4, 2, bias=False).double()
    np.testing.assert_allclose(last_layer_modes(bare, views), modes(*view_covariances(views)), atol=1e-12)
    deep = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    hidden = torch.cat([deep[:2](views).detach(), torch.ones(2, 300, 1, dtype=torch.float64)], dim=2)
    np.testing.assert_array_equal(last_layer_inputs(deep, views), hidden)
    found = last_layer_modes(deep, views)
    np.testing.assert_allclose(found, modes(*view_covariances(hidden)), atol=1e-10)
    assert found[0] == pytest.approx(0, abs=1e-10)  # the constant
    features = torch.nn.functional.normalize(deep(views), dim=-1).detach()
    np.testing.assert_allclose(last_layer_features(last_layer_weight(deep), hidden), features, atol=1e-12)
