"""The networks of recorded runs with their heads, and the views that last layers are fitted to and judged on."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from simdino.augment import block_masks, center_view, multi_crop
from simdino.config import Crops, Model, derived_seed
from simdino.data import load
from simdino.runs import Run, weights_path
from simdino.vit import Network
from simdino.weights import load_weights


class HeadViews(NamedTuple):
    """What last layers are fitted to and judged on."""

    fitted: Tensor  # (v, n, c, s, s) views of half of the training images
    views: Tensor  # (2, k, c, s, s) views of held-out images
    center: Tensor  # (1, k, c, s, s) held-out images as they are evaluated


def head_views(run: Run, *, draws: int, most: int) -> HeadViews:
    """Draw the views that the last layers of a run are fitted to and judged on, the same for every run of a recipe.

    Args:
        run: on disk.
        draws: views of each image that is fitted to.
        most: images that are fitted to, at most; half of the training images if they are fewer.

    Raises:
        ValueError: a run with local crops, for which no loss has the stop-gradient's critical points.
    """
    data, crops = run.config["data"], run_crops(run)
    if crops.local_crops:
        raise ValueError(f"{run.name} has local crops, for which no best last layer is known")
    images = load(data["name"], root=data["root"], size=data["size"])
    generator = torch.Generator().manual_seed(derived_seed("last layer"))
    some = torch.randperm(len(images.train), generator=generator)[: min(len(images.train) // 2, most)]
    fitted, _ = multi_crop(images.train[some], replace(crops, global_crops=draws), generator)
    views, _ = multi_crop(images.test, replace(crops, global_crops=2), generator)
    return HeadViews(fitted, views, center_view(images.test, crops.global_size, crops)[None])


def run_crops(run: Run) -> Crops:
    """The crops of a run on disk."""
    return Crops(**{k: tuple(v) if isinstance(v, list) else v for k, v in run.config["crops"].items()})


def run_student(run: Run, step: int | None = None) -> Network:
    """Load the student of a run on disk, to be evaluated.

    Args:
        run: on disk.
        step: one at which weights were kept; None is the end.
    """
    path = run.path / "checkpoint.safetensors" if step is None else weights_path(run.path, step)
    return load_weights(path, branch="student", config=Model(**run.config["model"])).network.eval()


@torch.no_grad()
def view_features(network: Network, views: Tensor, *, hidden: Crops | None = None) -> Tensor:
    """The image features (v, n, m) of views (v, n, c, s, s), which a network's head gets.

    Args:
        network: in evaluation mode.
        hidden: hide patches as these crops say, as a student of masked views is trained; None hides none.
    """
    generator, features = torch.Generator().manual_seed(derived_seed("hidden patches")), []
    for some in views.flatten(0, 1).split(500):
        side = some.shape[-1] // network.config.patch
        how = hidden and {"ratio": hidden.mask_ratio, "p": hidden.mask_p, "generator": generator}
        masks = how and block_masks(len(some), (side, side), **how).flatten(1)
        features.append(network.backbone(some, masks)[0])
    return torch.cat(features).unflatten(0, views.shape[:2])
