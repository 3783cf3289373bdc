"""Sweeps around the recipes: what a study compares, and with what each profile trains it.

Where methods are compared, a factor is changed by the same multiples for each, and rivals have as many settings.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from simdino.config import Config, SimDINO, recognized, write_changes
from simdino.recipes import PROFILES, recipe

METHODS = ("simdino", "dino", "simdinov2", "dinov2")


class Setting(NamedTuple):
    """One point of a study: a method's recipe with some factors changed."""

    method: str
    # Factor -> multiple of the recipe's value, or the alternative: its name, or its value in the studies of one method.
    # An empty dict is the recipe itself.
    at: dict[str, float | str]
    recipe: str  # the recipe or variant, as a run of it is named
    seeds: tuple[int, ...]


def settings(study: str, profile: str = "cpu", seeds: Sequence[int] | None = None) -> list[Setting]:
    """List the settings that a study compares under a profile.

    Args:
        study: a key of STUDIES.
        profile: a key of `simdino.recipes.PROFILES`.
        seeds: of every setting; None leaves each its own.

    Raises:
        ValueError: an unknown study or profile, with the nearest right one.

    >>> settings("self_distillation")[1].recipe
    'simdino@optim.steps=300,optim.teacher=student-with-gradient,record.snapshots=1'
    >>> {name: len(settings(name)) for name in STUDIES}  # doctest: +NORMALIZE_WHITESPACE
    {'robustness': 60, 'self_distillation': 20, 'collapse_boundary': 10, 'dino_phases': 32, 'dino_survival': 32,
    'gamma_range': 5, 'other_inputs': 2}
    """
    recognized(profile, PROFILES, "profile")
    found = STUDIES[recognized(study, STUDIES, "study")](profile)
    return [s._replace(seeds=tuple(seeds or s.seeds)) for s in found]


def _setting(method: str, profile: str, at: dict, changes: dict, seeds: Sequence[int]) -> Setting:
    """A setting that changes these fields of a method's recipe, named as a run of it is."""
    return Setting(method, at, recipe(f"{method}@{write_changes(changes)}", profile).recipe, tuple(seeds))


def _short(profile: str, steps: int) -> dict[str, object]:
    """The length of a study's runs, of which only the start and the end are recorded."""
    return {"optim.steps": 10_000 if profile.startswith("gpu") else steps, "record.snapshots": 1}


# --- How far a method works around its recipe

# On a CPU. DINO's recipe is by then 0.074 ± 0.024 (n = 3) above the untrained network in k-NN accuracy. By 300 steps it
# is 0.045 ± 0.022, too little to tell what a change costs it; SimDINO's is 0.098 ± 0.013.
ROBUSTNESS_STEPS = 500


class Factor(NamedTuple):
    """What is multiplied around a recipe, and by what."""

    fields: tuple[str, ...]
    multiples: tuple[float, ...]
    of_version_2: tuple[float, ...] = ()


_SHARED: dict[str, Factor] = {
    "learning rate": Factor(("optim.lr",), (0.25, 0.5, 2.0, 4.0), of_version_2=(0.25, 4.0)),
    "batch size": Factor(("optim.batch_size",), (0.25, 0.5, 2.0), of_version_2=(0.25,)),
    "teacher's memory": Factor(("optim.ema", "optim.ema_end"), (0.25, 4.0)),  # 1/(1 − m) steps
    "smallest crop": Factor(("crops.global_scale",), (0.5, 2.0)),
}
# The loss turns on the first of each.
_OWN: dict[str, dict[str, Factor]] = {
    "simdino": {
        "γ": Factor(("objective.gamma",), (0.25, 0.5, 2.0, 4.0), of_version_2=(0.25, 4.0)),
        "ε": Factor(("objective.eps",), (0.25, 4.0)),
    },
    "dino": {
        "temperature": Factor(
            ("objective.teacher_temp", "optim.teacher_temp_start"), (0.25, 0.5, 2.0, 4.0), of_version_2=(0.25, 4.0)
        ),
        "prototypes": Factor(("model.prototypes",), (0.25, 4.0)),
    },
}
_PAIRED = (0.25, 4.0)  # multiples of the learning rate and of the factor that the loss turns on, changed together
_ARCHITECTURES: dict[str, Callable[[Config], dict[str, object]]] = {
    "2 × depth": lambda c: {"model.depth": 2 * c.model.depth},
    "ConvNet": lambda c: {"model.arch": "convnet"},
}


