"""Plots of the studies: what a method does around its recipe, and what it does without its teacher."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm

from analysis.plots import COLORS, plot_level

# k-NN accuracy as a share of the method's best: the brightest class is "within 5 % of it".
LEVELS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
FRACTIONS = {0.25: "¼", 0.5: "½", 1.0: "1", 2.0: "2", 4.0: "4", 16.0: "16"}


def plot_strips(table, ax=None):
    """One method's settings that change one factor, from `robustness.neighbourhood`: a row a factor, a column a multiple.

    Colour: k-NN accuracy as a share of the method's best. In each cell k-NN accuracy and effective rank; × where the
    features collapsed. Named settings (architectures) fill their row from the left.
    """
    ax = ax or plt.gca()
    factors = [f for f in dict.fromkeys(table["factor"].dropna()) if f]
    own = table[table["factor"] == ""].iloc[0]
    multiples = sorted({1.0, *(m for m in table["multiple"] if isinstance(m, float))})
    cells = {}
    for y, factor in enumerate(factors):
        part = table[table["factor"] == factor]
        named = [m for m in part["multiple"] if isinstance(m, str)]
        cells |= {} if named else {(y, multiples.index(1.0)): (own, "")}
        for _, row in part.iterrows():
            x = named.index(row["multiple"]) if named else multiples.index(row["multiple"])
            cells[y, x] = row, f"{row['multiple']}\n" if named else ""
    _draw(ax, cells, (len(factors), max(x for _, x in cells) + 1))
    ax.set_yticks(range(len(factors)), factors)
    ax.set_xticks(range(len(multiples)), [FRACTIONS.get(m, f"{m:g}") for m in multiples])
    ax.set_xlabel("multiple of the recipe's value")
    return ax


def plot_phases(table, x, y, ax=None):
    """One method's settings that change the factors x or y or both, drawn as in `plot_strips`."""
    ax = ax or plt.gca()
    part = table[[set(at) <= {x, y} for at in table["at"]]]
    places = [(at.get(y, 1.0), at.get(x, 1.0)) for at in part["at"]]
    rows, columns = (sorted({place[i] for place in places}) for i in (0, 1))
    cells = {
        (rows.index(a), columns.index(b)): (row, "") for (a, b), (_, row) in zip(places, part.iterrows(), strict=True)
    }
    _draw(ax, cells, (len(rows), len(columns)))
    ax.invert_yaxis()
    ax.set_yticks(range(len(rows)), [FRACTIONS.get(m, f"{m:g}") for m in rows])
    ax.set_xticks(range(len(columns)), [FRACTIONS.get(m, f"{m:g}") for m in columns])
    ax.set(xlabel=f"{x}, multiple of the recipe's", ylabel=f"{y}, multiple")
    return ax


def _draw(ax, cells, shape):
    """Cells (row, column) -> (setting, text before its numbers) as coloured squares."""
    relative = np.full(shape, np.nan)
    for place, (row, _) in cells.items():
        relative[place] = row["relative"]
    colors = plt.get_cmap("cividis")
    norm = BoundaryNorm(LEVELS, colors.N)
    ax.imshow(relative, cmap=colors, norm=norm, aspect="auto")
    for (y, x), (row, text) in cells.items():
        ink = "black" if row["relative"] >= 0.85 else "white"
        text += f"{row['knn']:.2f}".removeprefix("0") + f" · {row['effective_rank']:.0f}"
        ax.text(x, y, text, ha="center", va="center", fontsize=7, color=ink, linespacing=1.0)
        if row["collapsed"] > 0:
            ax.plot([x - 0.45, x + 0.45, np.nan, x - 0.45, x + 0.45], [y - 0.4, y + 0.4, np.nan, y + 0.4, y - 0.4], color="#D55E00", linewidth=1)
    ax.set_xlim(-0.5, shape[1] - 0.5)
    ax.set_ylim(shape[0] - 0.5, -0.5)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def plot_shares(shares, ax=None):
    """The share of each method's settings that stays near its best, from `robustness.share_within`: dot and interval."""
    ax = ax or plt.gca()
    for y, (method, row) in enumerate(shares.iterrows()):
        color = COLORS.get(method, f"C{y}")
        ax.plot([row["low"], row["high"]], [y, y], color=color)
        ax.plot(row["share"], y, "o", color=color, markersize=7)
        ax.plot(row["collapsed"], y, "x", color=color, markersize=7, markeredgewidth=2)
        ax.annotate(f"{row['within']:.0f} of {row['n']:.0f}", (row["share"], y), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    ax.set_yticks(range(len(shares)), shares.index)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(shares) - 0.5, -0.6), xlabel="share of the settings")
    return ax
