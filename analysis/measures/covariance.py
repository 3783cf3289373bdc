"""The covariance terms of VICReg and Barlow Twins as measures: are coordinates alive, and do they repeat one another?

They depend on the basis, as the losses do: a rotation of the features, which no rank sees, changes them. x is features
(n, d) or `Moments`. Results are 0-d float64 tensors; from features they carry gradients.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers

from .inputs import Array, centered_features
from .moments import Moments


def variance_hinge(x: Array | Moments, *, target: int | float = 1.0, floor: int | float = 1e-4) -> Float[Tensor, ""]:
    """VICReg's variance term: how far the standard deviations of the coordinates stay below a target.

    mean_j [target − √(Var_j + floor)]₊,  Var with 1/(n − 1)

    The range is 0 (every coordinate varies enough) to target − √floor (total collapse), and lower is healthier. It is
    not invariant to scale, by intention; unit rows cannot do better than target − √(n/((n − 1)d) + floor).

    Args:
        x: features (n, d) or `Moments`.
        target: the standard deviation that is enough.
        floor: the constant under the root, VICReg's ε.

    Raises:
        ValueError: fewer than two rows, a negative target or floor, NaN.

    Source: Bardes, Ponce & LeCun 2022 (arXiv 2105.04906) eq. 1-2.

    >>> round(variance_hinge(torch.ones(5, 3)).item(), 6)  # total collapse
    0.99
    """
    check_numbers(target=target, floor=floor)
    deviation = (_covariance(x).diagonal() + floor).sqrt()
    return (target - deviation).clamp(min=0).mean()


def covariance_energy(x: Array | Moments) -> Float[Tensor, ""]:
    """VICReg's covariance term: the energy of the covariance off its diagonal.

    Σ_{i≠j} C_ij²/d,  C with 1/(n − 1)

    It is 0 for coordinates that are not correlated, and also in total collapse: read `variance_hinge` beside it. Lower
    is healthier. It grows with the fourth power of the scale of the features, which `redundancy` does not.

    Args:
        x: features (n, d) or `Moments`.

    Raises:
        ValueError: fewer than two rows, NaN.

    Source: Bardes, Ponce & LeCun 2022 (arXiv 2105.04906) eq. 3-4.

    >>> covariance_energy(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])).item()  # all entries of C are 1
    1.0
    """
    covariance = _covariance(x)
    return (covariance - covariance.diagonal().diag()).square().sum() / len(covariance)


def redundancy(x: Array | Moments, y: Array | None = None) -> Float[Tensor, ""]:
    """Redundancy: the mean squared correlation of two different coordinates.

    Σ_{i≠j} ρ_ij²/(d(d − 1)),  ρ the correlation matrix of x, or the cross-correlation of x and a second view y

    With y, d(d − 1) times the value is Barlow Twins' redundancy term. The range is 0 (decorrelated) to 1 (all
    coordinates are one, up to sign and scale), independent coordinates have 1/(n − 1) in expectation, and lower is
    healthier. A coordinate that is constant correlates with none, so that total collapse reads 0. It is invariant to
    the scale and the translation of each coordinate.

    Args:
        x: features (n, d), or `Moments` without a y.
        y: features (n, d) of a second view of the same samples, row by row.

    Raises:
        ValueError: d < 2, fewer than two rows, x and y of different shapes, `Moments` with a y, NaN.

    Source: Zbontar et al. 2021 (arXiv 2103.03230) eq. 1-2.

    >>> round(redundancy(torch.tensor([[0.0, 0.0], [1.0, -2.0], [2.0, -4.0]])).item(), 6)
    1.0
    """
    if y is None:
        cross = _covariance(x)
        a = b = cross.diagonal()
    elif isinstance(x, Moments):
        raise ValueError("Moments of x say nothing about how it varies with y: pass features")
    else:
        x, y = centered_features(x, "x", min_rows=2), centered_features(y, "y", min_rows=2)
        if x.shape != y.shape:
            raise ValueError(f"x and y must be views of the same samples, got {tuple(x.shape)} and {tuple(y.shape)}")
        cross, a, b = x.mT @ y.to(x), x.square().sum(0), y.to(x).square().sum(0)
    d = len(cross)
    if d < 2:
        raise ValueError("redundancy needs d >= 2: one coordinate repeats no other")
    scale = torch.outer(a, b)  # (d, d)
    squares = torch.where(scale > 0, cross.square() / torch.where(scale > 0, scale, 1.0), 0.0)
    return (squares.sum() - squares.trace()) / (d * (d - 1))


def _covariance(x: Array | Moments) -> Float[Tensor, "d d"]:
    """The covariance with 1/(n − 1)."""
    if isinstance(x, Moments):
        if x.n < 2:
            raise ValueError(f"x needs Moments of at least 2 rows, got {x.n}")
        return x.scatter / (x.n - 1)
    z = centered_features(x, "x", min_rows=2)
    return z.mT @ z / (len(z) - 1)
