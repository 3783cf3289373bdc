"""A checkpoint that does not fit is named, with what to do, and no half of it is gone on from."""

import pytest
import torch

from simdino.checkpoint import Progress, resume
from simdino.whole_files import write_tensors

SECONDS = {"seconds": "2.5", "recording_seconds": "0.5"}


def resumed(path, tensors, metadata):
    network = torch.nn.Linear(2, 1)
    write_tensors(path / "checkpoint.safetensors", tensors, metadata)
    return resume(path, {"student": network}, torch.optim.AdamW(network.parameters()), {"center": torch.zeros(3)})


@pytest.fixture
def tensors():
    return {"student.weight": torch.ones(1, 2), "student.bias": torch.ones(1), "center": torch.ones(3)}


def test_a_whole_one_is_gone_on_from(tmp_path, tensors):
    assert resumed(tmp_path, tensors, {"step": "7"} | SECONDS) == Progress(7, 2.5, 0.5)


@pytest.mark.parametrize(
    ("change", "metadata", "words"),
    [
        ({"student.bias": None}, {"step": "7"}, "Missing key"),
        ({"student.weight": torch.ones(3, 2)}, {"step": "7"}, "size mismatch"),
        ({"center": None}, {"step": "7"}, "center"),
        ({"center": torch.ones(2)}, {"step": "7"}, "match"),
        ({}, {}, "step"),
        ({}, {"step": "a"}, "'a'"),
        ({}, {"step": "-3"}, "step -3"),
    ],
)
def test_one_that_does_not_fit_is_named(tmp_path, tensors, change, metadata, words):
    tensors = {name: x for name, x in (tensors | change).items() if x is not None}
    with pytest.raises(ValueError, match=f"cannot resume from {tmp_path}/checkpoint.safetensors: .*{words}"):
        resumed(tmp_path, tensors, metadata | SECONDS)
