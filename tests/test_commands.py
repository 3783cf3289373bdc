"""The commands `simdino report` and `simdino preflight`, on good and on damaged input, and the report of a run."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from analysis import theory
from analysis.commands import probe_command, recipes_command, report_command
from analysis.experiments.injected_collapse import collapsed
from analysis.files import read_features
from analysis.reporting.features import report
from analysis.reporting.page import report_run
from simdino import runs, whole_files
from simdino.config import Model
from simdino.vit import Network
from tests.configurations import sphere

ROOT = Path(__file__).parents[1]
EPS = 0.05**0.5


def command(*arguments, name="report"):
    line = [sys.executable, "-W", "error::RuntimeWarning", "-m", "simdino", name, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def one_sentence(result, *words):
    """Refused with one line on stderr that has all the words."""
    lines = result.stderr.strip().splitlines()
    return result.returncode != 0 and not result.stdout and len(lines) == 1 and all(w in lines[0] for w in words)


def refused(*arguments):
    """The sentence with which the command exits, run in this process."""
    with pytest.raises(SystemExit) as stopped:
        report_command([*map(str, arguments)])
    assert len(stopped.value.code.splitlines()) == 1
    return stopped.value.code


@pytest.fixture
def stored(tmp_path):
    """The same features with labels in three formats: command lines."""
    z, labels = sphere(400, 8).float(), torch.arange(400) % 4
    np.save(tmp_path / "z.npy", z.numpy())
    np.savetxt(tmp_path / "labels.txt", labels.numpy(), fmt="%d")
    np.savez(tmp_path / "z.npz", features=z.numpy(), labels=labels.numpy(), other=np.zeros(3))
    safetensors.torch.save_file({"z": z, "labels": labels}, tmp_path / "z.safetensors")
    of = ["--labels", tmp_path / "labels.txt"]
    return z, labels, [[tmp_path / "z.npy", *of], [tmp_path / "z.npz"], [tmp_path / "z.safetensors"]]


def test_command_reads_every_format_alike(stored, tmp_path, capsys):
    z, labels, lines = stored
    expected = json.loads(report(z, labels=labels).to_json())
    for line in lines:
        report_command([*map(str, line), "--json", str(tmp_path / "out.json")])
        written = json.loads((tmp_path / "out.json").read_text())
        said = " ".join(capsys.readouterr().out.split())
        assert all(sentence in said for sentence in written.pop("read"))
        assert written == expected
        assert " ".join(str(report(z, labels=labels)).split()) in said


def test_command_in_a_process_of_its_own(stored, tmp_path):
    result = command(*stored[2][0])
    assert result.returncode == 0
    assert result.stderr == ""
    assert "HEALTHY" in result.stdout
    assert "k-NN accuracy" in result.stdout
    np.save(tmp_path / "nan.npy", np.full((50, 4), np.nan))
    (tmp_path / "z.npz").write_bytes((tmp_path / "z.npz").read_bytes()[:1000])
    assert one_sentence(command(tmp_path / "nan.npy"), "NaN")
    assert one_sentence(command(tmp_path / "z.npz"), "cannot read", "z.npz")
    assert one_sentence(command(tmp_path / "absent.npy"), "no file", "absent.npy")


def test_command_refuses_what_is_not_there_or_of_no_known_kind(tmp_path):
    assert "there is no file" in refused(tmp_path / "absent.npy")
    (tmp_path / "z.mat").write_bytes(b"x")
    assert ".safetensors" in refused(tmp_path / "z.mat")
    (tmp_path / "run").mkdir()
    assert "not a run directory" in refused(tmp_path / "run")


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("length", [0, 20, 300])
def test_command_refuses_a_damaged_file(tmp_path, suffix, length):
    path, whole = tmp_path / f"z.{suffix}", io.BytesIO()
    if suffix == "safetensors":
        whole.write(safetensors.torch.save({"z": torch.ones(50, 4)}))
    else:
        (np.save if suffix == "npy" else np.savez)(whole, np.ones((50, 4)))
    path.write_bytes(whole.getvalue()[:length])
    assert f"cannot read {path}" in refused(path)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((50, 4), np.inf), "NaN or infinite"),
        (np.ones(50), "shape"),
        (np.ones((1, 4)), "1 rows"),
        (np.ones((9, 4)), "9 rows"),
        (np.ones((50, 0)), "empty"),
        (np.array([{}], dtype=object), "cannot read"),
        (np.array([["a"] * 4] * 50), "numeric"),
        (np.ones((50, 4), dtype=complex), "real"),
    ],
)
def test_command_refuses_bad_features(tmp_path, array, words):
    np.save(tmp_path / "z.npy", array, allow_pickle=True)
    assert words in refused(tmp_path / "z.npy")


def test_command_refuses_labels_that_do_not_fit(tmp_path):
    np.save(tmp_path / "z.npy", sphere(50, 4).numpy())
    (tmp_path / "labels.txt").write_text("1\ntwo\n")
    np.save(tmp_path / "labels.npy", np.arange(3))
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.arange(3))
    assert "cannot read" in refused(tmp_path / "z.npy", "--labels", tmp_path / "labels.txt")
    assert "labels.npy has 3 labels, and z.npy 50 rows" in refused(
        tmp_path / "z.npy", "--labels", tmp_path / "labels.npy"
    )
    assert "two.npz has a, b: say with --label" in refused(tmp_path / "z.npy", "--labels", tmp_path / "two.npz")
    assert "eps must be positive" in refused(tmp_path / "z.npy", "--eps", 0)


def test_parquet_needs_pyarrow_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "z.parquet").write_bytes(b"PAR1")
    assert "pip install pyarrow" in refused(tmp_path / "z.parquet")


def test_parquet_of_columns_and_of_lists(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    z, labels = sphere(400, 8).numpy().astype(np.float32), np.arange(400) % 4
    expected = json.loads(report(z, labels=labels).to_json())
    columns = pd.DataFrame(z).rename(columns=str).assign(labels=labels, name="image.png")
    lists = pd.DataFrame({"embedding": list(z), "labels": labels})
    for name, table in (("columns", columns), ("lists", lists)):
        table.to_parquet(tmp_path / f"{name}.parquet", row_group_size=90)
        report_command([str(tmp_path / f"{name}.parquet"), "--json", str(tmp_path / "out.json")])
        written = json.loads((tmp_path / "out.json").read_text())
        assert "labels as labels" in written.pop("read")[0]
        assert written == expected
    for name, table, words in (
        ("text", pd.DataFrame({"name": ["a"] * 50}), "no column of numbers and none of lists"),
        ("ragged", pd.DataFrame({"embedding": [[1.0, 2.0], [1.0]] * 25}), "are not all 2 long"),
    ):
        table.to_parquet(tmp_path / f"{name}.parquet")
        assert words in refused(tmp_path / f"{name}.parquet")
    whole = (tmp_path / "columns.parquet").read_bytes()
    for length in (0, 20, len(whole) // 2):
        (tmp_path / "columns.parquet").write_bytes(whole[:length])
        assert "cannot read" in refused(tmp_path / "columns.parquet")


@pytest.mark.parametrize("suffix", ["npy", "npz", "compressed.npz", "safetensors", "parquet"])
def test_files_are_streamed_in_chunks(tmp_path, suffix):
    """Whatever the format, no more rows are held than were asked for, and they are the file's."""
    z, labels, path = sphere(300, 6).numpy().astype(np.float16), np.arange(300) % 4, tmp_path / f"z.{suffix}"
    if suffix == "npy":
        np.save(path, z)
    elif suffix == "safetensors":
        safetensors.torch.save_file({"z": torch.from_numpy(z), "labels": torch.from_numpy(labels)}, path)
    elif suffix == "parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(z.astype(np.float32)).rename(columns=str).assign(labels=labels).to_parquet(path)
    else:
        (np.savez_compressed if "compressed" in suffix else np.savez)(path, z=z, labels=labels)
    stream, found, _ = read_features(path)
    chunks = list(stream.chunks(64))
    assert stream.shape == (300, 6)
    assert {len(chunk) for chunk in chunks} <= {64, 300 % 64}
    assert np.array_equal(np.concatenate([np.asarray(chunk) for chunk in chunks]), z)
    assert found is None if suffix == "npy" else np.array_equal(found, labels)


