"""Plots of what the diagnostics return: `plot_<quantity>(data, ax=None) -> ax`, no computation and no saving.

Theory is dashed (`THEORY`), measurements are dots, and a method has the same color everywhere (`COLORS`).
"""

from pathlib import Path

import matplotlib.pyplot as plt

# Okabe and Ito's palette, told apart under every common color blindness: blues and green for SimDINO, warm for DINO.
COLORS = {
    "simdino": "#0072B2",
    "simdinov2": "#003B5C",
    "simdino-no-teacher": "#56B4E9",
    "simdino-no-expansion": "#009E73",
    "dino": "#D55E00",
    "dinov2": "#7A3600",
    "dino-no-centering": "#E69F00",
    "dino-no-teacher": "#CC79A7",
}
BASELINE_COLORS = {"random": "0.65", "pixels": "0.25"}
THEORY = {"linestyle": "--", "color": "0.25"}


def use_style() -> None:
    """Set matplotlib to the project's style; a notebook's first cell calls it."""
    plt.style.use(Path(__file__).with_name("paper.mplstyle"))
