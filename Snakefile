"""The graph of the batch reproduction: recipe → run → executed notebook, figure and claims. `simdino figures` calls it.

A notebook's parameters cell is the only place that says what it needs (`simdino.needed_runs`); what is made already, and which
runs have to be trained, is decided by content (`analysis.reproduction.plan`). Short runs share a process, in which each
is trained only if it is not there yet. A job's output goes to its log.
"""

import sys
from pathlib import Path

import torch

from analysis.reproduction import plan
from simdino.needed_runs import core_seconds, jobs
from simdino.runs import CHECKOUT

torch.set_num_threads(1)  # to plan is no work
PYTHON = sys.executable
PLAN = plan(config.get("profile", "cpu"), from_nothing=bool(config.get("from_nothing")))
GPUS = int(config.get("gpus", 1)) if PLAN.profile.startswith("gpu") else 0  # for each run


def local(path):
    """A path as seen from the project, from where the graph runs."""
    return str(path.relative_to(CHECKOUT))


rule all:
    input:
        [local(file) for figure in PLAN.to_make for file in figure.files],
        [local(PLAN.runs / config.run_name / "DONE") for config in PLAN.train],
    localrule: True


for number, group in enumerate(jobs(PLAN.train)):

    rule:
        name:
            f"train_{number}"
        output:
            [local(PLAN.runs / config.run_name / "DONE") for config in group],
        log:
            f"{local(PLAN.build)}/logs/train_{number}.log",
        params:
            profile=PLAN.profile,
            launch=f"-m torch.distributed.run --standalone --nproc-per-node {GPUS}" if GPUS > 1 else "",
        threads: 8 * max(GPUS, 1) if GPUS else 1
        priority: 1
        resources:
            mem_mb=4000 if not GPUS else 32000,
            runtime=600 if GPUS else 10 + int(sum(map(core_seconds, group)) / 10),  # minutes, for a core six times slower
            gpu=GPUS,
        shell:
            "TQDM_MININTERVAL=10 {PYTHON:q} {params.launch} -m simdino batch {output:q} --profile {params.profile}"
            " > {log:q} 2>&1"


for figure in PLAN.to_make:

    rule:
        name:
            f"notebook_{figure.name}"
        input:
            [ancient(local(run / "DONE")) for run in figure.needs],
        output:
            [local(file) for file in figure.files],
        log:
            local(figure.log),
        params:
            notebook=f"notebooks/{figure.name}.ipynb",
            profile=PLAN.profile,
            folder=local(figure.folder),
            runs=f"-p runs_dir {local(PLAN.runs)}" if figure.runs_dir else "",
        group:
            "notebooks"
        resources:
            mem_mb=4000,
            runtime=60,
        retries: 1  # kernels started at the same moment may race for a port
        shell:
            "{PYTHON:q} -m papermill {params.notebook} {output[0]:q} --cwd . --no-progress-bar"
            " -p profile {params.profile} -p out_dir {params.folder:q} {params.runs} > {log:q} 2>&1"
