"""Claims: an archived run says what the run on disk says, to the rounding of its log; what it lacks it names, with the
command that brings it; a file that is damaged, incomplete or of another schema is refused, and never half read.
"""

import json
import re
import zipfile

import numpy as np
import pytest
import xarray as xr

from analysis.commands import archive_command
from analysis.measures.inputs import unit_rows
from analysis.runs.archiving import RESULTS, archive_study, rounded
from analysis.runs.correlations import measure_runs
from analysis.runs.diagnosis import diagnose, diagnose_all, training_log
from analysis.runs.outcomes import linear_accuracy, outcomes, untrained_knn
from simdino.archive import archived_run, archived_runs
from simdino.batch import get_runs
from simdino.recipes import recipe
from simdino.runs import Run
from simdino.train import get_run

TINY = "optim.steps=1500,optim.batch_size=8,model.dim=24,model.hidden=16,record.snapshots=1"  # 30 steps in smoke
NAMES = ("simdino", "dinov2", "simdino-no-teacher")
CONFIGS = [recipe(f"{name}@{TINY}", "smoke", seed) for name in NAMES for seed in (0, 1)]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [get_run(config, root, progress=False) for config in CONFIGS]


@pytest.fixture(scope="module")
def study(live, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    return archive_study("tiny", [run.path for run in live], profile="smoke", folder=folder)


@pytest.fixture(scope="module")
def read(study):
    return archived_runs(study)


def test_an_archived_run_has_the_same_log_diagnosis_and_results(live, read):
    assert [run.name for run in read] == [run.name for run in live]
    for old, new in zip(live, read, strict=True):
        assert new.archived
        assert new.done
        assert (new.config, new.environment, new.seconds, new.steps) == (
            old.config,
            old.environment,
            old.seconds,
            old.steps,
        )
        log, was = new.metrics, old.metrics.drop(columns="seconds")
        assert sorted(log.columns) == sorted(was.columns)
        np.testing.assert_allclose(log[was.columns], was, rtol=2e-5, atol=0)
        np.testing.assert_array_equal(log["loss"][:20], was["loss"][:20].astype(np.float32))
        for last in (False, True):
            table, wanted = diagnose(new, last=last), diagnose(old, last=last)
            assert table.attrs == wanted.attrs
            xr.testing.assert_allclose(table, wanted, rtol=2e-5, atol=1e-9)
            assert table["layer"].values.tolist() == wanted["layer"].values.tolist()
        for measure, options in RESULTS:
            assert measure(new, **options) == measure(old, **options)


def test_every_table_of_many_runs_takes_archived_ones(live, read):
    xr.testing.assert_allclose(diagnose_all(read, last=True), diagnose_all(live, last=True), rtol=2e-5, atol=1e-9)
    log = training_log(live).drop_vars("seconds")
    xr.testing.assert_allclose(training_log(read), log[list(training_log(read))], rtol=2e-5)
    assert outcomes(read).drop(columns="spectrum").equals(outcomes(live).drop(columns="spectrum"))
    assert linear_accuracy(read, first=True).equals(linear_accuracy(live, first=True))
    assert measure_runs(read).equals(measure_runs(live))
    assert untrained_knn(read) == untrained_knn(live)


def test_the_last_moments_are_those_of_the_head(live, read):
    z = unit_rows(live[0].snapshot(live[0].steps[-1])["teacher/head/test"]).double()
    d, moments = z.shape[1], read[0].arrays["moments"]
    covariance = np.zeros((d, d))
    covariance[np.triu_indices(d)] = moments[d:]
    np.testing.assert_allclose(moments[:d], z.mean(0), rtol=2e-5)
    np.testing.assert_allclose(np.triu(np.cov(z.T, bias=True)), covariance, rtol=2e-5, atol=1e-9)


def test_what_an_archived_run_lacks_it_names_with_the_command(read):
    for ask in (lambda r: r.probe, lambda r: r.snapshot(0), lambda r: r.weights(0), lambda r: r.result("other")):
        with pytest.raises(
            ValueError, match=r"has no .*: `simdino train 'simdino@.*' --profile smoke --seed 0` trains"
        ):
            ask(read[0])
    with pytest.raises(ValueError, match=r"was diagnosed with ε = 0\.2236"):
        diagnose(read[0], eps=0.5)
    assert read[0].weight_steps == []


def test_a_run_on_disk_is_taken_before_an_archived_one(live, study, tmp_path, capsys):
    runs = get_runs(CONFIGS[:2], live[0].path.parent, archive=study.parent)
    assert [run.archived for run in runs] == [False, False]
    (tmp_path / live[0].name).symlink_to(live[0].path)
    runs = get_runs(CONFIGS[:2], tmp_path, archive=study.parent)
    assert [run.archived for run in runs] == [False, True]
    assert f"1 runs from the archive, 1 from {tmp_path}, 0 to train\n" in capsys.readouterr().out
    assert archived_run(recipe("simdino", "smoke", 7), study.parent) is None
    assert archived_run(CONFIGS[0], tmp_path / "nothing") is None


def test_ten_lines_read_it_without_this_package(study, live):
    with np.load(study) as file:
        index = json.loads(file["index"].tobytes())
        name, run = next(iter(index["runs"].items()))
        log = dict(zip(run["log"], file[f"{name}/log"], strict=True))
    assert log["loss"].shape == (30,)
    assert run["config"]["recipe"] == live[0].config["recipe"]


def rewritten(study, folder, change):
    """A copy of a study's file with some entries changed: `change` gives a new one, or None to leave it out."""
    copy = folder / study.name
    with zipfile.ZipFile(study) as old, zipfile.ZipFile(copy, "w", zipfile.ZIP_LZMA) as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return copy


def flipped(name, content):
    return content[:-8] + bytes(8) if name.endswith("/log.npy") else content


def without_measures(name, content):
    return None if name.endswith("/measures.npy") else content


def of_schema_99(name, content):
    return content.replace(b'"schema": 1', b'"schema": 9') if name == "index.npy" else content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped, r"cannot read .*: the numbers of simdino@.* have changed; `git checkout .*/tiny\.npz`"),
        (without_measures, r"cannot read .*: it lacks .*/measures; .*without the file its runs are trained anew"),
        (of_schema_99, r"is of schema 9, and this version reads 1: take the file and the code of one version"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(study, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        archived_runs(rewritten(study, tmp_path, change))


@pytest.mark.parametrize("part", [0.0, 0.4, 0.99])
def test_a_file_that_was_cut_short_is_refused(study, tmp_path, part):
    copy = tmp_path / study.name
    content = study.read_bytes()
    copy.write_bytes(content[: round(part * len(content))])
    with pytest.raises(ValueError, match=r"cannot read .*tiny\.npz"):
        archived_run(CONFIGS[0], tmp_path)
    with pytest.raises(ValueError, match=r"there is no .*other\.npz"):
        archived_runs(tmp_path / "other.npz")


def test_only_whole_studies_are_archived(live, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"1 of the 2 runs of tiny are not finished: .*absent"):
        archive_study("tiny", [live[0].path, tmp_path / "absent"], folder=tmp_path)
    with pytest.raises(SystemExit, match=r"simdino archive: 85 of the 85 runs of recipes are not finished"):
        archive_command(["recipes", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match="unknown study 'recipe'; did you mean 'recipes'"):
        archive_command(["recipe"])
    assert not list(tmp_path.glob("*.npz"))


def test_rounding_keeps_fifteen_bits_and_what_is_not_finite():
    x = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-30, 30, 0.06)
    assert np.abs(rounded(x) / x.astype(np.float32) - 1).max() <= 2**-16
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(rounded(special), special.astype(np.float32))
    assert (np.ascontiguousarray(rounded(x)).view(np.uint32) % 2**8 == 0).all()


def test_a_kept_result_of_the_archive_is_named_by_its_function(read, live):
    names = set(read[0].record["results"])
    kept = {re.sub(r"\.json$", "", path.name) for path in (live[0].path / "results").iterdir()}
    assert names == kept
    assert Run.load(live[0].path).archived is False
