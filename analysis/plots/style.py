"""The look of every figure: theory is dashed, measurements are dots, a method has one color everywhere."""

from pathlib import Path

import matplotlib.pyplot as plt

# Okabe and Ito's palette, whose colors stay apart under every common color blindness: blues and green for SimDINO,
# warm colors for DINO.
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
    """Set matplotlib to the project's style, as the first cell of every notebook does.

    What somebody's own matplotlibrc says, such as text.usetex, is set back: figures are the same everywhere.
    """
    plt.style.use(["default", Path(__file__).with_name("paper.mplstyle")])
