"""Plots of the studies: what they put where."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analysis.plots import measure_correlations, reported_losses, vit_depth
from analysis.runs.correlations import LABEL_FREE_MEASURES, rank_correlations
from analysis.runs.official_logs import reported

matplotlib.use("agg")


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_reported_runs_have_a_row_each_and_a_dot_where_a_value_was_logged(ax):
    table = reported()
    reported_losses.plot_reported(table, ax)
    assert len(ax.get_yticks()) == len(table)
    offsets = np.ma.filled(ax.collections[-1].get_offsets(), np.nan)
    assert np.isfinite(offsets[:, 0]).sum() == table["expansion"].notna().sum()


def test_layers_leave_out_what_is_zero_and_draw_two_standard_errors(ax):
    value = xr.DataArray([0.0, 2.0, 3.0], {"layer": [0, 1, 2]}, ["layer"])
    vit_depth.plot_layers({"untrained": xr.Dataset({"rank": value, "rank_se": value / 10})}, "rank", ax)
    assert np.isnan(ax.lines[0].get_ydata()[0])
    low, high = ax.collections[0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((1.6, 2.4))


def test_heads_have_a_dot_each(ax):
    value = xr.DataArray(np.arange(6.0).reshape(3, 2), {"layer": [0, 1, 2]}, ["layer", "head"])
    vit_depth.plot_heads({"pretrained": value.to_dataset(name="reach")}, "reach", ax)
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], value.T)


def test_token_shares_fill_the_axis(ax):
    labels = {"layer": [0, 1, 2], "part": ["common", "position", "image", "rest"]}
    share = xr.DataArray(np.random.default_rng(0).dirichlet(np.ones(4), 3), labels, list(labels))
    vit_depth.plot_token_shares(share, ax)
    assert ax.get_ylim() == (0, 1)
    assert max(path.vertices[:, 1].max() for c in ax.collections for path in c.get_paths()) == pytest.approx(1)


def test_rank_correlations_are_sorted_and_point_in_the_expected_direction(ax):
    x = np.arange(12.0)
    table = pd.DataFrame({"knn": x, "method": ["a", "b"] * 6, "configuration": x, "uniformity": -x, "RankMe": -x})
    measure_correlations.plot_rank_correlations(rank_correlations(table), ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["RankMe", "uniformity (low)"]  # from below
    assert LABEL_FREE_MEASURES["uniformity"] < 0
    within = next(line for line in ax.lines if line.get_label().startswith("within"))
    assert sorted(zip(within.get_ydata(), within.get_xdata(), strict=True))[1][1] == pytest.approx(1)