def _robustness(profile: str) -> list[Setting]:
    """Change one factor at a time, and two together: the learning rate and the one that the method's loss turns on.

    Version 2 has fewer factors, and none together. Changed recipes have three seeds, the recipes
    themselves those of the profile. The profile smoke has the largest multiple of each factor, and the ConvNet.
    """
    found, smoke, all_seeds = [], profile == "smoke", PROFILES[profile].seeds
    for method in METHODS:
        config, first, own = recipe(method, profile), not method.endswith("v2"), _OWN[method.removesuffix("v2")]
        changes: dict[str, dict[float, dict]] = {}
        for name, factor in (_SHARED | own).items():
            multiples = factor.multiples if first else factor.of_version_2
            changes[name] = {
                k: _scaled(config, factor.fields, k) for k in multiples if not smoke or k == max(multiples)
            }
        points: list[tuple[dict, dict]] = [({}, {})]
        points += [({name: k}, change) for name, ways in changes.items() for k, change in ways.items() if change]
        if first:
            lr, loss = "learning rate", next(iter(own))
            pairs = [(k, j) for k, j in product(changes[lr], changes[loss]) if {k, j} <= {*_PAIRED}]
            points += [({lr: k, loss: j}, changes[lr][k] | changes[loss][j]) for k, j in pairs]
            names = [name for name in _ARCHITECTURES if not smoke or name == "ConvNet"]
            points += [({"architecture": name}, _ARCHITECTURES[name](config)) for name in names]
        for at, change in points:
            seeds = all_seeds[:3] if at else all_seeds
            found.append(_setting(method, profile, at, _short(profile, ROBUSTNESS_STEPS) | change, seeds))
    return found


def _scaled(config: Config, fields: Sequence[str], multiple: float) -> dict[str, object]:
    """Multiply fields: a momentum m by its memory 1/(1 − m), of a pair of areas the lower; what stays is left out."""
    changes = {}
    for field in fields:
        part, leaf = field.split(".")
        value = getattr(getattr(config, part), leaf)
        if leaf in ("ema", "ema_end"):
            new = max(0.0, round(1 - (1 - value) / multiple, 9))
        elif isinstance(value, tuple):
            new = (min(value[1], round(value[0] * multiple, 9)), value[1])
        else:
            new = type(value)(_rounded(value * multiple))
        changes |= {field: new} if new != value else {}
    return changes


def _rounded(value: float) -> float:
    """Six significant digits, so that a run's name can be read."""
    return float(f"{value:.6g}")


# --- What the teacher is for

_TEACHERS: dict[float | str, dict[str, object]] = {
    "full gradient": {"optim.teacher": "student-with-gradient"},
    0.0: {"optim.teacher": "student"},  # what momentum 0 is: stop-gradient only
    **{m: {"optim.ema": m, "optim.ema_end": m} for m in (0.5, 0.9, 0.99, 0.999)},
    "frozen": {"optim.teacher": "frozen"},
}


def _self_distillation(profile: str) -> list[Setting]:
    """Hold the teacher's momentum at values from 0 to 0.999; freeze the teacher; have none.

    Version 2, and the profile smoke, compare only the recipe and none.
    """
    found, seeds, short = [], PROFILES[profile].seeds, _short(profile, 300)
    for method in METHODS:
        found.append(_setting(method, profile, {}, short, seeds))
        for name, changes in _TEACHERS.items():
            if name == 0.0 or not (method.endswith("v2") or profile == "smoke"):
                found.append(_setting(method, profile, {"teacher": name}, short | changes, seeds))
    return found


# --- Where total collapse is stable

_CROPS = {"strong": ((0.15, 1.0), 1.5), "mild": ((0.3, 1.0), 0.6)}  # areas, jitter
_COLLAPSING_OUT = 16
_COLLAPSING: dict[str, object] = {
    "crops.global_size": 16,
    "crops.blur_p": (0.5, 0.5, 0.5),
    "crops.solarize_p": (0.1, 0.1, 0.0),
    "model.patch": 8,
    "model.dim": 48,
    "model.depth": 1,
    "model.hidden": 128,
    "model.out": _COLLAPSING_OUT,
    "optim.batch_size": 256,
    "optim.lr": 1e-3,
    "optim.lr_end": 1e-3,
    "optim.weight_decay": 0.0,
    "optim.weight_decay_end": 0.0,
    "optim.clip": 0.0,
    "optim.precision": "fp32",  # bfloat16 alone makes a spread of 1e-6
    "record.snapshots": 1,
    "record.probe": 64,
    "record.bank": 64,
    "record.views": 64,
}


