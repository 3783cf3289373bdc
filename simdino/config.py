"""Every number of a run: frozen dataclasses, and the RECIPES with what each costs and reaches.

A run is named by the hash of its resolved configuration, so two runs with one name are one run.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal, get_args, get_origin, get_type_hints


def nearest(word: str, known: Collection[str], kind: str) -> str:
    """`word` if it is among `known`; else a ValueError that names the nearest right one."""
    if word in known:
        return word
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0)
    raise ValueError(f"unknown {kind} {word!r}; did you mean {close[0]!r}? Known: {', '.join(known)}")


def stream(purpose: str, *numbers: int) -> int:
    """A seed of its own for each use of randomness: of each run, step, epoch, so that no two draw alike."""
    digest = hashlib.sha256(" ".join(map(str, (purpose, *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Data:
    name: str = "photos"  # a key of simdino.data.DATASETS
    root: str | None = None  # where the files are, for the sets that a user brings
    size: int = 32  # side of the square images, pixels


@dataclass(frozen=True)
class Crops:
    """Multi-crop augmentation; the defaults are DINO's, with milder scales as images are small."""

    global_size: int = 32
    global_crops: int = 2
    global_scale: tuple[float, float] = (0.25, 1.0)  # share of the image's area
    local_size: int = 16
    local_crops: int = 0
    local_scale: tuple[float, float] = (0.05, 0.25)
    flip: bool = True
    jitter: float = 1.0  # multiplies brightness .4, contrast .4, saturation .2, hue .1; 0 switches colour off
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    solarize_p: float = 0.1
    mask_p: float = 0.5  # share of the global crops in which patches are masked, if the objective has patches
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # share of a masked crop's patches
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's, as in the official recipes
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    arch: Literal["vit", "convnet"] = "vit"
    stem: Literal["patch", "conv"] = "conv"  # one strided convolution (official), or log2(patch) of stride 2
    patch: int = 8
    dim: int = 96
    depth: int = 1  # blocks; of the ConvNet, blocks in each of its three stages
    heads: int = 3
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_ratio: float = 4.0
    pool: Literal["cls", "mean"] = "mean"  # the backbone's feature: class token, or mean of the patch tokens
    registers: int = 0
    mask_token: bool = False  # a learnt token that stands for the masked patches
    layer_scale: float = 0.0  # initial value; 0 leaves the layer out
    drop_path: float = 0.0
    pos_offset: float = 0.0  # of position embeddings on another grid; DINO and DINOv2 have 0.1
    pos_antialias: bool = False  # ... DINOv2 with registers: low-passed, offset 0
    hidden: int = 512  # width of the projection head
    out: int = 64  # d of the features that the loss sees; 0 leaves the head out
    head_norm: Literal["none", "batch"] = "none"  # batch normalisation in the head: it alone can hide collapse
    prototypes: int = 0  # K of DINO's last layer; 0 for SimDINO
    prototype_norm: Literal["one", "learnt"] = "one"  # the prototypes' norms: DINO, DINOv2
    patch_head: Literal["none", "shared", "separate"] = "none"  # the head of the patch tokens


@dataclass(frozen=True)
class SimDINO:
    """The keyword arguments of losses.simdino_loss."""

    eps: float = 0.05**0.5  # the paper's ε; its square is the official code's `eps`
    gamma: float = 0.01
    rate_of: Literal["student", "mean"] = "student"


@dataclass(frozen=True)
class SimDINOv2(SimDINO):
    """The keyword arguments of losses.simdinov2_loss."""

    patch_weight: float = 1.0
    patch_gamma: float = 0.0  # of the rates of patches, the remedy against their collapse; the paper has none


@dataclass(frozen=True)
class DINO:
    """The keyword arguments of losses.dino_loss."""

    student_temp: float = 0.1
    teacher_temp: float = 0.04
    center_momentum: float = 0.9  # 1 keeps the centre at zero: no centring
    centering: Literal["ema", "sinkhorn"] = "ema"


@dataclass(frozen=True)
class DINOv2(DINO):
    """The keyword arguments of losses.dinov2_loss."""

    centering: Literal["ema", "sinkhorn"] = "sinkhorn"
    patch_weight: float = 1.0
    koleo_weight: float = 0.1


@dataclass(frozen=True)
class Optim:
    steps: int = 500
    batch_size: int = 64
    lr: float = 4e-3
    lr_end: float = 1e-6
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.04
    weight_decay_end: float = 0.04
    clip: float = 3.0  # global gradient norm; 0 switches clipping off
    teacher: Literal["ema", "student", "student-with-gradient", "frozen"] = "ema"  # "student": stop-gradient only
    ema: float = 0.95
    ema_end: float = 0.99
    precision: Literal["fp32", "bf16"] = "bf16"


@dataclass(frozen=True)
class Record:
    log_every: int = 10
    checkpoint_every: int = 500
    snapshots: int = 7  # log-spaced steps at which features are kept, besides step 0
    probe: int = 1024  # held-out images whose features are kept
    bank: int = 1024  # training images for k-NN at every snapshot
    views: int = 256  # probe images of which two augmented views are kept


