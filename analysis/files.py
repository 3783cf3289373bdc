"""Features and labels from files that others wrote: what is taken is said, and what could be meant in two ways refused.

Features come as a `Stream` of chunks of rows, read when they are wanted, so that a file may be larger than the memory.
Nothing is unpickled; damage is a ValueError that names the file. docs/what_can_be_read.md has the rules.
"""

import csv
import fnmatch
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import safe_open
from torch import Tensor

from simdino.array_files import npy_header, npz_chunks, npz_headers, reading
from simdino.runs import CHECKOUT

FEATURE_NAMES = ("z", "features", "embeddings")
LABEL_NAMES = ("labels", "label", "targets", "target", "y", "class")
TEXT_SUFFIXES = {".txt": None, ".csv": ",", ".tsv": "\t"}  # and what separates the columns


class Stream(NamedTuple):
    """An array on disk: its shape, a function that yields it in chunks of at most the given rows, and its name."""

    shape: tuple[int, ...]
    chunks: Callable[[int], Iterator[Tensor | np.ndarray]]
    name: str = "z"


class LabelFile(NamedTuple):
    """Class indices, and what they were made of."""

    labels: Int64[np.ndarray, " n"]
    read: str  # a sentence


class FeatureFile(NamedTuple):
    """What a file of features holds."""

    features: Stream
    labels: Int64[np.ndarray, " n"] | None  # those beside the features
    read: str  # a sentence: what was taken as what, and what was left


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


def read_features(
    path: str | Path, *, features: str | None = None, label: str | None = None, with_labels: bool = True
) -> FeatureFile:
    """Read features and the labels beside them, if there are any.

    Of several arrays, the one that is called z, features or embeddings is taken, or the only one besides labels. Of a
    table, the only column of lists; else the numeric columns, if they are one series (f0, f1, ...) or all of one type.
    A table's index is left. Labels are the array or column called labels, label, targets, target, y or class.

    Args:
        path: .npy, .npz, .safetensors, .pt, .pth, .parquet, .csv or .tsv.
        features: the array, or the columns with commas between them, "f*" for all that begin so, where the rule above
            would refuse or take others.
        label: the array or column of the labels, where it is called otherwise.
        with_labels: whether labels beside the features are read.

    Raises:
        ValueError: no such file, damage, several arrays or columns that could be meant, labels that are none.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file or run directory {path}")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path.name} must be a run directory or one of {', '.join(READERS)}")
    with reading(path):
        found = READERS[path.suffix.lower()](path)
    labels_of = _label_name(path, found, features, label)
    names = _feature_names(path, found, features, labels_of)
    with reading(path):
        stream = found.take(names)

    def chunks(rows: int) -> Iterator[Tensor | np.ndarray]:
        seen = 0
        with reading(path):
            for chunk in stream.chunks(rows):
                seen += len(chunk)
                yield chunk
            if seen != stream.shape[0]:
                raise ValueError(f"it says {stream.shape[0]} rows, and has {seen}")

    said, labels = f"{path.name}: {_listed(names)} as features", None
    if labels_of and with_labels:
        with reading(path):
            values = _whole(found.take([labels_of]), path)
        labels, of = class_indices(values, f"{labels_of} of {path.name}")
        said += f", {labels_of} as labels{of}"
    taken = {*names, labels_of} if with_labels else {*names}
    left = [f"{name} ({kind})" for name, kind in found.kinds.items() if name not in taken]
    left += found.others
    said += f"; left: {_listed(left)}" if left else ""
    return FeatureFile(Stream(stream.shape, chunks, f"{_listed(names)} of {path.name}"), labels, said)


def read_labels(path: str | Path, *, label: str | None = None) -> LabelFile:
    """Read the class of each row (n,), as indices.

    Of text, one in each line, or the column that is called as a label is. Of arrays, `labels` or whatever a label is
    called, or the only one.

    Args:
        path: .txt, .csv, .tsv, or any other file that features are read from.
        label: the array or column, where it is called otherwise.

    Raises:
        ValueError: as in `read_features`; labels that are no whole numbers and no names.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix.lower() in TEXT_SUFFIXES:
        with reading(path):
            name, values = _text_labels(path, label)
    else:
        if path.suffix.lower() not in READERS:
            raise ValueError(
                f"labels are read from {', '.join({**TEXT_SUFFIXES, **READERS})}, and not from {path.name}"
            )
        with reading(path):
            found = READERS[path.suffix.lower()](path)
        name = _label_name(path, found, None, label)
        if name is None:
            if len(found.kinds) != 1:
                raise ValueError(
                    f"{path.name} has {_listed(list(found.kinds))}: say with --label which of them are the labels"
                )
            (name,) = found.kinds
        with reading(path):
            values = _whole(found.take([name]), path)
    labels, of = class_indices(values, f"{name} of {path.name}" if name else path.name)
    return LabelFile(labels, f"{path.name}: {name or 'each line'} as labels{of}")


