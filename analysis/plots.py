"""Plots of what the diagnostics return: `plot_<quantity>(data, ax=None) -> ax`, no computation and no saving.

Theory is dashed (`THEORY`), measurements are dots, and a method has the same colour everywhere (`COLORS`).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

# Okabe and Ito's palette, told apart under every common colour blindness: blues and green for SimDINO, warm for DINO.
COLORS = {
    "simdino": "#0072B2",
    "simdino-no-teacher": "#56B4E9",
    "simdino-no-expansion": "#009E73",
    "dino": "#D55E00",
    "dino-no-centering": "#E69F00",
    "dino-no-teacher": "#CC79A7",
}
THEORY = {"linestyle": "--", "color": "0.25"}


def use_style() -> None:
    """Set matplotlib to the project's style; a notebook's first cell calls it."""
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


def plot_training(quantity, ax=None, *, logy=False):
    """A quantity `(recipe, seed, step)` over training: the mean over seeds as dots, ± one standard deviation shaded."""
    ax = ax or plt.gca()
    _plot_methods(ax, quantity, "step")
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xlim(-0.2, 1.15 * float(quantity["step"].max()))
    ax.set_xlabel("training step")
    ax.set_yscale("log" if logy else "linear")
    return ax


def plot_spectrum(eigenvalues, ax=None, *, floor=1e-9):
    """Eigenvalues `(recipe, seed, eigen)` against their rank, on logarithmic axes; those under `floor` are off the plot."""
    ax = ax or plt.gca()
    _plot_methods(ax, eigenvalues.where(eigenvalues > floor), "eigen")
    ax.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue", ylabel="eigenvalue of Γ")
    ax.set_ylim(bottom=floor)
    return ax


def plot_runs(x, y, ax=None):
    """One quantity `(recipe, seed)` against another, a dot a run."""
    ax = ax or plt.gca()
    for recipe in x["recipe"].values:
        ax.plot(x.sel(recipe=recipe), y.sel(recipe=recipe), "o", color=COLORS[str(recipe)], label=str(recipe))
    return ax


def plot_level(value, label, ax=None, *, x=1.0):
    """A predicted or reference value as a dashed horizontal line, named on the line itself at axis fraction `x`."""
    ax = ax or plt.gca()
    ax.axhline(value, **THEORY, linewidth=1)
    side = "right" if x > 0.5 else "left"
    ax.text(x, value, label, transform=ax.get_yaxis_transform(), ha=side, va="bottom", fontsize=8, color="0.25")
    return ax


def _plot_methods(ax, quantity, along):
    for recipe in quantity["recipe"].values:
        q = quantity.sel(recipe=recipe)
        x, mean, sd = q[along].values, q.mean("seed").values, q.std("seed", ddof=min(1, q.sizes["seed"] - 1)).values
        ax.plot(x, mean, ".-", color=COLORS[str(recipe)], label=str(recipe), linewidth=1)
        ax.fill_between(x, mean - sd, mean + sd, color=COLORS[str(recipe)], alpha=0.2, linewidth=0)


def plot_optimality_gap(predicted, best, worst, ax=None):
    """Largest rate found against the predicted maximum, a dot per problem; inset: relative gap of the worst restart."""
    ax = ax or plt.gca()
    ends = [0.7 * min(predicted), 1.4 * max(predicted)]
    ax.plot(ends, ends, **THEORY, zorder=1)
    ax.annotate("measured = R*", (ends[1], ends[1]), (-8, -2), textcoords="offset points", ha="right", fontsize=8)
    ax.plot(predicted, best, "o", markersize=4, alpha=0.7)
    ax.set(xscale="log", yscale="log", xlabel="R* = r/2 log(1 + α/r)  [nats]", ylabel="largest rate found  [nats]")
    inset = ax.inset_axes([0.62, 0.14, 0.36, 0.34])
    gap = np.maximum(np.abs(1 - np.asarray(worst) / np.asarray(predicted)), 1e-17)
    inset.plot(predicted, gap, "o", markersize=3, alpha=0.7)
    inset.set(xscale="log", yscale="log", ylim=(3e-18, 1e-9))
    inset.set_title("relative gap, worst restart", fontsize=8)
    inset.tick_params(labelsize=7)
    return ax


def plot_hessian_nullity(spectra, nullities, curvatures, ax=None):
    """Sizes of Hessian eigenvalues, {label: (k,)}; dashed where the null ones must end and at the mean of the rest."""
    ax = ax or plt.gca()
    for i, (label, spectrum) in enumerate(spectra.items()):
        size = np.maximum(np.sort(np.abs(spectrum)), 1e-17)
        rank = np.arange(1, len(size) + 1)
        ax.plot(rank, size, "o", color=f"C{i}", label=label)
        edge = nullities[label] + 0.5
        ax.plot([edge, edge], [1e-17, curvatures[label]], **THEORY, linewidth=1)
        ax.plot([edge, rank[-1] + 0.5], [curvatures[label]] * 2, **THEORY, linewidth=1)
        ax.annotate(f"{nullities[label]}", (edge, 2e-9), (-3, 0), textcoords="offset points", ha="right", color=f"C{i}")
    ax.axhspan(1e-18, 1e-10, color="0.95", zorder=0)
    where = ax.get_yaxis_transform()
    ax.text(0.98, 2e-11, "zero to rounding", transform=where, ha="right", va="center", fontsize=8, color="0.25")
    ax.set(yscale="log", ylim=(1e-18, 1e2), xlabel="eigenvalue, smallest first", ylabel="|eigenvalue| of the Hessian")
    ax.legend(loc="center left")
    return ax


def plot_nullity(predicted, measured, wide, ax=None):
    """Measured against predicted nullity, on the dashed diagonal if they agree; `wide` marks problems with n ≤ d."""
    ax = ax or plt.gca()
    predicted, measured, wide = map(np.asarray, (predicted, measured, wide))
    ends = [0, 1.08 * max(predicted)]
    ax.plot(ends, ends, **THEORY, zorder=1)
    ax.plot(predicted[wide], measured[wide], "s", color="C0", alpha=0.8, label="n ≤ d: Stiefel manifold")
    ax.plot(predicted[~wide], measured[~wide], "o", color="C1", alpha=0.8, label="n > d: unit-norm tight frames")
    ax.set(xlabel="predicted dimension of the optimal set", ylabel="zero eigenvalues of the Hessian")
    ax.legend(loc="upper left")
    return ax


def plot_escape(t, rates, curvatures, ceiling, ax=None):
    """Rate along paths through a saddle at t = 0, {label: (t,)}; dashed the predicted parabolas and the maximum."""
    ax = ax or plt.gca()
    for i, (label, rate) in enumerate(rates.items()):
        ax.plot(t[::2], rate[::2], "o", color=f"C{i}", label=label)
        ax.plot(t, rate[np.abs(t).argmin()] + curvatures[label] * t**2 / 2, **THEORY, linewidth=1)
    low = min(map(np.min, rates.values()))
    ax.set_ylim(low - 0.3 * (ceiling - low), ceiling + 0.1 * (ceiling - low))
    ax.set(xlabel="distance moved from the saddle, t", ylabel="R  [nats]")
    ax.legend(loc="lower center")
    return plot_level(ceiling, "R*, the maximum", ax)


# Black and shapes besides the palette: seven curves have to stay apart.
MEASURES = {
    "effective rank": ("#0072B2", "o"),
    "effective rank, centred": ("#D55E00", "s"),
    "coding rate": ("#009E73", "^"),
    "1 − mean share": ("black", "v"),
    "feature std": ("#CC79A7", "D"),
    "uniformity": ("#56B4E9", "P"),
    "spread within classes": ("#E69F00", "X"),
    "k-NN accuracy": ("0.5", "*"),
}


def plot_sensitivity(table, ax=None, *, x="share"):
    """Each measure of one collapse against its size, scaled to 1 (healthy): `measured` as dots, `predicted` dashed."""
    ax = ax or plt.gca()
    for name, (color, marker) in MEASURES.items():
        curve = table[table["measure"] == name].sort_values(x)
        if len(curve):
            ax.plot(curve[x], curve["measured"], marker, color=color, markersize=6, label=name)
            if "predicted" in curve:
                ax.plot(curve[x], curve["predicted"], **THEORY | {"color": color}, linewidth=1, zorder=1)
    ax.set_ylim(-0.05, 1.13)
    return ax


def plot_scree(spectrum, white_noise, ax=None):
    """A spectrum against the index of its eigenvalues, logarithmic: dots, and white noise of the same size dashed."""
    ax = ax or plt.gca()
    ax.plot(range(1, len(white_noise) + 1), white_noise, **THEORY)
    ax.plot(range(1, len(spectrum) + 1), spectrum, ".", color="#0072B2")
    ax.set(yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue of Γ")
    return ax
