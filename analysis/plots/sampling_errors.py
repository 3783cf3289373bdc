"""Plots of what a measured number depends on besides the features: the sample, the definition, the kind of collapse."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .style import THEORY

# Shapes, some of them hollow, besides colors: eight measures have to stay apart where they coincide.
MEASURE_STYLES = {
    "effective rank": {"marker": "o", "color": "#0072B2", "markersize": 5},
    "effective rank, centered": {"marker": "s", "color": "#D55E00", "markersize": 10, "fillstyle": "none"},
    "coding rate": {"marker": "^", "color": "#009E73", "markersize": 6},
    "1 − mean share": {"marker": "v", "color": "black", "markersize": 9, "fillstyle": "none"},
    "feature std": {"marker": "D", "color": "#CC79A7", "markersize": 5},
    "uniformity": {"marker": "+", "color": "#56B4E9", "markersize": 9, "markeredgewidth": 2},
    "spread within classes": {"marker": "x", "color": "#E69F00", "markersize": 6, "markeredgewidth": 2},
    "k-NN accuracy": {"marker": "*", "color": "0.4", "markersize": 7},
}


def plot_sensitivity(table: pd.DataFrame, ax: Axes | None = None, *, x: str = "share") -> Axes:
    """Plot measures along the way to one collapse: measurements as dots, predictions dashed, 1 is healthy.

    Args:
        table: rows of one collapse of `collapse_sweep`, or those of `shrink_sweep`: measure, measured, predicted and x.
        x: the column that says how far the collapse has gone.
    """
    ax = ax or plt.gca()
    for name, marks in MEASURE_STYLES.items():
        curve = table[table["measure"] == name].sort_values(x)
        if len(curve):
            ax.plot(curve[x], curve["predicted"], **THEORY | {"color": marks["color"]}, linewidth=1)
            ax.plot(curve[x], curve["measured"], linestyle="", label=name, **marks)
    ax.set_ylim(-0.05, 1.13)
    return ax


def plot_sampling_bias(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot measures of samples over their truth against the samples per dimension n/d: mean ± sd over draws as dots.

    Dashed are the truth, at 1, and what theory predicts of the mean.

    Args:
        table: rows of one estimate of `sampling_bias`.
    """
    ax = ax or plt.gca()
    ax.axhline(1, **THEORY, linewidth=1)
    for i, (name, part) in enumerate(table.groupby("measure", sort=False)):
        x = part["n/d"] * 1.04 ** (i - 1)  # side by side
        ax.errorbar(x, part["mean"] / part["truth"], part["sd"] / part["truth"], fmt="o", color=f"C{i}", label=name)
        ax.plot(part["n/d"], part["predicted"] / part["truth"], **THEORY | {"color": f"C{i}"}, linewidth=1, zorder=1)
    ax.set_xscale("log")
    ax.set_xticks(ticks := table["n/d"].unique(), [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="samples per dimension, n/d", ylabel="measured / truth", ylim=(0.38, 1.32))
    return ax


def plot_intervals(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot confidence intervals of repeated samples as bars by method; dashed the truth, red the bars that miss it.

    Args:
        table: the rows of `sampling.effective_rank_intervals`.
    """
    ax = ax or plt.gca()
    ax.axvline(table["truth"].iloc[0], **THEORY)
    names = list(table["method"].unique())
    for i, name in enumerate(names):
        part = table[table["method"] == name].sort_values("low")
        color = np.where(part["covers"], "#009E73", "#D55E00")
        ax.hlines(np.linspace(i - 0.38, i + 0.38, len(part)), part["low"], part["high"], color=color, linewidth=1.3)
        text = f"{name}: {part['covers'].mean():.0%} hold the truth"
        ax.annotate(text, (0.01, i + 0.43), xycoords=("axes fraction", "data"), fontsize=9)
    ax.set(xlabel="effective rank", yticks=[], ylim=(-0.5, len(names) - 0.3))
    return ax


def plot_conventions(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot values of one embedding under several definitions, on a logarithmic axis, with their users and definitions.

    Args:
        table: rows of one family of `compare_definitions`.
    """
    ax = ax or plt.gca()
    values = table["value"].to_numpy()
    y, middle = np.arange(len(values))[::-1], np.sqrt(values.min() * values.max())
    ax.plot(values, y, "o", color="#0072B2", markersize=6)
    for value, height, who, what in zip(values, y, table["who"], table["definition"], strict=True):
        right = value < middle  # where there is room
        text = f"{value:.3g}   {who}:  {what}" if right else f"{who}:  {what}   {value:.3g}"
        place = {"xytext": (8 if right else -8, 0), "ha": "left" if right else "right", "va": "center"}
        ax.annotate(text, (value, height), textcoords="offset points", fontsize=9, **place)
    ax.set(xscale="log", xlim=(values.min() / 1.4, values.max() * 1.4), yticks=[], ylim=(-0.6, len(y) - 0.4))
    return ax


def plot_response(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot what is left of each measure in each collapse, as numbers on colors: a measure that stays at 1 is blind.

    Args:
        table: what `collapse_response` returns, measures as rows and collapses as columns.
    """
    ax = ax or plt.gca()
    ax.imshow(table.to_numpy(), vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    ax.set_xticks(range(table.shape[1]), table.columns.str.removeprefix("to "))
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set_xlabel("collapse to")
    ax.grid(visible=False)
    return ax
