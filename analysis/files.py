"""Features and labels from files that others wrote; damage is a ValueError of one sentence, nothing is unpickled.

Features come as a `Stream` of chunks of rows, read when they are wanted, so that a file may be larger than the memory.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simdino.runs import CHECKOUT

FEATURE_NAMES = ("z", "features")
DAMAGE = (OSError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile, zlib.error)


class Stream(NamedTuple):
    """An array on disk: its shape, and a function that yields it in chunks of at most the given number of rows."""

    shape: tuple[int, ...]
    chunks: Callable[[int], Iterator[Tensor | np.ndarray]]


class FeatureFile(NamedTuple):
    """What a file of features holds."""

    features: Stream
    labels: Tensor | np.ndarray | None  # those beside the features


def located(path: str | Path | None) -> Path | None:
    """Find a path as it stands or, if relative, in the project's folder; None if it is in neither place, or None."""
    places = [] if path is None else [Path(path).expanduser(), CHECKOUT / Path(path).expanduser()]
    return next((place for place in places if place.exists()), None)


def is_name(what: str | Path, names: Iterable[str], remedy: str) -> bool:
    """Whether something is one of some names rather than a path.

    Args:
        what: a `Path` is none.
        names: what it could be called.
        remedy: how the name is written where there is a path of that name, too.

    Raises:
        ValueError: it could be either.

    >>> is_name("pixels", ("pixels", "random"), "..."), is_name(Path("pixels"), ("pixels", "random"), "...")
    (True, False)
    """
    if not isinstance(what, str) or what not in names:
        return False
    if Path(what).exists():
        raise ValueError(f"{what} is a name, and a path here, too: write ./{what} for the path, {remedy}")
    return True


def read_features(path: Path) -> FeatureFile:
    """Read features and the labels beside them, if there are any.

    Of a .npz or .safetensors the array `z` or `features` is taken, or the only one besides `labels`; of a .parquet the
    numeric columns besides `labels`, or the only column, of lists.

    Args:
        path: .npy, .npz, .safetensors or .parquet.

    Raises:
        ValueError: no such file, damage, several arrays that could be meant.
    """
    if not path.is_file():
        raise ValueError(f"there is no file or run directory {path}")
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path.name} must be a run directory or one of {', '.join(readers)}")
    with _named(path):
        arrays = readers[path.suffix.lower()](path)
    labels = arrays.pop("labels", None)
    found = [name for name in FEATURE_NAMES if name in arrays] or list(arrays)
    if len(found) != 1:
        raise ValueError(f"{path.name} must hold one array, or one named z or features; it holds {list(arrays)}")
    features = arrays[found[0]]

    def chunks(rows: int) -> Iterator[Tensor | np.ndarray]:
        with _named(path):
            yield from features.chunks(rows)

    return FeatureFile(Stream(features.shape, chunks), labels and _whole(labels, path))


def read_labels(path: Path) -> Tensor | np.ndarray:
    """Read labels (n,): text with one integer in each line (.txt, .csv), or `labels` or the only array of a file."""
    if path.suffix.lower() not in (".txt", ".csv"):
        only, labels = read_features(path)
        return _whole(only, path) if labels is None else labels
    with _named(path):
        return np.loadtxt(path, dtype=np.int64, ndmin=1)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever reading raises, as one sentence that names the file."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def _whole(stream: Stream, path: Path) -> np.ndarray:
    with _named(path):
        return np.concatenate([np.asarray(chunk) for chunk in stream.chunks(2**20)] or [np.empty(stream.shape)])


def _npy(path: Path) -> dict[str, Stream]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"z": Stream(array.shape, lambda rows: (np.array(array[i : i + rows]) for i in range(0, len(array), rows)))}


def _npz(path: Path) -> dict[str, Stream]:
    with zipfile.ZipFile(path) as file:
        return {name.removesuffix(".npy"): _member(path, name) for name in file.namelist()}


def _member(path: Path, name: str) -> Stream:
    """An array in a zip, from whose beginning it is decompressed row by row."""
    with zipfile.ZipFile(path) as file, file.open(name) as member:
        shape, by_columns, dtype = _header(member)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    size = dtype.itemsize * int(np.prod(shape[1:]))

    def chunks(rows: int) -> Iterator[np.ndarray]:
        if by_columns:
            with np.load(path, allow_pickle=False) as file:
                yield file[name.removesuffix(".npy")]
            return
        with zipfile.ZipFile(path) as file, file.open(name) as member:
            _header(member)
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                yield np.frombuffer(bytearray(member.read(count * size)), dtype).reshape(count, *shape[1:])

    return Stream(shape, chunks)


def _header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _safetensors(path: Path) -> dict[str, Stream]:
    def chunks(name: str, rows: int) -> Iterator[Tensor | np.ndarray]:
        with safe_open(path, "pt") as file:
            part = file.get_slice(name)
            for i in range(0, part.get_shape()[0], rows):
                yield part[i : i + rows]

    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a dict
    return {name: Stream(shape, lambda rows, name=name: chunks(name, rows)) for name, shape in shapes.items()}


def _parquet(path: Path) -> dict[str, Stream]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise ValueError("parquet files need pyarrow, which is not installed: pip install pyarrow") from None

    def batches(columns: list[str], rows: int) -> Iterator[list[np.ndarray]]:
        try:
            for batch in parquet.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=rows, columns=columns):
                yield [np.asarray(c.to_numpy(zero_copy_only=False)) for c in batch.columns]
        except ArrowException as error:
            raise ValueError(error) from None

    try:
        file = parquet.ParquetFile(path)
    except ArrowException as error:
        raise ValueError(error) from None
    n, schema = file.metadata.num_rows, file.schema_arrow
    others = [c for c in schema if c.name != "labels"]
    numeric = [c.name for c in others if types.is_integer(c.type) or types.is_floating(c.type)]

    def table(rows: int) -> Iterator[np.ndarray]:
        return (np.stack(batch, 1) for batch in batches(numeric, rows))

    def lists(rows: int) -> Iterator[np.ndarray]:
        return (np.stack(list(batch[0])) for batch in batches([others[0].name], rows))

    arrays = {}
    if "labels" in schema.names:
        arrays["labels"] = Stream((n,), lambda rows: (batch[0] for batch in batches(["labels"], rows)))
    if numeric:
        return arrays | {"z": Stream((n, len(numeric)), table)}
    if len(others) != 1 or not n or not hasattr(others[0].type, "value_type"):
        raise ValueError("it has neither numeric columns nor exactly one column of lists")
    return arrays | {"z": Stream((n, next(lists(1)).shape[1]), lists)}
