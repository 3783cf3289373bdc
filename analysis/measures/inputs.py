"""The one place that converts and validates what a diagnostic is given: messages name the argument and the remedy.

`as_tensor` converts features, `as_labels` labels. It is also where devices meet: labels, targets and second sets of
features move to the device of the first argument.
"""

import math
import warnings
from numbers import Integral, Number
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# Tensors, arrays, data frames, lists: whatever `as_tensor` takes. What it does not take is our ValueError, with a
# sentence, and not a type error.
Array = Any
# Of the largest value: its fourth power and its inverse's, which moments and correlations take, are in float64's range.
SMALLEST, LARGEST = 1e-60, 1e60


def as_tensor(x: Array, name: str, *, device: torch.device | None = None) -> Shaped[Tensor, "..."]:
    """A dense tensor of numbers, of whatever people keep numbers in; it shares memory where it can.

    Taken are tensors (sparse ones become dense), arrays of any byte order, memory layout and type (long doubles become
    float64, unsigned integers signed ones), data frames and series of pandas or polars, `xarray.DataArray`, matrices of
    `scipy.sparse`, memory maps, lists of any of these, columns of lists, and arrays of other packages. Two bytes
    without a type, |V2, are bfloat16: that is how numpy saves it.

    Args:
        x: any of these.
        name: what messages call it.
        device: where it is to be, if not where it is.

    Raises:
        ValueError: it is text, dates, objects or nothing; it has named fields or masked values; it is no one array.

    >>> as_tensor(np.array([[1, 2], [3, 4]], dtype=">i4")[::-1], "z")
    tensor([[3, 4],
            [1, 2]], dtype=torch.int32)
    >>> as_tensor([torch.zeros(2), torch.ones(2)], "z")
    tensor([[0., 0.],
            [1., 1.]])
    >>> as_tensor(np.array(["a"]), "z")
    Traceback (most recent call last):
    ValueError: z must be numeric, got text such as 'a'
    """
    if not isinstance(x, Tensor):
        x = _as_array(x, name)
    if isinstance(x, np.ndarray):
        x = _from_array(x, name)
    if x.is_nested:
        raise ValueError(f"{name} must be one array, got rows of different lengths")
    return (x if x.layout == torch.strided else x.to_dense()).to(device)


def _as_array(x: Array, name: str) -> np.ndarray | Tensor:
    """An array of numpy, of any type; a tensor if there are tensors in a list."""
    if x is None or isinstance(x, str | bytes | dict | set) or hasattr(x, "data_vars"):  # the last is xarray.Dataset
        shown = repr(x) if x is None or isinstance(x, str | bytes) else type(x).__name__
        raise ValueError(f"{name} must be one array, got {shown}")
    if hasattr(x, "toarray"):  # scipy.sparse
        return x.toarray()
    if hasattr(x, "__cuda_array_interface__"):  # on a GPU, of another package
        return torch.as_tensor(x)
    if np.ma.isMaskedArray(x):
        if np.ma.is_masked(x):
            raise ValueError(f"{name} has masked values: drop their rows, or fill them in")
        return x.data
    try:
        if isinstance(x, list | tuple) and any(isinstance(row, Tensor) for row in x):
            return torch.stack([as_tensor(row, name) for row in x])
        array = np.asarray(x.to_numpy() if hasattr(x, "to_numpy") else x)  # pandas, polars, xarray
    except (ValueError, RuntimeError, TypeError) as error:  # ragged lists, tensors that need a gradient
        raise ValueError(f"{name} must be one array: {' '.join(str(error).split())}") from None
    if array.dtype.kind == "O" and array.ndim == 2 and hasattr(x, "columns"):
        typed = {str(column): np.array(np.asarray(x[column]).tolist()) for column in x.columns}
        others = [column for column, values in typed.items() if values.dtype.kind not in "biuf"]
        if others:
            raise ValueError(f"{name} must be numeric, and its columns {', '.join(others)} are not: drop them")
    return array


