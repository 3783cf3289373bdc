"""Neural collapse measures on classes whose means and covariances are exact, against explicit matrices."""

import inspect
import math
from functools import partial

import pytest
import torch

from analysis.measures.classes import (
    cdnv,
    class_effective_rank,
    class_overlap,
    nc1,
    nc2,
    nc3,
    nc4,
    nc5,
    simplex_distance,
)
from analysis.measures.moments import Moments
from tests.configurations import (
    D,
    gaussian,
    mercedes,
    rotation,
    simplex,
    sphere,
)


def classes(means: torch.Tensor, sigma: float, *, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples with exactly these class means and covariance σ²I in every class."""
    k, d = means.shape
    axes = torch.eye(d, dtype=D) * math.sqrt(d) * sigma
    offsets = torch.cat((axes, -axes)).repeat(copies, 1)
    return (means[:, None] + offsets).reshape(-1, d), torch.arange(k).repeat_interleave(len(offsets))


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(60) % 4
    return gaussian(4, 6, seed=seed)[labels] + 0.5 * gaussian(60, 6, seed=seed + 1), labels


def test_nc1_of_a_simplex_with_isotropic_classes():
    # Σ_B of k unit simplex means has the eigenvalue 1/(k − 1), k − 1 times: tr(Σ_W Σ_B⁺)/k = σ²(k − 1)²/k
    for k, sigma in [(3, 0.1), (5, 0.7)]:
        assert nc1(*classes(simplex(k, 6), sigma)).item() == pytest.approx(sigma**2 * (k - 1) ** 2 / k)


def test_traces_and_pairs_of_a_simplex_with_isotropic_classes():
    # tr Σ_W = dσ², tr Σ_B = 1 and ‖μ_k − μ_l‖² = 2k/(k − 1)
    for k, d, sigma in [(3, 6, 0.1), (5, 7, 0.7)]:
        z, labels = classes(3 * simplex(k, d) + 2, 3 * sigma)
        assert nc1(z, labels, form="traces").item() == pytest.approx(d * sigma**2)
        assert cdnv(z, labels).item() == pytest.approx(d * sigma**2 * (k - 1) / (2 * k))


def test_cdnv_is_the_mean_over_pairs_of_classes_of_unequal_spread():
    z, labels = data()
    z = z * (1 + labels[:, None])
    groups = [z[labels == k] for k in range(4)]
    variance = [(g - g.mean(0)).square().sum(1).mean() for g in groups]
    pairs = [(k, m) for k in range(4) for m in range(4) if k != m]
    terms = [
        (variance[k] + variance[m]) / (2 * (groups[k].mean(0) - groups[m].mean(0)).square().sum()) for k, m in pairs
    ]
    assert cdnv(z, labels).item() == pytest.approx(torch.stack(terms).mean().item())


def test_two_classes_on_one_mean_are_infinitely_near():
    means = torch.tensor([[1.0, 0.1], [1.0, 0.1], [0, 3]], dtype=D)
    assert cdnv(*classes(means, 0.3)).item() == math.inf
    assert math.isfinite(nc1(*classes(means, 0.3)).item())


def test_nc1_equals_the_pseudo_inverse_of_explicit_matrices():
    z, labels = data()
    means = torch.stack([z[labels == k].mean(0) for k in range(4)])
    centered = means - means.mean(0)
    within = sum(torch.cov(z[labels == k].T, correction=0) for k in range(4)) / 4
    expected = torch.trace(within @ torch.linalg.pinv(centered.T @ centered / 4, rtol=1e-9)) / 4
    assert nc1(z, labels).item() == pytest.approx(expected.item())


def test_nc1_of_single_precision_means_does_not_invert_rounding_errors():
    k, d = 10, 64
    z, labels = classes(simplex(k, d), 0.1)
    q = torch.linalg.qr(gaussian(d, d)).Q
    assert nc1((100 * z @ q + 30).float(), labels).item() == pytest.approx(0.01 * (k - 1) ** 2 / k, rel=1e-4)


def test_dependent_class_means_leave_out_what_they_do_not_span():
    means = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=D)  # three classes on a line: Σ_B = 2/3
    assert nc1(*classes(means, 0.3)).item() == pytest.approx(0.09 / (2 / 3) / 3)


def test_perfect_collapse_is_zero_and_total_collapse_is_defined():
    means = simplex(4, 5)
    z, labels = means.repeat_interleave(3, 0), torch.arange(4).repeat_interleave(3)
    assert nc1(z, labels).item() == pytest.approx(0, abs=1e-20)
    assert nc1(z, labels, form="traces").item() == pytest.approx(0, abs=1e-20)
    assert cdnv(z, labels).item() == pytest.approx(0, abs=1e-20)
    assert nc2(z, labels).item() == pytest.approx(0, abs=1e-7)
    assert nc3(z, labels, weight=means).item() == pytest.approx(0, abs=1e-7)
    assert nc4(z, labels, weight=means).item() == 0
    point = torch.full((12, 5), 0.1)
    assert nc1(point, labels).item() == nc1(point, labels, form="traces").item() == math.inf
    assert cdnv(point, labels).item() == math.inf
    assert nc2(point, labels).item() == pytest.approx(math.sqrt(2))
    assert nc3(point, labels, weight=means).item() == pytest.approx(math.sqrt(2))


def test_nc2_depends_on_the_means_only_and_centers_them():
    z, labels = classes(5 + 2 * simplex(4, 6), 0.8)
    assert nc2(z, labels).item() == pytest.approx(0, abs=1e-7)
    line = torch.tensor([[-1.0, 0], [0, 0], [1, 0]], dtype=D)
    # Gram diag(1, 0, 1) with −1 off-diagonal: ⟨G, E⟩ = 2, ‖G‖ = 2, ‖E‖ = √2
    assert nc2(*classes(line, 0.1)).item() == pytest.approx(math.sqrt(2 - 2 / math.sqrt(2)))


def test_nc3_of_opposite_and_of_scaled_classifiers():
    z, labels = data()
    means = torch.stack([z[labels == k].mean(0) for k in range(4)])
    centered = means - means.mean(0)
    assert nc3(z, labels, weight=7 * centered).item() == pytest.approx(0, abs=1e-7)
    assert nc3(z, labels, weight=-centered).item() == pytest.approx(2)
    weight = gaussian(4, 6, seed=9)
    naive = (weight / weight.norm() - centered / centered.norm()).norm()
    assert nc3(z, labels, weight=weight).item() == pytest.approx(naive.item())


def test_nc4_counts_disagreements_and_the_linear_form_of_the_nearest_mean_has_none():
    z, labels = data()
    means = torch.stack([z[labels == k].mean(0) for k in range(4)])
    assert nc4(z, labels, weight=means, bias=-means.square().sum(1) / 2).item() == 0
    weight = gaussian(4, 6, seed=9)
    naive = ((z @ weight.T).argmax(1) != torch.cdist(z, means).argmin(1)).double().mean()
    assert nc4(z, labels, weight=weight).item() == pytest.approx(naive.item())
    assert nc4(z + 1e4, labels, weight=weight, bias=-(weight.sum(1) * 1e4)).item() == pytest.approx(naive.item())


def test_nc5_of_orthogonal_aligned_and_slanted_data_from_outside():
    z, labels = classes(torch.eye(2, 4, dtype=D), 0.3)
    for direction, expected in [
        ((0, 0, 1, 0), 0),
        ((1, 1, 0, 0), math.sqrt(0.5)),
        ((-1, 0, 0, 0), 0.5),
        ((0, 0, 0, 0), 0),
    ]:
        outside = 7 * torch.tensor(direction, dtype=D) + torch.cat((torch.eye(4), -torch.eye(4)))
        assert nc5(z, labels, outside=outside).item() == pytest.approx(expected, abs=1e-12)
        assert nc5(z, labels, outside=Moments.of(outside)).item() == pytest.approx(expected, abs=1e-12)
    q = rotation(4)
    slanted = gaussian(9, 4) + 1
    assert nc5(3 * z @ q, labels, outside=slanted @ q).item() == pytest.approx(nc5(z, labels, outside=slanted).item())


def test_class_overlap_of_constructed_subspaces():
    """Three classes in ℝ⁶: two orthogonal planes, and the plane between them at 45° to both."""
    planes = torch.eye(6, dtype=D).reshape(3, 2, 6)[:2]
    planes = torch.cat((planes, (planes[:1] + planes[1:]) / math.sqrt(2)))
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=D).repeat(500, 1)
    z, labels = (corners @ planes).flatten(0, 1), torch.tensor([4, 7, 9]).repeat_interleave(2000)
    out = class_overlap(z, labels)
    expected = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 1]], dtype=D)  # cos² 45°
    torch.testing.assert_close(out.pairs, expected, atol=1e-3, rtol=0)
    assert out.mean.item() == pytest.approx(1 / 3, abs=1e-3)
    assert out.worst.item() == pytest.approx(0.5, abs=1e-3)
    assert 9 in out.worst_classes.tolist()
    cosines = z[labels == 4] @ z[labels == 9].T
    assert out.pairs[0, 2].item() == pytest.approx(cosines.square().mean().item() / 0.5, abs=1e-3)


def test_class_overlap_of_few_samples_is_not_taken_for_orthogonality():
    """Isotropic classes of 20 in 64 dimensions overlap entirely; the plain cosine reads (1/d)/(1/d + 1/n) = 0.24."""
    labels = torch.arange(40) % 2
    values = torch.stack([class_overlap(sphere(40, 64, seed=s), labels).mean for s in range(100)])
    assert values.median().item() == pytest.approx(1, abs=0.15)


def test_class_overlap_norm_is_over_distinct_rows():
    z, labels = data()
    groups = [z[labels == k] for k in range(4)]
    norms = [((g @ g.T).square().sum() - g.square().sum(1).square().sum()) / (len(g) * (len(g) - 1)) for g in groups]
    naive = (groups[0] @ groups[1].T).square().mean() / (norms[0] * norms[1]).sqrt()
    out = class_overlap(z, labels)
    assert out.pairs[0, 1].item() == pytest.approx(naive.item())
    pairs = out.pairs.masked_fill(torch.eye(4, dtype=torch.bool), -1)
    k, m = out.worst_classes.tolist()
    assert pairs.max().item() == out.worst.item() == pairs[k, m].item()
    assert torch.autograd.gradcheck(lambda z: class_overlap(z, labels).mean, (z.requires_grad_(),))


def test_class_overlap_of_collapse():
    labels = torch.arange(12) % 3
    point = class_overlap(torch.full((12, 4), 0.1), labels)
    assert point.mean.item() == pytest.approx(1)
    assert class_overlap(torch.zeros(12, 4), labels).worst.item() == 0
    corners = class_overlap(torch.eye(3)[labels], labels)  # perfect neural collapse onto orthogonal means
    assert corners.worst.item() == pytest.approx(0, abs=1e-12)


def test_classes_count_alike_whatever_their_size():
    z, labels = classes(simplex(3, 4), 0.2)
    more, more_labels = classes(simplex(3, 4), 0.2, copies=9)
    first = more_labels == 0
    z, labels = torch.cat((z, more[first])), torch.cat((labels, more_labels[first]))
    assert nc1(z, labels).item() == pytest.approx(0.04 * 4 / 3)
    assert nc2(z, labels).item() == pytest.approx(0, abs=1e-7)


def test_moments_with_classes_give_what_features_give():
    z, labels = data()
    moments = Moments(6, classes=5).update(z[:25], labels[:25]).update(z[25:], labels[25:])  # class 4 stays empty
    assert nc1(moments).item() == pytest.approx(nc1(z, labels).item())
    assert nc2(moments).item() == pytest.approx(nc2(z, labels).item())
    assert nc3(moments, weight=gaussian(4, 6)).item() == pytest.approx(nc3(z, labels, weight=gaussian(4, 6)).item())
    torch.testing.assert_close(class_effective_rank(moments).ranks, class_effective_rank(z, labels).ranks)
    torch.testing.assert_close(class_overlap(moments).pairs, class_overlap(z, labels).pairs)
    assert cdnv(moments).item() == pytest.approx(cdnv(z, labels).item())
    assert nc5(moments, outside=z + 1).item() == pytest.approx(nc5(z, labels, outside=z + 1).item())


FUNCTIONS = [nc1, nc2, cdnv, partial(nc1, form="traces")]


@pytest.mark.parametrize("f", FUNCTIONS)
def test_rotation_translation_scale_order_and_missing_labels_do_not_matter(f):
    z, labels = data()
    q = torch.linalg.qr(gaussian(6, 6, seed=3)).Q
    value = f(z, labels).item()
    assert f(3 * z @ q + 2, labels).item() == pytest.approx(value)
    assert f(z.flip(0), labels.flip(0)).item() == pytest.approx(value)
    assert f(z, 10 * labels + 3).item() == pytest.approx(value)


@pytest.mark.parametrize("f", FUNCTIONS)
def test_gradients_and_half_precision(f):
    z, labels = data()
    assert torch.autograd.gradcheck(lambda z: f(z, labels), (z.requires_grad_(),))
    z = z.detach()
    assert f(z.bfloat16(), labels).item() == pytest.approx(f(z, labels).item(), rel=0.02)
    assert f(z.numpy(), labels.numpy()).dtype == D


def test_the_worst_class_is_named():
    z = torch.cat((gaussian(50, 4), gaussian(50, 1, seed=1) * torch.ones(50, 4, dtype=D), torch.eye(4, dtype=D)))
    labels = torch.tensor([2] * 50 + [5] * 50 + [7] * 4)
    out = class_effective_rank(z, labels)
    assert out.worst_class.item() == 5
    assert out.worst.item() == pytest.approx(1)
    assert out.ranks.tolist()[1:] == pytest.approx([1, 4])
    assert class_effective_rank(torch.ones(6, 3), torch.arange(6) % 2, center=True).worst.item() == 0


def test_bad_input_is_named():
    z, labels = data()
    nan = z.clone()
    nan[3, 2] = torch.nan
    for f, args, options, message in [
        (nc1, (z,), {}, "features need labels"),
        (nc1, (z, labels[:-1]), {}, "labels must have shape"),
        (nc1, (z, labels - 1), {}, "negative"),
        (nc1, (z, torch.zeros_like(labels)), {}, "at least two classes"),
        (nc1, (nan, labels), {}, "NaN"),
        (nc1, (Moments.of(z),), {}, "Moments must have classes"),
        (nc2, (Moments.of(z, labels), labels), {}, "come without labels"),
        (nc3, (z, labels), {"weight": z[:3]}, "weight must have shape"),
        (nc4, (z, labels), {"weight": z[:5]}, "weight must have shape"),
        (nc4, (z, labels), {"weight": z[:4], "bias": z[0]}, "bias must have shape"),
        (inspect.unwrap(nc1), (z, labels), {"form": "determinants"}, 'form must be "pseudo_inverse" or "traces", got'),
        (cdnv, (z, torch.zeros_like(labels)), {}, "at least two classes"),
        (nc5, (z, labels), {"outside": z[:, :2]}, "outside must have d=6 columns"),
        (nc5, (z, labels), {"outside": nan}, "outside contains NaN"),
        (nc5, (z, labels), {"outside": Moments(6)}, "outside needs Moments that have seen rows"),
        (class_overlap, (z, torch.zeros_like(labels)), {}, "at least two classes"),
        (class_overlap, (z, torch.arange(60)), {}, "at least 2 samples of every class"),
        (class_overlap, (Moments.of(z),), {}, "Moments must have classes"),
        (class_effective_rank, (z,), {}, "features need labels"),
    ]:
        with pytest.raises(ValueError, match=message):
            f(*args, **options)


@pytest.mark.parametrize("seed", range(8))
def test_a_class_of_orthogonal_rows_overlaps_with_none(seed):
    rows = torch.linalg.qr(gaussian(64, 64, seed=seed)).Q[:32]
    other = torch.nn.functional.normalize(gaussian(200, 64, seed=seed + 50), dim=1)
    labels = torch.tensor([0] * 32 + [1] * 200)
    for dtype in (torch.float32, torch.float64):
        assert class_overlap(torch.cat([rows, other]).to(dtype), labels).worst == 0


def test_equal_rows_in_classes_of_different_size_are_a_total_collapse():
    z = torch.tensor([[0.1, 0.7, -0.3, 1 / 3]], dtype=torch.float64).repeat(9, 1)
    labels = torch.tensor([0] * 3 + [1] * 6)
    assert nc1(z, labels) == cdnv(z, labels) == math.inf
    assert nc2(z, labels).item() == pytest.approx(math.sqrt(2))


def test_nc1_is_the_share_of_variances_in_the_directions_between():
    means, labels = gaussian(10, 100, seed=1), torch.arange(10).repeat_interleave(600)
    centered = means - means.mean(0)
    lam = torch.linalg.eigvalsh(centered @ centered.mT / 10)[1:]  # Σ_B has rank K − 1
    expected = (0.01 / lam).sum().item() / 10
    assert nc1(means[labels] + 0.1 * gaussian(6000, 100, seed=2), labels).item() == pytest.approx(expected, rel=0.05)


def test_simplex_distance_of_known_sets():
    assert simplex_distance(simplex(6)).item() == pytest.approx(0, abs=1e-7)
    assert simplex_distance(7 * mercedes()).item() == pytest.approx(0, abs=1e-7)
    assert simplex_distance(torch.ones(5, 3)).item() == pytest.approx(math.sqrt(2))
    assert simplex_distance(torch.zeros(5, 3)).item() == pytest.approx(math.sqrt(2))
    # orthonormal: ⟨I, E⟩ = n − 1, so that the squared distance is 2 − 2√((n − 1)/n)
    assert simplex_distance(torch.eye(4)).item() == pytest.approx(math.sqrt(2 - 2 * math.sqrt(3 / 4)))


@pytest.mark.parametrize(("n", "d"), [(5, 8), (12, 3)])
def test_simplex_distance_equals_the_explicit_matrices(n, d):
    z = gaussian(n, d)
    g, e = z @ z.T, torch.eye(n, dtype=D) - 1 / n
    assert simplex_distance(z).item() == pytest.approx((g / g.norm() - e / e.norm()).norm().item())
