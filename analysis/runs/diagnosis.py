"""What a run's recorded features say: every diagnostic at every snapshot, as one labeled table."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simdino.config import PUBLISHED_EPS
from simdino.losses import coding_rate, sinkhorn_knopp
from simdino.runs import Run, evaluated_branch

from .. import theory
from ..measures.alignment_uniformity import alignment, uniformity
from ..measures.collapse import feature_std, mean_collapse, prototype_entropy
from ..measures.inputs import unit_rows
from ..measures.neighbors import knn_accuracy_with_misses
from ..measures.spectra import effective_rank, eigenvalues, participation_ratio


def diagnose(run: Run | str | Path, *, last: bool = False, eps: float | None = None) -> "xarray.Dataset":  # noqa: F821
    """Diagnose a run: every diagnostic of its recorded features over training, as one labeled table.

    All features are of held-out images, on the unit sphere so that layers compare, and uncentered unless the name says
    otherwise. What was not recorded for a layer is NaN. Variables of the table, by step, branch and layer:

    - eigenvalues (eigen): of Γ = zᵀz/n, descending; they sum to 1
    - effective_rank, effective_rank_centered, participation_ratio, mean_collapse, feature_std, uniformity
    - alignment: ½E‖z₁ − z₂‖² of two fixed augmentations of an image
    - rate: of the head, in nats; beside it rate_collapsed, rate_isotropic (what mini-batches can attain) and
      rate_ceiling (R*, one batch of all images), and spread, its place between collapsed (0) and isotropic (1)
    - prototype_marginal, _conditional, _information: entropies of DINO's targets, made by `sinkhorn_knopp` if the run's
      are, else softmax((t − c)/τ), where the mean of the scores stands in for the running center c; without c in a run
      without centering
    - knn: of the backbone, by the 20 nearest in the run's bank (by all of a smaller one); an image of a class that the
      bank lacks is a miss. knn_pixels: the same of raw pixels, centered or not, whichever is better. NaN of images
      without classes.

    Args:
        run: a `simdino.runs.Run`, on disk or archived, or its directory.
        last: only the last recorded step.
        eps: the ε of the rate; None takes the objective's, or 0.2236 if it has none.

    Returns:
        An xarray Dataset. branch is "student" and "teacher" (one network, with the same numbers, in a run without
        self-distillation); attrs are run, recipe, seed, eps, n and d.

    Raises:
        ValueError: a run without snapshots, or with a damaged file, which is named; an ε that an archived run has not
            been diagnosed with.

    >>> diagnose("runs/nothing-is-here")
    Traceback (most recent call last):
    ValueError: runs/nothing-is-here is not a run directory: it has no config.json
    """
    import pandas as pd

    run = run if isinstance(run, Run) else Run.load(run)
    if run.archived:
        return _archived(run, last=last, eps=eps)
    if not run.steps:
        raise ValueError(f"{run.path} has recorded no features yet")
    probe, objective = run.probe, {"eps": PUBLISHED_EPS} | run.config["objective"]
    objective |= {} if eps is None else {"eps": eps}
    labels = probe.get("bank_labels"), probe.get("test_labels")
    steps = run.steps[-1:] if last else run.steps
    first = run.snapshot(steps[0])
    layers = _layers(first)
    width = max(first[f"student/{layer}/test"].shape[1] for layer in layers)
    alone = evaluated_branch(first) == "student"
    rows, spectra = [], np.full((len(steps), 2, len(layers), width), np.nan)
    for i, step in enumerate(steps):
        snapshot = run.snapshot(step)
        for k, layer in enumerate(layers):
            for j, branch in enumerate(("student", "teacher")):
                if j == 0 or not alone:
                    values, spectrum = _measures(snapshot, f"{branch}/{layer}", labels, objective)
                rows.append({"step": step, "branch": branch, "layer": layer, **values})
                spectra[i, j, k, : len(spectrum)] = spectrum
    table = pd.DataFrame(rows).set_index(["step", "branch", "layer"]).to_xarray().sel(layer=layers)
    table["eigenvalues"] = (("step", "branch", "layer", "eigen"), spectra)
    table["eigen"] = np.arange(1, width + 1)
    table["knn_pixels"] = _pixel_knn(probe, labels)
    (n, d), eps = first["student/head/test"].shape, objective["eps"]
    table["rate_isotropic"] = theory.rate_isotropic(n, d, eps)
    table["rate_ceiling"] = theory.rate_maximum(n, d, eps)
    table["rate_collapsed"] = theory.rate_collapsed(d, eps)
    table["spread"] = (table["rate"] - table["rate_collapsed"]) / (table["rate_isotropic"] - table["rate_collapsed"])
    return table.assign_attrs(run=run.name, recipe=run.config["recipe"], seed=run.config["seed"], eps=eps, n=n, d=d)


# Variables of the table that are one number for the whole run.
_LEVELS = ("knn_pixels", "rate_isotropic", "rate_ceiling", "rate_collapsed")


def packed(table: "xarray.Dataset") -> tuple[dict, dict[str, np.ndarray]]:  # noqa: F821
    """Take a table of `diagnose` apart for the archive: what is said in words, and the arrays measures, eigenvalues.

    Args:
        table: from `diagnose`.

    Returns:
        A record that JSON can hold, and the arrays (variables, steps, branches, layers) and (steps, branches, layers,
        eigenvalues).
    """
    names = [name for name in table.data_vars if name not in (*_LEVELS, "eigenvalues")]
    axes = ["step", "branch", "layer"]
    arrays = {"measures": np.stack([table[name].transpose(*axes).values for name in names])}
    arrays["eigenvalues"] = table["eigenvalues"].transpose(*axes, "eigen").values
    record = {axis: table[axis].values.tolist() for axis in axes} | {"names": names, "attrs": dict(table.attrs)}
    return record | {"levels": {name: float(table[name]) for name in _LEVELS}}, arrays


def _archived(run: Run, *, last: bool, eps: float | None) -> "xarray.Dataset":  # noqa: F821
    """The table that `packed` took apart."""
    import xarray as xr

    record = run.record["diagnosis"]
    if eps not in (None, record["attrs"]["eps"]):
        raise ValueError(f"{run.path} was diagnosed with ε = {record['attrs']['eps']:.4f} when it was archived")
    axes, measures = ("step", "branch", "layer"), run.arrays["measures"].astype(float)
    table = xr.Dataset({name: (axes, values) for name, values in zip(record["names"], measures, strict=True)})
    table["eigenvalues"] = ((*axes, "eigen"), run.arrays["eigenvalues"].astype(float))
    table = table.assign_coords({axis: record[axis] for axis in axes})
    table = table.assign_coords(eigen=np.arange(1, table.sizes["eigen"] + 1))
    table = table.assign(record["levels"]).assign_attrs(record["attrs"])
    return table.isel(step=slice(-1, None)) if last else table


def diagnose_all(runs: Iterable[Run], *, last: bool = False) -> "xarray.Dataset":  # noqa: F821
    """`diagnose` several runs into one table, labeled by recipe and seed; a layer that a recipe lacks is NaN.

    Args:
        runs: of any recipes; those of one recipe are its seeds.
        last: only the last recorded step.

    Raises:
        ValueError: two runs of one recipe that differ in more than the seed, or not even in that.
    """
    tables = [diagnose(run, last=last) for run in _one_configuration_each(runs)]
    recipes = list(dict.fromkeys(t.attrs["recipe"] for t in tables))
    rows = [[t for t in tables if t.attrs["recipe"] == recipe] for recipe in recipes]
    return _stack([_stack(row, "seed", [t.attrs["seed"] for t in row]) for row in rows], "recipe", recipes)


def training_log(runs: Iterable[Run]) -> "xarray.Dataset":  # noqa: F821
    """The logged numbers of several runs in one table, labeled by recipe, seed and step.

    It has the steps at which all numbers were logged, every `record.log_every`-th and the last; `run.metrics` has all
    steps. What a method does not log is NaN. alignment is SimDINO's ½E‖z₁ − z₂‖², half of the measure `alignment`.

    Args:
        runs: of any recipes; those of one recipe are its seeds.

    Raises:
        ValueError: as in `diagnose_all`.
    """
    import pandas as pd

    runs = _one_configuration_each(runs)
    frames = []
    for run in runs:
        log, last = run.metrics, run.config["optim"]["steps"] - 1
        log = log[(log["step"] % run.config["record"]["log_every"] == 0) | (log["step"] == last)]
        frames.append(log.assign(recipe=run.config["recipe"], seed=run.config["seed"]))
    return pd.concat(frames).set_index(["recipe", "seed", "step"]).to_xarray()


def _one_configuration_each(runs: Iterable[Run]) -> list[Run]:
    """The runs; refused if two of one recipe, which a table would show as seeds of it, differ in anything else."""
    runs, seen = list(runs), {}
    for run in runs:
        recipe, seed = run.config["recipe"], run.config["seed"]
        for other in seen.setdefault(recipe, []):
            if other.config["seed"] == seed or other.config | {"seed": seed} != run.config:
                raise ValueError(f"{other.name} and {run.name} are not two seeds of one configuration of {recipe}")
        seen[recipe].append(run)
    return runs


_Labels = tuple[Tensor | None, Tensor | None]  # of the bank and of the test images


def _pixel_knn(probe: dict[str, Tensor], labels: _Labels) -> float:
    """k-NN accuracy of raw pixels, the baseline that a feature has to beat, the better of centered and not."""
    bank, test = (probe[f"{part}_images"].flatten(1).float() for part in ("bank", "test"))
    centered = knn_accuracy_with_misses(bank - bank.mean(0), labels[0], test - bank.mean(0), labels[1])
    return max(knn_accuracy_with_misses(bank, labels[0], test, labels[1]), centered)


def _stack(tables: list["xarray.Dataset"], dim: str, labels: list) -> "xarray.Dataset":  # noqa: F821
    """Tables side by side along a new labeled dimension; attributes that differ are dropped."""
    import xarray as xr

    options = {"join": "outer", "combine_attrs": "drop_conflicts", "data_vars": "all", "coords": "minimal"}
    return xr.concat(tables, xr.Variable(dim, labels), **options)


def _layers(snapshot: dict[str, Tensor]) -> list[str]:
    """The recorded layers from the images to the loss."""
    names = [key.split("/")[1] for key in snapshot if key.startswith("student/") and key.endswith("/test")]
    order = {"backbone": 1, "head": 2, "prototypes": 3}  # the blocks first
    return sorted(names, key=lambda name: (order.get(name, 0), len(name), name))


def _measures(
    snapshot: dict[str, Tensor], layer: str, labels: _Labels, objective: dict
) -> tuple[dict[str, float], np.ndarray]:
    """Scalars and spectrum of one layer, "<branch>/<tap>", at one step."""
    z = unit_rows(snapshot[f"{layer}/test"])  # (n, d)
    spectrum = eigenvalues(z)
    values = {
        "effective_rank": effective_rank(spectrum),
        "effective_rank_centered": effective_rank(z, center=True),
        "participation_ratio": participation_ratio(spectrum),
        "mean_collapse": mean_collapse(z),
        "feature_std": feature_std(z),
        "uniformity": uniformity(z),
    }
    if f"{layer}/views" in snapshot:
        values["alignment"] = alignment(unit_rows(snapshot[f"{layer}/views"])) / 2
    if layer.endswith("head"):
        values["rate"] = coding_rate(z, eps=objective["eps"])
    if layer.endswith("prototypes"):
        values |= _target_entropies(snapshot[f"{layer}/test"], objective)
    values = {name: value.item() for name, value in values.items()}
    if f"{layer}/bank" in snapshot:
        values["knn"] = knn_accuracy_with_misses(snapshot[f"{layer}/bank"], labels[0], z, labels[1])
    return values, spectrum.numpy()


def _target_entropies(scores: Tensor, objective: dict) -> dict[str, Tensor]:
    """`prototype_entropy` of the targets that DINO makes of scores (n, K)."""
    temp = objective["teacher_temp"]
    if objective.get("centering", "ema") == "sinkhorn":  # runs from before the choice have no "centering"
        scores = temp * sinkhorn_knopp(scores, temp=temp).clamp_min(torch.finfo(torch.float32).tiny).log()
    elif objective["center_momentum"] < 1:
        scores = scores - scores.mean(0)
    return {f"prototype_{name}": value for name, value in prototype_entropy(scores, temp=temp)._asdict().items()}
