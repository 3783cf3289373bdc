"""Plots of the studies: of published and own runs, of a pretrained network, in the style of `plots.style`."""

import matplotlib.pyplot as plt

from .page_panels import BLUE, GRAY, ORANGE
from .style import COLORS, THEORY

SCOPE_STYLES = {"within": ("o", BLUE), "all": ("s", ORANGE), "between": ("D", GRAY)}


def plot_rank_correlations(table, ax=None, *, statistic="spearman"):
    """`prediction.rank_correlations` with intervals, a row a measure, best on top; right of 0: as its paper expects."""
    ax = ax or plt.gca()
    table = table[table["statistic"] == statistic]
    by = table[table["scope"] == "within"].assign(says=lambda t: t["value"] * t["expected"]).sort_values("says")
    order = {measure: height for height, measure in enumerate(by["measure"])}
    for i, (scope, (marker, color)) in enumerate(SCOPE_STYLES.items()):
        part = table[table["scope"] == scope]
        y = part["measure"].map(order) + 0.22 * (1 - i)
        value, ends = part["value"] * part["expected"], part[["low", "high"]].mul(part["expected"], axis=0)
        ax.hlines(y, ends.min(axis=1), ends.max(axis=1), color=color, linewidth=1.3, alpha=0.7)
        label = f"{scope} methods" if scope != "all" else "all runs"
        ax.plot(value, y, marker, color=color, linestyle="none", label=f"{label}, n = {part['runs'].max()}")
    ax.axvline(0, **THEORY, linewidth=1)
    signs = dict(zip(by["measure"], by["expected"], strict=True))
    ax.set_yticks(list(order.values()), [name + " (low)" * (signs[name] < 0) for name in order])
    name = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ"}[statistic]
    ax.set(xlim=(-1.03, 1.03), ylim=(-0.6, len(order) - 0.4), xlabel=f"{name} with accuracy, in the expected direction")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.1, columnspacing=1)
    return ax


def plot_against_accuracy(table, measure, ax=None, *, target="knn"):
    """An accuracy against a measure, a dot a run, in the colors of the methods."""
    ax = ax or plt.gca()
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        ax.plot(part[measure], part[target], "o", color=COLORS.get(method, f"C{i}"), alpha=0.8, label=method)
    ax.set(xlabel=measure, ylabel="k-NN accuracy" if target == "knn" else target)
    return ax
