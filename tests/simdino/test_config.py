"""Claims: a run's name follows from all of its configuration; every field is read; what is misspelled is refused."""

import copy
import dataclasses
import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from simdino import losses
from simdino.config import (
    DINO,
    Config,
    Crops,
    Data,
    DINOv2,
    Model,
    Optim,
    SimDINO,
    SimDINOv2,
    read_changes,
    stream,
    write_changes,
)
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


def test_a_misspelled_recipe_or_profile_names_the_nearest():
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


# --- Variants


def test_a_variant_changes_the_named_fields_alone_and_is_named_after_them():
    variant = recipe("simdino@optim.lr=2e-3,crops.global_scale=0.2,1,model.arch=convnet,crops.flip=False", seed=3)
    assert variant.recipe == "simdino@crops.global_scale=0.2,1.0,crops.flip=False,model.arch=convnet,optim.lr=0.002"
    base = recipe("simdino", seed=3)
    changes = {
        "recipe": variant.recipe,
        "crops": replace(base.crops, global_scale=(0.2, 1.0), flip=False),
        "model": replace(base.model, arch="convnet"),
        "optim": replace(base.optim, lr=0.002),
    }
    assert variant == replace(base, **changes)
    assert re.fullmatch(r"[\w@.,=+-]+-s3-[0-9a-f]{10}", variant.run_name)


def test_one_change_has_one_name_however_it_is_written():
    names = ["dino@optim.steps=400,optim.lr=2e-3", "dino@optim.lr=0.0020,optim.steps=400"]
    assert len({recipe(name).run_name for name in names}) == 1
    assert recipe(recipe(names[0]).recipe) == recipe(names[0])


def test_every_field_can_be_varied_and_reads_back():
    for name in ("simdino", "dino", "simdinov2", "dinov2"):
        config = RECIPES[name]
        for path, value, _ in leaves(config):
            if len(path) == 2 and value is not None:  # not recipe and seed
                changes = {".".join(path): value}
                assert read_changes(config, write_changes(changes)) == changes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simdino@optim.lrr=1", "unknown field 'optim.lrr'; did you mean 'optim.lr'"),
        ("simdino@objective.teacher_temp=1", "unknown field 'objective.teacher_temp'"),
        ("simdino@lr=1", "unknown field 'lr'"),
        ("simdno@optim.lr=1", "unknown recipe 'simdno'; did you mean 'simdino'"),
        ("simdino@optim.lr=fast", "optim.lr must be a finite number, not 'fast'"),
        ("simdino@optim.lr=nan", "optim.lr must be a finite number, not 'nan'"),
        ("simdino@optim.steps=2.5", "optim.steps must be a whole number, not '2.5'"),
        ("simdino@optim.teacher=studnt", "unknown optim.teacher 'studnt'; did you mean 'student'"),
        ("simdino@crops.flip=no", "unknown crops.flip 'no'"),
        ("simdino@crops.global_scale=0.2", "crops.global_scale has 2 values, not '0.2'"),
        ("simdino@optim.lr=1,optim.lr=2", "optim.lr is given twice"),
        ("simdino@", "written <field>=<value>"),
        ("simdino@0.1,optim.lr=1", "written <field>=<value>"),
        ("simdino@optim.lr=0", "optim.lr must be positive"),
        ("simdino@data.name=folder,data.root=../photos", "cannot name a run's directory"),
        ("simdino@crops.mean=" + ",".join(["0.5"] * 60), "cannot name a run's directory"),
    ],
)
def test_a_variant_that_means_nothing_is_refused(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe(name)


def test_a_variant_stands_above_its_profile_which_takes_its_share_of_the_steps():
    smoke = recipe("simdino@optim.steps=400,record.snapshots=1,optim.batch_size=32", "smoke")
    assert (smoke.optim.steps, smoke.record.snapshots, smoke.optim.batch_size) == (8, 1, 32)
    assert smoke.record == replace(PROFILES["smoke"].record, snapshots=1)
    gpu = recipe("simdino@optim.batch_size=32", "gpu")
    assert (gpu.optim.batch_size, gpu.data.name, gpu.model.patch) == (32, "cifar10", 4)


def test_a_profile_moves_recipes_of_photographs_alone_to_other_images():
    assert recipe("dino", "gpu-tiny").data == Data("npz", root="data/tiny_imagenet50.npz", size=64)
    published = "simdino-vitb16-imagenet"
    moved = recipe(published, "gpu")
    assert replace(moved, record=RECIPES[published].record) == RECIPES[published]
