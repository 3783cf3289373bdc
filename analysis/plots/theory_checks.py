"""Plots of predictions beside what optimization and simulation found, in the style of `plots.style`."""

import matplotlib.pyplot as plt
import numpy as np

from .curves import plot_level
from .style import THEORY


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
        where = {"xy": (edge, 2e-9 * 9**i), "xytext": (-3, 0), "textcoords": "offset points", "ha": "right"}
        ax.annotate(f"{nullities[label]}", color=f"C{i}", **where)
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


def plot_pair_coherence(cosines, bounds, ax=None):
    """|cosines| of all pairs per configuration, {label: (pairs,)}; dashed the Welch bound of each, {label: value}."""
    ax = ax or plt.gca()
    for i, (label, values) in enumerate(cosines.items()):
        tight = np.abs(values - bounds[label]).max() < 1e-6
        ax.plot(np.full(len(values), i), values, "o", markersize=6 if tight else 3, color="C0" if tight else "C1")
        ax.plot([i - 0.42, i + 0.42], [bounds[label]] * 2, **THEORY, linewidth=1.2)
    ax.plot([], [], "o", markersize=6, color="C0", label="all pairs within 10⁻⁶ of the bound")
    ax.plot([], [], "o", markersize=3, color="C1", label="no equiangular tight frame exists")
    ax.legend(loc="upper left")
    ax.set_xticks(range(len(cosines)), list(cosines), rotation=60)
    ax.set(xlabel="n, d", ylabel="|cos| of every pair", ylim=(-0.03, 0.75))
    ax.grid(axis="x", visible=False)
    return ax


def plot_pair_cosines(cosines, bound, ax=None, *, bins=40):
    """Histograms of squared cosines of pairs, {label: (pairs,)}, as shares; dashed the value where all should be."""
    ax = ax or plt.gca()
    for i, (label, values) in enumerate(cosines.items()):
        share = np.full(len(values), 1 / len(values))
        ax.hist(values, bins=np.linspace(0, 1, bins + 1), weights=share, color=f"C{i}", alpha=0.75, label=label)
    ax.axvline(bound, **THEORY, linewidth=1.2)
    ax.set(xlabel="squared cosine c² of a pair", ylabel="share of pairs")
    ax.legend()
    return ax


def plot_batch_potential(sizes, stochastic, exact_sizes, exact, bound, ax=None):
    """Fourth-order potential against the batch size: `(sizes, restarts)` of stochastic runs, and of exact minima."""
    ax = ax or plt.gca()
    mean, sd = np.mean(stochastic, axis=1), np.std(stochastic, axis=1, ddof=1)
    ax.errorbar(sizes, mean, sd, fmt="o", capsize=3, label="stochastic ascent on random batches")
    ax.plot(exact_sizes, exact, "s", color="C1", markersize=7, markerfacecolor="none", label="exact minimum")
    ax.set(xscale="log", xlabel="batch size b", ylabel="mean c⁴ of pairs")
    ax.set_xticks(sizes, list(map(str, sizes)))
    ax.minorticks_off()
    ax.legend(loc="upper left")
    return plot_level(bound, "projective design", ax, x=0.6)


def plot_free_curvature(batches, measured, predicted, ax=None):
    """Relative curvature in the directions that the full batch leaves free, against the batch size."""
    ax = ax or plt.gca()
    ax.plot(batches, predicted, **THEORY, linewidth=1.2, label="even frame potentials alone (exact at b = 2)")
    ax.plot(batches, measured, "o", label="measured")
    for start, color in ((3, "C1"), (4, "C2")):
        ends = [(b, measured[list(batches).index(b)]) for b in (start, 2 * start)]
        arrow = {"arrowstyle": "->", "color": color, "connectionstyle": "arc3,rad=-0.25", "shrinkA": 4, "shrinkB": 4}
        ax.annotate("", ends[1], ends[0], arrowprops=arrow)
        where = (1.5 * start + 0.75, np.mean([ends[0][1], ends[1][1]]) + 0.007)
        ax.annotate(f"2 ranks × {start}, gathered", where, color=color, fontsize=8)
    ax.set(xlabel="batch size b", ylabel="curvature, free / other directions", ylim=(-0.004, None))
    ax.legend(loc="upper right")
    return ax


