import importlib.util
import sys

import nbformat
import pytest
import torch

from simdino import losses


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same random numbers, alone or among others, so that one which fails fails again."""
    torch.manual_seed(0)


@pytest.fixture
def notebook():
    """Write a throw-away notebook with a parameters cell and others after it."""

    def write(path, *, parameters, cells):
        new = nbformat.v4.new_code_cell
        first = new("from analysis.claims import check_parameters")
        body = [first, new(parameters, metadata={"tags": ["parameters"]}), *map(new, cells)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=body, metadata=kernel), path)
        return path

    return write


@pytest.fixture
def bare(monkeypatch):
    """The losses as they are outside of tests, where nothing wraps them to check the shapes in their annotations."""
    spec = importlib.util.spec_from_file_location("bare_losses", losses.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bare_losses", module)
    spec.loader.exec_module(module)
    torch.compiler.reset()
    return module
