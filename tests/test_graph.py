"""Claims: `simdino figures` builds each run and notebook once, in parallel, stops at a signal with one sentence, goes
on where it was, and runs the same graph on a Slurm cluster. A small project stands in for the whole one.
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

from analysis.commands import figures_command
from simdino.recipes import recipe
from simdino.runs import Run
from simdino.whole_files import read_metadata

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
                "from simdino.batch import get_runs\nfrom simdino.recipes import recipe",
                "runs = get_runs([recipe(name, profile) for name in recipes])",
                'options = {"source": "identity", "unit": "computation"}',
                'one = claim("runs", "there are runs", predicted=len(recipes), measured=len(runs), **options)',
                f'publish(plt.figure(), [one], name="{name}", out_dir=out_dir, profile=profile, runs=runs)',
            ]
            notebook(tmp_path / f"notebooks/{name}.ipynb", parameters=parameters, cells=body)
        return tmp_path

    return build


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "simdino", "figures", "--profile", "smoke", *arguments]


def environment(project: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}


def figures(project: Path, *arguments: str, status: int = 0, **variables: str) -> str:
    """What making the figures says."""
    options = {"cwd": project, "env": environment(project) | variables, "text": True}
    result = subprocess.run(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    log = project / "build/smoke/logs/snakemake.log"
    assert result.returncode == status, result.stdout[-2000:] + (log.read_text()[-4000:] if log.is_file() else "")
    return result.stdout


def times(project: Path) -> dict[str, int]:
    """When each run and each executed notebook was finished."""
    files = [*project.glob("runs/*/DONE"), *project.glob("build/smoke/made/*/*.ipynb")]
    return {str(f.relative_to(project)): f.stat().st_mtime_ns for f in files}


def test_every_run_and_notebook_is_built_once_and_again_only_if_its_content_changes(project):
    path = project(**{"01_a": SHORT, "02_b": SHORT[:1]})
    said = figures(path, "--jobs", "2").splitlines()
    assert re.fullmatch(
        r"2 figures, 0 of them made already; 0 runs from the archive, 2 to train: about 1 minutes on 2 cores, "
        r"0\.\d GB of disk \(\d+ GB are free\)\.",
        said[0],
    )
    assert said[-2:] == [
        "The figures and their claims: build/smoke/figures/README.md",
        "0 hold, 0 fail, 0 undecided; 2 of 2 identities hold; 0 differ from the committed ones",
    ]
    assert sorted(line.partition(":")[0] for line in said[1:-2]) == ["1 of 2 figures", "2 of 2 figures"]
    finished = times(path)
    assert len(finished) == 4
    for file in path.rglob("*"):
        os.utime(file)
    touched = times(path)
    assert "nothing to do" in figures(path)
    moved = path.rename(path.with_name("moved"))
    assert "nothing to do" in figures(moved)
    assert times(moved) == touched
    text = (moved / "notebooks/02_b.ipynb").read_text()
    (moved / "notebooks/02_b.ipynb").write_text(text.replace("check_parameters(In)", "check_parameters(In)  # again"))
    assert "2 figures, 1 of them made already" in figures(moved)
    assert len(times(moved)) == 5
    (moved / "notebooks/02_b.ipynb").write_text(text)
    assert "nothing to do" in figures(moved)  # the branch before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_with_one_sentence_and_the_same_command_goes_on(project, number, status):
    path = project(**{"01_a": [LONG]})
    run = path / "runs" / recipe(LONG, "smoke").run_name
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in a job in the background
    process = subprocess.Popen(command("--jobs", "1"), cwd=path, env=environment(path), **options)
    deadline = time.monotonic() + 300
    while not (run / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert said.splitlines()[1:] == ["", "Stopped. The same command resumes."]
    assert not (run / "DONE").exists()
    step = int(read_metadata(run / "checkpoint.safetensors")["step"])
    assert 0 < step < 400
    begun = (run / "config.json").stat().st_mtime_ns
    figures(path, "--jobs", "1")
    assert Run.load(run).done
    assert (run / "config.json").stat().st_mtime_ns == begun  # else it had been trained anew
    assert Run.load(run).metrics["step"].tolist() == list(range(400))
    assert len(times(path)) == 2


def test_a_notebook_that_fails_is_named_and_the_others_are_made(project):
    path = project(**{"01_a": [], "02_b": SHORT[:1]})
    text = (path / "notebooks/01_a.ipynb").read_text()
    (path / "notebooks/01_a.ipynb").write_text(text.replace("check_parameters(In)", "raise ValueError('no luck')"))
    said = figures(path, "--jobs", "2", status=1)
    assert "01_a failed: ValueError: no luck (build/smoke/logs/01_a.log)\n1 of 2 figures are not made." in said
    made = sorted(file.name for file in (path / "build/smoke/figures").glob("*.png"))
    assert made == ["02_b.png", "claims.png"]


def test_the_same_graph_runs_on_a_slurm_cluster(project, tmp_path_factory):
    path = project(**{"01_a": SHORT, "02_b": SHORT[:1]})
    commands, jobs = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("jobs")
    for name in ("sbatch", "sacct", "squeue", "scancel", "sacctmgr", "scontrol", "sinfo", "srun"):
        shutil.copy(ROOT / "tests/stand_in_for_slurm.py", commands / name)
        (commands / name).chmod(0o755)
    quick = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"]
    arguments = ["--", "--profile", "profiles/slurm", "--latency-wait", "5", *quick]
    variables = {"PATH": f"{commands}:{os.environ['PATH']}", "STAND_IN_JOBS": str(jobs)}
    figures(path, *arguments, "--default-resources", "slurm_account=lab", **variables)
    calls = [json.loads(f.read_text()) for f in jobs.glob("*.json")]
    assert len(calls) == 3  # two processes of runs, and one job of both notebooks
    for call in calls:
        assert call[call.index("-A") + 1] == "lab"
        assert int(call[call.index("--mem") + 1]) >= 4000
        assert int(call[call.index("-t") + 1]) >= 10  # minutes
        assert "--cpus-per-task" in " ".join(call)
    assert len(times(path)) == 4
    assert (path / "build/smoke/figures/README.md").is_file()


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_profile_for_gpus_asks_for_them(project, gpus):
    path = project(**{"01_a": ["simdino", "dino"]})
    options = ["--cores", "8", "--dry-run", "--printshellcmds", "--config", "profile=gpu", f"gpus={gpus}"]
    at = {"cwd": path, "env": environment(path), "capture_output": True, "text": True, "check": True}
    said = subprocess.run([sys.executable, "-m", "snakemake", *options], **at)
    jobs = re.findall(r"rule train_\d+:\n.*?\n\n", said.stdout + said.stderr, re.DOTALL)
    assert len(jobs) == 2 * 3  # seeds
    for job in jobs:
        assert f"gpu={gpus}" in job
        assert ("torch.distributed.run" in job) == (gpus > 1)
        assert f"--nproc-per-node {gpus}" in job or gpus == 1
        assert "--profile gpu" in job


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'?"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        figures_command(arguments)
