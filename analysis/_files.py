"""Features and labels from files that others wrote; damage is a ValueError of one sentence, nothing is unpickled."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from analysis._input import Array

NAMES = ("z", "features")
ROOT = Path(__file__).parents[1]
DAMAGE = (OSError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile, zlib.error)


def located(path: str | Path | None) -> Path | None:
    """A path as it stands or, if relative, from the checkout's folder; None if it is at neither place, or None."""
    places = [] if path is None else [Path(path).expanduser(), ROOT / Path(path).expanduser()]
    return next((place for place in places if place.exists()), None)


def read_features(path: Path) -> tuple[Array, Array | None]:
    """Features as stored, and the labels beside them or None; a .npy file is memory-mapped, and read by its user.

    .npz and .safetensors: the array `z` or `features`, or the only one besides `labels`. .parquet: the numeric columns
    but `labels`, or the only column, of lists.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": load_file, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path.name} must be a run directory or one of {', '.join(readers)}")
    try:
        arrays = readers[path.suffix.lower()](path)
    except DAMAGE as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    labels = arrays.pop("labels", None)
    found = [name for name in NAMES if name in arrays] or list(arrays)
    if len(found) != 1:
        raise ValueError(f"{path.name} must hold one array, or one named z or features; it holds {list(arrays)}")
    return arrays[found[0]], labels


def read_labels(path: Path) -> Array:
    """Labels (n,): text with an integer a line (.txt, .csv), or `labels` or the only array of a file of features."""
    if path.suffix.lower() not in (".txt", ".csv"):
        only, labels = read_features(path)
        return np.array(only) if labels is None else labels
    try:
        return np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    return {"z": np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ValueError("parquet files need pyarrow, which is not installed: pip install pyarrow") from None
    arrays = {"labels": table.pop("labels").to_numpy()} if "labels" in table else {}
    numeric = table.select_dtypes("number")
    if numeric.empty and table.shape[1] == 1:
        return arrays | {"z": np.stack(list(table.iloc[:, 0]))}
    return arrays | {"z": numeric.to_numpy()}
