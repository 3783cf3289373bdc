import nbformat
import pytest
import torch


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
