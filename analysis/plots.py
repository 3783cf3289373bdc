"""Plots of what the diagnostics return: `plot_<quantity>(data, ax=None) -> ax`, no computation and no saving.

Theory is dashed (`THEORY`), measurements are dots, and a method has the same colour everywhere (`COLORS`).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's palette, told apart under every common colour blindness: blues and green for SimDINO, warm for DINO.
COLORS = {
    "simdino": "#0072B2",
    "simdinov2": "#003B5C",
    "simdino-no-teacher": "#56B4E9",
    "simdino-no-expansion": "#009E73",
    "dino": "#D55E00",
    "dinov2": "#7A3600",
    "dino-no-centering": "#E69F00",
    "dino-no-teacher": "#CC79A7",
    "simdinov2": "#003B5C",
    "dinov2": "#7A3600",
}
BASELINES = {"random": "0.65", "pixels": "0.25"}
THEORY = {"linestyle": "--", "color": "0.25"}


def use_style() -> None:
    """Set matplotlib to the project's style; a notebook's first cell calls it."""
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


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

    results: rows of `analysis.probes.tasks.evaluate`. Without any it says that the data are not there.
    """
    ax = ax or plt.gca()
    results = results[~results["detail"].astype(bool)]
    measures, names = (list(dict.fromkeys(results[column])) for column in ("measure", "backbone"))
    for i, name in enumerate(names):
        part = results[results["backbone"] == name]
        value, low, high, sd = (part[c].to_numpy(float) for c in ("value", "low", "high", "sd"))
        reach = [np.where(np.isnan(sd), half, sd) for half in (value - low, high - value)]
        y = part["measure"].map(measures.index) + 0.7 * ((i + 0.5) / len(names) - 0.5)
        color = COLORS.get(name) or BASELINES.get(name, f"C{i}")
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


# Shapes and hollow ones besides colours: seven curves have to stay apart where they coincide.
MEASURES = {
    "effective rank": {"marker": "o", "color": "#0072B2", "markersize": 5},
    "effective rank, centred": {"marker": "s", "color": "#D55E00", "markersize": 10, "fillstyle": "none"},
    "coding rate": {"marker": "^", "color": "#009E73", "markersize": 6},
    "1 − mean share": {"marker": "v", "color": "black", "markersize": 9, "fillstyle": "none"},
    "feature std": {"marker": "D", "color": "#CC79A7", "markersize": 5},
    "uniformity": {"marker": "+", "color": "#56B4E9", "markersize": 9, "markeredgewidth": 2},
    "spread within classes": {"marker": "x", "color": "#E69F00", "markersize": 6, "markeredgewidth": 2},
    "k-NN accuracy": {"marker": "*", "color": "0.4", "markersize": 7},
}


def plot_sensitivity(table, ax=None, *, x="share"):
    """Each measure of one collapse against its size, scaled to 1 (healthy): `measured` as dots, `predicted` dashed."""
    ax = ax or plt.gca()
    for name, marks in MEASURES.items():
        curve = table[table["measure"] == name].sort_values(x)
        if len(curve):
            ax.plot(curve[x], curve["predicted"], **THEORY | {"color": marks["color"]}, linewidth=1)
            ax.plot(curve[x], curve["measured"], linestyle="", label=name, **marks)
    ax.set_ylim(-0.05, 1.13)
    return ax


def plot_scree(spectrum, white_noise, ax=None):
    """A spectrum against the index of its eigenvalues, logarithmic: dots, and white noise of the same size dashed."""
    ax = ax or plt.gca()
    ax.plot(range(1, len(white_noise) + 1), white_noise, **THEORY)
    ax.plot(range(1, len(spectrum) + 1), spectrum, ".", color="#0072B2")
    ax.set(yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue of Γ")
    return ax


def plot_sampling_bias(table, ax=None):
    """Mean ± sd of measures over their truth against n/d, as dots; dashed the truth and what theory predicts."""
    ax = ax or plt.gca()
    ax.axhline(1, **THEORY, linewidth=1)
    for i, (name, part) in enumerate(table.groupby("measure", sort=False)):
        x = part["n/d"] * 1.04 ** (i - 1)  # side by side
        ax.errorbar(x, part["mean"] / part["truth"], part["sd"] / part["truth"], fmt="o", color=f"C{i}", label=name)
        ax.plot(part["n/d"], part["predicted"] / part["truth"], **THEORY | {"color": f"C{i}"}, linewidth=1, zorder=1)
    ax.set_xscale("log")
    ax.set_xticks(ticks := table["n/d"].unique(), [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set(xlabel="samples per dimension, n/d", ylabel="measured / truth", ylim=(0.38, 1.32))
    return ax


def plot_intervals(table, ax=None):
    """Confidence intervals of repeated samples, a bar each, in a row a method; dashed the truth, red what misses it."""
    ax = ax or plt.gca()
    ax.axvline(table["truth"].iloc[0], **THEORY)
    names = list(table["method"].unique())
    for i, name in enumerate(names):
        part = table[table["method"] == name].sort_values("low")
        color = np.where(part["covers"], "#009E73", "#D55E00")
        ax.hlines(np.linspace(i - 0.38, i + 0.38, len(part)), part["low"], part["high"], color=color, linewidth=1.3)
        text = f"{name}: {part['covers'].mean():.0%} hold the truth"
        ax.annotate(text, (0.01, i + 0.43), xycoords=("axes fraction", "data"), fontsize=9)
    ax.set(xlabel="effective rank", yticks=[], ylim=(-0.5, len(names) - 0.3))
    return ax


def plot_conventions(table, ax=None):
    """One embedding under several definitions, on a logarithmic axis, each with its value, its user and its formula."""
    ax = ax or plt.gca()
    values = table["value"].to_numpy()
    y, middle = np.arange(len(values))[::-1], np.sqrt(values.min() * values.max())
    ax.plot(values, y, "o", color="#0072B2", markersize=6)
    for value, height, who, what in zip(values, y, table["who"], table["definition"], strict=True):
        right = value < middle  # where there is room
        text = f"{value:.3g}   {who}:  {what}" if right else f"{who}:  {what}   {value:.3g}"
        place = {"xytext": (8 if right else -8, 0), "ha": "left" if right else "right", "va": "center"}
        ax.annotate(text, (value, height), textcoords="offset points", fontsize=9, **place)
    ax.set(xscale="log", xlim=(values.min() / 1.4, values.max() * 1.4), yticks=[], ylim=(-0.6, len(y) - 0.4))
    return ax


def plot_response(table, ax=None):
    """What is left of each measure (rows) in each collapse (columns), as numbers on colours: 1 is blindness."""
    ax = ax or plt.gca()
    ax.imshow(table.to_numpy(), vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    ax.set_xticks(range(table.shape[1]), table.columns.str.removeprefix("to "))
    ax.set_yticks(range(table.shape[0]), table.index)
    ax.set_xlabel("collapse to")
    ax.grid(visible=False)
    return ax
