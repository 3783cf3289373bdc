"""Claims: what is made is decided by content and not by times; figures are published whole; a reproduction agrees with
the committed claims unless a verdict turns or more numbers leave their intervals than chance allows.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from analysis import reproduction
from analysis.claims import claim
from analysis.reproduction import ChangedClaim, committed_record, differences, make_figures, plan, publish_made
from simdino.recipes import recipe

TINY = "optim.steps=200,optim.batch_size=8,model.dim=24,model.hidden=16,record.snapshots=1"  # 4 steps in smoke
PICTURE = bytes.fromhex("89504e470d0a1a0a") + b"a picture"


@pytest.fixture
def project(tmp_path, notebook, monkeypatch):
    """A project with two notebooks, of which the first needs a run; its code is a module of one line."""
    for folder in ("simdino", "analysis", "notebooks", "figures", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "simdino/code.py").write_text('def f():\n    """What f does."""\n    return 1\n')
    first = f'profile = "cpu"\nseeds = [0]\nrecipes = ["simdino@{TINY}"]\nruns_dir = None'
    notebook(tmp_path / "notebooks/01_a.ipynb", parameters=first, cells=["one = 1"])
    notebook(tmp_path / "notebooks/02_b.ipynb", parameters='profile = "cpu"\nseeds = [0]', cells=["two = 2"])
    monkeypatch.setattr(reproduction, "CHECKOUT", tmp_path)
    return tmp_path


def keys(**options):
    return {figure.name: figure.folder.name for figure in plan("smoke", **options).figures}


def a_claim(measured=(1.0, 1.1, 0.9), **options):
    defaults = {"predicted": 0, "relation": "at_least", "source": "paper", "unit": "seed", "kind": "observation"}
    return claim("c", "s", measured=measured, **(defaults | options))


def make(figure, claims=(), **record):
    """Write what a notebook leaves."""
    figure.folder.mkdir(parents=True, exist_ok=True)
    defaults = {"name": figure.name, "notebook": f"notebooks/{figure.name}.ipynb", "profile": "cpu", "seeds": [0]}
    defaults |= {"hardware": "a CPU", "threads": 1, "versions": {"torch": "2"}, "commit": "abc", "minutes": 1.0}
    ipynb, png, text = figure.files
    ipynb.write_text("{}")
    png.write_bytes(PICTURE)
    text.write_text(json.dumps(defaults | {"claims": list(claims) or [a_claim()]} | record))


def test_a_key_follows_from_notebook_code_and_runs_and_from_nothing_else(project, notebook):
    before = keys()
    for path in project.rglob("*"):
        os.utime(path, (0, 0))
    (project / "simdino/code.py").write_text('def f():\n    """Another docstring."""\n\n    return 1  # a comment\n')
    shown = json.loads((project / "notebooks/02_b.ipynb").read_text())
    shown["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "an output"}]
    (project / "notebooks/02_b.ipynb").write_text(json.dumps(shown))
    assert keys() == before
    (project / "simdino/code.py").write_text("def f():\n    return 2\n")
    changed = keys()
    assert all(changed[name] != before[name] for name in before)
    notebook(project / "notebooks/02_b.ipynb", parameters='profile = "cpu"\nseeds = [0]', cells=["two = 3"])
    assert keys()["01_a"] == changed["01_a"]
    assert keys()["02_b"] != changed["02_b"]
    (project / "docs/expectations.toml").write_text("[a]\nb = 1\n")
    assert keys()["01_a"] != changed["01_a"]


def test_a_run_that_is_nowhere_is_trained_and_one_on_disk_is_read(project):
    todo, name = plan("smoke"), recipe(f"simdino@{TINY}", "smoke").run_name
    assert [config.run_name for config in todo.train] == [name]
    assert [figure.needs for figure in todo.figures] == [(project / "runs" / name,), ()]
    key = keys()
    (project / "runs" / name).mkdir(parents=True)
    (project / "runs" / name / "DONE").write_text("{}")
    assert plan("smoke").train == []
    assert keys() == key  # what is made of a run is the same after it was trained
    anew = plan("smoke", from_nothing=True)
    assert [config.run_name for config in anew.train] == [name]
    assert anew.runs == project / "build/smoke-reproduce/runs"
    assert [figure.runs_dir for figure in anew.figures] == [True, False]


def test_a_figure_is_published_whole_and_a_deleted_one_is_made_again(project):
    todo = plan("cpu")
    make(todo.figures[0])
    make(todo.figures[1])
    todo.figures[1].files[1].unlink()
    assert [figure.name for figure in todo.to_make] == ["02_b"]
    publish_made(todo)
    published = ["01_a.json", "01_a.png", "README.md", "claims.png"]
    assert sorted(path.name for path in (project / "figures").iterdir()) == published
    (project / "figures/01_a.png").unlink()
    publish_made(todo)
    assert (project / "figures/01_a.png").read_bytes() == PICTURE
    assert not list((project / "figures").glob("*.tmp"))


def test_a_figure_that_lacked_data_keeps_the_committed_one(project):
    todo = plan("cpu")
    make(todo.figures[0])
    publish_made(todo)
    (project / "figures/01_a.png").write_bytes(b"committed")
    make(todo.figures[0], missing=["bring CamVid"])
    assert [record["missing"] for record in publish_made(todo)] == [["bring CamVid"]]
    assert (project / "figures/01_a.png").read_bytes() == b"committed"


@pytest.mark.parametrize(("missing", "differ"), [(["bring CamVid"], 0), ([], 1)])
def test_a_figure_that_lacked_data_is_not_held_against_the_committed_one(project, capsys, missing, differ):
    run = project / "runs" / recipe(f"simdino@{TINY}", "cpu").run_name
    run.mkdir(parents=True)
    (run / "DONE").write_text("{}")
    todo = plan("cpu")
    for figure in todo.figures:
        make(figure)
    publish_made(todo)
    make(todo.figures[0], [a_claim((5.0, 5.1, 4.9))], missing=missing)
    assert make_figures("cpu") == 0
    assert f"{differ} differ from the committed ones" in capsys.readouterr().out


def test_the_committed_claims_are_those_of_git_or_as_they_came(project):
    assert committed_record("01_a") is None
    (project / "figures/01_a.json").write_text('{"claims": [], "minutes": 1}')
    todo = plan("cpu")
    make(todo.figures[0])
    publish_made(todo)
    assert committed_record("01_a") == {"claims": [], "minutes": 1}  # though figures/ has another by now
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project)]
    for command in (["init", "-q"], ["add", "figures"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    assert committed_record("01_a")["hardware"] == "a CPU"


def changed(old, new):
    return differences("01", {"claims": [old]}, {"claims": [new]})


def test_a_claim_differs_if_its_verdict_does_or_its_number_left_the_interval():
    old = a_claim()  # 1 ± 0.25
    assert changed(old, a_claim((1.1, 1.2, 1.0))) == []
    (outside,) = changed(old, a_claim((1.5, 1.6, 1.4)))
    assert (outside.turned, outside.sampled) == (False, True)
    (turned,) = changed(old, a_claim((-1.0, -1.1, -0.9)))
    assert turned.turned
    (open_,) = changed(old, a_claim((1.0, -1.0, 2.0)))
    assert not open_.turned
    assert changed(old, a_claim((5.0, 5.1), unit="image")) == []  # another claim
    computed = a_claim(1.0, unit="computation")
    assert changed(computed, a_claim(1.0005, unit="computation")) == []
    (off,) = changed(computed, a_claim(1.01, unit="computation"))
    assert not off.sampled


def test_a_reproduction_agrees_unless_more_numbers_left_than_chance_allows(capsys):
    committed = [a_claim() for _ in range(100)]
    left = ChangedClaim("01: c", turned=False, sampled=True, said="holds, 1 → holds, 2")
    assert reproduction._judge([left] * 17, committed) == 0
    assert reproduction._judge([left] * 40, committed) == 1
    assert reproduction._judge([ChangedClaim("01: c", turned=True, sampled=False, said="")], committed) == 1
    assert reproduction._judge([], []) == 0
    assert re.search(r"40 of 100 numbers left their intervals \(p = [\d.]+e-\d+\)", capsys.readouterr().out)


def test_a_disk_that_is_too_small_is_said_before_anything_begins(project, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr(reproduction, "_run", lambda *a: pytest.fail("begun"))
    with pytest.raises(ValueError, match=r"this needs \d+\.\d GB of disk, and .* has 0\.0 GB left"):
        make_figures("smoke")


def test_nothing_is_done_where_all_is_made_and_the_last_line_counts(project, capsys, monkeypatch):
    monkeypatch.setattr(reproduction, "_run", lambda *a: pytest.fail("begun"))
    name = recipe(f"simdino@{TINY}", "cpu").run_name
    (project / "runs" / name).mkdir(parents=True)
    (project / "runs" / name / "DONE").write_text("{}")
    before = {"minutes": 1, "claims": [a_claim((-1.0, -1.1, -0.9))]}
    (project / "figures/02_b.json").write_text(json.dumps(before))
    for figure in plan("cpu").figures:
        make(figure)
    for _ in range(2):
        assert make_figures("cpu") == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "2 figures, 2 of them made already; 0 runs from the archive: nothing to do."
        assert said[1] == "The figures and their claims: figures/README.md"
        assert said[2] == "2 hold, 0 fail, 0 undecided; 0 of 0 identities hold; 1 differ from the committed ones"
    assert "Of 2 claims 2 hold" in (project / "figures/README.md").read_text()


def test_what_failed_is_named_with_the_end_of_its_log(project, capsys, monkeypatch):
    def run(todo, jobs, options):
        make(todo.figures[0])
        todo.figures[1].log.parent.mkdir(parents=True)
        todo.figures[1].log.write_text("Traceback\nValueError: no such thing\n\n")
        return 1

    monkeypatch.setattr(reproduction, "_run", run)
    assert make_figures("cpu") == 1
    said = capsys.readouterr().out
    assert "02_b failed: ValueError: no such thing (build/cpu/logs/02_b.log)\n1 of 2 figures are not made." in said
    assert (project / "figures/01_a.png").is_file()


def test_the_display_ends_when_all_is_made_and_says_a_line_for_each(project, capsys, monkeypatch):
    todo = plan("smoke")
    monkeypatch.setattr(time, "sleep", lambda s: None)
    for i, _ in enumerate(reproduction._display(todo, 1)):
        if i == 0:
            path = Path(todo.runs / todo.train[0].run_name)
            path.mkdir(parents=True)
            (path / "DONE").write_text("{}")
        elif i <= 2:
            make(todo.figures[i - 1])
        assert i < 10
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines] == ["1 of 2 figures: 01_a", "2 of 2 figures: 02_b"]
