"""Plots: what they draw of data that no notebook has."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from analysis import plots

matplotlib.use("agg")


@pytest.mark.parametrize(
    "plot", [plots.plot_training, lambda q, ax: plots.plot_runs(q.isel(step=-1), q.isel(step=0), ax)]
)
def test_a_recipe_without_a_colour_of_its_own_gets_one_of_the_cycle(plot):
    labels = {"recipe": ["simdino", "mine", "yours"], "seed": [0, 1], "step": [0, 10]}
    fig, ax = plt.subplots()
    plot(xr.DataArray(np.random.default_rng(0).random((3, 2, 2)), labels, list(labels)), ax)
    colors = {line.get_label(): line.get_color() for line in ax.lines}
    assert colors["simdino"] == plots.COLORS["simdino"]
    assert len(set(colors.values())) == 3
    plt.close(fig)
