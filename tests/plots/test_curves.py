"""Plots: what they draw of data that no notebook has."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analysis.plots import curves

matplotlib.use("agg")


@pytest.mark.parametrize(
    "plot", [curves.plot_training, lambda q, ax: curves.plot_runs(q.isel(step=-1), q.isel(step=0), ax)]
)
def test_a_recipe_without_a_color_of_its_own_gets_one_of_the_cycle(plot):
    labels = {"recipe": ["simdino", "mine", "yours"], "seed": [0, 1], "step": [0, 10]}
    fig, ax = plt.subplots()
    plot(xr.DataArray(np.random.default_rng(0).random((3, 2, 2)), labels, list(labels)), ax)
    colors = {line.get_label(): line.get_color() for line in ax.lines}
    assert colors["simdino"] == curves.COLORS["simdino"]
    assert len(set(colors.values())) == 3
    plt.close(fig)


def test_scores_are_a_dot_a_backbone_and_say_when_there_are_none():
    columns = ["backbone", "measure", "value", "low", "high", "sd", "detail"]
    rows = [
        ("simdino", "k-NN", 0.5, 0.4, 0.7, None, False),
        ("pixels", "k-NN", 0.2, 0.1, 0.3, None, False),
        ("pixels", "1-shot", 0.1, None, None, 0.05, False),
        ("pixels", "IoU of sky", 0.9, None, None, None, True),
    ]
    fig, (full, empty) = plt.subplots(1, 2)
    curves.plot_scores(pd.DataFrame(rows, columns=columns), full)
    assert [label.get_text() for label in full.get_yticklabels()] == ["k-NN", "1-shot"]
    assert [c.get_label() for c in full.containers] == ["simdino", "pixels"]
    (first,), second = (c.lines[2][0].get_segments() for c in full.containers)
    np.testing.assert_allclose(first[:, 0], [0.4, 0.7])
    np.testing.assert_allclose([s[:, 0] for s in second], [[0.1, 0.3], [0.05, 0.15]])
    curves.plot_scores(pd.DataFrame([], columns=columns), empty)
    assert [text.get_text() for text in empty.texts] == ["left out: the data are not here"]
    plt.close(fig)
