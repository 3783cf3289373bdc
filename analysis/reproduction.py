"""The batch reproduction: `simdino figures` makes every figure, and only what is not made yet; `make figures` calls it.

What is made is decided by content: each notebook's figure stands in build/<profile>/made/<notebook>-<key>, where the
key is a hash of the notebook, of the code (docstrings and comments apart) and of the runs. Times of files say nothing.
A figure is published, that is copied to figures/, when it is whole; a kill leaves figures/ as it was.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binom
from tqdm import tqdm

from simdino.archive import archived_run
from simdino.config import Config, recognized
from simdino.interruption import stop_requests
from simdino.needed_runs import core_seconds, disk_bytes, needed_configs, parameters
from simdino.recipes import PROFILES, recipe
from simdino.runs import CHECKOUT, code_hash
from simdino.whole_files import write_text

from .claims import gallery, tally

LIVE = (
    "simdino",
    0,
)  # recipe and seed of the run that is trained even if the archive has it: a claim from its images on
NOTEBOOK_SECONDS = 20.0  # of one core, where no committed figure says how long a notebook takes
REPRODUCE = "reproduce"  # the folder in build/ of what is trained from nothing
CHANCE = 0.17  # at most, of a mean of as many new units outside the 95 % interval of the old ones: P(|N(0, 2)| > 1.96)


@dataclass(frozen=True)
class Figure:
    """One notebook of a reproduction, and where what it makes stands."""

    name: str
    folder: Path  # of the executed notebook, the picture and the claims
    log: Path
    needs: tuple[Path, ...]  # the runs that are trained for it
    runs_dir: bool  # whether the notebook takes the runs from a folder that it is given
    seconds: float  # that it takes, about

    @property
    def files(self) -> list[Path]:
        """The executed notebook, the picture and the claims: all are there, or the figure is not made."""
        return [self.folder / f"{self.name}.{kind}" for kind in ("ipynb", "png", "json")]

    @property
    def made(self) -> bool:
        """Whether it is whole."""
        return all(file.is_file() for file in self.files)


@dataclass(frozen=True)
class Plan:
    """What a reproduction makes, and the runs that it has to train first."""

    profile: str
    build: Path  # of all that is made
    published: Path  # folder of the published figures
    runs: Path  # folder of the runs
    figures: list[Figure]
    train: list[Config]
    archived: int  # runs that are read from the archive

    @property
    def to_make(self) -> list[Figure]:
        """The figures that are not made yet."""
        return [figure for figure in self.figures if not figure.made]

    @property
    def seconds(self) -> float:
        """The core-seconds that all of it takes, about."""
        return sum(map(core_seconds, self.train)) + sum(figure.seconds for figure in self.to_make)


def plan(profile: str = "cpu", *, from_nothing: bool = False) -> Plan:
    """Plan the reproduction of a profile: what is made already, what is read, what is trained.

    Args:
        profile: a key of `simdino.recipes.PROFILES`.
        from_nothing: train every run, into a folder of its own, instead of reading the archive.

    Raises:
        ValueError: an unknown profile; a notebook without a parameters cell; a damaged archive.
    """
    recognized(profile, PROFILES, "profile")
    build = CHECKOUT / "build" / (f"{profile}-{REPRODUCE}" if from_nothing else profile)
    runs = build / "runs" if from_nothing else CHECKOUT / "runs"
    code = code_hash(sorted(p for folder in ("simdino", "analysis") for p in (CHECKOUT / folder).rglob("*.py")))
    extra = [CHECKOUT / "analysis/plots/paper.mplstyle", CHECKOUT / "docs/expectations.toml"]
    shared = code + "".join(path.read_text(encoding="utf-8") for path in extra if path.is_file()) + profile
    live = recipe(LIVE[0], profile, LIVE[1]).run_name
    figures, train, archived = [], {}, set()
    for notebook in sorted((CHECKOUT / "notebooks").glob("*.ipynb")):
        content, needs = shared + _sources(notebook), []
        for config in needed_configs(notebook, profile):
            name = config.run_name
            found = None if from_nothing or (runs / name / "DONE").is_file() else archived_run(config)
            if found and name != live:
                content += found.record["sha256"] + json.dumps(found.record["results"])
                archived.add(name)
                continue
            content += name
            needs.append(runs / name)
            if not (runs / name / "DONE").is_file():
                train[name] = config
        key = hashlib.sha256(content.encode()).hexdigest()[:12]
        seconds = _seconds(CHECKOUT / "figures" / f"{notebook.stem}.json")
        folder, log = build / "made" / f"{notebook.stem}-{key}", build / "logs" / f"{notebook.stem}.log"
        takes_runs = from_nothing and "runs_dir" in parameters(notebook)
        figures.append(Figure(notebook.stem, folder, log, tuple(needs), takes_runs, seconds))
    published = CHECKOUT / "figures" if profile == "cpu" and not from_nothing else build / "figures"
    return Plan(profile, build, published, runs, figures, list(train.values()), len(archived))


def _sources(notebook: Path) -> str:
    """What a notebook says, without its outputs."""
    return json.dumps([cell["source"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]])


def _seconds(claims: Path) -> float:
    """How long a notebook took when its committed figure was made."""
    try:
        return 60.0 * json.loads(claims.read_text(encoding="utf-8"))["minutes"]
    except (OSError, ValueError, KeyError):
        return NOTEBOOK_SECONDS


def make_figures(
    profile: str = "cpu", *, jobs: int = 1, from_nothing: bool = False, options: Sequence[str] = ()
) -> int:
    """Make what is not made yet, publish it, and say what holds. Returns the exit status.

    Args:
        profile: a key of `simdino.recipes.PROFILES`.
        jobs: how many processes work at a time.
        from_nothing: train every run, and compare with the committed figures instead of replacing them.
        options: more options of snakemake, say those of a cluster.

    Raises:
        ValueError: as `plan`; a disk that is too small.
    """
    todo = plan(profile, from_nothing=from_nothing)
    print(_announced(todo, jobs), flush=True)
    status = _run(todo, jobs, options) if todo.to_make or todo.train else 0
    if status < 0:
        print("\nStopped. The same command resumes.", flush=True)
        return 128 - status
    records = publish_made(todo)
    if broken := todo.to_make:
        for figure in broken:
            print(f"{figure.name} failed: {_last_line(figure.log)} ({figure.log.relative_to(CHECKOUT)})")
        print(f"{len(broken)} of {len(todo.figures)} figures are not made.")
        return 1
    for record in records:
        for sentence in record.get("missing", ()):
            print(f"{record['name']} keeps its committed figure: {sentence}")
    whole = [record for record in records if not record.get("missing")]  # others are of less data than the committed
    pairs = [(record["name"], committed_record(record["name"]), record) for record in whole]
    found = [d for name, old, new in pairs if old for d in differences(name, old, new)]
    claims = [claim for record in records for claim in record["claims"]]
    print(f"The figures and their claims: {(todo.published / 'README.md').relative_to(CHECKOUT)}")
    print(f"{tally(claims)}; {len(found)} differ from the committed ones")
    return _judge(found, [claim for _, old, _ in pairs if old for claim in old["claims"]]) if from_nothing else 0


def _announced(todo: Plan, jobs: int) -> str:
    """What will be done, how long it takes and how much disk it needs; ValueError where the disk has less."""
    made, needed = len(todo.figures) - len(todo.to_make), sum(map(disk_bytes, todo.train)) + 100e6
    free = shutil.disk_usage(CHECKOUT).free
    said = f"{len(todo.figures)} figures, {made} of them made already; {todo.archived} runs from the archive"
    if not todo.to_make and not todo.train:
        return f"{said}: nothing to do."
    if needed > free:
        raise ValueError(f"this needs {needed / 1e9:.1f} GB of disk, and {CHECKOUT} has {free / 1e9:.1f} GB left")
    said += f", {len(todo.train)} to train: about {_time(todo.seconds / jobs)} on {jobs} core{'s' * (jobs > 1)}"
    return f"{said}, {needed / 1e9:.1f} GB of disk ({free / 1e9:.0f} GB are free)."


def _time(seconds: float) -> str:
    """A length of time in words."""
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{max(seconds / 60, 1):.0f} minutes"


def _run(todo: Plan, jobs: int, options: Sequence[str]) -> int:
    """Let snakemake make what is not made, and show how far it is; a signal's number, negative, if one stopped it."""
    config = [f"profile={todo.profile}"] + ["from_nothing=1"] * (REPRODUCE in todo.build.name)
    command = [sys.executable, "-m", "snakemake", "--keep-going", "--rerun-incomplete", "--nolock", "--quiet", "all"]
    command += ["--rerun-triggers", "mtime", *(options or ["--cores", str(jobs)]), "--config", *config]
    log = todo.build / "logs/snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for figure in todo.to_make:
        figure.log.unlink(missing_ok=True)
    with open(log, "w", encoding="utf-8") as file, stop_requests() as stop:
        at = {"cwd": CHECKOUT, "stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command, **at)
        for _ in _display(todo, jobs):
            if process.poll() is not None or stop.number:
                break
        while process.poll() is None and not stop.number:  # it ends a moment after the last file
            time.sleep(0.1)
        if stop.number:
            _end(process)
            return -stop.number
    return process.returncode


def _end(process: subprocess.Popen) -> None:
    """End a process and all that it has begun: at a signal runs keep where they are."""
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if process.poll() is not None and number == signal.SIGTERM:
            time.sleep(1)  # for its children


def _display(todo: Plan, jobs: int) -> Iterator[None]:
    """Show how far the work is, once a second: what runs now, and the time left. Elsewhere a line for each figure."""
    terminal, began, total = sys.stderr.isatty(), time.time(), todo.seconds
    costs = {config.run_name: core_seconds(config) for config in todo.train}
    open_figures, open_runs, started, done = list(todo.to_make), dict(costs), {}, 0.0
    form = "{percentage:3.0f}% |{bar}| {postfix}"
    with tqdm(total=100, bar_format=form, disable=not terminal, leave=True) as bar:
        while open_figures or open_runs:
            yield
            now, names, share = time.time(), [], 0.0
            for name in [name for name in open_runs if (todo.runs / name / "DONE").is_file()]:
                done += open_runs.pop(name)
            for name, cost in open_runs.items():
                if (todo.runs / name / "config.json").is_file():
                    began_at = started.setdefault(name, now)
                    share += min(now - began_at, 0.9 * cost)
                    names.append(name)
            for figure in [figure for figure in open_figures if figure.made]:
                open_figures.remove(figure)
                done += figure.seconds
                if not terminal:
                    left = _time((now - began) * (total - done) / max(done, 1))
                    made = len(todo.figures) - len(open_figures)
                    print(f"{made} of {len(todo.figures)} figures: {figure.name}; about {left} left", flush=True)
            for figure in open_figures:
                if figure.log.is_file():
                    share += min(now - started.setdefault(figure.name, now), 0.9 * figure.seconds)
                    names.append(figure.name)
            part = (done + share) / max(total, 1e-9)
            left = (now - began) * (1 - part) / part if part > 0.03 else total / jobs
            bar.n = min(99, round(100 * part))
            bar.set_postfix_str(f"{_time(left)} left · {', '.join(names[:4])}")
            time.sleep(0.5)
        bar.n = 100
        bar.set_postfix_str("made")


def _last_line(log: Path) -> str:
    """What a log ends with."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        return "it was not begun"
    return lines[-1][:300] if lines else "it says nothing"


def publish_made(todo: Plan) -> list[dict]:
    """Copy each figure that is made to the published ones, each file whole or not at all, and write their gallery.

    A figure for which data were missing leaves the published one in its place, if there is one.

    Returns:
        The claims files of all figures that are made.
    """
    records = []
    for figure in todo.figures:
        if not figure.made:
            continue
        _, picture, claims = figure.files
        record = json.loads(claims.read_text(encoding="utf-8"))
        records.append(record)
        kept = todo.published / claims.name
        if record.get("missing") and kept.is_file():
            continue
        todo.published.mkdir(parents=True, exist_ok=True)
        _keep_committed(kept)
        for source in (picture, claims):
            target = todo.published / source.name
            if not target.is_file() or target.read_bytes() != source.read_bytes():
                temporary = target.with_suffix(f"{target.suffix}.tmp")
                shutil.copyfile(source, temporary)
                os.replace(temporary, target)
    if records:
        gallery(todo.published)
    return records


def _keep_committed(claims: Path) -> None:
    """Keep the claims that came with the code beside what is made here, for comparison where there is no git."""
    copy = CHECKOUT / "build/committed" / claims.name
    if claims.parent == CHECKOUT / "figures" and claims.is_file() and not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_text(copy, claims.read_text(encoding="utf-8"))


def committed_record(name: str) -> dict | None:
    """Read the committed claims of a notebook: from git where it is there, else as the files came; None without any."""
    try:
        shown = ["git", "-C", str(CHECKOUT), "show", f"HEAD:./figures/{name}.json"]
        return json.loads(subprocess.run(shown, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        pass
    for folder in ("build/committed", "figures"):
        if (path := CHECKOUT / folder / f"{name}.json").is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return None


@dataclass(frozen=True)
class ChangedClaim:
    """A claim that came out otherwise than the committed one."""

    where: str
    turned: bool  # from holds to fails, or back
    sampled: bool  # of units that chance decides on, and not of a computation
    said: str


def differences(name: str, committed: dict, record: dict) -> list[ChangedClaim]:
    """List the claims whose verdict is another, or whose number has left the committed one's 95 % interval.

    A computation, which has no interval, has left if it is off by more than its tolerance and 0.1 %.

    Args:
        name: of the notebook.
        committed: the claims file as it was.
        record: as it is.
    """
    old, found = {claim["id"]: claim for claim in committed["claims"]}, []
    for new in record["claims"]:
        before = old.get(new["id"])
        if before is None or "verdict" not in before or before["unit"] != new["unit"]:
            continue  # another claim
        measured, (low, high) = float(new["measured"]), map(float, before["interval"])
        slack = 1e-3 * abs(float(before["measured"])) + float(before["tolerance"]) if low == high else 0.0
        left = not low - slack <= measured <= high + slack and measured == measured
        if new["verdict"] != before["verdict"] or left:
            turned = {new["verdict"], before["verdict"]} == {"holds", "fails"}
            said = f"{before['verdict']}, {before['measured']:.4g} in [{low:.4g}, {high:.4g}] → "
            said += f"{new['verdict']}, {measured:.4g}"
            found.append(ChangedClaim(f"{name}: {new['id']}", turned, before["unit"] != "computation" and left, said))
    return found


def _judge(found: Sequence[ChangedClaim], committed: Sequence[dict]) -> int:
    """Whether a reproduction agrees: no verdict has turned, and no more numbers have left than chance allows."""
    for difference in found:
        print(f"  {difference.where}: {difference.said}")
    left, turned = sum(d.sampled for d in found), sum(d.turned for d in found)
    n = sum(claim.get("unit", "computation") != "computation" for claim in committed)
    chance = float(binom.sf(left - 1, n, CHANCE)) if left else 1.0
    print(f"{turned} verdicts turned; {left} of {n} numbers left their intervals (p = {chance:.2g})")
    return 1 if turned or chance < 1e-3 else 0
