"""Claims: each run that a notebook needs is trained once, in few processes; its expected cost follows its size."""

import json

import pytest

from simdino import batch
from simdino.batch import (
    config_of_run,
    core_seconds,
    jobs,
    main,
    needed_configs,
    operations,
    parameters,
    training_table,
)
from simdino.config import NAME_LENGTH
from simdino.recipes import NOTES, PROFILES, RECIPES, recipe
from simdino.runs import Run
from simdino.studies import STUDIES, settings

TINY = "optim.steps=100,optim.batch_size=8,model.dim=24,model.hidden=16,record.snapshots=1"  # 2 steps in smoke


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
    monkeypatch.setattr(batch, "core_seconds", lambda config: config.optim.steps * config.optim.batch_size / 2000)
    configs = [recipe(s.recipe, profile, seed) for name in STUDIES for s in settings(name, profile) for seed in s.seeds]
    groups = jobs(configs + configs[:9])
    assert sorted(c.run_name for group in groups for c in group) == sorted({c.run_name for c in configs})
    assert jobs(configs) == groups
    total = sum(batch.core_seconds(c) for group in groups for c in group)
    for group in groups:
        assert len(group) == 1 or sum(map(batch.core_seconds, group)) <= min(batch.JOB_SECONDS, total / 8)
    assert jobs([]) == []


def test_the_expected_cost_follows_the_size():
    """Twice the batch twice the work of a step, twice the steps twice the steps; DINO's prototypes add d·K a view."""
    base = core_seconds(recipe("simdino"))
    more = {name: core_seconds(recipe(f"simdino@{name}")) for name in ("optim.steps=2000", "optim.batch_size=128")}
    recording = 2 * base - more["optim.steps=2000"]
    assert 0 < recording < base / 5
    overhead = batch._STEP * 1000
    assert more["optim.batch_size=128"] - recording - overhead == pytest.approx(2 * (base - recording - overhead))
    prototypes = core_seconds(recipe("dino@model.prototypes=512")) - core_seconds(recipe("dino@model.prototypes=256"))
    assert prototypes == pytest.approx(1000 * 64 * 2 * 4 * batch._OPERATIONS * 2 * 64 * 256 / 1e9)
    assert core_seconds(recipe("simdino-no-teacher")) < base < core_seconds(recipe("simdino@model.depth=3"))


def test_a_run_is_found_by_its_name():
    for s in settings("robustness", "gpu"):
        config = recipe(s.recipe, "gpu", 2)
        assert config_of_run(config.run_name, "gpu") == config
    with pytest.raises(ValueError, match="of another version or profile: here it is simdino-s0-"):
        config_of_run("simdino-s0-0123456789", "cpu")
    with pytest.raises(ValueError, match="is not the name of a run"):
        config_of_run("simdino", "cpu")
    plain = recipe("simdino@data.name=folder,data.root=photos,data.size=64", seed=3)
    assert config_of_run(plain.run_name, "cpu") == plain


def test_a_run_of_a_study_is_found_by_a_name_that_was_cut():
    for s in settings("collapse_boundary"):
        config = recipe(s.recipe, seed=2)
        assert len(s.recipe) > NAME_LENGTH
        assert config_of_run(config.run_name, "cpu") == config
    with pytest.raises(ValueError, match="does not say its recipe in full"):
        config_of_run(config.run_name[:-10] + "0123456789", "cpu")


@pytest.mark.parametrize("root", ["/data/images", "a" * 200])
def test_a_run_whose_name_does_not_say_its_recipe_in_full_is_refused_with_the_remedy(root):
    run = recipe(f"simdino@data.name=folder,data.root={root}", "smoke", 3).run_name
    with pytest.raises(ValueError, match=r"; simdino train simdino@\.\.\. --profile smoke --seed 3 trains it"):
        config_of_run(run, "smoke")


def test_one_process_trains_what_is_absent_of_several_runs(tmp_path, capsys):
    configs = [recipe(f"{name}@{TINY}", "smoke", seed) for name, seed in (("simdino", 0), ("simdino", 1), ("dino", 0))]
    paths = [tmp_path / config.run_name for config in configs]
    main([str(paths[0]), "--profile", "smoke"])
    began = (paths[0] / "DONE").stat().st_mtime_ns
    main([*(str(path / "DONE") for path in paths), "--profile", "smoke"])
    assert all(Run.load(path).done for path in paths)
    assert (paths[0] / "DONE").stat().st_mtime_ns == began


def test_a_run_that_fails_is_named_and_does_not_keep_others_from_training(tmp_path, monkeypatch, capsys):
    trained = []

    def get_run(config, root):
        trained.append(config.seed)
        if config.seed == 0:
            raise FloatingPointError("loss or gradient is not finite at step 7")

    monkeypatch.setattr(batch, "get_run", get_run)
    with pytest.raises(SystemExit) as exit_:
        main([recipe("simdino", "smoke", seed).run_name for seed in (0, 1)] + ["--profile", "smoke"])
    assert exit_.value.code == 1
    assert trained == [0, 1]
    assert "not finite at step 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/simdino-s0-0123456789"], "another version or profile"),
        (["runs/simdino", "--profile", "smoke"], "not the name of a run"),
        (["--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


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
