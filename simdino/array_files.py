"""Arrays in .npy and .npz files of others: headers are held against the file's length before anything is allocated.

Nothing is unpickled. Whatever is wrong is a ValueError of one sentence that names the file.
"""

import io
import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Bytes that one byte in a zip can become, by how it is compressed; of others than these two, about.
_MOST = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_MOST_OF_OTHERS = 20_000


class ArrayHeader(NamedTuple):
    """What an array on disk says of itself, and what its file bears out."""

    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool  # stored one column after another

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever reading a file of others raises into one sentence that names the file.

    >>> with reading("labels.csv"):
    ...     int("two")
    Traceback (most recent call last):
    ValueError: cannot read labels.csv: invalid literal for int() with base 10: 'two'
    """
    try:
        yield
    except Exception as error:  # of a library that met bytes which it did not expect: there is no list of these
        said = " ".join(str(error).split())
        if isinstance(error, ValueError) and said.startswith(f"cannot read {path}"):
            raise
        said = "it is no .npz" if said == "File is not a zip file" else said
        said = said if " " in said else f"{type(error).__name__} {said}".strip()
        raise ValueError(f"cannot read {path}: {said}") from None


def npy_header(path: str | Path) -> ArrayHeader:
    """Read the header of a .npy file, and hold it against the file's length.

    Raises:
        ValueError: damage; an array of Python objects, of fields, or of values without a type; bytes after the array.
    """
    with reading(path), open(path, "rb") as file:
        return _header(file, os.fstat(file.fileno()).st_size)


def npz_headers(path: str | Path) -> dict[str, ArrayHeader | None]:
    """Read the headers of the arrays in an .npz file, by name; None of what is in it and cannot be read as numbers.

    Raises:
        ValueError: damage.
    """
    with reading(path), zipfile.ZipFile(path) as file:
        found = {}
        for info in file.infolist():
            name = info.filename.removesuffix(".npy")
            if info.filename == name:  # not an array
                continue
            try:
                with file.open(info) as member:
                    found[name] = _header(member, _length(info))
            except _NoNumbersError:
                found[name] = None
            except ValueError as error:
                raise ValueError(f"its array {name}: {error}") from None
        return found


def npz_chunks(path: str | Path, name: str, rows: int) -> Iterator[np.ndarray]:
    """Yield an array of an .npz file in chunks of at most some rows, decompressed from its beginning.

    One that is stored by columns comes in one piece.

    Args:
        path: the file.
        name: of the array.
        rows: in a chunk.
    """
    with reading(path), zipfile.ZipFile(path) as file:
        info = file.getinfo(f"{name}.npy")
        with file.open(info) as member:
            header = _header(member, _length(info))
            shape, dtype, by_columns = header
            if by_columns or not shape:
                whole = _bytes(member, dtype.itemsize * math.prod(shape))
                yield np.frombuffer(whole, dtype).reshape(shape, order="F" if by_columns else "C")
                return
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                yield np.frombuffer(_bytes(member, count * header.row_bytes), dtype).reshape(count, *shape[1:])
            member.read(1)  # to the end, where the values are checked


def npz_names(path: str | Path) -> list[str]:
    """The names of the arrays in an .npz file.

    Raises:
        ValueError: damage.
    """
    with reading(path), zipfile.ZipFile(path) as file:
        return [member.removesuffix(".npy") for member in file.namelist() if member.endswith(".npy")]


def read_npz(path: str | Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read some arrays of an .npz file.

    Args:
        path: the file.
        names: of the arrays.

    Raises:
        ValueError: damage, or an array that is not there.
    """
    found = {}
    with reading(path), zipfile.ZipFile(path) as file:
        known = npz_names(path)
        if missing := sorted(set(names) - set(known)):
            few = ", ".join(known[:8]) + " …" * (len(known) > 8)
            raise ValueError(f"it has no array {', '.join(missing)}; it has {few or 'none'}")
        for name in names:
            info = file.getinfo(f"{name}.npy")
            with file.open(info) as member:
                try:
                    shape, dtype, by_columns = _header(member, _length(info))
                except ValueError as error:
                    raise ValueError(f"its array {name}: {error}") from None
                values = _bytes(member, dtype.itemsize * math.prod(shape))
                member.read(1)  # to the end, where the values are checked
                found[name] = np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")
    return found


class _NoNumbersError(ValueError):
    """An array whose values are Python objects, or fields, or have no type."""


def _length(info: zipfile.ZipInfo) -> int:
    """The length of a member of a zip, which its compressed bytes have to be able to hold."""
    if info.file_size > _MOST.get(info.compress_type, _MOST_OF_OTHERS) * info.compress_size + 100:
        raise ValueError(f"it says {info.file_size} bytes, which its {info.compress_size} compressed ones cannot hold")
    return info.file_size


def _header(file: io.BufferedReader | zipfile.ZipExtFile, length: int) -> ArrayHeader:
    """The header at the beginning of a file of some length; the file is left where the values begin."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its header is of version {version}, which is unknown")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, by_columns, dtype = read(file)
    except Exception as error:  # it is Python that is parsed there: of any kind
        raise ValueError(f"its header is damaged: {' '.join(str(error).split())[:80]}") from None
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its header is damaged: no array has the shape {shape}")
    if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize:
        raise _NoNumbersError(f"it is an array of {dtype}, and only numbers and text are read: nothing is unpickled")
    if dtype.kind == "V":
        raise _NoNumbersError(
            f"its values are {dtype.itemsize} bytes without a type ({dtype.str}), as np.save leaves bfloat16: "
            "save x.astype(np.float32)"
        )
    said, there = dtype.itemsize * math.prod(shape), length - file.tell()
    if said > there:
        raise ValueError(f"its header says {shape} of {dtype}, {said} bytes, and {there} are there")
    if said < there:
        raise ValueError(
            f"{there - said} bytes follow its array {shape} of {dtype}: one array to a file, or np.savez for several"
        )
    return ArrayHeader(shape, dtype, by_columns)


def _bytes(member: zipfile.ZipExtFile, count: int) -> bytearray:
    found = bytearray(member.read(count))
    if len(found) < count:
        raise ValueError(f"it ends {count - len(found)} bytes too soon")
    return found
