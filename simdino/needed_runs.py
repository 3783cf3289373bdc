"""Which runs notebooks and studies need, and what they cost.

A notebook's parameters cell is the only place that says what it needs: `recipes` (recipes or variants), `study` (one of
`simdino.studies`, or a list of them) and `seeds` (None: those of the profile, or of the study).
"""

import ast
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from simdino.config import Config, Model, recognized
from simdino.recipes import PROFILES, REACHED, recipe
from simdino.studies import STUDIES, settings
from simdino.vit import Network

JOB_SECONDS = 80.0  # of training in one process: starting one costs about 4
# Core-seconds of a step, of 1e9 operations of it, of 1e6 augmented pixels; and of a recording of 1,000 images.
# Fitted within 30 % to 17 configurations on an otherwise quiet AMD EPYC (Zen 4), one thread, in bfloat16; the cost of
# operations anew in float32, to four recipes.
_STEP, _OPERATIONS, _PIXELS, _RECORDING = 0.007, 0.014, 0.074, 0.15


def parameters(notebook: str | Path) -> dict[str, object]:
    """Read the literals that a notebook's parameters cell assigns.

    Raises:
        ValueError: a notebook that cannot be read, or one without exactly one such cell.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read {notebook}: {error}") from None
    if len(tagged) != 1:
        raise ValueError(f"{notebook} needs one cell tagged parameters, and has {len(tagged)}")
    assigned = [n for n in ast.parse("".join(tagged[0]["source"])).body if isinstance(n, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}


def needed_configs(notebook: str | Path, profile: str) -> list[Config]:
    """List the configurations whose runs a notebook needs under a profile, each once.

    Args:
        notebook: its file; the parameters cell says recipes, studies and seeds.
        profile: a key of `simdino.recipes.PROFILES`.
    """
    p = parameters(notebook)
    seeds = p.get("seeds") or PROFILES[recognized(profile, PROFILES, "profile")].seeds
    studies = [p["study"]] if isinstance(p.get("study"), str) else p.get("study") or []
    points = [point for study in studies for point in settings(study, profile, p.get("seeds"))]
    pairs = [(name, seed) for name in p.get("recipes") or [] for seed in seeds]
    pairs += [(point.recipe, seed) for point in points for seed in point.seeds]
    return list({config.run_name: config for config in (recipe(name, profile, seed) for name, seed in pairs)}.values())


def study_configs(study: str, profile: str = "cpu") -> list[Config]:
    """List the configurations of what the archive has a file for, with every seed.

    Args:
        study: "recipes", the small recipes themselves, or a key of `simdino.studies.STUDIES`.
        profile: a key of `simdino.recipes.PROFILES`.

    Raises:
        ValueError: an unknown study or profile, with the nearest right one.

    >>> len(study_configs("recipes"))
    85
    """
    if recognized(study, ("recipes", *STUDIES), "study") == "recipes":
        seeds = PROFILES[recognized(profile, PROFILES, "profile")].seeds
        return [recipe(name, profile, seed) for name in REACHED for seed in seeds]
    return [recipe(point.recipe, profile, seed) for point in settings(study, profile) for seed in point.seeds]


def jobs(configs: Iterable[Config]) -> list[list[Config]]:
    """Group runs into one process each, short enough that a few cores share them evenly; no run is in two groups."""
    configs = {config.run_name: config for config in configs}
    seconds = {name: core_seconds(config) for name, config in configs.items()}
    limit, groups, filled = min(JOB_SECONDS, sum(seconds.values()) / 8), [], 0.0
    for name, config in configs.items():
        if not groups or filled + seconds[name] > limit:
            groups.append([])
            filled = 0.0
        groups[-1].append(config)
        filled += seconds[name]
    return groups


def core_seconds(config: Config) -> float:
    """Estimate from a configuration the seconds that its run costs on one core of a CPU; on a GPU, only its size."""
    c, o, r = config.crops, config.optim, config.record
    pixels = o.batch_size * (c.global_crops * c.global_size**2 + c.local_crops * c.local_size**2)
    step = _STEP + _PIXELS * pixels / 1e6
    images = r.probe * (1 + (o.teacher == "ema")) + r.bank + 2 * r.views
    recordings = (r.snapshots + 2) * _RECORDING * images / 1e3
    return o.steps * step + _OPERATIONS * operations(config) / 1e9 + recordings


def disk_bytes(config: Config) -> int:
    """Estimate from a configuration how much disk its run takes: snapshots, and the networks twice while it trains."""
    m, r = config.model, config.record
    images = r.probe * (1 + (config.optim.teacher == "ema")) + r.bank + 2 * r.views
    of_image = 4 * (m.dim * (m.depth + 1) + 2 * m.out + m.prototypes)
    parameters = 12 * m.depth * m.dim**2 + 2 * m.hidden * (m.dim + m.hidden) + m.out * m.prototypes
    return (r.snapshots + 2) * images * of_image + 4 * parameters * (4 + len(r.weights)) + 400 * config.optim.steps


def operations(config: Config) -> float:
    """Count the multiplications and additions in the networks of a run; a backward pass costs two forward ones."""
    c, o = config.crops, config.optim
    channels = 1 if config.data.name in ("photos", "digits", "mnist", "fashion_mnist") else 3
    big = _forward(config.model, channels, c.global_size, c.global_size)
    small = _forward(config.model, channels, c.global_size, c.local_size) if c.local_crops else 0
    teacher = 0 if o.teacher.startswith("student") and not config.patches else 1  # else it shares the student's pass
    return float(o.steps * o.batch_size) * (c.global_crops * (3 + teacher) * big + c.local_crops * 3 * small)


@functools.cache
def _forward(model: Model, channels: int, built: int, size: int) -> int:
    """Count the multiplications and additions of one image's forward pass."""
    network = Network(model, size=built, channels=channels)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, size, size))
    return counter.get_total_flops()


def training_table(notebooks: Sequence[Path], profile: str) -> str:
    """Tabulate what a profile trains, a row for each notebook, and a last one for all together.

    Columns: the runs that the notebook needs, how many of them no notebook above needs, the steps that runs have, and
    the expected minutes of the new ones.

    Args:
        notebooks: their files.
        profile: a key of `simdino.recipes.PROFILES`.

    Returns:
        A table in Markdown.
    """
    seen, rows = set(), []
    for notebook in notebooks:
        configs = needed_configs(notebook, profile)
        new = [config for config in configs if config.run_name not in seen]
        seen |= {config.run_name for config in configs}
        steps = sorted({config.optim.steps for config in configs})
        rows.append((notebook.stem, len(configs), len(new), steps, sum(map(core_seconds, new)) / 60))
    rows.append(("all", len(seen), len(seen), [], sum(row[-1] for row in rows)))
    images = recipe("simdino", profile).data.name
    cost = "core-minutes" if not profile.startswith("gpu") else "size, as core-minutes of a CPU"
    lines = [f"Profile {profile}: {images}, seeds {', '.join(map(str, PROFILES[profile].seeds))}", ""]
    lines += [f"| notebook | runs | new | steps | {cost} |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {a} | {b} | {', '.join(map(str, s))} | {m:.1f} |" for n, a, b, s, m in rows if a]
    return "\n".join(lines)
