"""Claims: a run's name follows from all of its configuration; every field is read; what is misspelt is refused."""

import copy
import dataclasses
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from simdino import losses
from simdino.config import DINO, Config, Crops, DINOv2, Model, Optim, SimDINO, SimDINOv2, stream
from simdino.recipes import PROFILES, RECIPES, recipe


def leaves(config, prefix=()):
    """Each field's path, value and annotated type."""
    types = get_type_hints(type(config))
    for name, value in vars(config).items():
        path = (*prefix, name)
        yield from leaves(value, path) if dataclasses.is_dataclass(value) else [(path, value, types[name])]


def changed(config, path, value):
    first, *rest = path
    return replace(config, **{first: changed(getattr(config, first), rest, value) if rest else value})


def other(value, kind):
    """A different legal value; twice a width stays a multiple of the heads."""
    if get_origin(kind) is Literal:
        return next(v for v in get_args(kind) if v != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) or value is None:
        return f"{value}x"
    return tuple(2 * v or 1.0 for v in value) if isinstance(value, tuple) else (2 * value or type(value)(1))


@pytest.mark.parametrize("name", ["simdino", "dino", "simdinov2", "dinov2"])
def test_every_field_changes_the_run_name(name):
    config = RECIPES[name]
    for path, value, kind in leaves(config):
        if path[-1] in ("prototypes", "heads", "mask_token", "patch_head"):
            continue  # bound to other fields
        assert changed(config, path, other(value, kind)).run_name != config.run_name, path


def test_every_field_is_read_somewhere():
    source = "\n".join(f.read_text() for f in Path(losses.__file__).parent.glob("*.py") if f.name != "config.py")
    for path, *_ in leaves(RECIPES["simdino"]):
        if path[0] != "objective":  # passed on whole, see below
            assert re.search(rf"\.{path[-1]}\b", source), f"{'.'.join(path)} is never read"


OBJECTIVES = {
    SimDINO: losses.simdino_loss,
    SimDINOv2: losses.simdinov2_loss,
    DINO: losses.dino_loss,
    DINOv2: losses.dinov2_loss,
}


@pytest.mark.parametrize(("objective", "loss"), OBJECTIVES.items())
def test_the_objective_is_the_keywords_of_its_loss(objective, loss):
    keywords = {k for k, p in inspect.signature(loss).parameters.items() if p.kind == p.KEYWORD_ONLY} - {
        "center",
        "patch_center",
    }
    assert {f.name for f in dataclasses.fields(objective)} == keywords


def test_a_misspelt_recipe_or_profile_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'simdino-no-teacher'"):
        recipe("simdino-no-techer")
    with pytest.raises(ValueError, match="unknown profile 'smok'; did you mean 'smoke'"):
        recipe("simdino", "smok")


def test_a_profile_sets_the_length_and_the_recipes_differ_only_where_they_say():
    smoke, full = recipe("simdino", "smoke", 3), recipe("simdino")
    assert smoke.seed == 3
    assert smoke.optim.steps == round(full.optim.steps * PROFILES["smoke"].steps) == 20
    for variant, field in (("simdino-no-teacher", "optim"), ("simdino-no-expansion", "objective")):
        restored = replace(recipe(variant), recipe="simdino", **{field: getattr(full, field)})
        assert restored == full


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"optim": Optim(lr=0.0)}, "optim.lr must be positive"),
        ({"crops": Crops(global_crops=1)}, "global_crops must be at least 2"),
        ({"crops": Crops(global_size=30)}, "multiples of model.patch"),
        ({"model": Model(dim=97)}, "not a multiple of model.heads"),
        ({"model": Model(prototypes=64)}, "prototypes must be positive for DINO and 0"),
        ({"objective": SimDINO(eps=0.0)}, "objective.eps must be positive"),
    ],
)
def test_an_impossible_configuration_is_refused(part, message):
    with pytest.raises(ValueError, match=message):
        Config("x", **part)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"optim": {"teacher": "EMA"}}, "unknown teacher 'EMA'; did you mean 'ema'"),
        ({"optim": {"precision": "fp16"}}, "unknown precision 'fp16'"),
        ({"model": {"pool": "CLS"}}, "unknown pool 'CLS'; did you mean 'cls'"),
        ({"objective": {"rate_of": "Student"}}, "unknown rate_of"),
    ],
)
def test_a_word_that_means_nothing_is_refused(part, message):
    """Run without the types' check, as users do: `replace` goes around it by setting the field afterwards."""
    ((name, fields),), base = part.items(), RECIPES["simdino"]
    value = copy.copy(getattr(base, name))
    for field, word in fields.items():
        object.__setattr__(value, field, word)
    with pytest.raises(ValueError, match=message):
        replace(base, **{name: value})


def test_streams_of_randomness_do_not_meet():
    seeds = [stream(purpose, seed, i) for purpose in ("crops", "order") for seed in range(9) for i in range(99)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
