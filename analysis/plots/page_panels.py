"""The figure of a page: what a run, or a file of features, says."""

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .curves import plot_level
from .style import THEORY

SETS = {"features": "C0", "head": "C0", "backbone": "C2"}
FEATURE_PANELS = [["relative", "spectrum"], ["cosines", "sizes"]]
RUN_PANELS = [["rate", "rank", "alignment", "knn"], ["relative", "spectrum", "cosines", "gradients"]]


def plot_page(
    page: "simdino.analysis.reporting.page.Page",  # noqa: F821  a string, since plots import no torch
) -> Figure:
    """Plot a page as a figure: four panels for features, eight for a run, of which five are curves over its steps.

    Args:
        page: what `reporting.page.one_page` returns.
    """
    if page.curves is None:
        fig, axes = plt.subplot_mosaic(FEATURE_PANELS, figsize=(12, 8))
        _plot_sizes(page.sizes, axes["sizes"])
    else:
        fig, axes = plt.subplot_mosaic(RUN_PANELS, figsize=(17, 8))
        _plot_rate(page.log, page.curves, axes["rate"])
        _plot_curves(page.curves, axes)
        _plot_gradients(page.log, axes["gradients"])
    _plot_relative(page.relative, axes["relative"])
    _plot_spectra(page.spectra, axes["spectrum"])
    _plot_cosines(page.cosines, axes["cosines"])
    fig.suptitle(page.name, x=0.01, ha="left", fontsize=10)
    return fig


def _plot_rate(log: pd.DataFrame, curves: xr.Dataset, ax: Axes) -> None:
    """Plot the logged rate of batches; dashed what is attainable, R* of one batch of all images, and total collapse."""
    ax.plot(log["step"], log["rate"], ".", color="C0", markersize=3)
    plot_level(log["rate_ceiling"].iloc[-1], "R*: all images in one batch", ax, x=0.5)
    plot_level(log["rate_isotropic"].iloc[-1], "attainable (isotropic)", ax, x=0.5, below=True)
    plot_level(curves["rate_collapsed"].item(), "total collapse", ax, x=0.7)
    ax.set(title="coding rate of a batch, head", xlabel="training step", ylabel="R  [nats]", ylim=(0, None))


def _plot_curves(curves: xr.Dataset, axes: dict[str, Axes]) -> None:
    """Plot effective rank, alignment and k-NN accuracy at the recorded steps."""
    rank, alignment, knn = axes["rank"], axes["alignment"], axes["knn"]
    for name in ("head", "backbone"):
        at = curves.sel(layer=name)
        rank.plot(at["step"], at["effective_rank"], ".-", color=SETS[name], label=name, linewidth=1)
        alignment.plot(at["step"], at["alignment"], ".-", color=SETS[name], label=name, linewidth=1)
    accuracy = curves["knn"].sel(layer="backbone")
    knn.plot(accuracy["step"], accuracy, ".-", color=SETS["backbone"], linewidth=1)
    if accuracy.notnull().all():  # the images have classes
        plot_level(curves["knn_pixels"].item(), "raw pixels", knn, x=0.6)
        plot_level(accuracy[0].item(), "untrained network", knn, x=0.6, below=True)
    rank.set(title="effective rank", ylabel="exp H(λ)")
    alignment.set(title="alignment of two views (0: invariant)", ylabel="½ E‖z − z′‖²")
    knn.set(title="k-NN accuracy, backbone", ylabel="accuracy")
    rank.legend()
    for ax in (rank, alignment, knn):
        ax.set_xscale("symlog", linthresh=1, linscale=0.5)
        ax.set(xlim=(-0.2, 1.15 * float(curves["step"].max())), xlabel="training step")


def _plot_gradients(log: pd.DataFrame, ax: Axes) -> None:
    """Plot the norms of SimDINO's two gradients at the features; of other methods, that of the parameters' gradient."""
    if "gradient_rate" in log:
        ax.plot(log["step"], log["gradient_alignment"], ".", color="C1", markersize=3, label="alignment")
        ax.plot(log["step"], log["gradient_rate"], ".", color="C0", markersize=3, label="γ · rate")
        ax.set_title("gradient norms at the head's features")
    else:
        ax.plot(log["step"], log["gradient_norm"], ".", color="C0", markersize=3, label="all parameters")
        ax.set_title("gradient norms before clipping")
    ax.set(xlabel="training step", ylabel="norm", ylim=(0, None))
    ax.legend()


def _plot_relative(relative: pd.DataFrame, ax: Axes) -> None:
    """Plot measures divided by what white noise of the same size has, with ± 2 standard errors."""
    measures = list(dict.fromkeys(relative["measure"]))[::-1]
    sets = list(dict.fromkeys(relative["set"]))
    for i, name in enumerate(sets):
        part = relative[relative["set"] == name]
        y = part["measure"].map(measures.index) - 0.18 * (i - (len(sets) - 1) / 2)
        ax.hlines(y, part["low"], part["high"], color=SETS[name], linewidth=2)
        ax.plot(part["value"], y, "o", color=SETS[name])
    ax.axvline(1, **THEORY, linewidth=1)
    ax.set_yticks(range(len(measures)), measures)
    ax.set(title="measures over white noise's, ± 2 se", xlabel="measured / white noise", xlim=(0, None))
    ax.grid(axis="y", visible=False)


def _plot_spectra(spectra: pd.DataFrame, ax: Axes) -> None:
    """Plot the eigenvalues of each set by index; dashed white noise of the same n and d."""
    for name, part in spectra.groupby("set", sort=False):
        ax.plot(part["index"], part["white_noise"], **THEORY | {"color": SETS[name]}, linewidth=1)
        seen = part[part["eigenvalue"] > 1e-7]
        ax.plot(seen["index"], seen["eigenvalue"], ".", color=SETS[name], label=name)
    ax.set(xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue of Γ")
    ax.set_title("spectrum of unit rows (dashed: white noise)")
    ax.legend()


def _plot_cosines(cosines: pd.DataFrame, ax: Axes) -> None:
    """Plot the cosines of pairs of samples; dashed those of independent random directions."""
    styles = {"all": "-", "one class": "-", "different classes": ":"}
    for (name, pairs), part in cosines.groupby(["set", "pairs"], sort=False):
        label = name if pairs == "all" else f"{name}, {pairs}"
        ax.plot(part["cosine"], part["density"], styles[pairs], color=SETS[name], label=label, linewidth=1.3)
    for name, part in cosines.drop_duplicates(["set", "cosine"]).groupby("set", sort=False):
        ax.plot(part["cosine"], part["white_noise"], **THEORY | {"color": SETS[name]}, linewidth=0.8)
    seen = cosines[cosines[["density", "white_noise"]].max(axis=1) > 1e-2]["cosine"]
    ax.set(xlim=(max(seen.min() - 0.05, -1), min(seen.max() + 0.05, 1)), ylim=(0, None))
    ax.set(title="cosines of pairs (dashed: white noise)", xlabel="cosine of two samples", ylabel="density")
    ax.legend(fontsize=8)


def _plot_sizes(sizes: pd.DataFrame, ax: Axes) -> None:
    """Plot the effective rank of subsets of the samples by size, white noise dashed. A flat curve has settled."""
    for name, part in sizes.groupby("set", sort=False):
        ax.plot(part["n"], part["white_noise"], **THEORY, linewidth=1)
        ax.plot(part["n"], part["effective_rank"], "o-", color=SETS[name], linewidth=1)
    title = "effective rank of fewer samples (dashed: white noise)"
    ax.set(xscale="log", ylim=(0, None), title=title, xlabel="samples n", ylabel="exp H(λ)")