def test_arrays_stored_by_columns_and_of_bfloat16_are_read(tmp_path):
    z = sphere(100, 6)
    np.savez(tmp_path / "z.npz", z=np.asfortranarray(z.numpy()))
    safetensors.torch.save_file({"z": z.bfloat16()}, tmp_path / "z.safetensors")
    for name, stored in (("z.npz", z), ("z.safetensors", z.bfloat16())):
        found, expected = (report(x).to_frame()["value"] for x in (read_features(tmp_path / name).features, stored))
        assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-9)


def test_damage_found_while_reading_is_one_sentence(tmp_path):
    """The archive's directory is whole, a member is not: only reading to its end finds out."""
    np.savez_compressed(tmp_path / "z.npz", z=sphere(4000, 8).numpy())
    data = bytearray((tmp_path / "z.npz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    (tmp_path / "z.npz").write_bytes(data)
    assert f"cannot read {tmp_path / 'z.npz'}" in refused(tmp_path / "z.npz")


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_read(tmp_path):
    for path, words in ((tmp_path / "no" / "out.json", "there is no folder"), (tmp_path, "is a folder")):
        message = refused(tmp_path / "absent.npy", "--json", path)
        assert words in message
        assert "absent" not in message


def test_what_is_printed_goes_into_any_encoding_and_a_full_disk_is_one_sentence(stored):
    line = [sys.executable, "-m", "simdino", "report", str(stored[2][0][0])]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert b"HEALTHY" in result.stdout
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            result = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
        assert result.returncode == 1
        assert result.stderr.splitlines() == ["simdino report: [Errno 28] No space left on device"]


def test_probes_refuse_classes_without_a_training_image_before_they_look_at_any(monkeypatch):
    monkeypatch.setattr("analysis.probes.labeled.image_features", lambda *_, **__: pytest.fail("featurised"))
    with pytest.raises(SystemExit) as stopped:
        probe_command(["pixels", "--data", "digits", "--tasks", "knn", "--size", "28", "--train", "12"])
    assert re.search(r"no training image of \d+ of its 10 classes.*--train 12 at random is too few", stopped.value.code)


# --- Runs


@pytest.fixture
def run(tmp_path):
    """A run with a collapsed head on a healthy backbone: two snapshots, four classes."""
    return write_run(tmp_path / "run")


def write_run(path):
    labels = torch.arange(200) % 4
    images = (torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).byte()
    images[:, 0] = (60 * labels)[:, None, None].byte()
    probe = {
        f"{part}_{what}": x.clone() for part in ("bank", "test") for what, x in (("images", images), ("labels", labels))
    }
    path.mkdir()
    whole_files.write_json(path / "config.json", {"recipe": "made", "seed": 0, "objective": {"eps": EPS}, "optim": {}})
    row = {"step": 0, "rate": 1.0, "rate_collapsed": 0.5, "rate_isotropic": 2.0}
    whole_files.write_text(path / "metrics.jsonl", json.dumps(row) + "\n")
    whole_files.write_tensors(path / "probe.safetensors", probe)
    for step, share in ((0, 0.2), (100, 0.999)):
        backbone = sphere(200, 12, seed=step)
        tensors = {}
        for branch in ("student", "teacher"):
            for tap, z in (
                ("backbone", backbone),
                ("head", collapsed(sphere(200, 8, seed=step), torch.eye(8)[:1].expand(200, 8), share=share)),
            ):
                tensors |= {f"{branch}/{tap}/test": z, f"{branch}/{tap}/views": torch.stack((z[:50], z[:50]))}
                tensors |= {f"{branch}/{tap}/bank": z}
        whole_files.write_tensors(runs.snapshot_path(path, step), {k: v.float().clone() for k, v in tensors.items()})
    return path


def test_run_report_judges_head_and_backbone(run):
    result = report_run(run)
    assert result.reports["head"].judgement == "mean collapse"
    assert result.reports["backbone"].judgement == "healthy"
    assert result.table.index.tolist() == [("backbone", 0), ("backbone", 100), ("head", 0), ("head", 100)]
    assert result.table.loc[("head", 100), "mean_collapse"] == pytest.approx(0.999, abs=1e-3)
    assert result.table.loc[("head", 0), "mean_collapse"] < 0.3
    assert result.table.loc[("head", 0), "½E‖z − z′‖²"] == 0  # equal views
    text = str(result)
    attainable, highest = theory.rate_isotropic(200, 8, EPS), theory.rate_maximum(200, 8, EPS)
    levels = f"random directions {attainable:.4g}; all features equal {theory.rate_collapsed(8, EPS):.4g}"
    for part in (levels, f"(R*) {highest:.4g}", "untrained network (step 0)", "raw pixels"):
        assert part in " ".join(text.split())
    assert json.loads(result.to_json())["reports"]["head"]["judgement"] == "mean collapse"
    assert "mean collapse" in result._repr_html_()


def test_command_reports_a_run_and_refuses_a_damaged_one(run, capsys):
    report_command([str(run)])
    assert "head, MEAN COLLAPSE: Complete" in capsys.readouterr().out
    snapshot = runs.snapshot_path(run, 100)
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    assert "cannot read" in refused(run)
    for file in (run / "snapshots").iterdir():
        file.unlink()
    assert "no features yet" in refused(run)


def test_reports_of_several_runs_and_files_stand_side_by_side(stored, run, tmp_path, capsys):
    """One table, then of each the judgement; what is asked of features is asked of the files alone."""
    z, _, (line, *_) = stored
    report_command([str(run)])
    alone = capsys.readouterr().out
    other = write_run(tmp_path / "other")
    report_command([*map(str, (run, other, *line)), "--eps", "0.5", "--json", str(tmp_path / "out.json")])
    said = capsys.readouterr().out
    table, *judged = said.split("\n\n")
    head, names, *rows = table.splitlines()
    assert head.split()[:4] == ["judgement", "n", "d", "ε"]
    assert names.split() == ["set"]
    expected = [f"{path} {of}" for path in (run, other) for of in ("head", "backbone")] + [f"{line[0]} features"]
    assert [" ".join(row.split()[:2]) for row in rows] == expected
    rank = report(z, eps=0.5).to_frame().loc["effective rank", "value"]
    assert f"{rank:.3g}" in rows[-1].split()
    assert "0.5" in rows[-1].split()
    assert [part.splitlines()[0] for part in judged] == [f"=== {path}" for path in (run, other, line[0])]
    assert "head, MEAN COLLAPSE" in judged[0]
    assert "untrained network (step 0)" in judged[0]
    assert all(sentence in alone for sentence in judged[0].splitlines()[1:])
    assert "features, HEALTHY" in judged[2]
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == [str(path) for path in (run, other, line[0])]
    assert written[str(run)]["reports"]["head"]["judgement"] == "mean collapse"


def test_what_is_for_features_is_refused_of_runs_alone(run, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        report_command([str(run), str(write_run(tmp_path / "other")), "--eps", "0.5"])
    assert [line.endswith("judged_as are for features") for line in stopped.value.code.splitlines()] == [True, True]


def test_one_that_fails_among_several_is_named_and_the_others_are_reported(run, stored, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report_command([str(run), str(tmp_path / "absent.npy"), str(stored[2][1][0])])
    assert stopped.value.code.startswith(f"simdino report: {tmp_path / 'absent.npy'}: there is no file")
    assert len(stopped.value.code.splitlines()) == 1
    said = capsys.readouterr().out
    assert f"=== {run}" in said
    assert f"=== {stored[2][1][0]}" in said


def test_preflight_command():
    """The official README's run, whose log ends at 0.4238, and a refusal; by processes: the function has its name."""
    official = ["--d", 256, "--batch", 64, "--eps", 0.05, "--official", "--ranks", 8]
    result = command(*official, "--measured", 0.4238, name="preflight")
    assert result.returncode == 0
    assert all(w in result.stdout for w in ("0.0189", "0.4496", "3.74", "98.8% of the attainable", "94.3% of R*"))
    assert "images can attain on average, 0.4496" in command(*official, "--images", 64, name="preflight").stdout
    assert "μ_l]/11" in command(*official, "--local-crops", 10, name="preflight").stdout
    assert "between 0.0" in command(*official, "--gathered", name="preflight").stdout
    assert "as gamma is 0: total collapse is stable" in command(*official, "--gamma", 0, name="preflight").stdout
    refusal = command("--d", 256, "--batch", 64, "--eps", -1, name="preflight")
    assert one_sentence(refusal, "eps must be positive")


@pytest.mark.parametrize("size", ["0", "2x", "x2", "1x2x3", "-4", "a"])
def test_a_size_that_is_none_is_refused_with_what_one_looks_like(size, capsys):
    with pytest.raises(SystemExit):
        probe_command(["pixels", "--data", "digits", f"--size={size}"])
    assert "give SIDE or HEIGHTxWIDTH, such as 224 or 224x448" in capsys.readouterr().err


def test_a_probe_says_what_it_took_of_weights_and_is_told_what_they_do_not_say(tmp_path, capsys):
    """48 channels: a width that no published network has."""
    config = Model(stem="patch", patch=8, dim=48, depth=1, heads=4, pool="cls", out=0)
    tensors = Network(config, size=16).backbone.state_dict()
    torch.save({"teacher": tensors, "epoch": 3}, tmp_path / "w.pth")
    asked = [
        str(tmp_path / "w.pth"),
        "--data",
        "digits",
        "--size",
        "16",
        "--tasks",
        "knn",
        "--train",
        "40",
        "--test",
        "20",
    ]
    with pytest.raises(SystemExit, match=r"number of heads of .* width 48: .* --config '\{\"heads\": 6\}'"):
        probe_command(asked)
    probe_command([*asked, "--config", '{"heads": 4}', "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "w: taken: the network at 'teacher'" in printed
    assert "w: left: epoch" in printed
    assert "w: left: epoch" in json.loads((tmp_path / "out.json").read_text())["notes"]


def test_the_page_of_recipes_is_renewed_between_its_markers(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.commands.CHECKOUT", tmp_path)
    with pytest.raises(SystemExit, match=r"recipes: .*No such file"):
        recipes_command([])
    (tmp_path / "docs").mkdir()
    page = (ROOT / "docs/recipes.md").read_text()
    (tmp_path / "docs/recipes.md").write_text(page.replace("<!-- end -->", "old\n<!-- end -->"))
    recipes_command([])
    assert (tmp_path / "docs/recipes.md").read_text() == page
