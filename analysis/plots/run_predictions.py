"""Plots of predictions beside real training runs, in the style of `plots.style`."""

import matplotlib.pyplot as plt
import numpy as np

from .style import THEORY


def plot_gamma_rules(n, rules, shown, ax=None):
    """Weights γ by rule, {label: (k,)}, against the batch size; dots where {label: (n, γ)} were trained with."""
    ax = ax or plt.gca()
    for i, (label, gamma) in enumerate(rules.items()):
        ax.plot(n, gamma, **THEORY | {"color": f"C{i}"}, linewidth=1.2)
        ax.plot(*shown[label], "o", color=f"C{i}", label=label)
    ax.set(xscale="log", yscale="log", xlabel="batch size n", ylabel="weight γ of the expansion")
    ax.legend()
    return ax


def plot_expected(label, values, ax=None):
    """Dashed horizontal lines in the order of the cycle's colors, named once, at the highest."""
    ax = ax or plt.gca()
    for i, value in enumerate(values):
        ax.axhline(value, **THEORY | {"color": f"C{i}"}, linewidth=1)
    ax.text(0.02, max(values), label, transform=ax.get_yaxis_transform(), va="bottom", fontsize=8, color="0.25")
    return ax


def plot_twins(x, predicted, measured, ax=None):
    """Runs (seed, k) over x beside those that predict them: {label: runs} dashed, {label: (runs, prediction)} as dots.

    Means over seeds, the range of the dots shaded; a prediction and what it is of have one color.
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


def plot_spreads(steps, spreads, chi, ax=None):
    """Spread around total collapse over training, (seed, χ, t): a color for each χ, a line for each seed."""
    ax = ax or plt.gca()
    colors = plt.get_cmap("cividis")(np.linspace(0, 0.85, len(chi)))
    for i, value in enumerate(chi):
        for j, spread in enumerate(spreads[:, i]):
            label = None if j else f"χ = {value:.2g}"
            ax.plot(steps, spread, ".-", markersize=4, linewidth=0.8, color=colors[i], label=label)
    ax.set(yscale="log", xlabel="training step", ylabel="spread E‖z − Ez‖²")
    ax.legend()
    return ax


def plot_growth(excess, growth, ax=None):
    """Growth of log spread against the excess of χ over the boundary, {label: (seed, k)} each; dashed where it is 0."""
    ax = ax or plt.gca()
    ax.axvline(0, **THEORY, linewidth=1.2)
    ax.axhline(0, color="0.6", linewidth=0.8)
    for i, label in enumerate(excess):
        ax.plot(np.ravel(excess[label]), np.ravel(growth[label]), "os^"[i], color=f"C{i}", alpha=0.8, label=label)
    ax.set(xlabel="excess χ(1 − 1/n)/c − μ", ylabel="growth of log spread")
    ax.legend()
    return ax


def plot_growth_phases(boundary, chi, growth, reported, ax=None):
    """Phase diagram of collapse: runs at (predicted boundary, χ), hollow where they grow; dashed χ = boundary.

    boundary {label: (seed,)}, chi {label: (k,)}, growth {label: (seed, k)}; reported {label: (χ, died)} are lines, red
    if they died.
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


def plot_view_shares(steps, shares, predicted, ax=None):
    """Share μ of the spread, {label: ((seed, t), (seed, t)) of collapsing and of escaping runs}, filled and hollow.

    Means over seeds, the range shaded; dashed the predicted smallest shares, {label: (seed,)}.
    """
    ax = ax or plt.gca()
    for i, (label, pair) in enumerate(shares.items()):
        for share, fill, kind in zip(pair, (f"C{i}", "white"), ("smallest χ", "largest χ"), strict=True):
            style = {"color": f"C{i}", "markerfacecolor": fill, "markersize": 4}
            ax.plot(steps, np.mean(share, axis=0), "os"[i], **style, label=f"{label}, {kind}")
            ax.fill_between(steps, np.min(share, axis=0), np.max(share, axis=0), color=f"C{i}", alpha=0.12, linewidth=0)
        ax.axhline(np.mean(predicted[label]), **THEORY | {"color": f"C{i}"}, linewidth=1.2)
    ax.set(xlabel="training step", ylabel="alignment / spread, μ", ylim=(0, 1.6))
    ax.legend(fontsize=8, loc="upper right")
    return ax
