"""Every device has the numbers of the CPU, whatever device each argument is on, and a training step seldom waits.

Without a GPU the device is a pretended one, which refuses what a GPU would refuse; where there is a GPU, it is tested,
too.
"""

import inspect
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch

import analysis
from analysis.experiments import (
    atlas,
    collapse_boundary,
    energies,
    injected_collapse,
    landscape,
    linear_encoders,
    sampling,
)
from analysis.measures import moments, neighbors, pair_tiles, uncertainty
from analysis.probes import discovery, image, maps, segmentation, video
from analysis.probes.backbone import load_backbone
from analysis.probes.tasks import probe_backbones
from analysis.runs import vit_layers
from benchmarks import gpu
from benchmarks.measure_calls import CALLS, GRID, LABELS, OTHER, VIEWS, D, K, Z, call, called, parts
from simdino.config import override
from simdino.recipes import recipe
from simdino.train import get_run
from simdino.vit import Network
from tests import pretended_device
from tests.configurations import gaussian, sphere
from tests.probes.test_tasks import squares

PINNED = re.search(r"^torch==(.+)$", (Path(__file__).parents[1] / "constraints.txt").read_text(), re.MULTILINE)[1]


class Cost(NamedTuple):
    """What one step asks of a device."""

    copies: int  # between host and device
    waits: int  # of the host
    kernels: int


# These may fall; let none rise. First of a step between two that measure more, of each recipe as it is but for its 8
# images; then of a published recipe's, with local crops and a network of one block: the mean of two steps, since an
# augmentation is launched where an image draws it.
CEILINGS = {
    "simdino": (Cost(copies=1, waits=0, kernels=248), Cost(copies=1, waits=0, kernels=543)),
    "simdinov2": (Cost(copies=1, waits=0, kernels=353), Cost(copies=1, waits=0, kernels=681)),
    "dino": (Cost(copies=1, waits=0, kernels=323), Cost(copies=1, waits=0, kernels=604)),
    "dinov2": (Cost(copies=1, waits=0, kernels=512), Cost(copies=1, waits=0, kernels=826)),
}


