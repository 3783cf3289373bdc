"""Plots of measured quantities for any notebook: over training, as spectra, one against another, as scores.

A function draws into the axes that it is given, or into the current ones, and returns them.
"""

from typing import SupportsFloat

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from .style import BASELINE_COLORS, COLORS, THEORY


def plot_training(quantity: xr.DataArray, ax: Axes | None = None, *, logy: bool = False) -> Axes:
    """Plot a quantity over training: for each recipe the mean over seeds as dots, and the range of the seeds shaded.

    The axis of steps is linear up to the first step and logarithmic from there on.

    Args:
        quantity: (recipe, seed, step).
        logy: whether the quantity's axis is logarithmic.
    """
    ax = ax or plt.gca()
    _plot_recipes(ax, quantity, "step")
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xlim(-0.2, 1.15 * float(quantity["step"].max()))
    ax.set_xlabel("training step")
    ax.set_yscale("log" if logy else "linear")
    return ax


def plot_spectrum(eigenvalues: xr.DataArray, ax: Axes | None = None, *, floor: float = 1e-9) -> Axes:
    """Plot eigenvalues against their rank on logarithmic axes: the mean over seeds, and their range shaded.

    Args:
        eigenvalues: (recipe, seed, eigen), of Γ = zᵀz/n.
        floor: eigenvalues up to this one are rounding errors of single precision, and are left out.
    """
    ax = ax or plt.gca()
    _plot_recipes(ax, eigenvalues.where(eigenvalues > floor), "eigen")
    ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="eigenvalue of Γ")
    return ax


def plot_runs(x: xr.DataArray, y: xr.DataArray, ax: Axes | None = None) -> Axes:
    """Plot one quantity against another, with a dot for each run.

    Args:
        x: (recipe, seed).
        y: (recipe, seed).
    """
    ax = ax or plt.gca()
    for i, recipe in enumerate(x["recipe"].values):
        color = COLORS.get(str(recipe), f"C{i}")
        ax.plot(x.sel(recipe=recipe), y.sel(recipe=recipe), "o", color=color, label=str(recipe))
    return ax


def plot_scores(results: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot what probes say of backbones: a row for each measure, a dot for each backbone and each of its seeds.

    A dot has its 95 % interval, or ± one standard deviation where that is known. An empty table leaves a sentence in
    the plot: the data are not here.

    Args:
        results: rows of `probes.tasks.probe_backbones`; those that are the detail of another are not drawn.
    """
    ax = ax or plt.gca()
    results = results[~results["detail"].astype(bool)]
    measures = list(results["measure"].unique())
    names = list(results["backbone"].unique())
    for i, name in enumerate(names):
        part = results[results["backbone"] == name]
        value, low, high, sd = (part[c].to_numpy(float) for c in ("value", "low", "high", "sd"))
        reach = [np.where(np.isnan(sd), half, sd) for half in (value - low, high - value)]
        y = part["measure"].map(measures.index) + 0.7 * ((i + 0.5) / len(names) - 0.5)
        color = COLORS.get(name) or BASELINE_COLORS.get(name, f"C{i}")
        ax.errorbar(value, y, xerr=reach, fmt="o", color=color, label=name, linewidth=1)
    if not names:
        ax.text(0.5, 0.5, "left out: the data are not here", transform=ax.transAxes, ha="center", color="0.4")
    ax.set_yticks(range(len(measures)), measures)
    ax.set_ylim(max(len(measures), 1) - 0.5, -0.5)
    return ax


def plot_level(
    value: SupportsFloat, label: str, ax: Axes | None = None, *, x: float = 0.02, below: bool = False
) -> Axes:
    """Plot a predicted or reference value as a dashed horizontal line with its name.

    Args:
        x: where the name begins, as a fraction of the axis.
        below: whether the name stands below the line.
    """
    ax = ax or plt.gca()
    ax.axhline(value, **THEORY, linewidth=1)
    va = "top" if below else "bottom"
    ax.text(x, value, label, transform=ax.get_yaxis_transform(), va=va, fontsize=8, color="0.25")
    return ax


def _plot_recipes(ax: Axes, quantity: xr.DataArray, along: str) -> None:
    """Plot a line for each recipe: the mean over seeds, and their range shaded."""
    for i, recipe in enumerate(quantity["recipe"].values):
        q = quantity.sel(recipe=recipe)
        color = COLORS.get(str(recipe), f"C{i}")
        ax.plot(q[along], q.mean("seed"), ".-", color=color, label=str(recipe), linewidth=1)
        ax.fill_between(q[along], q.min("seed"), q.max("seed"), color=color, alpha=0.2, linewidth=0)
