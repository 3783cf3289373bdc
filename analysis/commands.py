"""The command line: `simdino train | report | preflight | probe | batch`, the same as `python -m simdino ...`.

`simdino COMMAND --help` explains each. Three more write files of this project: `simdino gallery` (figures/README.md),
`simdino conventions` (docs/conventions.md) and `simdino recipes` (docs/recipes.md). A mistake is one sentence and an
exit status that is not 0.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from simdino.config import PUBLISHED_EPS, recognized
from simdino.losses import official_scaling
from simdino.recipes import PROFILES, recipe
from simdino.runs import CHECKOUT, environment
from simdino.whole_files import write_json, write_text


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names with the others."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: simdino COMMAND ...\n")
        print("\n".join(f"  {name:12s} {command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()))
        print("\nsimdino COMMAND --help explains one of them.")
        sys.exit(0 if arguments else 2)
    try:
        command = COMMANDS[recognized(arguments[0], COMMANDS, "command")]
    except ValueError as error:
        sys.exit(f"simdino: {error}")
    for stream in (sys.stdout, sys.stderr):  # of a terminal, or a file, that has no Greek letters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    warnings.formatwarning = lambda message, *_, **__: f"simdino {arguments[0]}: {message}\n"
    try:
        command(arguments[1:])
        sys.stdout.flush()
    except OSError as error:  # what is printed goes to a full disk, or who reads it has gone (`| head -1`)
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(1 if isinstance(error, BrokenPipeError) else f"simdino {arguments[0]}: {_one_line(error)}")
    except KeyboardInterrupt as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"simdino {arguments[0]}: {str(stopped) or 'interrupted'}", file=sys.stderr)
        sys.exit(getattr(stopped, "status", 128 + signal.SIGINT))


def train_command(arguments: list[str]) -> None:
    """Train a recipe into a run directory."""
    from simdino import train

    train.main(arguments)


def batch_command(arguments: list[str]) -> None:
    """List the runs of a profile with what they cost, or train some of them."""
    from simdino import batch

    batch.main(arguments)


def report_command(arguments: list[str]) -> None:
    """Print what files of features, or runs, say: measures, a judgement, what to look at next."""
    from .reporting.page import one_page, several_pages

    parser = _parser("report", report_command)
    parser.add_argument(
        "what",
        nargs="+",
        help="features (n, d) in a file, or a run directory; several stand side by side (docs/what_can_be_read.md)",
    )
    parser.add_argument("--labels", metavar="FILE", help="class of each row: arrays, a table, or text with one a line")
    parser.add_argument(
        "--features", metavar="NAMES", help="the array, or the columns A,B or f*, where a file leaves that open"
    )
    parser.add_argument(
        "--label", metavar="NAME", help="the array or column of the labels, where it is called otherwise"
    )
    parser.add_argument("--eps", type=float, help=f"the paper's ε, for features (default: {PUBLISHED_EPS:.4f})")
    parser.add_argument(
        "--judged-as",
        choices=("head", "backbone"),
        help="judge features as those of a head, which a loss asks to spread (default), or of a backbone",
    )
    parser.add_argument("--json", type=_path, help="write the report there, too; of several, each by its name")
    given = parser.parse_args(arguments)
    options = {name: getattr(given, name) for name in ("labels", "eps", "judged_as", "features", "label")}
    try:
        _check_output(given.json)
    except ValueError as error:
        sys.exit(f"simdino report: {error}")
    asked, pages, failed = list(dict.fromkeys(given.what)), {}, []
    runs = [what for what in asked if Path(what).expanduser().is_dir()]
    for what in asked:
        try:  # a run beside files has its own labels, ε and layers
            pages[what] = one_page(what, **({} if what in runs and runs != asked else options))
        except (ValueError, OSError) as error:
            failed.append(f"simdino report: {f'{what}: ' * (len(asked) > 1)}{_one_line(error)}")
    if pages:
        print(several_pages(pages) if len(asked) > 1 else pages[asked[0]])
    if pages and given.json:
        told = {name: json.loads(page.to_json()) for name, page in pages.items()}
        try:
            write_json(given.json, told if len(asked) > 1 else told[asked[0]])
        except OSError as error:
            failed.append(f"simdino report: {_one_line(error)}")
    if failed:
        sys.exit("\n".join(failed))


def preflight_command(arguments: list[str]) -> None:
    """Say before a run what its expansion term γ·R can be, and what to change if total collapse is stable.

    Of one of DINO's recipes, `simdino preflight RECIPE`, it says whether the differences between images survive.
    """
    from .planning import preflight, survival

    if arguments and not arguments[0].startswith("-"):
        try:
            print(survival(recipe(arguments[0])))
        except ValueError as error:
            sys.exit(f"simdino preflight: {_one_line(error)}")
        return
    parser = _parser("preflight", preflight_command)
    parser.add_argument("--d", type=int, required=True, help="dimension of the features")
    parser.add_argument("--batch", type=int, required=True, help="images on one rank")
    parser.add_argument(
        "--eps", type=float, required=True, help="the paper's ε; with --official, the code's (its square)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="ranks (default: 1)")
    parser.add_argument("--gathered", action="store_true", help="covariances are summed over ranks (reduce_cov 1)")
    parser.add_argument("--official", action="store_true", help="eps and γ as in the official code")
    parser.add_argument("--gamma", type=float, help="weight of the expansion (default: the official code's rule)")
    parser.add_argument("--no-stop-gradient", action="store_true", help="the targets carry gradients")
    parser.add_argument(
        "--rate-of",
        choices=("student", "mean"),
        help="whose rate (default: the student's; with --official of the mean)",
    )
    parser.add_argument("--images", type=int, help="training images (default: many more than a batch)")
    parser.add_argument("--local-crops", type=int, default=0, help="beside two global ones (default: 0; official: 10)")
    parser.add_argument("--measured", type=float, help="a logged expansion term to judge")
    given = parser.parse_args(arguments)
    try:
        for name in ("d", "batch", "ranks", "eps"):
            if not getattr(given, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(given, name)}")
        eps, gamma = official_scaling(given.d, given.batch, given.eps, world_size=given.ranks, gathered=given.gathered)
        print(
            preflight(
                n=given.batch,
                d=given.d,
                eps=eps if given.official else given.eps,
                gamma=gamma if given.gamma is None else given.gamma,
                world_size=given.ranks,
                gathered=given.gathered,
                stop_gradient=not given.no_stop_gradient,
                rate_of=given.rate_of or ("mean" if given.official else "student"),
                images=given.images,
                local_crops=given.local_crops,
                measured=given.measured,
            )
        )
    except ValueError as error:
        sys.exit(f"simdino preflight: {_one_line(error)}")


def probe_command(arguments: list[str]) -> None:
    """Measure what frozen backbones are worth on data: k-NN, few shots, linear probes, and tasks of patches."""
    from .probes.backbone import load_backbones, read_config
    from .probes.results import results_table
    from .probes.tasks import TASKS, as_trained, data_kind, probe_backbones

    parser = _parser("probe", probe_command)
    parser.add_argument(
        "what", nargs="+", help="run directory, weights file, timm model, or the baselines pixels, random"
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="SET",
        help="photos, digits, NAME=PATH (cifar10=...), an .npz or a folder; may be repeated (default: the run's)",
    )
    parser.add_argument("--tasks", help=f"comma-separated: {', '.join(TASKS)}; by default all that the data allow")
    parser.add_argument("--block", type=int, default=-1, help="block whose output is read (default: the last)")
    parser.add_argument(
        "--branch",
        default="teacher",
        help="network of a training file: teacher (default), student, or what the names of its tensors begin with",
    )
    parser.add_argument(
        "--config",
        help="of weights whose file does not tell it: JSON such as '{\"heads\": 12}', or a config.json",
    )
    parser.add_argument(
        "--size",
        type=_size,
        help="pixels, SIDE or HEIGHTxWIDTH (default: that of the runs, on images with labels; else the images' own)",
    )
    parser.add_argument("--train", type=int, help="training images to take at random (default: all)")
    parser.add_argument("--test", type=int, help="test images to take at random (default: all)")
    parser.add_argument(
        "--sequences", type=int, metavar="N", help="use only the first N videos of each set (default: all)"
    )
    parser.add_argument(
        "--ignore", type=int, help="what masks call pixels without a label (-1: every value is a class)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of whatever is random (default: 0)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--json", type=_path, help="write the results there, too")
    given = parser.parse_args(arguments)
    try:
        _check_output(given.json)
        (data, sides), notes = as_trained(given.what), []
        if not given.data and len(data) != 1:
            why = f"the runs were trained on {' and on '.join(data)}" if data else "no run is given, which has its own"
            raise ValueError(f"say with --data what to measure on: {why}")
        if not given.data:
            given.data = data
            notes.append(f"on the data of training, --data {data[0]}")
        if given.size is None and len(sides) == 1 and {data_kind(each) for each in given.data} == {"labels"}:
            (given.size,) = sides
            notes.append(f"at the size of training, --size {given.size}")
        of_weights = {"branch": given.branch, "config": given.config and read_config(given.config)}
        backbones = load_backbones(given.what, block=given.block, device=given.device, **of_weights)
        notes += [f"{backbone.name}: {note}" for backbone in backbones for note in backbone.notes]
        tasks = given.tasks.split(",") if given.tasks else None
        passed = ("size", "train", "test", "sequences", "ignore", "seed")
        options = {name: getattr(given, name) for name in passed}
        results = probe_backbones(backbones, given.data, tasks=tasks, **options, progress=True)
        if given.json:
            asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
            made = environment(str(backbones[0].device)) | {"asked": asked}
            rows = json.loads(results.to_json(orient="records", double_precision=15))
            write_json(given.json, made | {"read": results.attrs["read"], "notes": notes, "results": rows})
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        sys.exit(f"simdino probe: {_one_line(error)}")
    print("\n".join([*notes, *results.attrs["read"], results_table(results)]))


def figures_command(arguments: list[str]) -> None:
    """Make every figure that is not made yet, from the archive of recorded runs or from nothing."""
    from .reproduction import make_figures

    parser = _parser("figures", figures_command)
    parser.add_argument("--profile", default="cpu", help=f"{', '.join(PROFILES)} (default: cpu)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (default: one a core)")
    parser.add_argument(
        "--from-nothing", action="store_true", help="train every run, for hours, and compare with the committed figures"
    )
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="of snakemake, such as -- --profile FOLDER")
    given = parser.parse_args(arguments)
    try:
        if given.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, not {given.jobs}")
        more = {"from_nothing": given.from_nothing, "options": given.options}
        sys.exit(make_figures(given.profile, jobs=given.jobs, **more))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"simdino figures: {_one_line(error)}")


def archive_command(arguments: list[str]) -> None:
    """Write finished runs into the archive, study by study."""
    from simdino.needed_runs import study_configs
    from simdino.studies import STUDIES

    from .runs.archiving import archive_study

    parser = _parser("archive", archive_command)
    parser.add_argument("studies", nargs="+", help=f"recipes (the small ones themselves), {', '.join(STUDIES)}")
    parser.add_argument("--profile", default="cpu", help="that trained them (default: cpu)")
    parser.add_argument("--root", default="runs", help="directory of the runs (default: runs)")
    options = parser.parse_args(arguments)
    for study in options.studies:
        try:
            runs = [
                Path(options.root).expanduser() / config.run_name for config in study_configs(study, options.profile)
            ]
            path = archive_study(study, runs, profile=options.profile)
        except (ValueError, OSError) as error:
            sys.exit(f"simdino archive: {_one_line(error)}")
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def gallery_command(arguments: list[str]) -> None:
    """Write README.md of a folder of published figures: each with its claims, and what made it."""
    from .claims import gallery

    parser = _parser("gallery", gallery_command)
    parser.add_argument("figures", help="folder with the published .png and .json files")
    try:
        print(gallery(parser.parse_args(arguments).figures))
    except (ValueError, OSError) as error:
        sys.exit(f"simdino gallery: {_one_line(error)}")


def conventions_command(arguments: list[str]) -> None:
    """Write docs/conventions.md: one embedding under the definitions that papers and other packages use."""
    from .peer_definitions import PAGE, conventions_page

    _parser("conventions", conventions_command).parse_args(arguments)
    write_text(PAGE, conventions_page())
    print(PAGE)


def recipes_command(arguments: list[str]) -> None:
    """Renew the tables of docs/recipes.md: what each recipe costs and reaches."""
    from simdino.recipes import recipes_page

    _parser("recipes", recipes_command).parse_args(arguments)
    page = CHECKOUT / "docs/recipes.md"
    try:
        write_text(page, recipes_page(page.read_text(encoding="utf-8")))
    except OSError as error:
        sys.exit(f"simdino recipes: {_one_line(error)}")
    print(page)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train_command,
    "report": report_command,
    "preflight": preflight_command,
    "probe": probe_command,
    "batch": batch_command,
    "figures": figures_command,
    "archive": archive_command,
    "gallery": gallery_command,
    "conventions": conventions_command,
    "recipes": recipes_command,
}


def _parser(name: str, command: Callable[[list[str]], None]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"simdino {name}", description=command.__doc__, allow_abbrev=False)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _check_output(path: Path | None) -> None:
    """Refuse, before any work, a file that could not be written at its end."""
    if path and not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.absolute().parent}")
    if path and path.is_dir():
        raise ValueError(f"{path} is a folder, and --json names a file")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _size(text: str) -> int | tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError("give SIDE or HEIGHTxWIDTH, such as 224 or 224x448")
    sides = tuple(int(side) for side in text.split("x"))
    return sides if len(sides) == 2 else sides[0]