def class_indices(values: Tensor | np.ndarray, name: str) -> tuple[Int64[np.ndarray, " n"], str]:
    """Class indices from labels of any type, and what is to be said of them.

    Args:
        values: (n,) or (n, 1): whole numbers of any type, truth values, or names, which are numbered in their order.
        name: what messages call them.

    Raises:
        ValueError: another shape, numbers that are not whole, dates, missing values, or names that are all different.

    >>> class_indices(np.array(["dog", "cat", "dog"]), "label")
    (array([1, 0, 1]), ' of 2 classes: cat, dog')
    """
    x = values.numpy() if isinstance(values, Tensor) else np.asarray(values)
    x = x[:, 0] if x.ndim == 2 and x.shape[1] == 1 else x
    if x.ndim != 1:
        raise ValueError(f"{name} must have one label for each row, and has the shape {x.shape}")
    if x.dtype.kind == "O":
        x = _of_one_kind(x, name)
    if x.dtype.kind == "S":
        x = np.char.decode(x, "utf-8", "replace")
    if x.dtype.kind == "U":
        x = _named_or_numbered([word.strip() for word in x.tolist()], lambda row: f"{name}: row {row}")
    if x.dtype.kind == "U":
        names, index, counts = np.unique(x, return_inverse=True, return_counts=True)
        if len(names) > 2 and counts.max() == 1:
            raise ValueError(f"{name} has a label of its own for each of {len(x)} rows, such as {names[0]}: no classes")
        return index.astype(np.int64), f" of {len(names)} classes: {_listed([str(n) for n in names])}"
    if x.dtype.kind == "f":
        x = x.astype(np.float64)
        wrong = np.flatnonzero(~(np.isfinite(x) & (x == np.round(x)) & (abs(x) < 2**53)))
        if len(wrong):
            raise ValueError(f"{name} must be whole numbers or names, and row {wrong[0]} is {x[wrong[0]]}")
    elif x.dtype.kind not in "iub":
        raise ValueError(f"{name} must be whole numbers or names, and not {x.dtype}")
    if x.dtype.kind == "u" and len(x) and x.max() > 2**62:
        raise ValueError(f"{name} must be class indices, and has {x.max()}")
    return x.astype(np.int64), ""


def _of_one_kind(x: np.ndarray, name: str) -> np.ndarray:
    """Python objects as text, truth values or numbers, if they are all of one of these."""
    kinds = {"text": str, "truth values": bool | np.bool_, "numbers": int | float | np.integer | np.floating}
    of = [next((kind for kind, types in kinds.items() if isinstance(value, types)), "nothing") for value in x]
    missing = [row for row, value in enumerate(x) if of[row] == "nothing" or value != value]  # NaN is not itself
    if missing:
        raise ValueError(f"{name}: row {missing[0]} has no label: drop such rows")
    other = [row for row, kind in enumerate(of) if kind != of[0]]
    if other:
        raise ValueError(f"{name}: row {other[0]} is {x[other[0]]!r}, and others are {of[0]}")
    return np.array(x.tolist())


