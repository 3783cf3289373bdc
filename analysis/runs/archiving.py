"""Put finished runs into the archive, study by study: `simdino archive STUDY ...`."""

import json
import multiprocessing
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from simdino.archive import ARCHIVE, FROM_CONFIG, NOT_KEPT, SCHEMA, digest
from simdino.runs import Run, evaluated_branch
from simdino.whole_files import whole_file

from ..measures.inputs import unit_rows
from ..measures.moments import Moments
from .collapsed_runs import growth_outcome
from .correlations import backbone_measures
from .diagnosis import diagnose, packed
from .head_spectra import forecast_outcome, last_layer_outcome
from .kept_results import result_name
from .outcomes import (
    batch_rates,
    end_outcome,
    fourth_order_outcome,
    linear_outcome,
    patch_outcome,
    photo_outcome,
    probe_outcome,
    survival_forecast,
    untrained_outcome,
)

# What notebooks ask of archived runs, besides the log and the diagnosis: a function of a run, and its options.
RESULTS: list[tuple[Callable[..., dict], dict[str, object]]] = [
    (end_outcome, {}),
    (untrained_outcome, {}),
    (linear_outcome, {"first": False}),
    (linear_outcome, {"first": True}),
    (backbone_measures, {}),
    (patch_outcome, {}),
    (growth_outcome, {"watched": 2000}),
    (fourth_order_outcome, {}),
    (probe_outcome, {}),
]
# And of the recipes themselves, as it takes some seconds for each run.
PROBED = ("simdino", "simdinov2", "dino", "dinov2")
RESULTS_OF_PROBED: list[tuple[Callable[..., dict], dict[str, object]]] = [
    (batch_rates, {}),
    (photo_outcome, {"train": 2000, "test": 1000}),
]
# Of recipes whose last layer is predicted, and of runs that keep weights on the way, from which their end is foretold.
PREDICTED = ("simdino", "simdino-no-teacher", "simdino-joint", "simdinov2")
# Of DINO's short runs, those of the studies of what survives, of which a reduced network foretells the end.
FORETOLD_STEPS = 200


def asked_results(run: Run) -> list[tuple[Callable[..., dict], dict[str, object]]]:
    """Which results the archive keeps of a run.

    Args:
        run: on disk.
    """
    name = run.config["recipe"]
    asked = RESULTS + (RESULTS_OF_PROBED if name in PROBED else [])
    asked = [*asked, (last_layer_outcome, {})] if name in PREDICTED else asked
    if name.startswith("dino@") and run.config["optim"]["steps"] == FORETOLD_STEPS:
        asked = [*asked, (survival_forecast, {})]
    return [*asked, (forecast_outcome, {})] if run.weight_steps else asked


def archive_study(
    study: str, runs: Sequence[str | Path], *, profile: str = "cpu", folder: str | Path = ARCHIVE
) -> Path:
    """Write a study's finished runs into one file of the archive, whole or not at all.

    Args:
        study: its name, which the file has.
        runs: their directories, those of `simdino.needed_runs.study_configs`.
        profile: that trained them.
        folder: of the archive.

    Raises:
        ValueError: runs that are not there or not finished, of which the first is named; a damaged one.
    """
    runs = [Path(run).expanduser() for run in runs]
    if absent := [path for path in runs if not (path / "DONE").is_file()]:
        raise ValueError(f"{len(absent)} of the {len(runs)} runs of {study} are not finished: {absent[0]}")
    index, target = {"schema": SCHEMA, "study": study, "runs": {}}, Path(folder).expanduser() / f"{study}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    spawned = multiprocessing.get_context("spawn")
    with whole_file(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as file:
        with spawned.Pool(initializer=_one_thread) as pool:
            records = tqdm(pool.imap(archive_record, map(Run.load, runs)), total=len(runs), desc=study, unit="run")
            for path, (record, arrays) in zip(runs, records, strict=True):
                index["runs"][path.name] = record | {"profile": profile, "sha256": digest(arrays)}
                for name, array in arrays.items():
                    _add(file, f"{path.name}/{name}", array)
        _add(file, "index", np.frombuffer(json.dumps(index).encode(), np.uint8))
    return target


def _one_thread() -> None:
    torch.set_num_threads(1)


def _add(file: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")  # without a time: the same runs make the same file
    info.compress_type = zipfile.ZIP_LZMA
    with file.open(info, "w") as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)


def archive_record(run: Run) -> tuple[dict, dict[str, np.ndarray]]:
    """What the archive keeps of a finished run: a record that JSON can hold, and arrays.

    The arrays are in float32, of which the log, the eigenvalues and the moments keep 15 bits behind the point: a
    relative precision of 1.5e-5. The first twenty losses keep all, since they tell whether code has changed.

    Args:
        run: on disk.
    """
    log = run.metrics
    columns = [name for name in log.columns if name not in FROM_CONFIG + NOT_KEPT]
    rows = log[columns].to_numpy(np.float32).T  # (columns, steps)
    short, loss = rounded(rows), columns.index("loss")
    short[loss, :20] = rows[loss, :20]
    table = diagnose(run)
    diagnosis, arrays = packed(table)
    last = run.snapshot(run.steps[-1])
    head = Moments.of(unit_rows(last[f"{evaluated_branch(last)}/head/test"]))
    upper = np.triu_indices(len(head.mean))
    moments = np.concatenate([head.mean.numpy(), head.covariance.numpy()[upper]])
    record = {
        "config": run.config,
        "environment": run.environment,
        "seconds": run.seconds,
        "steps": run.steps,
        "log": columns,
        "diagnosis": diagnosis,
        "results": {result_name(measure, options): measure(run, **options) for measure, options in asked_results(run)},
    }
    arrays = {"log": short, "measures": arrays["measures"].astype(np.float32)} | {
        "eigenvalues": rounded(arrays["eigenvalues"]),
        "moments": rounded(moments),
    }
    return record, arrays


def rounded(values: np.ndarray, bits: int = 15) -> np.ndarray:
    """Round numbers to some bits behind the point, as float32: what is left of them compresses well.

    >>> rounded(np.array([1.0, 1 + 2**-20]), bits=15).tolist()
    [1.0, 1.0]
    """
    unit = np.uint32(1 << (23 - bits))
    x = np.ascontiguousarray(values, dtype=np.float32)
    up = ((x.view(np.uint32) + unit // np.uint32(2)) // unit * unit).view(np.float32)
    return np.where(np.isfinite(x), up, x)