def _from_array(x: np.ndarray, name: str) -> Tensor:
    """A tensor of an array of numpy."""
    if x.dtype.kind == "O":
        x = _of_objects(x, name)
        if isinstance(x, Tensor):
            return x
    if x.dtype.names is not None:
        raise ValueError(f"{name} must be one array, got the named fields {', '.join(x.dtype.names)}: stack them")
    kind, size = x.dtype.kind, x.dtype.itemsize
    if kind in "USmM":
        what = "text" if kind in "US" else "dates"
        raise ValueError(f"{name} must be numeric, got {what} such as {str(x.flat[0]) if x.size else ''!r}")
    half = x.dtype.name == "bfloat16" or (kind == "V" and size == 2)
    if half:
        x = x.view(np.uint16)
    elif kind == "V" or size > 8 * (1 + (kind == "c")):  # types of eight bits; long doubles
        try:
            with np.errstate(over="ignore"):  # infinite values are refused as such
                x = x.astype({"V": np.float32, "f": np.float64, "c": np.complex128}[kind])
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be numeric, got {size} bytes without a type, {x.dtype}") from None
    elif kind == "u" and size > 1:
        signed = np.int64 if size < 8 or not x.size or x.max() < 2**63 else np.float64
        x = x.astype(signed)
    x = x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if any(step < 0 or step % x.itemsize for step in x.strides):
        x = x.copy()
    if half:
        x = x.view(np.int16)
    with warnings.catch_warnings():  # a map of a file cannot be written to, nor is it here
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(x)
    return tensor.view(torch.bfloat16) if half else tensor


def _of_objects(x: np.ndarray, name: str) -> np.ndarray | Tensor:
    """Numbers, or rows of numbers, that are kept as Python objects."""
    if x.ndim == 1 and any(isinstance(row, Tensor | np.ndarray | list | tuple) for row in x):
        return _as_array(x.tolist(), name)
    text = next((value for value in x.flat if isinstance(value, str)), None)
    if text is not None:
        raise ValueError(f"{name} must be numeric, got text such as {text!r}")
    typed = np.array(x.tolist()) if x.size else x.astype(np.float64)
    if typed.dtype.kind != "O":
        return typed
    try:
        return typed.astype(np.float64)  # None becomes NaN, which is refused as such
    except (TypeError, ValueError):
        other = next(value for value in typed.flat if not isinstance(value, Number))
        raise ValueError(f"{name} must be numeric, got objects such as {other!r}") from None


