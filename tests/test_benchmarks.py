"""Claims: what waits for a GPU runs, at a size for a CPU, from the first line to the last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_gpu_check_is_ready(tmp_path):
    """Every section has rows, all four methods compile without a graph break, and no measure differs."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left out"] == []
    assert "measures that differ" not in found
    assert found["measures"][0]["compared"] >= 70
    assert [row["method"] for row in found["waits"]] == ["simdino", "simdinov2", "dino", "dinov2"]
    speeds = {(row["method"], row["mode"]) for row in found["speed"]}
    assert len(speeds) == 12
    assert all(row["images/s"] > 0 for row in found["speed"])
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {section}" in page for section in ("measures", "waits", "peak", "moments", "precision", "speed"))
