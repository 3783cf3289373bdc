"""The batch reproduction, recipe → run → executed notebook → figure and claims → gallery; `make figures` calls it.

A notebook's parameters cell is the only place that says what it needs (`simdino.batch`). Short runs share a process,
in which each is trained only if it is not there yet. A job's output goes to its log, which is shown if it fails.
"""

import sys
from pathlib import Path

import torch

from simdino.batch import core_seconds, jobs, needed_configs
from simdino.config import recognized
from simdino.recipes import PROFILES
from simdino.runs import TRAINING

torch.set_num_threads(1)  # to plan is no work
PYTHON = sys.executable
PROFILE = recognized(config.get("profile", "cpu"), PROFILES, "profile")
GPUS = int(config.get("gpus", 1)) if PROFILE.startswith("gpu") else 0  # for each run
FIGURES = "figures" if PROFILE == "cpu" else f"figures/{PROFILE}"
BUILD = f"build/{PROFILE}"
RUNS = {path.stem: needed_configs(path, PROFILE) for path in sorted(Path("notebooks").glob("*.ipynb"))}
SOURCES = [str(path) for folder in ("simdino", "analysis") for path in sorted(Path(folder).rglob("*.py"))]


def done(configs):
    """The files that runs end with."""
    return [f"runs/{config.run_name}/DONE" for config in configs]


rule gallery:
    input:
        expand(f"{BUILD}/{{notebook}}.ipynb", notebook=RUNS),  # so that committed figures alone do not count as made
        expand(f"{FIGURES}/{{notebook}}.{{kind}}", notebook=RUNS, kind=["png", "json"]),
        "analysis/claims.py",
    output:
        f"{FIGURES}/README.md",
        f"{FIGURES}/claims.png",
    params:
        figures=FIGURES,
    localrule: True
    shell:
        "{PYTHON} -m simdino gallery {params.figures}"


for number, group in enumerate(jobs([config for configs in RUNS.values() for config in configs])):

    rule:
        name:
            f"train_{number}"
        input:
            [f"simdino/{path.name}" for path in TRAINING],
        output:
            done(group),
        log:
            f"{BUILD}/logs/train_{number}.log",
        params:
            profile=PROFILE,
            launch=f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}" if GPUS > 1 else "",
        threads: 8 * max(GPUS, 1) if GPUS else 1
        resources:
            mem_mb=4000 if not GPUS else 32000,
            runtime=600 if GPUS else 10 + int(sum(map(core_seconds, group)) / 10),  # minutes, for a core six times slower
            gpu=GPUS,
        shell:
            "TQDM_MININTERVAL=10 {PYTHON} {params.launch} -m simdino batch {output:q} --profile {params.profile}"
            " > {log} 2>&1"


rule notebook:
    input:
        lambda wildcards: done(RUNS[wildcards.notebook]),
        SOURCES,
        "analysis/plots/paper.mplstyle",
        notebook="notebooks/{notebook}.ipynb",
    output:
        f"{BUILD}/{{notebook}}.ipynb",
        f"{FIGURES}/{{notebook}}.png",
        f"{FIGURES}/{{notebook}}.json",
    log:
        f"{BUILD}/logs/{{notebook}}.log",
    params:
        profile=PROFILE,
        figures=FIGURES,
    group:
        "notebooks"
    resources:
        mem_mb=4000,
        runtime=60,
    retries: 1  # kernels started at the same moment may race for a port
    shell:
        "{PYTHON} -m papermill {input.notebook} {output[0]} --cwd . --no-progress-bar"
        " -p profile {params.profile} -p out_dir {params.figures} > {log} 2>&1"
