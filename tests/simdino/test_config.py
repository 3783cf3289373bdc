"""Claims: a run's name follows from all of its configuration, and from nothing else; every field is read; what is
misspelled is refused; a variant has one name, however it is written."""

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
    NAME_LENGTH,
    Config,
    Crops,
    Data,
    DINOv2,
    Model,
    Optim,
    SimDINO,
    SimDINOv2,
    derived_seed,
    fields,
    fields_table,
    override,
    read_changes,
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
    """Run without the types' check, as users do: `replace` goes around it by setting the field afterward."""
    ((name, fields),), base = part.items(), RECIPES["simdino"]
    value = copy.copy(getattr(base, name))
    for field, word in fields.items():
        object.__setattr__(value, field, word)
    with pytest.raises(ValueError, match=message):
        replace(base, **{name: value})


def test_streams_of_randomness_do_not_meet():
    seeds = [derived_seed(purpose, seed, i) for purpose in ("crops", "order") for seed in range(9) for i in range(99)]
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


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("cpu", ["dino@optim.steps=400,optim.lr=2e-3", "dino@optim.lr=0.0020,optim.steps=400,optim.ema=.95"]),
        ("cpu", ["simdino", "simdino@optim.lr=4e-3,optim.lr_start=-0.0", "simdino@crops.flip=True,data.root=None"]),
        ("smoke", ["simdino", "simdino@record.snapshots=3", "simdino@optim.steps=1_000"]),
        ("gpu", ["simdino", "simdino@data.root=data/cifar10/,crops.jitter=1", "simdino@optim.steps=39000"]),
        ("cpu", ["dino@data.name=npz,data.root=/a/b.npz", "dino@data.root=/a//./b.npz,data.name=npz,data.size=32"]),
        (
            "cpu",
            [
                "dino@crops.global_scale=.2,1,crops.blur_p=0,0,0",
                "dino@crops.blur_p=0.0,-0,0,crops.global_scale=0.2,1.0",
            ],
        ),
    ],
)
def test_one_setting_has_one_run_name_however_it_is_written(profile, names):
    """Another order, other spellings of a number or a path, and values that the recipe has anyway under its profile."""
    configs = [recipe(name, profile) for name in names]
    assert len({config.run_name for config in configs}) == 1
    assert len(set(configs)) == 1
    assert recipe(configs[0].recipe, profile) == configs[0]


def test_a_whole_number_names_the_same_run_as_the_real_one():
    """Set afterward, since the types that tests check at run time would refuse it."""
    config = RECIPES["simdino"]
    whole = copy.copy(config)
    for part, field, value in (("optim", "lr", 1), ("crops", "global_scale", (1, 1))):
        object.__setattr__(whole, part, copy.copy(getattr(whole, part)))
        object.__setattr__(getattr(whole, part), field, value)
    assert whole.run_name == override(config, {"optim.lr": 1.0, "crops.global_scale": (1.0, 1.0)}).run_name


def test_every_field_can_be_varied_and_reads_back():
    for name in ("simdino", "dino", "simdinov2", "dinov2"):
        config = RECIPES[name]
        for field, (value, kind) in fields(config).items():
            new = "npz" if field == "data.name" else other(value, kind)
            assert read_changes(config, write_changes({field: new})) == {field: new}
            assert read_changes(config, write_changes({field: value})) == {}
        listed = [line.split()[0] for line in fields_table(config).splitlines()]
        assert listed == [write_changes({field: value}) for field, (value, _) in fields(config).items()]


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("data.root=/data/a,b/c", {"data.root": "/data/a,b/c"}),
        ("data.root=/data/x=1,y=2,data.size=64", {"data.root": "/data/x=1,y=2", "data.size": 64}),
        ("data.size=64,data.root=v1.2=b,c", {"data.root": "v1.2=b,c", "data.size": 64}),
        ("data.root=../größe/100 %@home", {"data.root": "../größe/100 %@home"}),
    ],
)
def test_a_path_may_have_commas_and_equals_signs(text, changes):
    assert read_changes(RECIPES["simdino"], text) == changes
    assert recipe(f"simdino@{text}").data.root == changes["data.root"]


def test_a_run_is_named_after_what_a_folder_can_have_and_told_apart_by_its_hash():
    names = [f"simdino@data.name=folder,data.root={root}" for root in ("/data/a b", "/data/a:b", "/data/a_b")]
    configs = [recipe(name) for name in names]
    assert {config.run_name[:-10] for config in configs} == {"simdino@data.name=folder,data.root=_data_a_b-s0-"}
    assert len({config.run_name for config in configs}) == 3
    assert [config.recipe for config in configs] == names
    long = [recipe("simdino@data.root=" + "long/" * 60 + end) for end in "ab"]
    assert {len(config.run_name) for config in long} == {NAME_LENGTH + len("-s0-") + 10}
    assert long[0].run_name != long[1].run_name


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
        ("simdino@optim.lr=1,lr=2", "optim.lr must be a finite number, not '1,lr=2'"),
        ("simdino@data.root=photos,optm.lr=2", "unknown field 'optm.lr'"),
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
