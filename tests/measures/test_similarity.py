"""Similarities where they are known: rotated copies, independent noise, constructed angles and correlations."""

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import pdist

from analysis.measures.similarity import (
    debiased_cka,
    minibatch_cka,
    principal_angles,
    procrustes_distance,
    rsa,
    svcca,
)
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


def test_cka_of_batches_is_the_ratio_of_their_mean_statistics():
    x = gaussian(50, 6)
    y = x[:, :4] + gaussian(50, 4, seed=2)
    parts = list(zip(x.split([20, 14, 16]), y.split([20, 14, 16]), strict=True))
    sums = [sum(naive_hsic(*pair) for pair in pairs) for pairs in (parts, [(a, a) for a, _ in parts])]
    sums += [sum(naive_hsic(b, b) for _, b in parts)]
    assert minibatch_cka(iter(parts)).item() == pytest.approx((sums[0] / (sums[1] * sums[2]).sqrt()).item())
    assert minibatch_cka([(x, y)]).item() == pytest.approx(debiased_cka(x, y).item())
    with pytest.raises(ValueError, match="at least one batch"):
        minibatch_cka([])


def test_cka_of_batches_does_not_drift_with_their_size():
    x = gaussian(4096, 8)
    y = x + gaussian(4096, 8, seed=1)  # population: tr(ΣxyΣyx)/(‖Σx‖‖Σy‖) = 8/(√8·√32) = ½
    for size in (16, 256):
        assert minibatch_cka(zip(x.split(size), y.split(size), strict=True)).item() == pytest.approx(0.5, abs=0.03)


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


# ---------------------------------------------------------------- SVCCA


def orthonormal(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """k centered columns (n, k) that are orthonormal."""
    z = gaussian(n, k, seed=seed)
    return torch.linalg.qr(z - z.mean(0)).Q


def test_svcca_of_constructed_canonical_correlations():
    q, rho = orthonormal(40, 6), torch.tensor([1.0, 0.6, 0.0], dtype=D)
    y = q[:, :3] * rho + q[:, 3:] * (1 - rho**2).sqrt()
    for share in (0.99, 1.0):
        assert svcca(q[:, :3], y, share=share).item() == pytest.approx(1.6 / 3)
    assert svcca(q[:, :2], y, share=1.0).item() == pytest.approx(1.6 / 2)  # over the smaller number of directions


def test_svcca_keeps_the_share_of_the_variance_and_mean_cca_does_not_see_any():
    q = orthonormal(40, 6)
    x = q[:, :3] * torch.tensor([10.0, 10.0, 0.5], dtype=D)
    y = torch.cat((q[:, :2] * 10, q[:, 3:4] * 0.5), 1)  # the two agree but for a direction of 0.1 % of the variance
    assert svcca(x, y).item() == pytest.approx(1)
    assert svcca(x, y, share=1.0).item() == pytest.approx(2 / 3)
    assert svcca(x, x @ gaussian(3, 3, seed=1), share=1.0).item() == pytest.approx(1)  # any invertible map
    assert svcca(x, 2 * x @ rotation(3) + 5).item() == pytest.approx(1)
    assert svcca(y, x).item() == pytest.approx(svcca(x, y).item())


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_svcca_is_the_cca_of_leading_principal_components(share):
    x, y = (gaussian(40, 8, seed=s) * torch.arange(1, 9) ** -1.0 for s in (0, 1))
    bases = []
    for z in (x, y):
        u, s, _ = np.linalg.svd((z - z.mean(0)).numpy(), full_matrices=False)
        bases.append(u[:, : np.searchsorted(np.cumsum(s**2) / np.sum(s**2), share) + 1])
    assert bases[0].shape[1] < 8
    expected = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()
    assert svcca(x, y, share=share).item() == pytest.approx(expected)


def test_mean_cca_equals_an_independent_implementation():
    sklearn = pytest.importorskip("sklearn.cross_decomposition")
    x, y = gaussian(60, 3), gaussian(60, 4, seed=1)
    y[:, 0] += 2 * x[:, 1]
    fitted = sklearn.CCA(n_components=3, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
    a, b = fitted.transform(x.numpy(), y.numpy())
    expected = np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(3)])
    assert svcca(x, y, share=1.0).item() == pytest.approx(expected, abs=1e-6)