@pytest.fixture
def pretended():
    """The pretended device; torch knows one accelerator at a time, and this one by hooks that change."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, which is tested instead")
    if torch.__version__.partition("+")[0] != PINNED:
        pytest.skip(f"a device can be pretended for torch {PINNED}, not for {torch.__version__}")
    pretended_device.register()
    return pretended_device.DEVICE


@pytest.fixture
def device(request):
    return "cuda" if torch.cuda.is_available() else request.getfixturevalue("pretended")


# --- Diagnostics


MASKS = torch.arange(4 * 6 * 6).view(4, 6, 6) // 5 % K


def segmented(patches, masks, segmenter, **options):
    return segmentation.predict_masks(segmenter(patches, masks, classes=K, **options), patches, (6, 6))


def confusion(patches, masks):
    segmenter = segmentation.prototype_segmenter(patches, masks, classes=K)
    return segmentation.segmentation_confusion(segmenter, patches, masks, classes=K).miou.item()


def updated(z, labels):
    return moments.Moments(D, classes=K, device=z.device).update(z, labels).mean


def layers(images, labels):
    torch.manual_seed(0)
    config = recipe("simdino").model
    network = Network(config, size=images.shape[-1], channels=images.shape[1]).backbone.to(images.device)
    table = vit_layers.diagnose_layers(network, images, labels, batch=8, blocks=2)
    return [float(table[name].sum()) for name in ("knn", "effective_rank", "rank_within", "attention_entropy")]


# Others that people call, by module and name.
FRAMES = energies.frame_potential_energy()
MORE = {
    "moments.Moments.update": call(updated, Z, LABELS),
    "neighbors.knn_accuracy_with_misses": call(neighbors.knn_accuracy_with_misses, Z, LABELS, OTHER, LABELS),
    "pair_tiles.gram_cosines": call(pair_tiles.gram_cosines, Z),
    "uncertainty.leave_one_out_error": call(uncertainty.leave_one_out_error, Z),
    "uncertainty.leave_one_out_interval": call(uncertainty.leave_one_out_interval, 0.0, Z[:, 0]),
    **{f"energies.{name}": call(energy, sphere(2, 12, 4)) for name, energy in atlas.ENERGIES.items()},
    "atlas.geometry": call(atlas.geometry, Z),
    "atlas.free_directions": call(partial(atlas.free_directions, FRAMES), torch.eye(3, dtype=Z.dtype)),
    "collapse_boundary.view_shares": call(collapse_boundary.view_shares, VIEWS, VIEWS.flip(1)),
    "landscape.hessian_spectrum": call(partial(landscape.hessian_spectrum, FRAMES), sphere(4, 3)),
    "landscape.orthonormal_sets": call(partial(landscape.orthonormal_sets, 2), Z),
    "linear_encoders.view_covariances": call(linear_encoders.view_covariances, VIEWS),
    "sampling.effective_rank_intervals": call(sampling.effective_rank_intervals, Z, 60, draws=1, resamples=3),
    "sampling.sampling_bias": call(sampling.sampling_bias, Z, [16], eps=0.5, draws=2),
    "injected_collapse.collapse_response": call(injected_collapse.collapse_response, Z, LABELS, share=0.5, rank=2),
    "image.few_shot_accuracy": call(image.few_shot_accuracy, Z, LABELS, OTHER, LABELS, shots=2),
    "image.linear_probe": call(image.linear_probe, Z, LABELS, OTHER, LABELS, epochs=2),
    "image.logistic_regression": call(image.logistic_regression, Z, LABELS, OTHER, LABELS),
    "segmentation.linear_segmenter": call(segmented, GRID, MASKS, segmentation.linear_segmenter, steps=4),
    "segmentation.knn_segmenter": call(segmented, GRID, MASKS, segmentation.knn_segmenter, k=3),
    "segmentation.prototype_segmenter": call(segmented, GRID, MASKS, segmentation.prototype_segmenter),
    "segmentation.segmentation_confusion": call(confusion, GRID, MASKS),
    "segmentation.patch_labels": call(segmentation.patch_labels, MASKS, (3, 3), classes=K),
    "maps.pca_rgb": call(maps.pca_rgb, GRID),
    "maps.pca_foreground": call(maps.pca_foreground, GRID),
    "maps.patch_similarity": call(maps.patch_similarity, GRID, (1, 1)),
    "discovery.normalized_cut": call(discovery.normalized_cut, (Z @ Z.mT).exp()),
    "discovery.tokencut": call(discovery.tokencut, GRID[0]),
    "discovery.maskcut": call(discovery.maskcut, GRID[0]),
    "discovery.connected_regions": call(discovery.connected_regions, MASKS[0], classes=(1, 2)),
    "discovery.bounding_boxes": call(discovery.bounding_boxes, MASKS > 1),
    "discovery.mask_iou": call(discovery.mask_iou, MASKS > 1, MASKS > 0),
    "discovery.box_iou": call(discovery.box_iou, torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 0, 3, 2]])),
    "video.propagate_masks": call(video.propagate_masks, GRID, MASKS[0]),
    "video.transfer_iou": call(video.transfer_iou, GRID[:2], MASKS[:2, ::2, ::2]),
    "video.davis_scores": call(video.davis_scores, MASKS, MASKS.flip(0)),
    "vit_layers.token_shares": call(vit_layers.token_shares, GRID.flatten(1, 2)),
    "vit_layers.diagnose_layers": call(layers, gaussian(16, 1, 16, 16).float(), LABELS[:16]),
}


def takes_features(name):
    parameters = inspect.signature(getattr(analysis, name)).parameters.values()
    return name == "Moments" or any(re.search("Tensor|ndarray|Any", str(p.annotation)) for p in parameters)


def test_every_public_function_of_features_is_called():
    assert {name for name in analysis.__all__ if takes_features(name)} == CALLS.keys()


@pytest.mark.parametrize("name", [*CALLS, *MORE])
def test_a_device_has_the_numbers_of_the_cpu_wherever_each_argument_is(name, device):
    wanted = (CALLS | MORE)[name]
    expected = parts(called(wanted, "cpu", "all"))
    count = sum(isinstance(x, torch.Tensor) for x in (*wanted.args, *wanted.kwargs.values()))
    for which in ("all", "first", "others") if count > 1 else ("all",):
        where = "cpu" if which == "others" else torch.device(device).type
        with pretended_device.watching() as log:
            found = parts(called(wanted, device, which))
        assert [type(x) is float for x in found] == [type(x) is float for x in expected]
        assert {x.device.type for x in found if isinstance(x, torch.Tensor)} <= {where}, which
        found = [x.cpu() if isinstance(x, torch.Tensor) else x for x in found]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, equal_nan=True)
        assert log.draws == [], "random numbers of a measure are drawn on the CPU and moved"


def test_a_backbone_on_a_device_is_probed_as_on_the_cpu(device, tmp_path):
    data, counts = ["digits", squares(tmp_path)], {"train": 60, "test": 30}
    tasks = ["knn", "few-shot", "logistic", "discover"]
    found, expected = (
        probe_backbones([load_backbone("pixels", device=place)], data, tasks=tasks, **counts)
        for place in (device, "cpu")
    )
    pd.testing.assert_frame_equal(found, expected)


def test_a_mix_of_devices_is_refused_and_named(pretended):
    z = Z.to(pretended)
    with pretended_device.watching() as log:
        assert (z * Z[0, 0]).device == z.device  # a number of the host is welcome
        with pytest.raises(RuntimeError, match=r"tests/test_devices.py:\d+: expected all tensors to be on the same"):
            z + Z
        with pytest.raises(RuntimeError, match="generator of the host"):
            torch.rand(3, generator=torch.Generator(), device=z.device)
        with pytest.raises(TypeError, match="device type tensor to numpy"):
            z.numpy()
    assert [mix.op for mix in log.mixes] == ["add", "rand"]


def test_copies_waits_and_kernels_are_counted_at_their_lines(pretended):
    with pretended_device.watching() as log:
        z = Z.to(pretended, non_blocking=True)
        z = z.mT.mul(2)  # a view, and one kernel
        z[z > 0].sum().item()
        z.tolist()
    here = {event.place.partition(":")[0] for event in log.copies + log.waits}
    assert here == {"tests/test_devices.py"}
    assert [copy.op for copy in log.copies] == ["to the device, without waiting", "to the host"]
    assert [wait.op for wait in log.waits] == ["index", "_local_scalar_dense", "copy to the host"]
    assert log.kernels == {"mul": 1, "gt": 1, "index": 1, "sum": 1}


WAITING = {
    "item": lambda z: z[0, 0].item(),
    "float": lambda z: float(z[0, 0]),
    "bool": lambda z: bool(z[0, 0]),
    "tolist": lambda z: z.tolist(),
    "cpu": lambda z: z.cpu(),
    "nonzero": lambda z: z.nonzero(),
    "index by a mask": lambda z: z[z > 0],
    "equal": lambda z: z.equal(z),
    "allclose": lambda z: z.allclose(z),
    "is_nonzero": lambda z: z[0, 0].is_nonzero(),
    "unique": lambda z: z.unique(),
    "unique_consecutive": lambda z: z.flatten().unique_consecutive(),
    "masked_select": lambda z: z.masked_select(z > 0),
    "repeat_interleave": lambda z: z.repeat_interleave((z[:, 0] > 0).long(), 0),
    "bincount": lambda z: (z[:, 0] > 0).long().bincount(),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_the_host_waits_for_is_counted(name, pretended):
    z = Z.to(pretended)
    with pretended_device.watching() as log:
        z.mT.mul(2).where(z.mT > 0, 1.0).sum()  # waits for nothing
    assert log.waits == []
    with pretended_device.watching() as log:
        WAITING[name](z)
    assert log.waits


def test_the_check_on_a_gpu_finds_no_difference(device):
    rows = list(gpu.measures(device))
    assert [row for row in rows if "error" in row or row["difference"] > 1e-5] == []
    assert {row["measure"] for row in rows} == CALLS.keys()


# --- Training


def few_steps(method, steps):
    few = {"snapshots": 1, "probe": 8, "bank": 8, "views": 2, "patches": 1, "log_every": 100}
    changes = {"optim.steps": steps, "optim.batch_size": 8, "optim.precision": "fp32"}
    return override(recipe(method), changes | {f"record.{name}": value for name, value in few.items()})


@pytest.mark.parametrize("method", CEILINGS)
def test_a_step_mixes_no_devices_and_keeps_under_its_ceiling(method, pretended, tmp_path):
    logs, runs = [], []
    for steps in (3, 5):  # the first and the last measure more: the difference is of two that do not
        with pretended_device.watching() as log:
            runs.append(get_run(few_steps(method, steps), tmp_path, device=pretended, progress=False))
        assert log.mixes == []
        logs.append(log)
    short, long = logs
    more = {kind: Counter(getattr(long, kind)) - Counter(getattr(short, kind)) for kind in Cost._fields}
    cost = Cost(*(math.ceil(counts.total() / 2) for counts in more.values()))
    assert all(x <= y for x, y in zip(cost, CEILINGS[method][0], strict=True)), (cost, more)
    cpu = get_run(few_steps(method, 3), tmp_path / "cpu", device="cpu", progress=False).metrics
    pd.testing.assert_frame_equal(runs[0].metrics.drop(columns="seconds"), cpu.drop(columns="seconds"), rtol=1e-4)


@pytest.mark.parametrize("method", gpu.METHODS)
def test_two_steps_of_a_published_recipe_wait_for_nothing(method, device):
    step = gpu.Step(gpu.large(method, "s", tiny=True), device, "eager")
    step(0)  # makes what is kept
    with pretended_device.watching() as log, gpu.nothing_waits(device):
        step(1)
        step(2)
    assert log.mixes == log.waits == []
    assert {copy.op for copy in log.copies} <= {"to the device, without waiting"}
    cost = Cost(*(math.ceil(count / 2) for count in (len(log.copies), len(log.waits), log.kernels.total())))
    assert all(x <= y for x, y in zip(cost, CEILINGS[method][1], strict=True)), (cost, log.kernels)
