"""Claims: what a notebook needs stands in one cell; each run is in one job; its expected cost follows its size."""

import json

import pytest

from simdino import needed_runs
from simdino.needed_runs import (
    core_seconds,
    disk_bytes,
    jobs,
    needed_configs,
    operations,
    parameters,
    study_configs,
    training_table,
)
from simdino.recipes import NOTES, PROFILES, RECIPES, recipe
from simdino.studies import STUDIES, settings
from simdino.train import get_run


@pytest.fixture
def write(tmp_path, notebook):
    return lambda name, text: notebook(tmp_path / f"{name}.ipynb", parameters=text, cells=["check_parameters(In)"])


def test_a_notebook_says_what_it_needs_in_its_parameters_cell(write):
    path = write("a", 'profile = "cpu"\nseeds = None\nrecipes = ["simdino", "dino@optim.lr=0.002"]\nout_dir = None')
    assert parameters(path)["recipes"] == ["simdino", "dino@optim.lr=0.002"]
    assert [c.recipe for c in needed_configs(path, "smoke")] == ["simdino", "dino@optim.lr=0.002"]
    assert [c.seed for c in needed_configs(path, "cpu")] == 2 * [*PROFILES["cpu"].seeds]
    path = write("b", 'profile = "cpu"\nseeds = [3]\nrecipes = ["simdino", "simdino"]\nstudy = "self_distillation"')
    configs = needed_configs(path, "cpu")
    assert {c.seed for c in configs} == {3}
    assert [c.recipe for c in configs] == ["simdino", *(s.recipe for s in settings("self_distillation"))]
    assert needed_configs(write("c", 'profile = "cpu"\nseeds = [0]'), "cpu") == []


def test_a_notebook_without_one_parameters_cell_is_named(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match=r"a\.ipynb needs one cell tagged parameters, and has 0"):
        parameters(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*a\.ipynb"):
        parameters(path)


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_each_run_is_in_one_job_and_jobs_are_short(profile, monkeypatch):
    monkeypatch.setattr(needed_runs, "core_seconds", lambda config: config.optim.steps * config.optim.batch_size / 2000)
    configs = [recipe(s.recipe, profile, seed) for name in STUDIES for s in settings(name, profile) for seed in s.seeds]
    groups = jobs(configs + configs[:9])
    assert sorted(c.run_name for group in groups for c in group) == sorted({c.run_name for c in configs})
    assert jobs(configs) == groups
    total = sum(needed_runs.core_seconds(c) for group in groups for c in group)
    for group in groups:
        assert len(group) == 1 or sum(map(needed_runs.core_seconds, group)) <= min(needed_runs.JOB_SECONDS, total / 8)
    assert jobs([]) == []


def test_the_expected_cost_follows_the_size():
    """Twice the batch twice the work of a step, twice the steps twice the steps; DINO's prototypes add d·K a view."""
    base = core_seconds(recipe("simdino"))
    more = {name: core_seconds(recipe(f"simdino@{name}")) for name in ("optim.steps=2000", "optim.batch_size=128")}
    recording = 2 * base - more["optim.steps=2000"]
    assert 0 < recording < base / 5
    overhead = needed_runs._STEP * 1000
    assert more["optim.batch_size=128"] - recording - overhead == pytest.approx(2 * (base - recording - overhead))
    prototypes = core_seconds(recipe("dino@model.prototypes=512")) - core_seconds(recipe("dino@model.prototypes=256"))
    assert prototypes == pytest.approx(1000 * 64 * 2 * 4 * needed_runs._OPERATIONS * 2 * 64 * 256 / 1e9)
    assert core_seconds(recipe("simdino-no-teacher")) < base < core_seconds(recipe("simdino@model.depth=3"))


def test_the_table_counts_a_run_once(write):
    first = write("01_a", 'profile = "cpu"\nseeds = None\nrecipes = ["simdino", "dino"]')
    second = write("02_b", 'profile = "cpu"\nseeds = [0]\nrecipes = ["simdino", "simdinov2"]')
    theory = write("03_c", 'profile = "cpu"\nseeds = [0]')
    rows = [line.split(" | ") for line in training_table([first, second, theory], "cpu").splitlines() if " | " in line]
    assert [row[:3] for row in rows] == [
        ["| notebook", "runs", "new"],
        ["| 01_a", "10", "10"],
        ["| 02_b", "2", "1"],
        ["| all", "11", "11"],
    ]
    minutes = [float(row[-1].strip(" |")) for row in rows[1:]]
    assert minutes[2] == pytest.approx(minutes[0] + minutes[1], abs=0.11)


def test_operations_are_those_of_the_passes_that_a_step_makes():
    """Two global views forward, backward and through the teacher, ten local ones forward and backward."""
    config = recipe("simdino-vits16-imagenet")
    dense = 2 * 12 * 384**2 * 12  # of a token, without attention: 12·d² weights a block
    views = (197, 2 * 4), (37, 10 * 3)  # tokens, passes
    attention = sum(passes * 12 * 4 * tokens**2 * 384 for tokens, passes in views)
    expected = attention + sum(passes * tokens * dense for tokens, passes in views)
    images = config.optim.steps * config.optim.batch_size
    assert operations(config) / images == pytest.approx(expected, rel=0.05)  # the patch embedding and the head besides


@pytest.mark.parametrize("name", [name for name in RECIPES if "vits16" in name])
def test_the_note_of_a_published_recipe_says_its_operations(name):
    assert operations(recipe(name)) == pytest.approx(float(NOTES[name].split()[0]), rel=0.05)


def test_the_archive_has_every_seed_of_every_setting():
    configs = study_configs("robustness")
    assert (
        len({config.run_name for config in configs})
        == len(configs)
        == sum(len(s.seeds) for s in settings("robustness"))
    )
    assert {config.seed for config in study_configs("recipes")} == set(PROFILES["cpu"].seeds)
    with pytest.raises(ValueError, match="unknown study 'robustnes'; did you mean 'robustness'"):
        study_configs("robustnes")


def test_the_disk_that_a_run_takes_is_known_beforehand(tmp_path):
    """Never half of what it really takes, nor thrice."""
    for name in ("simdino", "dinov2"):
        config = recipe(f"{name}@optim.steps=100", "smoke")
        run = get_run(config, tmp_path, progress=False)
        used = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
        assert used / 2 < disk_bytes(config) < 3 * used
