"""The run directory: what a training run leaves on disk, written so that no half-written file is read as whole.

runs/<recipe>-s<seed>-<hash>/
    config.json  environment.json         what was asked for, and where it ran
    metrics.jsonl                         one row a logged step
    probe.safetensors                     the images whose features are recorded, with labels
    snapshots/step_00000123.safetensors   their features: "<branch>/<tap>/<set>"
    checkpoint.safetensors                everything that the next step depends on
    DONE                                  written last: the run is complete
"""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
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
    """A run on disk, read lazily; a missing or damaged file is a ValueError that names it."""

    path: Path

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """The run in a directory; refused when its configuration is missing or unreadable."""
        run = cls(Path(path))
        if not (run.path / "config.json").is_file():
            raise ValueError(f"{run.path} is not a run directory: it has no config.json")
        run.config  # noqa: B018  read now, so that damage shows here
        return run

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def done(self) -> bool:
        return (self.path / "DONE").is_file()

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
        """One row a logged step."""
        import pandas as pd

        return pd.DataFrame(read_json_lines(self.path / "metrics.jsonl", whole=self.done))

    @property
    def steps(self) -> list[int]:
        """The steps at which features were recorded, ascending."""
        found = (re.fullmatch(r"step_(\d+)\.safetensors", f.name) for f in (self.path / "snapshots").glob("*"))
        return sorted(int(m[1]) for m in found if m)

    @property
    def probe(self) -> dict[str, Tensor]:
        """The recorded images, uint8 `(n, c, h, w)`, and labels: bank_images, bank_labels, test_images, test_labels."""
        return read_tensors(self.path / "probe.safetensors")

    def snapshot(self, step: int) -> dict[str, Tensor]:
        """Features at a recorded step: "<branch>/<tap>/<set>", e.g. "teacher/backbone/test" `(n, d)`."""
        if step not in self.steps:
            raise ValueError(f"{self.name} has no snapshot of step {step}; it has {self.steps}")
        return read_tensors(snapshot_path(self.path, step))


def snapshot_path(run: Path, step: int) -> Path:
    """Where a run keeps the features of one step."""
    return run / "snapshots" / f"step_{step:08d}.safetensors"


def read_json(path: Path) -> dict:
    """A JSON file; a missing or damaged one is a ValueError that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def read_json_lines(path: Path, *, whole: bool = True) -> list[dict]:
    """A file of one JSON object a line; a damaged line is a ValueError that names it.

    whole: False while the file is being written, when its last line may still lack its end and is left out.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not whole and lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"cannot read {path}: line {number} is damaged") from None
    return rows


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; a missing or damaged one is a ValueError that names it."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, then rename: it exists whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    safetensors.torch.save_file(cpu, temporary, metadata)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename: it exists whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; dataclasses as dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    write_text(path, json.dumps(value, indent=1) + "\n")


# What a run follows from besides its configuration: not what only names configurations, which it keeps resolved.
_NAMES = ("recipes.py", "studies.py", "batch.py")
TRAINING = [f for f in sorted(Path(__file__).parent.glob("*.py")) if f.name not in _NAMES]
# Of the code that this process runs: read once, since the files may be edited while it does.
SOURCE = hashlib.sha256(b"".join(f.read_bytes() for f in TRAINING)).hexdigest()[:16]


def environment(device: str = "cpu") -> dict:
    """Where a result was made: commit, versions, hardware, threads, and the hash of simdino's source."""
    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "commit": _commit(),
        "source": SOURCE,
        "versions": {p: version(p) for p in ("torch", "numpy", "scipy")} | {"python": platform.python_version()},
        "hardware": hardware,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _commit() -> str:
    """The checked-out commit, marked if the code or a notebook differs from it; figures that change do not count."""

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
