"""Plots of the studies: what a method does around its recipe, and what it does without its teacher."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm

from .style import COLORS, THEORY

# k-NN accuracy as a share of the method's best: the brightest class is "within 5 % of it".
LEVELS = (0.0, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_NEAR = {"textcoords": "offset points"}
FRACTIONS = {0.25: "¼", 0.5: "½", 1.0: "1", 2.0: "2", 4.0: "4", 16.0: "16"}


def plot_strips(table, ax=None):
    """One method's settings that change one factor, of `robustness.neighborhood`: a row each, a column a multiple.

    Color: k-NN accuracy as a share of the method's best. In each cell k-NN accuracy, below it the effective rank; a
    cross where the features collapsed. Named settings (architectures) fill their row from the left.
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
            cells[y, x] = row, row["multiple"] if named else ""
    _draw(ax, cells, (len(factors), max(x for _, x in cells) + 1))
    ax.set_yticks(range(len(factors)), factors)
    ax.set_xticks(range(len(multiples)), [FRACTIONS.get(m, f"{m:g}") for m in multiples])
    ax.set_xlabel("multiple of the recipe's value")
    return ax


def plot_two_factors(table, x, y, ax=None):
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
    """Cells (row, column) -> (setting, its name) as colored squares with their numbers; the first row on top."""
    relative = np.full(shape, np.nan)
    for place, (row, _) in cells.items():
        relative[place] = row["relative"]
    edges = [np.arange(n + 1) - 0.5 for n in shape]
    colors = plt.get_cmap("cividis")
    ax.pcolormesh(edges[1], edges[0], relative, cmap=colors, norm=BoundaryNorm(LEVELS, colors.N), edgecolors="white")
    text = {"ha": "center", "va": "center"}
    for (y, x), (row, name) in cells.items():
        text["color"] = "black" if row["relative"] >= 0.85 else "white"
        ax.annotate(f"{row['knn']:.2f}".removeprefix("0"), (x, y), (0, 4 - 3 * bool(name)), fontsize=9, **_NEAR, **text)
        ax.annotate(f"{row['effective_rank']:.0f}", (x, y), (0, -6 - 3 * bool(name)), fontsize=7, **_NEAR, **text)
        ax.annotate(name, (x, y), (0, 10), fontsize=7, **_NEAR, **text)
        if row["collapsed"] > 0:
            sides = (x - 0.42, x + 0.42), (y - 0.38, y + 0.38)
            ax.plot(sides[0], sides[1], sides[0], sides[1][::-1], color="#D55E00", linewidth=1.2)
    ax.set_ylim(shape[0] - 0.5, -0.5)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def plot_shares_within(shares, ax=None, *, gains=None):
    """Of `robustness.share_within`: the share near each method's best as dot and interval, what collapsed as cross.

    gains: the same by gain, as diamonds.
    """
    ax = ax or plt.gca()
    for y, (method, row) in enumerate(shares.iterrows()):
        color = COLORS.get(method, f"C{y}")
        ax.plot([row["low"], row["high"]], [y, y], color=color)
        ax.plot(row["share"], y, "o", color=color, markersize=7)
        if gains is not None:
            ax.plot(gains.loc[method, "share"], y, "D", color=color, markersize=7, markerfacecolor="none")
        ax.plot(row["collapsed"], y, "x", color=color, markersize=7, markeredgewidth=2)
        ax.annotate(
            f"{row['within']:.0f} of {row['n']:.0f}", (row["share"], y), (0, 7), ha="center", fontsize=9, **_NEAR
        )
    ax.set_yticks(range(len(shares)), shares.index)
    ax.set(xlim=(-0.03, 1.03), ylim=(len(shares) - 0.5, -0.6), xlabel="share of the settings")
    return ax


def plot_profiles(table, ax=None, *, drop=0.05):
    """How k-NN accuracy falls over a method's settings, best first, as a share of the best: `robustness.neighborhood`.

    Of the settings that change one factor; dashed: `drop` below the best.
    """
    ax = ax or plt.gca()
    for method, part in table[table["factor"].fillna("") != ""].groupby("method", sort=False):
        fall = np.sort(part["relative"])[::-1]
        ax.step(
            np.arange(len(fall) + 1) / len(fall),
            [*fall, fall[-1]],
            where="post",
            color=COLORS.get(method),
            label=method,
        )
    ax.axhline(1 - drop, **THEORY, linewidth=1)
    ax.set(xlabel="share of the settings, best first", ylabel="k-NN accuracy / the method's best", xlim=(0, 1))
    return ax


TEACHERS = ("full gradient", 0.0, 0.5, 0.9, 0.99, 0.999, "frozen")


def plot_teachers(runs, quantity, ax=None, *, logy=False):
    """A quantity against what the teacher is, from `robustness.labeled`: a dot a run, a line through the means.

    A teacher's momentum rises to the right, from the student itself (0) to one that never moves. Dotted: the recipe,
    whose momentum rises while it trains.
    """
    ax = ax or plt.gca()
    for method, part in runs.groupby("method", sort=False):
        color, own = COLORS.get(method), part[part["factor"] == ""]
        ax.axhline(own[quantity].mean(), color=color, linestyle=":", linewidth=1.2)
        changed = part[part["factor"] == "teacher"]
        x = np.array([TEACHERS.index(teacher) for teacher in changed["multiple"]])
        ax.plot(x, changed[quantity], "o", color=color, markersize=3, alpha=0.5)
        means = changed[quantity].groupby(x).mean()
        ax.plot(means.index, means, "o-", color=color, label=method, markersize=6)
    ax.set_xticks(range(len(TEACHERS)), [t if isinstance(t, str) else f"{t:g}" for t in TEACHERS])
    ax.set(xlabel="teacher: its momentum, or none at all, or frozen", xlim=(-0.6, len(TEACHERS) - 0.4))
    ax.set_yscale("log" if logy else "linear")
    return ax


def plot_teacher_spectra(runs, ax=None, *, floor=1e-9):
    """One method's spectra at the end of training, means over seeds, a color a teacher; black the recipe."""
    ax = ax or plt.gca()
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(TEACHERS)))
    for teacher, color in [*zip(TEACHERS, colors, strict=True), (None, "black")]:
        part = runs[runs["multiple"].isna()] if teacher is None else runs[runs["multiple"] == teacher]
        if len(part):
            mean = np.mean(np.stack(part["spectrum"]), 0)
            label = f"momentum {teacher:g}" if isinstance(teacher, float) else teacher or "recipe"
            ax.plot(range(1, len(mean) + 1), np.where(mean > floor, mean, np.nan), color=color, label=label)
    ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="eigenvalue of Γ")
    ax.legend(fontsize=8)
    return ax


def plot_with_and_without(sides, quantity, ax=None):
    """A quantity of each method's runs with and without something, {method: (with, without)} tables of runs."""
    ax = ax or plt.gca()
    for method, both in sides.items():
        means, color = [side[quantity].mean() for side in both], COLORS.get(method)
        ax.plot([0, 1], means, "o-", color=color, label=method, markersize=7)
        for x, side in enumerate(both):
            ax.plot([x] * len(side), side[quantity], ".", color=color, alpha=0.6)
    ax.set_xticks([0, 1], ["with", "without"])
    ax.set_xlim(-0.3, 1.3)
    return ax
