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
import contextlib
import dataclasses
import functools
import hashlib
import json
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

CHECKOUT = Path(__file__).parents[1]  # the project's folder, where it is a checkout


@dataclass(frozen=True)
class Run:
    """A run on disk, each file of which is read when it is asked for.

    Raises:
        ValueError: a missing or damaged file, by its name.
    """

    path: Path
    archived = False  # its features are there (an archived one, `simdino.archive.ArchivedRun`, has numbers only)

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Open the run in a directory; ValueError if its configuration is missing or unreadable."""
        run = cls(Path(path))
        if not (run.path / "config.json").is_file():
            raise ValueError(f"{run.path} is not a run directory: it has no config.json")
        run.config  # noqa: B018  read now, so that damage shows here
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
        return read_json(self.path / "DONE")["seconds"]

    @functools.cached_property
    def config(self) -> dict:
        """Every field of the configuration, resolved."""
        return read_json(self.path / "config.json")

    @functools.cached_property
    def environment(self) -> dict:
        """Commit, versions, hardware and source hash of the process that trained."""
        return read_json(self.path / "environment.json")

    @property
    def metrics(self) -> "pandas.DataFrame":  # noqa: F821
        """A row for each step: losses, rate and alignment, schedules, seconds; NaN where a step lacks a number.

        Costlier numbers, such as gradients' norms, are measured every `record.log_every` steps and at the last.
        """
        import pandas as pd

        return pd.DataFrame(read_json_lines(self.path / "metrics.jsonl", whole=self.done))

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
        return read_tensors(self.path / "probe.safetensors")

    def snapshot(self, step: int) -> dict[str, Tensor]:
        """The features at a recorded step, by "<branch>/<tap>/<set>": "teacher/backbone/test" is (n, d)."""
        if step not in self.steps:
            raise ValueError(f"{self.name} has no snapshot of step {step}; it has {self.steps}")
        return read_tensors(snapshot_path(self.path, step))

    def weights(self, step: int) -> dict[str, Tensor]:
        """The networks at a step where they were kept, by "<branch>.<parameter>": "teacher.backbone.pos_embed".

        The file itself, `weights_path(run.path, step)`, is read by `simdino.weights.load_weights`, as a checkpoint is.
        """
        if step not in self.weight_steps:
            raise ValueError(f"{self.name} has no weights of step {step}; it has {self.weight_steps}")
        return read_tensors(weights_path(self.path, step))


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


def read_json(path: Path) -> dict:
    """Read a JSON file; a missing or damaged one is a ValueError that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def read_json_lines(path: Path, *, whole: bool = True) -> list[dict]:
    """Read a file of JSON objects, one on each line.

    Args:
        path: the file.
        whole: False while it is being written: a last line that still lacks its end is then left out.

    Raises:
        ValueError: a missing file or a damaged line, by its number.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not whole and lines and not lines[-1].endswith("\n"):
        lines.pop()
    with contextlib.suppress(ValueError):  # all at once is faster; line by line says which one is damaged
        if len(rows := json.loads(f"[{','.join(lines)}]")) == len(lines):
            return rows
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"cannot read {path}: line {number} is damaged") from None
    return rows


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or damaged one is a ValueError that names it."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in a safetensors file's header; a missing or damaged one is a ValueError that names it."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, then rename it: it exists whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    safetensors.torch.save_file(cpu, temporary, metadata)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: it exists whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all; a dataclass becomes a dictionary."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    write_text(path, json.dumps(value, indent=1) + "\n")


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
        tree = ast.parse(module.read_text())
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
        return re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()
