"""The runs that notebooks and the batch reproduction need: which, from where, what they cost, a process for several.

simdino batch --profile cpu                       a table of what a profile trains, with the expected minutes
simdino batch runs/RUN ... --profile cpu          train these runs, one after another
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simdino.archive import ARCHIVE, archived_run
from simdino.config import NAME_LENGTH, Config
from simdino.needed_runs import core_seconds, training_table
from simdino.recipes import PROFILES, recipe
from simdino.runs import CHECKOUT, Run
from simdino.studies import STUDIES, settings
from simdino.train import REFUSALS, RUNS, get_run, join_ranks, ranks

WITHOUT_ASKING = 600.0  # seconds of training that `get_runs` begins by itself


def get_runs(
    configs: Sequence[Config],
    root: str | Path | None = None,
    *,
    device: str | None = None,
    train: bool = False,
    archive: str | Path = ARCHIVE,
) -> list[Run]:
    """Return the runs of configurations: read on disk or in the archive, and trained where neither has them.

    It says how many come from where, and how long those to train will take, measured on a few steps of the first.

    Args:
        configs: what was trained.
        root: the directory of the runs; None is runs/ of the checkout.
        device: "cpu" or "cuda"; None is cuda where there is one.
        train: whether to train also what takes more than ten minutes.
        archive: the folder of archived runs.

    Returns:
        The runs in the order of the configurations. An archived one has no features (`simdino.archive.ArchivedRun`);
        `get_run` gives one that has.

    Raises:
        ValueError: training of more than ten minutes without `train`; as in `simdino.train.get_run`.
    """
    found, folder = {}, Path(root or RUNS).expanduser()
    for config in {config.run_name: config for config in configs}.values():
        if (folder / config.run_name / "DONE").is_file():
            found[config.run_name] = Run.load(folder / config.run_name)
        elif run := archived_run(config, archive):
            found[config.run_name] = run
    absent = [config for config in configs if config.run_name not in found]
    absent = list({config.run_name: config for config in absent}.values())
    archived = sum(run.archived for run in found.values())
    said = f"{archived} runs from the archive, {len(found) - archived} from {folder}, {len(absent)} to train"
    if absent:
        seconds = sum(map(core_seconds, absent)) * _pace(absent[0], device)
        said += f" (about {max(seconds / 60, 0.1):.1f} minutes)"
        if seconds > WITHOUT_ASKING and not train:
            raise ValueError(f"{said}: say train=True to begin, or take fewer seeds or recipes")
    print(said, flush=True)
    for config in absent:
        found[config.run_name] = get_run(config, root, device=device)
    return [found[config.run_name] for config in configs]


def _pace(config: Config, device: str | None, steps: int = 10) -> float:
    """The seconds that this machine takes over those that `core_seconds` expects, by a few steps of a run."""
    short = replace(config, optim=replace(config.optim, steps=steps), record=replace(config.record, snapshots=1))
    with tempfile.TemporaryDirectory() as folder:
        seconds = get_run(short, folder, device=device, progress=False).seconds
    return seconds / core_seconds(short)


def config_of_run(run: str, profile: str) -> Config:
    """Return the configuration of a run, given the name of its directory.

    A name that was cut, and so does not say its recipe in full, is looked up among the settings of the studies.

    Raises:
        ValueError: what is not the name of a run; one that this version or profile gives to nothing; one that does
            not say its recipe in full, as a path in it was written with "_", or as it was cut, and is of no study.
    """
    match = re.fullmatch(r"(.+)-s(\d+)-[0-9a-f]{10}", run)
    if not match:
        raise ValueError(f"{run!r} is not the name of a run, <recipe>-s<seed>-<hash>")
    name, seed = match[1], int(match[2])
    names = [name]
    if cut := len(name) >= NAME_LENGTH:
        points = (point for study in STUDIES for point in settings(study, profile))
        names = [point.recipe for point in points if point.recipe.startswith(name)]
    configs = [recipe(name, profile, seed) for name in names]
    for config in configs:
        if config.run_name == run:
            return config
    if cut or "data.root=" in name:
        command = f"simdino train {name.partition('@')[0]}@... --profile {profile} --seed {seed}"
        raise ValueError(f"{run} does not say its recipe in full; {command} trains it")
    raise ValueError(f"{run} is of another version or profile: here it is {configs[0].run_name}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a mistake is one sentence and an exit status that is not 0, after the other runs."""
    description = "Tabulate what the notebooks train under a profile, or train some of these runs."
    parser = argparse.ArgumentParser(prog="simdino batch", description=description, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", help="run directories, or the DONE in them (default: print the table)")
    parser.add_argument("--profile", default="cpu", help=f"{', '.join(PROFILES)} (default: cpu)")
    parser.add_argument("--notebooks", default=CHECKOUT / "notebooks", type=Path, help="folder (default: notebooks)")
    options, failed = parser.parse_args(arguments), []
    try:
        if not options.runs:
            print(training_table(sorted(options.notebooks.expanduser().glob("*.ipynb")), options.profile))
        paths = [
            path.parent if path.name == "DONE" else path for path in (Path(run).expanduser() for run in options.runs)
        ]
        wanted = [(path, config_of_run(path.name, options.profile)) for path in paths]
        join_ranks()
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for path, config in wanted:
        try:
            get_run(config, path.parent)
        except REFUSALS as error:
            failed.append(f"{parser.prog}: {path}: {error}\n")
    if failed and ranks().rank == 0:
        parser.exit(1, "".join(failed))
