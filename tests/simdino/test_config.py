"""Claims: a run's name follows from all of its configuration, and from nothing else; every field is read; what is
misspelled is refused; a variant has one name, however it is written."""

import copy
import dataclasses
import hashlib
import inspect
import json
import math
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
    Range,
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
    """A different value that is in its field's range; twice a width stays a multiple of the heads."""
    if get_origin(kind) is Literal:
        return next(v for v in get_args(kind) if v != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) or value is None:
        return f"{value}x"
    if value == ():
        return (0, 10)
    if isinstance(value, tuple):
        return tuple(v / 2 or 0.25 for v in value)
    return 2 * value or 1 if isinstance(value, int) else value / 2 or 0.25


@pytest.mark.parametrize("name", ["simdino", "dino", "simdinov2", "dinov2"])
def test_every_field_changes_the_run_name(name):
    config = RECIPES[name]
    for path, value, kind in leaves(config):
        if path[-1] in ("prototypes", "heads", "mask_token", "patch_head"):
            continue  # bound to other fields
        assert changed(config, path, other(value, kind)).run_name != config.run_name, path


def test_a_field_that_came_later_changes_no_name_unless_it_is_changed():
    """The hash of the runs of before, which lacked the field, taken by hand."""
    config = RECIPES["simdinov2"]
    parts = {part: dict(vars(value)) for part, value in vars(config).items() if dataclasses.is_dataclass(value)}
    del parts["objective"]["gram_weight"]
    text = json.dumps({"recipe": "simdinov2", "seed": 0} | parts, sort_keys=True)
    assert config.run_name == f"simdinov2-s0-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    assert override(config, {"objective.gram_weight": 1.0}).run_name != config.run_name


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
        "group",
        "most_patches",
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
        ({"optim": Optim(batch_size=64, groups=3)}, "not a multiple of optim.groups 3"),
        ({"crops": Crops(mean=(0.5,), std=(0.2, 0.2))}, "a value for each channel"),
        ({"crops": Crops(global_size=30)}, "multiples of model.patch"),
        ({"model": Model(dim=97)}, "not a multiple of model.heads"),
        ({"model": Model(prototypes=64)}, "prototypes must be positive for DINO and 0"),
        ({"model": Model(out=0)}, "model.out must be positive: the loss needs a head"),
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
        ({"optim": {"compile": "reduce_overhead"}}, "unknown compile 'reduce_overhead'; did you mean 'reduce"),
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


