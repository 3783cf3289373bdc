"""The judgement: each threshold from both sides, and which of them are a head's and which a backbone's."""

import math
import subprocess
import sys

import pytest
import torch

from analysis import theory
from analysis.measures.moments import Moments
from analysis.reporting.features import report, verdict
from analysis.reporting.judgement import Judgement, judge
from tests.configurations import gaussian, sphere

EPS = 0.05**0.5
N, D = 800, 64


def rate(s):
    """The coding rate that keeps the part s of what random directions have over a single point."""
    low, high = theory.rate_collapsed(D, EPS), theory.rate_isotropic(N, D, EPS)
    return low + s * (high - low)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"rate": rate(0.51)}, Judgement.HEALTHY),
        ({"rate": rate(0.49)}, Judgement.DIMENSIONAL_COLLAPSE),
        ({"rate": rate(0.49), "mean": 0.8}, Judgement.MEAN_COLLAPSE),
        ({"within": EPS**2 * 0.99}, Judgement.CLASS_COLLAPSE),
        ({"within": EPS**2 * 1.01}, Judgement.HEALTHY),
        ({"views": 0.51}, Judgement.VIEW_PROBLEM),
        ({"views": 0.49}, Judgement.HEALTHY),
    ],
)
def test_a_head_is_judged_by_the_rate_it_keeps(numbers, expected):
    given = {"rate": rate(0.9), "mean": 0.0, "rank": 9.0} | numbers
    assert judge(N, D, eps=EPS, **given).judgement is expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, Judgement.HEALTHY),  # though a head with this rate and mean has collapsed
        ({"mean": 1 - 0.99 * EPS**2}, Judgement.MEAN_COLLAPSE),
        ({"mean": 1 - 1.01 * EPS**2}, Judgement.HEALTHY),
        ({"rank": 1.99}, Judgement.DIMENSIONAL_COLLAPSE),
        ({"rank": 2.01}, Judgement.HEALTHY),
        ({"within": EPS**2 * 0.99}, Judgement.CLASS_COLLAPSE),
        ({"views": 0.51}, Judgement.VIEW_PROBLEM),
    ],
)
def test_a_backbone_is_judged_by_what_no_network_that_works_has(numbers, expected):
    given = {"rate": rate(0.2), "mean": 0.7, "rank": 9.0} | numbers
    assert judge(N, D, eps=EPS, judged_as="backbone", **given).judgement is expected


def test_few_samples_are_judged_only_if_they_have_collapsed():
    few = theory.rate_isotropic(D - 1, D, EPS)
    assert judge(D - 1, D, rate=few, mean=0.0, rank=50.0, eps=EPS).judgement is Judgement.TOO_FEW_SAMPLES
    assert judge(D - 1, D, rate=few / 9, mean=0.0, rank=2.0, eps=EPS).judgement is Judgement.DIMENSIONAL_COLLAPSE


def backbone():
    """What healthy backbones have, and no healthy head: a common mean and a spectrum that falls as 1/j²."""
    z = gaussian(N, D) / torch.arange(1, D + 1)
    return z / z.square().sum(1).mean().sqrt() + math.sqrt(0.5) * torch.nn.functional.one_hot(torch.tensor(0), D)


def test_a_healthy_backbone_is_not_judged_as_a_head():
    z = backbone()
    assert report(z).judgement.is_collapse
    told = report(z, judged_as="backbone")
    assert told.judgement is Judgement.HEALTHY
    assert "judged as features of a backbone" in told.conventions
    assert verdict(Moments.of(z), judged_as="backbone").judgement is Judgement.HEALTHY
    assert report(torch.ones(D) + 1e-3 * gaussian(N, D), judged_as="backbone").judgement is Judgement.MEAN_COLLAPSE
    line = gaussian(N, 1) @ gaussian(1, D, seed=1) + 1e-3 * gaussian(N, D, seed=2)
    assert report(line, judged_as="backbone").judgement is Judgement.DIMENSIONAL_COLLAPSE


def test_a_judgement_is_a_word_that_knows_whether_it_is_a_collapse():
    assert [j for j in Judgement if j.is_collapse] == ["mean collapse", "class collapse", "dimensional collapse"]
    program = "import torch; from simdino.analysis import report; report(torch.eye(32), judged_as='neck')"
    refused = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )  # no types are checked here
    assert 'judged_as must be "head" or "backbone", got \'neck\'' in refused.stderr


def test_moments_are_judged_like_their_features():
    for z in (sphere(N, 16), torch.ones(N, 16)):
        assert verdict(Moments.of(z)).judgement is report(z).judgement
