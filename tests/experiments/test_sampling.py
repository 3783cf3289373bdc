"""Samples of a known population: what theory predicts of them, and what corrections and intervals are worth."""

import math

import pytest
import torch

from analysis import theory
from analysis.experiments.injected_collapse import collapse_response
from analysis.experiments.sampling import effective_rank_intervals, random_probe_errors, sampling_bias
from analysis.measures.spectra import effective_rank, participation_ratio
from simdino.losses import coding_rate
from tests.configurations import gaussian

D, EPS = 16, 0.3
POWER = 1 / torch.arange(1, D + 1).double()
POPULATION = torch.nn.functional.normalize(gaussian(3000, D) * POWER.sqrt(), dim=1)


def test_sampling_bias_is_predicted_and_mostly_removed():
    table = sampling_bias(POPULATION, [D, 10 * D], eps=EPS, draws=40).set_index(["estimate", "measure", "n"])
    plain, corrected = table.loc["plain"], table.loc["corrected"]
    truth = [effective_rank(POPULATION), participation_ratio(POPULATION), coding_rate(POPULATION, eps=EPS)]
    assert plain.xs(D, level="n")["truth"].tolist() == pytest.approx([t.item() for t in truth], rel=1e-9)
    for n in (D, 10 * D):
        ratio = plain.loc[("participation ratio", n)]
        assert 1 / ratio["predicted"] == pytest.approx(1 / n + (1 - 1 / n) / ratio["truth"])
        assert abs(ratio["mean"] - ratio["predicted"]) < 4 * ratio["sd"] / math.sqrt(40)
        assert plain.loc[("coding rate", n), "mean"] == pytest.approx(
            plain.loc[("coding rate", n), "predicted"], rel=0.03
        )
    assert corrected["predicted"].isna().all()
    error = [(part["mean"] / part["truth"] - 1).abs() for part in (plain, corrected)]
    assert (error[1] < error[0] / 2).all()


def test_bootstrap_intervals_miss_and_jackknife_intervals_hold_the_truth():
    table = effective_rank_intervals(POPULATION, 10 * D, draws=20, resamples=60)
    assert table["truth"].unique() == pytest.approx([effective_rank(POPULATION).item()])
    assert (table["covers"] == table["truth"].between(table["low"], table["high"])).all()
    covers = table.groupby("method")["covers"].mean()
    assert covers["jackknife"] >= 0.85
    assert covers["bootstrap"] <= 0.5
    alone = effective_rank_intervals(POPULATION, 10 * D, draws=3, resamples=0)
    assert alone["method"].tolist() == ["jackknife"] * 3
    second = effective_rank_intervals(POPULATION, 10 * D, draws=3, resamples=0, order=2)
    centers = [(t["low"] + t["high"]) / 2 for t in (alone, second)]
    assert (centers[1] > centers[0]).all()  # it removes a bias downward


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="z must have unit-norm rows"):
        sampling_bias(2 * POPULATION, [D], eps=EPS)
    with pytest.raises(ValueError, match="non-empty blocks"):
        sampling_bias(POPULATION, [15], eps=EPS, draws=2)
    with pytest.raises(ValueError, match="labels must have shape"):
        collapse_response(POPULATION, torch.zeros(3, dtype=torch.int64), share=0.5)
    with pytest.raises(ValueError, match="target spans the whole space"):
        collapse_response(torch.ones(9, 1), torch.arange(9) % 3, share=0.5, rank=1)


def test_random_probes_err_as_the_spectrum_says():
    """C5, with a standard error of 1 % in 2,000 tasks."""
    z, eps = POPULATION[: 4 * D], 0.5
    lam = torch.linalg.eigvalsh(z.double().mT @ z.double() / len(z)).numpy()
    errors = random_probe_errors(z, eps=eps, draws=2000)
    assert errors.shape == (2000,)
    assert errors.mean().item() == pytest.approx(theory.probe_error(lam, d=D, eps=eps), rel=0.03)
