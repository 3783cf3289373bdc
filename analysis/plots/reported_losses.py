"""Runs that users of the official code reported, drawn on one scale beside their numbers and what they said."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .style import THEORY


def plot_reported(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the expansion term of reported runs between total collapse (0) and isotropy (1), one row per run.

    A bar spans what one batch can have, up to R*; training can attain the place 1. A dot is the value that was logged,
    if there is one. Runs that collapsed are red. The numbers and the reported outcome stand to the right.

    Args:
        table: what `runs.official_logs.reported` returns.
    """
    ax = ax or plt.gca()
    heights = np.arange(len(table))[::-1]
    colors = np.where(table["outcome"].str.startswith("collapsed"), "#B00020", "C0")
    reach = (table["ceiling"] - table["collapsed"]) / (table["isotropic"] - table["collapsed"])
    ax.hlines(heights, 0, reach, color="0.85", linewidth=7, zorder=1)
    ax.scatter(table["spread"], heights, color=colors, s=36, zorder=3)

    columns = {  # heading: position on the x axis, texts
        "collapsed": (1.36, table["collapsed"].map("{:.4f}".format)),
        "isotropic": (1.6, table["isotropic"].map("{:.3f}".format)),
        "R*": (1.82, table["ceiling"].map("{:.3f}".format)),
        "logged γR": (2.02, table["expansion"].map("{:.4g}".format).replace("nan", "not said")),
        "χ": (2.28, table["collapse_number"].map("{:.3g}".format)),
        "what was said": (2.44, table["outcome"]),
    }
    above = {"y": len(table) - 0.35, "fontsize": 9, "color": "0.35"}
    for heading, (x, texts) in columns.items():
        ax.text(x, s=heading, **above)
        for height, text, color in zip(heights, texts, colors, strict=True):
            ax.text(x, height, text, fontsize=9, va="center", color=color if heading == "what was said" else "black")
    for x, label in ((0, "total collapse"), (1, "isotropic: attainable")):
        ax.axvline(x, **THEORY, linewidth=1, ymax=0.93)
        ax.text(x, s=label, ha="center", **above)

    names = table["where"] + "    " + table["ranks"].astype(str) + " × " + table["images"].astype(str)
    ax.set_yticks(heights, names)
    ax.set(xlim=(-0.08, 3.29), ylim=(-0.6, len(table)))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_xlabel("γR between total collapse (0) and independent random directions (1)", loc="left")
    ax.grid(axis="y", visible=False)
    ax.spines["bottom"].set_bounds(-0.08, 1.28)
    return ax
