"""Sweeps around the recipes: what a study compares, and with what each profile trains it.

Every factor is changed by the same multiples for every method, and a method has as many settings as its rival.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from simdino.config import Config, recognized, write_changes
from simdino.recipes import PROFILES, recipe

METHODS = ("simdino", "dino", "simdinov2", "dinov2")


class Setting(NamedTuple):
    """One point of a study: a method's recipe with some factors changed."""

    method: str
    # Factor -> multiple of the recipe's value, or the name of the alternative; an empty dict is the recipe itself.
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
    """
    recognized(profile, PROFILES, "profile")
    found = STUDIES[recognized(study, STUDIES, "study")](profile)
    return [s._replace(seeds=tuple(seeds or s.seeds)) for s in found]


def _setting(method: str, profile: str, at: dict, changes: dict, seeds: Sequence[int]) -> Setting:
    """A setting at a study's length: shorter than the recipe, and only its start and end recorded."""
    length = {"optim.steps": 10_000 if profile.startswith("gpu") else 300, "record.snapshots": 1}
    name = recipe(f"{method}@{write_changes(length | changes)}", profile).recipe  # as a run is named
    return Setting(method, at, name, tuple(seeds))


# --- How far a method works around its recipe

# Factor -> the fields that it multiplies, and by what.
_SHARED: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "learning rate": (("optim.lr",), (0.25, 0.5, 2.0, 4.0)),
    "batch size": (("optim.batch_size",), (0.25, 0.5, 2.0)),
    "teacher's memory": (("optim.ema", "optim.ema_end"), (0.25, 0.5, 2.0, 4.0)),  # 1/(1 − m) steps
    "weight decay": (("optim.weight_decay", "optim.weight_decay_end"), (0.25, 4.0, 16.0)),
    "smallest crop": (("crops.global_scale",), (0.25, 0.5, 2.0)),
    "head's width": (("model.hidden",), (0.25, 0.5, 2.0)),
}
_FEWER = ("learning rate", "batch size", "teacher's memory")  # of version 2
_OWN = {
    "simdino": {
        "γ": (("objective.gamma",), (0.25, 0.5, 2.0, 4.0)),
        "ε": (("objective.eps",), (0.25, 0.5, 2.0, 4.0)),
    },
    "dino": {
        "temperature": (("objective.teacher_temp", "optim.teacher_temp_start"), (0.25, 0.5, 2.0, 4.0)),
        "prototypes": (("model.prototypes",), (0.25, 0.5, 2.0, 4.0)),
    },
}
_ARCHITECTURES: dict[str, Callable[[Config], dict[str, object]]] = {
    "2 × depth": lambda c: {"model.depth": 2 * c.model.depth},
    "2 × width": lambda c: {"model.dim": 2 * c.model.dim},
    "½ patch": lambda c: {"model.patch": c.model.patch // 2},
    "2 × patch": lambda c: {"model.patch": 2 * c.model.patch},
    "ConvNet": lambda c: {"model.arch": "convnet"},
}


def _robustness(profile: str) -> list[Setting]:
    """Change one factor at a time, and two together: the learning rate and the one that the method's loss turns on.

    Version 2 has fewer factors. On a CPU changed recipes have one seed, the recipes themselves those of the profile.
    The profile smoke has the largest multiple of each factor, and the ConvNet.
    """
    found, smoke, all_seeds = [], profile == "smoke", PROFILES[profile].seeds
    seeds = all_seeds if profile.startswith("gpu") else all_seeds[:1]
    for method in METHODS:
        config, first, own = recipe(method, profile), not method.endswith("v2"), _OWN[method.removesuffix("v2")]
        lr, loss = "learning rate", next(iter(own))
        factors = {name: f for name, f in (_SHARED | own).items() if first or name in (*_FEWER, loss)}
        changes = {
            name: {k: _scaled(config, fields, k) for k in multiples if not smoke or k == max(multiples)}
            for name, (fields, multiples) in factors.items()
        }
        points: list[tuple[dict, dict]] = [({}, {})]
        points += [({name: k}, change) for name, ways in changes.items() for k, change in ways.items() if change]
        pairs = [(k, j) for k, j in product(changes[lr], changes[loss]) if first or {k, j} <= {0.25, 4.0}]
        points += [({lr: k, loss: j}, changes[lr][k] | changes[loss][j]) for k, j in pairs]
        names = [name for name in _ARCHITECTURES if first and (not smoke or name == "ConvNet")]
        points += [({"architecture": name}, _ARCHITECTURES[name](config)) for name in names]
        found += [_setting(method, profile, at, change, seeds if at else all_seeds) for at, change in points]
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
            new = type(value)(float(f"{value * multiple:.6g}"))
        changes |= {field: new} if new != value else {}
    return changes


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
    found, seeds = [], PROFILES[profile].seeds
    for method in METHODS:
        found.append(_setting(method, profile, {}, {}, seeds))
        for name, changes in _TEACHERS.items():
            if name == 0.0 or not (method.endswith("v2") or profile == "smoke"):
                found.append(_setting(method, profile, {"teacher": name}, changes, seeds))
    return found


STUDIES: dict[str, Callable[[str], list[Setting]]] = {
    "robustness": _robustness,
    "self_distillation": _self_distillation,
}
