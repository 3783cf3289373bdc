"""Claims: a file is written whole or not at all, and what is damaged is named, never skipped."""

import json
import os
import re
import time

import pytest
import safetensors.torch
import torch

from simdino.checkpoint import cut_log
from simdino.runs import Run, environment, evaluated_branch, snapshot_path
from simdino.whole_files import read_json, read_json_lines, read_metadata, read_tensors, write_json, write_tensors


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "config.json", {"recipe": "simdino"})
    write_tensors(snapshot_path(tmp_path, 12), {"teacher/head/test": torch.eye(3)})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.5}\n{"step": 10, "loss": 0.5}\n')
    return Run.load(tmp_path)


def test_a_run_gives_back_what_was_written(run):
    assert run.config == {"recipe": "simdino"}
    assert run.steps == [12]
    torch.testing.assert_close(run.snapshot(12)["teacher/head/test"], torch.eye(3))
    assert run.metrics["loss"].tolist() == [1.5, 0.5]
    assert not run.done


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a run directory"):
        Run.load(tmp_path)


def test_an_absent_snapshot_is_refused_with_those_there_are(run):
    with pytest.raises(ValueError, match=r"no snapshot of step 13; it has \[12\]"):
        run.snapshot(13)


def test_damaged_files_are_named(run):
    snapshot = snapshot_path(run.path, 12)
    snapshot.write_bytes(snapshot.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cannot read .*step_00000012\.safetensors"):
        run.snapshot(12)
    with pytest.raises(ValueError, match=r"cannot read .*probe\.safetensors"):
        _ = run.probe
    (run.path / "config.json").write_text('{"recipe": ')
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        Run.load(run.path)


def test_a_row_cut_short_is_left_out_with_a_word_and_a_whole_one_without_its_end_is_kept(run):
    with open(run.path / "metrics.jsonl", "a") as log:
        log.write('{"step": 20, "lo')
    with pytest.warns(UserWarning, match=r"the last line of .*metrics\.jsonl is cut short and left out"):
        assert run.metrics["step"].tolist() == [0, 10]
    with open(run.path / "metrics.jsonl", "a") as log:
        log.write('ss": 1}')
    assert run.metrics["step"].tolist() == [0, 10, 20]


DAMAGE = {  # a file, what is wrong with it, and the words that say so
    "no object": ("config.json", "[]", "it is no JSON object"),
    "too deep": ("config.json", "[" * 100_000, "config.json"),
    "half a character": ("config.json", '{"recipe": "\\ud800"}', "config.json"),
    "no UTF-8": ("config.json", b'{"recipe": "\xff"}', "config.json"),
    "a part of another type": ("config.json", '{"recipe": "a", "optim": 3}', "its optim means nothing"),
    "a number of another type": ("config.json", '{"recipe": "a", "optim": {"steps": "a"}}', "its optim.steps"),
    "a number out of range": ("config.json", '{"recipe": "a", "objective": {"eps": -1}}', "its objective.eps"),
    "no number": ("config.json", '{"recipe": "a", "model": {"out": NaN}}', "its model.out"),
    "a seed": ("config.json", '{"recipe": "a", "seed": null}', "its seed"),
    "null": ("environment.json", "null", "it is no JSON object"),
    "a source": ("environment.json", '{"source": 3}', "its source is 3"),
    "seconds": ("DONE", '{"seconds": "a"}', "its seconds are 'a'"),
    "text for a step": ("metrics.jsonl", '{"step": "a"}\n', "step of line 1 is 'a'"),
    "text for a loss": ("metrics.jsonl", '{"step": 0, "rate": 1}\n{"step": 1, "rate": "b"}\n', "rate of line 2 is 'b'"),
    "a list": ("metrics.jsonl", '{"step": 0, "rate": [1]}\n', "rate of line 1 is"),
    "steps that do not rise": ("metrics.jsonl", '{"step": 0}\n{"step": 2}\n{"step": 2}\n', "step of line 3 is 2"),
    "half a step": ("metrics.jsonl", '{"step": 0}\n{"step": 0.5}\n', "step of line 2 is 0.5"),
    "a number that no step has": ("metrics.jsonl", '{"step": 1' + 40 * "0" + "}\n", "step of line 1 is 1e+40"),
    "no steps": ("metrics.jsonl", '{"loss": 0}\n', "it has no step"),
    "half a character in a name": ("metrics.jsonl", '{"step": 0, "\\ud800": 1}\n', "line 1 is damaged"),
    "a list for a row": ("metrics.jsonl", "[1]\n", "line 1 is damaged"),
    "bytes": ("metrics.jsonl", b"\xff\n", "metrics.jsonl"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_is_checked_in_one_place_by_file_and_field(run, name):
    file, content, words = DAMAGE[name]
    (run.path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    ask = {"config.json": "config", "environment.json": "environment", "DONE": "seconds", "metrics.jsonl": "metrics"}
    with pytest.raises(ValueError, match=re.escape(file)) as error:
        getattr(Run(run.path), ask[file])
    assert words in str(error.value)


def test_a_number_that_is_null_is_missing(run):
    (run.path / "metrics.jsonl").write_text('{"step": 0, "rate": null}\n{"step": 1, "rate": null}\n')
    assert run.metrics["rate"].isna().tolist() == [True, True]


def test_what_a_file_lacks_is_named_when_it_is_asked_for(run):
    write_json(run.path / "environment.json", {"commit": "abc"})
    for ask, words in (
        (lambda: run.config["optim"], r"config\.json: it has no optim"),
        (lambda: run.environment["source"], r"environment\.json: it has no source"),
        (lambda: run.logged("rate"), r"metrics\.jsonl: it has no rate"),
        (lambda: run.snapshot(12)["student/head/test"], r"step_00000012\.safetensors: it has no student/head/test"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    write_json(run.path / "config.json", {"recipe": "a", "optim": {"lr": 0.1}})
    with pytest.raises(ValueError, match=r"it has no optim\.steps"):
        _ = Run(run.path).config["optim"]["steps"]


def test_a_folder_whose_configuration_is_of_something_else_is_no_run(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "dinov2"})
    with pytest.raises(ValueError, match=r"is not a run directory: its config\.json is of something else"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"teacher/head/test": torch.ones(3)}, "no set of features"),
        ({"teacher/head/test": torch.ones(3, 3, dtype=torch.int32)}, "no set of features"),
        ({"teacher/head/test": torch.full((3, 3), torch.nan)}, "NaN"),
        ({"teacher/head/test": torch.ones(3, 4)}, "not as in step_00000012"),
        ({"teacher/head/test": torch.ones(3, 3), "student/head/test": torch.ones(3, 3)}, "student/head/test is not as"),
        ({"teacher/head/test": torch.ones(3, 3), "student/head/test": torch.ones(2, 3)}, "another number of images"),
    ],
)
def test_features_are_those_of_the_first_snapshot(run, tensors, words):
    write_tensors(snapshot_path(run.path, 20), tensors)
    with pytest.raises(ValueError, match=f"step_00000020.safetensors: .*{words}"):
        run.snapshot(20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bank_images": None}, "it has no bank_images"),
        ({"test_images": torch.ones(3)}, "test_images have the shape"),
        ({"bank_labels": None}, "labels of one part only"),
        ({"test_labels": torch.tensor([0, 1])}, "test_labels are not one class"),
        ({"test_labels": torch.tensor([0.0, 1.0, 2.0])}, "test_labels are not one class"),
        ({"test_images": torch.ones(3, 3, 9, 9)}, "of different sizes"),
    ],
)
def test_a_probe_that_does_not_fit_together_is_named(run, change, words):
    parts = {"images": torch.ones(3, 3, 8, 8), "labels": torch.arange(3)}
    probe = {f"{part}_{what}": x.clone() for part in ("bank", "test") for what, x in parts.items()} | change
    write_tensors(run.path / "probe.safetensors", {k: v for k, v in probe.items() if v is not None})
    with pytest.raises(ValueError, match=f"probe.safetensors: .*{words}"):
        _ = run.probe


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.safetensors: .*no space"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.json"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_stand_on_some_rows_are_nan_on_the_others(run):
    log = [{"step": step, "loss": 1.0} | ({"gradient_rate": 0.5} if step % 10 == 0 else {}) for step in range(25)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    assert read_json_lines(run.path / "metrics.jsonl") == log
    assert list(run.metrics) == ["step", "loss", "gradient_rate"]
    assert run.metrics["step"].dtype == "int64"
    assert run.metrics["gradient_rate"].dropna().index.tolist() == [0, 10, 20]
    cut_log(run.path / "metrics.jsonl", 15)
    assert read_json_lines(run.path / "metrics.jsonl") == log[:15]


def test_a_log_is_cut_without_changing_what_is_kept(run):
    log = run.path / "metrics.jsonl"
    log.write_text('{"step": 0, "loss": 1.50}\n{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    cut_log(log, 2)
    assert log.read_text() == '{"step": 0, "loss": 1.50}\n{"step": 1}\n'
    log.write_text('{"step": 0}\n{"step": 1, "lo\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is damaged"):
        cut_log(log, 2)


@pytest.mark.parametrize("damaged", ['{"step": 1}, {"step": 1}', '{"step": 1', ""])
def test_a_damaged_line_is_named_wherever_it_is(run, damaged):
    (run.path / "metrics.jsonl").write_text('{"step": 0}\n' + damaged + '\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is damaged"):
        _ = run.metrics


def test_a_hundred_thousand_rows_are_read_in_seconds(run):
    names = [f"number_{i}" for i in range(17)]
    row = json.dumps({"step": 0} | dict.fromkeys(names, 0.1234567)) + "\n"
    (run.path / "metrics.jsonl").write_text("".join(row.replace('"step": 0', f'"step": {i}') for i in range(100_000)))
    start = time.process_time()
    assert run.metrics.shape == (100_000, 18)
    assert time.process_time() - start < 4  # a second where nothing else runs


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.zeros(2)}, {"step": "1"})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"x": torch.ones(2)}, {"step": "2"})
    assert read_tensors(path)["x"].tolist() == [0, 0]
    assert read_metadata(path) == {"step": "1"}


def test_the_environment_is_plain_data():
    e = environment()
    assert json.loads(json.dumps(e)) == e
    assert e["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", e["commit"])


@pytest.mark.parametrize("tap", ["head/test", "backbone/bank", "head/views"])
def test_the_evaluated_branch_is_the_teacher_where_there_is_one(tap):
    alone = {f"student/{tap}": torch.eye(2)}
    assert evaluated_branch(alone) == "student"
    assert evaluated_branch(alone | {f"teacher/{tap}": torch.eye(2)}) == "teacher"


def test_what_is_written_through_a_link_stands_where_it_points_and_no_device_is_replaced(tmp_path):
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "real.json") == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no plain file"):
        write_json(tmp_path / "pipe", {})