def plot_powers(predicted, measured, ax=None):
    """Powers of modes, {label: (k,)}, against the predicted ones, {label: (k,)}; inset: the errors."""
    ax = ax or plt.gca()
    ends = [0.7 * min(p[p > 0].min() for p in predicted.values()), 1.5 * max(p.max() for p in predicted.values())]
    ax.plot(ends, ends, **THEORY, zorder=1)
    inset = ax.inset_axes([0.62, 0.12, 0.36, 0.34])
    for i, label in enumerate(predicted):
        p, m, marker = np.asarray(predicted[label]), np.asarray(measured[label]), "os^"[i]
        ax.plot(p[p > 0], m[p > 0], marker, color=f"C{i}", alpha=0.6, label=label)
        inset.plot(p[p > 0], np.maximum(abs(m - p)[p > 0], 1e-17), marker, color=f"C{i}", markersize=2.5, alpha=0.6)
    ax.set(xscale="log", yscale="log", xlabel="predicted power p of a mode", ylabel="power found")
    inset.set(xscale="log", yscale="log")
    inset.set_title("absolute error", fontsize=8)
    inset.tick_params(labelsize=7)
    ax.legend(loc="upper left")
    return ax


def plot_collapse_threshold(levels, powers, ax=None):
    """αp against 2(μ + ν)/(γα), {label: (k,)} each: one curve for all problems, dead from 1 on."""
    ax = ax or plt.gca()
    for i, label in enumerate(levels):
        ax.plot(levels[label], powers[label], "os^"[i], color=f"C{i}", alpha=0.6, label=label)
    x = np.geomspace(min(map(np.min, levels.values())), max(map(np.max, levels.values())), 400)
    ax.plot(x, np.maximum(1 / x - 1, 0), **THEORY)
    ax.axvspan(1, x[-1], color="0.95", zorder=0)
    ax.text(1.1, 0.97, "collapsed", transform=ax.get_xaxis_transform(), va="top", color="0.25", fontsize=9)
    ax.set(xscale="log", xlabel="level of the mode, 2(μ + ν)/(γα)", ylabel="αp")
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    ax.set_ylim(bottom=-0.03)
    ax.legend(loc="lower left")
    return ax


def plot_water_filling(mu, powers, gammas, alpha, ax=None, *, floor=2e-5):
    """Powers of modes against their μ, {label: (k,)}; dashed γ/2μ - 1/α of each γ, and its end, the threshold."""
    ax = ax or plt.gca()
    for i, (label, measured) in enumerate(powers.items()):
        x = np.geomspace(0.8 * np.min(mu), gammas[label] * alpha / 2, 400)[:-1]
        ax.plot(x, gammas[label] / (2 * x) - 1 / alpha, **THEORY)
        ax.axvline(gammas[label] * alpha / 2, color=f"C{i}", linewidth=0.8, linestyle=":")
        k = np.arange(len(measured))
        ax.plot(mu[k], np.maximum(measured, floor * 1.6**i), "o", color=f"C{i}", label=label)
    ax.axhspan(0, 2.2 * floor, color="0.95", zorder=0)
    ax.text(0.02, 1.1 * floor, "collapsed", transform=ax.get_yaxis_transform(), color="0.25", fontsize=8)
    ax.set(yscale="log", ylim=(0.7 * floor, None), xlabel="μ, share of a mode's variance that views do not share")
    ax.set_ylabel("power of the mode, held-out images")
    ax.legend()
    return ax


