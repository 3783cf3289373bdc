"""The examples in docstrings give what they show, and everything that `analysis` offers has one."""

import doctest
import inspect
from pathlib import Path

import pytest

import analysis

ROOT = Path(__file__).parents[1]
PATHS = [path for package in ("simdino", "analysis") for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PATHS]


def examples(module):
    """The examples of a module's own docstrings; doctest alone takes functions that are type-checked for foreign."""
    yield from doctest.DocTestFinder(recurse=False).find(module)
    for name, member in vars(module).items():
        if getattr(member, "__module__", "") == module.__name__:
            yield from doctest.DocTestFinder().find(inspect.unwrap(member), name, module=False, globs=vars(module))


@pytest.mark.parametrize("name", [m for m in MODULES if not m.startswith("analysis.plots") and "__main__" not in m])
def test_examples_give_what_they_show(name):
    module = pytest.importorskip(name)  # some need an extra
    runner = doctest.DocTestRunner()
    for example in examples(module):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", analysis.__all__)
def test_what_analysis_offers_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(analysis, name))
