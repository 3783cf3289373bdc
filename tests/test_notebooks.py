"""Every notebook in the smoke profile, by the Snakefile and as `make figures` runs it, in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from filelock import FileLock

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def snakemake(project, *arguments):
    options = ["--config", "profile=smoke", "--cores", str(os.cpu_count()), "--keep-going", "--rerun-incomplete"]
    command = [sys.executable, "-m", "snakemake", *options, *arguments]
    environment = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


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
            wanted = sorted(item.callspec.params["name"] for item in tests if hasattr(item, "callspec"))
            gallery = ["figures/smoke/README.md"] if wanted == NOTEBOOKS else []
            snakemake(project, *gallery, *(f"figures/smoke/{name}.json" for name in wanted))
    return project


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_reproduces_its_figure_in_the_smoke_profile(smoke, name):
    log = smoke / f"build/smoke/logs/{name}.log"
    made = smoke / f"figures/smoke/{name}.json"
    assert made.is_file(), log.read_text()[-2000:] if log.is_file() else f"a run that {name} needs failed"
    assert made.with_suffix(".png").stat().st_size > 5000
    record = json.loads(made.read_text())
    assert record["profile"] == "smoke"
    assert all(claim["holds"] for claim in record["claims"] if claim["kind"] == "theorem")


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
