"""Collapse of views, patches and prototypes on constructed spreads whose values are known."""

import math

import numpy as np
import pytest
import torch

from analysis.measures.collapse import center_drift, lidar, patch_ranks, prototype_entropy, prototype_usage
from analysis.measures.spectra import effective_rank
from tests.configurations import D, gaussian

# ---------------------------------------------------------------- LiDAR


def views_with(between: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """Two views (2, 2d², d) whose Σ_b = diag(between) and Σ_w = diag(within) exactly."""
    d = len(between)
    axes = torch.eye(d, dtype=D) * math.sqrt(d)
    points = torch.cat((axes, -axes)) * between.sqrt()  # (2d, d)
    shifts = axes * (within / 2).sqrt()  # (d, d): every point meets every shift; two views have one degree of freedom
    points, shifts = points.repeat_interleave(d, 0), shifts.repeat(2 * d, 1)
    return torch.stack((points + shifts, points - shifts))


def test_lidar_of_known_spreads():
    between = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=D)
    p = between / between.sum()
    white = views_with(between, torch.full((4,), 0.3, dtype=D))
    assert lidar(white).item() == pytest.approx(torch.special.entr(p).sum().exp().item())
    proportional = views_with(between, 0.1 * between)  # whitening by the views leaves all directions equal
    assert lidar(proportional, delta=1e-9).item() == pytest.approx(4)
    # λ_j = b_j/(w_j + δ) with a δ that matters
    p = between / (0.1 * between + 0.5)
    p = p / p.sum()
    assert lidar(proportional, delta=0.5).item() == pytest.approx(torch.special.entr(p).sum().exp().item())


def test_lidar_equals_the_matrix_square_roots_for_more_and_fewer_samples_than_dimensions():
    for n in (5, 40):
        views = gaussian(n, 8) + 0.5 * gaussian(3, n, 8, seed=1)
        centers = views.mean(0)
        residual = (views - centers).reshape(-1, 8)
        values, vectors = torch.linalg.eigh(residual.T @ residual / (2 * n) + 1e-4 * torch.eye(8, dtype=D))
        root = vectors @ torch.diag(values**-0.5) @ vectors.T
        lam = torch.linalg.eigvalsh(root @ torch.cov(centers.T, correction=0) @ root).clamp(min=0)
        assert lidar(views).item() == pytest.approx(torch.special.entr(lam / lam.sum()).sum().exp().item())


def test_lidar_of_collapse_of_invariant_views_and_of_shuffled_ones():
    assert lidar(torch.ones(2, 10, 4)).item() == 0
    z = gaussian(50, 4)
    assert lidar(torch.stack((z, z))).item() == pytest.approx(effective_rank(z, center=True).item())
    informative = views_with(torch.tensor([9.0, 1e-6, 1e-6], dtype=D), torch.tensor([0.1, 1.0, 1.0], dtype=D))
    assert lidar(informative).item() < 1.01
    mixed = torch.stack((informative[0], informative[1].roll(5, 0)))  # views that are not aligned: another number
    assert lidar(mixed).item() > 1.1
    with pytest.raises(ValueError, match="delta"):
        lidar(informative, delta=0)
    with pytest.raises(ValueError, match="at least 2 views"):
        lidar(informative[:1])
    with pytest.raises(ValueError, match="shape"):
        lidar(informative[0])


def test_lidar_gradient():
    assert torch.autograd.gradcheck(lidar, (gaussian(2, 6, 3).requires_grad_(),))


# ---------------------------------------------------------------- patches


def test_patch_ranks_tell_the_two_collapses_apart():
    image, position = gaussian(12, 1, 6), gaussian(1, 5, 6, seed=1)
    only_global = patch_ranks(image.expand(12, 5, 6))
    assert only_global.within.item() == pytest.approx(1)
    assert only_global.between.item() == pytest.approx(effective_rank(image[:, 0]).item())
    only_position = patch_ranks(position.expand(12, 5, 6))
    assert only_position.within.item() == pytest.approx(effective_rank(position[0]).item())
    assert only_position.between.item() == pytest.approx(1)
    constant = patch_ranks(1 + 1e-4 * gaussian(12, 5, 6))  # rounding noise: healthy only if it is centered
    assert constant.within.item() == pytest.approx(1, abs=1e-4)
    assert constant.between.item() == pytest.approx(1, abs=1e-4)
    assert patch_ranks(1 + 1e-4 * gaussian(12, 5, 6), center=True).between.item() > 4


