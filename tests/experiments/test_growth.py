"""Growth next to total collapse: closed forms of an affine encoder, Adam by hand, and steps that are really made."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analysis import theory
from analysis.experiments.growth import first_order_growth, kernel_share, step_scales, train_and_watch
from simdino.losses import simdino_loss

MU = torch.tensor([0.2, 0.7], dtype=torch.float64)
EPS, GAMMA, N = 0.2, 0.05, 40


def white_views(n=N):
    """Two views of white inputs of which a share MU of the variance differs: exactly, in the sample."""
    parts = torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = torch.linalg.qr(parts - parts.mean(0)).Q * n**0.5
    return (1 - MU).sqrt() * parts[:, :2] + MU.sqrt() * torch.stack([parts[:, 2:4], parts[:, 4:]])


def affine(scale=1e-4):
    """An affine encoder next to total collapse: its parameters u and W, and the function."""
    u = torch.eye(4, dtype=torch.float64)[0].clone().requires_grad_()
    w = torch.tensor([[0.0, 0.0], [3.0, 1.0], [0.0, 2.0], [1.0, 0.0]], dtype=torch.float64) * scale
    w.requires_grad_()
    return (u, w), lambda x: normalize(u + x @ w.T, dim=-1)


def stop_gradient(z):
    return simdino_loss(z, z.detach(), eps=EPS, gamma=GAMMA)[0]


def joint(z):
    return simdino_loss(z, z, eps=EPS, gamma=GAMMA)[0]


def test_affine_encoder_under_sgd_has_the_share_and_the_speed_of_its_columns():
    (u, w), encoder = affine()
    found = kernel_share(encoder, white_views(), torch.optim.SGD([u, w], lr=0.03))
    powers = w.detach().square().sum(0)  # s = Σp, A = Σμp, ∇s = 2W
    assert found.spread == pytest.approx(powers.sum().item(), rel=1e-6)
    assert found.share == pytest.approx(((MU * powers).sum() / powers.sum()).item(), rel=1e-6)
    assert found.speed == pytest.approx(2 * 0.03, rel=1e-6)


def test_a_parameter_with_a_learning_rate_of_its_own_counts_by_it():
    (u, w), encoder = affine()
    first, second = w.detach().T.clone().requires_grad_(), w.detach().T.clone().requires_grad_()
    both = lambda x: normalize(u + x @ (first + second) / 2, dim=-1)  # noqa: E731
    groups = [{"params": [first], "lr": 0.01}, {"params": [second], "lr": 0.03}, {"params": [u], "lr": 0.0}]
    found, one = (
        kernel_share(both, white_views(), torch.optim.SGD(groups)),
        kernel_share(encoder, white_views(), torch.optim.SGD([w], lr=0.01)),
    )
    assert found.speed == pytest.approx(one.speed, rel=1e-9)  # (0.01 + 0.03)/4
    assert found.share == pytest.approx(one.share, rel=1e-9)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_scales_each_parameter_by_hand(kind):
    (u, w), encoder = affine(0.1)
    optimizer = kind([u, w], lr=1e-3, betas=(0.5, 0.9), eps=1e-4)
    v = torch.zeros_like(w)
    for _ in range(3):
        optimizer.zero_grad()
        stop_gradient(encoder(white_views().flatten(0, 1)).unflatten(0, (2, -1))).backward()
        v = 0.9 * v + 0.1 * w.grad**2
        optimizer.step()
    scale = 1e-3 / ((v / (1 - 0.9**3)).sqrt() + 1e-4)
    torch.testing.assert_close(step_scales(optimizer)[w], scale, rtol=1e-10, atol=0)
    with torch.no_grad():  # next to collapse again, where ∇s = 2W and ∇A = 2W diag(μ) but for the row of u
        w.copy_(affine()[0][1])
        u.copy_(affine()[0][0])
    found, rows = kernel_share(encoder, white_views(), optimizer), w.detach()[1:]
    weighted = scale[1:] * rows**2
    assert found.share == pytest.approx(((MU * weighted).sum() / weighted.sum()).item(), rel=1e-5)
    assert found.speed == pytest.approx((2 * weighted.sum() / rows.square().sum()).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [stop_gradient, joint])
@pytest.mark.parametrize("gamma", [0.001, 0.02])
def test_B14_foretells_the_step_that_is_made(loss, gamma, monkeypatch):
    monkeypatch.setattr(f"{__name__}.GAMMA", gamma)
    (u, w), encoder = affine()
    optimizer = torch.optim.SGD([u, w], lr=1e-4)
    chi = theory.collapse_number(4, EPS, gamma)
    foretold = first_order_growth(encoder, loss, white_views(), optimizer)
    how = {"watched": white_views(), "at": [0, 1]}
    before, after = train_and_watch(encoder, loss, [white_views()], optimizer, **how).values()
    assert np.log(after.spread / before.spread) == pytest.approx(foretold, rel=1e-3)
    # the mean of a batch that is centered is that of all images, so that nothing is lost to a batch's own mean
    growth = theory.spread_growth(before.speed, before.share, chi, 10**9, stop_gradient=loss is stop_gradient)
    assert foretold == pytest.approx(growth, rel=1e-4)


def test_a_batch_sees_its_own_spread_only():
    """A batch of n loses 1/n of the gain, on average over the batches."""
    views, n, chi = white_views(60), 2, theory.collapse_number(4, EPS, GAMMA)
    (u, w), encoder = affine()
    optimizer = torch.optim.SGD([u, w], lr=1.0)
    of_all = kernel_share(encoder, views, optimizer)
    (of_spread,) = torch.autograd.grad(1 - encoder(views.flatten(0, 1)).mean(0).square().sum(), w)
    order, gains = torch.Generator().manual_seed(0), []
    for _ in range(600):
        z = encoder(views[:, torch.randperm(60, generator=order)[:n]].flatten(0, 1)).unflatten(0, (2, -1))
        (gradient,) = torch.autograd.grad(simdino_loss(z, z, eps=EPS, gamma=GAMMA)[1]["rate"], w)
        gains.append(GAMMA * (of_spread * gradient).sum().item() / of_all.spread)
    error = np.std(gains) / math.sqrt(len(gains))
    kept = np.mean(gains) / (of_all.speed * chi)
    assert kept == pytest.approx((1 - 1 / n) / (1 - 1 / 60), abs=4 * error / (of_all.speed * chi))  # without repeats
    assert 4 * error / (of_all.speed * chi) < 0.2


def test_watching_measures_after_the_steps_that_it_is_told():
    (u, w), encoder = affine()
    optimizer = torch.optim.SGD([u, w], lr=0.01)
    how = {"watched": white_views(), "at": [0, 2, 4]}
    found = train_and_watch(encoder, stop_gradient, [white_views()] * 4, optimizer, **how)
    assert list(found) == [0, 2, 4]
    assert found[0].spread == pytest.approx(affine()[0][1].square().sum().item(), rel=1e-6)
    assert found[4] == kernel_share(encoder, white_views(), optimizer)
    assert found[4].spread > 1.01 * found[2].spread > 1.02 * found[0].spread


def test_optimizers_whose_step_is_not_known_are_refused():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="make one"):
        step_scales(torch.optim.AdamW([weight]))
    for other in (torch.optim.SGD([weight], lr=0.1, momentum=0.9), torch.optim.RMSprop([weight])):
        with pytest.raises(ValueError, match="not for"):
            step_scales(other)
