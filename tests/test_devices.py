"""Claims: what runs on a CPU runs on a device: no operation mixes two, and a training step waits for nothing.

The device is pretended (`tests.pretended_device`), as CI has none. The steps run in a process of its own, without the
types that other tests check at run time.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PINNED = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
HERE = importlib.metadata.version("torch").partition("+")[0]
pytestmark = pytest.mark.skipif(HERE != PINNED, reason=f"the pretended device is written for torch {PINNED}")

# Of a step with local crops: kernels, copies from the host, waits. They may only fall.
CEILINGS = {"simdino": (600, 1, 0), "simdinov2": (745, 1, 0), "dino": (660, 1, 0), "dinov2": (890, 1, 0)}

SCRIPT = """
import inspect, json, runpy, sys
import torch
from simdino import analysis
from tests.pretended_device import pretended_device
gpu = runpy.run_path("benchmarks/gpu.py")
found = {"steps": {}, "values": []}
for method in gpu["METHODS"]:
    with pretended_device() as trace:
        step = gpu["Step"](gpu["large"](method, "s", True), "fake:0", "eager")
        step(0)
        counts = trace.kernels, trace.copies, trace.waits
        before = [sum(c.values()) for c in counts]
        step(1)
        found["steps"][method] = [sum(c.values()) - b for c, b in zip(counts, before)]
with pretended_device():
    found["measures"] = list(gpu["measures"]("fake:0"))
    expected, mixed = gpu["given_to_calls"]("cpu"), gpu["given_to_calls"]("fake:0", others="cpu")
    for name, function in gpu["CALLS"].items():
        pairs = zip(gpu["numbers"](function(expected)), gpu["numbers"](function(mixed)))
        found["values"].append([name, max(abs(a - b) / (abs(a) + 1e-6) for a, b in pairs)])
found["functions"] = [name for name in analysis.__all__ if inspect.isfunction(getattr(analysis, name))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", CEILINGS)
def test_a_step_copies_once_and_waits_for_nothing(method, found):
    for count, ceiling in zip(found["steps"][method], CEILINGS[method], strict=True):
        assert count <= ceiling


# What takes numbers, a run or a measure, and no features.
OF_NUMBERS = {
    "collapse_sweep",
    "collapsed_spectrum",
    "diagnose",
    "frame_potential_bound",
    "isotropic_reference",
    "marchenko_pastur_edge",
    "orthoplex_bound",
    "preflight",
    "shrink_sweep",
    "sphere_potential",
    "uniformity_optimum",
    "welch_bound",
    "white_noise_spectrum",
}


def test_measures_on_a_device_are_those_of_the_cpu(found):
    """Every function of features; one that is exported later has to be added to CALLS of benchmarks/gpu.py."""
    assert [row for row in found["measures"] if "error" in row or row["difference"] > 1e-5] == []
    assert {row["measure"] for row in found["measures"]} == set(found["functions"]) - OF_NUMBERS


def test_second_arguments_and_draws_follow_the_first(found):
    """Labels, targets and a second set of features may lie on the host; draws are the CPU's."""
    assert len(found["values"]) > 30
    assert [row for row in found["values"] if row[1] > 1e-5] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_nothing_on_a_gpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cuda", "--out", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["waits"]
    assert {row["waits"] for row in rows} == {"none"}
