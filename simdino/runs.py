"""The run directory: what a training run leaves on disk, written so that no half-written file is read as whole.

runs/<recipe>-s<seed>-<hash>/
    config.json  environment.json         what was asked for, and where it ran
    metrics.jsonl                         a row for each step; costlier numbers stand on some
    probe.safetensors                     the images whose features are recorded, with labels
    snapshots/step_00000123.safetensors   their features: "<branch>/<tap>/<set>"
    weights/step_00000123.safetensors     the networks, where `record.weights` asks for them: "<branch>.<parameter>"
    checkpoint.safetensors                everything that the next step depends on; of a finished run, its networks
    DONE                                  written last: the run is complete
"""

import ast
import functools
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from simdino.config import unfit_field
from simdino.whole_files import read_json, read_json_lines, read_tensors

CHECKOUT = Path(__file__).parents[1]  # the project's folder, where it is a checkout


class _Named(dict):
    """What a file of a run holds, by name; a name that it lacks is a ValueError of both."""

    def __init__(self, values: dict, path: Path, under: str = ""):
        super().__init__({k: _Named(v, path, f"{under}{k}.") if isinstance(v, dict) else v for k, v in values.items()})
        self.path, self.under = path, under

    def __missing__(self, name: str) -> None:
        raise ValueError(f"cannot read {self.path}: it has no {self.under}{name}")

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


