"""Collapse measures on configurations whose values are known, against naive twins, and at degenerate input."""

import math

import pytest
import torch

from analysis.measures.alignment_uniformity import (
    alignment,
    hyperspherical_energy,
    uniformity,
    uniformity_gap,
)
from analysis.measures.collapse import feature_std, mean_collapse
from analysis.measures.frames import self_clustering
from analysis.measures.moments import Moments
from analysis.measures.spectra import effective_rank
from tests.configurations import D, gaussian, rotation, simplex, sphere

# ---------------------------------------------------------------- alignment


# ---------------------------------------------------------------- uniformity


# ---------------------------------------------------------------- energies


# ---------------------------------------------------------------- clusters


# ---------------------------------------------------------------- complete collapse


def test_feature_std_of_known_spreads():
    assert feature_std(torch.cat((torch.eye(4), -torch.eye(4)))).item() == pytest.approx(1)  # isotropic
    line = sphere(1, 64)
    z = torch.cat((line, -line))  # rank one, yet the value is ‖u‖₁/√d ≈ √(2/π): it sees complete collapse only
    assert feature_std(z).item() == pytest.approx(line.abs().sum().item() / 8)
    assert feature_std(sphere(100_000, 8)).item() == pytest.approx(1, abs=0.01)


def test_feature_std_is_the_formula():
    z = gaussian(30, 5)
    unit = z / z.norm(dim=1, keepdim=True)
    expected = sum(math.sqrt(((c - c.mean()) ** 2).mean()) for c in unit.T) / 5 * math.sqrt(5)
    assert feature_std(z).item() == pytest.approx(expected)


def test_mean_collapse_of_known_means():
    assert mean_collapse(torch.ones(7, 3)).item() == 1
    assert mean_collapse(torch.eye(5, dtype=D)).item() == pytest.approx(1 / 5)
    assert mean_collapse(simplex(5)).item() == pytest.approx(0, abs=1e-30)
    z = sphere(40, 6)
    assert mean_collapse(z).item() == pytest.approx((z @ z.T).mean().item())  # the mean cosine over all n² pairs


def test_mean_collapse_of_moments_is_that_of_features():
    z = 0.3 + gaussian(40, 6)
    assert mean_collapse(Moments.of(z)).item() == pytest.approx(mean_collapse(z).item())
    assert mean_collapse(Moments.of(torch.zeros(4, 3))).item() == 1
    with pytest.raises(ValueError, match="no rows"):
        mean_collapse(Moments(3))


def test_independent_isotropic_features_hold_one_nth_in_their_mean():
    values = [mean_collapse(sphere(20, 50, seed=s)).item() for s in range(100)]
    assert sum(values) / 100 == pytest.approx(1 / 20, rel=0.03)


def test_rounding_noise_around_one_point_is_collapse_though_its_centered_rank_is_full():
    z = 1 + 1e-3 * gaussian(2000, 32)
    assert effective_rank(z, center=True).item() > 31  # looks healthy
    assert mean_collapse(z).item() > 0.99999
    assert feature_std(z).item() < 0.01


def test_total_collapse_has_a_value_everywhere():
    for z in (torch.zeros(6, 3), torch.ones(6, 3), torch.ones(1, 3)):
        assert feature_std(z).item() == pytest.approx(0, abs=1e-6)
        assert mean_collapse(z).item() == 1
    unit = torch.eye(3)[:1].repeat(6, 1)
    assert alignment(unit, unit).item() == 0
    assert uniformity(unit).item() == 0


def test_extreme_scales_neither_overflow_nor_vanish():
    z = gaussian(50, 4).float()
    for scale in (1e-30, 1e30):
        assert mean_collapse(z * scale).item() == pytest.approx(mean_collapse(z).item(), rel=1e-4)
        assert feature_std(z * scale).item() == pytest.approx(feature_std(z).item(), rel=1e-4)


# ---------------------------------------------------------------- what all share

ON_UNIT = {
    "uniformity": uniformity,
    "uniformity_gap": uniformity_gap,
    "energy": hyperspherical_energy,
    "self_clustering": self_clustering,
}
ON_ROWS = ON_UNIT | {"feature_std": feature_std, "mean_collapse": mean_collapse}
ROTATION_INVARIANT = {name: f for name, f in ON_ROWS.items() if name != "feature_std"}


@pytest.mark.parametrize("name", ON_ROWS)
def test_order_of_samples_does_not_matter(name):
    z = sphere(40, 6)
    assert ON_ROWS[name](z.flip(0)).item() == pytest.approx(ON_ROWS[name](z).item(), abs=1e-12)


@pytest.mark.parametrize("name", ROTATION_INVARIANT)
def test_rotation_does_not_matter(name):
    z = sphere(40, 6)
    assert ON_ROWS[name](z @ rotation(6)).item() == pytest.approx(ON_ROWS[name](z).item(), abs=1e-12)


@pytest.mark.parametrize("name", ON_ROWS)
def test_half_precision_strides_numpy_and_few_rows(name):
    f, z = ON_ROWS[name], sphere(24, 6)
    value = f(z)
    assert value.shape == ()
    assert value.dtype == D
    assert f(torch.cat((z, z), 1)[:, :6]).item() == value.item()
    assert f(z.numpy()).item() == value.item()
    half = f(z.bfloat16())
    assert half.item() == pytest.approx(value.item(), abs=0.03)
    assert torch.isfinite(f(sphere(3, 50)))  # n < d
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert f(z.float()).item() == pytest.approx(value.item(), abs=1e-6)


@pytest.mark.parametrize("name", ON_ROWS)
def test_nan_and_wrong_rank_are_value_errors(name):
    z = sphere(10, 4)
    z[3, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        ON_ROWS[name](z)
    with pytest.raises(ValueError, match="shape"):
        ON_ROWS[name](sphere(4))


@pytest.mark.parametrize("name", ON_ROWS)
def test_gradients_are_right(name):
    z = sphere(7, 3).requires_grad_()
    f = (lambda z: ON_UNIT[name](z, normalize=True)) if name in ON_UNIT else ON_ROWS[name]
    assert torch.autograd.gradcheck(f, (z,))
