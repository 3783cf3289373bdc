"""The spectrum that the last layer of a run's head should have, given what it gets, beside the one that it has.

Of the network below only the inputs of the last layer are taken, and of the last layer itself nothing: the best one for
these inputs is found from a random start (`experiments.last_layer`), on half of the training images. Both are judged on
fresh views of held-out images, and on held-out images as they are evaluated, without augmentation.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simdino.augment import center_view, multi_crop
from simdino.config import Crops, Model, derived_seed
from simdino.data import load
from simdino.runs import Run, weights_path
from simdino.vit import Network
from simdino.weights import load_weights

from .. import theory
from ..experiments.last_layer import last_layer_inputs, last_layer_optimum, last_layer_spectrum, last_layer_weight
from ..measures.inputs import unit_rows
from ..measures.spectra import effective_rank
from .kept_results import kept

DRAWS = 4  # augmented views of each image, all pairs of which are aligned: with one pair it is noise that is fitted
MOST_IMAGES = 4000  # that are fitted to
RESIDUAL = 1e-3  # of the best last layer, at which its spectrum has come to rest
PLACES = 6  # of what is kept, behind the point


class HeadViews(NamedTuple):
    """What last layers are fitted to and judged on."""

    fitted: Tensor  # (v, n, c, s, s) views of half of the training images
    views: Tensor  # (2, k, c, s, s) views of held-out images
    center: Tensor  # (1, k, c, s, s) held-out images as they are evaluated


def head_views(run: Run) -> HeadViews:
    """Draw the views that the last layers of a run are fitted to and judged on, the same for every run of a recipe.

    Args:
        run: on disk.

    Raises:
        ValueError: a run with local crops, for which no loss has the stop-gradient's critical points.
    """
    data, crops = run.config["data"], Crops(**{k: _tuple(v) for k, v in run.config["crops"].items()})
    if crops.local_crops:
        raise ValueError(f"{run.name} has local crops, for which no best last layer is known")
    images = load(data["name"], root=data["root"], size=data["size"])
    generator = torch.Generator().manual_seed(derived_seed("last layer"))
    some = torch.randperm(len(images.train), generator=generator)[: min(len(images.train) // 2, MOST_IMAGES)]
    fitted, _ = multi_crop(images.train[some], replace(crops, global_crops=DRAWS), generator)
    views, _ = multi_crop(images.test, replace(crops, global_crops=2), generator)
    return HeadViews(fitted, views, center_view(images.test, crops.global_size, crops)[None])


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def run_network(run: Run, branch: Literal["teacher", "student"] = "student", step: int | None = None) -> Network:
    """Load a network of a run on disk, to be evaluated.

    Args:
        run: on disk.
        branch: which of its networks.
        step: one at which weights were kept; None is the end.
    """
    path = run.path / "checkpoint.safetensors" if step is None else weights_path(run.path, step)
    return load_weights(path, branch=branch, config=Model(**run.config["model"])).network.eval()


@torch.no_grad()
def head_inputs(network: Network, views: Tensor) -> Tensor:
    """What the last layer of a network's head gets of views (v, n, c, s, s): (v, n, m), the last of it the constant 1.

    Args:
        network: in evaluation mode, with a head.
    """
    features = torch.cat([network.backbone(some)[0] for some in views.flatten(0, 1).split(500)])
    return last_layer_inputs(network.head.mlp, features.unflatten(0, views.shape[:2]))


def loss_of_head(run: Run) -> dict[str, object]:
    """The options of `last_layer_optimum` that a run's loss is.

    Behind a stop-gradient the alignment's gradient is halved; if the rate is that of the mean of student and teacher,
    its gradient is halved as well, and the loss is the joint one.

    Args:
        run: of SimDINO or SimDINOv2.
    """
    objective, optim = run.config["objective"], run.config["optim"]
    stopped = optim["teacher"] != "student-with-gradient" and objective["rate_of"] == "student"
    return {
        "d": run.config["model"]["out"],
        "gamma": objective["gamma"],
        "eps": objective["eps"],
        "batch": optim["batch_size"] // optim["groups"],
        "stop_gradient": stopped,
    }
