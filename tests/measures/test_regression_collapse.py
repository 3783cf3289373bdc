"""Regression collapse: exact subspaces, isotropic features, the closed form of γ against a search."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from analysis.measures.classes import nrc1, nrc2, nrc3
from tests.configurations import D, gaussian, rotation


def test_features_in_the_span_have_nothing_outside():
    weight = gaussian(2, 6)
    z = gaussian(30, 2, seed=1) @ weight
    assert nrc1(z, targets=2).item() == pytest.approx(0, abs=1e-14)
    assert nrc1(z, targets=1).item() > 0.01
    assert nrc2(z, weight=weight).item() == pytest.approx(0, abs=1e-14)
    assert nrc2(z, weight=torch.linalg.svd(weight).Vh[2:4]).item() == pytest.approx(1)  # orthogonal weights


def test_isotropic_features_have_one_minus_t_over_d():
    z = torch.eye(6, dtype=D).repeat(5, 1) * torch.arange(1, 7).repeat(5)[:, None]
    assert nrc1(z, targets=2).item() == pytest.approx(4 / 6, abs=0.05)
    values = [nrc2(gaussian(50, 6, seed=s), weight=gaussian(2, 6, seed=100 + s)).item() for s in range(50)]
    assert sum(values) / 50 == pytest.approx(4 / 6, rel=0.02)


@pytest.mark.parametrize("center", [False, True])
def test_they_are_the_mean_squared_residuals_of_unit_rows(center):
    z, weight = gaussian(30, 5) + 1, gaussian(2, 5, seed=1)
    unit = torch.nn.functional.normalize(z - z.mean(0) if center else z, dim=1)
    directions = torch.linalg.svd(z - z.mean(0)).Vh[:3]
    expected = (unit - unit @ directions.T @ directions).square().sum(1).mean()
    assert nrc1(z, targets=3, center=center).item() == pytest.approx(expected.item())
    projection = torch.linalg.pinv(weight) @ weight
    expected = (unit - unit @ projection).square().sum(1).mean()
    assert nrc2(z, weight=weight, center=center).item() == pytest.approx(expected.item())


def test_rotation_scale_and_order_do_not_matter():
    z, weight, q = gaussian(30, 5) + 1, gaussian(2, 5, seed=1), rotation(5)
    assert nrc1(3 * z.flip(0) @ q, targets=2).item() == pytest.approx(nrc1(z, targets=2).item())
    assert nrc2(3 * z @ q, weight=weight @ q).item() == pytest.approx(nrc2(z, weight=weight).item())
    assert nrc2(z, weight=gaussian(2, 2, seed=3) @ weight).item() == pytest.approx(nrc2(z, weight=weight).item())


def with_root(root: torch.Tensor) -> torch.Tensor:
    """Targets (n, t) whose covariance has exactly this square root."""
    t = len(root)
    axes = torch.eye(t, dtype=D) * math.sqrt(t)
    return torch.cat((axes, -axes)) @ root + 5


def symmetric(*eigenvalues: float, seed: int = 4) -> torch.Tensor:
    q = rotation(len(eigenvalues), seed)
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=D)) @ q.T


@pytest.mark.parametrize("gamma_root", [0.0, 0.3, 1.0])
def test_weights_of_the_predicted_form_have_nrc3_zero(gamma_root):
    root = symmetric(3.0, 2.0, 1.0)
    gram = root - gamma_root * torch.eye(3, dtype=D)
    lam, v = torch.linalg.eigh(gram)
    weight = v @ torch.diag(lam.clamp(min=0).sqrt()) @ torch.eye(3, 7, dtype=D)
    assert nrc3(5 * weight @ rotation(7), targets=with_root(root)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_gamma_in_closed_form_is_the_best_of_a_search(seed):
    weight, root = gaussian(3, 5, seed=seed), symmetric(2.0, 1.5, 0.4 + 0.1 * seed, seed=seed)
    gram = weight @ weight.T / (weight @ weight.T).norm()

    def distance(s):
        a = root - s * torch.eye(3, dtype=D)
        return (gram - a / a.norm()).square().sum().item()

    bound = 0.4 + 0.1 * seed
    best = min([minimize_scalar(distance, bounds=(0, bound), method="bounded").fun, distance(0.0), distance(bound)])
    assert nrc3(weight, targets=with_root(root)).item() == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_uncorrelated_targets_want_orthogonal_weights():
    targets = with_root(torch.eye(3, dtype=D))
    assert nrc3(4 * torch.eye(3, 6), targets=targets).item() == pytest.approx(0, abs=1e-12)
    parallel = torch.ones(3, 4)  # cos(11ᵀ, I) = 1/√3
    assert nrc3(parallel, targets=targets).item() == pytest.approx(2 - 2 / math.sqrt(3))


def test_gradients_and_types():
    z, weight, targets = (gaussian(*s, seed=i) for i, s in enumerate([(9, 4), (2, 4), (9, 2)]))
    a, b, c = (x.clone().requires_grad_() for x in (z, weight, targets))
    assert torch.autograd.gradcheck(lambda a: nrc1(a, targets=2), (a,))
    assert torch.autograd.gradcheck(lambda a, b: nrc2(a, weight=b), (a, b))
    assert torch.autograd.gradcheck(lambda b, c: nrc3(b, targets=c), (b, c))
    assert nrc1(z.bfloat16(), targets=2).item() == pytest.approx(nrc1(z, targets=2).item(), abs=0.02)
    assert nrc2(z.numpy(), weight=weight.numpy()).dtype == D


def test_bad_input_is_named():
    z = gaussian(9, 4)
    for f, message in [
        (lambda: nrc1(z, targets=0), "targets must lie between 1 and d=4"),
        (lambda: nrc1(z, targets=5), "targets must lie between 1 and d=4"),
        (lambda: nrc1(torch.zeros(9, 4), targets=1), "zero row"),
        (lambda: nrc1(torch.ones(9, 4), targets=1, center=True), "zero row"),
        (lambda: nrc2(z, weight=gaussian(2, 3)), "weight must have d=4 columns"),
        (lambda: nrc2(z, weight=torch.ones(2, 4)), "weight must have full rank"),
        (lambda: nrc2(z, weight=gaussian(5, 4)), "weight must have full rank"),
        (lambda: nrc3(gaussian(2, 4), targets=gaussian(9, 3)), "targets needs 2 columns or more"),
        (lambda: nrc3(gaussian(1, 4), targets=gaussian(9, 1)), "targets needs 2 columns or more"),
        (lambda: nrc3(gaussian(2, 4), targets=torch.ones(9, 2)), "targets must vary"),
        (lambda: nrc3(torch.zeros(2, 4), targets=gaussian(9, 2)), "weight must not be zero"),
        (lambda: nrc3(gaussian(2, 4), targets=gaussian(9, 2) * torch.nan), "targets contains NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            f()


@pytest.mark.parametrize("seed", range(5))
def test_directions_in_which_nothing_varies_do_not_count(seed):
    turn = torch.linalg.qr(gaussian(6, 6, seed=seed)).Q
    line = torch.zeros(20, 6, dtype=torch.float64)
    line[:, 0], line[:, 3] = gaussian(20, 1, seed=9)[:, 0], 5
    expected = (25 / (line[:, 0].square() + 25)).mean().item()  # what is not along the line
    assert nrc1(line @ turn, targets=2).item() == pytest.approx(expected)
    assert nrc1(turn[:1].repeat(6, 1), targets=1).item() == pytest.approx(1)


def test_white_targets_leave_one_form():
    """Σ ∝ I: the form at the other end of γ is zero but for rounding, and no candidate."""
    w = gaussian(200, 5, seed=5)
    w = w - w.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(w.mT @ w / 200), w.mT, upper=False).mT
    weight = gaussian(5, 1, seed=6) @ gaussian(1, 8, seed=7) + 0.01 * gaussian(5, 8, seed=8)
    gram = weight @ weight.mT
    expected = 2 - 2 * (gram.trace() / (5**0.5 * torch.linalg.matrix_norm(gram))).item()
    for seed in range(8):
        turned = white @ torch.linalg.qr(gaussian(5, 5, seed=seed)).Q
        assert nrc3(weight, targets=turned).item() == pytest.approx(expected, abs=1e-6)
