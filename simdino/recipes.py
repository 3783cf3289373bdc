"""The configurations with a name, what each costs and reaches, and the profiles of the batch reproduction."""

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from simdino.config import (
    DINO,
    PUBLISHED_EPS,
    Config,
    Crops,
    Data,
    DINOv2,
    Model,
    Optim,
    Record,
    SimDINO,
    SimDINOv2,
    override,
    read_changes,
    recognized,
    write_changes,
)
from simdino.losses import official_scaling

# --- Gray 32-pixel crops of photographs, for one CPU core

_PHOTOS = Crops(global_scale=(0.4, 1.0), jitter=0.2, blur_p=(0.1, 0.1, 0.1), solarize_p=(0.0, 0.0, 0.0))
_EPS, _OUT, _BATCH = PUBLISHED_EPS, Model.out, Optim.batch_size  # n = d = 64
_SIMDINO = Config(
    "simdino",
    crops=_PHOTOS,
    objective=SimDINO(eps=_EPS, gamma=0.01, rate_of="student"),
    optim=Optim(ema=0.9),
)
_DINO = Config(
    "dino",
    crops=_PHOTOS,
    objective=DINO(student_temp=0.1, teacher_temp=0.04, center_momentum=0.5, centering="ema"),
    model=Model(prototypes=256),
    optim=Optim(lr=1e-3),
)


def _masked(model: Model) -> Model:
    """Give a network what version 2 needs: a mask token, and patches through the image feature's head."""
    return replace(model, mask_token=True, patch_head="shared")


def _joint(config: Config, gamma: float) -> Config:
    """Let gradients flow through both views: the alignment's is twice as large, and clipped at twice the norm."""
    optim = replace(config.optim, teacher="student-with-gradient", clip=2 * config.optim.clip)
    return replace(config, objective=SimDINO(gamma=gamma), optim=optim)


_STUDENT = replace(_SIMDINO.optim, teacher="student")
_V2 = replace(
    _SIMDINO,
    model=_masked(_SIMDINO.model),
    objective=SimDINOv2(eps=_EPS, gamma=0.01, rate_of="student", patch_weight=1.0, patch_gamma=0.0),
)
_DINOV2 = replace(
    _DINO,
    model=_masked(_DINO.model),
    objective=DINOv2(
        student_temp=0.1,
        teacher_temp=0.04,
        center_momentum=0.5,
        centering="sinkhorn",
        patch_weight=1.0,
        koleo_weight=0.1,
    ),
)
_SEPARATE = replace(_V2, model=replace(_V2.model, patch_head="separate"))

_SMALL: dict[str, Config] = {
    "simdino": _SIMDINO,
    "simdino-no-teacher": replace(_SIMDINO, optim=_STUDENT),
    "simdino-no-expansion": replace(_SIMDINO, objective=SimDINO(gamma=0.0)),
    "dino": _DINO,
    "dino-no-centering": replace(_DINO, objective=replace(_DINO.objective, center_momentum=1.0)),
    "dino-no-teacher": replace(_DINO, optim=replace(_DINO.optim, teacher="student")),
    "simdinov2": _V2,
    "dinov2": _DINOV2,
    # three rules for γ (theory.gamma_rules)
    "simdino-gamma-balanced": replace(_SIMDINO, objective=SimDINO(gamma=_EPS / _OUT)),
    "simdino-gamma-bounded": replace(_SIMDINO, objective=SimDINO(gamma=_EPS / _OUT * _BATCH**0.5)),
    "simdino-gamma-official": replace(_SIMDINO, objective=SimDINO(gamma=(_OUT + _BATCH) / (_OUT * _BATCH))),
    # what a stop-gradient does to γ (theory.effective_gamma)
    "simdino-joint": _joint(_SIMDINO, 0.01),
    "simdino-joint-2gamma": _joint(_SIMDINO, 0.02),
    "simdino-mean-rate-no-teacher": replace(_SIMDINO, objective=SimDINO(gamma=0.01, rate_of="mean"), optim=_STUDENT),
    # patches with a head of their own, which no rate of image features keeps open: without a remedy, with a rate of
    # theirs, and kept to the similarities of the untrained network, at DINOv3's weight
    "simdinov2-separate": _SEPARATE,
    "simdinov2-separate-patch-rate": replace(_SEPARATE, objective=SimDINOv2(gamma=0.01, patch_gamma=0.01)),
    "simdinov2-separate-gram": replace(_SEPARATE, objective=SimDINOv2(gamma=0.01, gram_weight=2.0)),
}

# --- ImageNet-1k, the published recipes: 8 ranks, 100 epochs

