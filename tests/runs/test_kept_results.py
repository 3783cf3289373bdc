"""Claims: a measure of a finished run is made once; a damaged file, another version or other options make it anew;
an unfinished run and a directory that cannot be written to keep nothing."""

import json

import pytest

from analysis.runs import kept_results
from simdino.runs import Run
from simdino.whole_files import write_json


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "config.json", {})
    write_json(tmp_path / "DONE", {})
    return Run.load(tmp_path)


@pytest.fixture
def measure():
    calls = []

    @kept_results.kept
    def double(run, *, of=1):
        calls.append(of)
        return {"value": 2 * of, "list": [1.5, float("nan")]}

    double.calls = calls
    return double


def test_once_for_each_option(run, measure):
    assert [measure(run)["value"], measure(run)["value"], measure(run, of=3)["value"]] == [2, 2, 6]
    assert measure.calls == [1, 3]
    assert str(measure(run)["list"]) == "[1.5, nan]"


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"source": "another", "values": {"value": 0}})])
def test_damage_and_another_version_make_it_anew(run, measure, text):
    measure(run)
    (path,) = (run.path / "results").glob("*.json")
    path.write_text(text)
    assert measure(run)["value"] == 2
    assert measure.calls == [1, 1]
    measure(run)
    assert measure.calls == [1, 1]


def test_a_run_that_goes_on_keeps_nothing(run, measure):
    (run.path / "DONE").unlink()
    measure(run), measure(run)
    assert measure.calls == [1, 1]
    assert not (run.path / "results").exists()


def test_where_one_cannot_write_nothing_is_kept(run, measure):
    (run.path / "results").write_text("a file in the way")
    assert measure(run)["value"] == measure(run)["value"] == 2
    assert measure.calls == [1, 1]