def as_floating(
    x: Array, name: str, rank: str, *, powers: bool = True, device: torch.device | None = None
) -> Float[Tensor, "..."]:
    """A finite, non-empty tensor of the wanted rank; float64 stays float64, everything else becomes float32.

    Args:
        x: whatever `as_tensor` takes.
        name: what messages call it.
        rank: the names of its axes, such as "n d".
        powers: whether fourth powers of its values have to be in range.
        device: of the first argument, if this is another. The first stays where it is, unless that is MPS, which has
            no float64: then it moves to the CPU.

    Raises:
        ValueError: it is not numeric or not real, has another rank, is empty, has NaN or infinite values, or is
            so large or small that float64 has no room for fourth powers.

    >>> as_floating(np.array([1, 2]), "weights", "n")
    tensor([1., 2.])
    """
    x = as_tensor(x, name, device=device)
    if x.is_complex():
        raise ValueError(f"{name} must be real, got {x.dtype}")
    if x.ndim != len(rank.split()):
        raise ValueError(f"{name} must have shape ({', '.join(rank.split())}), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    x = x.cpu() if x.device.type == "mps" else x  # which has no float64
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    if x.dtype == torch.float64:
        low, high = torch.aminmax(x.detach())  # one pass, as long as a sum; NaN is in both
        largest = max(-low.item(), high.item())
        finite, fits = torch.isfinite(low + high).item(), largest == 0 or SMALLEST <= largest <= LARGEST
    else:
        # NaN and inf survive a sum, which needs no (n, d) mask; finite rows may overflow it, hence the second look.
        finite, fits = torch.isfinite(x.detach().sum()) or torch.isfinite(x.detach()).all(), True
    if not finite:
        raise ValueError(f"{name} contains NaN or infinite values")
    if powers and not fits:
        raise ValueError(
            f"{name} must have its largest value between {SMALLEST:g} and {LARGEST:g}, as measures take fourth powers, "
            f"got {largest:.3g}: scale it"
        )
    return x


def unit_rows(z: Float[Tensor, "*b d"], name: str = "z") -> Float[Tensor, "*b d"]:
    """Rows divided by their Euclidean norm.

    Args:
        z: (..., d).

    Raises:
        ValueError: a row is zero.

    >>> unit_rows(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    scale = z.detach().abs().amax(-1, keepdim=True)  # keeps the squares in range; constant, since z/‖z‖ is scale-free
    if (scale == 0).any():
        raise ValueError(f"{name} has a zero row, which cannot be normalized")
    z = z / scale
    return z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)


def require_unit_rows(z: Float[Tensor, "*b d"], name: str = "z", *, tolerance: float = 1e-2) -> None:
    """A ValueError unless every row has norm 1.

    Args:
        z: (..., d).
        name: what the message calls it.
        tolerance: the largest error of a norm; it admits rows that were stored as bf16 or fp16.

    >>> require_unit_rows(torch.eye(3))
    >>> require_unit_rows(2 * torch.eye(3))
    Traceback (most recent call last):
    ValueError: z must have unit-norm rows (a norm is off by 1); pass normalize=True
    """
    error = (torch.linalg.vector_norm(z.detach(), dim=-1) - 1).abs().max().item()
    if not error <= tolerance:
        raise ValueError(f"{name} must have unit-norm rows (a norm is off by {error:.3g}); pass normalize=True")


def centered(z: Float[Tensor, "*shape"], dim: int = 0) -> Float[Tensor, "*shape"]:
    """Rows minus their mean.

    The mean is measured from the first row, so that equal rows become exactly zero, whatever the rounding.

    Args:
        z: samples along the axis `dim`.

    >>> centered(torch.full((3, 2), 0.1)).abs().max().item()
    0.0
    """
    z = z - z.narrow(dim, 0, 1).detach()
    return z - z.mean(dim, keepdim=True)


def as_features(
    z: Array, name: str = "z", *, normalize: bool = False, min_rows: int = 1, device: torch.device | None = None
) -> Float[Tensor, "n d"]:
    """Features as a finite float32 or float64 tensor.

    Args:
        z: (n, d), rows are samples.
        name: what messages call it.
        normalize: divide each row by its norm.
        min_rows: the smallest allowed n.
        device: of the first argument, if this is another; else they stay on their own, as in `as_floating`.

    Raises:
        ValueError: as in `as_floating`, or fewer rows than min_rows; a zero row, if normalized.

    >>> as_features(np.array([[0, 2], [1, 0]]), normalize=True)
    tensor([[0., 1.],
            [1., 0.]])
    """
    z = as_floating(z, name, "n d", device=device)
    if len(z) < min_rows:
        raise ValueError(f"{name} needs at least {min_rows} rows, got {len(z)}")
    return unit_rows(z, name) if normalize else z


def centered_features(z: Array, name: str = "z", *, min_rows: int = 1) -> Float[Tensor, "n d"]:
    """Features in float64 minus their mean, checked as in `as_features`.

    Args:
        z: (n, d), rows are samples.
        name: what messages call it.
        min_rows: the smallest allowed n.

    >>> centered_features(np.array([[1], [3]]))
    tensor([[-1.],
            [ 1.]], dtype=torch.float64)
    """
    return centered(as_features(z, name, min_rows=min_rows).double())


def paired_features(x: Array, y: Array, *, min_rows: int = 1) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    """Two representations of the same samples in float64, on the device of the first.

    Args:
        x: (n, d), rows are samples.
        y: (n, e), the same samples in the same order.
        min_rows: the smallest allowed n.

    Raises:
        ValueError: x and y have different n, or as in `as_features`.

    >>> [tuple(z.shape) for z in paired_features(np.ones((3, 2)), np.ones((3, 5)))]
    [(3, 2), (3, 5)]
    """
    x = as_features(x, "x", min_rows=min_rows).double()
    y = as_features(y, "y", min_rows=min_rows, device=x.device).double()
    if len(x) != len(y):
        raise ValueError(f"x and y must have rows of the same samples, got {len(x)} and {len(y)}")
    return x, y


def as_views(
    views: Array, name: str = "views", *, normalize: bool = False, min_views: int = 2
) -> Float[Tensor, "v n d"]:
    """Views, v augmentations of the same n samples, checked as in `as_features`.

    Args:
        views: (v, n, d).
        name: what messages call it.
        normalize: divide each row by its norm.
        min_views: the least v.

    Raises:
        ValueError: as in `as_floating`, or fewer views than min_views; a zero row, if normalized.

    >>> as_views(torch.ones(1, 4, 3))
    Traceback (most recent call last):
    ValueError: views needs at least 2 views, got 1
    """
    views = as_floating(views, name, "v n d")
    if len(views) < min_views:
        raise ValueError(f"{name} needs at least {min_views} views, got {len(views)}")
    return unit_rows(views, name) if normalize else views


def paired_views(x: Array, y: Array | None, *, normalize: bool) -> Float[Tensor, "v n d"]:
    """Views from two sets of features whose rows correspond, or from views alone.

    Args:
        x: features (n, d), or views (v, n, d) if y is None.
        y: features (n, d) of the same samples.
        normalize: divide each row by its norm.

    Returns:
        views (v, n, d), where v = 2 for two sets of features.

    Raises:
        ValueError: the shapes of x and y differ, or as in `as_views`.

    >>> paired_views(torch.eye(3), torch.eye(3), normalize=False).shape
    torch.Size([2, 3, 3])
    """
    if y is None:
        return as_views(x, normalize=normalize)
    x = as_features(x, "x")
    y = as_features(y, "y", device=x.device)
    if x.shape != y.shape:
        raise ValueError(f"x and y must be views of the same samples, got {tuple(x.shape)} and {tuple(y.shape)}")
    return as_views(torch.stack((x, y.to(x.dtype))), "x or y", normalize=normalize)


def as_labels(
    labels: Array, n: int, *, classes: int | None = None, device: torch.device | None = None
) -> Int[Tensor, " n"]:
    """Class indices as int64, not negative and, if `classes` is given, below it.

    Names are numbered in alphabetical order, and the categories of pandas in their own.

    Args:
        labels: (n,) integers, names or categories, in anything that `as_tensor` takes.
        n: the number of samples that they must label.
        classes: the number of classes.
        device: of the features that they belong to.

    Raises:
        ValueError: labels that are neither integers nor names, that are missing, not (n,), negative, or too large;
            names beside `classes`, as those of another batch may be others.

    >>> as_labels(np.array([0, 2], dtype=np.uint8), 2, classes=3)
    tensor([0, 2])
    >>> as_labels(["dog", "cat", "dog"], 3)
    tensor([1, 0, 1])
    """
    (labels,), names = _numbered([labels], ["labels"])
    if names is not None and classes is not None:
        raise ValueError(
            "labels must be class indices where batches come one by one, got names: number them beforehand"
        )
    return _checked_labels(labels, n, "labels", classes, device)


class PairedLabels(NamedTuple):
    """Labels of two sets, numbered alike.

    >>> paired_labels(["b", "a"], ["b"], sizes=(2, 1)).second
    tensor([1])
    """

    first: Int[Tensor, " m"]
    second: Int[Tensor, " n"]
    names: list[str] | None  # of the classes, if they have any


def paired_labels(
    first: Array, second: Array, *, sizes: tuple[int, int], device: torch.device | None = None
) -> PairedLabels:
    """Labels of a training and a test set, checked as in `as_labels`, in which a class has one number.

    Args:
        first: (m,) labels.
        second: (n,) labels.
        sizes: m and n.
        device: of the features that they belong to.

    Raises:
        ValueError: names in one and numbers in the other, or as in `as_labels`.

    >>> paired_labels(np.array(["cat", "dog"]), np.array(["dog", "eel"]), sizes=(2, 2)).names
    ['cat', 'dog', 'eel']
    """
    whose = ["train_labels", "test_labels"]
    labels, names = _numbered([first, second], whose)
    checked = (_checked_labels(x, n, name, None, device) for x, n, name in zip(labels, sizes, whose, strict=True))
    return PairedLabels(*checked, names)


def _numbered(given: list[Array], whose: list[str]) -> tuple[list[Tensor], list[str] | None]:
    """Labels as tensors, and the names of their classes if they are names."""
    categories = [_categories(x) for x in given]
    if all(c is not None and c.equals(categories[0]) for c in categories):  # in the order that they were given
        return [_codes(x, name) for x, name in zip(given, whose, strict=True)], list(map(str, categories[0]))
    arrays = [_as_array(x, name) if not isinstance(x, Tensor) else x for x, name in zip(given, whose, strict=True)]
    text = [isinstance(x, np.ndarray) and _is_text(x, name) for x, name in zip(arrays, whose, strict=True)]
    if not any(text):
        return [as_tensor(x, name) for x, name in zip(arrays, whose, strict=True)], None
    if not all(text):
        raise ValueError(f"{' and '.join(whose)} must both be names or both be numbers")
    names, index = np.unique(np.concatenate([x.astype(str).ravel() for x in arrays]), return_inverse=True)
    ends = np.cumsum([x.size for x in arrays])[:-1]
    parts = zip(np.split(index, ends), arrays, strict=True)
    return [torch.from_numpy(part.reshape(x.shape)) for part, x in parts], names.tolist()


def _categories(x: Array) -> "pandas.Index | None":  # noqa: F821
    """The categories of a categorical array or series of pandas."""
    return getattr(getattr(x, "dtype", None), "categories", None)


def _codes(x: "pandas.Series | pandas.Categorical", name: str) -> Tensor:  # noqa: F821
    codes = as_tensor(getattr(x, "cat", x).codes, name)
    if (codes < 0).any():
        raise ValueError(f"{name} has missing values: drop their rows")
    return codes.long()


def _is_text(x: np.ndarray, name: str) -> bool:
    """Whether labels are names; objects must be all of one kind."""
    if x.dtype.kind in "US":
        return True
    if x.dtype.kind != "O":
        return False
    kinds = {type(label) for label in x.flat}
    names = {kind.__name__ for kind in kinds}
    missing = names & {"NoneType", "NAType", "NaTType"}
    if missing or any(isinstance(label, float) and math.isnan(label) for label in x.flat):
        raise ValueError(f"{name} has missing values: drop their rows")
    text = [issubclass(kind, str) for kind in kinds]
    if any(text) and not all(text):
        raise ValueError(f"{name} must be all names or all integers, got {', '.join(sorted(names))}")
    return any(text)


def _checked_labels(
    labels: Tensor, n: int, name: str, classes: int | None, device: torch.device | None
) -> Int[Tensor, " n"]:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integers or names of classes, got {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {tuple(labels.shape)}")
    labels = labels.to(device, torch.int64)
    if n and labels.min() < 0:
        raise ValueError(f"{name} must not be negative, got {labels.min().item()}")
    if n and classes is not None and labels.max() >= classes:
        raise ValueError(f"{name} must be below classes={classes}, got {labels.max().item()}")
    return labels


def labeled_features(z: Array, labels: Array | None) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Features and the class of each row, on the device of the features.

    Args:
        z: (n, d), rows are samples.
        labels: (n,) class indices.

    Raises:
        ValueError: there are no labels, or as in `as_features` and `as_labels`.

    >>> labeled_features(np.array([[1.0], [3.0]]), np.array([0, 1]))[1]
    tensor([0, 1])
    """
    if labels is None:
        raise ValueError("features need labels")
    z = as_features(z)
    return z, as_labels(labels, len(z), device=z.device)


def as_patches(patches: Array, name: str = "patches", *, rank: str = "n gh gw d") -> Float[Tensor, "..."]:
    """Patch features of n images, checked as in `as_floating`.

    Args:
        patches: (n, gh, gw, d), a grid of gh × gw patches for each image.
        name: what messages call it.
        rank: the names of the axes, if they are others.

    >>> as_patches(torch.ones(5, 7, 7, 3), rank="n gh gw")
    Traceback (most recent call last):
    ValueError: patches must have shape (n, gh, gw), got (5, 7, 7, 3)
    """
    return as_floating(patches, name, rank)


def as_masks(
    masks: Array,
    n: int,
    name: str = "masks",
    *,
    classes: int | None = None,
    ignore: int | None = None,
    device: torch.device | None = None,
) -> Int[Tensor, "n h w"]:
    """Masks of class indices, not negative and, if `classes` is given, below it.

    Args:
        masks: (n, h, w) integers. Booleans and uint8 become int16, all else keeps its type.
        n: the number of images that they must belong to.
        name: what messages call it.
        classes: the number of classes.
        ignore: an index outside that range, of pixels without a label.
        device: of the patches that they belong to.

    Raises:
        ValueError: masks that are not integers, not (n, h, w), negative, or too large.

    >>> as_masks(np.array([[[0, 255]]], dtype=np.uint8), 1, classes=2, ignore=255)
    tensor([[[  0, 255]]], dtype=torch.int16)
    """
    masks = as_tensor(masks, name, device=device)
    if masks.is_floating_point() or masks.is_complex():
        raise ValueError(f"{name} must be integers, got {masks.dtype}")
    if masks.ndim != 3 or len(masks) != n or not masks.numel():
        raise ValueError(f"{name} must have shape ({n}, h, w), got {tuple(masks.shape)}")
    # Not uint8, of which -1 would be 255 in a comparison; not int64, which is eight times the memory.
    masks = masks.to(torch.int16) if masks.dtype in (torch.bool, torch.uint8) else masks
    labeled = masks if ignore is None else masks[masks != ignore]
    if labeled.numel() and labeled.min() < 0:
        raise ValueError(f"{name} must not be negative, got {labeled.min().item()}")
    if labeled.numel() and classes is not None and labeled.max() >= classes:
        but = "" if ignore is None else f", but for ignore={ignore}"
        raise ValueError(f"{name} must be below classes={classes}{but}, got {labeled.max().item()}")
    return masks


def as_spectrum(x: Array, name: str = "spectrum") -> Float[Tensor, " r"]:
    """A given spectrum as float64 in descending order, with negative rounding errors set to zero.

    Args:
        x: (r,) eigenvalues in any order.
        name: what messages call it.

    Raises:
        ValueError: a value that is negative by more than rounding, or as in `as_floating`.

    >>> as_spectrum(torch.tensor([1.0, 3.0, -1e-8])).tolist()
    [3.0, 1.0, 0.0]
    """
    x = as_floating(x, name, "r", powers=False)
    if x.min() < -torch.finfo(x.dtype).eps * len(x) * x.abs().max():
        raise ValueError(f"{name} must not be negative, got {x.min().item():.3g}")
    return x.double().sort(descending=True).values.clamp(min=0)


def as_ends(given: tuple[int, int], name: str) -> tuple[int, int]:
    """The two ends of a range of positive integers, both included.

    Args:
        given: (first, last).
        name: what messages call it.

    Raises:
        ValueError: not two positive integers in order.

    >>> as_ends((3, 20), "fit")
    (3, 20)
    """
    whole = isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(end, Integral) for end in given)
    if not whole or not 1 <= given[0] <= given[1]:
        raise ValueError(f"{name} must be two positive integers in order, got {given}")
    return int(given[0]), int(given[1])
