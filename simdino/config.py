"""Every number of a run, as frozen dataclasses; `simdino.recipes` has the configurations with a name.

A run is named after its recipe, its seed and the hash of its whole configuration: two runs with one name are one run.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

PUBLISHED_EPS = 0.05**0.5  # the paper's ε; its square is the official code's `eps`
NAME_LENGTH = 120  # of the recipe in a run's name: file systems allow 255 characters in all


def recognized(word: str, known: Collection[str], kind: str) -> str:
    """Return a word that is among the known ones.

    Args:
        word: what somebody wrote.
        known: the words that mean something.
        kind: what the word should be, for the message.

    Raises:
        ValueError: it is not among them; the message names the nearest one and lists them all.

    >>> recognized("ema", ("ema", "student"), "teacher")
    'ema'
    """
    if word in known:
        return word
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0)
    raise ValueError(f"unknown {kind} {word!r}; did you mean {close[0]!r}? Known: {', '.join(known)}")


@dataclass(frozen=True)
class Range:
    """The numbers that a field can have; of a tuple, each of its values.

    Args:
        interval: as mathematicians write it: a square bracket for an end that belongs to it, a round one for an end
            that does not. Infinity and NaN belong to none.
        rising: whether no value of a tuple may be below the one before it.

    >>> [Range("(0, 1]").has(x) for x in (0.0, 0.5, 1.0, float("nan"))]
    [False, True, True, False]
    """

    interval: str
    rising: bool = False

    def has(self, number: int | float) -> bool:
        """Whether a number lies in the interval."""
        low, high = (float(end.replace("∞", "inf")) for end in self.interval[1:-1].split(","))
        ends = [end for bracket, end in zip("[]", (low, high), strict=True) if bracket in self.interval]
        return low < number < high or number in ends


_Positive = Annotated[float, Range("(0, ∞)")]
_Weight = Annotated[float, Range("[0, ∞)")]
_Share = Annotated[float, Range("[0, 1]")]
_Shares = Annotated[tuple[float, float], Range("(0, 1]", rising=True)]
_Chances = Annotated[tuple[float, float, float], Range("[0, 1]")]
_Count = Annotated[int, Range("[1, ∞)")]
_Whole = Annotated[int, Range("[0, ∞)")]

# Of a field that came when there were runs: at its default it is left out of the hash, and they keep their names.
_LATER = {"later": True}


@functools.cache
def _kinds(part: type) -> dict[str, object]:
    """The types of a dataclass' fields."""
    return get_type_hints(part)


@functools.cache
def _ranges(part: type) -> dict[str, Range]:
    """The ranges of those of a dataclass' fields that are numbers, or tuples of numbers."""
    kinds = get_type_hints(part, include_extras=True)
    return {name: kind.__metadata__[0] for name, kind in kinds.items() if get_origin(kind) is Annotated}


def check_fields(part: object, prefix: str = "") -> None:
    """Raise a ValueError, with the name and the range, for a number of another type or outside of its field's range."""
    for name, allowed in _ranges(type(part)).items():
        value, kind = getattr(part, name), _kinds(type(part))[name]
        inner = get_args(kind)  # the types of a tuple's values; () for a single number
        whole = int in (kind, *inner)
        values = value if isinstance(value, tuple) else (value,)
        right = isinstance(value, tuple) == bool(inner) and (Ellipsis in inner or len(values) == max(1, len(inner)))
        for x in values:
            right = right and isinstance(x, int if whole else int | float) and not isinstance(x, bool)
            right = right and allowed.has(x)
        if not right or (allowed.rising and list(values) != sorted(values)):
            number = "whole number" if whole else "number"
            count = f"{len(inner)} " if Ellipsis not in inner else ""
            what = f"a tuple of {count}{number}s" if inner else f"a {number}"
            order = ", none below the one before it" if allowed.rising else ""
            raise ValueError(f"{prefix}{name} must be {what} in {allowed.interval}{order}, not {value}")


