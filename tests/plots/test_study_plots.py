"""Plots of the studies: what they put where."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analysis.plots import measure_correlations, training_logs, vit_depth
from analysis.plots.style import COLORS
from analysis.runs.correlations import LABEL_FREE_MEASURES, rank_correlations
from analysis.runs.official_logs import explain, published_log, reported

matplotlib.use("agg")


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


@pytest.mark.parametrize("name", ["loss", "expansion", "cosines", "dimension"])
def test_a_log_is_drawn_epoch_by_epoch(ax, name):
    table = explain(published_log())
    options = {"d": 256} if name == "dimension" else {}
    getattr(training_logs, f"plot_log_{name}")(table, ax, **options)
    dots = [line for line in ax.lines if line.get_marker() == "."]
    column = {"cosines": "cosine"}.get(name, name)
    assert len(dots) == 1
    np.testing.assert_allclose(dots[0].get_ydata(), table[column])


def test_reported_runs_have_a_row_each_and_a_dot_where_a_value_was_logged(ax):
    table = reported()
    training_logs.plot_reported(table, ax)
    assert len(ax.get_yticks()) == len(table)
    offsets = np.ma.filled(ax.collections[-1].get_offsets(), np.nan)
    assert np.isfinite(offsets[:, 0]).sum() == table["expansion"].notna().sum()


def test_layers_leave_out_what_is_zero_and_draw_two_standard_errors(ax):
    value = xr.DataArray([0.0, 2.0, 3.0], {"layer": [0, 1, 2]}, ["layer"])
    vit_depth.plot_layers({"untrained": value}, ax, errors={"untrained": value / 10})
    assert np.isnan(ax.lines[0].get_ydata()[0])
    low, high = ax.collections[0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx((1.6, 2.4))


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


def test_accuracy_is_drawn_in_the_colors_of_methods(ax):
    table = pd.DataFrame({"knn": [0.1, 0.2], "method": ["simdino", "mine"], "RankMe": [1.0, 2.0]})
    measure_correlations.plot_against_accuracy(table, "RankMe", ax)
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] == COLORS["simdino"] != colors[1]
