"""The house rules that a machine can hold: who imports whom, what a notebook may be, what no file may do."""

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import torch
import yaml
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simdino.losses import coding_rate
from simdino.needed_runs import needed_configs, parameters
from simdino.recipes import PROFILES

ROOT = Path(__file__).parents[1]
PATHS = [p for package in ("simdino", "analysis") for p in sorted((ROOT / package).rglob("*.py"))]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = sorted((ROOT / "figures").glob("*.json"))
SCRIPTS = [*PATHS, *sorted((ROOT / "benchmarks").glob("*.py"))]
EXTRAS = [
    "matplotlib",
    "seaborn",
    "sklearn",
    "skimage",
    "PIL",
    "papermill",
    "torchmetrics",
    "lightning",
    "timm",
]
PLOTS = {name for name in MODULES if name.startswith("analysis.plots.")}
NEEDS_EXTRAS = PLOTS | {"analysis.monitoring.monitor"}


def in_package(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imported(module: str, path: Path) -> set[str]:
    """The modules that a file imports anywhere in it; `from package import name` is package.name where that is one."""
    names = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert bool(node.level) == (in_package(node.module or "analysis", "analysis") or node.level > 0), path.name
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            dotted = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else base for name in dotted}
    return {name.removeprefix("simdino.") if in_package(name, "simdino.analysis") else name for name in names}


IMPORTS = {module: imported(module, path) for module, path in MODULES.items()}
FIRST_PARTY = {module: names & MODULES.keys() - {module} for module, names in IMPORTS.items()}
ROOMS = ["measures", "experiments", "probes", "runs", "reporting", "monitoring", "plots"]


def room(module: str) -> str:
    """The folder that a module of `analysis` is in, or the module itself where it is in none."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1] in ROOMS else module


def floors(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports, from the top down; CycleError where one runs both ways."""
    longest: dict[str, list[str]] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        longest[name] = [name, *max((longest[below] for below in graph.get(name, ())), key=len, default=[])]
    return max(longest.values(), key=len)