def derived_seed(purpose: str, *numbers: int) -> int:
    """Derive a seed of its own for each use of randomness.

    Args:
        purpose: what is drawn, such as "crops" or "weights".
        numbers: what tells the draws of one purpose apart: the run's seed, a step, an epoch.

    Returns:
        A number in [0, 2⁶³), from a hash of all arguments: two purposes, seeds or steps practically never share one.

    >>> seed = derived_seed("crops", 0, 1)
    >>> seed == derived_seed("crops", 0, 1), seed == derived_seed("order", 0, 1)
    (True, False)
    """
    digest = hashlib.sha256(" ".join(map(str, (purpose, *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Data:
    """The images: a named set of `simdino.data`."""

    name: str = "photos"  # a key of simdino.data.DATASETS
    root: str | None = None  # where the files are, for the sets that a user brings
    size: _Count = 32  # side of the square images, pixels
    workers: _Whole = 0  # processes that decode a folder's images while training; 0: decoded once and kept


@dataclass(frozen=True)
class Crops:
    """Multi-crop augmentation; the defaults are DINO's, with milder scales as images are small."""

    global_size: _Count = 32
    global_crops: Annotated[int, Range("[2, ∞)")] = 2  # two views to align, at least
    global_scale: _Shares = (0.25, 1.0)  # share of the image's area
    local_size: _Count = 16
    local_crops: _Whole = 0
    local_scale: _Shares = (0.05, 0.25)
    flip: bool = True
    jitter: _Weight = 1.0  # multiplies brightness .4, contrast .4, saturation .2, hue .1; 0 switches color off
    jitter_p: _Share = 0.8
    gray_p: _Share = 0.2
    blur_p: _Chances = (0.5, 0.5, 0.5)  # of the first global view, the other ones, local views
    solarize_p: _Chances = (0.1, 0.1, 0.0)
    mask_p: _Share = 0.5  # share of the global crops in which patches are masked, if the objective has patches
    mask_ratio: _Shares = (0.1, 0.5)  # share of a masked crop's patches
    # Of each channel: ImageNet's, as in the official recipes.
    mean: Annotated[tuple[float, ...], Range("(-∞, ∞)")] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, ...], Range("(0, ∞)")] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    """The network: backbone, projection head and, for DINO, prototypes."""

    arch: Literal["vit", "convnet"] = "vit"
    stem: Literal["patch", "conv"] = "conv"  # one strided convolution (official), or log2(patch) of stride 2
    patch: _Count = 8
    dim: _Count = 96
    depth: _Count = 1  # blocks; of the ConvNet, blocks in each of its three stages
    heads: _Count = 3
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_ratio: _Positive = 4.0
    pool: Literal["cls", "mean"] = "mean"  # the backbone's feature: class token, or mean of the patch tokens
    registers: _Whole = 0
    mask_token: bool = False  # a learned token that stands for the masked patches
    layer_scale: _Weight = 0.0  # initial value; 0 leaves the layer out
    drop_path: Annotated[float, Range("[0, 1)")] = 0.0
    drop_path_rule: Literal["linear", "uniform"] = "linear"  # growing with depth from 0 (DINO), or alike (DINOv2)
    token_std: _Weight = 0.02  # of the initial class and register tokens; 1e-6 in DINOv2
    pos_offset: _Weight = 0.0  # of position embeddings on another grid; DINO and DINOv2 have 0.1
    pos_antialias: bool = False  # ... DINOv2 with registers: low-passed, offset 0
    hidden: _Count = 512  # width of the projection head
    out: _Whole = 64  # d of the features that the loss sees; 0 leaves the head out
    head_norm: Literal["none", "batch"] = "none"  # batch normalization in the head: it alone can hide collapse
    prototypes: _Whole = 0  # K of DINO's last layer; 0 for SimDINO
    prototype_norm: Literal["one", "learned"] = "one"  # the prototypes' norms: DINO, DINOv2
    patch_head: Literal["none", "shared", "separate"] = "none"  # the head of the patch tokens


@dataclass(frozen=True)
class SimDINO:
    """The keyword arguments of losses.simdino_loss."""

    eps: _Positive = PUBLISHED_EPS
    gamma: _Weight = 0.01
    rate_of: Literal["student", "mean"] = "student"


@dataclass(frozen=True)
class SimDINOv2(SimDINO):
    """The keyword arguments of losses.simdinov2_loss."""

    patch_weight: _Weight = 1.0
    patch_gamma: _Weight = 0.0  # of the rates of patches, the remedy against their collapse; the paper has none
    # ... and of their similarities' distance from those in the untrained network, another one (Gram anchoring).
    gram_weight: _Weight = field(default=0.0, metadata=_LATER)


@dataclass(frozen=True)
class DINO:
    """The keyword arguments of losses.dino_loss."""

    student_temp: _Positive = 0.1
    teacher_temp: _Positive = 0.04
    center_momentum: _Share = 0.9  # 1 keeps the center at zero: no centering
    centering: Literal["ema", "sinkhorn"] = "ema"


@dataclass(frozen=True)
class DINOv2(DINO):
    """The keyword arguments of losses.dinov2_loss."""

    centering: Literal["ema", "sinkhorn"] = "sinkhorn"
    patch_weight: _Weight = 1.0
    koleo_weight: _Weight = 0.1


@dataclass(frozen=True)
class Optim:
    """Optimization: schedules, clipping, the teacher.

    Lengths of schedules are shares of the steps, so that a profile with fewer steps trains the same run in short.
    """

    steps: _Count = 1000
    batch_size: _Count = 64  # images in each step, over all ranks
    groups: _Count = 1  # equal parts of a batch, each with a loss and a coding rate of its own, on any number of ranks
    lr: _Positive = 4e-3
    lr_start: _Weight = 0.0
    lr_end: _Weight = 1e-6
    warmup: _Share = 0.05  # share
    warmup_reaches: Literal["last", "next"] = "next"  # the peak on its last step (DINO, DINOv2), or just after it
    layer_decay: Annotated[float, Range("(0, 1]")] = 1.0  # factor of the learning rate from each block to the one below
    patch_embed_lr: _Weight = 1.0  # a further factor for the patch embedding
    weight_decay: _Weight = 0.04
    weight_decay_end: _Weight = 0.04
    clip: _Weight = 3.0  # of a gradient norm; 0 switches clipping off
    clip_by: Literal["all", "module", "tensor"] = "all"  # whose norm: module is backbone, head
    teacher: Literal["ema", "student", "student-with-gradient", "frozen"] = "ema"  # "student": stop-gradient only
    ema: _Share = 0.95
    ema_end: _Share = 0.99
    teacher_temp_start: _Weight = 0.0  # DINO's sharpening is warmed up from here; 0: no warm-up
    teacher_temp_warmup: _Share = 0.3  # share
    freeze_prototypes: _Share = 0.0  # share at the start in which DINO's last layer stays as it is
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 is for accelerators: few CPUs have it
    # The loss of a group, by torch.compile; reduce-overhead records CUDA graphs.
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    checkpointing: bool = False  # of the blocks' activations: less memory for a third more work


@dataclass(frozen=True)
class Record:
    """What is recorded of a run; the defaults cost under 2 % of a run of the default length."""

    log_every: _Count = 10  # every step has a row; every so many steps the costlier numbers stand in it
    checkpoint_seconds: _Weight = 60.0  # from one checkpoint to the next
    snapshots: _Count = 5  # log-spaced steps at which features are kept, besides the start and the end
    probe: _Count = 256  # held-out images whose features are kept
    bank: _Count = 256  # training images for k-NN at every snapshot
    views: _Count = 64  # probe images of which two augmented views are kept
    patches: _Count = 32  # probe images whose patch tokens are kept, if the objective has patches
    # Steps at which the weights of student and teacher are kept, and at the end; empty: none.
    weights: Annotated[tuple[int, ...], Range("[0, ∞)", rising=True)] = ()


@dataclass(frozen=True)
class Config:
    """Everything that a run follows from; `recipe` only names it.

    Raises:
        ValueError: a value that means nothing, or values that do not fit together.
    """

    recipe: str
    seed: _Whole = 0
    data: Data = field(default_factory=Data)
    crops: Crops = field(default_factory=Crops)
    model: Model = field(default_factory=Model)
    objective: SimDINO | DINO | SimDINOv2 | DINOv2 = field(default_factory=SimDINO)
    optim: Optim = field(default_factory=Optim)
    record: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        check_fields(self)
        for part in ("data", "crops", "model", "objective", "optim", "record"):
            check_fields(getattr(self, part), f"{part}.")
        for name, (value, kind) in fields(self).items():
            if get_origin(kind) is Literal:
                recognized(value, get_args(kind), name.split(".")[1])
        o, c = self.optim, self.crops
        if o.batch_size % o.groups:
            raise ValueError(f"optim.batch_size {o.batch_size} is not a multiple of optim.groups {o.groups}")
        if isinstance(self.objective, DINO) != (self.model.prototypes > 0):
            raise ValueError("model.prototypes must be positive for DINO and 0 for SimDINO")
        if self.patches != (self.model.mask_token and self.model.patch_head != "none"):
            raise ValueError(
                "model.mask_token and model.patch_head are for the objectives with patches, and needed there"
            )
        if not 0 < len(c.mean) == len(c.std):
            raise ValueError(f"crops.mean and crops.std have a value for each channel, not {c.mean} and {c.std}")
        if not self.model.out:
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
        """The name of the run's directory, `<recipe>-s<seed>-<hash>`.

        In the recipe, characters that a folder's name cannot have are replaced by "_", and it is cut at NAME_LENGTH;
        the hash, of every field's value, tells runs apart; a field that came later counts where it has been changed.
        """
        parts = {part: _values(value) for part, value in vars(self).items() if dataclasses.is_dataclass(value)}
        text = json.dumps({"recipe": self.recipe, "seed": self.seed} | parts, sort_keys=True)
        folder = re.sub(r"[^\w@.,=+-]", "_", self.recipe, flags=re.ASCII)[:NAME_LENGTH]
        return f"{folder}-s{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


# The parts of a configuration; the objective is one of several.
_PARTS = {"data": (Data,), "crops": (Crops,), "model": (Model,), "objective": (SimDINO, DINO, SimDINOv2, DINOv2)}
_PARTS |= {"optim": (Optim,), "record": (Record,)}


def unfit_field(found: dict) -> str | None:
    """Name the first field of a configuration read from JSON whose value its type and range do not have; None if none.

    Fields that are missing, or that no part has today, are left: runs of other versions have them so.

    >>> unfit_field({"recipe": "simdino", "optim": {"steps": "a"}}), unfit_field({"optim": {"steps": 10, "old": None}})
    ('optim.steps', None)
    """
    if not isinstance(found.get("recipe", ""), str):
        return "recipe"
    if not _fits(found.get("seed", 0), int, Range("[0, ∞)")):
        return "seed"
    for part, types in _PARTS.items():
        values = found.get(part, {})
        if not isinstance(values, dict):
            return part
        for name, value in values.items():
            owners = [owner for owner in types if name in _kinds(owner)]
            if owners and not any(_fits(value, _kinds(o)[name], _ranges(o).get(name)) for o in owners):
                return f"{part}.{name}"
    return None


def _fits(value: object, kind: object, allowed: Range | None) -> bool:
    """Whether a value read from JSON is of a field's type, and a number in its range."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(x, get_args(kind)[0], allowed) for x in value)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and (allowed.has(value) if allowed else abs(value) < math.inf)
    if kind == str | None:
        return value is None or isinstance(value, str)
    return isinstance(value, bool if kind is bool else str)


def _values(part: object) -> dict[str, object]:
    """The values of a part's fields that count for the hash, whole ones of real numbers as real: lr=1 is lr=1.0."""

    def real(value: object) -> object:
        return tuple(map(float, value)) if isinstance(value, tuple) else float(value)

    kinds, unset = _kinds(type(part)), [f.name for f in dataclasses.fields(part) if _is_unset(part, f)]
    values = {k: real(v) if float in (kinds[k], *get_args(kinds[k])) else v for k, v in vars(part).items()}
    return {k: v for k, v in values.items() if k not in unset}


def _is_unset(part: object, of: dataclasses.Field) -> bool:
    """Whether a field that came later has its default."""
    return of.metadata == _LATER and getattr(part, of.name) == of.default


def fields(config: Config) -> dict[str, tuple[object, object]]:
    """Every field that a variant can change, by its name, "optim.lr", in order: its value and its type.

    >>> fields(Config("simdino"))["optim.lr"]
    (0.004, <class 'float'>)
    """
    parts = {part: value for part, value in vars(config).items() if dataclasses.is_dataclass(value)}
    return {
        f"{part}.{name}": (getattr(value, name), kind)
        for part, value in parts.items()
        for name, kind in _kinds(type(value)).items()
    }


def fields_table(config: Config) -> str:
    """List every field as a variant writes it, with the type and range of its value or the words that it can be.

    >>> print(fields_table(Config("simdino")).splitlines()[2])
    data.size=32                                     int in [1, ∞)
    """
    parts = {part: value for part, value in vars(config).items() if dataclasses.is_dataclass(value)}
    ranges = {f"{part}.{name}": r for part, value in parts.items() for name, r in _ranges(type(value)).items()}
    rows = []
    for name, (value, kind) in fields(config).items():
        words = ["True", "False"] if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
        inner = get_args(kind) if get_origin(kind) is tuple else ()
        of_tuple = ",".join("..." if word is Ellipsis else word.__name__ for word in inner)
        kind = " | ".join(words) or of_tuple or getattr(kind, "__name__", kind)
        allowed = f" in {ranges[name].interval}" if name in ranges else ""
        rows.append(f"{write_changes({name: value}):48s} {kind}{allowed}")
    return "\n".join(rows)


def override(config: Config, values: dict[str, object]) -> Config:
    """Set fields of a configuration, those of one part together.

    >>> override(Config("simdino"), {"optim.lr": 0.002, "optim.ema": 0.9}).optim.lr
    0.002
    """
    parts: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        part, _, leaf = name.partition(".")
        parts.setdefault(part, {})[leaf] = value
    return replace(config, **{part: replace(getattr(config, part), **own) for part, own in parts.items()})


def read_changes(config: Config, text: str) -> dict[str, object]:
    """Read what a variant changes of a configuration, "optim.lr=0.002,crops.global_scale=0.2,1".

    A comma begins another change where `<part>.<field>=` follows; any other belongs to the value: a tuple's, or a
    path's. What equals the configuration's own value is no change and is left out.

    Args:
        config: the configuration that is changed.
        text: the changes, in any order.

    Returns:
        Typed values by field, in the order of the fields.

    Raises:
        ValueError: a field that there is not, with the nearest right one; one given twice; a value that is not of
            its field's type.

    >>> read_changes(Config("simdino"), "optim.lr=2e-3,data.root=/data/a,b=c,optim.ema=0.95")
    {'data.root': '/data/a,b=c', 'optim.lr': 0.002}
    """
    known, words = fields(config), {}
    for change in re.split(r",(?=[a-z]+\.[a-z_]+=)", text):
        name, equals, word = change.partition("=")
        if not equals:
            raise ValueError(f"changes of a recipe are written <field>=<value>,..., not {text!r}")
        near = [field for field in known if field.split(".")[0] == name.split(".")[0]] or known
        if recognized(name, near, "field") in words:
            raise ValueError(f"{name} is given twice in {text!r}")
        words[name] = word
    typed = {name: _typed(name, words[name], kind) for name, (_, kind) in known.items() if name in words}
    return {name: value for name, value in typed.items() if value != known[name][0]}


def write_changes(values: dict[str, object]) -> str:
    """Write changes as `read_changes` reads them, each value as Python writes it.

    >>> write_changes({"crops.global_scale": (0.2, 1.0), "optim.lr": 0.002})
    'crops.global_scale=0.2,1.0,optim.lr=0.002'
    """
    words = {k: ",".join(map(repr, v)) if isinstance(v, tuple) else str(v) for k, v in values.items()}
    return ",".join(f"{name}={word}" for name, word in words.items())


def _typed(name: str, text: str, kind: object) -> object:
    """The value of a field's type that a text means."""
    if get_origin(kind) is Literal:
        return recognized(text, get_args(kind), name)
    if get_origin(kind) is tuple:
        words, inner = text.split(",") if text else [], get_args(kind)
        if inner[-1] is not Ellipsis and len(words) != len(inner):
            raise ValueError(f"{name} has {len(inner)} values, not {text!r}")
        return tuple(_typed(name, word, inner[0]) for word in words)
    if kind is bool:
        return recognized(text, ("True", "False"), name) == "True"
    if kind in (int, float):
        try:
            value = kind(text) + 0  # −0.0 is 0.0
        except ValueError:
            value = math.nan
        if not abs(value) < math.inf:
            raise ValueError(f"{name} must be {'a whole' if kind is int else 'a finite'} number, not {text!r}")
        return value
    if kind == str | None:  # a path, or none
        return PurePath(text).as_posix() if text != "None" else None
    return text
