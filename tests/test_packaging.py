"""Installed from a wheel or in place, `simdino.analysis` is found whatever lies beside a script, and is one package."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# What a researcher's own code may have beside a script, under the short name of ours.
STRANGERS = {
    "a file": {"analysis.py": "mine = True\n"},
    "a package": {"analysis/__init__.py": "mine = True\n"},
    "a folder": {"analysis/plot.py": "mine = True\n"},
}
SCRIPT = """
import pickle, torch
from simdino.analysis import Moments, effective_rank
from simdino.analysis.measures import spectra
assert Moments.__module__ == "simdino.analysis.measures.moments"
moments = pickle.loads(pickle.dumps(Moments.of(torch.eye(4))))
assert effective_rank(moments).item() == effective_rank(torch.eye(4)).item()
"""
BOTH_NAMES = """
import sys, pickle
import analysis, analysis.theory, simdino.analysis
from analysis.measures.moments import Moments
assert analysis is simdino.analysis and analysis.theory is simdino.analysis.theory
assert Moments is analysis.Moments is simdino.analysis.Moments
copies = [m for m in sys.modules if m.startswith("analysis.") and sys.modules[m] is not sys.modules[f"simdino.{m}"]]
assert copies == [], copies
"""


def run(*command, cwd=ROOT):
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, so that no build folder is left in the project."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = run("git", "ls-files", "-co", "--exclude-standard", "simdino", "analysis", "pyproject.toml", "setup.py")
    for name in [*files.split(), "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source)
    return next(out.glob("*.whl")), source


@pytest.fixture(scope="module", params=["wheel", "editable"])
def python(wheel, request, tmp_path_factory):
    """The Python of an environment that has the dependencies of this one, and the package by one kind of install."""
    built, source = wheel
    home = tmp_path_factory.mktemp(request.param)
    venv.create(home, symlinks=True)
    found = home / Path(sysconfig.get_path("scripts")).name / Path(sys.executable).name
    packages = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    what = [built] if request.param == "wheel" else ["--no-build-isolation", "-e", source]
    run(sys.executable, "-m", "pip", "--python", found, "install", "-q", "--no-deps", *what)
    return found


def test_the_wheel_has_the_rooms_inside_simdino_and_one_module_under_the_short_name(wheel):
    names = zipfile.ZipFile(wheel[0]).namelist()
    ours = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    sources = run("git", "ls-files", "-co", "--exclude-standard", "simdino", "analysis").split()
    inside = {f"simdino/{name}" if name.startswith("analysis/") else name for name in sources}
    assert ours == inside | {"analysis/__init__.py"}


def test_every_room_is_listed_in_the_build():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {f"simdino.{'.'.join(p.parent.relative_to(ROOT).parts)}" for p in (ROOT / "analysis").rglob("__init__.py")}
    assert set(packages) == {"simdino", "analysis", *rooms}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_strangers_analysis_does_not_hide_ours(python, stranger, tmp_path):
    for name, text in STRANGERS[stranger].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "train.py").write_text(SCRIPT)
    run(python, "train.py", cwd=tmp_path)
    if stranger != "a folder":  # and theirs is theirs
        run(python, "-c", "import analysis; assert analysis.mine", cwd=tmp_path)
    run(python, "-c", "import simdino.analysis, analysis" + SCRIPT, cwd=tmp_path)


def test_both_names_are_one_package(python, tmp_path):
    run(python, "-c", BOTH_NAMES, cwd=tmp_path)


def test_the_command_is_the_module_from_any_folder(python, tmp_path):
    words = {
        run(python, "-m", "simdino", "--help", cwd=tmp_path),
        run(python.parent / "simdino", "--help", cwd=tmp_path),
    }
    assert len(words) == 1
    assert "report" in words.pop()


def test_an_uninstalled_checkout_has_both_names():
    run(
        sys.executable,
        "-S",
        "-c",
        "import sys; sys.path += [sys.argv[1]]\n" + BOTH_NAMES,
        sysconfig.get_path("purelib"),
    )
