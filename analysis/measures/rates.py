"""Coding rates in nats: measured, against what is possible, and per class.

`coding_rate` is the function that SimDINO trains with. `eps` is the paper's ε everywhere, which the rate squares;
`simdino.losses.official_scaling` translates the official code's numbers. α = d/ε².
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import coding_rate

from .. import theory
from .inputs import Array, as_features, as_labels, require_unit_rows
from .moments import Moments
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
    """Coding rate ½ Σ log(1 + αλᵢ), α = d/ε², of eigenvalues of Γ (1-D), of `Moments` or of features (n, d).

    The same number as `coding_rate` of the features, and centered on request. A spectrum needs d, since it may be
    shorter than the features are wide. Range from ½·log(1 + α) to r/2·log(1 + α/r) on the unit sphere; 0 for
    features that are zero. Higher is healthier. Biased low in a sample (`theory.rate_isotropic`).

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 1.
    """
    lam = eigenvalues(x, center=center, normalize=normalize)
    if isinstance(x, Moments) or x.ndim == 2:
        d = x.d if isinstance(x, Moments) else x.shape[1]
    elif d is None or d < len(lam):
        raise ValueError(f"d, the dimension of the features, must be at least {len(lam)} for this spectrum, got {d}")
    return (d / eps**2 * lam).log1p().sum() / 2


class RateOptimality(NamedTuple):
    """A measured rate between what it can be, all in nats; unpacks as (measured, isotropic, ceiling, collapsed)."""

    measured: Float[Tensor, ""]
    isotropic: float  # expected of n random unit vectors
    ceiling: float  # orthonormal rows or a tight frame
    collapsed: float  # all rows equal

    @property
    def of_isotropic(self) -> Float[Tensor, ""]:
        """measured / isotropic: 1 for features that are as spread as independent random directions."""
        return self.measured / self.isotropic

    @property
    def of_ceiling(self) -> Float[Tensor, ""]:
        """measured / ceiling: 1 at the optimum of the expansion term."""
        return self.measured / self.ceiling


def rate_optimality(x: Array | Moments, *, eps: float, normalize: bool = False) -> RateOptimality:
    """Coding rate of unit-norm features (n, d) or `Moments`, with the rates it is to be judged by at this n, d and ε.

    collapsed ½·log(1 + α) ≤ measured ≤ ceiling r/2·log(1 + α/r), r = min(n, d); isotropic lies between and is the
    Marchenko–Pastur value. ValueError for rows that are not of unit norm, for which there is no ceiling.

    Source: SimDINO (arXiv 2502.10385); Tulino & Verdú 2004, eq. 1.14.
    """
    if isinstance(x, Moments):
        measured, n, d = coding_rate_of_spectrum(x, eps=eps, normalize=normalize), x.n, x.d
        if abs(x.second_moment.trace() - 1) > 1e-2:
            raise ValueError("rate_optimality needs Moments of unit-norm rows")
    else:
        z = as_features(x, normalize=normalize)
        require_unit_rows(z)
        measured, (n, d) = coding_rate(z, eps=eps), z.shape
    return RateOptimality(
        measured, theory.rate_isotropic(n, d, eps), theory.rate_maximum(n, d, eps), theory.rate_collapsed(d, eps)
    )


def class_rates(x: Array | Moments, labels: Array | None = None, *, eps: float) -> Float[Tensor, " k"]:
    """Coding rate of the features of each class alone, (k,): R_k = ½ logdet(I + α·zₖᵀzₖ/n_k), 0 for an empty class.

    x: features (n, d) with labels (n,), k = max + 1, or `Moments` with classes. Low is within-class collapse, high
    diversity within the class; compare classes of equal size only.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 4.
    """
    if isinstance(x, Moments):
        if not x.by_class or labels is not None:
            raise ValueError("class_rates needs Moments with classes and then no labels")
        rates = [coding_rate_of_spectrum(part, eps=eps) if part.n else x.quartic * 0 for part in x.by_class]
    else:
        z, labels = _with_labels(x, labels)
        parts = [z[labels == k] for k in range(int(labels.max()) + 1)]
        rates = [coding_rate(part, eps=eps) if len(part) else z.new_zeros(()) for part in parts]
    return torch.stack(rates)


def rate_reduction(x: Array | Moments, labels: Array | None = None, *, eps: float) -> Float[Tensor, ""]:
    """Rate reduction ΔR = R(z) − Σₖ (n_k/n)·R_k: what knowing the class saves, in nats per feature.

    x: features (n, d) with labels (n,), or `Moments` with classes. Range 0 (classes have the same second moment) to
    the value of orthogonal class subspaces; higher is better separated. Differentiable for features. TransRate is this
    of z − z̄, for classes of one size, with √(d·ε) for its ε.

    Source: Yu et al. 2020 (arXiv 2006.08558) eq. 5; TransRate, Huang et al. 2022 (arXiv 2106.09362).
    """
    rates = class_rates(x, labels, eps=eps)
    if isinstance(x, Moments):
        counts, rate = rates.new_tensor([part.n for part in x.by_class]), coding_rate_of_spectrum(x, eps=eps)
    else:
        z, labels = _with_labels(x, labels)
        counts, rate = labels.bincount(minlength=len(rates)).to(rates), coding_rate(z, eps=eps)
    return rate - (counts @ rates) / counts.sum()


def _with_labels(x: Array, labels: Array | None) -> tuple[Tensor, Tensor]:
    if labels is None:
        raise ValueError("features need labels")
    z = as_features(x)
    return z, as_labels(labels, len(z), device=z.device)