_SIZES = {"s": {"dim": 384, "heads": 6}, "b": {"dim": 768, "heads": 12}, "l": {"dim": 1024, "heads": 16, "depth": 24}}
_IMAGES = 1_281_167
_PUBLISHED_CROPS = Crops(
    global_size=224,
    global_scale=(0.4, 1.0),
    local_size=96,
    local_crops=10,
    local_scale=(0.05, 0.4),
    blur_p=(1.0, 0.1, 0.5),
    solarize_p=(0.0, 0.2, 0.0),
)


def _imagenet(objective: str, size: str) -> Config:
    """A published recipe, number by number; docs/recipes.md says what differs from the official code."""
    first, simple = not objective.endswith("v2"), objective.startswith("sim")
    rows = 128 if objective == "simdinov2" else 64  # images on each rank
    eps, gamma = official_scaling(256, rows, 0.05, world_size=8)
    losses = {
        "simdino": SimDINO(eps, gamma, rate_of="mean"),
        "simdinov2": SimDINOv2(eps, gamma, rate_of="mean"),
        "dino": DINO(),
        "dinov2": DINOv2(teacher_temp=0.07, centering="ema"),
    }
    model = Model(
        **{"depth": 12} | _SIZES[size],
        stem="patch",
        patch=16,
        pool="cls",
        hidden=2048,
        out=256,
        drop_path=0.1,
        pos_offset=0.1,
        prototypes=0 if simple else 65536,
    )
    crops = _PUBLISHED_CROPS if simple else replace(_PUBLISHED_CROPS, local_crops=8)
    optim = Optim(
        steps=100 * (_IMAGES // (8 * rows)),
        batch_size=8 * rows,
        groups=8,
        lr=5e-4 * 8 * rows / 256,
        warmup=0.1,
        warmup_reaches="last",
        weight_decay_end=0.4,
        clip_by="tensor",
        ema=0.996,
        ema_end=1.0,
        freeze_prototypes=0.0 if simple else 0.01,
        precision="bf16",
    )
    if not first:
        shared = {"drop_path_rule": "uniform", "token_std": 1e-6}
        optim = replace(optim, lr=4e-3 * (rows / 128) ** 0.5, layer_decay=0.9, patch_embed_lr=0.2, clip_by="module")
        if simple:
            model = replace(model, drop_path=0.2, layer_scale=0.1, registers=4, pos_offset=0.0, pos_antialias=True)
            optim = replace(optim, lr_start=1e-6, warmup_reaches="next", ema=0.9)
        else:
            model = replace(model, drop_path=0.3, layer_scale=1e-5, prototype_norm="learned")
            optim = replace(optim, ema=0.992, teacher_temp_start=0.04)
            crops = replace(crops, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32))
        model = _masked(replace(model, **shared))
    return Config(
        f"{objective}-vit{size}16-imagenet",
        data=Data("folder", size=384, workers=10),
        crops=crops,
        model=model,
        objective=losses[objective],
        optim=optim,
        record=Record(log_every=50, checkpoint_seconds=600.0, snapshots=12, probe=2048, bank=8192, views=512),
    )


RECIPES: dict[str, Config] = {name: replace(config, recipe=name) for name, config in _SMALL.items()}
RECIPES |= {c.recipe: c for o in ("simdino", "simdinov2", "dino", "dinov2") for s in _SIZES for c in [_imagenet(o, s)]}


# --- What a recipe costs and reaches: the only record of it, of which docs/recipes.md has tables


class Reached(NamedTuple):
    """What a small recipe costs and reaches under the profile cpu, over its seeds."""

    seconds: int  # of one core
    knn: float  # accuracy of the backbone's feature, mean
    knn_sd: float
    rank: float  # effective rank of the loss' features, of Model.out, mean
    rank_sd: float
    collapsed: int  # runs


