"""Claims: collapse is told by one criterion, whatever the objective; shares of settings come with intervals that are
those of the literature; a study's runs are found by what was changed.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analysis import theory
from analysis.experiments.dino_map import differences_live, reduced_run
from analysis.measures.collapse import patch_ranks
from analysis.probes.backbone import load_backbone
from analysis.probes.tasks import probe_backbones
from analysis.runs.diagnosis import diagnose
from analysis.runs.outcomes import (
    batch_rates,
    fourth_order_outcome,
    gain_kept,
    linear_accuracy,
    matched_settings,
    mean_outcomes,
    outcomes,
    outcomes_by_setting,
    patch_ranks_over_training,
    photo_scores,
    probe_outcome,
    share_difference,
    share_within,
    survival_forecast,
    untrained_knn,
    with_and_without,
)
from simdino.recipes import recipe
from simdino.runs import Run, snapshot_path
from simdino.studies import settings
from simdino.train import get_run
from simdino.whole_files import write_json, write_tensors

N, D = 60, 6


@pytest.fixture
def write(tmp_path):
    """A run whose last features are the given ones in the head, while its backbone tells the three classes."""

    def build(name: str, head: torch.Tensor, *, seed: int = 0, noise: float = 0.01, **objective: float) -> Run:
        path, labels = tmp_path / f"{name}-{seed}", torch.arange(N) % 3
        images = torch.randint(1, 255, (N, 1, 4, 4), dtype=torch.uint8)
        parts = {"images": images, "labels": labels}
        write_tensors(
            path / "probe.safetensors", {f"{p}_{k}": v.clone() for p in ("bank", "test") for k, v in parts.items()}
        )
        write_json(path / "config.json", {"recipe": name, "seed": seed, "objective": {"eps": 0.5} | objective})
        backbone = torch.eye(8)[labels] + noise * torch.randn(N, 8, generator=torch.Generator().manual_seed(seed))
        for step, features in ((0, torch.eye(D).repeat(N // D, 1)), (3, head)):
            taps = {"head/test": features, "backbone/test": backbone, "backbone/bank": backbone}
            taps |= {"head/views": features[:4].expand(2, 4, D)}
            write_tensors(snapshot_path(path, step), {f"student/{k}": v.clone() for k, v in taps.items()})
        return Run.load(path)

    return build


def test_batches_of_a_run_have_the_rate_that_their_spectrum_predicts(write):
    """Of 60 axes of 6 dimensions a batch of all has the rate of the flat spectrum; of normal rows B8 is within 2 %."""
    run = write("whole", torch.eye(D).repeat(N // D, 1))
    for batch, groups in ((N, 1), (24, 2)):
        run.config["optim"] = {"batch_size": batch, "groups": groups}
        found = batch_rates.__wrapped__(run)
        assert found["predicted"] == pytest.approx(found["normal"], rel=0.03)
        assert found["real"] == pytest.approx(D / 2 * math.log1p(1 / 0.05), rel=1e-6 if batch == N else 0.2)
    assert found["real"] < D / 2 * math.log1p(1 / 0.05)


FRAME, POINT = torch.eye(D).repeat(N // D, 1), F.normalize(torch.ones(N, D), dim=-1)


def test_outcomes_are_those_of_the_last_features_and_collapse_is_seen(write):
    table = outcomes([write("open", 3 * FRAME), write("shut", POINT), write("shut", POINT + 1e-3 * FRAME, seed=1)])
    assert table.loc[("open", 0), "effective_rank"] == pytest.approx(D)
    assert table.loc[("open", 0), "spread"] >= 1  # no flatter spectrum is there
    assert table.loc[("open", 0), "knn"] == 1
    assert table.loc[("open", 0), "spectrum"] == pytest.approx([1 / D] * D)
    assert table.loc[("shut", 0), "effective_rank"] == pytest.approx(1, abs=1e-4)
    assert table.loc[("shut", 0), "spread"] == pytest.approx(0, abs=1e-4)
    assert table["collapsed"].tolist() == [False, True, True]
    assert 0 <= table["knn_pixels"].min() <= 1


def test_a_rank_under_two_is_a_collapse_though_the_rate_has_left_it(write):
    """Mass 0.85 on one direction: exp H = 1.8 here, while the rate, which is a logarithm, is well above its floor."""
    z = POINT.clone()
    z[: N // 10] = FRAME[: N // 10]
    row = outcomes([write("a", z)]).iloc[0]
    assert row["effective_rank"] < 2
    assert row["spread"] > 0.05
    assert row["collapsed"]


def test_the_criterion_does_not_move_with_the_objective(write):
    z = FRAME + POINT
    runs = [write("a", z, eps=0.5), write("b", z, eps=5.0), write("c", z, teacher_temp=0.04)]
    table = outcomes(runs)
    assert table["spread"].to_numpy() == pytest.approx(table["spread"].iloc[0])


def test_two_runs_of_one_recipe_and_seed_are_refused(write, tmp_path):
    run = write("a", FRAME)
    with pytest.raises(ValueError, match="two runs of a with seed 0"):
        outcomes([run, run])


POINTS = [
    ("simdino", {}, "a", (0, 1)),
    ("simdino", {"learning rate": 2.0}, "a2", (0,)),
    ("simdino", {"learning rate": 2.0, "γ": 4.0}, "a24", (0,)),
    ("simdino", {"architecture": "ConvNet"}, "ac", (0,)),
    ("dino", {}, "b", (0,)),
    ("dino", {"learning rate": 2.0}, "b2", (0,)),
]


def table_of(**knn: float) -> pd.DataFrame:
    rows = [
        {"recipe": name, "seed": seed, "knn": knn[name] + 0.02 * seed, "effective_rank": 5.0, "spread": 0.5}
        for _, _, name, seeds in POINTS
        for seed in seeds
    ]
    table = pd.DataFrame(rows).set_index(["recipe", "seed"])
    return table.assign(collapsed=table["knn"] < 0.3, spectrum=[np.array([0.7, 0.3])] * len(table))


RUNS = {"a": 0.59, "a2": 0.58, "a24": 0.8, "ac": 0.76, "b": 0.5, "b2": 0.2}


def test_settings_are_compared_with_the_best_of_their_method():
    table = mean_outcomes(POINTS, table_of(**RUNS), untrained=0.4).set_index("recipe")
    assert table["knn"].to_dict() == pytest.approx(RUNS | {"a": 0.6})  # mean of 0.59 and 0.61
    assert table.loc["a", "knn_sd"] == pytest.approx(0.02 / math.sqrt(2))
    assert math.isnan(table.loc["b", "knn_sd"])
    assert table.loc["a", "seeds"] == 2
    assert table["relative"].to_dict() == pytest.approx(
        {"a": 0.75, "a2": 0.725, "a24": 1, "ac": 0.95, "b": 1, "b2": 0.4}
    )
    assert table["gain"].to_dict() == pytest.approx({"a": 1, "a2": 0.9, "a24": 2, "ac": 1.8, "b": 1, "b2": -2})
    assert table["factor"].fillna("two").tolist() == ["", "learning rate", "two", "architecture", "", "learning rate"]
    assert table["collapsed"].tolist() == [0, 0, 0, 0, 0, 1]


def test_shares_are_of_the_settings_that_change_one_factor():
    table = mean_outcomes(POINTS, table_of(**RUNS), untrained=0.4)
    shares = share_within(table)
    assert shares[["n", "within", "share", "collapsed"]].values.tolist() == [[2, 1, 0.5, 0], [1, 0, 0, 1]]
    assert share_within(table, column="gain", least=0.5)["share"].tolist() == [1, 0]
    assert ((shares["low"] <= shares["share"]) & (shares["share"] <= shares["high"])).all()


def test_shares_and_their_difference_have_the_intervals_of_the_literature():
    """Newcombe 1998: Wilson's of 81 in 263 is 0.2553 to 0.3662; method 10's of 56/70 - 48/80 is 0.0524 to 0.3339."""
    counts = {"m": (81, 263), "a": (56, 70), "b": (48, 80)}
    rows = [(m, i < k) for m, (k, n) in counts.items() for i in range(n)]
    table = pd.DataFrame(rows, columns=["method", "ok"]).assign(factor="x", collapsed=0.0)
    shares = share_within(table.assign(relative=np.where(table["ok"], 0.96, 0.94)))
    assert shares.loc["m", ["low", "high"]].tolist() == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert share_difference(shares.loc["a"], shares.loc["b"]) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_matched_settings_are_those_that_both_methods_have():
    both = matched_settings(mean_outcomes(POINTS, table_of(**RUNS), untrained=0.4), "simdino", "dino")
    assert both.index.tolist() == ["recipe", "learning rate × 2"]
    assert both["knn"].tolist() == pytest.approx([0.6, 0.58])
    assert both["knn_dino"].tolist() == pytest.approx([0.5, 0.2])


def test_a_setting_without_a_run_is_named():
    with pytest.raises(ValueError, match="ac has no run with seed 0"):
        outcomes_by_setting(POINTS, table_of(**RUNS).drop(index=("ac", 0)))


def test_what_is_kept_of_a_gain_is_a_ratio_of_means():
    with_ = pd.DataFrame({"linear": [0.6, 0.5, 0.55]}, index=[0, 1, 2])
    without = pd.DataFrame({"linear": [0.475, 0.45, 0.5]}, index=[2, 1, 0])
    kept = gain_kept({"a": (with_, without)}, "linear", 0.4)["a"]
    assert kept.tolist() == pytest.approx([0.5] * 3)  # each keeps half, and so their means, without any error
    noisy = gain_kept({"a": (with_, without.add([0.0, 0.03, 0.0], axis=0))}, "linear", 0.4)["a"]
    # of all, and without each seed
    ratios = [(0.225 + 0.03) / 0.45, (0.125 + 0.03) / 0.25, 0.175 / 0.35, (0.15 + 0.03) / 0.3]
    assert noisy.tolist() == pytest.approx([3 * ratios[0] - 2 * r for r in ratios[1:]])


def test_without_a_clear_gain_nothing_can_be_kept():
    with_ = pd.DataFrame({"linear": [0.6, 0.2, 0.45]})
    assert gain_kept({"a": (with_, with_)}, "linear", 0.4)["a"].isna().all()
    assert gain_kept({"a": (with_[:1], with_[:1])}, "linear", 0.4)["a"].tolist() == [1]


def test_the_untrained_network_is_that_of_the_first_snapshot(write):
    runs = [write("told", FRAME), write("noise", FRAME, seed=1, noise=100.0)]
    first = [diagnose(run).sel(branch="teacher", layer="backbone")["knn"].values[0] for run in runs]
    assert untrained_knn(runs) == pytest.approx(np.mean(first))


def test_runs_with_and_without_a_teacher_are_those_of_the_recipe_and_of_momentum_0():
    points = settings("self_distillation")
    rows = [{"recipe": p.recipe, "seed": seed, "knn": 0.1 * seed} for p in points for seed in p.seeds]
    table = outcomes_by_setting(points, pd.DataFrame(rows).set_index(["recipe", "seed"]))
    sides = with_and_without(table, "teacher", 0.0)
    assert list(sides) == ["simdino", "dino", "simdinov2", "dinov2"]
    for method, (with_, without) in sides.items():
        assert with_.index.tolist() == without.index.tolist() == [0, 1, 2, 3, 4]
        assert set(with_["recipe"]) == {f"{method}@optim.steps=300,record.snapshots=1"}
        assert {recipe(name).optim.teacher for name in without["recipe"]} == {"student"}


def test_a_linear_probe_tells_what_is_linearly_told_and_no_more(write):
    accuracy = linear_accuracy([write("told", FRAME), write("noise", FRAME, noise=100.0)])
    assert accuracy["told", 0] == 1
    bank_is_test = accuracy["noise", 0]
    assert 1 / 3 <= bank_is_test < 0.8  # 8 numbers of noise, fitted a little


# --- Patches and photographs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    changes = "optim.steps=1500,optim.batch_size=8,model.dim=24,model.hidden=16,record.snapshots=1"  # 30 steps in smoke
    configs = [recipe(f"simdinov2@{changes}", "smoke", seed) for seed in (0, 1)]
    root = tmp_path_factory.mktemp("runs")
    return [get_run(config, root, progress=False) for config in configs]


def test_ranks_of_patches_are_those_of_every_snapshot(trained):
    table = patch_ranks_over_training(trained)
    assert dict(table.sizes) == {"recipe": 1, "seed": 2, "step": len(trained[0].steps)}
    for run in trained:
        for step in run.steps:
            found = table.isel(recipe=0).sel(seed=run.config["seed"], step=step)
            expected = patch_ranks(run.snapshot(step)["teacher/head/patches"])
            assert (found["within"].item(), found["between"].item()) == pytest.approx(tuple(map(float, expected)))


def test_a_run_without_patches_has_no_ranks_of_them(write):
    with pytest.raises(ValueError, match="a-0 has no patches"):
        patch_ranks_over_training([write("a", FRAME)])


def test_scores_on_photographs_are_those_of_the_runs_backbones(trained):
    table = photo_scores(trained, train=60, test=40)
    assert set(table["backbone"]) == {trained[0].config["recipe"]}
    assert set(table["task"]) == {"knn", "few-shot", "linear"}
    backbones = [load_backbone(run.path) for run in trained]
    wanted = probe_backbones(backbones, ["photos"], tasks=["knn", "few-shot", "linear"], train=60, test=40)
    same = ["data", "measure", "value", "low", "high", "sd", "n", "note"]
    pd.testing.assert_frame_equal(table[same], wanted[same])
    again = photo_scores(trained, train=60, test=40)  # from what is kept
    pd.testing.assert_frame_equal(again, table)


def test_the_fourth_order_and_the_probes_of_a_run_are_of_its_last_features(write):
    """Rows of a frame: images 0, 6, 12, ... are equal, and of the same class, as 3 divides 6."""
    run = write("frame", 3 * FRAME)
    found = fourth_order_outcome(run)
    equal = N // D - 1  # other rows that are equal to one
    assert found["all"] == pytest.approx(equal / (N - 1))
    assert found["share"] == pytest.approx(1)
    assert found["pairs"] == pytest.approx((N // 3 - 1) / (N - 1))
    expected = theory.probe_error([1 / D] * D, d=D, eps=0.05**0.5)
    assert probe_outcome(run)["error"] == pytest.approx(expected, rel=0.1)
    assert probe_outcome(write("shut", POINT))["error"] == pytest.approx(1, rel=0.3)


def test_a_survival_forecast_is_the_reduced_network_of_the_configuration_and_seed_of_a_run(tmp_path):
    config = recipe("dino@optim.steps=4,model.prototypes=32,model.out=16,optim.lr=0.01", seed=3)
    write_json(tmp_path / "config.json", config)
    center, spread = reduced_run(config, seed=3)
    found = survival_forecast(Run.load(tmp_path))
    assert found == {"lives": float(differences_live(spread)), "ratio": pytest.approx(center[3] / spread[3])}
    assert found["ratio"] != pytest.approx(np.divide(*reduced_run(config, seed=4))[3])