@pytest.mark.parametrize("center", [False, True])
def test_patch_ranks_are_the_means_of_the_ranks_by_one_decomposition_each(center, monkeypatch):
    tokens = gaussian(7, 5, 6)
    within = torch.stack([effective_rank(z, center=center) for z in tokens]).mean().item()
    between = torch.stack([effective_rank(z, center=center) for z in tokens.transpose(0, 1)]).mean().item()
    eigvalsh, calls = np.linalg.eigvalsh, []
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda a: calls.append(a.shape) or eigvalsh(a))
    ranks = patch_ranks(tokens, center=center)
    assert (ranks.within.item(), ranks.between.item()) == pytest.approx((within, between), rel=1e-12)
    assert len(calls) == 2


def test_patch_ranks_of_orthonormal_tokens_and_of_zeros():
    ranks = patch_ranks(torch.eye(6)[:4].expand(3, 4, 6))
    assert (ranks.within.item(), ranks.between.item()) == pytest.approx((4, 1))
    assert patch_ranks(torch.zeros(3, 4, 6)).within.item() == 0
    with pytest.raises(ValueError, match=r"tokens must have shape \(n, t, d\)"):
        patch_ranks(torch.eye(4))


# ---------------------------------------------------------------- prototypes


def test_prototype_entropy_of_both_collapses_and_of_balanced_assignments():
    k = 8
    one_hot, uniform, balanced = torch.zeros(16, k), torch.zeros(16, k), 1000 * torch.eye(k).repeat(2, 1)
    one_hot[:, 3] = 1000
    for logits, marginal, conditional, information in [
        (one_hot, 0, 0, 0),
        (uniform, math.log(k), math.log(k), 0),  # its marginal alone looks perfect
        (balanced, math.log(k), 0, math.log(k)),
    ]:
        out = prototype_entropy(logits)
        assert out.marginal.item() == pytest.approx(marginal, abs=1e-12)
        assert out.conditional.item() == pytest.approx(conditional, abs=1e-12)
        assert out.information.item() == pytest.approx(information, abs=1e-12)


def test_prototype_entropy_equals_the_joint_distributions_and_ignores_a_shift_of_a_row():
    logits = gaussian(30, 7)
    p = (logits / 0.1).softmax(1)
    joint = p / 30
    information = (joint * (joint / (joint.sum(1, keepdim=True) * joint.sum(0))).log()).sum()
    out = prototype_entropy(logits, temp=0.1)
    assert out.information.item() == pytest.approx(information.item())
    shifted = prototype_entropy(logits + gaussian(30, 1, seed=1), temp=0.1)
    assert shifted.marginal.item() == pytest.approx(out.marginal.item())
    with pytest.raises(ValueError, match="temp"):
        prototype_entropy(logits, temp=0)


def test_prototype_usage_counts_winners():
    assert prototype_usage(torch.eye(8)).item() == 1
    assert prototype_usage(torch.eye(8)[[0, 0, 3]]).item() == pytest.approx(2 / 8)
    assert prototype_usage(torch.zeros(5, 8)).item() == pytest.approx(1 / 8)


def test_center_drift_of_known_lags():
    scores = torch.tensor([[1.0, -1.0], [3.0, -3.0]])  # mean (2, −2), spread √2
    assert center_drift(scores, running_center=scores.mean(0)).item() == 0
    assert center_drift(scores, running_center=torch.zeros(2)).item() == pytest.approx(2)
    assert center_drift(scores + 5, running_center=torch.tensor([7.0, -7.0])).item() == pytest.approx(
        5
    )  # a common shift is free
    assert center_drift(torch.zeros(4, 2), running_center=torch.tensor([1.0, 0.0])).item() == math.inf
    with pytest.raises(ValueError, match="center must have shape"):
        center_drift(scores, running_center=torch.zeros(3))
