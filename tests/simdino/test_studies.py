"""Claims: a study compares what it says: one factor at a time, and as many settings of a method as of its rival."""

from itertools import product

import pytest

from analysis import theory
from simdino.batch import config_of_run
from simdino.config import Config, fields
from simdino.recipes import PROFILES, recipe
from simdino.studies import ROBUSTNESS_STEPS, STUDIES, settings


def difference(config: Config, other: Config) -> dict[str, tuple]:
    a, b = fields(config), fields(other)
    return {k: (a[k][0], b[k][0]) for k in a if a[k][0] != b[k][0]}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_another_and_all_can_be_named_and_built(name, profile):
    points = settings(name, profile)
    configs = [recipe(s.recipe, profile, seed) for s in points for seed in s.seeds]
    assert len({config.run_name for config in configs}) == len(configs)
    assert config_of_run(configs[-1].run_name, profile) == configs[-1]
    assert all(recipe(s.recipe, profile).recipe == s.recipe for s in points)  # so a table finds them by name


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["robustness", "self_distillation"])
def test_rivals_have_as_many_settings_and_seeds(name, profile):
    counts = {}
    for s in settings(name, profile):
        counts.setdefault(s.method, []).append(s.seeds)
    for ours, theirs in (("simdino", "dino"), ("simdinov2", "dinov2")):
        assert sorted(counts[ours]) == sorted(counts[theirs])


@pytest.mark.parametrize(("profile", "steps"), [("cpu", ROBUSTNESS_STEPS), ("gpu", 10_000)])
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


def test_the_study_of_robustness_has_three_seeds_a_setting_and_the_recipes_have_all():
    points = settings("robustness")
    assert {s.seeds for s in points if s.at} == {(0, 1, 2)}
    assert {s.seeds for s in points if not s.at} == {PROFILES["cpu"].seeds}
    counts = {first: sum(s.method.endswith("v2") != first for s in points) for first in (True, False)}
    assert counts == {True: 48, False: 12}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_collapse_numbers_of_the_study_of_collapse_are_those_of_its_runs(profile):
    """And both views carry gradients at exactly twice the γ of a stop-gradient."""
    points, gamma = settings("collapse_boundary", profile), {}
    for s in points:
        config = recipe(s.recipe, profile)
        d, eps, factor = config.model.out, config.objective.eps, 1 + (s.at["teacher"] == "student-with-gradient")
        chi = theory.collapse_number(d, eps, config.objective.gamma)
        assert chi == pytest.approx(factor * s.at["χ"], rel=1e-5)
        assert config.optim.teacher == s.at["teacher"]
        assert config.optim.precision == "fp32"
        assert config.optim.steps == (20 if profile == "smoke" else 200 * PROFILES[profile].steps)
        gamma[s.at["augmentation"], s.at["teacher"], s.at["χ"]] = config.objective.gamma
    joint = {key: value for key, value in gamma.items() if key[1] == "student-with-gradient"}
    assert joint == {key: 2 * gamma["strong", "student", key[2]] for key in joint}
    assert len(joint) == 2
    if profile == "cpu":
        assert sum(len(s.seeds) for s in points) == 30


def test_the_phases_of_dino_cover_center_learning_rate_and_teacher():
    found = set()
    for s in settings("dino_phases"):
        config = recipe(s.recipe)
        o, center = config.optim, config.objective.center_momentum
        momentum = 0.0 if o.teacher == "student" else o.ema
        assert s.at == {"center momentum": center, "learning rate": o.lr, "teacher": momentum}
        assert o.teacher == "student" or o.ema == o.ema_end
        assert (o.steps, o.precision, config.record.snapshots, s.seeds) == (200, "fp32", 1, (0, 1, 2))
        found.add((center, o.lr, momentum))
    centers = (0.0, 0.25, 0.5, 0.9)
    alone = set(product(centers, (1e-4, 3e-4, 6e-4, 1e-3, 2.5e-3), (0.0,)))
    assert found == alone | set(product(centers, (1e-3,), (0.5, 0.7, 0.9)))
    judged = settings("dino_survival")
    assert [s._replace(seeds=(0, 1, 2)) for s in judged] == settings("dino_phases")
    assert {s.seeds for s in judged} == {(5, 6, 7)}


def test_the_range_of_gamma_keeps_weights_at_the_recipes_length():
    base, points = recipe("simdino"), settings("gamma_range")
    for s in points:
        changed = difference(base, recipe(s.recipe))
        assert changed.pop("record.weights") == ((), (0, 10, 30, 100, 300))
        assert {k: pair[1] / pair[0] for k, pair in changed.items()} == pytest.approx(
            {"objective.gamma": s.at["γ"]} if s.at else {}, rel=1e-5
        )
    assert [s.at.get("γ", 1.0) ** 2 for s in points] == pytest.approx([1 / 9, 1 / 3, 1, 3, 9])
    assert {s.seeds for s in points} == {(0, 1, 2, 3, 4)}


def test_other_inputs_change_the_architecture_or_the_images_and_keep_weights():
    base, points = recipe("simdino"), settings("other_inputs")
    changed = [difference(base, recipe(s.recipe)) for s in points]
    weights = ((), (0, 10, 30, 100, 300))
    assert changed == [
        {"record.weights": weights, "model.arch": ("vit", "convnet")},
        {"record.weights": weights, "data.name": ("photos", "digits")},
    ]
    assert [s.at for s in points] == [{"architecture": "ConvNet"}, {"images": "digits"}]
    assert {s.seeds for s in points} == {(0, 1, 2, 3, 4)}


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
