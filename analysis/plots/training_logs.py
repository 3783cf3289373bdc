"""Plots of the studies: of published and own runs, of a pretrained network, in the style of `plots.style`."""

import matplotlib.pyplot as plt
import numpy as np

from .curves import plot_level
from .page_panels import BLUE, GREEN, ORANGE, RED
from .style import THEORY


def plot_log_loss(table, ax=None):
    """The official code's loss by step, from `logs.explain`; dashed what total collapse and what the optimum cost."""
    ax = ax or plt.gca()
    ax.plot(table["step"], table["loss"], ".", color=BLUE)
    plot_level(-1 - table["collapsed"].iloc[0], "total collapse", ax, x=0.98).texts[-1].set_ha("right")
    plot_level(-1 - table["ceiling"].iloc[0], "optimum: aligned views, ceiling", ax, x=0.98).texts[-1].set_ha("right")
    ax.set(xlabel="epoch", ylabel="loss, −cos − γR")
    return ax


def plot_log_expansion(table, ax=None):
    """The expansion term by step; dashed ceiling and isotropic value, thinner if c were the logged cosine."""
    ax = ax or plt.gca()
    for name, color in (("ceiling", "0.25"), ("isotropic", ORANGE)):
        for column, says, width in ((name, name, 1.6), (f"{name}_at_cosine", f"{name}, c as logged", 0.8)):
            ax.plot(table["step"], table[column], **THEORY | {"color": color}, linewidth=width, label=says)
    ax.plot(table["step"], table["expansion"], ".", color=BLUE, label="logged")
    ax.set(xlabel="epoch", ylabel="expansion term γR")
    ax.legend(loc="lower right", fontsize=8)
    return ax


def plot_log_cosines(table, ax=None):
    """The logged cosine of different views as dots; dashed what student and teacher of one view have at least, and if
    features are isotropic."""
    ax = ax or plt.gca()
    ax.fill_between(table["step"], table["cosine_needed"], 1, color="0.93", linewidth=0)
    says = {"cosine_isotropic": (ORANGE, "one view, if isotropic"), "cosine_needed": ("0.25", "one view, at least")}
    for name, (color, label) in says.items():
        ax.plot(table["step"], table[name], **THEORY | {"color": color}, linewidth=1.6, label=label)
    ax.plot(table["step"], table["cosine"], ".", color=BLUE, label="logged: different views")
    ax.set(xlabel="epoch", ylabel="cosine of student and teacher", ylim=(None, 1.005))
    ax.legend(loc="lower right", fontsize=8)
    return ax


def plot_log_dimension(table, ax=None, *, d):
    """Dimensions that explain the expansion term: of a flat subspace, and the effective rank of a power law."""
    ax = ax or plt.gca()
    ax.fill_between(table["step"], table["dimension"], d, color=BLUE, alpha=0.08, linewidth=0)
    ax.plot(table["step"], table["power_law_rank"], "^", color=GREEN, markersize=4, label="effective rank, λⱼ ∝ j⁻ᵃ")
    ax.plot(table["step"], table["dimension"], ".", color=BLUE, label="flat subspace of k dimensions")
    plot_level(d, f"d = {d}: isotropic", ax)
    ax.set(xlabel="epoch", ylabel="effective dimension", ylim=(0, 1.1 * d))
    ax.legend(loc="lower right")
    return ax


def plot_reported(table, ax=None):
    """Runs of `logs.reported` from total collapse (0) to isotropy (1): bars what is possible, dots what was logged."""
    ax = ax or plt.gca()
    reach = (table["ceiling"] - table["collapsed"]) / (table["isotropic"] - table["collapsed"])
    died = table["outcome"].str.startswith("collapsed").to_numpy()
    color = np.where(died, RED, BLUE)
    y = np.arange(len(table))[::-1]
    ax.hlines(y, 0, reach, color="0.85", linewidth=7, zorder=1)
    ax.scatter(table["spread"], y, color=color, s=36, zorder=3)
    for height, (_, run), c in zip(y, table.iterrows(), color, strict=True):
        logged = f"{run['expansion']:.4g}" if np.isfinite(run["expansion"]) else "not said"
        cells = [f"{run['collapsed']:.4f}", f"{run['isotropic']:.3f}", f"{run['ceiling']:.3f}", logged]
        cells += [f"{run['collapse_number']:.3g}", run["outcome"]]
        for x, text in zip(_COLUMNS, cells, strict=True):
            ax.text(x, height, text, fontsize=9, va="center", color=c if x == _COLUMNS[-1] else "black")
    for x, text in zip(_COLUMNS, ["collapsed", "isotropic", "ceiling", "logged γR", "χ", "what was said"], strict=True):
        ax.text(x, len(table) - 0.35, text, fontsize=9, color="0.35")
    for x, label in ((0, "total collapse"), (1, "isotropic")):
        ax.axvline(x, **THEORY, linewidth=1, ymax=0.93)
        ax.text(x, len(table) - 0.35, label, fontsize=9, color="0.35", ha="center")
    ax.set_yticks(y, [f"{r['where']}    {r['ranks']} × {r['images']}" for _, r in table.iterrows()])
    ax.set(xlim=(-0.08, _COLUMNS[-1] + 0.85), ylim=(-0.6, len(table)))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_xlabel("γR between total collapse (0) and independent random directions (1)", loc="left")
    ax.grid(axis="y", visible=False)
    ax.spines["bottom"].set_bounds(-0.08, _COLUMNS[0] - 0.08)
    return ax


_COLUMNS = (1.36, 1.6, 1.82, 2.02, 2.28, 2.44)
