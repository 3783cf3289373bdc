"""Plots of studies: what becomes of a method when its recipe is changed, and when something is taken away."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm

from .style import COLORS

# Classes of k-NN accuracy as a share of the method's best; the brightest is "within 5 % of the best".
LEVELS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_POINTS = {"textcoords": "offset points", "ha": "center"}


def plot_strips(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot one method's settings that change one factor: a row for each factor, a column for each multiple.

    The color of a square is the k-NN accuracy as a share of the method's best. In it stand the k-NN accuracy and below
    it the effective rank; features that collapsed are crossed out. The recipe itself stands in every row of multiples.
    Settings with a name in place of a multiple (architectures) fill their row from the left.

    Args:
        table: rows of one method from `runs.outcomes.mean_outcomes`.
    """
    ax = ax or plt.gca()
    recipe = table[table["factor"] == ""].iloc[0]
    factors = [factor for factor in table["factor"].dropna().unique() if factor]
    multiples = sorted({1.0, *(m for m in table["multiple"].dropna() if not isinstance(m, str))})
    cells = {}
    for y, factor in enumerate(factors):
        named = 0
        for _, setting in table[table["factor"] == factor].iterrows():
            if isinstance(setting["multiple"], str):
                cells[y, named] = setting, setting["multiple"]
                named += 1
            else:
                cells[y, multiples.index(setting["multiple"])] = setting, ""
        if not named:
            cells[y, multiples.index(1.0)] = recipe, ""
    _draw(ax, cells)
    ax.set_yticks(range(len(factors)), factors)
    ax.set_xticks(range(len(multiples)), _fractions(multiples))
    ax.set_xlabel("multiple of the recipe's value")
    return ax


def plot_two_factors(table: pd.DataFrame, x: str, y: str, ax: Axes | None = None) -> Axes:
    """Plot one method's settings that change two factors, one of them or neither, with squares as in `plot_strips`.

    Args:
        table: rows of one method from `runs.outcomes.mean_outcomes`.
        x: the factor whose multiples are the columns.
        y: the factor whose multiples are the rows, the smallest at the bottom.
    """
    ax = ax or plt.gca()
    part = table[[set(at) <= {x, y} for at in table["at"]]]
    columns = sorted({at.get(x, 1.0) for at in part["at"]})
    rows = sorted({at.get(y, 1.0) for at in part["at"]})
    cells = {}
    for _, setting in part.iterrows():
        at = setting["at"]
        cells[rows.index(at.get(y, 1.0)), columns.index(at.get(x, 1.0))] = setting, ""
    _draw(ax, cells)
    ax.invert_yaxis()
    ax.set_yticks(range(len(rows)), _fractions(rows))
    ax.set_xticks(range(len(columns)), _fractions(columns))
    ax.set(xlabel=f"{x}, multiple of the recipe's", ylabel=f"{y}, multiple of the recipe's")
    return ax


def _fractions(multiples: list[float]) -> list[str]:
    return [{0.25: "¼", 0.5: "½"}.get(m, f"{m:g}") for m in multiples]


def _draw(ax: Axes, cells: dict[tuple[int, int], tuple[pd.Series, str]]) -> None:
    """Plot (row, column) -> (setting, its name or "") as colored squares with numbers, the first row on top."""
    rows, columns = (max(place) + 1 for place in zip(*cells, strict=True))
    relative = np.full((rows, columns), np.nan)
    for place, (setting, _) in cells.items():
        relative[place] = setting["relative"]
    colors = plt.get_cmap("cividis")
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    ax.pcolormesh(*edges, relative, cmap=colors, norm=BoundaryNorm(LEVELS, colors.N), edgecolors="white")
    for (y, x), (setting, name) in cells.items():
        text = {"color": "black" if setting["relative"] >= 0.85 else "white", "va": "center"} | _POINTS
        lower = 3 if name else 0  # so that the name has room above the two numbers
        ax.annotate(name, (x, y), (0, 10), fontsize=7, **text)
        ax.annotate(f"{setting['knn']:.2f}".removeprefix("0"), (x, y), (0, 4 - lower), fontsize=9, **text)
        ax.annotate(f"{setting['effective_rank']:.0f}", (x, y), (0, -6 - lower), fontsize=7, **text)
        if setting["collapsed"] > 0:
            for slope in (1, -1):
                ax.plot([x - 0.42, x + 0.42], [y - slope * 0.38, y + slope * 0.38], color="#D55E00", linewidth=1.2)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def plot_shares_within(shares: pd.DataFrame, ax: Axes | None = None, *, gains: pd.DataFrame | None = None) -> Axes:
    """Plot which share of each method's settings works, as a dot with its interval, and which collapsed, as a cross.

    Args:
        shares: one row for each method, from `runs.outcomes.share_within`.
        gains: the same, counted by the gain over the untrained network; its shares are drawn as diamonds.
    """
    ax = ax or plt.gca()
    for y, (method, row) in enumerate(shares.iterrows()):
        color = COLORS.get(method, f"C{y}")
        ax.plot([row["low"], row["high"]], [y, y], color=color)
        ax.plot(row["share"], y, "o", color=color, markersize=7)
        if gains is not None:
            ax.plot(gains.loc[method, "share"], y, "D", color=color, markersize=7, markerfacecolor="none")
        ax.plot(row["collapsed"], y, "x", color=color, markersize=7, markeredgewidth=2)
        ax.annotate(f"{row['within']:.0f} of {row['n']:.0f}", (row["share"], y), (0, 7), fontsize=9, **_POINTS)
    ax.set_yticks(range(len(shares)), shares.index)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(shares) - 0.5, -0.6), xlabel="share of the settings")
    return ax


def plot_with_and_without(
    sides: dict[str, tuple[pd.DataFrame, pd.DataFrame]], quantity: str, ax: Axes | None = None
) -> Axes:
    """Plot a quantity with something and without it: a dot for each run, and a line between the means of a method.

    Args:
        sides: method -> (table of its runs with it, table of its runs without it).
        quantity: the column of these tables.
    """
    ax = ax or plt.gca()
    for method, both in sides.items():
        color = COLORS.get(method)
        ax.plot([0, 1], [runs[quantity].mean() for runs in both], "o-", color=color, label=method, markersize=7)
        for x, runs in enumerate(both):
            ax.plot([x] * len(runs), runs[quantity], ".", color=color, alpha=0.6)
    ax.set_xticks([0, 1], ["with", "without"])
    ax.set_xlim(-0.3, 1.3)
    return ax
