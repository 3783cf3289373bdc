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
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 48, 8, generator=generator)
    unit = torch.nn.functional.normalize
    calls = {
        "principal_angles": lambda z: analysis.principal_angles(z, y),
        "nrc2": lambda z: analysis.nrc2(z, weight=y[:3]),
        "nrc3": lambda z: analysis.nrc3(z[:2], targets=y[:, :2]),
        "nc1": lambda z: analysis.nc1(z, torch.arange(48) % 4),
        "cka": lambda z: analysis.debiased_cka(z, y),
        "collapsed": lambda z: analysis.collapsed(unit(z, dim=1), unit(y[:, :1] * torch.eye(8)[0], dim=1), share=0.5),
        "permutation_reference": lambda z: torch.tensor(
            analysis.permutation_reference(lambda m: m.covariance.square().sum(), z, draws=3).mean
        ),
    }
    for name, call in calls.items():
        expected, there = torch.as_tensor(call(z)), torch.as_tensor(call(z.to("fake")))
        found["values"].append([name, (expected - there.cpu()).abs().max().item(), there.device.type])
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


def test_measures_on_a_device_are_those_of_the_cpu(found):
    assert len(found["measures"]) >= 30
    assert [row for row in found["measures"] if "error" in row or row["difference"] > 1e-5] == []


def test_second_arguments_and_draws_follow_the_first(found):
    """Labels, targets and a second set of features may lie on the host; draws are the CPU's."""
    assert {name for name, _, _ in found["values"]} >= {"principal_angles", "nrc2", "nrc3", "permutation_reference"}
    assert [row for row in found["values"] if row[1] > 1e-6] == []
    assert {device for name, _, device in found["values"] if name != "permutation_reference"} == {"fake"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_nothing_on_a_gpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--device", "cuda", "--out", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["waits"]
    assert {row["waits"] for row in rows} == {"none"}
