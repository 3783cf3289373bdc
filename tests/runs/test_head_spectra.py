"""What the last layers of runs are, and should be: of the recorded features, and foretold by closed forms."""

import math

import numpy as np
import pytest
import torch

from analysis import theory
from analysis.experiments.linear_encoders import modes, view_covariances
from analysis.measures.inputs import unit_rows
from analysis.measures.spectra import eigenvalues
from analysis.runs.archiving import asked_results
from analysis.runs.head_spectra import (
    forecast_outcome,
    last_layer_outcome,
    loss_of_head,
    share_left,
    shrunken,
    trend_ratio,
)
from simdino.recipes import recipe
from simdino.train import get_run

TINY = "data.name=digits,data.size=8,crops.global_size=8,model.patch=4,model.dim=24,model.hidden=16,model.out=8"
SHORT = "optim.steps=1000,optim.batch_size=16,record.snapshots=1,record.probe=360,record.weights=0,5,10"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = recipe(f"simdino-no-teacher@{TINY},{SHORT}", "smoke")  # 20 steps
    return get_run(config, tmp_path_factory.mktemp("runs"), progress=False)


def test_the_measured_spectrum_is_that_of_the_recorded_features(run):
    found = last_layer_outcome(run)
    recorded = unit_rows(run.snapshot(run.steps[-1])["student/head/test"])  # all of the held-out images
    np.testing.assert_allclose(found["center_measured"], eigenvalues(recorded).numpy(), atol=2e-6)
    for part in ("views", "center"):
        for name in ("measured", "predicted", "uncorrected"):
            assert sum(found[f"{part}_{name}"]) == pytest.approx(1, abs=1e-5)
    assert found["alignment_predicted"] < 2


def test_forecasts_are_of_every_step_and_use_two_steps_for_the_trend(run):
    found = forecast_outcome(run)
    assert found["step"] == [0, 5, 10, 20]
    assert found["current"][3] == found["end"]
    assert found["trend"][3] == found["forecast"][3]
    assert found["left"][:2] == [1, 1]  # there is no step before, or only the untrained network
    assert 0 < found["left"][2] <= 1
    assert found["trend"][:2] == found["forecast"][:2]
    assert found["extrapolated"][0] == found["current"][0]
    for name in ("current", "forecast", "extrapolated", "trend"):
        np.testing.assert_allclose(np.sum(found[name], axis=1), 1, atol=1e-5)
    assert [measure for measure, _ in asked_results(run)][-1] is forecast_outcome


def test_the_loss_of_a_head_is_the_configurations(run):
    options = {"d": 8, "gamma": 0.01, "eps": 0.05**0.5, "batch": 16, "stop_gradient": True}
    assert loss_of_head(run) == pytest.approx(options)


def test_what_is_left_of_the_variance_is_what_halves_the_alignment():
    mu, gamma, alpha = np.array([0.0, 0.1, 0.2, 0.4]), 0.1, 20.0
    share = share_left(mu, 0.5, gamma, alpha, views=2)
    left = share * mu / (1 - (1 - share) / 2 * mu)
    now, then = (m @ theory.water_filling(m, gamma, alpha, 4, norm=1) for m in (mu, left))
    assert then == pytest.approx(now / 2, rel=1e-9)
    assert share < 0.5
    assert share_left(mu, 1.2, gamma, alpha, views=2) == 1


def test_what_is_left_of_the_modes_is_what_shrinking_makes_of_them():
    generator, noise = torch.Generator().manual_seed(0), torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    options = {"generator": generator, "dtype": torch.float64}
    h = torch.randn(1, 20000, 3, **options) + noise * torch.randn(2, 20000, 3, **options)
    mu, found = (modes(*view_covariances(x)) for x in (h, shrunken(h, 0.4)))
    np.testing.assert_allclose(found, 0.4 * mu / (1 - 0.6 / 2 * mu), rtol=1e-2)


def test_the_trend_is_exact_for_a_power_of_time_and_never_rises():
    assert trend_ratio((3.0**-0.4, 5.0**-0.4), (3.0, 5.0, 40.0)) == pytest.approx((40 / 5) ** -0.4)
    assert trend_ratio((0.1, 0.2), (3.0, 5.0, 40.0)) == 1


def test_shrinking_leaves_the_mean_of_views_and_scales_their_differences():
    h = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = shrunken(h, 0.3)
    torch.testing.assert_close(found.mean(0), h.mean(0))
    torch.testing.assert_close(found[0] - found[1], math.sqrt(0.3) * (h[0] - h[1]))
