"""Coding rates in nats: measured, against what is possible, per class, and predicted before a run is started.

`coding_rate` is the function that SimDINO trains with. `eps` is the paper's ε everywhere, which the rate squares;
`simdino.losses.official_scaling` translates the official code's numbers. α = d/ε².
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analysis import theory
from analysis._input import Array, as_features, as_labels, require_unit_rows
from analysis.moments import Moments
from analysis.spectra import eigenvalues
from simdino.losses import coding_rate

__all__ = [
    "Preflight",
    "RateOptimality",
    "class_rates",
    "coding_rate",
    "coding_rate_of_spectrum",
    "preflight",
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

    The same number as `coding_rate` of the features, and centred on request. A spectrum needs d, since it may be
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


class Preflight(NamedTuple):
    """What the expansion term γ·R of a run can be, before it is started; print it to read it as sentences."""

    collapsed: float
    isotropic: float
    ceiling: float
    collapse_number: float
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def preflight(
    *,
    n: int,
    d: int,
    eps: float,
    gamma: float | Literal["balanced", "bounded", "official"],
    world_size: int = 1,
    gathered: bool = False,
    stop_gradient: bool = True,
    rate_of: Literal["student", "mean"] = "student",
    measured: float | None = None,
) -> Preflight:
    """Range of the logged expansion term γ·R and stability of total collapse, from the configuration alone.

    n: images of one rank; one covariance takes n rows, or n·world_size if it is gathered. gamma: a number, or a rule of
    `theory.gamma_rules`. collapsed = γ/2·log(1 + α), isotropic = γ·(rate of n random unit vectors),
    ceiling = γ·r/2·log(1 + α/r), collapse number χ = γα²/(1 + α): total collapse is linearly stable iff
    χ·(1 − 1/n) < c·μ_min, with μ_min ≤ 1 the smallest share of a direction's variance that differs between views, and
    c = 1 for a stop-gradient teacher and the rate of the student's features; c = 2 without the one (twice the
    alignment's gradient) or for the rate of the mean of both (half the rate's: the official default, `expa_type` 1).
    So χ·(1 − 1/n) ≥ c is safe for every augmentation, and γ = 0 or n = 1 for none. measured: a logged γ·R to judge.
    The official code's eps and γ are translated by `simdino.losses.official_scaling` (`python -m analysis.preflight`).
    """
    rows = n * world_size if gathered else n
    if isinstance(gamma, str):
        rules = theory.gamma_rules(rows, d, eps) | {"official": theory.gamma_rules(n * world_size, d, eps)["official"]}
        if gamma not in rules:
            raise ValueError(f"gamma must be a number or one of {', '.join(rules)}, got {gamma!r}")
        gamma = rules[gamma]
    n = rows
    low, random, high = (
        gamma * rate
        for rate in (theory.rate_collapsed(d, eps), theory.rate_isotropic(n, d, eps), theory.rate_maximum(n, d, eps))
    )
    chi, c = theory.collapse_number(d, eps, gamma), 1 if stop_gradient and rate_of == "student" else 2
    share = 1 - 1 / n  # of the features' variance, in a batch
    seen, number = chi * share, f"The collapse number is {chi:.2f}, {chi * share:.2f} in batches of {n},"
    sentences = [
        f"The expansion term lies between {low:.4f} (all features equal) and {high:.4f} (as spread as {n} features in "
        f"{d} dimensions can be); independent random features score {random:.4f}.",
        f"Spreading gains at most {high - low:.4f}: a run whose views stay further apart than that in the mean of "
        "1 - cos would have a lower loss collapsed.",
    ]
    if seen >= c:
        sentences.append(f"{number} which is >= {c}: total collapse is unstable whatever the views.")
    elif seen == 0:
        cause = "gamma is 0" if gamma == 0 else "one row has no spread"
        sentences.append(f"{number} as {cause}: total collapse is stable whatever the views.")
    else:
        safe = math.sqrt(2 * gamma * share * d / (c + math.sqrt(c * c + 4 * gamma * share * c)))  # ε at which seen = c
        sentences.append(
            f"{number} which is < {c}: total collapse is stable if more than {seen / c:.0%} of every "
            f"direction's variance differs between views. Raise gamma to {gamma * c / seen:.2g}, or lower the paper's "
            f"epsilon to {safe:.2g} (the official code's eps, times the ranks of a local covariance, to "
            f"{safe**2:.2g}), to be safe for all views."
        )
    if n < d:
        sentences.append(f"{n} rows show at most {n} of {d} dimensions: enlarge the batch or gather the covariance.")
    if measured is not None and gamma > 0:
        sentences.append(
            f"The measured {measured:.4f} is {measured / high:.1%} of the ceiling, {measured / random:.1%} of random "
            f"isotropy and {measured / low:.2f} times the collapsed value."
        )
    return Preflight(low, random, high, chi, tuple(sentences))


def _with_labels(x: Array, labels: Array | None) -> tuple[Tensor, Tensor]:
    if labels is None:
        raise ValueError("features need labels")
    z = as_features(x)
    return z, as_labels(labels, len(z), device=z.device)
