"""Claims as data: what a notebook predicted and measured, published beside its figure and gathered in a gallery.

`simdino gallery figures` writes figures/README.md from the figures and claims in that folder.
"""

import ast
import difflib
import json
import math
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, SupportsFloat

import numpy as np
import pandas as pd
import torch

from simdino.config import recognized
from simdino.recipes import PROFILES
from simdino.runs import CHECKOUT, Run, environment, read_json, write_json, write_text

SYMBOLS = {"equal": "=", "at_most": "≤", "at_least": "≥"}
_STARTED = time.perf_counter()  # a notebook imports this module in its first cell


def check_parameters(In: list[str]) -> None:
    """Refuse parameters that a notebook does not declare: papermill only logs them and runs on with the defaults.

    `In` is IPython's list of the sources executed so far. papermill puts a cell that begins "# Parameters" right
    after the cell tagged `parameters`; each name that it assigns must be assigned there too. Without such a cell
    (a notebook opened by hand) only `profile` is: it is published as typed, and any name but those of `PROFILES`
    would have run as one of them.

    Raises ValueError naming the unknown parameter or profile and the nearest right one.
    """
    profile = re.findall(r"^profile = [\"']([^\"'\n]*)", "\n".join(In), re.MULTILINE)[-1:]
    if profile:
        recognized(profile[0], PROFILES, "profile")
    injected = [i for i, source in enumerate(In) if source.startswith("# Parameters\n")]
    if not injected:
        return
    declared = _assigned(In[injected[0] - 1]) if injected[0] > 0 else []
    for name in (name for i in injected for name in _assigned(In[i])):
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1, cutoff=0)
            hint = f"; did you mean {close[0]!r}? Declared: {', '.join(declared)}" if close else "; it declares none"
            raise ValueError(f"the notebook has no parameter {name!r}{hint}")


def claim(
    id: str,
    statement: str,
    *,
    predicted: SupportsFloat,
    measured: SupportsFloat | Sequence[float],
    tolerance: SupportsFloat = 0.0,
    relation: Literal["equal", "at_most", "at_least"] = "equal",
    kind: Literal["theorem", "observation"] = "theorem",
) -> dict:
    """A prediction beside its measurement, and whether it holds, as data.

    equal: |measured − predicted| ≤ tolerance; at_most: measured ≤ predicted + tolerance; at_least: measured ≥
    predicted − tolerance. NaN never holds.

    Args:
        id: short and unique within a notebook.
        statement: what is claimed, in words.
        predicted: the number that theory, or another measurement, gives.
        measured: a number, or one for each seed (n,): then their mean is judged, and kept with its sample sd and n.
        tolerance: absolute.
        relation: of measured to predicted.
        kind: a theorem that fails stops `publish`, an observation that fails is published as failing.

    Raises:
        ValueError: a negative or NaN tolerance, an unknown relation or kind.

    >>> claim("A1", "the maximum is reached", predicted=1.0, measured=0.99, tolerance=0.1)["holds"]
    True
    """
    samples = np.asarray(measured, dtype=float)
    predicted, measured, tolerance = float(predicted), float(samples.mean()), float(tolerance)
    if not tolerance >= 0:
        raise ValueError(f"tolerance of claim {id!r} must not be negative, not {tolerance}")
    if relation == "equal":
        holds = measured == predicted or abs(measured - predicted) <= tolerance
    elif relation == "at_most":
        holds = measured <= predicted + tolerance
    elif relation == "at_least":
        holds = measured >= predicted - tolerance
    else:
        raise ValueError(f"relation of claim {id!r} must be one of {', '.join(SYMBOLS)}, not {relation!r}")
    if kind not in ("theorem", "observation"):
        raise ValueError(f"kind of claim {id!r} must be theorem or observation, not {kind!r}")
    record = {"id": id, "statement": statement, "predicted": predicted, "measured": measured}
    record |= {"tolerance": tolerance, "relation": relation, "kind": kind, "holds": holds}
    if samples.ndim:
        record |= {"n": samples.size} | ({"sd": float(samples.std(ddof=1))} if samples.size > 1 else {})
    return record


