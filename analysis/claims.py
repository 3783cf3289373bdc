"""Claims as data: what a notebook predicted and measured, published beside its figure and gathered in a gallery.

`simdino gallery figures` writes figures/README.md from the figures and claims in that folder.
"""

import ast
import difflib
import inspect
import json
import math
import os
import re
import time
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri, stdtrit

from simdino.config import recognized
from simdino.recipes import PROFILES
from simdino.runs import CHECKOUT, Run, environment
from simdino.whole_files import whole_file, write_json, write_text

SYMBOLS = {"equal": "=", "at_most": "≤", "at_least": "≥"}
_KINDS = ("theorem", "observation")
SOURCES = ("theory", "paper", "control", "threshold", "identity")
VERDICTS = ("holds", "fails", "undecided")
_STARTED = time.perf_counter()  # a notebook imports this module in its first cell


def check_parameters(In: list[str]) -> None:
    """Refuse parameters that a notebook does not declare, or of another type, before any work; write lists out.

    `In` is IPython's list of the sources executed so far. papermill puts a cell that begins "# Parameters" right
    after the cell tagged `parameters`; each name that it assigns must be assigned there too, with a value of its type.
    What is declared as a list can be given as one value, or as text that reads as a list, as `-p seeds 1` and
    `-p seeds "[1, 2]"` do: the notebook's name then holds the list. `~` in a path becomes the home folder.

    Without such a cell (a notebook opened by hand) only `profile` is checked: it is published as typed, and any name
    but those of `PROFILES` would have run as one of them.

    Raises:
        ValueError: an unknown parameter or profile, with the nearest right one; a value of another type.
    """
    profile = re.findall(r"^profile = [\"']([^\"'\n]*)", "\n".join(In), re.MULTILINE)[-1:]
    if profile:
        recognized(profile[0], PROFILES, "profile")
    injected = [i for i, source in enumerate(In) if source.startswith("# Parameters\n")]
    if not injected:
        return
    declared = _assigned(In[injected[0] - 1]) if injected[0] > 0 else {}
    for name, value in (item for i in injected for item in _assigned(In[i]).items()):
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1, cutoff=0)
            hint = f"; did you mean {close[0]!r}? Declared: {', '.join(declared)}" if close else "; it declares none"
            raise ValueError(f"the notebook has no parameter {name!r}{hint}")
        known = _as_declared(name, value, declared[name])
        if known != value:
            _notebook_names(In)[name] = known


# What a parameter is that is None unless it is given, where it is not a text.
_UNLESS_TEXT = {"seeds": [0], "eps": 0.2}


def _as_declared(name: str, value: object, declared: object) -> object:
    """A parameter's value in the type of its declared one; ValueError if it has another."""
    like = _UNLESS_TEXT.get(name, "text") if declared is None else declared
    if value is None and declared is None:
        return None
    if isinstance(like, list):
        of = like[0] if like else "text"
        if isinstance(value, str) and (value.lstrip().startswith("[") or (not isinstance(of, str) and "," in value)):
            try:
                value = list(ast.literal_eval(f"{value.rstrip(',')}," if value.lstrip()[0] != "[" else value))
            except (ValueError, SyntaxError):
                raise ValueError(
                    f"parameter {name} must be {_kind(like)}, and {value!r} does not read as one"
                ) from None
        values = value if isinstance(value, list) else [value]
        if all(_is_like(x, of) for x in values) and (values or isinstance(of, str)):
            return [_expanded(x) for x in values]
    elif _is_like(value, like):
        return _expanded(value)
    remedy = f"; -r {name} {value} gives it as text" if isinstance(like, str) and not isinstance(value, list) else ""
    raise ValueError(f"parameter {name} must be {_kind(like)}, not {value!r}{remedy}")


def _is_like(value: object, like: object) -> bool:
    """Whether a value can stand where another one does: whole numbers for real ones, too."""
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    if isinstance(like, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(like))


def _kind(like: object) -> str:
    """What a parameter is, in words."""
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    if isinstance(like, list):
        return f"a list of {'text' if not like or isinstance(like[0], str) else 'whole numbers'}, such as {like[:2]}"
    return words[type(like)]


def _expanded(value: object) -> object:
    return os.path.expanduser(value) if isinstance(value, str) else value


def _notebook_names(In: list[str]) -> dict[str, object]:
    """The names of the notebook whose executed sources these are."""
    frame = inspect.currentframe()
    while frame and frame.f_globals.get("In") is not In:
        frame = frame.f_back
    return frame.f_globals if frame else {}


class Proportion(NamedTuple):
    """A proportion as what was counted: `hits` of `n`."""

    hits: int
    n: int


