"""Grids of images and their maps."""

import matplotlib.pyplot as plt
import numpy as np

from analysis.plots.image_grids import plot_maps


def test_maps_are_drawn_in_rows_of_images():
    fig, ax = plt.subplots()
    columns = {"image": np.zeros((3, 8, 16, 3), np.uint8), "map": np.random.default_rng(0).random((3, 2, 4))}
    assert plot_maps(columns, ax) is ax
    assert [label.get_text() for label in ax.get_xticklabels()] == ["image", "map"]
    assert len(ax.images) == 6
    extents = np.array([picture.get_extent() for picture in ax.images])
    np.testing.assert_allclose(extents[:, 1] - extents[:, 0], 1)
    np.testing.assert_allclose(extents[:, 3] - extents[:, 2], 0.5)  # as wide as the images, at any resolution
    assert extents[:, 0].max() < ax.get_xlim()[1]
    assert extents[:, 2].min() >= ax.get_ylim()[0]
    plt.close(fig)
