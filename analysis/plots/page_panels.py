"""Plots of the studies: of published and own runs, of a pretrained network, in the style of `plots.style`."""

import matplotlib.pyplot as plt

from .curves import plot_level
from .style import THEORY

BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#D55E00", "#009E73", "#B00020", "0.45"
SETS = {"features": BLUE, "head": BLUE, "backbone": GREEN}


def plot_page(dossier):
    """A figure of a `dossier.Dossier`: of features four panels, of a run its curves besides."""
    if dossier.curves is None:
        fig, axes = plt.subplots(2, 2, figsize=(12, 8))
        _plot_sizes(dossier.sizes, axes[1, 1])
        spectrum, relative, cosines = axes.flat[:3]
    else:
        fig, axes = plt.subplots(2, 4, figsize=(17, 8))
        _plot_rate(dossier.log, dossier.curves, axes[0, 0])
        _plot_curves(dossier.curves, axes[0, 1:])
        _plot_gradients(dossier.log, axes[1, 0])
        spectrum, relative, cosines = axes[1, 1:]
    _plot_set_spectra(dossier.spectra, spectrum)
    _plot_relative(dossier.relative, relative)
    _plot_cosines(dossier.cosines, cosines)
    fig.suptitle(dossier.name, x=0.01, ha="left", fontsize=10)
    return fig


def _plot_rate(log, curves, ax):
    """The logged rate of batches; dashed what isotropic features would have, the ceiling and total collapse."""
    ax.plot(log["step"], log["rate"], ".", color=BLUE, markersize=3)
    low = curves["rate_collapsed"].item()
    for value, label in ((log["rate_ceiling"].iloc[-1], "ceiling"), (log["rate_isotropic"].iloc[-1], "isotropic")):
        plot_level(value, label, ax, x=0.7)
    plot_level(low, "total collapse", ax, x=0.7)
    ax.set(title="coding rate of a batch, head", xlabel="training step", ylabel="R  [nats]", ylim=(0, None))


def _plot_curves(curves, axes):
    """Effective rank, alignment and k-NN accuracy at the recorded steps."""
    rank, alignment, knn = axes
    for name in ("head", "backbone"):
        at = curves.sel(layer=name)
        rank.plot(at["step"], at["effective_rank"], ".-", color=SETS[name], label=name, linewidth=1)
        alignment.plot(at["step"], at["alignment"], ".-", color=SETS[name], label=name, linewidth=1)
    accuracy = curves["knn"].sel(layer="backbone")
    knn.plot(accuracy["step"], accuracy, ".-", color=SETS["backbone"], linewidth=1)
    plot_level(curves["knn_pixels"].item(), "raw pixels", knn, x=0.6)
    plot_level(accuracy[0].item(), "untrained network", knn, x=0.6, below=True)
    rank.set(title="effective rank", ylabel="exp H(λ)")
    alignment.set(title="alignment of two views (0: invariant)", ylabel="½ E‖z − z′‖²")
    knn.set(title="k-NN accuracy, backbone", ylabel="accuracy")
    rank.legend()
    for ax in axes:
        ax.set_xscale("symlog", linthresh=1, linscale=0.5)
        ax.set(xlim=(-0.2, 1.15 * float(curves["step"].max())), xlabel="training step")


def _plot_gradients(log, ax):
    """Norms of the gradients of SimDINO's two terms at the features; of other methods, that of the parameters."""
    both = {"gradient_alignment": ("alignment", ORANGE), "gradient_rate": ("γ · rate", BLUE)}
    shown = both if "gradient_rate" in log else {"gradient_norm": ("all parameters", BLUE)}
    for name, (label, color) in shown.items():
        ax.plot(log["step"], log[name], ".", color=color, markersize=3, label=label)
    where = "at the head's features" if "gradient_rate" in log else "before clipping"
    ax.set(title=f"gradient norms {where}", xlabel="training step", ylabel="norm", ylim=(0, None))
    ax.legend()


def _plot_set_spectra(spectra, ax):
    """Eigenvalues of each set by index; dashed white noise of the same n and d."""
    for name, part in spectra.groupby("set", sort=False):
        color = SETS.get(name, BLUE)
        ax.plot(part["index"], part["white_noise"], **THEORY | {"color": color}, linewidth=1)
        seen = part[part["eigenvalue"] > 1e-7]
        ax.plot(seen["index"], seen["eigenvalue"], ".", color=color, label=name)
    title = "spectrum of unit rows (dashed: white noise)"
    ax.set(xscale="log", yscale="log", title=title, xlabel="index of the eigenvalue", ylabel="eigenvalue of Γ")
    ax.legend()


def _plot_relative(relative, ax):
    """Measures over what white noise of the same size has, ± 2 standard errors."""
    names = list(dict.fromkeys(relative["measure"]))[::-1]
    sets = list(dict.fromkeys(relative["set"]))
    for i, name in enumerate(sets):
        part = relative[relative["set"] == name]
        y = part["measure"].map(names.index) - 0.18 * (i - (len(sets) - 1) / 2)
        ax.hlines(y, part["low"], part["high"], color=SETS.get(name, BLUE), linewidth=2)
        ax.plot(part["value"], y, "o", color=SETS.get(name, BLUE), label=name)
    ax.axvline(1, **THEORY, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set(title="measures beside white noise's, ± 2 se", xlabel="measured / white noise", xlim=(0, None))
    ax.grid(axis="y", visible=False)


def _plot_cosines(cosines, ax):
    """Cosines of pairs of samples; dashed those of independent random directions."""
    styles = {"all": "-", "one class": "-", "different classes": ":"}
    for (name, pairs), part in cosines.groupby(["set", "pairs"], sort=False):
        label = name if pairs == "all" else f"{name}, {pairs}"
        ax.plot(part["cosine"], part["density"], styles[pairs], color=SETS.get(name, BLUE), label=label, linewidth=1.3)
    for name, part in cosines.drop_duplicates(["set", "cosine"]).groupby("set", sort=False):
        ax.plot(part["cosine"], part["white_noise"], **THEORY | {"color": SETS.get(name, BLUE)}, linewidth=0.8)
    seen = cosines[cosines[["density", "white_noise"]].max(axis=1) > 1e-2]["cosine"]
    ax.set(xlim=(max(seen.min() - 0.05, -1), min(seen.max() + 0.05, 1)), ylim=(0, None))
    ax.set(title="cosines of pairs (dashed: white noise)", xlabel="cosine of two samples", ylabel="density")
    ax.legend(fontsize=8)


def _plot_sizes(sizes, ax):
    """Effective rank of so many of the samples; dashed white noise: has it settled?"""
    for name, part in sizes.groupby("set", sort=False):
        ax.plot(part["n"], part["white_noise"], **THEORY, linewidth=1)
        ax.plot(part["n"], part["effective_rank"], "o-", color=SETS.get(name, BLUE), linewidth=1)
    title = "effective rank of fewer samples (dashed: white noise)"
    ax.set(xscale="log", ylim=(0, None), title=title, xlabel="samples n", ylabel="exp H(λ)")
