"""A reduced network under DINO's loss: what it starts with, what it refuses, and which of two settings dies."""

import numpy as np
import pytest

from analysis.experiments.dino_map import differences_live, reduced_run
from simdino.recipes import recipe

SHORT = "dino@optim.steps=3,optim.warmup=0.0,model.prototypes=32,model.out=16"


def test_a_reduced_run_without_motion_shows_the_center_and_the_noise_of_batches_alone():
    still = f"{SHORT},optim.lr=1e-12,optim.lr_end=1e-12,objective.center_momentum="
    at_once, never = (reduced_run(recipe(still + m)) for m in ("0.0", "1.0"))
    np.testing.assert_allclose(never.center_distance, never.center_distance[0], rtol=0.1)  # the center stays zero
    np.testing.assert_allclose(at_once.score_spread, never.score_spread, rtol=1e-5)
    assert at_once.center_distance[0] == never.center_distance[0]
    assert at_once.center_distance[1:].max() < 0.3 * at_once.center_distance[0]  # the last batch's mean


def test_the_inputs_of_a_reduced_run_have_the_share_of_differences_that_is_asked_for():
    """Of equal inputs all scores are equal; with differences alone they spread as cosines do, √(prototypes/d)."""
    none, all_ = (reduced_run(recipe(f"{SHORT},optim.batch_size=512"), share=share) for share in (0.0, 1.0))
    assert none.score_spread[0] < 1e-6
    assert all_.score_spread[0] == pytest.approx((32 / 16) ** 0.5, rel=0.3)


def test_a_reduced_run_moves_in_proportion_to_the_scale_and_follows_its_teacher():
    step = f"{SHORT},optim.lr=1e-5,optim.lr_end=1e-5,objective.center_momentum=1.0,optim.teacher="
    student, frozen = step + "student", step + "frozen"
    base, still = reduced_run(recipe(student), scale=1.0), reduced_run(recipe(frozen), scale=1.0)
    moved = [reduced_run(recipe(student), scale=k).score_spread[2] - still.score_spread[2] for k in (1.0, 2.0)]
    assert moved[1] / moved[0] == pytest.approx(2, rel=0.1)
    assert base.score_spread[0] == still.score_spread[0]


@pytest.mark.parametrize("recipe_", ["simdino", "dinov2", "dino@optim.teacher=student-with-gradient"])
def test_a_reduced_run_is_refused_where_it_would_mean_nothing(recipe_):
    with pytest.raises(ValueError, match="a reduced run is one of DINO's"):
        reduced_run(recipe(recipe_))


@pytest.mark.slow
def test_differences_die_behind_a_late_center_and_live_with_a_slow_teacher():
    late = "dino@objective.center_momentum=0.9,optim.steps=100"
    alone, led = (reduced_run(recipe(f"{late},{t}")) for t in ("optim.teacher=student", "optim.ema=0.99"))
    assert differences_live(led.score_spread)
    assert not differences_live(alone.score_spread)
    ratios = [run.center_distance[30] / run.score_spread[30] for run in (led, alone)]
    assert ratios[0] < 1 < ratios[1]
