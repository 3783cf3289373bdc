"""Rank correlations of label-free measures with accuracy."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from .style import THEORY

SCOPE_STYLES = {  # marker, color, label
    "within": ("o", "C0", "within methods"),
    "all": ("s", "C1", "all runs"),
    "between": ("D", "0.45", "between methods"),
}


def plot_rank_correlations(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot Spearman's ρ of measures with accuracy and its intervals, one row per measure.

    The measure that ranks the runs of one method best is on top. To the right of 0 a measure is as its paper expects;
    "(low)" says that low values are expected to be good.

    Args:
        table: what `runs.correlations.rank_correlations` returns.
    """
    ax = ax or plt.gca()
    table = table[table["statistic"] == "spearman"]
    turned = table[["value", "low", "high"]].mul(table["expected"], axis=0)
    table = table.assign(**turned)
    order = table[table["scope"] == "within"].sort_values("value")
    heights = {measure: height for height, measure in enumerate(order["measure"])}
    for i, (scope, (marker, color, label)) in enumerate(SCOPE_STYLES.items()):
        part = table[table["scope"] == scope]
        y = part["measure"].map(heights) + 0.22 * (1 - i)
        ax.hlines(y, part["low"], part["high"], color=color, linewidth=1.3, alpha=0.7)
        ax.plot(part["value"], y, marker, color=color, label=f"{label}, n = {part['runs'].max()}")
    ax.axvline(0, **THEORY, linewidth=1)
    names = order["measure"] + order["expected"].map({1: "", -1: " (low)"})
    ax.set_yticks(range(len(order)), names)
    ax.set(xlim=(-1.03, 1.03), ylim=(-0.6, len(order) - 0.4))
    ax.set_xlabel("Spearman's ρ with accuracy, in the expected direction")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.1, columnspacing=1)
    return ax