def plot_spectra(predicted, measured, ax=None, *, floor=1e-3):
    """Eigenvalues by rank, {label: (k,)}, as dots; dashed the predicted ones (k,)."""
    ax = ax or plt.gca()
    alive = np.asarray(predicted) > floor
    ax.plot(np.arange(1, len(predicted) + 1)[alive], np.asarray(predicted)[alive], **THEORY, label="predicted")
    for i, (label, values) in enumerate(measured.items()):
        ax.plot(np.arange(1, len(values) + 1), values, "os^"[i], color=f"C{i}", label=label)
    ax.set(yscale="log", ylim=(floor, 1.5), xlabel="rank of the eigenvalue", ylabel="eigenvalue of Γ")
    ax.legend()
    return ax


def plot_paths(steps, totals, rests, ax=None):
    """Total power along training, {label: (t,)}; dashed the predicted ends, {label: value}."""
    ax = ax or plt.gca()
    for i, (label, total) in enumerate(totals.items()):
        ax.plot(steps, total, ".-", markersize=3, linewidth=0.8, color=f"C{i}", label=label)
    for label, value in rests.items():
        plot_level(value, label, ax, x=0.02)
    ax.set(xscale="log", yscale="log", xlabel="step", ylabel="total power Σp of the student")
    ax.legend(loc="lower right")
    return ax


