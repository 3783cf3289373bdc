"""The batch reproduction, recipe → run → executed notebook → figure and claims → gallery; `make figures` calls it.

A notebook's parameters cell is the only place that says what it needs: `recipes` (absent: no runs) and `seeds`
(None: those of the profile). A job's output goes to its log, which is shown if it fails.
"""

import ast
import sys
from pathlib import Path

import papermill

from simdino.config import nearest
from simdino.recipes import PROFILES, recipe

PYTHON = sys.executable
PROFILE = nearest(config.get("profile", "cpu"), PROFILES, "profile")
FIGURES = "figures" if PROFILE == "cpu" else f"figures/{PROFILE}"
BUILD = f"build/{PROFILE}"
SOURCES = {package: sorted(map(str, Path(package).glob("*.py"))) for package in ("simdino", "analysis")}


def declared(notebook, name):
    """The value of a parameter that a notebook declares; None without it."""
    parameter = papermill.inspect_notebook(str(notebook)).get(name)
    return ast.literal_eval(parameter["default"]) if parameter else None


def runs(notebook):
    """The runs that a notebook needs: run name -> (recipe, seed)."""
    seeds = declared(notebook, "seeds") or PROFILES[PROFILE].seeds
    wanted = [(name, seed) for name in declared(notebook, "recipes") or [] for seed in seeds]
    return {recipe(name, profile=PROFILE, seed=seed).run_name: (name, seed) for name, seed in wanted}


NOTEBOOKS = {path.stem: runs(path) for path in sorted(Path("notebooks").glob("*.ipynb"))}
RUNS = {run: what for needed in NOTEBOOKS.values() for run, what in needed.items()}

rule gallery:
    input:
        expand(f"{BUILD}/{{notebook}}.ipynb", notebook=NOTEBOOKS),  # so that committed figures alone do not count as made
        expand(f"{FIGURES}/{{notebook}}.{{kind}}", notebook=NOTEBOOKS, kind=["png", "json"]),
        "analysis/claims.py",
    output:
        f"{FIGURES}/README.md",
    params:
        figures=FIGURES,
    shell:
        "{PYTHON} -m analysis.claims {params.figures}"


rule run:
    input:
        SOURCES["simdino"],
    output:
        "runs/{run}/DONE",
    wildcard_constraints:
        run="|".join(RUNS) or "none",
    log:
        f"{BUILD}/logs/{{run}}.log",
    params:
        profile=PROFILE,
        recipe=lambda wildcards: RUNS[wildcards.run][0],
        seed=lambda wildcards: RUNS[wildcards.run][1],
    shell:
        "TQDM_MININTERVAL=10 {PYTHON} -m simdino.train {params.recipe} --profile {params.profile} --seed {params.seed}"
        " --root runs > {log} 2>&1"


rule notebook:
    input:
        lambda wildcards: expand("runs/{run}/DONE", run=NOTEBOOKS[wildcards.notebook]),
        SOURCES["simdino"],
        SOURCES["analysis"],
        "analysis/style.mplstyle",
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
    retries: 1  # kernels started at the same moment may race for a port
    shell:
        "{PYTHON} -m papermill {input.notebook} {output[0]} --cwd . --no-progress-bar"
        " -p profile {params.profile} -p out_dir {params.figures} > {log} 2>&1"