def _named_or_numbered(words: list[str], place: Callable[[int], str]) -> np.ndarray:
    """Numbers, if all words are; names, if none is. `place` says where a word is that does not fit."""
    empty = [i for i, word in enumerate(words) if not word]
    if empty:
        raise ValueError(f"{place(empty[0])} is empty: every row needs its label")
    numbers = [_is_number(word) for word in words]
    if words and all(re.fullmatch(r"\d{4}-\d\d?-\d\d?([T ].*)?", word) for word in words):
        raise ValueError(f"{place(0)} is {words[0]!r}, a date: no classes")
    if not any(numbers):
        return np.array(words)
    if not all(numbers):
        i = numbers.index(not numbers[0])
        raise ValueError(f"{place(i)} is {words[i]!r}, and others are {'numbers' if numbers[0] else 'names'}")
    try:
        return np.array([int(word) for word in words], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array([float(word) for word in words])


class _Contents(NamedTuple):
    """What a file holds, by name: what is said of it, and how it is read."""

    kinds: dict[str, str]
    take: Callable[[list[str]], Stream]  # several are columns of one array
    table: bool = False
    others: tuple[str, ...] = ()  # what else is in it, which cannot be taken


_NUMBERS = ("whole numbers", "numbers")  # of a table's column; the others cannot be features, but "lists"


def _label_name(path: Path, found: _Contents, features: str | None, label: str | None) -> str | None:
    if label is not None:
        if label not in found.kinds:
            raise ValueError(f"{path.name} has no {label}; it has {_listed(list(found.kinds))}")
        return label
    named = [name for name in found.kinds if name.lower() in LABEL_NAMES and name != features]
    if len(named) > 1:
        raise ValueError(f"{path.name} has {_listed(named)}: say with --label which of them are the labels")
    return named[0] if named else None


def _feature_names(path: Path, found: _Contents, features: str | None, label: str | None) -> list[str]:
    """The array, or the columns, that are the features."""
    kinds = {name: kind for name, kind in found.kinds.items() if name != label}
    if features is not None:
        wanted = [features] if features in kinds else features.split(",")
        names = [name for name in kinds if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]
        unmet = [pattern for pattern in wanted if not fnmatch.filter(names, pattern)]
        if unmet:
            raise ValueError(f"{path.name} has no {unmet[0]}; it has {_listed(list(found.kinds))}")
        if len(names) > 1 and not (found.table and all(kinds[name] in _NUMBERS for name in names)):
            raise ValueError(f"{_listed(names)} of {path.name} are not the numeric columns of one table: name one")
        return names
    if not found.table:
        names = [name for name in kinds if name in FEATURE_NAMES] or list(kinds)
        if len(names) != 1:
            inside = f", but {_listed(list(found.others))}" if found.others else ""
            has = f"it has {_listed(names)}: say which with --features" if names else f"it has none{inside}"
            raise ValueError(f"{path.name} must hold one array, or one named {' or '.join(FEATURE_NAMES)}; {has}")
        return names
    lists = [name for name, kind in kinds.items() if kind == "lists"]
    numbers = [name for name, kind in kinds.items() if kind in _NUMBERS and name.lower() not in LABEL_NAMES]
    if len(lists) == 1:
        return lists
    if lists or not numbers:
        why = f"several columns of lists, {_listed(lists)}" if lists else "no column of numbers and none of lists"
        raise ValueError(f"{path.name} has {why}: say with --features which are the features")
    series = {_series(name) for name in numbers}
    odd = [n for n in kinds if kinds[n] == "text" or (kinds[n] == "row numbers" and _series(n))]
    odd = [name for name in odd if series == {_series(name)} != {None}]
    if odd:
        raise ValueError(
            f"{odd[0]} of {path.name} is {kinds[odd[0]]}, where {_listed(numbers)} are numbers: mend it, or name the "
            "columns that are the features with --features"
        )
    mixed = len({kinds[name] for name in numbers}) > 1
    if len(series) > 1 or (series <= {None, ""} and mixed):
        raise ValueError(
            f"the columns {_listed(numbers)} of {path.name} are of several kinds, and not all need be features: name "
            f"those that are, --features 'A,B' or --features '{next(iter(s for s in series if s), 'f')}*'"
        )
    return numbers


def _series(name: str) -> str | None:
    """What stands before the number that a name ends with; None for other names."""
    found = re.fullmatch(r"(.*?)\d+", name)
    return found and found[1]


def _whole(stream: Stream, path: Path) -> np.ndarray:
    def plain(chunk: Tensor | np.ndarray) -> np.ndarray:
        return np.asarray(chunk.float() if isinstance(chunk, Tensor) and chunk.dtype == torch.bfloat16 else chunk)

    with reading(path):
        if not stream.shape:
            raise ValueError("it holds one number, no row for each")
        return np.concatenate([plain(chunk) for chunk in stream.chunks(2**20)] or [np.empty(stream.shape)])


def _listed(names: list[str]) -> str:
    if len(names) > 6:
        return f"{names[0]}, {names[1]} … {names[-1]} ({len(names)})"
    return ", ".join(names)


def _npy(path: Path) -> _Contents:
    header = npy_header(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # as long as its header says, and of numbers
    stream = Stream(array.shape, lambda rows: (np.array(array[i : i + rows]) for i in range(0, len(array), rows)))
    return _Contents({"the array": f"{header.shape} {header.dtype}"}, lambda _: stream)


def _npz(path: Path) -> _Contents:
    headers = npz_headers(path)

    def take(names: list[str]) -> Stream:
        (name,) = names
        if headers[name] is None:
            raise ValueError(
                f"its array {name} holds Python objects, fields, or values without a type, as NumPy saves bfloat16, "
                "which are never read: save x.astype(np.float32)"
            )
        return Stream(headers[name].shape, lambda rows: npz_chunks(path, name, rows))

    kinds = {n: f"{header.shape} {header.dtype}" if header else "Python objects" for n, header in headers.items()}
    return _Contents(kinds, take)


def _safetensors(path: Path) -> _Contents:
    def chunks(name: str, rows: int) -> Iterator[Tensor]:
        with safe_open(path, "pt") as file:
            part = file.get_slice(name)
            for i in range(0, part.get_shape()[0], rows):
                yield part[i : i + rows]

    def take(names: list[str]) -> Stream:
        (name,) = names
        return Stream(shapes[name], lambda rows: chunks(name, rows))

    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        kinds = {name: f"{shapes[name]} {part.get_dtype()}" for name, part in slices.items()}
    return _Contents(kinds, take)


def _torch(path: Path) -> _Contents:
    """A tensor, or a dictionary of them, as `torch.save` writes it; only tensors are ever made of what it holds."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no file of today's torch.save: save it anew, or np.save the array")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever torch says of it, at length
        raise ValueError(
            "it is damaged, or holds more than tensors and plain values, which is not read: save the tensors alone, or "
            "np.savez the arrays"
        ) from None
    named = saved if isinstance(saved, dict) else {"the tensor": saved}

    def plain(x: object) -> bool:
        return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_quantized

    tensors = {str(name): x.detach() for name, x in named.items() if plain(x)}
    others = tuple(f"{name} ({type(x).__name__})" for name, x in named.items() if not plain(x))
    for name, x in tensors.items():
        if x.numel() * x.element_size() > path.stat().st_size:
            raise ValueError(f"its tensor {name} says {tuple(x.shape)}, more than the file has")

    def take(names: list[str]) -> Stream:
        x = tensors[names[0]]
        return Stream(tuple(x.shape), lambda rows: (x[i : i + rows].clone() for i in range(0, len(x), rows)))

    kinds = {name: f"{tuple(x.shape)} {x.dtype}".replace("torch.", "") for name, x in tensors.items()}
    return _Contents(kinds, take, others=others)


def _parquet(path: Path) -> _Contents:
    try:
        from pyarrow import parquet, types
    except ImportError:
        raise ValueError("parquet files need pyarrow, which is not installed: pip install pyarrow") from None
    import json

    file = parquet.ParquetFile(path)
    n, schema = file.metadata.num_rows, file.schema_arrow
    if twice := {name for name in schema.names if schema.names.count(name) > 1}:
        raise ValueError(f"it has two columns that are called {min(twice)}")
    of_pandas = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    index = {name for name in of_pandas.get("index_columns", []) if isinstance(name, str)}

    def kind(column: "pyarrow.Field") -> str:  # noqa: F821
        if column.name in index or re.fullmatch(r"__index_level_\d+__", column.name):
            return "the table's index"
        if types.is_integer(column.type) or types.is_floating(column.type):
            return _NUMBERS[types.is_floating(column.type)]
        inner = getattr(column.type, "value_type", None)
        lists = inner is not None and not types.is_dictionary(column.type)
        return "lists" if lists and (types.is_integer(inner) or types.is_floating(inner)) else str(column.type)

    def batches(names: list[str], rows: int) -> Iterator[list[np.ndarray]]:
        for batch in parquet.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=rows, columns=names):
            columns = [batch.column(batch.schema.get_field_index(name)) for name in names]
            columns = [c.dictionary_decode() if types.is_dictionary(c.type) else c for c in columns]
            yield [np.asarray(c.to_numpy(zero_copy_only=False)) for c in columns]

    def take(names: list[str]) -> Stream:
        if kinds[names[0]] == "lists":
            if not n:
                raise ValueError("it has no rows")
            width = len(next(batches(names, 1))[0][0])

            def lists(rows: int) -> Iterator[np.ndarray]:
                for (column,) in batches(names, rows):
                    if any(row is None or len(row) != width for row in column):
                        raise ValueError(f"the lists in {names[0]} are not all {width} long")
                    yield np.stack(list(column))

            return Stream((n, width), lists)
        if kinds[names[0]] in _NUMBERS:
            return Stream((n, len(names)), lambda rows: (np.stack(columns, 1) for columns in batches(names, rows)))
        return Stream((n,), lambda rows: (columns[0] for columns in batches(names, rows)))

    kinds = {column.name: kind(column) for column in schema}
    return _Contents(kinds, take, table=True)


def _text(path: Path) -> _Contents:
    """A table of text, all of it at once."""
    import pandas as pd

    separator = TEXT_SUFFIXES[path.suffix.lower()]
    with open(path, encoding="utf-8-sig") as file:
        line = file.readline()
    if line.startswith("#"):
        raise ValueError(f"its first line is a comment, {line.strip()[:40]!r}: take it out")
    if separator not in line and any(other in line for other in ",;\t"):
        raise ValueError(f"its columns are not separated by {separator!r}: {line.strip()[:40]!r}")
    if separator == "," and ";" in line:
        raise ValueError(
            f"it has both ',' and ';' in {line.strip()[:40]!r}: save it with '.' in numbers and ',' between"
        )
    first = next(csv.reader([line], delimiter=separator), [])
    numbered = len(first) > 1 and first == [str(i) for i in range(len(first))]  # as pandas names columns without names
    header = 0 if numbered or not all(map(_is_number, first)) else None
    missing = {"keep_default_na": False, "na_values": ["", "nan", "NaN"]}  # NA and None may be names
    table = pd.read_csv(path, sep=separator, encoding="utf-8-sig", header=header, **missing)
    table.columns = table.columns.map(str)
    if table.index.nlevels > 1:
        raise ValueError(f"its rows have {table.index.nlevels} cells more than its first line")
    if not isinstance(table.index, pd.RangeIndex):  # as R writes the names of rows
        table = table.reset_index(names="names of rows")
        first = ["", *first]
    unnamed = table.columns[0] if not (first and first[0]) and len(table.columns) else None  # as to_csv writes an index

    def kind(name: str) -> str:
        if name == unnamed:
            return "the table's index"
        of = table[name].dtype
        counted = pd.api.types.is_integer_dtype(of) and len(table) > 2
        if counted and any((table[name] == np.arange(first, first + len(table))).all() for first in (0, 1)):
            return "row numbers"
        number = pd.api.types.is_numeric_dtype(of) and not pd.api.types.is_bool_dtype(of)
        return _NUMBERS[pd.api.types.is_float_dtype(of)] if number else "text"

    def take(names: list[str]) -> Stream:
        x = table[names].to_numpy() if kinds[names[0]] in _NUMBERS else table[names[0]].to_numpy(object)
        return Stream(x.shape, lambda rows: (x[i : i + rows] for i in range(0, len(x), rows)))

    kinds = {name: kind(name) for name in table.columns}
    return _Contents(kinds, take, table=True)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def _text_labels(path: Path, label: str | None) -> tuple[str | None, np.ndarray]:
    """The labels in a text file: the name of their column, if it has one, and each label, a number or a name."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    separator = TEXT_SUFFIXES[path.suffix.lower()]
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=separator)) if separator else [[x] for x in lines]
    if not rows:
        raise ValueError("it is empty")
    empty = [i for i, row in enumerate(rows, 1) if not any(word.strip() for word in row)]
    if empty:
        raise ValueError(f"line {empty[0]} is empty: every row needs its label")
    ragged = [i for i, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if ragged:
        raise ValueError(f"line {ragged[0]} has {len(rows[ragged[0] - 1])} columns, and the first line {len(rows[0])}")
    head = [word.strip() for word in rows[0]]
    if len(head) == 1:
        numbers = [_is_number(row[0]) for row in rows]
        name = head[0].lstrip("# ")
        commented = head[0].startswith("#")
        known = label == name or name.lower() in LABEL_NAMES or commented
        named = known or (len(rows) > 2 and not numbers[0] and all(numbers[1:]))
        if all(re.search(r"[,;\t]|^\S.*\s[-+.\d]+$", row[0].strip()) for row in rows[named:]):
            raise ValueError(
                f"its lines have several columns, as {rows[-1][0].strip()[:40]!r}: save it as .csv or .tsv, with "
                "names in the first line"
            )
        if label is not None and label != name:
            raise ValueError(f"it has no column {label}; its first line is {head[0]}")
        words = [row[0].strip() for row in rows[named:]]
        return (name if named else None), _named_or_numbered(words, lambda i: f"line {i + 1 + named}")
    wanted = [word for word in head if (word == label if label is not None else word.lower() in LABEL_NAMES)]
    if len(wanted) != 1:
        raise ValueError(f"it has the columns {_listed(head)}: say with --label which of them are the labels")
    column = head.index(wanted[0])
    words = [row[column].strip() for row in rows[1:]]
    if not words:
        raise ValueError("it has names of columns and no rows")
    return wanted[0], _named_or_numbered(words, lambda i: f"line {i + 2}")


READERS: dict[str, Callable[[Path], _Contents]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".csv": _text,
    ".tsv": _text,
    ".pt": _torch,
    ".pth": _torch,
}
