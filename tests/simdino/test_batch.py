"""Claims: many runs are read, or trained once, and nothing long begins unasked; a run is found by its name."""

import pytest

from simdino import batch
from simdino.batch import config_of_run, get_runs, main
from simdino.config import NAME_LENGTH
from simdino.recipes import recipe
from simdino.runs import Run
from simdino.studies import settings

TINY = "optim.steps=100,optim.batch_size=8,model.dim=24,model.hidden=16,record.snapshots=1"  # 2 steps in smoke


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


def test_many_runs_are_read_where_they_are_and_trained_where_they_are_not(tmp_path, capsys):
    configs = [recipe(f"simdino@{TINY}", "smoke", seed) for seed in (0, 1, 0)]
    trained = get_runs(configs, tmp_path, archive=tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"0 runs from the archive, 0 from {tmp_path}, 2 to train (about 0.1 minutes)")
    assert [run.config["seed"] for run in trained] == [0, 1, 0]
    began = (trained[0].path / "DONE").stat().st_mtime_ns
    assert [run.name for run in get_runs(configs, tmp_path, archive=tmp_path)] == [run.name for run in trained]
    assert (trained[0].path / "DONE").stat().st_mtime_ns == began
    assert capsys.readouterr().out == f"0 runs from the archive, 2 from {tmp_path}, 0 to train\n"


def test_more_than_ten_minutes_of_training_are_asked_for(tmp_path, monkeypatch):
    begun = []

    def get_run(config, root, device):
        begun.append(config.seed)
        return Run(tmp_path)

    monkeypatch.setattr(batch, "_pace", lambda config, device: 1.0)
    monkeypatch.setattr(batch, "get_run", get_run)
    configs = [recipe("simdino", seed=seed) for seed in range(20)]
    with pytest.raises(ValueError, match=r"20 to train \(about \d\d\.\d minutes\): say train=True to begin"):
        get_runs(configs, tmp_path, archive=tmp_path)
    assert begun == []
    get_runs(configs, tmp_path, archive=tmp_path, train=True)
    assert begun == list(range(20))


def test_the_time_to_train_is_measured_here(monkeypatch):
    config = recipe(f"simdino@{TINY}", "smoke")
    pace = batch._pace(config, "cpu")
    assert pace > 0
    monkeypatch.setattr(batch, "core_seconds", lambda config: 1e3)
    assert batch._pace(config, "cpu") < pace / 1e2
