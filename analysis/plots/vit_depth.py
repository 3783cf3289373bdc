"""Diagnostics of a vision transformer's layers by depth: quantities, attention by head, shares of energy, spectra."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from .style import THEORY

NETWORKS = {"pretrained": "C0", "untrained": "0.45"}


def plot_layers(tables: dict[str, xr.Dataset], quantity: str, ax: Axes | None = None) -> Axes:
    """Plot a positive quantity of networks by depth, with bars of ± 2 standard errors; values of 0 are left out.

    Args:
        tables: of each network, what `runs.vit_layers.diagnose_layers` returns, of one token: its columns `quantity`
            and `quantity`_se are (layer,).
        quantity: the name of the column.
    """
    ax = ax or plt.gca()
    for i, (name, table) in enumerate(tables.items()):
        value = table[quantity].where(table[quantity] > 0)
        style = {"color": NETWORKS.get(name, f"C{i}"), "linewidth": 1, "elinewidth": 1.5}
        ax.errorbar(table["layer"], value, 2 * table[f"{quantity}_se"], fmt="o-", label=name, **style)
    _label_layers(ax, max(len(table["layer"]) for table in tables.values()))
    return ax


def plot_heads(tables: dict[str, xr.Dataset], quantity: str, ax: Axes | None = None) -> Axes:
    """Plot a quantity of attention by depth, one dot per head, the networks side by side.

    Args:
        tables: of each network, what `runs.vit_layers.diagnose_layers` returns: its column `quantity` is (layer, head).
        quantity: the name of the column.
    """
    ax = ax or plt.gca()
    for i, (name, table) in enumerate(tables.items()):
        x = table["layer"] + 0.12 * (i - (len(tables) - 1) / 2)
        color = NETWORKS.get(name, f"C{i}")
        ax.plot(x, table[quantity].transpose("layer", "head"), "o", color=color, markersize=3.5, alpha=0.7)
    _label_layers(ax, max(len(table["layer"]) for table in tables.values()))
    return ax


def plot_token_shares(share: xr.DataArray, ax: Axes | None = None) -> Axes:
    """Plot the four shares of the patch tokens' energy by depth, stacked to 1.

    Args:
        share: (layer, part), the column `share` of what `runs.vit_layers.diagnose_layers` returns.
    """
    ax = ax or plt.gca()
    share = share.transpose("layer", "part")
    colors = ("0.8", "C3", "C4", "C0")
    ax.stackplot(share["layer"], share.T, colors=colors, edgecolor="white", linewidth=0.7)
    middle = share.isel(layer=len(share["layer"]) // 2)
    tops = np.cumsum(middle.values)
    for part, width, top in zip(share["part"].values, middle.values, tops, strict=True):
        color = "white" if part == "rest" else "black"
        ax.text(middle["layer"], top - width / 2, part, ha="center", va="center", color=color)
    _label_layers(ax, len(share["layer"]))
    ax.set(ylim=(0, 1), xlim=(0, len(share["layer"]) - 1), ylabel="share of E‖z‖²")
    return ax


def plot_layer_spectra(eigenvalues: xr.DataArray, white_noise: xr.DataArray, ax: Axes | None = None) -> Axes:
    """Plot the spectra of some layers, the deeper the darker, and dashed that of white noise of the same n.

    Args:
        eigenvalues: (layer, eigen), each layer's sum to 1; those of at most 1e-6 are left out.
        white_noise: (eigen,).
    """
    ax = ax or plt.gca()
    shades = plt.get_cmap("Blues")(np.linspace(0.35, 0.95, len(eigenvalues["layer"])))
    for layer, color in zip(eigenvalues["layer"].values, shades, strict=True):
        spectrum = eigenvalues.sel(layer=layer)
        shown = spectrum.where(spectrum > 1e-6)
        ax.plot(spectrum["eigen"], shown, "-", color=color, label=f"layer {layer}", linewidth=1.4)
    ax.plot(white_noise["eigen"], white_noise, **THEORY, label="white noise, same n")
    ax.set(xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="share of the variance")
    ax.legend(fontsize=8)
    return ax


def _label_layers(ax: Axes, count: int) -> None:
    """Label the axis of layers: 0 is the embedding, then blocks, the last the final norm."""
    ticks = list(range(0, count - 2, 2))  # the last but one would touch
    ax.set_xticks([*ticks, count - 1], [*map(str, ticks), "norm"])
    ax.set_xlabel("layer: 0 embedding, then blocks")
