"""The archive of recorded runs: one file for each study, read where a run is not on disk.

archive/<study>.npz is a zip of arrays, which `numpy.load` reads; archive/README.md says what is in it. Reading a
damaged or incomplete file, or one of another schema, is a ValueError that says what to do.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from simdino.array_files import npz_names, read_npz
from simdino.config import Config, Optim
from simdino.optim import schedules
from simdino.runs import CHECKOUT, Run

ARCHIVE = CHECKOUT / "archive"
SCHEMA = 1
ARRAYS = ("log", "measures", "eigenvalues", "moments")  # of each run
FROM_CONFIG = ("lr", "weight_decay", "ema")  # columns of the log that follow from the configuration
NOT_KEPT = ("step", "seconds")


@dataclass(frozen=True)
class ArchivedRun(Run):
    """A run in the archive: its configuration, environment and log, its diagnostics at every snapshot, named results.

    It has no features, images or weights: asked for them, it says which command trains the run. `path` is the study's
    file and the run's name.
    """

    path: Path
    record: dict = field(repr=False, compare=False)
    archived = True
    done = True

    @property
    def config(self) -> dict:
        return self.record["config"]

    @property
    def environment(self) -> dict:
        return self.record["environment"]

    @property
    def seconds(self) -> float:
        return self.record["seconds"]

    @property
    def steps(self) -> list[int]:
        return self.record["steps"]

    @property
    def weight_steps(self) -> list[int]:
        return []

    @property
    def metrics(self) -> "pandas.DataFrame":  # noqa: F821
        import pandas as pd

        table = pd.DataFrame(self.arrays["log"].T.astype(float), columns=self.record["log"])
        optim = Optim(**self.config["optim"])
        scheduled = pd.DataFrame([schedules(optim, step) for step in range(len(table))], columns=FROM_CONFIG)
        return pd.concat([table, scheduled], axis=1).rename_axis("step").reset_index()

    @property
    def probe(self) -> dict[str, Tensor]:
        raise ValueError(self._remedy("recorded images"))

    def snapshot(self, step: int) -> dict[str, Tensor]:
        raise ValueError(self._remedy("features"))

    def weights(self, step: int) -> dict[str, Tensor]:
        raise ValueError(self._remedy("weights"))

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The run's arrays by name: log (columns, steps), measures, eigenvalues, moments."""
        study = self.path.parent
        try:
            arrays = read_npz(study, [f"{self.name}/{name}" for name in ARRAYS])
        except ValueError as error:
            raise _damaged(study, error) from None
        found = {name: arrays[f"{self.name}/{name}"] for name in ARRAYS}
        if digest(found) != self.record["sha256"]:
            raise _damaged(study, f"the numbers of {self.name} have changed")
        return found

    def result(self, name: str) -> dict:
        """A named result of the run, that was computed when it was archived.

        Raises:
            ValueError: one that the archive lacks, with the command that trains the run.
        """
        if name not in self.record["results"]:
            raise ValueError(self._remedy(name))
        return self.record["results"][name]

    def _remedy(self, what: str) -> str:
        name, seed, profile = self.config["recipe"], self.config["seed"], self.record["profile"]
        return (
            f"{self.path} has no {what}: `simdino train '{name}' --profile {profile} --seed {seed}` trains the run "
            f"(about {self.seconds:.0f} seconds), and what is in runs/ is read before the archive"
        )


def archived_run(config: Config, folder: str | Path = ARCHIVE) -> ArchivedRun | None:
    """Look a configuration's run up in the archive.

    Args:
        config: the run's.
        folder: of the studies' files; one that is not there is an empty archive.

    Raises:
        ValueError: a damaged file, or one of another schema.
    """
    for study in sorted(Path(folder).expanduser().glob("*.npz")):
        if record := _index(study, study.stat().st_mtime_ns).get(config.run_name):
            return ArchivedRun(study / config.run_name, record)
    return None


def archived_runs(study: str | Path) -> list[ArchivedRun]:
    """List the runs of one study's file, each number of which is checked.

    Args:
        study: its path.

    Raises:
        ValueError: a missing or damaged file, or one of another schema.
    """
    study = Path(study).expanduser()
    if not study.is_file():
        raise ValueError(f"there is no {study}")
    index = _index(study, study.stat().st_mtime_ns)
    runs = [ArchivedRun(study / name, record) for name, record in index.items()]
    for run in runs:
        run.arrays  # noqa: B018  reads and checks them
    return runs


@functools.lru_cache
def _index(study: Path, _changed: int) -> dict[str, dict]:
    """The records of a study's runs by their names; read again when the file has changed."""
    try:
        names = set(npz_names(study))
        index = json.loads(read_npz(study, ["index"])["index"].tobytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(study, error) from None
    if not isinstance(index, dict):
        raise _damaged(study, "its index is no JSON object")
    if index.get("schema") != SCHEMA:
        raise ValueError(
            f"{study} is of schema {index.get('schema')}, and this version reads {SCHEMA}: take the file and the code "
            f"of one version, or move the file away, and its runs are trained anew"
        )
    if not isinstance(index.get("runs"), dict):
        raise _damaged(study, "its index has no runs")
    if missing := {f"{run}/{name}" for run in index["runs"] for name in ARRAYS} - names:
        raise _damaged(study, f"it lacks {min(missing)}")
    return index["runs"]


def _damaged(study: Path, why: object) -> ValueError:
    why = str(why).removeprefix(f"cannot read {study}: ")
    return ValueError(
        f"cannot read {study}: {why}; `git checkout {study.parent.name}/{study.name}` or a new download brings it "
        f"back, and without the file its runs are trained anew"
    )


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash a run's arrays, with their shapes.

    >>> digest({"log": np.zeros(2)}) == digest({"log": np.zeros((2, 1))})
    False
    """
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name}{array.dtype.str}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]
