"""What files of weights hold, read without running anything in them: tensors, and the names of all that stands beside.

Safetensors hold no code. A pickle is first looked through for what it names: tensors are built by torch's restricted
reader, what is known to be harmless becomes an empty placeholder, which runs nothing, and anything else is a refusal.
"""

import contextlib
import io
import json
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from simdino.whole_files import read_metadata, read_tensors

# What torch's reader builds by itself; of `torch` it knows which names are tensors and refuses the others.
_TENSORS = r"torch(\.\w+)+|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)"
# What people keep beside tensors and what nobody needs here: read as nothing, whatever it is.
_HARMLESS = (
    r"numpy(\.\w+)+|pathlib(\.\w+)+|argparse\.Namespace|types\.SimpleNamespace|collections\.(defaultdict|deque)"
    r"|builtins\.(list|dict|tuple|int|float|str|bool|bytes|frozenset|slice|range|object)|(datetime|decimal|uuid)\.\w+"
    r"|copyreg\._reconstructor|typing\.\w+|omegaconf(\.\w+)+|antlr4(\.\w+)+|(easydict|addict(\.\w+)*)\.(EasyDict|Dict)"
    r"|(pytorch_lightning|lightning|lightning_fabric|yacs|timm|transformers|enum)(\.\w+)+"
)
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names that Python 2 used, and protocol 2 still does
WAY_OUT = "save its tensors alone, torch.save(model.state_dict(), path)"


class WeightFile(NamedTuple):
    """What a file holds, or the files of a folder."""

    tensors: dict[str, Tensor]  # by place: the names of the dictionaries that a tensor is in, and its own, with dots
    names: dict[str, str]  # a tensor's own name, of each place
    others: list[str]  # the places of what is no tensor
    config: dict  # the config.json of a folder
    metadata: dict[str, str]  # of a safetensors file
    size: int  # bytes


class Placeholder:
    """What stands for anything that is not read: it takes whatever a pickle gives it, and keeps nothing."""

    def __init__(self, *_: object, **__: object):
        """Keep nothing."""

    def __setstate__(self, _: object) -> None:
        """Keep nothing."""


class PlainEntries:
    """What stands for any kind of dictionary: a plain one, of what is in it."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict:
        """Make the plain dictionary."""
        return OrderedDict()


def read_weight_file(path: Path) -> WeightFile:
    """Read a file of weights, or a folder with config.json and its weights, as Hugging Face has them.

    Args:
        path: .safetensors; any other file is read as one of torch.save. Of a folder its safetensors are read or, if it
            has none, its .bin and .pth files.

    Raises:
        ValueError: nothing there, damage, or something that could run code.
    """
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = read_tensors(path), read_metadata(path)
        return WeightFile(tensors, {name: name for name in tensors}, [], {}, metadata, path.stat().st_size)
    if not path.is_file():
        raise ValueError(f"cannot read {path}: there is no such file")
    try:
        state = _unpickled(path)
        places = list(_places(state))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    except Exception as error:  # whatever a damaged or hostile file raises
        found = re.search(r"GLOBAL (\S+)", str(error))
        damage = f"it is damaged or holds more than tensors, and nothing in it was run: {WAY_OUT}"
        reason = _holds(found[1]) if found else damage
        raise ValueError(f"cannot read {path}: {reason}") from None
    tensors = {place: value for place, _, value in places if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"cannot read {path}: it holds no tensors, and NumPy's arrays are not read: {WAY_OUT}")
    names = {place: name for place, name, value in places if isinstance(value, Tensor)}
    others = [place for place, _, value in places if not isinstance(value, Tensor)]
    return WeightFile(tensors, names, others, {}, {}, path.stat().st_size)


def _folder(folder: Path) -> WeightFile:
    """The tensors of all parts of a folder's weights."""
    kinds = ("model*.safetensors", "pytorch_model*.bin", "*.safetensors", "*.bin", "*.pth")
    parts = next((found for kind in kinds if (found := sorted(folder.glob(kind)))), [])
    if not parts:
        raise ValueError(f"{folder} holds no weights, such as model.safetensors")
    if len(parts) > 1 and not all(re.search(r"-\d{5}-of-\d{5}\.", part.name) for part in parts):
        found = ", ".join(part.name for part in parts)
        raise ValueError(f"{folder} holds several files of weights, {found}: give the one that is meant")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {folder / 'config.json'}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} describes no model")
    whole = re.search(r"-of-(\d{5})\.", parts[0].name)
    if whole and len(parts) != int(whole[1]):
        raise ValueError(f"{folder} has {len(parts)} of {int(whole[1])} parts of the weights")
    read = [read_weight_file(part) for part in parts]
    tensors = {place: tensor for part in read for place, tensor in part.tensors.items()}
    names = {place: name for part in read for place, name in part.names.items()}
    others = [place for part in read for place in part.others]
    return WeightFile(tensors, names, others, config, {}, sum(part.size for part in read))


def _unpickled(path: Path) -> object:
    """What torch.save wrote, with placeholders where there are neither tensors nor plain values."""
    placeholders = []
    for name in sorted(_globals(path)):
        if re.fullmatch(_HARMLESS, name):
            kind = PlainEntries if re.search("[dD]ict|CfgNode", name) else Placeholder
            placeholders.append((_plain_list if name == "collections.deque" else kind, name))
        elif not re.fullmatch(_TENSORS, name):
            raise ValueError(_holds(name))
    with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a damaged file, about its version
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _plain_list(*_: object) -> list:
    return []


def _holds(name: str) -> str:
    if re.search("TorchScript|__torch__", name):
        return f"it is a TorchScript archive, which is a program: {WAY_OUT}"
    if re.search("ShardedTensor|DTensor|device_mesh", name):
        return f"it holds {name}, one process's share of the tensors: save them gathered, as a full state_dict"
    return f"it holds {name}, not only tensors, and nothing in it was run: {WAY_OUT}"


def _globals(path: Path) -> set[str]:
    """Names of the classes and functions in a file's pickles, which are looked through and not executed.

    Raises:
        ValueError: a file that unpacks to more than its length.
    """
    found = set()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("it unpacks to more than its own length, which torch.save never writes")
            if any(member.filename.endswith("/constants.pkl") for member in members):
                raise ValueError(_holds("TorchScript"))
            for member in members:
                if member.filename.endswith(".pkl"):
                    with file.open(member) as stream:
                        found |= _named(stream)
        return found
    with path.open("rb") as stream:
        for _ in range(4):  # of the older format: a magic number, its version, the machine, the object
            found |= _named(stream)
    return found


def _named(stream: io.BufferedIOBase) -> set[str]:
    """The names in one pickle, up to where it is damaged, which torch's reader then finds, too."""
    found, strings = set(), []
    with contextlib.suppress(Exception):
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = argument.partition(" ")
                found.add(f"{_RENAMED.get(module, module)}.{name}")
            elif opcode.name == "STACK_GLOBAL":  # of the two strings before it
                found.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return found


def _places(state: object, inside: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, str, object]]:
    """Everything in dictionaries of dictionaries, as (place, own name, value); each dictionary once."""
    seen = set() if seen is None else seen
    if not isinstance(state, Mapping) or id(state) in seen:
        return
    seen.add(id(state))
    for key, value in state.items():
        if isinstance(value, Mapping) and len(value):
            yield from _places(value, f"{inside}{key}.", seen)
        else:
            yield f"{inside}{key}", str(key), value