def cells(path: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def sources(path: Path) -> list[str]:
    return [cell.source for cell in cells(path)] if path.suffix == ".ipynb" else [path.read_text()]


def calls(tree: ast.AST) -> list[tuple[str, dict[str, ast.expr]]]:
    """Every call as (dotted name, keyword arguments)."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(c.func), {k.arg: k.value for k in c.keywords}) for c in found]


# --- Imports


def test_simdino_imports_nothing_of_analysis_but_to_run_its_commands():
    using = {m for m in MODULES if in_package(m, "simdino") and any(in_package(n, "analysis") for n in IMPORTS[m])}
    assert using == {"simdino.__main__"}


def test_analysis_imports_little_of_simdino_but_where_it_runs_a_network_or_a_command():
    used = {(m, n) for m in MODULES if in_package(m, "analysis") for n in IMPORTS[m] - {m} if in_package(n, "simdino")}
    reading = {f"simdino.{name}" for name in ("config", "losses", "runs", "archive", "array_files", "whole_files")}
    running = {f"simdino.{name}" for name in ("augment", "data", "image_files", "vit", "weights")}
    commands = {
        "simdino",
        "simdino.train",
        "simdino.batch",
        "simdino.recipes",
        "simdino.studies",
        "simdino.needed_runs",
    }
    more = {"analysis.probes": running, "analysis.commands": commands, "analysis.claims": {"simdino.recipes"}}
    more["analysis.runs"] = {f"simdino.{name}" for name in ("augment", "data", "optim", "step_inputs", "vit")}
    more["analysis.reproduction"] = {"simdino.interruption", "simdino.needed_runs", "simdino.recipes"}
    more["analysis.experiments"] = {"simdino.optim"}  # the schedules of a reduced network are those of its run
    assert {(m, n) for m, n in used if n not in reading | more.get(room(m), set())} == set()


def test_the_house_has_few_floors_and_none_runs_up():
    """At most 8 floors by module and 6 by room, imports inside functions and `__init__` counted."""
    modules = {module: names for module, names in FIRST_PARTY.items() if module != "simdino.__main__"}  # one line
    assert len(floors(modules)) <= 8, floors(modules)
    by_room: dict[str, set[str]] = {}
    for module, names in FIRST_PARTY.items():
        if in_package(module, "analysis"):
            own = {room(n) for n in names if in_package(n, "analysis")} - {room(module)}
            by_room[room(module)] = by_room.get(room(module), set()) | own
    assert len(floors(by_room)) <= 6, floors(by_room)


def test_nothing_private_is_imported_from_another_room():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and in_package(module, "analysis"):
                above = node.level > 1 or not node.level
                assert not [a.name for a in node.names if above and a.name.startswith("_")], f"{module}: {node.module}"


def test_a_name_means_one_thing():
    """No two modules, and no two public functions, classes or constants, of one name; nor a function like a module."""
    modules = [m.rpartition(".")[2] for m in MODULES if m not in ("simdino", "analysis") and not m.endswith("__main__")]
    rooms = set(ROOMS)
    assert [name for name in modules if modules.count(name) > 1 and name not in rooms] == []
    public: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            names += [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            for name in names:
                if not name.startswith("_") and name != "main":
                    public.setdefault(name, []).append(module)
    assert {name: where for name, where in public.items() if len(where) > 1} == {}
    like = {name: where for name, where in public.items() if name in modules}
    assert {name: where for name, where in like.items() if where[0].rpartition(".")[2] != name} == {}


def test_theory_imports_nothing_first_party():
    assert FIRST_PARTY["analysis.theory"] == set()


def test_plots_import_no_torch_not_even_through_others():
    reached, new = set(), PLOTS
    while new:
        reached |= new
        new = {n for m in new for n in FIRST_PARTY[m]} - reached
    assert not [m for m in reached if any(in_package(n, "torch") for n in IMPORTS[m])]


@pytest.mark.parametrize("module", ["config", "runs", "image_files", "data", "augment", "vit", "losses"])
def test_the_parts_of_training_know_only_the_configuration(module):
    more = {"data": ("array_files", "image_files", "runs"), "runs": ("whole_files",)}
    allowed = {"config": set()} | {m: {"simdino.config", *(f"simdino.{n}" for n in names)} for m, names in more.items()}
    assert FIRST_PARTY[f"simdino.{module}"] <= allowed.get(module, {"simdino.config"})


def test_only_command_lines_may_need_train():
    assert {m for m in MODULES if "simdino.train" in FIRST_PARTY[m]} == {"simdino.batch", "analysis.commands"}


def test_everything_but_plots_imports_without_the_extras():
    block = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))"
    needed = sorted(MODULES.keys() - NEEDS_EXTRAS)
    subprocess.run([sys.executable, "-c", f"{block}; import {', '.join(needed)}"], cwd=ROOT, check=True)


# --- Sources


@pytest.mark.parametrize("path", [*SCRIPTS, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path):
    for source in sources(path):
        tree = ast.parse(source)
        for name, keywords in calls(tree):
            if name == "torch.load":
                assert ast.unparse(keywords.get("weights_only", ast.Constant(False))) == "True"
            assert name not in ("eval", "exec")
            assert not name.endswith("read_pickle")
            assert ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) == "False"
        modules = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {m for m in modules if m.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve")}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_utf_8_by_name(path):
    """Elsewhere than on Linux and macOS another encoding is what is taken where none is named."""
    for name, keywords in calls(ast.parse(path.read_text(encoding="utf-8"))):
        if name.endswith((".read_text", ".write_text")):
            assert "encoding" in keywords, name
    opened = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    for call in opened:
        mode = ast.literal_eval(call.args[1]) if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else "r"
        if ast.unparse(call.func) == "open" and "b" not in mode:
            assert "encoding" in {k.arg for k in call.keywords}, ast.unparse(call)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_that_only_posix_has_is_imported_with_a_module(module):
    posix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    top = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom) and n.module}
    assert not names & posix


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_and_public_function_is_documented(module):
    tree = ast.parse(MODULES[module].read_text())
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert not [n.name for n in public if not ast.get_docstring(n)]


def test_annotations_are_checked_while_testing():
    with pytest.raises(TypeCheckError):
        coding_rate(torch.zeros(3), eps=0.5)


def without_docstrings(source: str) -> str:
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)]
    dropped = {i for f in functions for i in range(f.body[0].lineno, f.body[0].end_lineno + 1)}
    return "\n".join(line for i, line in enumerate(source.splitlines(), 1) if i not in dropped)


def test_readme_is_short_and_its_loss_is_the_one_that_trains():
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not written yet")
    text = readme.read_text()
    assert len(text.splitlines()) <= 130
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def simdino_loss" in b]
    assert len(blocks) == 1
    losses = without_docstrings((ROOT / "simdino/losses.py").read_text())
    shown = without_docstrings(blocks[0]).split("\n\n\n")
    assert [definition for definition in shown if definition.strip() not in losses] == []


# --- Notebooks


def test_notebooks_are_stripped():
    if NOTEBOOKS:
        command = [sys.executable, "-m", "nbstripout", "--keep-id", "--verify", *map(str, NOTEBOOKS)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_has_one_cell_of_literal_parameters_and_checks_them(path):
    code = cells(path)
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert code[tagged[0] + 1].source.splitlines()[0].strip() == "check_parameters(In)"
    assert not code[tagged[0]].source.startswith("# Parameters")  # how papermill marks what it injects
    tree = ast.parse(code[tagged[0]].source)
    declared = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert declared.keys() >= {"profile", "seeds", "out_dir"}
    assert declared["profile"] in PROFILES
    assert declared == parameters(path)  # what the Snakefile reads
    needed_configs(path, "smoke")  # recipes, variants and a study that there are
    seen = papermill.inspect_notebook(str(path))
    assert {name: ast.literal_eval(seen[name]["default"]) for name in declared} == declared


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebook_is_written_to_be_read_and_ends_by_publishing(path):
    """Its formatting is ruff's, which `make test` checks; a nested comprehension is a function that was not written."""
    code = [cell.source for cell in cells(path)]
    assert [line for source in code for line in source.splitlines() if len(line) > 100] == []
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    assert not [n for n in nodes if isinstance(n, ast.ClassDef)]
    comprehensions = [n for n in nodes if isinstance(n, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)]
    assert [
        ast.unparse(n)
        for n in comprehensions
        if isinstance(n.generators[0].iter, ast.List | ast.Tuple) and len(n.generators[0].iter.elts) == 1
    ] == []  # `for x in [value]`
    assert any(name.endswith("use_style") for name, _ in calls(ast.parse(code[0])))
    published = [keywords for name, keywords in calls(ast.parse(code[-1])) if name == "publish"]
    assert [ast.literal_eval(keywords["name"]) for keywords in published] == [path.stem]
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"
    assert cells(path, "markdown")


@pytest.mark.parametrize("path", FIGURES, ids=[path.stem for path in FIGURES])
def test_committed_figure_has_its_notebook_its_picture_and_its_place_in_the_gallery(path):
    record = json.loads(path.read_text())
    assert (ROOT / record["notebook"]).is_file()
    assert path.with_suffix(".png").is_file()
    assert f"({path.stem}.png)" in (ROOT / "figures/README.md").read_text()


# --- Environment


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for group in [project["dependencies"], *project["optional-dependencies"].values()] for line in group]
    return [r for r in map(Requirement, lines) if r.name != project["name"]]


def pins() -> dict[str, str]:
    """The versions of constraints.txt by canonical name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned_within_its_bounds():
    for requirement in requirements():
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier
        assert any(s.operator == ">=" for s in requirement.specifier)


def test_conda_and_make_install_the_same():
    """The same Python and the same versions, what figures need, and of PyTorch the build that downloads no CUDA."""
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[batch]"]}
    makefile = (ROOT / "Makefile").read_text()
    for extra in ("batch", "dev"):
        assert f"pip install --disable-pip-version-check -q -c constraints.txt -e '.[{extra}]'" in makefile
    assert "(3, 11)" in makefile
    versions = {name: rest for name, _, rest in (line.partition("=") for line in conda) if name != "pip"}
    assert versions.pop("pytorch") == f"{pins()['torch']}=cpu*"
    assert f"Python {versions['python']}," in (ROOT / "constraints.txt").read_text().splitlines()[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={versions.pop('python')}"
    assert versions == {name: pins()[name] for name in versions}
    assert versions.keys() >= {"numpy", "scipy", "matplotlib", "jupyterlab", "papermill", "seaborn"}
