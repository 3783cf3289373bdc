"""Files that are read whole or refused by name, and written whole or not at all: JSON, text and safetensors."""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor


def read_json(path: Path) -> dict:
    """Read a JSON object; a missing or damaged file is a ValueError that names it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # fails for what nothing could print or write again
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"cannot read {path}: it is no JSON object")
    return found


def read_json_lines(path: Path) -> list[dict]:
    """Read a file of JSON objects, one on each line; a last line that is cut short is left out, with a warning.

    Raises:
        ValueError: a missing file or a damaged line, by its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if lines and not lines[-1].endswith("\n") and not _is_object(lines[-1]):
        warnings.warn(f"the last line of {path} is cut short and left out", stacklevel=2)
        lines.pop()
    with contextlib.suppress(ValueError, RecursionError):  # all at once is faster; line by line says which is damaged
        rows = json.loads(f"[{','.join(lines)}]")
        json.dumps(rows, ensure_ascii=False).encode()  # fails for what nothing could print or write again
        if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
            return rows
    for number, line in enumerate(lines, 1):
        if not _is_object(line):
            raise ValueError(f"cannot read {path}: line {number} is damaged")
    return [json.loads(line) for line in lines]


def _is_object(line: str) -> bool:
    try:
        found = json.loads(line)
        json.dumps(found, ensure_ascii=False).encode()
        return isinstance(found, dict)
    except (ValueError, RecursionError):
        return False


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a missing or damaged one is a ValueError that names it."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in a safetensors file's header; a missing or damaged one is a ValueError that names it."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, then rename it: it exists whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    with whole_file(path) as temporary:
        safetensors.torch.save_file(cpu, temporary, metadata)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it: it exists whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to, which becomes the file's when all is written, and is removed otherwise.

    Raises:
        OSError: it cannot be written, as where a disk is full; the file is named.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is no plain file")
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all; a dataclass becomes a dictionary."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    write_text(path, json.dumps(value, indent=1) + "\n")