def _collapse_boundary(profile: str) -> list[Setting]:
    """Let small networks collapse without a teacher at some collapse numbers χ, to see which of them come back.

    γ = c χ (1 + α)/α²,  α = d/ε²

    c = 1 under a stop-gradient, with two strengths of augmentation and four χ from 0.05 to 1; c = 2 where both views
    carry gradients, with the strong one and the two largest χ, so that the path is that of the stop-gradient at χ.
    """
    alpha = _COLLAPSING_OUT / SimDINO.eps**2
    grid = [0.05 * 20 ** (k / 3) for k in range(4)]
    families = [("strong", "student", grid), ("mild", "student", grid), ("strong", "student-with-gradient", grid[2:])]
    found, seeds = [], PROFILES[profile].seeds[:3]
    for crops, teacher, numbers in families:
        area, jitter = _CROPS[crops]
        for chi in numbers:
            gamma = _rounded(chi * (1 + alpha) / alpha**2) * (2 if teacher == "student-with-gradient" else 1)
            changes = {"crops.global_scale": area, "crops.jitter": jitter, "optim.teacher": teacher}
            changes |= {"objective.gamma": gamma, "optim.steps": 1000 if profile == "smoke" else 200}
            at: dict[str, float | str] = {"augmentation": crops, "teacher": teacher, "χ": _rounded(chi)}
            found.append(_setting("simdino", profile, at, _COLLAPSING | changes, seeds))
    return found


# --- What DINO's center and teacher keep alive


def _dino_phases(profile: str) -> list[Setting]:
    """Train DINO with slow and fast centers: without a teacher at five learning rates, and with teachers at one.

    A teacher's momentum of 0 is none: the student itself behind a stop-gradient. Runs have 200 steps also on a GPU, and
    are in float32, as what is asked is whether the differences between features die within them.
    """
    rates, momenta = (1e-4, 3e-4, 6e-4, 1e-3, 2.5e-3), (0.5, 0.7, 0.9)
    teachers: list[tuple[float, float, dict]] = [(rate, 0.0, {"optim.teacher": "student"}) for rate in rates]
    teachers += [(1e-3, m, {"optim.ema": m, "optim.ema_end": m}) for m in momenta]
    found, same = [], {"optim.steps": 200, "optim.precision": "fp32", "record.snapshots": 1}
    for center, (rate, momentum, teacher) in product((0.0, 0.25, 0.5, 0.9), teachers):
        at: dict[str, float | str] = {"center momentum": center, "learning rate": rate, "teacher": momentum}
        changes = {"objective.center_momentum": center, "optim.lr": rate} | teacher
        found.append(_setting("dino", profile, at, same | changes, PROFILES[profile].seeds[:3]))
    return found


def _dino_survival(profile: str) -> list[Setting]:
    """Train the settings of `dino_phases` with as many other seeds, which judge the forecast of what survives.

    The forecast was developed on the seeds of `dino_phases` alone.
    """
    return [s._replace(seeds=tuple(5 + seed for seed in s.seeds)) for s in _dino_phases(profile)]


# --- What the last layer foretells early

_KEPT_WEIGHTS = (0, 10, 30, 100, 300)


def _gamma_range(profile: str) -> list[Setting]:
    """Train SimDINO at its own length with γ from a third to three times the recipe's, and keep weights on the way."""
    config, found = recipe("simdino", profile), []
    for multiple in (1 / 3, 3**-0.5, 1.0, 3**0.5, 3.0):
        at: dict[str, float | str] = {"γ": multiple} if multiple != 1 else {}
        changes = {"record.weights": _KEPT_WEIGHTS} | _scaled(config, ("objective.gamma",), multiple)
        found.append(_setting("simdino", profile, at, changes, PROFILES[profile].seeds))
    return found


def _other_inputs(profile: str) -> list[Setting]:
    """Train SimDINO's recipe on another architecture, and on other images, and keep weights on the way."""
    changed = {"architecture": {"model.arch": "convnet"}, "images": {"data.name": "digits"}}
    names = {"architecture": "ConvNet", "images": "digits"}
    seeds, weights = PROFILES[profile].seeds, {"record.weights": _KEPT_WEIGHTS}
    return [_setting("simdino", profile, {k: names[k]}, weights | changed[k], seeds) for k in changed]


STUDIES: dict[str, Callable[[str], list[Setting]]] = {
    "robustness": _robustness,
    "self_distillation": _self_distillation,
    "collapse_boundary": _collapse_boundary,
    "dino_phases": _dino_phases,
    "dino_survival": _dino_survival,
    "gamma_range": _gamma_range,
    "other_inputs": _other_inputs,
}
