"""Instrumentation: the features of fixed images, kept at log-spaced steps. Features are kept, not opinions on them."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from simdino.augment import center_view, multi_crop
from simdino.config import Config, derived_seed
from simdino.data import Dataset
from simdino.runs import network_tensors, snapshot_path, weights_path
from simdino.vit import Network
from simdino.whole_files import write_tensors

IMAGES_AT_ONCE = 256  # images that are on the network's device at once


def snapshot_steps(steps: int, count: int) -> set[int]:
    """Choose the steps at which features are kept: 0, the last, and `count` evenly spaced in log step from 1.

    >>> sorted(snapshot_steps(1000, 3))
    [0, 1, 10, 100, 1000]
    """
    return {0, steps} | {round(steps ** (i / count)) for i in range(count)}


def probe_images(images: Dataset, config: Config) -> dict[str, Tensor]:
    """Choose the images that every snapshot sees, the same for each seed, and keep them on the host.

    Args:
        images: the run's.
        config: how many of them, and the augmentation.

    Returns:
        On the CPU: bank_images and bank_labels of the training part, test_images and test_labels of the held-out part,
        without labels where there are none; and views (2, k, c, s, s), two fixed augmentations of the first k test
        images.
    """
    r = config.record
    choose = torch.Generator().manual_seed(derived_seed("probe"))
    bank = torch.randperm(len(images.train), generator=choose)[: r.bank]
    test = torch.randperm(len(images.test), generator=choose)[: r.probe]
    two = replace(config.crops, global_crops=2, local_crops=0)
    test_images = images.test[test].cpu()
    views, _ = multi_crop(test_images[: r.views], two, torch.Generator().manual_seed(derived_seed("views")))
    chosen = {"bank_images": images.train[bank].cpu(), "test_images": test_images, "views": views}
    if images.classes:
        chosen["bank_labels"] = images.train_labels[bank].cpu()
        chosen["test_labels"] = images.test_labels[test].cpu()
    return chosen


def record_snapshot(
    path: Path, step: int, config: Config, probe: dict[str, Tensor], branches: dict[str, Network]
) -> float:
    """Write the snapshot of one step: features by the name "<branch>/<tap>/<set>".

    Of the test images every tap is kept, blocks pooled to one vector per image; of the first few also the patches
    (k, p, d), as the backbone gives them and, if the objective has patches, as the loss sees them. Of the views
    (2, k, d) backbone and head are kept, of the bank the backbone. Views and bank are seen by the network that is
    evaluated, the last of the branches: the teacher if there is one that learns.

    Args:
        path: the run's directory.
        step: the step that is next.
        config: the run's.
        probe: what `probe_images` chose.
        branches: the networks, by name.

    Returns:
        The seconds that it took.
    """
    start, taps = time.perf_counter(), {}
    for branch, network in branches.items():
        for tap, feature in record_features(network, probe["test_images"], config).items():
            taps[f"{branch}/{tap}/test"] = feature
        if branch == list(branches)[-1]:
            taps[f"{branch}/backbone/bank"] = record_features(network, probe["bank_images"], config)["backbone"]
            for tap, feature in record_features(network, probe["views"].flatten(0, 1), config).items():
                if tap in ("backbone", "head"):
                    taps[f"{branch}/{tap}/views"] = feature.unflatten(0, (2, -1))
        for tap, feature in patch_features(network, probe["test_images"][: config.record.patches], config).items():
            taps[f"{branch}/{tap}/patches"] = feature
    write_tensors(snapshot_path(path, step), taps)
    return time.perf_counter() - start


def record_weights(path: Path, step: int, branches: dict[str, Network]) -> None:
    """Write the networks as they are before one step, by the name "<branch>.<parameter>".

    Args:
        path: the run's directory.
        step: the step that is next.
        branches: the networks, by name.
    """
    write_tensors(weights_path(path, step), network_tensors(branches))


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # nothing is compiled for the few shapes here
def record_features(network: Network, images: Tensor, config: Config) -> dict[str, Tensor]:
    """Compute every tap of a network, one vector (n, d) per image, on the network's device.

    It is computed in float32, since bfloat16's rounding would fill the tail of a collapsed spectrum, and without
    stochastic depth.

    Args:
        network: in whatever mode, which it keeps.
        images: augmented views, taken as they are, or uint8 images, resized first; on any device.
        config: the run's.
    """
    parts, whole, training = [], ("tokens", "patches"), network.training  # what stays per patch is not kept here
    network.eval()
    for x in images.split(IMAGES_AT_ONCE):
        _, taps = network(_seen(x, network, config))
        pool = network.backbone.image_feature
        parts.append({k: pool(t) if t.ndim == 3 else t for k, t in taps.items() if k not in whole})
    network.train(training)
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def patch_features(network: Network, images: Tensor, config: Config) -> dict[str, Tensor]:
    """Compute the patches (k, p, d) of a few uint8 images: `backbone`, its tokens; `head`, what the loss sees of them.

    There is no `head` where the objective has no patches. Images are moved and taken in chunks as by
    `record_features`.
    """
    parts, training = [], network.training
    network.eval()
    for x in images.split(IMAGES_AT_ONCE):
        x = _seen(x, network, config)
        every = torch.arange(len(x) * (x.shape[2] // config.model.patch) ** 2, device=x.device)
        _, taps = network(x, None, every if config.patches else None)
        tokens = {"backbone": network.backbone.patch_tokens(taps["tokens"])}
        parts.append(tokens | ({"head": taps["selected"].unflatten(0, (len(x), -1))} if config.patches else {}))
    network.train(training)
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _seen(images: Tensor, network: Network, config: Config) -> Tensor:
    """What a network sees of images: they are moved to its device, and uint8 ones resized and normalized there."""
    x = images.to(next(network.parameters()).device)
    return center_view(x, config.crops.global_size, config.crops) if x.dtype == torch.uint8 else x
