"""Claims: every notebook runs in the smoke profile, as `make figures` runs it, in a copy of the project; those of
recorded runs give on the archive what was committed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from filelock import FileLock

from analysis.reproduction import differences
from simdino.archive import archived_run
from simdino.needed_runs import needed_configs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def only_archived(name):
    """Whether a notebook has recorded runs, and they are all that it needs."""
    path = ROOT / f"notebooks/{name}.ipynb"
    configs = needed_configs(path, "cpu")
    return bool(configs) and "get_run(" not in path.read_text() and all(map(archived_run, configs))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, request):
    """A copy of the project in which the selected notebooks were reproduced: once, however many workers ask."""
    base = tmp_path_factory.getbasetemp()
    project = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "project"
    with FileLock(project.with_suffix(".lock")):
        if not project.exists():
            for folder in ("simdino", "analysis", "notebooks"):
                shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "Snakefile", project)
            tests = [item for item in request.session.items if "smoke" in getattr(item, "fixturenames", ())]
            wanted = {item.callspec.params["name"] for item in tests if hasattr(item, "callspec")}
            for name in set(NOTEBOOKS) - wanted:
                (project / f"notebooks/{name}.ipynb").unlink()
            command = [sys.executable, "-m", "simdino", "figures", "--profile", "smoke"]
            environment = os.environ | {"PYTHONPATH": str(project)}
            subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    return project


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_reproduces_its_figure_in_the_smoke_profile(smoke, name):
    log = smoke / f"build/smoke/logs/{name}.log"
    made = smoke / f"build/smoke/figures/{name}.json"
    assert made.is_file(), log.read_text()[-2000:] if log.is_file() else f"a run that {name} needs failed"
    assert made.with_suffix(".png").stat().st_size > 5000
    record = json.loads(made.read_text())
    assert record["profile"] == "smoke"
    assert not [claim for claim in record["claims"] if claim["kind"] == "theorem" and claim["verdict"] == "fails"]


@pytest.mark.parametrize("name", list(filter(only_archived, NOTEBOOKS)))
def test_notebook_gives_on_the_archive_what_was_committed(name, tmp_path):
    command = [sys.executable, "-m", "papermill", f"notebooks/{name}.ipynb", tmp_path / "out.ipynb", "--cwd", "."]
    command += ["--no-progress-bar", "-p", "runs_dir", tmp_path / "runs", "-p", "out_dir", tmp_path]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["runs"]["archived"] == record["runs"]["count"] > 0
    assert not (tmp_path / "runs").exists()
    if not record.get("missing"):
        assert differences(name, json.loads((ROOT / f"figures/{name}.json").read_text()), record) == []


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks")
def test_notebook_refuses_a_misspelled_parameter(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"no parameter 'profil'; did you mean 'profile'\?"):
        papermill.execute_notebook(
            ROOT / f"notebooks/{NOTEBOOKS[0]}.ipynb",
            tmp_path / "out.ipynb",
            {"profil": "smoke", "out_dir": str(tmp_path)},
            cwd=ROOT,
            progress_bar=False,
        )
