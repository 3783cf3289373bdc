"""Claims: the graph of runs and notebooks builds each of them once, in parallel, goes on after a kill, and is the same
graph on a Slurm cluster; profiles for GPUs ask for them. A small project stands in for the whole one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simdino.recipes import recipe
from simdino.runs import Run, read_metadata

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = "optim.batch_size=8,model.dim=24,model.hidden=16,record.snapshots=1"
SHORT = [f"{name}@optim.steps=200,{TINY}" for name in ("simdino", "dino")]  # 4 steps in smoke
LONG = "simdino@model.dim=24,optim.steps=20000,optim.batch_size=8,record.checkpoint_seconds=0"  # 400 steps


@pytest.fixture
def project(tmp_path, notebook):
    """A copy of the code with a notebook for each given list of recipes."""

    def build(**recipes: list[str]) -> Path:
        for folder in ("simdino", "analysis", "profiles"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", tmp_path)
        (tmp_path / "notebooks").mkdir()
        for name, needed in recipes.items():
            parameters = f'profile = "cpu"\nseeds = None\nrecipes = {needed}\nout_dir = None'
            body = [
                "check_parameters(In)\nimport matplotlib.pyplot as plt\nfrom analysis.claims import claim, publish",
                "from simdino.recipes import recipe\nfrom simdino.train import get_run",
                "runs = [get_run(recipe(name, profile)) for name in recipes]",
                'one = claim("runs", "there are runs", predicted=len(recipes), measured=len(runs))',
                f'publish(plt.figure(), [one], name="{name}", out_dir=out_dir, profile=profile, runs=runs)',
            ]
            notebook(tmp_path / f"notebooks/{name}.ipynb", parameters=parameters, cells=body)
        return tmp_path

    return build


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--rerun-incomplete", "--nolock", *arguments]


def environment(project: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}


def snakemake(project: Path, *arguments: str, **variables: str) -> str:
    """What a run of the graph that succeeds says."""
    options = {"cwd": project, "env": environment(project) | variables, "text": True}
    result = subprocess.run(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def times(project: Path) -> dict[str, int]:
    """When each run and each executed notebook was finished."""
    files = [*project.glob("runs/*/DONE"), *project.glob("build/smoke/*.ipynb")]
    return {str(f.relative_to(project)): f.stat().st_mtime_ns for f in files}


def test_every_run_and_notebook_is_built_once_and_in_parallel(project):
    path = project(**{"01_a": SHORT, "02_b": SHORT[:1]})
    said = snakemake(path, "--cores", "2", "--config", "profile=smoke")
    assert "Execute 2 jobs..." in said  # the two runs, or the two notebooks
    assert len(re.findall(r"rule train_\d+:", said)) == 2
    assert said.count("rule notebook:") == 2
    assert (path / "figures/smoke/README.md").is_file()
    finished = times(path)
    assert len(finished) == 4
    assert "Nothing to be done" in snakemake(path, "--cores", "2", "--config", "profile=smoke")
    assert times(path) == finished
    with open(path / "notebooks/02_b.ipynb", "a") as edited:
        edited.write("\n")
    said = snakemake(path, "--cores", "2", "--config", "profile=smoke")
    assert said.count("rule notebook:") == 1
    assert "rule train_" not in said


def test_what_a_kill_cut_short_goes_on_where_it_was(project):
    path = project(**{"01_a": [LONG]})
    run = path / "runs" / recipe(LONG, "smoke").run_name
    arguments = ("--cores", "1", "--config", "profile=smoke")
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(command(*arguments), cwd=path, env=environment(path), **options)
    deadline = time.monotonic() + 300
    while not (run / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "DONE").exists()
    step = int(read_metadata(run / "checkpoint.safetensors")["step"])
    assert 0 < step < 400
    begun = (run / "config.json").stat().st_mtime_ns
    snakemake(path, *arguments)
    assert Run.load(run).done
    assert (run / "config.json").stat().st_mtime_ns == begun  # else it had been trained anew
    assert Run.load(run).metrics["step"].tolist() == list(range(400))
    assert len(times(path)) == 2


def test_the_same_graph_runs_on_a_slurm_cluster(project, tmp_path_factory):
    path = project(**{"01_a": SHORT, "02_b": SHORT[:1]})
    commands, jobs = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("jobs")
    for name in ("sbatch", "sacct", "squeue", "scancel", "sacctmgr", "scontrol", "sinfo", "srun"):
        shutil.copy(ROOT / "tests/stand_in_for_slurm.py", commands / name)
        (commands / name).chmod(0o755)
    quick = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"]
    arguments = ["--profile", "profiles/slurm", "--config", "profile=smoke", "--latency-wait", "5", *quick]
    variables = {"PATH": f"{commands}:{os.environ['PATH']}", "STAND_IN_JOBS": str(jobs)}
    snakemake(path, *arguments, "--default-resources", "slurm_account=lab", **variables)
    calls = [json.loads(f.read_text()) for f in jobs.glob("*.json")]
    assert len(calls) == 3  # two processes of runs, and one job of both notebooks
    for call in calls:
        assert call[call.index("-A") + 1] == "lab"
        assert int(call[call.index("--mem") + 1]) >= 4000
        assert int(call[call.index("-t") + 1]) >= 10  # minutes
        assert "--cpus-per-task" in " ".join(call)
    assert len(times(path)) == 4
    assert (path / "figures/smoke/README.md").is_file()


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_profile_for_gpus_asks_for_them(project, gpus):
    path = project(**{"01_a": ["simdino", "dino"]})
    said = snakemake(path, "--cores", "8", "--dry-run", "--printshellcmds", "--config", "profile=gpu", f"gpus={gpus}")
    jobs = re.findall(r"rule train_\d+:\n.*?\n\n", said, re.DOTALL)
    assert len(jobs) == 2 * 3  # seeds
    for job in jobs:
        assert f"gpu={gpus}" in job
        assert ("torch.distributed.run" in job) == (gpus > 1)
        assert f"--nproc-per-node {gpus}" in job or gpus == 1
        assert "--profile gpu" in job
    assert "figures/gpu/README.md" in said


def test_a_misspelled_profile_is_refused_with_the_nearest_name():
    options = ["--dry-run", "--config", "profile=smok"]
    result = subprocess.run(command(*options), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "unknown profile 'smok'; did you mean 'smoke'?" in result.stdout + result.stderr
