"""What is said of one of DINO's runs before it is started."""

import pytest

from analysis import theory
from analysis.planning import survival
from simdino.recipes import recipe

SHORT = "dino@optim.steps=3,model.prototypes=32,model.out=16,objective.center_momentum=0.9,"


def test_a_teacher_hides_the_lag_of_the_center_or_does_not():
    slow, fast = (survival(recipe(f"{SHORT}optim.ema={m},optim.ema_end={m}"), draws=1) for m in (0.99, 0.5))
    assert slow.hidden_lag == theory.hidden_lag(0.99, 0.9) < 0.4 < fast.hidden_lag
    assert "it hides the center's lag" in str(slow)
    assert "it does not hide" in str(fast)
    assert survival(recipe(f"{SHORT}optim.teacher=student"), draws=1).hidden_lag == theory.hidden_lag(0.0, 0.9)


def test_three_steps_do_not_kill_and_advice_is_for_those_that_die(monkeypatch):
    assert survival(recipe(f"{SHORT}optim.teacher=student"), draws=2).lives == 1
    monkeypatch.setattr("simdino.analysis.experiments.dino_map.differences_live", lambda spread: False)
    found = survival(recipe(f"{SHORT}optim.teacher=student"), draws=2)
    assert found.lives == 0
    assert "0 of 2 reduced networks" in str(found)
    assert found.sentences[-1].startswith("Take a slower teacher")


def test_sinkhorn_has_no_lag_and_large_networks_get_no_reduced_one():
    assert survival(recipe("dinov2")).hidden_lag == 0
    assert survival(recipe("dino-no-centering@model.prototypes=65536")).hidden_lag == 1
    for name in ("dinov2", "dino-vits16-imagenet"):
        found = survival(recipe(name))
        assert found.lives is None
        assert "nothing is said of how it ends" in str(found)


@pytest.mark.parametrize("name", ["simdino", "dino@optim.teacher=student-with-gradient"])
def test_what_is_no_run_of_dino_behind_a_stop_gradient_is_refused(name):
    with pytest.raises(ValueError, match="is no run of DINO's behind a stop-gradient"):
        survival(recipe(name))
