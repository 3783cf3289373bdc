"""Claims: rank correlations are scipy's without methods, the naive pairs' with them, and the population's in large
samples; Simpson's paradox is seen; intervals hold the truth, also where runs of one configuration are alike."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis.measures.rates import rate_optimality
from analysis.measures.spectra import alpha_req, rankme
from analysis.runs.correlations import (
    LABEL_FREE_MEASURES,
    correlation_difference,
    in_expected_direction,
    label_free_measures,
    measure_runs,
    rank_correlations,
)
from simdino.runs import Run, snapshot_path
from simdino.whole_files import write_json, write_tensors
from tests.configurations import gaussian, orthoplex, rotation, sphere

RNG = np.random.default_rng


def table(x, y, method=None, configuration=None):
    n = len(x)
    columns = {"m": x, "knn": y, "method": ["a"] * n if method is None else method}
    return pd.DataFrame(columns | {"configuration": np.arange(n) if configuration is None else configuration})


def correlations(frame, **options):
    found = rank_correlations(frame, measures=["m"], **options)
    return found.set_index(["scope", "statistic"])


# --- Values


@pytest.mark.parametrize("sign", [1, -1])
def test_a_monotone_measure_is_perfect_in_every_scope(sign):
    x = np.arange(24.0)
    found = correlations(table(x, np.exp(sign * x / 5), method=np.repeat(list("abcd"), 6)))
    assert found["value"].to_numpy() == pytest.approx(np.full(6, sign))
    bound = found["low"] if sign > 0 else -found["high"]
    assert (bound[["all", "within"]] > 0.5).all()
    assert (bound[["all", "within"]] < 1).all()  # sure to one swap at most
    assert found["units"]["between"].tolist() == [4, 4]


def test_simpsons_paradox_is_seen():
    within = np.tile(np.arange(6.0), 5)
    method = np.repeat(np.arange(5), 6)
    found = correlations(table(within + 10 * method, within - 10 * method, method))
    assert found["value"]["within"].tolist() == pytest.approx([1, 1])
    assert found["value"]["between"].tolist() == pytest.approx([-1, -1])
    assert (found["value"]["all"] < -0.5).all()


@pytest.mark.parametrize("ties", [False, True])
def test_without_methods_it_is_scipys(ties):
    x, y = RNG(0).standard_normal((2, 30))
    y = y + x
    x, y = (np.round(x), np.round(y)) if ties else (x, y)
    found = correlations(table(x, y))
    expected = [stats.spearmanr(x, y).statistic, stats.kendalltau(x, y).statistic]
    for scope in ("all", "within"):
        assert found["value"][scope].tolist() == pytest.approx(expected)
    assert found["value"]["between"].isna().all()  # one method


def test_within_methods_it_is_the_naive_one():
    rng = RNG(1)
    x, y, method = np.round(rng.standard_normal(20), 1), np.round(rng.standard_normal(20), 1), rng.integers(0, 3, 20)
    frame = table(x, y, method)
    pairs = [(i, j) for i, j in itertools.combinations(range(20), 2) if method[i] == method[j]]
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied = [sum(abs(s[k]) for s in signs) for k in (0, 1)]
    tau = sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1])
    ranks = frame.groupby("method")[["m", "knn"]].rank()
    rho = (ranks - ranks.groupby(frame["method"]).transform("mean")).corr().loc["m", "knn"]
    assert correlations(frame)["value"]["within"].tolist() == pytest.approx([rho, tau])


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_large_samples_have_the_correlations_of_the_normal_law(r):
    x, e = RNG(2).standard_normal((2, 1500))
    method = np.arange(1500) % 3
    y = r * x + math.sqrt(1 - r * r) * e + 5 * method
    found = correlations(table(x, y, method, np.arange(1500) % 20))
    expected = [6 / math.pi * math.asin(r / 2), 2 / math.pi * math.asin(r)]
    assert found["value"]["within"].tolist() == pytest.approx(expected, abs=0.05)


def test_only_order_counts_and_within_methods_only_order_there():
    x, y = RNG(3).standard_normal((2, 18))
    method = np.arange(18) % 3
    frame = table(x, y, method)
    base, order = correlations(frame), RNG(4).permutation(18)
    pd.testing.assert_frame_equal(correlations(frame.iloc[order]), base)
    bent, shifted = table(np.exp(x), y**3, method), table(x + 7 * method, y - 3 * method, method)
    for changed, scopes in ((bent, ["all", "within"]), (shifted, ["within"])):
        pd.testing.assert_frame_equal(correlations(changed).loc[scopes], base.loc[scopes])


# --- Intervals


def coverage(draw, truth, scope, draws=100, **options):
    hits = np.zeros(2)
    for seed in range(draws):
        found = correlations(draw(RNG(seed)), **options).loc[scope]
        hits += (found["low"] <= truth) & (found["high"] >= truth)
    return hits / draws


@pytest.mark.parametrize(("r", "methods"), [(0.0, 1), (0.8, 1), (0.8, 2)])
def test_intervals_hold_the_truth(r, methods):
    def draw(rng):
        x, e = rng.standard_normal((2, 24))
        method = np.arange(24) % methods
        return table(x + 9 * method, r * x + math.sqrt(1 - r * r) * e, method)

    truth = np.array([6 / math.pi * math.asin(r / 2), 2 / math.pi * math.asin(r)])
    held = coverage(draw, truth, "within")
    assert (held >= 0.9).all()  # nominal 0.95 ± 0.02


def test_seeds_of_one_configuration_are_not_independent_runs():
    """Four seeds that differ by little: intervals of 40 independent runs miss the truth, those of 10 units do not."""

    def draw(rng):
        x, y = np.repeat(rng.standard_normal((2, 10)), 4, axis=1) + 0.2 * rng.standard_normal((2, 40))
        return table(x, y, configuration=np.repeat(np.arange(10), 4))

    held, naive = (coverage(draw, np.zeros(2), "all", draws=50, unit=u) for u in ("configuration", None))
    assert (held >= 0.88).all()
    assert (naive < 0.8).all()


def test_the_interval_grows_with_its_level():
    x, y = RNG(5).standard_normal((2, 20))
    wide, narrow = (correlations(table(x, y + x), level=level) for level in (0.99, 0.5))
    assert (wide["low"]["all"] < narrow["low"]["all"]).all()
    assert (narrow["low"]["all"] < narrow["value"]["all"]).all()


# --- Two measures against each other


def two_measures(rng, *, noise=(1.0, 1.0), methods=2, n=32):
    """RankMe and anisotropy, of which less is expected to be better, as noisy images of one accuracy."""
    y = rng.standard_normal(n)
    x, other = (y + s * rng.standard_normal(n) for s in noise)
    return table(x, y, np.arange(n) % methods).assign(RankMe=x, anisotropy=-other)


def test_the_difference_is_that_of_the_correlations_as_expected():
    frame = two_measures(RNG(7))
    turned = in_expected_direction(rank_correlations(frame)).xs("within", level="scope")["value"]
    found = correlation_difference(frame, "RankMe", "anisotropy")
    assert found.difference == pytest.approx(turned["RankMe"] - turned["anisotropy"])
    assert found.low < found.difference < found.high
    assert found.units == 32
    back = correlation_difference(frame, "anisotropy", "RankMe")
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))


def test_what_two_measures_have_in_common_is_no_uncertainty_of_their_difference():
    frame = two_measures(RNG(8))
    assert correlation_difference(frame, "RankMe", "m")[:3] == pytest.approx((0, 0, 0), abs=1e-12)  # the same numbers
    few = correlation_difference(frame[:4], "RankMe", "anisotropy")
    assert (math.isnan(few.low), few.units) == (True, 4)


def test_the_interval_of_a_difference_holds_the_truth_and_sees_a_large_one():
    draws = [correlation_difference(two_measures(RNG(k)), "RankMe", "anisotropy") for k in range(100)]
    assert np.mean([d.low <= 0 <= d.high for d in draws]) >= 0.9  # nominal 0.95 ± 0.02
    worse = correlation_difference(two_measures(RNG(9), noise=(0.1, 2.0)), "RankMe", "anisotropy")
    assert worse.low > 0


# --- Bad input


def test_what_is_missing_is_left_out_measure_by_measure():
    x, y = RNG(6).standard_normal((2, 12))
    frame = table(x, y).assign(other=x)
    frame.loc[[0, 3], "m"] = math.nan
    found = rank_correlations(frame, measures=["m", "other"]).query("scope == 'all' and statistic == 'spearman'")
    assert found["runs"].tolist() == [10, 12]
    given = frame["m"].notna()
    expected = [stats.spearmanr(x[given], y[given]).statistic, stats.spearmanr(x, y).statistic]
    assert found["value"].tolist() == pytest.approx(expected)


def test_what_cannot_be_said_is_nan():
    tied = correlations(table(np.ones(8), np.arange(8.0)))
    assert tied[["value", "low", "high"]].isna().all().all()
    few = correlations(table(np.arange(3.0), np.arange(3.0)))
    assert few["value"]["all"].tolist() == pytest.approx([1, 1])
    assert few[["low", "high"]].isna().all().all()
    alone = correlations(table(np.arange(4.0), np.arange(4.0), method=list("abcd")))
    assert alone["value"]["within"].isna().all()
    assert correlations(table(np.arange(0.0), np.arange(0.0)))["value"].isna().all()


def test_columns_that_are_not_there_are_named():
    frame = table(np.arange(5.0), np.arange(5.0))
    with pytest.raises(ValueError, match="table has no column 'linear'"):
        rank_correlations(frame, target="linear", measures=["m"])
    with pytest.raises(ValueError, match="table has no column 'n'"):
        rank_correlations(frame, measures=["n"])
    with pytest.raises(ValueError, match="table has no measure"):
        rank_correlations(frame)


# --- Measures


def test_measures_of_known_features():
    d = 16
    tight = label_free_measures(orthoplex(d) @ rotation(d), torch.stack((sphere(50, d), sphere(50, d))), fit=(1, d))
    assert list(tight) == list(LABEL_FREE_MEASURES)
    assert tight["RankMe"] == pytest.approx(d, rel=1e-4)
    assert tight["participation ratio"] == pytest.approx(d)
    assert tight["anisotropy"] == pytest.approx(1 / d)
    assert tight["|α-ReQ − 1|"] == pytest.approx(1)  # flat: α = 0
    assert label_free_measures(sphere(9, d), sphere(3, d).expand(2, 3, d))["alignment"] == pytest.approx(0, abs=1e-12)


def test_a_power_law_with_exponent_one_is_at_alphas_optimum():
    n, d = 400, 60
    frame = torch.linalg.qr(gaussian(n, d + 1) - gaussian(n, d + 1).mean(0)).Q
    frame = torch.linalg.qr(frame - frame.mean(0)).Q[:, :d]  # orthonormal, centered columns
    z = frame * torch.arange(1, d + 1.0, dtype=frame.dtype).rsqrt() + 3  # a mean, which centering takes out
    found = label_free_measures(z, torch.stack((z, z + 0.1)))
    assert found["|α-ReQ − 1|"] == pytest.approx(0, abs=1e-6)
    assert found["RankMe"] == pytest.approx(rankme(z).item())
    unit = z / z.norm(dim=1, keepdim=True)
    assert found["rate / isotropic"] == pytest.approx(rate_optimality(unit, eps=0.05**0.5).of_isotropic.item())


def test_too_few_eigenvalues_leave_alpha_open_and_short_ones_shorten_its_range():
    z = gaussian(8, 30)  # seven positive eigenvalues
    views = torch.stack((z, z))
    assert math.isnan(label_free_measures(z, views)["|α-ReQ − 1|"])
    expected = abs(alpha_req(z, fit=(2, 7), center=True).item() - 1)
    assert label_free_measures(z, views, fit=(2, 50))["|α-ReQ − 1|"] == pytest.approx(expected)


def write_run(path, *, recipe="simdino", seed=0, lr=1.0, branch="teacher"):
    z, bank = torch.eye(4).repeat(5, 1), torch.eye(4).repeat(6, 1)
    path.mkdir()
    write_json(
        path / "config.json", {"recipe": recipe, "seed": seed, "lr": lr, "objective": {"gamma": 1.0, "eps": 0.5}}
    )
    write_tensors(
        path / "probe.safetensors",
        {
            f"{part}_{what}": values
            for part, n in (("bank", 24), ("test", 20))
            for what, values in (
                ("images", torch.zeros(n, 3, 4, 4, dtype=torch.uint8)),
                ("labels", torch.arange(n) % 4),
            )
        },
    )
    tensors = {f"{branch}/backbone/{name}": value for name, value in (("test", z), ("bank", bank))}
    write_tensors(snapshot_path(path, 7), tensors | {f"{branch}/backbone/views": torch.stack((z, z))})
    return Run.load(path)


def test_runs_are_measured_at_their_end(tmp_path):
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1, branch="student"),
        write_run(tmp_path / "c", lr=2.0),
    ]
    found = measure_runs(runs)
    assert found.index.tolist() == ["a", "b", "c"]
    assert found["configuration"]["a"] == found["configuration"]["b"] != found["configuration"]["c"]
    assert (found["knn"] == 1).all()
    assert (found["method"] == "simdino").all()
    z = torch.eye(4).repeat(5, 1)
    expected = label_free_measures(z, torch.stack((z, z)), eps=0.05**0.5)  # one resolution for all runs
    assert found.loc["a", list(LABEL_FREE_MEASURES)].to_dict() == pytest.approx(expected, nan_ok=True)


def test_a_run_without_features_is_named(tmp_path):
    write_json(tmp_path / "config.json", {"recipe": "simdino", "seed": 0, "objective": {}})
    with pytest.raises(ValueError, match="has recorded no features yet"):
        measure_runs([Run.load(tmp_path)])


def test_the_expected_direction_is_up():
    """A measure that should be low and is gets the correlation of one that should be high and is, and its interval."""
    x, noise = np.arange(24.0), RNG(0).normal(0, 6, 24)
    frame = table(x, x).assign(RankMe=x + noise, alignment=-x - noise)
    turned = in_expected_direction(rank_correlations(frame, measures=["RankMe", "alignment"]))
    up, down = turned.loc[("RankMe", "all")], turned.loc[("alignment", "all")]
    assert down.to_dict() == pytest.approx(up.to_dict())
    assert 0 < up["low"] < up["value"] < up["high"] < 1