@dataclass(frozen=True)
class Config:
    recipe: str
    seed: int = 0
    data: Data = field(default_factory=Data)
    crops: Crops = field(default_factory=Crops)
    model: Model = field(default_factory=Model)
    objective: SimDINO | DINO | SimDINOv2 | DINOv2 = field(default_factory=SimDINO)
    optim: Optim = field(default_factory=Optim)
    record: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        for part in (self.data, self.crops, self.model, self.objective, self.optim, self.record):
            for name, kind in get_type_hints(type(part)).items():
                if get_origin(kind) is Literal:
                    nearest(getattr(part, name), get_args(kind), name)
        o, c, r = self.optim, self.crops, self.record
        positive = {"optim.steps": o.steps, "optim.batch_size": o.batch_size, "optim.lr": o.lr}
        positive |= {f"record.{k}": v for k, v in vars(r).items()}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if not 0 <= o.warmup < 1:
            raise ValueError(f"optim.warmup is a share of the steps in [0, 1), not {o.warmup}")
        if isinstance(self.objective, DINO) != (self.model.prototypes > 0):
            raise ValueError("model.prototypes must be positive for DINO and 0 for SimDINO")
        if self.patches != (self.model.mask_token and self.model.patch_head != "none"):
            raise ValueError(
                "model.mask_token and model.patch_head are for the objectives with patches, and needed there"
            )
        if isinstance(self.objective, SimDINO) and not self.objective.eps > 0:
            raise ValueError(f"objective.eps must be positive, not {self.objective.eps}")
        if c.global_crops < 2:
            raise ValueError(f"crops.global_crops must be at least 2, two views to align, not {c.global_crops}")
        if not self.model.out > 0:
            raise ValueError("model.out must be positive: the loss needs a head")
        if self.model.dim % self.model.heads:
            raise ValueError(f"model.dim {self.model.dim} is not a multiple of model.heads {self.model.heads}")
        sizes = [c.global_size] + [c.local_size] * (c.local_crops > 0)
        if any(size % self.model.patch for size in sizes):
            raise ValueError(f"crop sizes {sizes} must be multiples of model.patch {self.model.patch}")

    @property
    def patches(self) -> bool:
        """Whether the objective has a term for masked patches."""
        return isinstance(self.objective, SimDINOv2 | DINOv2)

    @property
    def run_name(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.recipe}-s{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Profile:
    """How far the batch reproduction goes: how many steps (a share of the recipe's) and which seeds."""

    steps: float
    seeds: tuple[int, ...]
    record: Record


PROFILES: dict[str, Profile] = {
    "smoke": Profile(steps=0.04, seeds=(0,), record=Record(log_every=5, snapshots=3, probe=256, bank=256, views=64)),
    "cpu": Profile(steps=1.0, seeds=(0, 1, 2), record=Record()),
}

# Grey 32-pixel crops of photographs, 500 steps, about 35 seconds of one CPU core a run. k-NN accuracy of the backbone
# (1,024 bank, 1,024 held-out images; mean ± sd, three seeds; raw pixels 0.254, untrained network 0.465):
# simdino 0.608 ± 0.006, simdino-no-teacher 0.634 ± 0.015, simdino-no-expansion 0.463 ± 0.022, dino 0.543 ± 0.009,
# dino-no-centering 0.444 ± 0.032, dino-no-teacher 0.341 ± 0.029; one seed, not tuned: simdinov2 0.61, dinov2 0.54.
# SimDINO and DINO were tuned alike: a dozen single-seed runs each over learning rate, EMA, temperature or γ, crops.
_PHOTOS = Crops(global_scale=(0.4, 1.0), jitter=0.2, blur_p=0.1, solarize_p=0.0)
_SIMDINO = Config("simdino", crops=_PHOTOS, objective=SimDINO(gamma=0.01), optim=Optim(ema=0.9))
_DINO = Config(
    "dino", crops=_PHOTOS, objective=DINO(center_momentum=0.5), model=Model(prototypes=256), optim=Optim(lr=1e-3)
)


def _masked(model: Model) -> Model:
    """The network of a version 2: a mask token, and patches through the head that the image feature has."""
    return replace(model, mask_token=True, patch_head="shared")


RECIPES: dict[str, Config] = {
    "simdino": _SIMDINO,
    "simdino-no-teacher": replace(_SIMDINO, optim=replace(_SIMDINO.optim, teacher="student")),
    "simdino-no-expansion": replace(_SIMDINO, objective=SimDINO(gamma=0.0)),
    "dino": _DINO,
    "dino-no-centering": replace(_DINO, objective=replace(_DINO.objective, center_momentum=1.0)),
    "dino-no-teacher": replace(_DINO, optim=replace(_DINO.optim, teacher="student")),
    "simdinov2": replace(_SIMDINO, model=_masked(_SIMDINO.model), objective=SimDINOv2(gamma=0.01)),
    "dinov2": replace(_DINO, model=_masked(_DINO.model), objective=DINOv2(center_momentum=0.5)),
}
RECIPES = {name: replace(config, recipe=name) for name, config in RECIPES.items()}


def recipe(name: str, profile: str = "cpu", seed: int = 0) -> Config:
    """The configuration of a named recipe under a profile."""
    config = RECIPES[nearest(name, RECIPES, "recipe")]
    p = PROFILES[nearest(profile, PROFILES, "profile")]
    steps = max(1, round(config.optim.steps * p.steps))
    return replace(config, seed=seed, optim=replace(config.optim, steps=steps), record=p.record)