REACHED: dict[str, Reached] = {
    "simdino": Reached(42, 0.640, 0.010, 52.9, 0.4, 0),
    "simdino-no-teacher": Reached(30, 0.645, 0.016, 53.6, 0.5, 0),
    "simdino-no-expansion": Reached(36, 0.466, 0.021, 1.1, 0.0, 5),
    "dino": Reached(39, 0.553, 0.012, 5.6, 0.1, 0),
    "dino-no-centering": Reached(37, 0.462, 0.036, 2.1, 0.5, 1),
    "dino-no-teacher": Reached(31, 0.359, 0.038, 1.3, 0.6, 4),
    "simdinov2": Reached(46, 0.641, 0.010, 49.6, 0.3, 0),
    "dinov2": Reached(45, 0.551, 0.021, 6.9, 0.2, 0),
    "simdino-gamma-balanced": Reached(38, 0.650, 0.018, 35.9, 0.8, 0),
    "simdino-gamma-bounded": Reached(38, 0.621, 0.011, 55.6, 0.5, 0),
    "simdino-gamma-official": Reached(41, 0.616, 0.005, 55.8, 0.4, 0),
    "simdino-joint": Reached(30, 0.639, 0.011, 48.7, 0.5, 0),
    "simdino-joint-2gamma": Reached(31, 0.645, 0.012, 53.8, 0.5, 0),
    "simdino-mean-rate-no-teacher": Reached(31, 0.641, 0.018, 48.9, 0.4, 0),
    "simdinov2-separate": Reached(46, 0.636, 0.013, 47.6, 0.5, 0),
    "simdinov2-separate-patch-rate": Reached(47, 0.622, 0.014, 49.0, 0.5, 0),
    "simdinov2-separate-gram": Reached(55, 0.641, 0.021, 47.9, 0.6, 0),
}
# Operations of a published run, 1e19, counted, of ViT-S, ViT-B and ViT-L; not run here.
_OPERATIONS = {"simdino": (1.5, 5.9, 21), "simdinov2": (1.6, 6.2, 22), "dino": (1.4, 5.4, 19), "dinov2": (1.4, 5.4, 19)}
# Accuracies that the authors of SimDINO publish, %: k-NN, linear probe.
_ACCURACY = {
    "simdino-vitb16-imagenet": (74.9, 77.3),
    "simdino-vitl16-imagenet": (75.6, 77.4),
    "simdinov2-vitb16-imagenet": (78.1, 79.7),
    "simdinov2-vitl16-imagenet": (81.1, 82.4),
    "dino-vitb16-imagenet": (72.9, 76.3),
    "dinov2-vitb16-imagenet": (76.0, 77.2),
    "dinov2-vitl16-imagenet": (80.8, 82.0),
}


def _notes() -> dict[str, str]:
    """What each recipe costs and reaches, in a line."""
    notes, seeds = {}, len(PROFILES["cpu"].seeds)
    for name, r in REACHED.items():
        reached = f"k-NN {r.knn:.3f} ± {r.knn_sd:.3f} (n = {seeds}), effective rank {r.rank} of {_OUT}"
        collapse = f"; {r.collapsed} of {seeds} collapse" if r.collapsed else ""
        notes[name] = f"{r.seconds} core-seconds; {reached}{collapse}"
    for method, counts in _OPERATIONS.items():
        for size, count in zip(_SIZES, counts, strict=True):
            name = f"{method}-vit{size}16-imagenet"
            accuracy = "k-NN {} %, linear probe {} %".format(*_ACCURACY[name]) if name in _ACCURACY else "no accuracy"
            notes[name] = f"{count}e19 operations; published: {accuracy}; not run here"
    return notes


def recipes_page(page: str) -> str:
    """Renew the tables of docs/recipes.md, each between two markers, from the record that the notes are made of.

    Args:
        page: the page's text.

    Returns:
        The text with today's tables.
    """
    seeds, methods = len(PROFILES["cpu"].seeds), ("SimDINO", "SimDINOv2", "DINO", "DINOv2")
    columns = f"core-seconds | k-NN | effective rank of the loss' features (d = {_OUT}) | collapsed, of {seeds}"
    small = [f"| recipe | {columns} |", "|---|---|---|---|---|"]
    for name, r in REACHED.items():
        accuracy, rank = f"{r.knn:.3f} ± {r.knn_sd:.3f}", f"{r.rank} ± {r.rank_sd}"
        small.append(f"| `{name}` | {r.seconds} | {accuracy} | {rank} | {r.collapsed} |")
    published = ["| | ViT-S/16 | ViT-B/16 | ViT-L/16 |", "|---|---|---|---|"]
    for method in methods:
        found = (_ACCURACY.get(f"{method.lower()}-vit{size}16-imagenet", ()) for size in _SIZES)
        published.append(f"| {method} | {' | '.join(' / '.join(map(str, pair)) for pair in found)} |")
    for name, table in {"small": small, "published": published}.items():
        first, last = f"<!-- table: {name} -->\n", "<!-- end -->"
        body = "\n".join([*table, ""])
        page = re.sub(f"{first}.*?{last}", lambda _, new=first + body + last: new, page, flags=re.DOTALL)
    return page


# --- How far the batch reproduction goes


