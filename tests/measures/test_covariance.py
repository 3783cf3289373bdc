"""The covariance terms of VICReg and Barlow Twins: by hand, against explicit matrices, from streams, at collapse."""

import math

import numpy as np
import pytest
import torch

from analysis.experiments.energies import barlow_twins_energy, vicreg_energy
from analysis.measures.covariance import covariance_energy, redundancy, variance_hinge
from analysis.measures.moments import Moments
from tests.configurations import D, gaussian, orthoplex, rotation

ALL = {"variance_hinge": variance_hinge, "covariance_energy": covariance_energy, "redundancy": redundancy}


def with_covariance(c: torch.Tensor) -> torch.Tensor:
    """Rows whose sample covariance, with 1/(n − 1), is exactly c."""
    d = len(c)
    return orthoplex(d) * math.sqrt((2 * d - 1) / 2) @ torch.linalg.cholesky(c).T + 3


def test_two_coordinates_by_hand():
    z = with_covariance(torch.tensor([[4.0, 0.6], [0.6, 0.25]], dtype=D))
    assert covariance_energy(z).item() == pytest.approx(2 * 0.36 / 2)
    assert redundancy(z).item() == pytest.approx(0.36 / (4 * 0.25))
    assert variance_hinge(z, floor=0.0).item() == pytest.approx((0 + 0.5) / 2)
    assert variance_hinge(z, target=3.0, floor=0.0).item() == pytest.approx((1 + 2.5) / 2)


def test_they_are_the_terms_of_the_losses():
    x, y = gaussian(30, 5), gaussian(30, 5, seed=1)
    y = 0.5 * (x + y) @ gaussian(5, 5, seed=2)
    a, b = ((z - z.mean(0)) / z.std(0) for z in (x, y))  # Barlow Twins' batch normalization
    c = a.T @ b / 29
    off = c.square().sum() - c.diagonal().square().sum()
    assert redundancy(x, y).item() == pytest.approx(off.item() / 20)
    assert 20 * redundancy(x).item() == pytest.approx(barlow_twins_energy(redundancy=1.0)(x).item())
    assert variance_hinge(x / 3).item() == pytest.approx(vicreg_energy(variance=1.0, covariance=0.0)(x / 3).item())
    assert covariance_energy(x).item() == pytest.approx(vicreg_energy(variance=0.0, covariance=1.0)(x).item())


def test_redundancy_of_copies_signs_and_independent_coordinates():
    column = gaussian(40, 1)
    copies = column * torch.tensor([1.0, -3.0, 0.1], dtype=D) + 2
    assert redundancy(copies).item() == pytest.approx(1)
    assert redundancy(copies, copies).item() == pytest.approx(1)
    values = [redundancy(gaussian(50, 6, seed=s)).item() for s in range(100)]
    assert np.mean(values) == pytest.approx(1 / 49, rel=0.1)
    assert redundancy(orthoplex(4)).item() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("name", ALL)
def test_moments_give_what_features_give(name):
    z = gaussian(40, 5) @ gaussian(5, 5, seed=1) + 7
    moments = Moments(5).update(z[:13]).update(z[13:])
    assert ALL[name](moments).item() == pytest.approx(ALL[name](z).item())
    assert ALL[name](z.flip(0).numpy()).item() == pytest.approx(ALL[name](z).item())
    assert ALL[name](z + 100).item() == pytest.approx(ALL[name](z).item())


def test_scale_matters_as_documented_and_so_does_rotation():
    z = gaussian(40, 5) @ gaussian(5, 5, seed=1)
    assert redundancy(z * torch.arange(1, 6)).item() == pytest.approx(redundancy(z).item())
    assert covariance_energy(3 * z).item() == pytest.approx(81 * covariance_energy(z).item())
    assert redundancy(z @ rotation(5)).item() != pytest.approx(redundancy(z).item(), rel=0.01)


def test_total_collapse_has_no_redundancy_and_the_largest_hinge():
    for z in (torch.full((9, 3), 0.1), torch.zeros(9, 3), Moments.of(torch.full((9, 3), 0.1))):
        assert redundancy(z).item() == 0
        assert covariance_energy(z).item() == 0
        assert variance_hinge(z).item() == pytest.approx(1 - 0.01)
    constant = gaussian(20, 3)
    constant[:, 1] = 0.1  # correlates with none
    assert redundancy(constant).item() == pytest.approx(redundancy(constant[:, [0, 2]]).item() / 3)


@pytest.mark.parametrize("name", ALL)
def test_gradients_types_and_bad_input(name):
    f, z = ALL[name], gaussian(9, 3)
    assert f(z).dtype == D
    assert torch.autograd.gradcheck(f, (z.clone().requires_grad_(),))
    assert f(z.bfloat16()).item() == pytest.approx(f(z).item(), abs=0.02)
    for bad, message in [
        (z[:1], "x needs at least 2 rows"),
        (Moments(3), "2 rows"),
        (z * torch.nan, "NaN"),
        (z[0], "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            f(bad)


def test_gradient_and_errors_of_two_views():
    x, y = gaussian(9, 3).requires_grad_(), gaussian(9, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(redundancy, (x, y))
    with pytest.raises(ValueError, match="views of the same samples"):
        redundancy(x, y[:5])
    with pytest.raises(ValueError, match="pass features"):
        redundancy(Moments.of(x), y)
    with pytest.raises(ValueError, match="d >= 2"):
        redundancy(gaussian(9, 1))


def test_one_large_coordinate_does_not_hide_the_others():
    u = gaussian(50, 2, seed=1)
    u = torch.linalg.qr(u - u.mean(0)).Q * 7  # of variance 1
    z = torch.stack([1e4 * u[:, 0], u[:, 1], u[:, 1]], 1)
    assert covariance_energy(z).item() == pytest.approx(2 / 3, rel=1e-6)


def test_the_least_hinge_of_unit_rows():
    n, d = 200, 2048
    z = torch.nn.functional.normalize(gaussian(n, d, seed=1), dim=1)
    least = 1 - math.sqrt(n / ((n - 1) * d) + 1e-4)
    assert least <= variance_hinge(z).item() == pytest.approx(least, abs=1e-4)
