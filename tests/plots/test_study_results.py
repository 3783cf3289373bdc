"""Plots of studies: every setting stands in its square, every collapse is crossed out, and lines go through means."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from analysis.plots.study_results import plot_shares_within, plot_strips, plot_two_factors, plot_with_and_without
from analysis.runs.outcomes import mean_outcomes, share_within
from simdino.studies import settings

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table_of(profile: str, **same: float) -> pd.DataFrame:
    """The robustness study with random accuracies, and with the same numbers otherwise."""
    points = settings("robustness", profile)
    rng = np.random.default_rng(0)
    rows = [
        {"recipe": p.recipe, "seed": seed, "knn": rng.uniform(0.3, 0.6), "effective_rank": 5.0} | same
        for p in points
        for seed in p.seeds
    ]
    return mean_outcomes(points, pd.DataFrame(rows).set_index(["recipe", "seed"]), untrained=0.3)


def numbers(ax: Axes) -> list[str]:
    """The k-NN accuracies that are written in a plot."""
    return [text.get_text() for text in ax.texts if text.get_text().startswith(".")]


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
@pytest.mark.parametrize(("method", "loss"), [("simdino", "γ"), ("dinov2", "temperature")])
def test_every_setting_is_drawn_and_crossed_out_where_it_collapsed(profile, method, loss):
    table = table_of(profile, collapsed=True)
    own = table[table["method"] == method]
    one = own[own["factor"].notna()]  # the recipe among them
    strips, pairs = plt.figure().subplots(1, 2)
    plot_strips(own, strips)
    plot_two_factors(own, "learning rate", loss, pairs)

    factors = set(one["factor"]) - {"", "architecture"}
    assert len(numbers(strips)) == len(one) - 1 + len(factors)  # the recipe stands in every row of multiples
    assert len(numbers(pairs)) == sum(set(at) <= {"learning rate", loss} for at in own["at"])
    for ax in (strips, pairs):
        assert set(numbers(ax)) <= {f"{knn:.2f}"[1:] for knn in own["knn"]}
        assert len(ax.lines) == 2 * len(numbers(ax))  # two strokes each


def test_a_square_stands_at_its_multiples():
    table = table_of("cpu", collapsed=False)
    own = table[table["method"] == "simdino"]
    ax = plot_two_factors(own, "learning rate", "γ", plt.figure().gca())
    rates, gammas = ([label.get_text() for label in labels] for labels in (ax.get_xticklabels(), ax.get_yticklabels()))
    assert rates == gammas
    assert ax.get_ylim()[0] < ax.get_ylim()[1]  # the smallest at the bottom
    written = {text.xy: text.get_text() for text in ax.texts if text.get_text().startswith(".")}
    (knn,) = own.loc[[at == {"learning rate": 4.0, "γ": 0.25} for at in own["at"]], "knn"]
    assert written[len(rates) - 1, 0] == f"{knn:.2f}"[1:]
    assert not ax.lines  # nothing collapsed


def test_shares_are_a_dot_on_their_interval():
    table = table_of("cpu", collapsed=False)
    shares, gains = share_within(table), share_within(table, column="gain", least=0.5)
    ax = plot_shares_within(shares, plt.figure().gca(), gains=gains)
    interval, dot, diamond, cross = (line.get_xdata() for line in ax.lines[:4])
    assert interval[0] <= dot[0] <= interval[1]
    assert (diamond[0], cross[0]) == (gains["share"].iloc[0], 0)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["simdino", "dino", "simdinov2", "dinov2"]


def test_a_line_joins_the_means_with_and_without():
    sides = {"dino": (pd.DataFrame({"linear": [0.5, 0.7]}), pd.DataFrame({"linear": [0.3]}))}
    ax = plot_with_and_without(sides, "linear", plt.figure().gca())
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([0.6, 0.3])
