"""Plots of what the diagnostics return: `plot_<quantity>(data, ax=None) -> ax`, no computation and no saving.

Theory is dashed (`THEORY`), measurements are dots, and a method has the same color everywhere (`COLORS`).
"""

import matplotlib.pyplot as plt
import numpy as np

from .style import BASELINE_COLORS, COLORS, THEORY


def plot_training(quantity, ax=None, *, logy=False):
    """A quantity `(recipe, seed, step)` over training: the mean over seeds as dots, their range shaded."""
    ax = ax or plt.gca()
    _plot_methods(ax, quantity, "step")
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xlim(-0.2, 1.15 * float(quantity["step"].max()))
    ax.set_xlabel("training step")
    ax.set_yscale("log" if logy else "linear")
    return ax


def plot_spectrum(eigenvalues, ax=None, *, floor=1e-9):
    """Eigenvalues `(recipe, seed, eigen)` against their rank, on logarithmic axes; those under `floor` are left out."""
    ax = ax or plt.gca()
    _plot_methods(ax, eigenvalues.where(eigenvalues > floor), "eigen")
    ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="eigenvalue of Γ")
    return ax


def plot_runs(x, y, ax=None):
    """One quantity `(recipe, seed)` against another, a dot a run."""
    ax = ax or plt.gca()
    for i, recipe in enumerate(x["recipe"].values):
        color = COLORS.get(str(recipe), f"C{i}")
        ax.plot(x.sel(recipe=recipe), y.sel(recipe=recipe), "o", color=color, label=str(recipe))
    return ax


def plot_scores(results, ax=None):
    """Measures of backbones, a row a measure: a dot a backbone, or a seed of it, with its 95% interval or ± sd.

    results: rows of `probes.tasks.probe_backbones`. Without any it says that the data are not there.
    """
    ax = ax or plt.gca()
    results = results[~results["detail"].astype(bool)]
    measures, names = (list(dict.fromkeys(results[column])) for column in ("measure", "backbone"))
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


def plot_level(value, label, ax=None, *, x=0.02, below=False):
    """A predicted or reference value as a dashed horizontal line, named beside it from axis fraction `x` on."""
    ax = ax or plt.gca()
    ax.axhline(value, **THEORY, linewidth=1)
    va = "top" if below else "bottom"
    ax.text(x, value, label, transform=ax.get_yaxis_transform(), va=va, fontsize=8, color="0.25")
    return ax


def _plot_methods(ax, quantity, along):
    """A line a recipe: the mean over seeds, and their range."""
    for i, recipe in enumerate(quantity["recipe"].values):
        q, color = quantity.sel(recipe=recipe), COLORS.get(str(recipe), f"C{i}")
        ax.plot(q[along], q.mean("seed"), ".-", color=color, label=str(recipe), linewidth=1)
        ax.fill_between(q[along], q.min("seed"), q.max("seed"), color=color, alpha=0.2, linewidth=0)
