"""Plots of the studies: of published and own runs, of a pretrained network, in the style of `plots.style`."""

import matplotlib.pyplot as plt
import numpy as np

from .curves import plot_level
from .page_panels import BLUE, GRAY
from .style import THEORY

NETWORKS = {"pretrained": BLUE, "untrained": GRAY}


def plot_layers(values, ax=None, *, errors=None):
    """A positive quantity {network: (layer,)} by depth, zeros left out, ± 2 standard errors if given the same way."""
    ax = ax or plt.gca()
    for i, (name, value) in enumerate(values.items()):
        color = NETWORKS.get(name, f"C{i}")
        bars, value = None if errors is None else 2 * errors[name], value.where(value > 0)
        ax.errorbar(value["layer"], value, bars, fmt="o-", color=color, label=name, linewidth=1, elinewidth=1.5)
    _depth(ax, max(len(value["layer"]) for value in values.values()))
    return ax


def plot_heads(values, ax=None):
    """A quantity {network: (layer, head)} of attention by depth: a dot a head."""
    ax = ax or plt.gca()
    for i, (name, value) in enumerate(values.items()):
        for head in value["head"]:
            x = value["layer"] + 0.12 * (i - (len(values) - 1) / 2)  # side by side
            ax.plot(x, value.sel(head=head), "o", color=NETWORKS.get(name, f"C{i}"), markersize=3.5, alpha=0.7)
    _depth(ax, max(len(value["layer"]) for value in values.values()))
    return ax


def plot_token_shares(share, ax=None):
    """Shares (layer, part) of the patch tokens' energy by depth, stacked to 1."""
    ax = ax or plt.gca()
    colors = dict(zip(share["part"].values, ("0.8", "#E69F00", "#56B4E9", BLUE), strict=True))
    ax.stackplot(share["layer"], share.T, colors=colors.values(), edgecolor="white", linewidth=0.7)
    middle = share.isel(layer=len(share["layer"]) // 2)
    for part, top in zip(colors, middle.cumsum("part").values, strict=True):
        height = top - float(middle.sel(part=part)) / 2
        ax.text(middle["layer"], height, part, ha="center", va="center", color="white" if part == "rest" else "black")
    _depth(ax, len(share["layer"]))
    ax.set(ylim=(0, 1), xlim=(0, len(share["layer"]) - 1), ylabel="share of E‖z‖²")
    return ax


def plot_layer_spectra(eigenvalues, white_noise, ax=None, *, floor=1e-6):
    """Spectra (layer, eigen) of some layers, each summing to 1, the deeper the darker; dashed white noise, same n."""
    ax = ax or plt.gca()
    cmap, count = plt.get_cmap("Blues"), len(eigenvalues["layer"])
    for i, layer in enumerate(eigenvalues["layer"].values):
        lam = eigenvalues.sel(layer=layer)
        color = cmap(0.35 + 0.6 * i / max(count - 1, 1))
        ax.plot(lam["eigen"], lam.where(lam > floor), "-", color=color, label=f"layer {layer}", linewidth=1.4)
    ax.plot(range(1, len(white_noise) + 1), white_noise, **THEORY, label="white noise, same n")
    ax.set(xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="share of the variance")
    ax.legend(fontsize=8)
    return ax


def plot_depth(tables, *, note=None):
    """A figure of `layers.layers` of some networks, {name: table}; spectra and shares are the first one's."""
    fig, axes = plt.subplots(2, 4, figsize=(16, 7.5))
    name, first = next(iter(tables.items()))
    attrs, image = first.attrs, {k: table.sel(token="image") for k, table in tables.items()}
    shown = np.linspace(1, len(first["layer"]) - 2, 4).round()
    plot_layer_spectra(
        image[name]["eigenvalues_centered"].sel(layer=shown), first["white_noise"].dropna("eigen"), axes[0, 0]
    ).set_title(f"class token, centered spectrum: {name}")
    quantities = {
        "effective_rank_centered": (axes[0, 1], "class token, effective rank of centered", "exp H(λ)"),
        "mean_collapse": (axes[0, 2], "class token, share of the mean", "‖E z‖² / E‖z‖²"),
        "knn": (axes[0, 3], "class token, k-NN accuracy", "accuracy"),
        "rank_within": (axes[1, 1], "effective rank of an image's patches", "exp H(λ)"),
    }
    for quantity, (ax, title, label) in quantities.items():
        errors = {k: table[f"{quantity}_se"] for k, table in image.items()}
        plot_layers({k: table[quantity] for k, table in image.items()}, ax, errors=errors)
        ax.set(title=title, ylabel=label)
    for ax, value in ((axes[0, 1], attrs["rank_noise"]), (axes[1, 1], attrs["within_noise"])):
        plot_level(value, "white noise", ax, below=True)
        ax.set(yscale="log", ylim=(1, 2 * value))
    plot_token_shares(first["share"], axes[1, 0]).set_title(f"energy of the patch tokens: {name}")
    for ax, quantity, value, label in (
        (axes[1, 2], "entropy", attrs["entropy"], "nats"),
        (axes[1, 3], "distance", attrs["distance"], "patches"),
    ):
        plot_heads({k: table[f"attention_{quantity}"] for k, table in tables.items()}, ax)
        plot_level(value, "", ax)
        ax.set(title=f"{quantity} of attention by head (dashed: uniform)", ylabel=label, ylim=(0, 1.1 * value))
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables), title=note)
    return fig


def _depth(ax, count):
    """The axis of layers: 0 the embedding, then blocks, then the final norm."""
    ticks = list(range(0, count - 2, 2))  # the last but one would touch
    ax.set_xticks([*ticks, count - 1], [*map(str, ticks), "norm"])
    ax.set_xlabel("layer: 0 embedding, then blocks")
