"""Claims: a file is written whole or not at all, and what is damaged is named, never skipped."""

import json
import re
import time

import pytest
import torch

from simdino.checkpoint import cut_log
from simdino.runs import (
    Run,
    environment,
    evaluated_branch,
    read_json_lines,
    read_metadata,
    read_tensors,
    snapshot_path,
    write_json,
    write_tensors,
)


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


def test_a_row_cut_short_is_left_out_while_running_and_refused_afterward(run):
    with open(run.path / "metrics.jsonl", "a") as log:
        log.write('{"step": 20, "lo')
    assert run.metrics["step"].tolist() == [0, 10]
    (run.path / "DONE").write_text("{}")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 3 is damaged"):
        _ = run.metrics


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
    (run.path / "metrics.jsonl").write_text(100_000 * row)
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