def test_svcca_of_independent_and_of_too_few_samples():
    values = [svcca(gaussian(200, 4, seed=2 * s), gaussian(200, 9, seed=2 * s + 1), share=1.0) ** 2 for s in range(40)]
    assert torch.stack(values).mean().item() <= 9 / 199  # mean² is below the mean of squares, r/(n − 1)
    assert svcca(gaussian(5, 8), gaussian(5, 8, seed=1), share=1.0).item() == pytest.approx(1)
    assert svcca(torch.ones(6, 3), gaussian(6, 3)).item() == 0
    with pytest.raises(ValueError, match="share must lie"):
        svcca(gaussian(5, 2), gaussian(5, 2), share=0.0)


# ---------------------------------------------------------------- RSA


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
@pytest.mark.parametrize("compare", ["spearman", "pearson"])
def test_rsa_equals_scipy(distance, compare):
    x = gaussian(30, 5)
    y = x @ gaussian(5, 7, seed=1) + gaussian(30, 7, seed=2)
    of_x, of_y = (pdist(z.numpy(), distance) for z in (x, y))
    expected = (stats.spearmanr if compare == "spearman" else stats.pearsonr)(of_x, of_y).statistic
    assert rsa(x, y, distance=distance, compare=compare).item() == pytest.approx(expected)


def test_rsa_averages_the_ranks_of_ties():
    x, y = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.0], [1], [3], [2]])
    of_x, of_y = (pdist(z.numpy()) for z in (x, y))  # 1 occurs three times
    assert rsa(x, y, distance="euclidean").item() == pytest.approx(stats.spearmanr(of_x, of_y).statistic)


def test_rsa_invariances_and_ends():
    x, y = gaussian(20, 5), gaussian(20, 5, seed=1)
    for distance in ("cosine", "euclidean"):
        value = rsa(x, y, distance=distance).item()
        assert rsa(3 * x @ rotation(5), y, distance=distance).item() == pytest.approx(value)
        assert rsa(x.flip(0), y.flip(0), distance=distance).item() == pytest.approx(value)
    assert rsa(x, x).item() == pytest.approx(1)
    assert rsa(x + 5, y, distance="euclidean").item() == pytest.approx(rsa(x, y, distance="euclidean").item())
    line = torch.arange(5, dtype=D)[:, None]
    assert rsa(torch.eye(5), line, distance="euclidean").item() == 0  # a simplex has one distance
    with pytest.raises(ValueError, match="y has a constant row"):
        rsa(x, torch.ones(20, 3))
    with pytest.raises(ValueError, match="x has a zero row"):
        rsa(torch.zeros(20, 3), y, distance="cosine")


def test_rsa_refuses_an_unknown_distance_and_comparison_without_annotations():
    x, plain = gaussian(6, 3), inspect.unwrap(rsa)  # as it is outside of tests, where annotations are not checked
    with pytest.raises(ValueError, match='distance must be "correlation", "cosine" or "euclidean", got'):
        plain(x, x, distance="manhattan")
    with pytest.raises(ValueError, match='compare must be "spearman" or "pearson", got'):
        plain(x, x, compare="kendall")


# ---------------------------------------------------------------- what all share

PAIRED = {
    "cka": debiased_cka,
    "procrustes": procrustes_distance,
    "svcca": lambda x, y: svcca(x, y, share=0.9),
    "rsa": partial(rsa, compare="pearson"),
}
ALL = PAIRED | {"angles": lambda x, y: principal_angles(x, y, rank=2), "ranked rsa": rsa}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_ties_are_ties_in_every_rotation(distance, dtype):
    """Ten collapsed classes, twice: pairs have two distances, up to rounding."""
    classes = torch.eye(10, dtype=torch.float64).repeat_interleave(10, 0)
    x, y = ((classes @ rotation(10, seed=seed)).to(dtype) for seed in (1, 2))
    assert rsa(x, y, distance=distance).item() == pytest.approx(1, abs=1e-12)
    ray = torch.ones(40, 3, dtype=dtype) @ rotation(3, seed=3).to(dtype)
    assert rsa(ray, gaussian(40, 3).to(dtype), distance=distance) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [16, 40])
def test_cka_of_orthogonal_rows_has_no_variance_to_resolve(n, dtype):
    x, y = (rotation(n, seed=seed).to(dtype) for seed in (1, 2))
    assert debiased_cka(x, y) == 0


def test_a_small_direction_of_many_samples_is_a_direction():
    a, b, c = (gaussian(20_000, 1, seed=seed) for seed in (1, 2, 3))
    x = torch.cat((a, b), 1)
    large, small = (svcca(x, torch.cat((a, scale * c), 1), share=1).item() for scale in (1, 2e-3))
    assert small == pytest.approx(large, abs=1e-9)
    assert len(principal_angles(torch.cat((a, 2e-3 * c), 1), x, rank=2)) == 2