def claim(
    id: str,
    statement: str,
    *,
    predicted: SupportsFloat,
    measured: SupportsFloat | Sequence[float] | Proportion,
    source: str,
    unit: str,
    tolerance: SupportsFloat = 0.0,
    relation: str = "equal",
    kind: str = "theorem",
    n: int | None = None,
    interval: tuple[SupportsFloat, SupportsFloat] | None = None,
    seed: int | None = None,
) -> dict:
    """Set a prediction beside its measurement, with the interval of the measurement and a verdict, as data.

    equal: |measured − predicted| ≤ tolerance; at_most: measured ≤ predicted + tolerance; at_least: measured ≥
    predicted − tolerance. The verdict is "holds" if that is true of the whole 95 % interval, "fails" if it is of no
    value in it, else "undecided"; then `decisive_n` says how many units would decide it if mean and deviation stayed
    (None where none would), and `half_width` which difference could have been seen. NaN fails.

    The interval, unless it is given: of values for each unit, mean ± t·sd/√n (without bounds for n = 1); of a
    `Proportion`, Wilson's; of a computation, the number itself.

    Args:
        id: short and unique within a notebook.
        statement: what is claimed, in words that stand by themselves.
        predicted: the number that the source gives.
        measured: a number; one for each unit (n,), of which the mean is judged; or a `Proportion`.
        source: of the prediction. "theory": a closed form; "paper": what the paper says; "control": what has to come
            out if the measurement works; "threshold": a number that no theory gives, fixed in docs/expectations.toml;
            "identity": true by construction, and counted apart.
        unit: what was replicated, "seed", "image", "draw"; "computation" where nothing is random.
        tolerance: absolute.
        relation: of measured to predicted: "equal", "at_most" or "at_least".
        kind: "theorem" or "observation": a theorem that fails stops `publish`; an observation is published whatever its
            verdict.
        n: how many units, where `measured` is one number: for a computation the cases that it covers (1).
        interval: 95 %, over the unit, where it does not follow from `measured`.
        seed: of the resampling that the interval is from, if any.

    Raises:
        ValueError: a negative or NaN tolerance; an unknown relation, kind or source; a measured number without an
            interval, or an interval without n.

    >>> claim("A1", "the maximum is reached", predicted=1.0, measured=0.99, tolerance=0.1,
    ...       source="theory", unit="computation")["verdict"]
    'holds'
    >>> claim("B", "half at least", predicted=0.5, measured=Proportion(6, 10), relation="at_least", kind="observation",
    ...       source="threshold", unit="image")["verdict"]
    'undecided'
    """
    for name, value, known in (("relation", relation, SYMBOLS), ("kind", kind, _KINDS), ("source", source, SOURCES)):
        if value not in known:
            raise ValueError(f"{name} of claim {id!r} must be one of {', '.join(known)}, not {value!r}")
    predicted, tolerance = float(predicted), float(tolerance)
    if not tolerance >= 0:
        raise ValueError(f"tolerance of claim {id!r} must not be negative, not {tolerance}")
    counted = isinstance(measured, Proportion)
    samples = np.asarray(measured.hits / measured.n if counted else measured, dtype=float)
    if counted or samples.ndim:
        n = measured.n if counted else samples.size
    elif unit == "computation":
        n, interval = n or 1, interval or (float(samples), float(samples))
    if n is None or (interval is None and not counted and not samples.ndim):
        raise ValueError(
            f"claim {id!r} needs {'n and ' if n is None else ''}an interval: give measured as one number for each "
            f"{unit}, or as a Proportion, or say n and interval=(low, high)"
        )
    mean, sd = float(samples.mean()), float(samples.std(ddof=1)) if samples.size > 1 else None
    if interval is None:
        interval = _wilson(float(measured.hits), n) if counted else _of_mean(mean, sd, n)
    record = {"id": id, "statement": statement, "source": source, "kind": kind, "predicted": predicted}
    record |= {"relation": relation, "tolerance": tolerance, "measured": mean, "unit": unit, "n": int(n)}
    record |= {"sd": sd} if sd is not None else {}
    record |= {"hits": int(measured.hits)} if counted else {}
    record |= {"interval": [float(end) for end in interval]} | ({} if seed is None else {"resampling_seed": seed})
    bounds = _allowed(predicted, tolerance, relation)
    record["verdict"] = _verdict(record["interval"], bounds)
    if record["verdict"] == "undecided":
        low, high = record["interval"]
        record |= {"half_width": (high - low) / 2, "decisive_n": _decisive_n(record, bounds)}
    return record


