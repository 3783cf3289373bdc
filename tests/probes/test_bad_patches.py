"""Every probe of patches on odd input of every kind: the same answer whatever the type and layout, or a sentence."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from analysis.probes import discovery, maps, segmentation, video
from tests.configurations import gaussian

N, GH, GW, D, K = 3, 4, 5, 6, 2
MASKS = (torch.arange(N * GH * GW) % 7 < 3).long().view(N, GH, GW)
CLASSES = {"classes": K}
Z = gaussian(N, GH, GW, D)


def scores(segmenter, z):
    return segmenter(z, MASKS[: len(z)], **CLASSES)(z)


def evaluated(z):
    segmenter = segmentation.prototype_segmenter(gaussian(N, GH, GW, z.shape[-1]), MASKS, **CLASSES)
    return segmentation.segmentation_confusion(segmenter, z, MASKS, **CLASSES).iou


# Each as a function of patches (n, gh, gw, d) to a tensor.
FEATURES = {
    "knn_segmenter": partial(scores, partial(segmentation.knn_segmenter, k=3)),
    "prototype_segmenter": partial(scores, segmentation.prototype_segmenter),
    "linear_segmenter": partial(scores, partial(segmentation.linear_segmenter, steps=5)),
    "segmentation_confusion": evaluated,
    "propagate_masks": lambda z: video.propagate_masks(z, MASKS[0]),
    "transfer_iou": lambda z: video.transfer_iou(z[:2] if len(z) > 2 else z, MASKS[:2]),
    "tokencut": lambda z: discovery.tokencut(z[0]),
    "maskcut": lambda z: discovery.maskcut(z[0]).masks,
    "patch_similarity": lambda z: maps.patch_similarity(z, (0, 0)),
    "pca_rgb": maps.pca_rgb,
    "pca_foreground": maps.pca_foreground,
}
COSINES = FEATURES.keys() - {"linear_segmenter", "pca_rgb", "pca_foreground"}


def broken(value: float, last: int = 1):
    z = Z.clone()
    z[0, 1, 2, :last] = value
    return z


REFUSED = {
    "nan": (broken(torch.nan), "contains NaN"),
    "inf": (broken(torch.inf), "contains NaN or infinite"),
    "no columns": (Z[..., :0], "must not be empty"),
    "no patches": (Z[:, :0], "must not be empty"),
    "complex": (Z * 1j, "must be real"),
    "text": (np.full(Z.shape, "a"), "must be numeric"),
    "three axes": (Z[0], "must have shape"),
    "five axes": (Z[None], "must have shape"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_refused_by_name(name):
    for kind, (z, message) in REFUSED.items():
        with pytest.raises(ValueError) as error:
            FEATURES[name](z)
        assert re.search(rf"\bpatches\b.*{message}", str(error.value)), kind


@pytest.mark.parametrize("name", sorted(COSINES))
def test_a_zero_patch_has_no_direction(name):
    with pytest.raises(ValueError, match="patches has a zero row"):
        FEATURES[name](broken(0, last=D))


@pytest.mark.parametrize("name", FEATURES)
def test_type_and_layout_do_not_matter(name):
    f, sixteenths = FEATURES[name], (16 * Z).round() / 16  # exact in half precision
    expected = f(sixteenths).double()
    for kind, z in {
        "float32": sixteenths.float(),
        "bfloat16": sixteenths.bfloat16().double().bfloat16(),
        "numpy": sixteenths.numpy(),
        "channels first": sixteenths.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "every other column": sixteenths.repeat_interleave(2, 2)[:, :, ::2],
    }.items():
        torch.testing.assert_close(
            f(z).double(), expected, rtol=1e-4, atol=1e-4, msg=lambda m, kind=kind: f"{kind}: {m}"
        )
    integers = (8 * Z).round().long()
    torch.testing.assert_close(f(integers).double(), f(integers.double()).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FEATURES)
def test_degenerate_patches_have_a_value(name):
    for z in (torch.ones(N, GH, GW, D), Z[..., :1], Z.sign()):
        assert FEATURES[name](z).double().isfinite().all()


@pytest.mark.parametrize("name", ["tokencut", "maskcut", "patch_similarity", "pca_rgb", "pca_foreground"])
def test_one_patch_has_a_value(name):
    assert FEATURES[name](Z[:1, :1, :1]).double().isfinite().all()


@pytest.mark.parametrize(
    "segmenter", [segmentation.knn_segmenter, segmentation.prototype_segmenter, segmentation.linear_segmenter]
)
def test_patches_of_another_dimension_are_refused(segmenter):
    with pytest.raises(ValueError, match="patches must have d = 6, as in training, got 5"):
        segmenter(Z, MASKS, **CLASSES)(Z[..., :5])
