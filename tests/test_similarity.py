"""Similarities where they are known: rotated copies, independent noise, constructed angles, exact normal samples."""

import math

import pytest
import torch

from analysis.similarity import debiased_cka, principal_angles, procrustes_distance, sliced_normality
from tests.configurations import D, gaussian, rotation

# ---------------------------------------------------------------- debiased CKA


def naive_hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Song et al. 2012, equation 5, with explicit kernels."""
    n, one = len(x), torch.ones(len(x), dtype=D)
    k, m = (z @ z.T - torch.diag((z @ z.T).diag()) for z in (x, y))
    total = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (torch.trace(k @ m) + total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@pytest.mark.parametrize(("n", "d", "e"), [(30, 4, 6), (8, 20, 3), (4, 5, 5)])
def test_cka_equals_the_formula_with_explicit_kernels(n, d, e):
    x = gaussian(n, d)
    y = x[:, : min(d, e)] @ gaussian(min(d, e), e, seed=1) + gaussian(n, e, seed=2)
    expected = naive_hsic(x, y) / (naive_hsic(x, x) * naive_hsic(y, y)).sqrt()
    assert debiased_cka(x, y).item() == pytest.approx(expected.item())


def test_cka_of_copies_is_one_up_to_rotation_scale_and_translation():
    x, y = gaussian(40, 6), gaussian(40, 6, seed=1)
    assert debiased_cka(x, x).item() == pytest.approx(1)
    assert debiased_cka(x, 3 * x @ rotation(6) + 7).item() == pytest.approx(1)
    assert debiased_cka(2 * x @ rotation(6) - 3, y + 1e3).item() == pytest.approx(debiased_cka(x, y).item())
    assert debiased_cka(y, x).item() == pytest.approx(debiased_cka(x, y).item())


def test_cka_of_independent_features_is_zero_on_average_and_keeps_its_sign():
    values = torch.stack(
        [debiased_cka(gaussian(32, 64, seed=2 * s), gaussian(32, 64, seed=2 * s + 1)) for s in range(60)]
    )
    assert values.mean().item() == pytest.approx(0, abs=4 * values.std().item() / math.sqrt(60))
    assert (values < 0).any()
    x, y = gaussian(32, 64), gaussian(32, 64, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    biased = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert biased.item() > 0.5  # what the ordinary estimate makes of nothing


def test_cka_of_collapsed_features_is_zero():
    x = gaussian(20, 4)
    assert debiased_cka(torch.full((20, 3), 0.1), x).item() == 0
    assert debiased_cka(torch.zeros(20, 3), torch.zeros(20, 3)).item() == 0


# ---------------------------------------------------------------- principal angles


def test_angles_between_constructed_planes():
    for a, b in [(0.3, 1.2), (1e-9, 0.5), (0.0, math.pi / 2)]:
        x = torch.eye(4, dtype=D)[:2]
        y = torch.tensor([[math.cos(a), 0, math.sin(a), 0], [0, math.cos(b), 0, math.sin(b)]], dtype=D)
        q = rotation(4)
        angles = principal_angles(gaussian(5, 2) @ x @ q, gaussian(7, 2, seed=1) @ y @ q)
        torch.testing.assert_close(angles, torch.tensor([a, b], dtype=D), atol=1e-14, rtol=1e-6)


def test_angles_of_nested_orthogonal_and_general_subspaces():
    x = gaussian(30, 6)
    assert principal_angles(x[:, :3] @ torch.eye(6, dtype=D)[:3], x).abs().max().item() < 1e-7
    e = torch.eye(6, dtype=D)
    assert principal_angles(e[:2], e[2:]).tolist() == pytest.approx([math.pi / 2] * 2)
    u, v = (torch.linalg.qr(gaussian(6, r, seed=r)).Q for r in (2, 3))
    expected = torch.linalg.svdvals(u.T @ v).clamp(max=1).acos()
    torch.testing.assert_close(principal_angles(u.T, v.T), expected)
    torch.testing.assert_close(principal_angles(v.T, u.T), expected)


def test_rank_selects_the_leading_directions():
    q = rotation(5)
    x, y = (
        torch.diag(torch.tensor([9.0, 8, 1, 1, 1], dtype=D)) @ q,
        torch.diag(torch.tensor([9.0, 1, 8, 1, 1], dtype=D)) @ q,
    )
    assert principal_angles(x, y, rank=2).tolist() == pytest.approx([0, math.pi / 2], abs=1e-9)
    assert principal_angles(x, y, rank=(1, 3)).tolist() == pytest.approx([0], abs=1e-9)
    offset = 100 * torch.ones(5, dtype=D)
    assert principal_angles(x + offset, y + offset, rank=1).item() < 0.05
    with pytest.raises(ValueError, match="rank must be between 1 and the numerical rank of x, 5"):
        principal_angles(x, y, rank=6)
    with pytest.raises(ValueError, match="y is zero"):
        principal_angles(x, torch.ones(4, 5), center=True)
    with pytest.raises(ValueError, match="same dimension, got 5 and 4"):
        principal_angles(x, y[:, :4])


# ---------------------------------------------------------------- Procrustes


def test_procrustes_is_the_distance_after_the_best_rotation():
    x, y = gaussian(20, 4), gaussian(20, 4, seed=1)
    x, y = x / x.norm(), y / y.norm()
    u, _, v = torch.linalg.svd(y.T @ x)
    distance = procrustes_distance(x, y).item()
    assert distance == pytest.approx((x - y @ u @ v).norm().item())
    assert all((x - y @ rotation(4, seed)).norm().item() > distance for seed in range(20))


def test_procrustes_invariances_and_range():
    x, y, z = gaussian(20, 4), gaussian(20, 9, seed=1), gaussian(20, 60, seed=2)
    assert procrustes_distance(x, 5 * x @ rotation(4)).item() == pytest.approx(0, abs=1e-7)
    assert procrustes_distance(x, x + 3, center=True).item() == pytest.approx(0, abs=1e-7)
    assert procrustes_distance(x, x + 3).item() > 0.1
    orthogonal = procrustes_distance(torch.eye(6)[:, :3], torch.eye(6)[:, 3:])  # columns that share no sample
    assert orthogonal.item() == pytest.approx(math.sqrt(2))
    d = {p: procrustes_distance(*p).item() for p in [(x, y), (y, z), (x, z), (z, x)]}
    assert d[x, z] == pytest.approx(d[z, x])
    assert d[x, z] <= d[x, y] + d[y, z]
    padded = torch.cat((x, torch.zeros(20, 5, dtype=D)), 1)
    assert procrustes_distance(padded, y).item() == pytest.approx(d[x, y])
    assert procrustes_distance(torch.zeros(20, 3), x).item() == pytest.approx(math.sqrt(2))


# ---------------------------------------------------------------- sliced normality


def epps_pulley(p: torch.Tensor) -> torch.Tensor:
    """n ∫ |φ_n − φ|² w dt in closed form: all pairs of Gaussian kernels."""
    pairs = (-(p[:, None] - p).square() / 2).exp().mean()
    return len(p) * (pairs - 2 / math.sqrt(2) * (-p.square() / 4).exp().mean() + 1 / math.sqrt(3))


def test_normality_in_one_dimension_is_the_closed_form():
    for z in (gaussian(200, 1), 0.5 * gaussian(50, 1) + 1, torch.linspace(-3, 3, 20, dtype=D)[:, None]):
        assert sliced_normality(z, directions=3).item() == pytest.approx(epps_pulley(z[:, 0]).item(), rel=1e-8)


def test_normal_samples_have_the_expectation_of_the_null_at_any_n():
    for n in (10, 400):
        values = torch.stack([sliced_normality(gaussian(n, 8, seed=s), directions=16, seed=s) for s in range(100)])
        error = 4 * values.std().item() / 10
        assert values.mean().item() == pytest.approx(1 - 1 / math.sqrt(3), abs=error)


def test_normality_of_collapse_grows_with_n_and_departures_are_seen():
    value = 1 - math.sqrt(2) + 1 / math.sqrt(3)
    for n in (1, 100):
        assert sliced_normality(torch.zeros(n, 5)).item() == pytest.approx(n * value)
    z = gaussian(2000, 8)
    sphere = torch.nn.functional.normalize(z, dim=1)
    assert sliced_normality(z).item() < 1
    assert sliced_normality(sphere).item() > 100  # as it is, not rescaled
    assert sliced_normality(sphere * math.sqrt(8)).item() < 5  # close, though bounded in eight dimensions
    assert sliced_normality(z * torch.tensor([3.0] + [0.3] * 7)).item() > 10


def test_normality_depends_on_its_seed_alone():
    z = gaussian(50, 6)
    assert sliced_normality(z, seed=1) == sliced_normality(z, seed=1)
    assert sliced_normality(z, seed=1) != sliced_normality(z, seed=2)
    torch.manual_seed(0)
    first = torch.rand(())
    torch.manual_seed(0)
    sliced_normality(z)
    assert torch.rand(()) == first  # the global generator is left alone
    with pytest.raises(ValueError, match="directions"):
        sliced_normality(z, directions=0)


# ---------------------------------------------------------------- what all share

PAIRED = {"cka": debiased_cka, "procrustes": procrustes_distance}
ALL = PAIRED | {"angles": lambda x, y: principal_angles(x, y, rank=2), "normality": lambda x, y: sliced_normality(x)}


@pytest.mark.parametrize("name", ALL)
def test_half_precision_strides_numpy_and_nan(name):
    f, x, y = ALL[name], gaussian(24, 5), gaussian(24, 5, seed=1)
    value = f(x, y)
    assert value.dtype == D
    torch.testing.assert_close(f(torch.cat((x, x), 1)[:, :5], y), value)
    torch.testing.assert_close(f(x.numpy(), y.numpy()), value)
    torch.testing.assert_close(f(x.bfloat16(), y.bfloat16()), value, atol=0.05, rtol=0.05)
    x[2, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        f(x, y)


@pytest.mark.parametrize("name", PAIRED)
def test_rows_must_correspond_and_gradients_are_right(name):
    with pytest.raises(ValueError, match="rows of the same samples, got 9 and 8"):
        PAIRED[name](gaussian(9, 3), gaussian(8, 3))
    x, y = gaussian(7, 3).requires_grad_(), gaussian(7, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(PAIRED[name], (x, y))


def test_few_rows_are_refused_by_the_unbiased_estimate():
    with pytest.raises(ValueError, match="at least 4 rows"):
        debiased_cka(gaussian(3, 2), gaussian(3, 2))


def test_normality_gradient():
    assert torch.autograd.gradcheck(lambda z: sliced_normality(z, directions=4), (gaussian(6, 3).requires_grad_(),))
