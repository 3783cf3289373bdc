"""The one place that validates what a diagnostic is given: every message names the argument and the remedy.

It is also where devices meet: labels, targets and second sets of features move to the device of the first argument.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

# Rank is left open on purpose: a wrong rank is our ValueError, with a sentence, and not a type error.
Array = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]


def as_floating(x: Array, name: str, rank: str, *, device: torch.device | None = None) -> Float[Tensor, "..."]:
    """A finite, non-empty tensor of the wanted rank; float64 stays float64, everything else becomes float32.

    Args:
        x: tensor, array or anything else that `torch.as_tensor` takes.
        name: what messages call it.
        rank: the names of its axes, such as "n d".
        device: of the first argument, if this is another. The first stays where it is, unless that is MPS, which has
            no float64: then it moves to the CPU.

    Raises:
        ValueError: it is not numeric or not real, has another rank, is empty, or has NaN or infinite values.

    >>> as_floating(np.array([1, 2]), "weights", "n")
    tensor([1., 2.])
    """
    try:
        x = torch.as_tensor(x, device=device)
    except TypeError as error:  # object arrays, strings
        raise ValueError(f"{name} must be numeric: {error}") from None
    if x.is_complex():
        raise ValueError(f"{name} must be real, got {x.dtype}")
    if x.ndim != len(rank.split()):
        raise ValueError(f"{name} must have shape ({', '.join(rank.split())}), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    x = x.cpu() if x.device.type == "mps" else x  # which has no float64
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    # NaN and inf always survive a sum, which needs no (n, d) mask; finite rows may overflow it, hence the second look.
    if not torch.isfinite(x.detach().sum()) and not torch.isfinite(x.detach()).all():
        raise ValueError(f"{name} contains NaN or infinite values")
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

    Args:
        labels: (n,) integers.
        n: the number of samples that they must label.
        classes: the number of classes.
        device: of the features that they belong to.

    Raises:
        ValueError: labels that are not integers, not (n,), negative, or too large.

    >>> as_labels(np.array([0, 2], dtype=np.uint8), 2, classes=3)
    tensor([0, 2])
    """
    labels = torch.as_tensor(labels, device=device)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), got {tuple(labels.shape)}")
    labels = labels.to(torch.int64)
    if n and labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min().item()}")
    if n and classes is not None and labels.max() >= classes:
        raise ValueError(f"labels must be below classes={classes}, got {labels.max().item()}")
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
    masks = torch.as_tensor(masks, device=device)
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
    x = as_floating(x, name, "r")
    if x.min() < -torch.finfo(x.dtype).eps * len(x) * x.abs().max():
        raise ValueError(f"{name} must not be negative, got {x.min().item():.3g}")
    return x.double().sort(descending=True).values.clamp(min=0)
