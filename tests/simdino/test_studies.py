"""Claims: a study compares what it says: one factor at a time, and as many settings of a method as of its rival."""

import pytest

from simdino.config import NAME_LENGTH, Config, fields
from simdino.recipes import PROFILES, recipe
from simdino.studies import STUDIES, settings


def difference(config: Config, other: Config) -> dict[str, tuple]:
    a, b = fields(config), fields(other)
    return {k: (a[k][0], b[k][0]) for k in a if a[k][0] != b[k][0]}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_another_and_all_can_be_named_and_built(name, profile):
    points = settings(name, profile)
    runs = [recipe(s.recipe, profile, seed).run_name for s in points for seed in s.seeds]
    assert len(set(runs)) == len(runs)
    assert max(len(s.recipe) for s in points) < NAME_LENGTH  # so that the names of runs say all of it
    assert all(recipe(s.recipe, profile).recipe == s.recipe for s in points)  # so a table finds them by name


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STUDIES)
def test_rivals_have_as_many_settings_and_seeds(name, profile):
    counts = {}
    for s in settings(name, profile):
        counts.setdefault(s.method, []).append(s.seeds)
    for ours, theirs in (("simdino", "dino"), ("simdinov2", "dinov2")):
        assert sorted(counts[ours]) == sorted(counts[theirs])


@pytest.mark.parametrize(("profile", "steps"), [("cpu", 300), ("gpu", 10_000)])
def test_a_setting_differs_from_its_recipe_in_the_named_factors_alone(profile, steps):
    """Lengths aside; each multiple is that of the value, of a momentum's 1/(1 − m), of a pair of areas the lower."""
    for s in settings("robustness", profile):
        base, config = recipe(s.method, profile), recipe(s.recipe, profile)
        assert config.optim.steps == steps
        changed = {k: v for k, v in difference(base, config).items() if not k.startswith(("optim.steps", "record."))}
        for before, after in changed.values() if "architecture" not in s.at else ():
            if "teacher's memory" in s.at and before < 1:
                before, after = 1 / (1 - before), 1 / (1 - after)
            elif isinstance(before, tuple):
                assert before[1:] == after[1:]
                before, after = before[0], after[0]
            assert any(after == pytest.approx(before * ratio, rel=1e-5) for ratio in s.at.values())
        assert bool(changed) == bool(s.at)


def test_teachers_are_what_they_are_called():
    points = [s for s in settings("self_distillation") if s.at and s.method == "dino"]
    optim = {s.at["teacher"]: recipe(s.recipe).optim for s in points}
    assert {k: o.teacher for k, o in optim.items() if isinstance(k, str)} == {
        "full gradient": "student-with-gradient",
        "frozen": "frozen",
    }
    assert optim[0.0].teacher == "student"
    momenta = {k: (o.ema, o.ema_end) for k, o in optim.items() if not isinstance(k, str) and k > 0}
    assert momenta == {m: (m, m) for m in (0.5, 0.9, 0.99, 0.999)}


def test_seeds_are_the_profiles_or_those_that_are_given():
    assert {s.seeds for s in settings("self_distillation")} == {PROFILES["cpu"].seeds}
    assert {s.seeds for s in settings("robustness", "cpu", [7, 8])} == {(7, 8)}


def test_a_misspelled_study_or_profile_names_the_nearest():
    with pytest.raises(ValueError, match="unknown study 'robustnes'; did you mean 'robustness'"):
        settings("robustnes")
    with pytest.raises(ValueError, match="unknown profile 'gpus'; did you mean 'gpu'"):
        settings("robustness", "gpus")
