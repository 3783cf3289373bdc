"""The dense tasks from files to rows: pictures whose colors are their classes."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from analysis.probes import tasks
from analysis.probes.backbone import load_backbone
from analysis.probes.segmentation import linear_segmenter
from analysis.probes.tasks import probe_backbones
from simdino.config import Model

COLORS = np.array([[10, 10, 250], [250, 60, 40], [60, 250, 40]], np.uint8)  # negative cosines about ImageNet's mean


def write(root, picture: np.ndarray, i: int, *, mask: np.ndarray | None = None) -> None:
    for kind, array in (("images", COLORS[picture]), ("masks", picture if mask is None else mask)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / kind / f"{i:03d}.png")


def squares(root, n: int = 10, classes: int = 2):
    """Pictures of 48 × 56 pixels with a square of class 1 or 2, on whole patches of 4 pixels, that moves."""
    for i in range(n):
        mask = np.zeros((48, 56), np.uint8)
        mask[8 : 8 + 20, 4 * (1 + i % 6) : 4 * (1 + i % 6) + 24] = 1 + i % classes
        write(root, mask, i)
    return root


@pytest.fixture
def pixels():
    return load_backbone("pixels", config=Model(stem="patch", patch=4, dim=8, heads=1), device="cpu")


def by_measure(results):
    return {row.measure: row for row in results.itertuples()}


def test_colors_are_segmented_where_there_are_labels(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(tasks, "linear_segmenter", partial(linear_segmenter, steps=200, lr=0.05))
    squares(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:, :4] = 255
        Image.fromarray(mask).save(path)
    rows = by_measure(probe_backbones([pixels], [tmp_path], tasks=["segment"], ignore=255))
    for kind in ("linear", "k-NN", "prototypes"):
        row = rows[f"mIoU, {kind}"]
        assert 0.85 < row.value <= 1  # corners are rounded
        assert row.low <= row.value <= row.high
        assert row.n == 2  # every fifth
        assert rows[f"IoU of 1, {kind}"].value > 0.8
        assert f"IoU of 255, {kind}" not in rows


def test_colors_are_discovered(tmp_path, pixels):
    """Of 10 images all are used, since nothing is trained."""
    corloc, ap, ap50 = probe_backbones([pixels], [squares(tmp_path)], tasks=["discover"]).itertuples()
    assert (corloc.value, corloc.n, corloc.note) == (1, 10, "the box around the whole image: 0.000")
    assert (ap.value, ap.n, ap.note) == (1, 10, "10 regions are true objects")
    assert ap50.value == 1


def test_what_is_found_in_images_without_an_object_counts_against_precision(tmp_path, pixels):
    squares(tmp_path)
    for i in range(5):  # what is seen there is not called an object
        picture = np.array(Image.open(tmp_path / f"masks/{i:03d}.png"))
        write(tmp_path, picture, i, mask=np.zeros_like(picture))
    corloc, ap, _ = probe_backbones([pixels], [tmp_path], tasks=["discover"]).itertuples()
    assert (corloc.value, corloc.n) == (1, 5)
    assert ap.n == 10
    assert ap.value < 1


def test_small_regions_are_no_objects(tmp_path, pixels):
    squares(tmp_path)
    for i in range(10, 12):
        mask = np.zeros((48, 56), np.uint8)
        mask[4:7, 4:7] = 1  # 9 pixels, and 10.5 are needed
        write(tmp_path, mask, i)
    assert next(probe_backbones([pixels], [tmp_path], tasks=["discover"]).itertuples()).n == 10


def test_discovery_needs_objects(tmp_path, pixels):
    squares(tmp_path, n=5)
    for i in range(1, 5):
        write(tmp_path, np.zeros((48, 56), np.uint8), i)
    with pytest.raises(ValueError, match="discover needs two images with objects of at least 10"):
        probe_backbones([pixels], [tmp_path], tasks=["discover"])


def test_colors_are_followed(tmp_path, pixels):
    for name in ("one", "two"):
        squares(tmp_path / name, n=6, classes=1)
    rows = by_measure(probe_backbones([pixels], [tmp_path], tasks=["video"]))
    assert list(rows) == ["J&F mean", "J mean", "F mean"]
    assert rows["J mean"].n == 2
    assert rows["J mean"].value > 0.9  # corners are rounded
    assert rows["J mean"].low == rows["J mean"].value  # both are alike
