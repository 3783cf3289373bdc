"""Claims: logs of both versions of the official code are read alike; a rate that was made of a known cosine, dimension
or power law is explained by just that; the epochs that are quoted are those of the authors' log."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import theory
from analysis.files import located
from analysis.measures.inputs import unit_rows
from analysis.measures.spectra import effective_rank
from analysis.runs.official_logs import (
    PHASE_DIAGRAM_LABELS,
    PUBLISHED,
    REPORTED,
    explain,
    flat_dimension,
    published_log,
    rates_of_means,
    read_log,
    reported,
    reported_collapses,
    run_cosines,
)
from analysis.theory import sampled_rate
from simdino.losses import coding_rate, official_scaling
from simdino.runs import Run, snapshot_path
from simdino.whole_files import write_json, write_tensors

SHARED = "../shared/data/published_runs/simdino_vitb16_imagenet1k_100ep.csv"
D, N = 256, 64
EPS, GAMMA = official_scaling(D, N, 0.05, world_size=8)  # of the published run


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def log(expansion, cosine=0.5):
    return pd.DataFrame({"step": [0], "loss": [0.0], "expansion": [expansion], "cosine": [cosine]})


# --- Reading


def test_the_logs_of_both_versions_and_a_table_are_read_alike(tmp_path):
    one, two, table = tmp_path / "log.txt", tmp_path / "training_metrics.json", tmp_path / "log.csv"
    one.write_text(lines([{"train_loss": -0.8, "train_expa_loss": 0.375, "train_comp_loss": 0.425, "epoch": 3}]))
    row = {"iteration": 3, "dino_mcr_loss": -0.8, "dino_mcr_expa_loss": 0.375, "dino_mcr_comp_loss": 0.425}
    two.write_text(lines([row | {"total_loss": -1.1}]))
    table.write_text("epoch,loss,expansion,alignment_cosine,lr\n3,-0.8,0.375,0.425,1e-3\n")
    expected = pd.DataFrame({"step": [3], "loss": [-0.8], "expansion": [0.375], "cosine": [0.425]})
    for path in (one, two, table):
        pd.testing.assert_frame_equal(read_log(path), expected)


@pytest.mark.parametrize(
    ("epoch", "loss", "message"),
    [
        (1, '"low"', "loss of row 2 is 'low'"),
        (1, "[1]", "loss of row 2 is"),
        (1, "1e400", "loss of row 2 is inf"),
        ('"x"', 1, "epoch of row 2 is 'x'"),
        ("null", 1, "epoch of row 2 is"),
        (0.5, 1, "epoch must be whole numbers"),
    ],
)
def test_a_word_in_a_number_s_place_is_refused_by_its_row(tmp_path, epoch, loss, message):
    rest = '"expansion": 0.4, "cosine": 0.5}\n'
    text = '{"epoch": 0, "loss": 1, ' + rest + f'{{"epoch": {epoch}, "loss": {loss}, ' + rest
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(ValueError, match=f"cannot read .*log.txt: {message}"):
        read_log(tmp_path / "log.txt")


def test_a_last_line_that_is_whole_counts_without_its_end(tmp_path):
    rows = [{"epoch": i, "loss": 1.0, "expansion": 0.4, "cosine": 0.5} for i in range(3)]
    (tmp_path / "log.txt").write_text(lines(rows).rstrip("\n"))
    assert read_log(tmp_path / "log.txt")["step"].tolist() == [0, 1, 2]


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path):
    path, row = tmp_path / "log.txt", {"train_loss": 0, "train_expa_loss": 0.4, "train_comp_loss": 0.4, "epoch": 0}
    path.write_text(lines([row]) + '{"train_loss": -0.8, "trai')
    assert len(read_log(path)) == 1
    path.write_text('{"train_lo\n' + lines([row]))
    with pytest.raises(ValueError, match=r"cannot read .*log\.txt: line 1 is damaged"):
        read_log(path)


def test_a_table_cut_short_loses_its_last_line_and_other_lines_have_the_cells_of_the_first(tmp_path):
    path, head = tmp_path / "log.csv", "epoch,loss,expansion,cosine\n0,1,2,3\n"
    path.write_text(head + "1,1,2")
    with pytest.warns(UserWarning, match="cut short"):
        assert read_log(path)["step"].tolist() == [0]
    path.write_text(head + "9,1,1,2,3\n")
    with pytest.raises(ValueError, match="line 3 has 5 cells, and the first line 4"):
        read_log(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.txt", '{"train_loss": 2.3, "epoch": 0}\n', r"is no log of SimDINO: it lacks train_expa_loss"),
        ("log.txt", "", r"is no log of SimDINO: it lacks epoch"),
        ("log.csv", "", r"log\.csv is no log of SimDINO: it lacks epoch"),
        ("log.csv", "epoch,loss,expansion,cosine\n", r"it lacks any row"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path / name)


@pytest.mark.parametrize("name", ["none.txt", "none.csv"])
def test_a_missing_log_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=rf"cannot read .*{name}"):
        read_log(tmp_path / name)


def test_the_quoted_epochs_are_those_of_the_authors_log():
    if located(SHARED) is None:
        pytest.skip("the authors' epoch log (../shared/data) is not here")
    whole = published_log(SHARED)
    assert len(whole) == 100
    assert (whole["loss"] + whole["expansion"] + whole["cosine"]).abs().max() < 1e-9
    quoted = published_log().set_index("step")
    pd.testing.assert_frame_equal(whole.set_index("step").loc[quoted.index].round(4), quoted)


def test_without_the_file_the_quoted_epochs_are_given():
    given = published_log("no/such/file.csv")
    np.testing.assert_array_equal(given.to_numpy(), PUBLISHED)
    assert (given["loss"] + given["expansion"] + given["cosine"]).abs().max() < 2e-4  # four digits each


# --- Explaining


@pytest.mark.parametrize("cosine", [-0.3, 0.6, 1.0])
def test_a_rate_of_a_known_cosine_is_explained_by_it(cosine):
    eps = theory.eps_of_mean(EPS, cosine)
    best = explain(log(GAMMA * theory.rate_maximum(N, D, eps), cosine)).iloc[0]
    assert best["cosine_needed"] == pytest.approx(cosine, abs=1e-9)
    assert best["expansion"] == pytest.approx(best["ceiling_at_cosine"])
    random = explain(log(GAMMA * theory.rate_isotropic(N, D, eps), cosine)).iloc[0]
    assert random["cosine_isotropic"] == pytest.approx(cosine, abs=1e-9)
    assert random["expansion"] == pytest.approx(random["isotropic_at_cosine"])


@pytest.mark.parametrize("k", [20, 100, 256])
def test_features_that_are_isotropic_in_k_dimensions_are_explained_by_k(k):
    generator = torch.Generator().manual_seed(k)
    z = torch.zeros(200, N, D, dtype=torch.float64)
    z[..., :k] = unit_rows(torch.randn(200, N, k, generator=generator, dtype=torch.float64))
    rate = coding_rate(z, eps=EPS).mean().item()
    assert flat_dimension(rate, n=N, d=D, eps=EPS) == pytest.approx(k, rel=0.02)
    assert explain(log(GAMMA * rate)).iloc[0]["dimension"] == pytest.approx(k, rel=0.02)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 2.0])
def test_a_power_law_is_explained_by_its_effective_rank(exponent):
    lam = np.arange(1, D + 1.0) ** -exponent
    lam /= lam.sum()
    rate = sampled_rate(lam, N, d=D, eps=EPS)
    row = explain(log(GAMMA * rate)).iloc[0]
    assert row["power_law_rank"] == pytest.approx(effective_rank(lam).item(), rel=1e-6)


def test_beyond_isotropy_everything_is_explained_and_collapse_by_one_dimension():
    best = explain(log(GAMMA * theory.rate_maximum(N, D, EPS))).iloc[0]
    assert (best["dimension"], best["cosine_isotropic"]) == (D, 1)
    assert best["power_law_rank"] == pytest.approx(D)
    assert best["of_ceiling"] == pytest.approx(1)
    dead = explain(log(GAMMA * theory.rate_collapsed(D, EPS))).iloc[0]
    assert (dead["power_law_rank"], dead["dimension"]) == (1, pytest.approx(1, abs=0.1))
    none, barely = explain(log(0.0)).iloc[0], explain(log(GAMMA * theory.rate_collapsed(D, EPS) * (1 + 1e-12))).iloc[0]
    assert (none["power_law_rank"], barely["power_law_rank"]) == (1, pytest.approx(1, abs=1e-3))
    assert none["cosine_isotropic"] == -1


def test_a_row_that_is_nan_stays_so_and_leaves_the_others():
    table = pd.concat([log(math.nan), log(0.4)], ignore_index=True)
    told = explain(table)
    columns = ["of_isotropic", "cosine_needed", "cosine_isotropic", "dimension", "power_law_rank"]
    assert told.loc[0, columns].isna().all()
    assert told.loc[1, columns].notna().all()


def test_gathered_covariances_are_of_all_ranks():
    local, gathered = (explain(log(0.4), ranks=2, images=32, gathered=g).iloc[0] for g in (False, True))
    eps, gamma = official_scaling(D, 32, 0.05, world_size=2, gathered=True)
    assert gathered["ceiling"] == pytest.approx(gamma * theory.rate_maximum(64, D, eps))
    assert gathered["ceiling"] > local["ceiling"]


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="must be"):
        explain(log(0.4), images=0)


# --- Reported runs


def test_reported_runs_lie_where_they_ended():
    table = reported().set_index("where")
    assert table["spread"]["#20"] == pytest.approx(0, abs=1e-3)
    trained = table["spread"][["README, v1", "README, v2 (#50)", "#12, end", "#50"]]
    assert ((trained > 0.95) & (trained < 1)).all()
    logged = table[table["expansion"].notna()]
    assert (logged["expansion"] <= logged["ceiling"]).all()
    assert (table["collapse_number"][table["outcome"].str.startswith("collapsed")] < 2).all()


def test_runs_whose_ranks_were_not_said_had_one():
    for where in ("#12, start", "#12, end", "#50"):
        (run,) = (r for r in REPORTED if r.where == where)
        assert run.ranks == 1
        assert reported((run._replace(ranks=2),))["ceiling"][0] < run.expansion


@pytest.mark.parametrize(("rows", "ranks", "collapsed"), [(64, 8, False), (64, 16, True), (78, 32, True)])
def test_the_collapse_number_of_a_reported_run_follows_from_its_ranks_and_images(rows, ranks, collapsed):
    gamma = theory.gamma_rules(rows * ranks, D, 1.0)["official"]
    expected = theory.collapse_number(D, math.sqrt(ranks * 0.05), gamma)
    (found,) = (run for label, run in reported_collapses().items() if label.startswith(f"{ranks} × {rows}"))
    assert found == (pytest.approx(expected, rel=1e-12), collapsed)


def test_labels_of_reported_runs_say_what_the_record_says():
    runs = {run.where: run for run in REPORTED}
    for where, label in PHASE_DIAGRAM_LABELS.items():
        assert label.startswith(f"{runs[where].ranks} × {runs[where].images}")
        assert ("collapsed" in label) == runs[where].outcome.startswith("collapsed")


# --- Simulations, own runs


@pytest.mark.parametrize("cosine", [-0.5, 0.6, 1.0])
def test_simulated_means_have_the_predicted_rate(cosine):
    rates = rates_of_means(N, D, eps=EPS, cosine=cosine, draws=30, seed=1)
    assert rates.shape == (30,)
    predicted = theory.rate_isotropic(N, D, theory.eps_of_mean(EPS, cosine))
    assert rates.mean() == pytest.approx(predicted, rel=0.005)


@pytest.mark.parametrize("teacher", [True, False])
def test_cosines_of_a_run(tmp_path, teacher):
    first, second = torch.eye(2)[:, None].expand(2, 3, 2)  # (3, 2) each
    turned = (first + second) / math.sqrt(2)
    last = "teacher" if teacher else "student"
    write_json(tmp_path / "config.json", {"recipe": "made"})
    tensors = {"student/head/test": first, f"{last}/head/views": torch.stack((first, second))}
    write_tensors(snapshot_path(tmp_path, 4), tensors | ({"teacher/head/test": turned} if teacher else {}))
    table = run_cosines(Run.load(tmp_path))
    assert table["step"].tolist() == [4]
    assert table["student_teacher"][0] == pytest.approx(math.sqrt(0.5) if teacher else 1)
    assert table["views"][0] == pytest.approx(0)