@dataclass(frozen=True)
class Run:
    """A run on disk, each file of which is read and checked when it is asked for.

    Raises:
        ValueError: a missing or damaged file, or a field that is missing or means nothing, by their names.
    """

    path: Path
    archived = False  # its features are there (an archived one, `simdino.archive.ArchivedRun`, has numbers only)

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Open the run in a directory; ValueError if its configuration is missing or unreadable."""
        run = cls(Path(path).expanduser())
        if not (run.path / "config.json").is_file():
            raise ValueError(f"{run.path} is not a run directory: it has no config.json")
        if not run.config.get("recipe") and not any((run.path / file).exists() for file in ("metrics.jsonl", "DONE")):
            raise ValueError(
                f"{run.path} is not a run directory: its config.json is of something else, without a recipe"
            )
        return run

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name

    @property
    def done(self) -> bool:
        """Whether it is complete."""
        return (self.path / "DONE").is_file()

    @property
    def seconds(self) -> float:
        """How long training took, of a finished run."""
        seconds = _Named(read_json(self.path / "DONE"), self.path / "DONE")["seconds"]
        if not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise ValueError(f"cannot read {self.path / 'DONE'}: its seconds are {seconds!r}")
        return seconds

    @functools.cached_property
    def config(self) -> dict:
        """Every field of the configuration, resolved."""
        path = self.path / "config.json"
        found = read_json(path)
        if wrong := unfit_field(found):
            raise ValueError(f"cannot read {path}: its {wrong} means nothing")
        return _Named(found, path)

    @functools.cached_property
    def environment(self) -> dict:
        """Commit, versions, hardware and source hash of the process that trained."""
        path = self.path / "environment.json"
        found = read_json(path)
        for name in ("commit", "source", "hardware"):
            if not isinstance(found.get(name, ""), str):
                raise ValueError(f"cannot read {path}: its {name} is {found[name]!r}")
        return _Named(found, path)

    @property
    def metrics(self) -> "pandas.DataFrame":  # noqa: F821
        """A row for each step: losses, rate and alignment, schedules, seconds; NaN where a step lacks a number.

        Costlier numbers, such as gradients' norms, are measured every `record.log_every` steps and at the last.
        """
        return self.logged()

    def logged(self, *names: str) -> "pandas.DataFrame":  # noqa: F821
        """`metrics`, of which some columns are needed."""
        import pandas as pd

        path = self.path / "metrics.jsonl"
        table = pd.DataFrame(read_json_lines(path))
        if len(table):
            _check_log(table, path, ("step", *names))
        return table

    @property
    def steps(self) -> list[int]:
        """The steps at which features were recorded, ascending."""
        return _steps_in(self.path / "snapshots")

    @property
    def weight_steps(self) -> list[int]:
        """The steps at which the networks themselves were kept, ascending; none, unless `record.weights` named some."""
        return _steps_in(self.path / "weights")

    @property
    def probe(self) -> dict[str, Tensor]:
        """The recorded images, uint8 (n, c, h, w), and labels: bank_images, bank_labels, test_images, test_labels.

        Images without classes have no labels.
        """
        path = self.path / "probe.safetensors"
        found = _Named(read_tensors(path), path)
        for part in ("bank", "test"):
            images, labels = found[f"{part}_images"], found.get(f"{part}_labels")
            if images.ndim != 4 or not images.numel():
                raise ValueError(f"cannot read {path}: {part}_images have the shape {tuple(images.shape)}")
            if (labels is None) != ("bank_labels" not in found):
                raise ValueError(f"cannot read {path}: it has labels of one part only")
            if labels is not None and (
                labels.shape != images.shape[:1] or labels.is_floating_point() or labels.min() < 0
            ):
                raise ValueError(
                    f"cannot read {path}: {part}_labels are not one class for each of {len(images)} images"
                )
        if found["bank_images"].shape[1:] != found["test_images"].shape[1:]:
            raise ValueError(f"cannot read {path}: bank_images and test_images are of different sizes")
        return found

    def snapshot(self, step: int) -> dict[str, Tensor]:
        """The features at a recorded step, by "<branch>/<tap>/<set>": "teacher/backbone/test" is (n, d)."""
        if step not in self.steps:
            raise ValueError(f"{self.name} has no snapshot of step {step}; it has {self.steps}")
        path = snapshot_path(self.path, step)
        found = _Named(read_tensors(path), path)
        self._check_features(found, path)
        return found

    def _check_features(self, found: dict[str, Tensor], path: Path) -> None:
        """ValueError for features that are none, or not those of the images of the first snapshot."""
        axes = {"test": 2, "bank": 2, "views": 3, "patches": 3}
        for name, z in found.items():
            of = name.rpartition("/")[2]
            if not z.is_floating_point() or z.ndim != axes.get(of, z.ndim) or not z.numel():
                raise ValueError(f"cannot read {path}: {name} is no set of features: {tuple(z.shape)} {z.dtype}")
            if not torch.isfinite(z.sum(dtype=torch.float64)):
                raise ValueError(f"cannot read {path}: {name} contains NaN or infinite values")
        counts = {name.rpartition("/")[2]: z.shape[0] for name, z in found.items()}
        different = [name for name, z in found.items() if z.shape[0] != counts[name.rpartition("/")[2]]]
        probe = self.path / "probe.safetensors"
        images = _shapes(probe) if probe.is_file() else {}
        different += [
            name
            for name, z in found.items()
            if (known := images.get(f"{name.rpartition('/')[2]}_images")) and known[0] != z.shape[0]
        ]
        if different:
            raise ValueError(f"cannot read {path}: {different[0]} has features of another number of images")
        layout = {name: tuple(z.shape) for name, z in found.items()}
        first = snapshot_path(self.path, self.steps[0])
        if path != first and layout != (known := _shapes(first)):
            names = sorted(known.keys() ^ layout.keys()) or [n for n in known if known[n] != layout[n]]
            raise ValueError(f"cannot read {path}: {names[0]} is not as in {first.name}, the first snapshot")

    def weights(self, step: int) -> dict[str, Tensor]:
        """The networks at a step where they were kept, by "<branch>.<parameter>": "teacher.backbone.pos_embed".

        The file itself, `weights_path(run.path, step)`, is read by `simdino.weights.load_weights`, as a checkpoint is.
        """
        if step not in self.weight_steps:
            raise ValueError(f"{self.name} has no weights of step {step}; it has {self.weight_steps}")
        path = weights_path(self.path, step)
        return _Named(read_tensors(path), path)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, from its header."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _check_log(table: "pandas.DataFrame", path: Path, names: Sequence[str]) -> None:  # noqa: F821
    """ValueError for a log that lacks a column, or has something else in the place of a number, by its line."""
    for name in names:
        if name not in table:
            raise ValueError(f"cannot read {path}: it has no {name}")
    for name in table:
        if table[name].dtype.kind not in "if":
            numbers = [(isinstance(x, int | float) and not isinstance(x, bool)) or x is None for x in table[name]]
            if not all(numbers):
                line, value = numbers.index(False), table[name].iloc[numbers.index(False)]
                raise ValueError(f"cannot read {path}: {name} of line {line + 1} is {value!r}, no number")
            table[name] = table[name].astype(float)  # None, and numbers that are too large for whole ones
    steps = table["step"].to_numpy()
    right = [steps[0] >= 0, *(steps[1:] > steps[:-1])]
    if table["step"].dtype.kind != "i" or not all(right):
        line = right.index(False) if not all(right) else int((steps != steps.round()).argmax())
        raise ValueError(f"cannot read {path}: step of line {line + 1} is {steps[line]}, and steps are whole and rise")


def _steps_in(folder: Path) -> list[int]:
    found = (re.fullmatch(r"step_(\d+)\.safetensors", f.name) for f in folder.glob("*"))
    return sorted(int(m[1]) for m in found if m)


def snapshot_path(run: Path, step: int) -> Path:
    """Return the file in which a run keeps the features of one step.

    >>> snapshot_path(Path("run"), 10).name
    'step_00000010.safetensors'
    """
    return run / "snapshots" / f"step_{step:08d}.safetensors"


def weights_path(run: Path, step: int) -> Path:
    """Return the file in which a run keeps its networks as they were before one step.

    >>> weights_path(Path("run"), 10).parent.name
    'weights'
    """
    return run / "weights" / f"step_{step:08d}.safetensors"


def network_tensors(branches: dict[str, torch.nn.Module]) -> dict[str, Tensor]:
    """Name the parameters and buffers of networks as a run's files do.

    >>> sorted(network_tensors({"student": torch.nn.Linear(1, 1)}))
    ['student.bias', 'student.weight']
    """
    return {f"{branch}.{k}": v for branch, network in branches.items() for k, v in network.state_dict().items()}


def evaluated_branch(snapshot: dict[str, Tensor]) -> str:
    """The network of a snapshot that is evaluated: the teacher, or the student of a run without one.

    >>> evaluated_branch({"student/head/test": torch.eye(2), "teacher/head/test": torch.eye(2)})
    'teacher'
    """
    return "teacher" if any(name.startswith("teacher/") for name in snapshot) else "student"


# The code that a run follows from: all but the files that only name configurations or read runs, which keep their own.
_NAMES = ("recipes.py", "studies.py", "needed_runs.py", "batch.py", "archive.py")


@functools.cache
def source() -> str:
    """Hash the code that a run follows from: taken once, since the files may be edited meanwhile."""
    return code_hash([f for f in sorted(Path(__file__).parent.glob("*.py")) if f.name not in _NAMES])


def code_hash(modules: Sequence[Path]) -> str:
    """Hash what modules do: their syntax, without docstrings, comments and layout.

    Args:
        modules: files of Python code.
    """
    found = hashlib.sha256()
    for module in modules:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            first = body[0] if isinstance(body := getattr(node, "body", None), list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = None  # a docstring
        found.update(f"{module.name}{ast.dump(tree)}".encode())
    return found.hexdigest()[:16]


def environment(device: str = "cpu") -> dict:
    """Describe where a result is made: commit, versions, hardware, threads, and the hash of simdino's source."""
    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "commit": _commit(),
        "source": source(),
        "versions": {p: version(p) for p in ("torch", "numpy", "scipy")} | {"python": platform.python_version()},
        "hardware": hardware,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _commit() -> str:
    """The checked-out commit, marked as dirty if code or a notebook differs from it; figures do not count."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not an installed copy inside somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "simdino", "analysis", "notebooks")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()
