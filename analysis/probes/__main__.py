"""What backbones are worth on data, as a table and a JSON.

python -m analysis.probes <run | weights file | timm name | pixels | random> ... --data <set> ... [--tasks knn,...]
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from analysis.probes.backbone import load_backbones
from analysis.probes.results import table
from analysis.probes.tasks import TASKS, Size, evaluate
from simdino.runs import environment, write_json


def main(arguments: list[str] | None = None) -> None:
    """Command line: print what backbones are worth on data."""
    parser = argparse.ArgumentParser(prog="python -m analysis.probes", description=main.__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="+", help="run directory, weights file, timm model, or the baselines pixels, random"
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="SET",
        help="photos, digits, NAME=PATH (cifar10=...), an .npz or a folder; may be repeated",
    )
    parser.add_argument("--tasks", help=f"of {', '.join(TASKS)}; by default all that the data allow")
    parser.add_argument("--block", type=int, default=-1, help="whose output is read (default: the last)")
    parser.add_argument(
        "--branch", choices=("teacher", "student"), default="teacher", help="network of a training file"
    )
    parser.add_argument("--size", type=_size, help="pixels, SIDE or HEIGHTxWIDTH (default: the images' own)")
    parser.add_argument("--train", type=int, help="training images to take at random (default: all)")
    parser.add_argument("--test", type=int, help="test images to take at random (default: all)")
    parser.add_argument("--sequences", type=int, help="of each video set, the first ones (default: all)")
    parser.add_argument("--ignore", type=int, help="what masks call pixels without a label, say 255")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is random (default: 0)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    given = parser.parse_args(arguments)
    try:
        if given.json and not given.json.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {given.json.absolute().parent}")
        backbones = load_backbones(given.what, block=given.block, branch=given.branch, device=given.device)
        tasks = given.tasks.split(",") if given.tasks else None
        passed = ("size", "train", "test", "sequences", "ignore", "seed")
        options = {name: getattr(given, name) for name in passed}
        results = evaluate(backbones, given.data, tasks=tasks, **options, progress=True)
        if given.json:
            asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
            made = environment(str(backbones[0].device)) | {"asked": asked}
            write_json(
                given.json, made | {"results": json.loads(results.to_json(orient="records", double_precision=15))}
            )
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        sys.exit(f"probes: {' '.join(str(error).split())}")
    print(table(results))


def _size(text: str) -> Size:
    sides = tuple(int(side) for side in text.split("x"))
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides if len(sides) == 2 else sides[0]


if __name__ == "__main__":
    main()
