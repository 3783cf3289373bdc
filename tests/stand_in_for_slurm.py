#!/usr/bin/env python3
"""A stand-in for the commands of Slurm, by the name that it is called by: a job runs at once, on this machine.

$STAND_IN_JOBS is a folder: <job>.json holds what sbatch was called with, <job>.code how the job ended.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path


def sbatch(jobs: Path, arguments: list[str]) -> None:
    number = len(list(jobs.glob("*.json"))) + 1
    while True:  # two calls at the same moment
        try:
            with open(jobs / f"{number}.json", "x") as file:
                json.dump(arguments, file)
            break
        except FileExistsError:
            number += 1
    log = arguments[arguments.index("--output") + 1].replace("%j", str(number))
    command = next(a for a in arguments if a.startswith("--wrap")).removeprefix("--wrap").lstrip("=")
    shell = f"({command}) > {shlex.quote(log)} 2>&1; echo $? > {shlex.quote(str(jobs))}/{number}.code"
    environment = os.environ | {"SLURM_JOB_ID": str(number)}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(["sh", "-c", shell], env=environment, start_new_session=True, **quiet)
    print(number)


def sacct(jobs: Path) -> None:
    for job in jobs.glob("*.json"):
        code = job.with_suffix(".code")
        ended = code.read_text().strip() if code.exists() else ""
        print(f"{job.stem}|{'RUNNING' if not ended else 'COMPLETED' if ended == '0' else 'FAILED'}")


def main(name: str, arguments: list[str]) -> None:
    match name:
        case "sbatch":
            sbatch(Path(os.environ["STAND_IN_JOBS"]), arguments)
        case "sacct" if "--parsable2" in arguments:
            sacct(Path(os.environ["STAND_IN_JOBS"]))
        case "srun":  # -n1 --cpu-bind=q command ...
            command = arguments[next(i for i, a in enumerate(arguments) if not a.startswith("-")) :]
            os.execvp(command[0], command)
        case "sinfo":
            print("PARTITION\nmain*")
        case "sacctmgr":
            print("lab")
        case _:  # sacct of a version, squeue, scancel, scontrol: nothing to say
            pass


if __name__ == "__main__":
    main(Path(sys.argv[0]).name, sys.argv[1:])