def plot_modes(times, powers, predicted, mu, ax=None):
    """Powers over time as shares of their rest powers, (t, m), as dots; dashed the predicted (times, shares)."""
    ax = ax or plt.gca()
    colors = plt.get_cmap("cividis")(np.linspace(0, 0.85, len(mu)))
    keep = slice(None, None, max(1, len(times) // 80))
    for i, (t, p) in enumerate(predicted):
        ax.plot(times[keep], powers[keep, i], "o", markersize=3.5, color=colors[i], label=f"μ = {mu[i]:.2g}")
        ax.plot(t, p, **THEORY, linewidth=1.1)
    ax.set(xlabel="time (steps × learning rate)", ylabel="power of the mode / its rest power", xlim=(0, times[-1]))
    ax.legend(loc="lower right")
    return ax


def plot_times(predicted, observed, ax=None):
    """Observed against predicted times, {label: (k,)} each, on the dashed diagonal if they agree."""
    ax = ax or plt.gca()
    ends = [0.9 * min(map(np.min, predicted.values())), 1.1 * max(map(np.max, predicted.values()))]
    ax.plot(ends, ends, **THEORY, zorder=1)
    for i, label in enumerate(predicted):
        ax.plot(predicted[label], observed[label], "os^"[i], color=f"C{i}", alpha=0.8, label=label)
    ax.set(xlabel="predicted time to half the rest power", ylabel="observed time")
    ax.legend(loc="upper left")
    return ax


def plot_collapse_path(t, losses, ends, ax=None):
    """Losses above their value for spread features along the way to collapse, {label: (t,)}; dashed the ends."""
    ax = ax or plt.gca()
    for i, (label, values) in enumerate(losses.items()):
        ax.plot(t, values - values[0], "os^"[i], markersize=4, color=f"C{i}", label=label)
        if label in ends:
            ax.plot([0.75, 1], [ends[label]] * 2, **THEORY)
    ax.set(xlabel="from spread (0) to totally collapsed features (1)", ylabel="loss above that of spread  [nats]")
    ax.legend(loc="upper left")
    return ax


def plot_cross_entropy(temperatures, parts, measured, ax=None):
    """A cross-entropy's parts (t,) by teacher temperature, their sum dashed; the loss, {label: (t,)}, as dots."""
    ax = ax or plt.gca()
    for label, values in parts.items():
        ax.plot(temperatures, values, linestyle=":", color="0.45", linewidth=1.2)
        ax.text(temperatures[-1], values[-1], f" {label}", fontsize=8, color="0.25", va="center")
    ax.plot(temperatures, sum(parts.values()), **THEORY)
    for i, (label, values) in enumerate(measured.items()):
        fill = "none" if i else f"C{i}"
        ax.plot(temperatures, values, "os"[i], markersize=5 + 4 * i, color=f"C{i}", markerfacecolor=fill, label=label)
    ax.set(xscale="log", xlabel="temperature of the teacher", ylabel="cross-entropy  [nats]")
    ax.set_xlim(right=1.9 * temperatures[-1])
    ax.legend(loc="upper left")
    return ax


_LAYERS = [  # markers that stay visible where they coincide
    {"marker": "o", "color": "C0", "markersize": 4, "linestyle": "none", "zorder": 3},
    {"marker": "s", "color": "C1", "markersize": 4, "linestyle": "none", "zorder": 3},
    {"marker": "o", "color": "C2", "markersize": 9, "linestyle": "none", "markerfacecolor": "none"},
]


def plot_boundary(predicted, located, ax=None):
    """Located against predicted boundaries, {label: (k,)} each; inset: relative errors."""
    ax = ax or plt.gca()
    ends = [0.7 * min(map(np.min, predicted.values())), 1.4 * max(map(np.max, predicted.values()))]
    ax.plot(ends, ends, **THEORY, zorder=1)
    inset = ax.inset_axes([0.6, 0.13, 0.38, 0.32])
    for i, label in enumerate(predicted):
        ax.plot(predicted[label], located[label], **_LAYERS[i], label=label)
        error = 100 * (np.asarray(located[label]) / predicted[label] - 1)
        inset.plot(predicted[label], error, "os^"[i], markersize=3, color=f"C{i}", alpha=0.7)
    inset.set(xscale="log", ylim=(-5.5, 5.5))
    inset.set_title("error, %", fontsize=8)
    inset.tick_params(labelsize=7)
    ax.set(xscale="log", yscale="log", xlabel="predicted γ at which collapse turns unstable")
    ax.set_ylabel("γ located by simulation")
    ax.legend(loc="upper left")
    return ax


def plot_collapse_diagram(mu, chi, factors, reported, ax=None):
    """Stability of collapse: located χ at shares μ, {label: (k,)} each; dashed χ = cμ; reported {label: (χ, died)}."""
    ax = ax or plt.gca()
    x = np.array([0.05, 1.0])
    for c in sorted(set(factors.values())):
        ax.plot(x, c * x, **THEORY)
        ax.text(0.055, 0.065 * c, f"χ = {c if c > 1 else ''}μ", rotation=20, fontsize=8, color="0.25")
    for i, label in enumerate(mu):
        ax.plot(mu[label], chi[label], **_LAYERS[i], label=label)
    above = np.inf
    for label, (value, died) in sorted(reported.items(), key=lambda item: -item[1][0]):
        color = "#B00020" if died else "0.35"
        ax.plot([0.05, 1], [value] * 2, color=color, linewidth=1)
        above = min(value, above / 1.45)  # a label keeps its distance from the one above
        ax.text(1.03, above, label, color=color, fontsize=7.5, va="center")
    ax.fill_between(x, 0.02, max(factors.values()) * x, color="0.93", zorder=0)
    ax.set(xscale="log", yscale="log", xlim=(0.05, 1), ylim=(0.05, 500))
    ax.set(xlabel="μ, share of the variance that views do not share", ylabel="collapse number χ = γα²/(1 + α)")
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    return ax


def plot_atlas(table, points, ax=None):
    """`atlas`'s table with a picture of each configuration (n, 3): darker cells are better in their column.

    Pictures look along the first point; hollow points lie behind. Cells are shaded from the worst row to the best.
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


def _draw_sphere(ax, z):
    """Points (n, 3) on the sphere as seen along the first one."""
    frame = np.linalg.qr(np.column_stack([z[0], np.eye(3)]))[0]  # (3, 3), the first column is ±z_0
    x, y, depth = (z @ frame[:, [1, 2, 0]]).T
    depth = depth * np.sign(depth[0])
    ax.add_patch(plt.Circle((0, 0), 1, facecolor="white", edgecolor="0.6", linewidth=0.7))
    front = depth > -1e-9
    ax.plot(x[~front], y[~front], "o", color="0.6", markerfacecolor="white", markersize=3, markeredgewidth=0.7)
    ax.plot(x[front], y[front], "o", color="C0", markersize=3)
    ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    ax.axis("off")