def test_every_number_has_a_range_that_its_value_in_every_recipe_is_in():
    for config in RECIPES.values():
        table = fields_table(config).splitlines()
        for line, (name, (value, kind)) in zip(table, fields(config).items(), strict=True):
            is_number = kind in (int, float) or get_origin(kind) is tuple
            assert is_number == (" in " in line), name
            if is_number:
                allowed = Range(line.partition(" in ")[2])
                assert all(allowed.has(v) for v in (value if isinstance(value, tuple) else (value,))), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.size=0", "data.size must be a whole number in [1, ∞), not 0"),
        ("data.size=-1", "data.size must be a whole number in [1, ∞), not -1"),
        ("data.workers=-1", "data.workers must be a whole number in [0, ∞), not -1"),
        ("crops.global_size=0", "crops.global_size must be a whole number in [1, ∞), not 0"),
        ("crops.global_crops=1", "crops.global_crops must be a whole number in [2, ∞), not 1"),
        (
            "crops.global_scale=1,0.2",
            "crops.global_scale must be a tuple of 2 numbers in (0, 1], none below the one before it, not (1.0, 0.2)",
        ),
        ("crops.local_scale=0,0.2", "crops.local_scale must be a tuple of 2 numbers in (0, 1]"),
        ("crops.mask_ratio=0.1,1.5", "crops.mask_ratio must be a tuple of 2 numbers in (0, 1]"),
        ("crops.blur_p=0.5,0.5,1.5", "crops.blur_p must be a tuple of 3 numbers in [0, 1], not (0.5, 0.5, 1.5)"),
        ("crops.std=0.2,0,0.2", "crops.std must be a tuple of numbers in (0, ∞), not (0.2, 0.0, 0.2)"),
        ("crops.jitter=-1", "crops.jitter must be a number in [0, ∞), not -1.0"),
        ("model.heads=0", "model.heads must be a whole number in [1, ∞), not 0"),
        ("model.drop_path=1", "model.drop_path must be a number in [0, 1), not 1.0"),
        ("model.mlp_ratio=0", "model.mlp_ratio must be a number in (0, ∞), not 0.0"),
        ("objective.eps=0", "objective.eps must be a number in (0, ∞), not 0.0"),
        ("objective.gamma=-1", "objective.gamma must be a number in [0, ∞), not -1.0"),
        ("optim.groups=0", "optim.groups must be a whole number in [1, ∞), not 0"),
        ("optim.ema=1.1", "optim.ema must be a number in [0, 1], not 1.1"),
        ("optim.layer_decay=0", "optim.layer_decay must be a number in (0, 1], not 0.0"),
        ("optim.warmup=2", "optim.warmup must be a number in [0, 1], not 2.0"),
        ("record.checkpoint_seconds=-1", "record.checkpoint_seconds must be a number in [0, ∞), not -1.0"),
        ("record.weights=10,0", "record.weights must be a tuple of whole numbers in [0, ∞), none below"),
    ],
)
def test_a_number_outside_of_its_range_is_refused_with_the_range(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe(f"simdino@{name}")


def test_a_temperature_and_a_seed_have_ranges_too():
    with pytest.raises(ValueError, match=re.escape("objective.student_temp must be a number in (0, ∞), not 0.0")):
        recipe("dino@objective.student_temp=0")
    with pytest.raises(ValueError, match=re.escape("objective.center_momentum must be a number in [0, 1], not 2.0")):
        recipe("dino@objective.center_momentum=2")
    with pytest.raises(ValueError, match=re.escape("seed must be a whole number in [0, ∞), not -1")):
        recipe("simdino", seed=-1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, "1", None, True, 1.5, [1]])
def test_what_is_not_a_number_of_the_fields_type_is_refused_in_every_field(wrong):
    """Run without the types' check, as users do; 1.5 is wrong only where whole numbers are meant."""
    config = RECIPES["dinov2"]
    for name, (_, kind) in fields(config).items():
        whole = int in (kind, *get_args(kind))
        if not (whole or kind is float or get_origin(kind) is tuple) or (wrong == 1.5 and not whole):
            continue
        part, leaf = name.split(".")
        changed_part = copy.copy(getattr(config, part))
        for value in (wrong, (wrong,) * 3):
            object.__setattr__(changed_part, leaf, value)
            with pytest.raises(ValueError, match=f"^{re.escape(name)} must be a .* in "):
                replace(config, **{part: changed_part})


def test_weights_are_kept_at_no_step_unless_a_variant_says_at_which():
    assert recipe("simdino@record.weights=").recipe == "simdino"
    variant = recipe("simdino@record.weights=0,10,30,optim.lr=1")
    assert variant.record.weights == (0, 10, 30)
    assert recipe(variant.recipe) == variant
    assert read_changes(variant, "record.weights=") == {"record.weights": ()}


def test_cpus_train_in_single_precision_and_accelerators_in_half():
    found = {name: config.optim.precision for name, config in RECIPES.items()}
    assert found == {name: "bf16" if name.endswith("imagenet") else "fp32" for name in RECIPES}
    found = {profile: recipe("simdino", profile).optim.precision for profile in PROFILES}
    assert found == {profile: "bf16" if profile.startswith("gpu") else "fp32" for profile in PROFILES}


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
        ("simdino@optim.lr=0", "optim.lr must be a number in (0, ∞), not 0.0"),
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
