"""A grid of pictures: images, and maps over them."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

GAP = 0.04  # between pictures, in widths of one


def plot_maps(columns: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    """Plot pictures side by side, one row per image, labels on top.

    Maps (n, h, w) are colored from their own least to their largest value; (n, h, w, 3) is RGB, 0 to 1 or uint8.
    All pictures have one size, whatever the resolution of their arrays.

    Args:
        columns: the pictures (n, h, w) or (n, h, w, 3) of each label; the first ones decide the shape.
    """
    ax = ax or plt.gca()
    first = np.asarray(next(iter(columns.values())))
    height = first.shape[1] / first.shape[2]  # of a picture whose width is 1
    for j, pictures in enumerate(columns.values()):
        for i, picture in enumerate(np.asarray(pictures)):
            left, bottom = j * (1 + GAP), -(i + 1) * height - i * GAP
            where = (left, left + 1, bottom, bottom + height)
            ax.imshow(picture, extent=where, cmap="viridis", interpolation="nearest")
    ax.set_xlim(0, len(columns) * (1 + GAP) - GAP)
    ax.set_ylim(-len(first) * height - (len(first) - 1) * GAP, 0)
    ax.set_xticks(np.arange(len(columns)) * (1 + GAP) + 0.5, list(columns))
    ax.tick_params(length=0, labelbottom=False, labeltop=True)
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.set_frame_on(False)
    return ax
