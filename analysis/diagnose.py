"""What a run's recorded features say: every diagnostic at every snapshot, as one labelled table."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr
from torch import Tensor

from analysis import theory
from analysis._input import unit_rows
from analysis.collapse import alignment, feature_std, mean_collapse, uniformity
from analysis.probes import knn_accuracy
from analysis.spectra import effective_rank, eigenvalues, participation_ratio
from simdino.losses import coding_rate
from simdino.runs import Run

EPS = 0.05**0.5  # for runs whose objective has no ε of its own: SimDINO's published one


def diagnose(run: Run | str | Path) -> xr.Dataset:
    """Diagnostics of a run's probe features over training, labelled by step, branch and layer.

    All on held-out images, rows put on the unit sphere (so that layers compare), uncentred but where named so:
    eigenvalues (descending, of Γ = zᵀz/n: they sum to 1), effective_rank, effective_rank_centered,
    participation_ratio, mean_collapse, feature_std; uniformity; alignment ½E‖z₁ − z₂‖² of two fixed augmentations;
    rate with rate_isotropic, rate_ceiling and rate_collapsed for the head (attrs: eps); knn of the backbone against
    the run's bank, and knn_pixels, the same of raw pixels. What a layer was not recorded for is NaN.

    branch: student and teacher; without self-distillation they are one network and hold the same numbers.
    ValueError: a run without snapshots, or with a damaged file, which is named.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    if not run.steps:
        raise ValueError(f"{run.path} has recorded no features yet")
    probe, eps = run.probe, run.config["objective"].get("eps", EPS)
    labels = {"train_labels": probe["bank_labels"], "test_labels": probe["test_labels"]}
    per_step = []
    for step in run.steps:
        snapshot = run.snapshot(step)
        branches = sorted({key.split("/")[0] for key in snapshot})
        rows = [_branch(snapshot, branch, labels, eps) for branch in branches]
        if branches == ["student"]:
            branches, rows = ["student", "teacher"], 2 * rows
        per_step.append(xr.concat(rows, xr.Variable("branch", branches)))
    table = xr.concat(per_step, xr.Variable("step", run.steps))
    pixels = [probe[f"{part}_images"].flatten(1).float() for part in ("bank", "test")]
    table["knn_pixels"] = knn_accuracy(pixels[0], labels["train_labels"], pixels[1], labels["test_labels"]).item()
    n, d = snapshot["student/head/test"].shape
    table["rate_isotropic"] = theory.rate_isotropic(n, d, eps)
    table["rate_ceiling"] = theory.rate_maximum(n, d, eps)
    table["rate_collapsed"] = theory.rate_collapsed(d, eps)
    return table.assign_attrs(run=run.name, recipe=run.config["recipe"], seed=run.config["seed"], eps=eps, n=n, d=d)


def diagnose_all(runs: Iterable[Run]) -> xr.Dataset:
    """`diagnose` of several runs, labelled by recipe and seed as well; recipes × seeds must be complete."""
    tables = [diagnose(run) for run in runs]
    labels = ("recipe", "seed")
    cells = [t.assign_coords({k: t.attrs[k] for k in labels}).expand_dims(labels) for t in tables]
    return xr.combine_by_coords(cells, combine_attrs="drop_conflicts")


def _branch(snapshot: dict[str, Tensor], branch: str, labels: dict[str, Tensor], eps: float) -> xr.Dataset:
    """One network at one step: the layers side by side."""
    names = [key.split("/")[1] for key in snapshot if key.startswith(f"{branch}/") and key.endswith("/test")]
    order = {"backbone": 1, "head": 2, "prototypes": 3}  # the blocks first
    names = sorted(names, key=lambda name: (order.get(name, 0), name))
    layers = [_layer(snapshot, branch, name, labels, eps) for name in names]
    return xr.concat(layers, xr.Variable("layer", names), join="outer")


def _layer(snapshot: dict[str, Tensor], branch: str, layer: str, labels: dict[str, Tensor], eps: float) -> xr.Dataset:
    """One layer of one network at one step."""
    z = unit_rows(snapshot[f"{branch}/{layer}/test"])  # (n, d)
    spectrum = eigenvalues(z)
    values = {
        "effective_rank": effective_rank(spectrum),
        "effective_rank_centered": effective_rank(z, center=True),
        "participation_ratio": participation_ratio(spectrum),
        "mean_collapse": mean_collapse(z),
        "feature_std": feature_std(z),
        "uniformity": uniformity(z),
    }
    if f"{branch}/{layer}/views" in snapshot:
        values["alignment"] = alignment(unit_rows(snapshot[f"{branch}/{layer}/views"])) / 2
    if layer == "head":
        values["rate"] = coding_rate(z, eps=eps)
    if layer == "backbone":
        values["knn"] = knn_accuracy(snapshot[f"{branch}/{layer}/bank"], test=z, **labels)
    table = xr.Dataset({name: value.item() for name, value in values.items()})
    table["eigenvalues"] = ("eigen", spectrum.numpy())
    return table.assign_coords(eigen=np.arange(1, len(spectrum) + 1))
