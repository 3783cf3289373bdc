"""Claims: nothing in a file of weights is run, whatever it names; what is harmless beside the tensors is passed over; a
file that claims more than it holds costs neither time nor memory."""

import argparse
import collections
import datetime
import importlib
import io
import os
import pathlib
import re
import resource
import runpy
import shutil
import subprocess
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from simdino.vit import Network
from simdino.weight_files import read_weight_file
from simdino.weights import load_weights
from tests.simdino.test_weights import TINY_VIT, backbone_file


class Trap:
    """What a hostile file holds: unpickled, it would call a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def traps(sprung: str) -> dict[str, Trap]:
    """Calls each of which would make a file of that name, or use all memory."""
    code = f"open({sprung!r}, 'w').close()"
    return {
        "mkdir": Trap(os.mkdir, sprung),
        "system": Trap(os.system, f"touch {sprung}"),
        "eval": Trap(eval, code),
        "exec": Trap(exec, code),
        "open": Trap(open, sprung, "w"),
        "call": Trap(subprocess.call, ["touch", sprung]),
        "run_path": Trap(runpy.run_path, sprung),
        "copy": Trap(shutil.copy, __file__, sprung),
        "import_module": Trap(importlib.import_module, "antigravity"),
        "getattr": Trap(getattr, Path(sprung), "touch"),
        "load": Trap(torch.load, sprung),
        "save": Trap(torch.save, 1, sprung),
        "bytearray": Trap(bytearray, 10**10),
        "compile": Trap(compile, code, "x", "exec"),
    }


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"args": argparse.Namespace(lr=t)}, lambda t: {"teacher": t}])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("name", traps(""))
def test_a_hostile_pickle_is_refused_and_not_run(name, wrap, new, tmp_path):
    path, sprung = tmp_path / "checkpoint.pth", tmp_path / "sprung"
    torch.save(wrap(traps(str(sprung))[name]), path, _use_new_zipfile_serialization=new)
    content = zipfile.ZipFile(path).read("checkpoint/data.pkl") if new else path.read_bytes()
    assert name.encode() in content
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match=rf"holds \S*{name}, not only tensors, and nothing in it was run: save its te"):
        load_weights(path)
    assert not sprung.exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_is_named_as_harmless_things_are_is_not_run_either(tmp_path):
    from numpy.testing._private.utils import runstring  # it executes a text

    path, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    state = Network(TINY_VIT, size=16).state_dict()
    torch.save({"teacher": state, "best": Trap(runstring, f"open({str(sprung)!r}, 'w')", {})}, path)
    assert load_weights(path).left == ["best"]
    assert not sprung.exists()


def test_newer_pickles_are_looked_through_as_well(tmp_path):
    path, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    torch.save({"teacher": Trap(os.mkdir, str(sprung))}, path, pickle_protocol=4)
    with pytest.raises(ValueError, match=r"holds \S*mkdir, not only tensors"):
        load_weights(path)
    path.write_bytes(b"cposix\nmkdir\n(V" + str(sprung).encode() + b"\ntR.")  # no file of torch.save at all
    with pytest.raises(ValueError, match="cannot read"):
        load_weights(path)
    assert not sprung.exists()


class Settings:
    """A class that only its author has."""


HARMLESS = {
    "np.float64": np.float64(3.0),
    "np.int64": np.int64(3),
    "np.array": np.arange(3),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "deque": collections.deque([1.0, 2.0]),
    "path": pathlib.PurePosixPath("/x"),
    "Namespace": argparse.Namespace(out=pathlib.PurePosixPath("/x"), lr=0.1),
    "SimpleNamespace": types.SimpleNamespace(lr=np.float32(0.1)),
    "datetime": datetime.datetime(2026, 1, 1),
    "set": {1, 2},
    "none": None,
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_beside_the_tensors_is_passed_over_and_said(name, new, tmp_path):
    state = Network(TINY_VIT, size=16).state_dict()
    torch.save({"extra": HARMLESS[name], "teacher": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    loaded = load_weights(tmp_path / "w.pth")
    assert loaded.left == ["extra"]
    assert all(torch.equal(v, state[k]) for k, v in loaded.network.state_dict().items())


def test_a_class_that_nobody_knows_is_refused_with_the_way_out(tmp_path):
    torch.save({"teacher": {}, "args": Settings()}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"holds \S*Settings, .*: save its tensors alone, torch.save\(model.state_dict"
    ):
        load_weights(tmp_path / "w.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds torch\S*Linear, not only tensors"):
        load_weights(tmp_path / "w.pth")


def test_dictionaries_in_circles_end(tmp_path):
    circle: dict = {"cls_token": torch.zeros(3)}
    circle["again"] = circle
    nested = {"x": torch.zeros(1)}
    for _ in range(40):  # each twice: 2⁴⁰ places
        nested = {"a": nested, "b": nested}
    torch.save({"circle": circle, "nested": nested}, tmp_path / "w.pth")
    assert len(read_weight_file(tmp_path / "w.pth").tensors) == 2


# --- Claims that a file does not keep


def claims(**more: list[int]) -> dict[str, torch.Tensor]:
    """The network's tensors, and more of any size, each stored as one number."""
    state = {k: torch.zeros(()).expand(v.shape) for k, v in Network(TINY_VIT, size=16).state_dict().items()}
    return state | {name.replace("__", "."): torch.zeros(()).expand(size) for name, size in more.items()}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"backbone__blocks__100000__norm1__weight": [192]}, "has 3 blocks, the last of number 100000, where 0 to 2"),
        ({"head__last_layer__weight_v": [10**8, 16], "head__last_layer__weight_g": [10**8, 1]}, "larger than the file"),
        ({"backbone__pos_embed": [1, 10**8 + 1, 192]}, "larger than the file"),
        ({"backbone__register_tokens": [1, 10**9, 192]}, "larger than the file"),
    ],
)
def test_a_small_file_takes_no_room_and_no_time(more, sentence, new, tmp_path):
    torch.save({"teacher": claims(**more)}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=sentence):
        load_weights(tmp_path / "w.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300e3  # kB
    assert time.process_time() - began < 5


def test_a_zip_that_unpacks_to_more_than_its_length_is_not_unpacked(tmp_path):
    torch.save({"teacher": {"x": torch.zeros(10**6)}}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as file, zipfile.ZipFile(tmp_path / "packed.pth", "w") as packed:
        for member in file.infolist():
            packed.writestr(member.filename, file.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="unpacks to more than its own length"):
        load_weights(tmp_path / "packed.pth")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("cls_token", torch.tensor(1.0)),
        ("patch_embed.proj.weight", torch.zeros(192)),
        ("patch_embed.proj.weight", torch.zeros(192, 3, 4, 6)),
        ("patch_embed.proj.weight", torch.zeros(0, 3, 4, 4)),
        ("blocks.0.mlp.fc1.weight", torch.zeros(3)),
        ("blocks.0.mlp.fc1.weight", torch.zeros(0, 192)),
        ("pos_embed", torch.zeros(0)),
        ("norm.weight", torch.zeros(192, dtype=torch.int8)),
        ("norm.weight", torch.zeros(192, dtype=torch.complex64)),
        ("norm.weight", torch.zeros(192).to_sparse()),
        ("norm.weight", torch.zeros(192, device="meta")),
    ],
)
def test_tensors_of_another_rank_or_kind_are_named(name, tensor, tmp_path):
    path = backbone_file(tmp_path / "w.pth", lambda state: state | {name: tensor})
    with pytest.raises(ValueError, match=rf"{re.escape(name)}|position embeddings|square|cannot read") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
def test_mutated_files_are_refused_in_a_sentence_or_read(new, tmp_path):
    buffer, path = io.BytesIO(), tmp_path / "w.pth"
    torch.save({"teacher": claims()}, buffer, _use_new_zipfile_serialization=new)
    whole, generator = buffer.getvalue(), np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole), size=1 + number % 8):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged if number % 3 else damaged[: generator.integers(len(whole))])
        said = refusal(path)
        assert said is None or (str(path) in said and "\n" not in said), said


def refusal(path: Path) -> str | None:
    """What is said of a file that is not read."""
    try:
        load_weights(path)
    except ValueError as error:
        return str(error)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    whole = backbone_file(tmp_path / "whole.pth").read_bytes()
    for name, content in {
        "cut.pth": whole[:-200],
        "text.pth": b"hello",
        "empty.pt": b"",
        "x.safetensors": b"1",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*{name}") as caught:
            load_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("nothing.pth", "nothing.safetensors"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            load_weights(str(tmp_path / name))
