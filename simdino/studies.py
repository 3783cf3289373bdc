"""Sweeps around the recipes: what a study compares, and with what each profile trains it.

Every factor is changed by the same multiples for every method, and a method has as many settings as its rival.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from simdino.config import Config, nearest, write_changes
from simdino.recipes import PROFILES, recipe

METHODS = ("simdino", "dino", "simdinov2", "dinov2")


class Setting(NamedTuple):
    """One point of a study: a method's recipe with some factors changed, as the variant that `recipe` understands."""

    method: str
    at: dict[str, float | str]  # factor -> multiple of the recipe's value, or the name of another; {}: as it is
    recipe: str
    seeds: tuple[int, ...]


def study(name: str, profile: str = "cpu", seeds: Sequence[int] | None = None) -> list[Setting]:
    """The settings of a study under a profile, each with its seeds (None) or with those that are given.

    ValueError: an unknown study or profile, with the nearest right one.
    """
    nearest(profile, PROFILES, "profile")
    settings = STUDIES[nearest(name, STUDIES, "study")](profile)
    return [s._replace(seeds=tuple(seeds or s.seeds)) for s in settings]


def _setting(method: str, profile: str, at: dict, changes: dict, seeds: Sequence[int]) -> Setting:
    """A setting at a study's length: shorter than the recipe, and only its end recorded."""
    length = {"optim.steps": 10_000 if profile.startswith("gpu") else 400, "record.snapshots": 1}
    return Setting(method, at, f"{method}@{write_changes(length | changes)}", tuple(seeds))


# --- How far a method works around its recipe

# Factor -> the fields that it multiplies, and by what.
_SHARED: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "learning rate": (("optim.lr",), (0.25, 0.5, 2, 4)),
    "batch size": (("optim.batch_size",), (0.25, 0.5, 2)),
    "teacher's memory": (("optim.ema", "optim.ema_end"), (0.25, 0.5, 2, 4)),  # 1/(1 − m) steps
    "weight decay": (("optim.weight_decay", "optim.weight_decay_end"), (0.25, 4, 16)),
    "smallest crop": (("crops.global_scale",), (0.25, 0.5, 2)),
    "head's width": (("model.hidden",), (0.25, 0.5, 2)),
}
_OWN = {
    "simdino": {
        "γ": (("objective.gamma",), (0.25, 0.5, 2, 4)),
        "ε": (("objective.eps",), (0.25, 0.5, 2, 4)),
    },
    "dino": {
        "temperature": (("objective.teacher_temp", "optim.teacher_temp_start"), (0.25, 0.5, 2, 4)),
        "prototypes": (("model.prototypes",), (0.25, 0.5, 2, 4)),
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
    """One factor at a time, and two together: the learning rate and the one that the method's loss turns on.

    Version 2 has fewer factors. Neighbours have one seed on a CPU, recipes those of the profile. smoke: the largest
    multiple of each factor, and version 1's ConvNet.
    """
    settings, all_seeds, smoke = [], PROFILES[profile].seeds, profile == "smoke"
    seeds = all_seeds if profile.startswith("gpu") else all_seeds[:1]
    for method in METHODS:
        first = not method.endswith("v2")
        own = _OWN[method.removesuffix("v2")]
        loss = list(own)[0]
        factors = {name: f for name, f in (_SHARED | own).items() if first or name in (*list(_SHARED)[:3], loss)}
        ways = {name: {k: (fields, k) for k in ks if not smoke or k == max(ks)} for name, (fields, ks) in factors.items()}
        config = recipe(method, profile)
        settings.append(_setting(method, profile, {}, {}, all_seeds))
        for name, values in ways.items():
            for k, (fields, _) in values.items():
                if changes := _scaled(config, fields, k):
                    settings.append(_setting(method, profile, {name: k}, changes, seeds))
        pairs = product(*(ways[name] for name in ("learning rate", loss)))
        for k, other in pairs if first else [p for p in pairs if {*p} <= {0.25, 4}]:
            changes = _scaled(config, factors["learning rate"][0], k) | _scaled(config, factors[loss][0], other)
            settings.append(_setting(method, profile, {"learning rate": k, loss: other}, changes, seeds))
        for name, change in _ARCHITECTURES.items():
            if first and (not smoke or name == "ConvNet"):
                settings.append(_setting(method, profile, {"architecture": name}, change(config), seeds))
    return settings


def _scaled(config: Config, fields: Sequence[str], multiple: float) -> dict[str, object]:
    """Fields at a multiple of their values: of momenta 1/(1 − m), of a pair of areas the lower; 0 stays and is left."""
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
    """The teacher's momentum from 0 to 0.999, held; a frozen teacher; none. Version 2: with and without one.

    smoke: without one only.
    """
    settings, seeds = [], PROFILES[profile].seeds
    for method in METHODS:
        settings.append(_setting(method, profile, {}, {}, seeds))
        for name, changes in _TEACHERS.items():
            if name == 0.0 or not (method.endswith("v2") or profile == "smoke"):
                settings.append(_setting(method, profile, {"teacher": name}, changes, seeds))
    return settings


STUDIES: dict[str, Callable[[str], list[Setting]]] = {
    "robustness": _robustness,
    "self_distillation": _self_distillation,
}