def _allowed(predicted: float, tolerance: float, relation: str) -> tuple[float, float]:
    """The values for which a claim is true."""
    low = -math.inf if relation == "at_most" else predicted - tolerance
    high = math.inf if relation == "at_least" else predicted + tolerance
    return (predicted, predicted) if relation == "equal" and math.isinf(predicted) else (low, high)


def _verdict(interval: Sequence[float], allowed: tuple[float, float]) -> str:
    if allowed[0] <= interval[0] and interval[1] <= allowed[1]:
        return "holds"
    undecided = interval[0] <= allowed[1] and allowed[0] <= interval[1]  # false of NaN
    return "undecided" if undecided else "fails"


def _of_mean(mean: float, sd: float | None, n: int) -> tuple[float, float]:
    """The 95 % interval of a mean, by Student's t."""
    if sd is None:
        return (-math.inf, math.inf) if math.isfinite(mean) else (mean, mean)
    half = float(stdtrit(n - 1, 0.975)) * sd / n**0.5
    return mean - half, mean + half


def _wilson(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, by Wilson's score."""
    z2 = float(ndtri(0.975)) ** 2
    middle, half = (hits + z2 / 2) / (n + z2), (z2 * (hits * (n - hits) / n + z2 / 4)) ** 0.5 / (n + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _decisive_n(record: dict, bounds: tuple[float, float]) -> int | None:
    """How many units would decide a claim, if mean and deviation stayed as they are: to two digits or so."""
    mean, n, half = record["measured"], record["n"], (record["interval"][1] - record["interval"][0]) / 2
    distance = min(abs(mean - bound) for bound in bounds if math.isfinite(bound))
    if not 0 < half < math.inf or not distance > 0:
        return None
    for more in (math.ceil(n * 1.05**k) for k in range(1, 300)):
        if "hits" in record:
            interval = _wilson(mean * more, more)
        elif "sd" in record:
            interval = _of_mean(mean, record["sd"], more)
        else:
            interval = mean - half * (n / more) ** 0.5, mean + half * (n / more) ** 0.5
        if _verdict(interval, bounds) != "undecided":
            return more
    return None


def _refuse_unfounded(name: str, claims: list[dict], profile: str) -> None:
    """Refuse a threshold that nobody fixed beforehand, and a prediction that is the measured number.

    docs/expectations.toml has, under `[NOTEBOOK.CLAIM]`, the predicted number of each threshold and each control, and
    the tolerance of each observation that has one; and why.
    """
    path = CHECKOUT / "docs/expectations.toml"
    known = tomllib.loads(path.read_text(encoding="utf-8")).get(name, {}) if path.is_file() else {}
    for c in claims:
        fixed = {}
        if c["kind"] == "observation":
            if c["source"] in ("threshold", "control") and c["predicted"] != 0:
                fixed["predicted"] = c["predicted"]
            if c["tolerance"] > 0:
                fixed["tolerance"] = c["tolerance"]
        found = known.get(c["id"], {})
        for key, value in fixed.items():
            if not math.isclose(found.get(key, math.nan), value, rel_tol=1e-9) and profile == "cpu":
                raise ValueError(
                    f"claim {c['id']!r} of {name} has a {key} of {value:g}, and docs/expectations.toml says "
                    f"{found.get(key, 'nothing')}: write {key} and why under [{name}.{c['id']}] before it is judged"
                )
        measured = c["measured"]
        if c["predicted"] == measured and f"{measured:.6g}" != repr(measured).removesuffix(".0"):
            raise ValueError(f"what claim {c['id']!r} of {name} predicts is the measured number itself, {measured!r}")


def publish(
    fig: "matplotlib.figure.Figure",  # noqa: F821  a string, since matplotlib is an extra
    claims: list[dict],
    *,
    name: str,
    out_dir: str | Path | None,
    profile: str,
    seeds: Sequence[int] = (),
    runs: Sequence[Run] = (),
    missing: Sequence[str] = (),
) -> None:
    """Save a notebook's figure and claims as `<out_dir>/<name>.png` and `.json`, and print the claims.

    out_dir None is build/figures of the project, whatever folder the notebook runs in: what somebody tries out
    by hand does not overwrite the published figures.

    The JSON says what made them: profile, seeds, hardware, threads, versions, commit, minutes since the notebook
    began; and of the runs that they are about how many, how many of them archived, the minutes that they took, and the
    commits, sources, hardware and precisions that trained them. Each file is written whole or not at all. `name` is
    the notebook's, without its suffix. The picture of a rehearsal, which the profile smoke is, is marked.

    `missing` says in a sentence each what data or weights were not there, and what to bring: a figure without them is
    kept in out_dir for a look, and the batch reproduction leaves the committed one, which has them, in its place.

    Raises AssertionError naming the theorems that fail, after writing both files; ValueError if there are no claims or
    two have the same id; a threshold that docs/expectations.toml does not fix (profile cpu); a prediction that is the
    measured number; a rehearsal among the committed figures.
    """
    ids = [c["id"] for c in claims]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"claims of {name} must have distinct ids, and at least one is needed; they are {ids}")
    _refuse_unfounded(name, claims, profile)
    where = environment("cuda" if torch.cuda.is_available() else "cpu")
    notebook = f"notebooks/{name}.ipynb"
    png = Path(out_dir or CHECKOUT / "build/figures").expanduser() / f"{name}.png"
    if profile == "smoke":
        if png.parent.resolve() == CHECKOUT / "figures":
            raise ValueError("profile smoke is a rehearsal: it does not write into figures/, where results are")
        text = "rehearsal: a few steps, no result"
        fig.text(0.5, 0.5, text, fontsize=40, color="gray", alpha=0.3, rotation=25, ha="center", va="center")
    png.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Source": notebook, "Comment": f"profile {profile}, commit {where['commit']}"}
    with whole_file(png) as temporary:
        fig.savefig(temporary, format="png", dpi=200, metadata=metadata)
    made = {"profile": profile, "seeds": list(seeds), **where, "minutes": (time.perf_counter() - _STARTED) / 60}
    if runs:
        made["runs"] = {key: sorted({run.environment[key] for run in runs}) for key in ("commit", "source", "hardware")}
        made["runs"]["precision"] = sorted({run.config["optim"]["precision"] for run in runs})
        minutes = sum(run.seconds for run in runs if run.done) / 60
        made["runs"] |= {"count": len(runs), "archived": sum(run.archived for run in runs), "minutes": minutes}
    if missing:
        made["missing"] = list(missing)
        print(*(f"Left out: {sentence}" for sentence in missing), sep="\n")
    made["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(png.with_suffix(".json"), {"name": name, "notebook": notebook, **made, "claims": _finite(claims)})

    print(
        pd.DataFrame([{"verdict": c["verdict"], "claim": c["id"], **_shown(c)} for c in claims]).to_string(index=False)
    )
    broken = [c for c in claims if c["kind"] == "theorem" and c["verdict"] == "fails"]
    if broken:
        lines = [f"{c['id']}: {c['statement']}: " + ", ".join(f"{k} {v}" for k, v in _shown(c).items()) for c in broken]
        raise AssertionError("a theorem fails: " + "; ".join(lines))


def tally(claims: Sequence[dict]) -> str:
    """Count verdicts in words, identities apart.

    >>> tally([claim("a", "s", predicted=1, measured=1, source="identity", unit="computation"),
    ...        claim("b", "s", predicted=1, measured=2, source="theory", unit="computation")])
    '0 hold, 1 fail, 0 undecided; 1 of 1 identities hold'
    """
    judged = [c["verdict"] for c in claims if c["source"] != "identity"]
    true = [c["verdict"] == "holds" for c in claims if c["source"] == "identity"]
    hold, fail, undecided = (judged.count(verdict) for verdict in VERDICTS)
    return f"{hold} hold, {fail} fail, {undecided} undecided; {sum(true)} of {len(true)} identities hold"


def gallery(figures_dir: str | Path) -> Path:
    """Write README.md of a folder of published figures: each with its claims, failing ones marked, and what made it.

    Above them claims.png, all of them at a glance. Needs matplotlib.

    Raises ValueError if the folder has no published figure, or a claims file or picture is damaged or missing.
    """
    folder = Path(figures_dir).expanduser()
    records = [_published(path) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise ValueError(f"{folder} holds no published figures")
    claims = [(record["name"], c) for record in records for c in record["claims"]]
    listed = {
        verdict: [f"- [{name}](#{name}): {_cell(c['statement'])}" for name, c in claims if c["verdict"] == verdict]
        for verdict in ("fails", "undecided")
    }
    _draw(records, folder / "claims.png")
    lines = ["<!-- written by `simdino gallery`; edit the notebooks instead -->", "# Figures", ""]
    lines += ["![all claims, one row for each notebook](claims.png)", ""]
    lines += [f"Of {len(claims)} claims {tally([c for _, c in claims])}."]
    if any(record["profile"] != "cpu" for record in records):
        lines += ["", "A rehearsal of the pipeline: a few steps and small sizes, at which observations need not hold."]
    for verdict, title in {"fails": "These fail:", "undecided": "The runs here do not decide these:"}.items():
        lines += ["", f"**{title}**", "", *listed[verdict]] if listed[verdict] else []
    lines += [""]
    for record in records:
        lines += _section(record, folder)
    write_text(folder / "README.md", "\n".join(lines))
    return folder / "README.md"


def _draw(records: list[dict], png: Path) -> None:
    """Draw all claims of a gallery in one picture."""
    from matplotlib import pyplot as plt  # an extra, which claims do not need

    from .plots.claims_board import plot_board
    from .plots.style import use_style

    use_style()
    fig, ax = plt.subplots(figsize=(9, 1 + 0.32 * len(records)))
    plot_board([record | {"title": _title(record)} for record in records], ax)
    with whole_file(png) as temporary:
        fig.savefig(temporary, format="png", dpi=200)
    plt.close(fig)


def _title(record: dict) -> str:
    """The heading of a figure's notebook, or its name without one."""
    path = CHECKOUT / record["notebook"]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    lines = [line for cell in cells if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines()]
    return next((line[2:].strip() for line in lines if line.startswith("# ")), record["name"])


def _section(record: dict, folder: Path) -> list[str]:
    """One figure of the gallery, in Markdown."""
    link = Path(os.path.relpath(CHECKOUT / record["notebook"], folder.resolve())).as_posix()
    seeds = record["seeds"]
    drawn = [f"seeds {', '.join(map(str, seeds))} (n = {len(seeds)})"] if seeds else []
    threads = f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}"
    made = [f"profile {record['profile']}", *drawn, record["hardware"], threads, f"torch {record['versions']['torch']}"]
    made += [f"{record['minutes']:.1f} minutes in the notebook", f"commit {record['commit']}"]
    if "runs" in record:
        r = record["runs"]
        archived = f"{r['archived']} archived runs, {r['count'] - r['archived']} trained here"
        many = f"{archived}, {r['minutes']:.1f} minutes of training"
        precision = {("bf16",): ", in bfloat16", ("bf16", "fp32"): ", some of it in bfloat16"}
        many += precision.get(tuple(r.get("precision", ())), "")
        made += [f"{many} on {', '.join(r['hardware'])}, commit {', '.join(r['commit'])}"]
    made += [f"[notebook]({link})"]
    lines = [f"## {record['name']}", "", f"**{_title(record)}**", "", f"![{record['name']}]({record['name']}.png)", ""]
    lines += [
        "| | claim | predicted | measured | 95 % interval | tolerance | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in record["claims"]:
        verdict = {"holds": "holds", "fails": "**FAILS**", "undecided": "*undecided*"}[c["verdict"]]
        lines.append(f"| {' | '.join(map(_cell, [verdict, c['statement'], *_shown(c).values()]))} |")
    return [*lines, "", " · ".join(made), ""]


def _published(path: Path) -> dict:
    """A claims file as `publish` wrote it; a damaged one, or one without its picture, is a ValueError that names it."""
    needed = {"name", "notebook", "profile", "seeds", "hardware", "threads", "versions", "commit", "minutes", "claims"}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(record, dict) or needed - record.keys():
        raise ValueError(f"{path} is not a claims file")
    if not path.with_suffix(".png").is_file():
        raise ValueError(f"{path} has no picture beside it")
    return record


def _shown(c: dict) -> dict[str, str]:
    """A claim's numbers as a reader sees them."""
    spread = f" ± {_number(c['sd'])}" if "sd" in c else f" ({c['hits']} of {c['n']})" if "hits" in c else ""
    many = f", n = {c['n']} {c['unit']}s" if c["n"] > 1 else ""
    interval = " to ".join(map(_number, c["interval"])) if c["interval"][0] != c["interval"][1] else ""
    if c["verdict"] == "undecided":
        needed = c["decisive_n"]
        interval += f"; {needed} {c['unit']}s would decide" if needed else f"; sees {_number(c['half_width'])}"
    return {
        "predicted": f"{SYMBOLS[c['relation']]} {_number(c['predicted'])}",
        "measured": _number(c["measured"]) + spread + many,
        "interval": interval,
        "tolerance": _number(c["tolerance"]) if float(c["tolerance"]) else "",
        "source": c["source"] + (", theorem" if c["kind"] == "theorem" and c["source"] == "theory" else ""),
    }


def _number(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _finite(value: object) -> object:
    """NaN and infinity as text, since JSON has no number for them."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _assigned(source: str) -> dict[str, object]:
    """The names that a cell's top level assigns, and the literals; what is no literal is a text of it."""
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                try:
                    found[target.id] = ast.literal_eval(node.value)
                except ValueError:  # as float("inf")
                    found[target.id] = math.nan
    return found
