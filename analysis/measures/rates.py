"""Coding rates in nats: measured, compared with what is possible, and for each class.

`coding_rate` is the function that SimDINO trains with. `eps` is the paper's ε everywhere, which the rate squares:
α = d/ε². `simdino.losses.official_scaling` translates the numbers of the official code.
"""

from numbers import Integral
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers, coding_rate

from .. import theory
from .inputs import Array, as_features, labeled_features, require_unit_rows
from .moments import Moments, features_or_moments
from .spectra import eigenvalues

__all__ = [
    "RateOptimality",
    "class_rates",
    "coding_rate",
    "coding_rate_of_spectrum",
    "rate_optimality",
    "rate_reduction",
]


def coding_rate_of_spectrum(
    x: Array | Moments,
    *,
    eps: float,
    d: int | None = None,
    center: bool = False,
    normalize: bool = False,
) -> Float[Tensor, ""]:
    """Coding rate from the eigenvalues of Γ, in nats: the same number as `coding_rate` of the features.

    ½ Σ log(1 + αλᵢ),  α = d/ε²

    On the unit sphere the range is ½·log(1 + α) to r/2·log(1 + α/r), r = min(n, d); features that are zero have rate 0.
    Higher is healthier. The rate of a sample is biased low (`theory.rate_isotropic`).

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        eps: the paper's ε.
        d: dimension of the features; a spectrum needs it, since it may be shorter than the features are wide.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: a spectrum without d or longer than d; or as in `eigenvalues`.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 1.

    >>> round(coding_rate_of_spectrum(torch.tensor([0.5, 0.5]), eps=1.0, d=2).item(), 6)  # log 2
    0.693147
    """
    check_numbers(eps=eps)
    x = features_or_moments(x)
    lam = eigenvalues(x, center=center, normalize=normalize)
    if isinstance(x, Moments) or x.ndim == 2:
        d = x.d if isinstance(x, Moments) else x.shape[1]
    elif not isinstance(d, Integral) or d < len(lam):
        raise ValueError(f"d, the dimension of the features, must be an integer, at least {len(lam)}, got {d}")
    return (d / eps**2 * lam).log1p().sum() / 2


class RateOptimality(NamedTuple):
    """The coding rate of n features in d dimensions, between the smallest and the largest that are possible, in nats.

    It unpacks as (measured, isotropic, ceiling, collapsed).

    >>> RateOptimality(torch.tensor(3.0), isotropic=4.0, ceiling=6.0, collapsed=1.0).of_ceiling.item()
    0.5
    """

    measured: Float[Tensor, ""]
    isotropic: float  # expected of n random unit vectors: what training on batches of n attains (`theory` B7)
    ceiling: float  # R*: orthonormal rows or a tight frame
    collapsed: float  # all rows equal

    @property
    def of_isotropic(self) -> Float[Tensor, ""]:
        """measured / isotropic: 1 for features spread like independent random directions, which batches can attain."""
        return self.measured / self.isotropic

    @property
    def of_ceiling(self) -> Float[Tensor, ""]:
        """measured / ceiling: 1 at the optimum of n features that are always in one batch."""
        return self.measured / self.ceiling


def rate_optimality(x: Array | Moments, *, eps: float, normalize: bool = False) -> RateOptimality:
    """Coding rate of unit-norm features, with the rates that it is to be judged by at this n, d and ε.

    collapsed ½·log(1 + α) ≤ measured ≤ ceiling r/2·log(1 + α/r),  α = d/ε², r = min(n, d)

    isotropic lies between them: it is what n random unit vectors reach, by the Marchenko–Pastur law, and as much as
    training on batches of n of many more images can attain on average. A healthy rate is close to it. Only features
    that are always in one batch can come close to the ceiling, R*.

    Args:
        x: features (n, d) on the unit sphere, or `Moments` of such.
        eps: the paper's ε.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: rows that are not of unit norm, without normalize=True: for these there is no ceiling.

    Source: SimDINO (arXiv 2502.10385); Tulino & Verdú 2004, eq. 1.14.

    >>> round(rate_optimality(torch.eye(8), eps=0.5).of_ceiling.item(), 6)  # orthonormal rows are optimal
    1.0
    """
    check_numbers(eps=eps)
    if isinstance(x, Moments):
        measured, n, d = coding_rate_of_spectrum(x, eps=eps, normalize=normalize), x.n, x.d
        if not x.has_unit_energy:
            raise ValueError("rate_optimality needs Moments of unit-norm rows")
    else:
        z = as_features(x, normalize=normalize)
        require_unit_rows(z)
        measured, (n, d) = coding_rate(z, eps=eps), z.shape
    return RateOptimality(
        measured, theory.rate_isotropic(n, d, eps), theory.rate_maximum(n, d, eps), theory.rate_collapsed(d, eps)
    )


def class_rates(x: Array | Moments, labels: Array | None = None, *, eps: float) -> Float[Tensor, " k"]:
    """Coding rate of the features of each class alone, in nats.

    R_k = ½ logdet(I + α·zₖᵀzₖ/n_k),  α = d/ε²

    A low rate is collapse within the class, a high one diversity within the class. Compare classes of equal size only.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row, for features.
        eps: the paper's ε.

    Returns:
        (k,) rates of the classes that have samples, in the order of the labels.

    Raises:
        ValueError: features without labels, `Moments` without classes, NaN.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 4.

    >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> class_rates(z, torch.tensor([0, 0, 1, 1]), eps=1.0)  # ½ log 3 and log 2
    tensor([0.5493, 0.6931])
    """
    if isinstance(x, Moments):
        if not any(part.n for part in x.by_class) or labels is not None:
            raise ValueError("class_rates needs Moments with classes and then no labels")
        rates = [coding_rate_of_spectrum(part, eps=eps) for part in x.by_class if part.n]
    else:
        z, labels = labeled_features(x, labels)
        rates = [coding_rate(z[labels == k], eps=eps) for k in labels.unique()]
    return torch.stack(rates)


def rate_reduction(x: Array | Moments, labels: Array | None = None, *, eps: float) -> Float[Tensor, ""]:
    """Rate reduction: what knowing the class saves, in nats for each feature.

    ΔR = R(z) − Σₖ (n_k/n)·R_k

    The range is 0 (all classes have the same second moment) to the value of orthogonal class subspaces, and higher is
    better separated. It is differentiable for features. TransRate is the rate reduction of z − z̄ for classes of one
    size, with √(d·ε) for its ε.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row, for features.
        eps: the paper's ε.

    Raises:
        ValueError: as in `class_rates`.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 5; TransRate, Huang et al. 2022 (arXiv 2106.09362).

    >>> z = torch.eye(2).repeat(2, 1)
    >>> round(rate_reduction(z, torch.tensor([0, 1, 0, 1]), eps=1.0).item(), 4)  # log 2 − ½ log 3
    0.1438
    """
    rates = class_rates(x, labels, eps=eps)
    if isinstance(x, Moments):
        counts = rates.new_tensor([part.n for part in x.by_class if part.n])
        rate = coding_rate_of_spectrum(x, eps=eps)
    else:
        z, labels = labeled_features(x, labels)
        counts, rate = labels.unique(return_counts=True)[1].to(rates), coding_rate(z, eps=eps)
    return rate - (counts @ rates) / counts.sum()