@dataclass(frozen=True)
class Profile:
    """How far the batch reproduction goes: how many steps, which seeds, what is recorded, which images."""

    steps: float  # share of the recipe's
    seeds: tuple[int, ...]
    record: Record | None = None  # None: as the recipe says
    changes: dict[str, object] = field(default_factory=dict)  # fields of the recipes of photographs


# One core for a minute, or for twenty, from CIFAR-10 in one file (docs/recipes.md says what it reached).
_MINUTE: dict[str, object] = {
    "data.name": "npz",
    "data.root": "data/cifar10_jpeg.npz",
    "crops.jitter": 1.0,
    "crops.global_scale": (0.25, 1.0),
    "crops.blur_p": (0.0, 0.0, 0.0),
}
_TWENTY = {"model.dim": 128, "model.depth": 2, "model.heads": 4, "optim.batch_size": 128}
_BANK = Record(log_every=50, snapshots=3, probe=10_000, bank=10_000, views=256)

# One GPU or more, from images that the user puts (or links) at data/. Not run by us: read it as a proposal.
_GPU: dict[str, object] = {
    "crops.jitter": 1.0,
    "crops.global_scale": (0.25, 1.0),
    "model.dim": 192,
    "model.depth": 6,
    "model.hidden": 1024,
    "optim.batch_size": 256,
    "optim.lr": 1e-3,
    "optim.weight_decay_end": 0.4,
    "optim.ema": 0.99,
    "optim.ema_end": 1.0,
    "optim.precision": "bf16",
}
_CIFAR10 = {"data.name": "cifar10", "data.root": "data/cifar10", "model.patch": 4, "optim.steps": 39_000}  # 200 epochs
_LARGER = {"data.size": 64, "crops.global_size": 64, "crops.local_size": 32}
_TINY = {"data.name": "npz", "data.root": "data/tiny_imagenet50.npz", "optim.steps": 29_100}  # 300 epochs
_FOLDER = {"data.name": "folder", "data.root": "data/images", "optim.steps": 50_000}
_GPU_RECORD = Record(log_every=50, snapshots=9, probe=4096, bank=8192, views=512)

PROFILES: dict[str, Profile] = {
    "smoke": Profile(0.02, (0,), Record(log_every=5, snapshots=3, patches=16)),
    "cpu": Profile(1.0, (0, 1, 2, 3, 4), Record(snapshots=7, probe=1024, bank=1024, views=256)),
    "cpu-cifar10": Profile(1.75, (0, 1, 2, 3, 4), _BANK, _MINUTE),
    "cpu-cifar10-long": Profile(5.0, (0, 1, 2), replace(_BANK, bank=50_000), _MINUTE | _TWENTY),
    "gpu": Profile(1.0, (0, 1, 2), _GPU_RECORD, _GPU | _CIFAR10),
    "gpu-tiny": Profile(1.0, (0, 1, 2), _GPU_RECORD, _GPU | _LARGER | _TINY),
    "gpu-folder": Profile(1.0, (0, 1, 2), _GPU_RECORD, _GPU | _LARGER | _FOLDER),
}


NOTES: dict[str, str] = _notes()


def recipe(name: str, profile: str = "cpu", seed: int = 0) -> Config:
    """Return the configuration of a recipe, or of a variant of one, under a profile.

    A variant is written `<recipe>@<field>=<value>,...` and its values stand above the profile's; only of
    `optim.steps` the profile takes its share. The result is named by the recipe and by what really differs from it,
    in the order of the fields and as Python writes values: one setting has one name, however it was written.

    Args:
        name: a key of RECIPES, or a variant.
        profile: a key of PROFILES.
        seed: of all the randomness of the run.

    Raises:
        ValueError: an unknown recipe, profile or field, with the nearest right one; a value that is not of its
            field's type; an impossible configuration.

    >>> recipe("simdino@optim.steps=400,optim.lr=2e-3,optim.batch_size=64").recipe
    'simdino@optim.steps=400,optim.lr=0.002'
    >>> recipe("simdino@optim.steps=400", "smoke").optim.steps
    8
    """
    name, at, text = name.partition("@")
    config, p = RECIPES[recognized(name, RECIPES, "recipe")], PROFILES[recognized(profile, PROFILES, "profile")]
    config = replace(config, record=p.record or config.record)
    if config.data == Data():
        config = override(config, p.changes)
    if at and (changes := read_changes(config, text)):
        config, name = override(config, changes), f"{name}@{write_changes(changes)}"
    steps = max(1, round(config.optim.steps * p.steps))
    return replace(config, recipe=name, seed=seed, optim=replace(config.optim, steps=steps))
