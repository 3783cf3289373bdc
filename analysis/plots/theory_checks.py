"""Plots of predictions beside what optimization and simulation found, in the style of `plots.style`."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .style import COLORS, THEORY


def plot_powers(
    predicted: Mapping[str, np.ndarray], measured: Mapping[str, np.ndarray], ax: Axes | None = None
) -> Axes:
    """Plot measured powers of modes against predicted ones; dashed is where the two agree, the inset has the errors.

    Modes whose predicted power is zero are left out, since the axes are logarithmic.

    Args:
        predicted: the powers (k,) of at most three groups of modes, by label.
        measured: the powers (k,) found for the same modes.
    """
    ax = ax or plt.gca()
    alive = {label: p > 0 for label, p in predicted.items()}
    smallest = min(p[alive[label]].min() for label, p in predicted.items())
    largest = max(p.max() for p in predicted.values())
    ends = [0.7 * smallest, 1.5 * largest]
    ax.plot(ends, ends, **THEORY, zorder=1)
    inset = ax.inset_axes([0.62, 0.12, 0.36, 0.34])
    for i, label in enumerate(predicted):
        p, m = predicted[label][alive[label]], measured[label][alive[label]]
        style = {"marker": "os^"[i], "color": f"C{i}", "alpha": 0.6, "linestyle": "none"}
        ax.plot(p, m, **style, label=label)
        inset.plot(p, np.maximum(abs(m - p), 1e-17), **style, markersize=2.5)
    ax.set(xscale="log", yscale="log", xlabel="predicted power p of a mode", ylabel="power found")
    ax.legend(loc="upper left")
    inset.set(xscale="log", yscale="log")
    inset.set_title("absolute error", fontsize=8)
    inset.tick_params(labelsize=7)
    return ax


def plot_collapse_path(
    t: np.ndarray, losses: Mapping[str, np.ndarray], ends: Mapping[str, float], ax: Axes | None = None
) -> Axes:
    """Plot losses on the way from spread to totally collapsed features, each above its value at the start.

    Args:
        t: (t,) places on the way, from 0 to 1.
        losses: the values (t,) of at most three losses, by label.
        ends: where a prediction exists, how far above its start a loss ends: dashed.
    """
    ax = ax or plt.gca()
    for i, (label, values) in enumerate(losses.items()):
        ax.plot(t, values - values[0], "os^"[i], markersize=4, color=f"C{i}", label=label)
        if label in ends:
            ax.plot([0.75, 1], [ends[label]] * 2, **THEORY)
    ax.set(xlabel="from spread (0) to totally collapsed features (1)", ylabel="loss above that of spread  [nats]")
    ax.legend(loc="upper left")
    return ax


def plot_atlas(table: pd.DataFrame, points: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Plot the atlas of optima as a table, with a picture of each configuration as seen along its first point.

    Each column is shaded from its worst row, light, to its best, dark. Hollow points lie on the far side of the sphere.

    Args:
        table: a row for each energy, as `experiments.atlas.compare_optima` returns it.
        points: the configuration (n, 3) of each row, by its name.
    """
    ax = ax or plt.gca()
    columns = {  # header: (column, format, sign that makes larger better)
        "eigenvalues\nof dΓ": ("tightness", None, 1),
        "tightness": ("tightness", "{:.3f}", 1),
        "largest\n|cos|": ("coherence", "{:.3f}", -1),
        "order 4\nabove design": ("order_4", "{:.3f}", -1),
        "order 6\nabove design": ("order_6", "{:.3f}", -1),
        "nearest\ndistance": ("nearest", "{:.3f}", 1),
        "‖mean‖": ("mean", "{:.3f}", -1),
        "free\ndirections": ("free", "{:.0f}", -1),
        "starts that\nreach it": ("reached", "{:.0%}", 1),
    }
    cmap, rows = plt.get_cmap("Blues"), len(table)
    for j, (header, (name, form, sign)) in enumerate(columns.items()):
        values = sign * table[name].to_numpy(dtype=float)
        low, high = np.nanmin(values), np.nanmax(values)
        ax.text(j + 0.5, -0.25, header, ha="center", va="bottom", fontsize=9)
        for i, value in enumerate(values):
            row = table.iloc[i]
            text = f"{row['weakest']:.2f} … {row['strongest']:.2f}" if form is None else form.format(row[name])
            shade = "white" if np.isnan(value) else cmap(0.05 + 0.45 * (value - low) / max(high - low, 1e-12))
            ax.add_patch(plt.Rectangle((j, i), 1, 1, facecolor=shade, edgecolor="white"))
            ax.text(j + 0.5, i + 0.5, "–" if np.isnan(value) else text, ha="center", va="center", fontsize=8.5)
    for i, name in enumerate(table.index):
        ax.text(-1.0, i + 0.5, name, ha="right", va="center")
        _draw_sphere(ax.inset_axes([-0.9, i + 0.03, 0.8, 0.94], transform=ax.transData), np.asarray(points[name]))
    ax.set(xlim=(-3.0, len(columns)), ylim=(rows, -1))
    ax.axis("off")
    return ax


def plot_fourth_order(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the mean c⁴ of pairs of features, a dot for each run, beside what two laws predict of it, dashed.

    Args:
        table: a row for each run, with the columns recipe; all, same and different, as
            `experiments.atlas.fourth_order` has them; gaussian, what the spectrum says of all pairs; and normal_same.
    """
    ax = ax or plt.gca()
    rows = {"all pairs": ("all", "gaussian"), "one photograph": ("same", "normal_same"), "two": ("different", None)}
    groups = list(table.groupby("recipe", sort=False))
    for i, (name, part) in enumerate(groups):
        for k, (measured, predicted) in enumerate(rows.values()):
            y = -k - 0.6 * (i - (len(groups) - 1) / 2) / len(groups)
            style = {"color": COLORS.get(name, "0.5"), "marker": "os^D"[i % 4]}
            ax.plot(part[measured], [y] * len(part), linestyle="none", **style, label=name if k == 0 else None)
            if predicted:
                ax.plot([part[predicted].mean()] * 2, [y - 0.22, y + 0.22], **THEORY)
    ax.set_yticks([-k for k in range(len(rows))], list(rows))
    ax.set(xscale="log", xlabel="mean c⁴ of pairs; dashed: of all, a Gaussian of the spectrum; of one, a normal law")
    ax.legend(loc="lower right")
    return ax


def _draw_sphere(ax: Axes, z: np.ndarray) -> None:
    """Plot points (n, 3) on the sphere as seen along the first one."""
    frame = np.linalg.qr(np.column_stack([z[0], np.eye(3)]))[0]  # (3, 3), the first column is ±z_0
    x, y, depth = (z @ frame[:, [1, 2, 0]]).T
    depth = depth * np.sign(depth[0])
    ax.add_patch(plt.Circle((0, 0), 1, facecolor="white", edgecolor="0.6", linewidth=0.7))
    front = depth > -1e-9
    ax.plot(x[~front], y[~front], "o", color="0.6", markerfacecolor="white", markersize=3, markeredgewidth=0.7)
    ax.plot(x[front], y[front], "o", color="C0", markersize=3)
    ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    ax.axis("off")