def publish(
    fig: "matplotlib.figure.Figure",  # noqa: F821  a string, since matplotlib is an extra
    claims: list[dict],
    *,
    name: str,
    out_dir: str | Path | None,
    profile: str,
    seeds: Sequence[int] = (),
    runs: Sequence[Run] = (),
) -> None:
    """Save a notebook's figure and claims as `<out_dir>/<name>.png` and `.json`, and print the claims.

    out_dir None is build/figures of the project, whatever folder the notebook runs in: what somebody tries out
    by hand does not overwrite the published figures.

    The JSON says what made them: profile, seeds, hardware, threads, versions, commit, minutes since the notebook
    began; and of the runs that they are about their number, the minutes that they took, and the commits, sources,
    hardware and precisions that trained them. Each file is written whole or not at all. `name` is the notebook's,
    without its suffix.

    Raises AssertionError naming the theorems that do not hold, after writing both files; ValueError if there
    are no claims or two have the same id.
    """
    ids = [c["id"] for c in claims]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"claims of {name} must have distinct ids, and at least one is needed; they are {ids}")
    where = environment("cuda" if torch.cuda.is_available() else "cpu")
    notebook = f"notebooks/{name}.ipynb"
    png = Path(out_dir or CHECKOUT / "build/figures") / f"{name}.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Source": notebook, "Comment": f"profile {profile}, commit {where['commit']}"}
    fig.savefig(png.with_suffix(".png.tmp"), format="png", dpi=200, metadata=metadata)
    os.replace(png.with_suffix(".png.tmp"), png)
    made = {"profile": profile, "seeds": list(seeds), **where, "minutes": (time.perf_counter() - _STARTED) / 60}
    if runs:
        made["runs"] = {key: sorted({run.environment[key] for run in runs}) for key in ("commit", "source", "hardware")}
        made["runs"]["precision"] = sorted({run.config["optim"]["precision"] for run in runs})
        seconds = [read_json(run.path / "DONE")["seconds"] for run in runs if run.done]
        made["runs"] |= {"count": len(runs), "minutes": sum(seconds) / 60}
    made["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(png.with_suffix(".json"), {"name": name, "notebook": notebook, **made, "claims": _finite(claims)})

    rows = [{"": "holds" if c["holds"] else "FAILS", "claim": c["id"], **_shown(c), "kind": c["kind"]} for c in claims]
    print(pd.DataFrame(rows).to_string(index=False))
    broken = [c for c in claims if c["kind"] == "theorem" and not c["holds"]]
    if broken:
        lines = [f"{c['id']}: {c['statement']}: " + ", ".join(f"{k} {v}" for k, v in _shown(c).items()) for c in broken]
        raise AssertionError("a theorem does not hold: " + "; ".join(lines))


def gallery(figures_dir: str | Path) -> Path:
    """Write README.md of a folder of published figures: each with its claims, failing ones marked, and what made it.

    Above them claims.png, all of them at a glance. Needs matplotlib.

    Raises ValueError if the folder has no published figure, or a claims file or picture is damaged or missing.
    """
    folder = Path(figures_dir)
    records = [_published(path) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise ValueError(f"{folder} holds no published figures")
    claims = [(record["name"], c) for record in records for c in record["claims"]]
    failing = [f"- [{name}](#{name}): {_cell(c['statement'])} ({c['kind']})" for name, c in claims if not c["holds"]]
    _draw(records, folder / "claims.png")
    lines = ["<!-- written by `simdino gallery`; edit the notebooks instead -->", "# Figures", ""]
    lines += ["![all claims, one row for each notebook](claims.png)", ""]
    lines += [f"{len(claims) - len(failing)} of {len(claims)} claims hold."]
    if any(record["profile"] != "cpu" for record in records):
        lines += ["", "A rehearsal of the pipeline: a few steps and small sizes, at which observations need not hold."]
    if failing:
        lines += ["", "**These do not:**", "", *failing]
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
    fig.savefig(png.with_suffix(".tmp"), format="png", dpi=200)
    os.replace(png.with_suffix(".tmp"), png)
    plt.close(fig)


def _title(record: dict) -> str:
    """The heading of a figure's notebook, or its name without one."""
    path = CHECKOUT / record["notebook"]
    cells = json.loads(path.read_text())["cells"] if path.is_file() else []
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
        many = f"{r['count']} runs, {r['minutes']:.1f} minutes of training" if "count" in r else "runs trained"
        precision = {("bf16",): ", in bfloat16", ("bf16", "fp32"): ", some of it in bfloat16"}
        many += precision.get(tuple(r.get("precision", ())), "")
        made += [f"{many} on {', '.join(r['hardware'])}, commit {', '.join(r['commit'])}"]
    made += [f"[notebook]({link})"]
    lines = [f"## {record['name']}", "", f"**{_title(record)}**", "", f"![{record['name']}]({record['name']}.png)", ""]
    lines += ["| | claim | predicted | measured | tolerance | kind |", "|---|---|---|---|---|---|"]
    for c in record["claims"]:
        cells = ["holds" if c["holds"] else "**FAILS**", c["statement"], *_shown(c).values(), c["kind"]]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return [*lines, "", " · ".join(made), ""]


def _published(path: Path) -> dict:
    """A claims file as `publish` wrote it; a damaged one, or one without its picture, is a ValueError that names it."""
    needed = {"name", "notebook", "profile", "seeds", "hardware", "threads", "versions", "commit", "minutes", "claims"}
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(record, dict) or needed - record.keys():
        raise ValueError(f"{path} is not a claims file")
    if not path.with_suffix(".png").is_file():
        raise ValueError(f"{path} has no picture beside it")
    return record


def _shown(c: dict) -> dict[str, str]:
    """A claim's numbers as a reader sees them."""
    measured = _number(c["measured"]) + (f" ± {_number(c['sd'])}" if "sd" in c else "")
    measured += f" (n = {c['n']})" if "n" in c else ""
    predicted = f"{SYMBOLS[c['relation']]} {_number(c['predicted'])}"
    return {"predicted": predicted, "measured": measured, "tolerance": _number(c["tolerance"])}


def _number(x: float | str) -> str:
    return x if isinstance(x, str) else f"{x:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _finite(claims: list[dict]) -> list[dict]:
    """NaN and infinity as text, since JSON has no number for them."""
    return [{k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in c.items()} for c in claims]


def _assigned(source: str) -> list[str]:
    """The names that a cell's top level assigns."""
    targets: list[ast.expr] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return [t.id for t in targets if isinstance(t, ast.Name)]
