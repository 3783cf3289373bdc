"""Plots of predictions beside real training runs, in the style of `plots.style`."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .style import THEORY


def plot_twins(
    x: ArrayLike,
    predicted: Mapping[str, ArrayLike],
    measured: Mapping[str, tuple[ArrayLike, str]],
    ax: Axes | None = None,
) -> Axes:
    """Plot runs as dots beside the runs that predict them, dashed; both have the color of the prediction.

    Each is drawn as its mean over seeds; for the dots the range of the seeds is shaded.

    Args:
        x: (k,), where the values stand: steps, or ranks of eigenvalues.
        predicted: the runs (seed, k) that predict, by label.
        measured: by label, at most four pairs of the runs (seed, k) and the label of their prediction.
    """
    ax = ax or plt.gca()
    colors = {label: f"C{i}" for i, label in enumerate(predicted)}
    for label, runs in predicted.items():
        ax.plot(x, np.mean(runs, axis=0), **THEORY | {"color": colors[label]}, label=label)
    for i, (label, (runs, twin)) in enumerate(measured.items()):
        style = {"color": colors[twin], "markersize": 4, "markerfacecolor": "white" if i % 2 else None}
        ax.plot(x, np.mean(runs, axis=0), "os^D"[i], **style, label=label)
        ax.fill_between(x, np.min(runs, axis=0), np.max(runs, axis=0), color=colors[twin], alpha=0.15, linewidth=0)
    ax.legend(fontsize=8)
    return ax


def plot_growth_phases(
    boundary: Mapping[str, ArrayLike],
    chi: Mapping[str, ArrayLike],
    growth: Mapping[str, ArrayLike],
    reported: Mapping[str, tuple[float, bool]],
    ax: Axes | None = None,
) -> Axes:
    """Plot the phase diagram of collapse: each run at its predicted boundary and its collapse number χ.

    Runs whose spread grows are hollow, those that shrink are filled. On the dashed line χ is the predicted boundary;
    in the gray area below it total collapse is stable.

    Args:
        boundary: the predicted boundaries (seed,) of at most three families of runs, by label.
        chi: the collapse numbers (k,) of each family.
        growth: the growth of the log spread (seed, k) of each family.
        reported: (χ, whether it collapsed) of runs with an unknown boundary: lines across, red for a collapse.
    """
    ax = ax or plt.gca()
    x = np.array([0.05, 2.0])
    ax.plot(x, x, **THEORY)
    ax.fill_between(x, 0.01, x, color="0.93", zorder=0)
    ax.text(1.9, 0.023, "collapse is stable", ha="right", color="0.25", fontsize=9)
    for i, label in enumerate(boundary):
        where = np.stack(np.broadcast_arrays(np.asarray(boundary[label])[:, None], chi[label]))  # (2, seed, k)
        for grows, fill in ((False, f"C{i}"), (True, "white")):
            some = where[:, (np.asarray(growth[label]) > 0) == grows]
            name = {} if grows else {"label": label}
            ax.plot(*some, "os^"[i], linestyle="", color=f"C{i}", markerfacecolor=fill, **name)
    above = np.inf
    for label, (value, died) in sorted(reported.items(), key=lambda item: -item[1][0]):
        color = "#B00020" if died else "0.35"
        ax.plot(x, [value] * 2, color=color, linewidth=1)
        above = min(value, above / 1.5)  # a label keeps its distance from the one above
        ax.text(2.1, above, label, color=color, fontsize=7.5, va="center")
    ax.set(xscale="log", yscale="log", xlim=x, ylim=(0.02, 3000))
    ax.set(xlabel="predicted boundary, c μ / (1 − 1/n)", ylabel="collapse number χ = γα²/(1 + α)")
    ax.legend(loc="upper left", title="filled: shrinking, hollow: growing", title_fontsize=8, fontsize=8)
    return ax


def plot_survival(
    columns: Sequence[float],
    rows: Sequence[float],
    lived: ArrayLike,
    forecasts: Mapping[str, ArrayLike],
    ax: Axes | None = None,
) -> Axes:
    """Plot on a grid of settings how many runs lived, and the lines on which forecasts change.

    Circles are the share of runs that lived: white for all, black for none. The first forecast's line is dashed, the
    others' are dotted.

    Args:
        columns: the values of the first factor, ascending.
        rows: those of the second.
        lived: the share of runs (rows, columns), each in [0, 1].
        forecasts: the forecast share (rows, columns) of each, by label; a line is drawn where it passes ½.
    """
    ax = ax or plt.gca()
    x, y = np.meshgrid(range(len(columns)), range(len(rows)))
    ax.scatter(x, y, c=np.asarray(lived), cmap="gray", vmin=0, vmax=1, s=90, edgecolors="C0", linewidths=1.2, zorder=3)
    for i, (label, share) in enumerate(forecasts.items()):
        style = THEORY if i == 0 else {"linestyle": ":", "color": "C1"}
        ax.plot([], [], **style, label=label)
        if np.min(share) < 0.5 < np.max(share):
            ax.contour(x, y, share, levels=[0.5], colors=style["color"], linestyles=style["linestyle"], linewidths=1.5)
    ax.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    ax.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) + 0.1))
    ax.legend(fontsize=8, loc="upper center", ncol=2)
    return ax
