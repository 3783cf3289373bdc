"""Functions of the spectrum of features, each of them written once, for whatever form the spectrum comes in.

x is features (n, d), a `Moments`, or the eigenvalues themselves (1-D). The spectrum is that of the second moment
Γ = zᵀz/n, or of the covariance with center=True; `normalize` puts the rows on the unit sphere first. Nothing is
centered, normalized or shifted unless the call says so; `preset` names the definition of a paper or a package as a
whole (`PRESETS`). Results are 0-d float64 tensors on the device of x and carry gradients with respect to features. All
of them are invariant to rotation, and those of the normalized spectrum pᵢ = λᵢ/Σλ are invariant to scale, too. A
spectrum of zeros (constant features, centered) has rank 0 and entropy −∞. Finite samples bias most of these measures
(`measures.uncertainty`): compare values at equal n and d only.
"""

import inspect
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from simdino.losses import check_numbers

from .gradients import square_root
from .inputs import Array, as_ends, as_features, as_spectrum, centered, require_unit_rows
from .moments import Moments, dual_gram, features_or_moments, gram

Of = Literal["eigenvalues", "singular_values"]
# What papers and public packages compute under these names, in our keywords: {measure: {preset: keywords}}.
# An empty entry says that the paper's definition is the default.
PRESETS = {
    "renyi_entropy": {
        "skean2025": {},  # eigenvalues of the Gram matrix over their sum, not centered; the order is an argument
    },
    "effective_rank": {
        "roy2007": {"of": "singular_values"},
        "garrido2023": {"of": "singular_values", "shift": 1e-7},  # RankMe
        "skean2025": {},
        "stable-pretraining": {"of": "singular_values", "shift": 1e-5},  # its RankMe
        "req-metrics": {"of": "singular_values", "center": True},
        "reptrix": {"center": True, "shift": 1e-7},  # its rankme
    },
    "rankme": {
        "garrido2023": {},
        "stable-pretraining": {"shift": 1e-5},
    },
    "participation_ratio": {
        "gao2017": {"center": True},  # of the covariance of neural activity
        "chun2025": {"unbiased": True},  # its γ_row, corrected for the number of rows and not of columns
    },
    "stable_rank": {
        "rudelson2007": {},  # numerical rank
        "he2022": {"center": True},  # NESum, of the covariance
    },
    "alpha_req": {
        "agrawal2022": {"center": True},  # of the covariance; the range of the fit is an argument
        "stringer2019": {"center": True, "weighted": True},  # as in its code
        "reptrix": {"center": True, "weighted": True},  # by the authors of α-ReQ
    },
    "isoscore": {
        "rudman2022": {},
    },
    "anisotropy": {
        "razzhigaev2024": {"center": True},
    },
    "mean_cosine": {
        "ethayarajh2019": {"normalize": True},  # cosines, whatever the norms
    },
}


def _preset(measure: Callable, name: str, **given) -> dict:
    """The keywords of a preset; a ValueError if it is unknown or if a keyword given beside it is not at its default."""
    known, parameters = PRESETS[measure.__name__], inspect.signature(measure).parameters
    if name not in known:
        raise ValueError(f"preset must be one of {', '.join(known)}, got {name!r}")
    if any(value != parameters[keyword].default for keyword, value in given.items()):
        raise ValueError("preset fixes the whole definition: pass no other keyword with it")
    return known[name]


def eigenvalues(x: Array | Moments, *, center: bool = False, normalize: bool = False) -> Float[Tensor, " r"]:
    """Eigenvalues of the second moment of the features, or of their covariance, in descending order.

    λᵢ of Γ = zᵀz/n, or of (z − z̄)ᵀ(z − z̄)/n with center=True

    These are the squared singular values of z over n. There are r = min(n, d) of them, and on the unit sphere Σλ = 1.
    They are formed in float64 from the Gram matrix of the smaller side, so that n < d adds no rounding eigenvalues.
    Centered features have rank n − 1 at most, and the eigenvalues beyond it are exactly zero. So are those that
    rounding may have made: λ ≤ √r·2·10⁻¹⁶·λ₁, which are singular values below 10⁻⁷ of the largest.

    Args:
        x: features (n, d), `Moments`, or a spectrum (r,), which is only checked, sorted and returned.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.

    Raises:
        ValueError: NaN, infinite or empty input; center or normalize for a spectrum, normalize for `Moments`.

    >>> eigenvalues(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tensor([8., 2.], dtype=torch.float64)
    """
    x = features_or_moments(x)
    if not isinstance(x, Moments) and x.ndim == 1:
        if center or normalize:
            raise ValueError("a spectrum cannot be centered or normalized any more: pass features")
        return as_spectrum(x)
    matrix, n, d, _ = _second_moment(x, center=center, normalize=normalize)
    return _resolved(matrix, n, d, center)


def renyi_entropy(
    x: Array | Moments,
    *,
    order: int | float,
    of: Of = "eigenvalues",
    center: bool = False,
    normalize: bool = False,
    preset: str | None = None,
) -> Float[Tensor, ""]:
    """Matrix Rényi entropy of the normalized spectrum, in nats.

    S_a = log(Σ pᵢᵃ)/(1 − a),  S₁ = −Σ pᵢ log pᵢ,  S_∞ = −log max p,  pᵢ = λᵢ/Σλ (or σᵢ/Σσ)

    The range is 0 (rank one) to log r (flat spectrum of rank r), and higher is more spread. The limits are taken at
    a = 1 (von Neumann entropy) and at a = ∞. S_a falls with a, and exp S_a is the rank at a = 0, the effective rank at
    1, the participation ratio at 2 and the stable rank at ∞.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        order: a ≥ 0, which may be math.inf.
        of: the "eigenvalues" of Γ or the "singular_values" of z, the roots of the former.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of of, center and normalize.

    Source: Sánchez Giraldo et al. 2015 (arXiv 1211.2459); Skean et al. 2025 (arXiv 2502.02013).

    >>> round(renyi_entropy(torch.tensor([0.75, 0.25]), order=2).exp().item(), 6)  # the participation ratio, 8/5
    1.6
    """
    if preset is not None:
        keywords = _preset(renyi_entropy, preset, of=of, center=center, normalize=normalize)
        return renyi_entropy(x, order=order, **keywords)
    check_numbers(order=order)
    return _entropy(_values(x, of, center, normalize), order)


def effective_rank(
    x: Array | Moments,
    *,
    of: Of = "eigenvalues",
    shift: int | float = 0.0,
    center: bool = False,
    normalize: bool = False,
    preset: str | None = None,
) -> Float[Tensor, ""]:
    """Effective rank: the exponential of the Shannon entropy of the normalized spectrum.

    exp(−Σ qᵢ log qᵢ),  qᵢ = pᵢ + shift,  pᵢ = λᵢ/Σλ (or σᵢ/Σσ)

    The range is 1 (rank one) to r = min(n, d) (flat spectrum), and higher is healthier. Papers and packages differ in
    what they put in for p, and give very different numbers for the same features (docs/conventions.md).

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        of: the "eigenvalues" of Γ, or the "singular_values" of z (Roy & Vetterli), which give the tail of the spectrum
            more weight and a rank that is never lower.
        shift: added to p without normalizing it again, as some implementations do; the range above then fails to hold.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of the other keywords.

    Source: Roy & Vetterli 2007, eq. 3; Skean et al. 2025 (arXiv 2502.02013) for eigenvalues.

    >>> z = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    >>> round(effective_rank(z).item(), 3), round(effective_rank(z, preset="roy2007").item(), 3)
    (1.384, 1.755)
    """
    if preset is not None:
        keywords = _preset(effective_rank, preset, of=of, shift=shift, center=center, normalize=normalize)
        return effective_rank(x, **keywords)
    check_numbers(shift=shift)
    return _entropy(_values(x, of, center, normalize), 1.0, shift=shift).exp()


def rankme(
    x: Array | Moments,
    *,
    shift: int | float = 1e-7,
    center: bool = False,
    normalize: bool = False,
    preset: str | None = None,
) -> Float[Tensor, ""]:
    """RankMe: the effective rank of the singular values, with the paper's shift.

    exp(−Σ qₖ log qₖ),  qₖ = σₖ/‖σ‖₁ + shift

    The range is 1 (total collapse) to min(n, d), and higher is healthier. The shift raises the rank by a share of about
    16·10⁻⁷·min(n, d) at most.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,) of eigenvalues.
        shift: added to σ/‖σ‖₁ without normalizing it again; the paper calls it ε, and 10⁻⁷ is its value for float32.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of the other keywords.

    Source: Garrido et al. 2023 (arXiv 2210.02885), eq. 1.

    >>> round(rankme(torch.eye(4)).item(), 3)
    4.0
    """
    if preset is not None:
        return rankme(x, **_preset(rankme, preset, shift=shift, center=center, normalize=normalize))
    return effective_rank(x, of="singular_values", shift=shift, center=center, normalize=normalize)


def participation_ratio(
    x: Array | Moments,
    *,
    unbiased: bool = False,
    center: bool = False,
    normalize: bool = False,
    preset: str | None = None,
) -> Float[Tensor, ""]:
    """Participation ratio, the effective number of eigenvalues.

    (Σλ)²/Σλ²

    The range is 1 (rank one) to min(n, d) (flat spectrum), and higher is healthier. The ratio of n samples is biased
    low: 1/PR_n ≈ 1/n + 1/PR. The unbiased version estimates numerator and denominator from the pairs of distinct rows
    alone, by way of the trace, ‖Γ‖²_F and Σ‖z‖⁴, each of them without bias. It may exceed d, and it is +∞ where no two
    rows overlap.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        unbiased: correct for the number of rows; needs features or `Moments` of at least 2 rows, centered 4.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of the other keywords.

    Source: Gao et al. 2017; Chun et al. 2025 (arXiv 2509.26560), rows only; Himeno & Yamada 2014 (centered traces).

    >>> round(participation_ratio(torch.tensor([0.75, 0.25])).item(), 6)
    1.6
    """
    if preset is not None:
        keywords = _preset(participation_ratio, preset, unbiased=unbiased, center=center, normalize=normalize)
        return participation_ratio(x, **keywords)
    x = features_or_moments(x)
    if not unbiased:
        return _entropy(eigenvalues(x, center=center, normalize=normalize), 2.0).exp()
    if not isinstance(x, Moments) and x.ndim == 1:
        raise ValueError("unbiased needs features or Moments: a spectrum says nothing about its rows")
    matrix, n, _, quartic = _second_moment(x, center=center, normalize=normalize)
    if n < (4 if center else 2):
        raise ValueError(f"unbiased needs {4 if center else 2} rows, got {n}")
    trace2, square = (matrix.trace() * n) ** 2, matrix.square().sum() * n**2  # (Σ‖z‖²)², ‖zᵀz‖²_F
    if not center:
        top, bottom = trace2 - quartic, square - quartic
    else:
        top = 2 * square + (n * n - 3 * n + 1) * trace2 - n * (n - 1) * quartic
        bottom = (n - 1) * (n - 2) * square + trace2 - n * (n - 1) * quartic
    resolved = bottom > torch.finfo(bottom.dtype).eps * n * square
    ratio = torch.where(resolved, top / torch.where(resolved, bottom, 1.0), math.inf)
    return torch.where(trace2 > 0, ratio, 0.0)


def stable_rank(
    x: Array | Moments, *, center: bool = False, normalize: bool = False, preset: str | None = None
) -> Float[Tensor, ""]:
    """Stable (numerical) rank: the energy of the features over that of their strongest direction.

    Σλ/λ₁ = ‖z‖²_F/‖z‖²₂

    The range is 1 (one dominant direction) to min(n, d) (flat spectrum), and higher is healthier. It is strongly biased
    by the largest eigenvalue of the sample: −42 % at n/d = 10 for isotropic features.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of the other keywords.

    Source: Rudelson & Vershynin 2007; as NESum, He & Ozay 2022.

    >>> round(stable_rank(torch.tensor([2.0, 1.0, 1.0])).item(), 6)
    2.0
    """
    if preset is not None:
        return stable_rank(x, **_preset(stable_rank, preset, center=center, normalize=normalize))
    return _entropy(eigenvalues(x, center=center, normalize=normalize), math.inf).exp()


def alpha_req(
    x: Array | Moments,
    *,
    fit: tuple[int, int],
    weighted: bool = False,
    center: bool = False,
    normalize: bool = False,
    preset: str | None = None,
) -> Float[Tensor, ""]:
    """Decay exponent α of a power-law spectrum λⱼ ∝ j^(−α).

    α = minus the slope of log λⱼ on log j, by least squares over lo ≤ j ≤ hi, with weights 1 or 1/j

    The paper centers the features and reads α ≈ 1 as healthy: a larger exponent means collapsed directions, a smaller
    one a spectrum that is flat. White noise alone gives 0.3 to 0.5 at n/d ≤ 2.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        fit: (lo, hi), the first and the last index of the fit; indices start at 1, and both are included.
        weighted: whether index j has the weight 1/j, which makes up for their density in log j, as in Stringer's code
            and that of the authors of α-ReQ. The paper's text has no weights.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of weighted, center and normalize.

    Raises:
        ValueError: the range holds fewer than two eigenvalues or one that vanishes.

    Source: Agrawal et al. 2022 (α-ReQ), eq. 3; Stringer et al. 2019.

    >>> round(alpha_req(1 / torch.arange(1, 65).double(), fit=(11, 50)).item(), 6)
    1.0
    """
    if preset is not None:
        keywords = _preset(alpha_req, preset, weighted=weighted, center=center, normalize=normalize)
        return alpha_req(x, fit=fit, **keywords)
    lam, (lo, hi) = eigenvalues(x, center=center, normalize=normalize), as_ends(fit, "fit")
    positive = int((lam > 0).sum())
    if not lo < hi <= positive:
        raise ValueError(f"fit must satisfy 1 <= lo < hi <= {positive} (the positive eigenvalues), got {fit}")
    j = torch.arange(lo, hi + 1, dtype=lam.dtype, device=lam.device)
    log_j, weights = j.log(), 1 / j if weighted else torch.ones_like(j)
    log_j = log_j - (weights @ log_j) / weights.sum()
    return -((weights * log_j) @ lam[lo - 1 : hi].log()) / (weights @ log_j.square())


def condition_number(x: Array | Moments, *, center: bool = False, normalize: bool = False) -> Float[Tensor, ""]:
    """Condition number of the second moment, the squared condition number of the features.

    λ₁/λᵣ,  r = min(n, d), or min(n − 1, d) for centered rows, which have one direction less

    The range is 1 (flat spectrum) to ∞ (a direction is lost), and lower is healthier. One centered row, which has no
    direction at all, gives ∞. Isotropic features read ((1 + √(d/n))/(1 − √(d/n)))², not 1, in a sample of n > d rows.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.

    >>> round(condition_number(torch.diag(torch.tensor([3.0, 1.0]))).item(), 6)
    9.0
    """
    x = features_or_moments(x)
    lam = eigenvalues(x, center=center, normalize=normalize)
    if center:
        lam = lam[: max((x.n if isinstance(x, Moments) else len(x)) - 1, 1)]
    return torch.where(lam[-1] > 0, lam[0] / torch.where(lam[-1] > 0, lam[-1], 1.0), math.inf)


def isoscore(
    x: Array | Moments, *, center: bool = True, normalize: bool = False, preset: str | None = None
) -> Float[Tensor, ""]:
    """IsoScore: the share of the dimensions that the features use evenly.

    (PR − 1)/(d − 1),  PR = (Σλ)²/Σλ² of the covariance

    The paper's isotropy defect reduces to this: with λ̂ = √d·λ/‖λ‖, d − ½‖λ̂ − 1‖² = √d·Σλ/‖λ‖. The features are
    centered unless told otherwise, as in the paper. The range is 0 (one direction, or none) to 1 (isotropic), and
    higher is healthier.

    Args:
        x: features (n, d), `Moments`, or a spectrum, whose length then counts as d.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of the other keywords.

    Raises:
        ValueError: d < 2.

    Source: Rudman et al. 2022 (arXiv 2108.07344), algorithm 1.

    >>> round(isoscore(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])).item(), 6)  # three of five directions: (3 − 1)/(5 − 1)
    0.5
    """
    if preset is not None:
        return isoscore(x, **_preset(isoscore, preset, center=center, normalize=normalize))
    x = features_or_moments(x)
    d = x.d if isinstance(x, Moments) else x.shape[-1]
    if d < 2:
        raise ValueError("isoscore needs d >= 2")
    center = center and (isinstance(x, Moments) or x.ndim == 2)
    return (participation_ratio(x, center=center, normalize=normalize).clamp(min=1) - 1) / (d - 1)


def anisotropy(
    x: Array | Moments, *, center: bool = False, normalize: bool = False, preset: str | None = None
) -> Float[Tensor, ""]:
    """Anisotropy: the share of the energy that is in the strongest direction, one over the stable rank.

    λ₁/Σλ

    The range is 1/min(n, d) (isotropic) to 1 (one direction, or none), and lower is healthier.

    Args:
        x: features (n, d), `Moments` or a spectrum (r,).
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of the other keywords.

    Source: Razzhigaev et al. 2024 (arXiv 2311.05928), eq. 1, who center.

    >>> round(anisotropy(torch.tensor([0.75, 0.25])).item(), 6)
    0.75
    """
    if preset is not None:
        return anisotropy(x, **_preset(anisotropy, preset, center=center, normalize=normalize))
    return 1 / stable_rank(x, center=center, normalize=normalize).clamp(min=1)


def mean_cosine(x: Array | Moments, *, normalize: bool = False, preset: str | None = None) -> Float[Tensor, ""]:
    """Mean cosine of two distinct rows.

    (n‖z̄‖² − 1)/(n − 1) for unit rows

    The range is −1/(n − 1) (the mean of the rows is zero) to 1 (all rows are equal), and close to 0 is healthy.

    Args:
        x: features (n, d) on the unit sphere, or `Moments` of such.
        normalize: divide each row by its norm first.
        preset: a definition of `PRESETS` instead of normalize.

    Raises:
        ValueError: rows that are not of unit norm, without normalize=True; fewer than 2 rows.

    Source: Ethayarajh 2019 (arXiv 1909.00512), as "anisotropy".

    >>> mean_cosine(torch.eye(4)).item()  # orthogonal rows
    0.0
    """
    if preset is not None:
        return mean_cosine(x, **_preset(mean_cosine, preset, normalize=normalize))
    if isinstance(x, Moments):
        spread = x.quartic_about_zero() / max(x.n, 1) - 1  # with E‖z‖² = 1, the variance of ‖z‖²
        if normalize or abs(spread) > 1e-2 or not x.has_unit_energy:
            raise ValueError("mean_cosine needs Moments of unit-norm rows")
        n, mean = x.n, x.mean
    else:
        z = as_features(x, normalize=normalize)
        require_unit_rows(z)
        n, mean = len(z), z.double().mean(0)
    if n < 2:
        raise ValueError(f"mean_cosine needs at least 2 rows, got {n}")
    return (n * mean.square().sum() - 1) / (n - 1)


def marchenko_pastur_edge(n: int, d: int, *, variance: int | float = 1.0) -> float:
    """Upper edge of the Marchenko–Pastur law: the value at which the eigenvalues of white noise end.

    σ²(1 + √(d/n))²

    Eigenvalues above the edge are signal, up to fluctuations of relative size n^(−2/3).

    Args:
        n: number of rows.
        d: dimension of the features.
        variance: σ², the variance of the noise in each direction; it is 1/d for unit rows.

    Raises:
        ValueError: n or d that is no positive integer, or a negative variance.

    Source: Marchenko & Pastur 1967.

    >>> marchenko_pastur_edge(400, 100)
    2.25
    """
    check_numbers(n=n, d=d, variance=variance)
    return variance * (1 + math.sqrt(d / n)) ** 2


def eigenvalues_above_edge(
    x: Array | Moments, *, variance: int | float | None = None, center: bool = False, normalize: bool = False
) -> Int[Tensor, ""]:
    """Number of eigenvalues above the Marchenko–Pastur edge: directions that noise of that variance cannot make.

    Args:
        x: features (n, d) or `Moments`; the edge depends on n, which a spectrum does not tell.
        variance: σ² of the noise in each direction. None takes all of the features for noise, trΓ/d, which raises the
            edge and makes the count conservative.
        center: subtract the mean of the rows.
        normalize: divide each row by its norm first.

    >>> z = torch.eye(8).repeat(4, 1)
    >>> z[0, 0] = 100  # one strong direction
    >>> eigenvalues_above_edge(z).item()
    1
    """
    x = features_or_moments(x)
    if not isinstance(x, Moments) and x.ndim == 1:
        raise ValueError("eigenvalues_above_edge needs features or Moments: the edge depends on n")
    lam = eigenvalues(x, center=center, normalize=normalize)
    n, d = (x.n, x.d) if isinstance(x, Moments) else x.shape
    noise = variance if variance is not None else lam.detach().sum().item() / d
    return (lam > marchenko_pastur_edge(n, d, variance=noise)).sum()


def effective_ranks(z: Float[Tensor, "b n d"], *, center: bool = False) -> Float[Tensor, " b"]:
    """`effective_rank` of the eigenvalues for each of b sets of features, by one batched decomposition.

    Args:
        z: (b, n, d), b sets of n rows.
        center: subtract the mean of each set.

    >>> effective_ranks(torch.stack((torch.eye(2), torch.ones(2, 2)))).round(decimals=6)
    tensor([2., 1.], dtype=torch.float64)
    """
    n, d = z.shape[1:]
    z = z.double()
    if center:
        z = centered(z, dim=1)
    matrix = z.mT @ z if n >= d else z @ z.mT
    return _entropy(_resolved(matrix / n, n, d, center), 1.0).exp()


def _resolved(matrix: Float[Tensor, "*b m m"], n: int, d: int, center: bool) -> Float[Tensor, "*b r"]:
    """Eigenvalues, descending, with zero for those that rounding may have made."""
    if matrix.device.type == "cpu" and not matrix.requires_grad:
        lam = torch.from_numpy(np.linalg.eigvalsh(matrix.numpy()))  # two thirds of the time of torch's at d = 1024
    else:
        lam = torch.linalg.eigvalsh(matrix)
    lam = lam.flip(-1)[..., : min(n, d)]
    index = torch.arange(lam.shape[-1], device=lam.device)
    floor = torch.finfo(lam.dtype).eps * math.sqrt(lam.shape[-1]) * lam[..., :1]
    return torch.where((lam > floor) & (index < n - int(center)), lam, 0.0)


def _second_moment(x: Array | Moments, *, center: bool, normalize: bool) -> tuple[Tensor, int, int, Tensor]:
    """(Γ or the covariance, or the n × n matrix with the same nonzero eigenvalues; n; d; Σ‖z‖⁴)."""
    if isinstance(x, Moments):
        if normalize:
            raise ValueError("Moments keep no rows: normalize the features before update")
        if x.n == 0:
            raise ValueError("Moments have seen no rows")
        return (x.covariance, x.n, x.d, x.quartic) if center else (x.second_moment, x.n, x.d, x.quartic_about_zero())
    z = as_features(x, normalize=normalize)
    n, d = z.shape
    if n >= d and not z.requires_grad:
        return _second_moment(Moments.of(z), center=center, normalize=False)
    if n < d:
        matrix = dual_gram(z, center=center)
        quartic = matrix.diagonal().square().sum()
        return matrix / n if matrix.requires_grad else matrix.div_(n), n, d, quartic
    z = z.double()
    if center:
        z = centered(z)
    return gram(z) / n, n, d, z.square().sum(1).square().sum()


def _values(x: Array | Moments, of: Of, center: bool, normalize: bool) -> Float[Tensor, " r"]:
    if of not in ("eigenvalues", "singular_values"):
        raise ValueError(f'of must be "eigenvalues" or "singular_values", got {of!r}')
    lam = eigenvalues(x, center=center, normalize=normalize)
    if of == "eigenvalues":
        return lam
    return square_root(lam)


def _entropy(values: Float[Tensor, "*b r"], order: int | float, shift: int | float = 0.0) -> Float[Tensor, "*b"]:
    """Rényi entropy of values/Σvalues (+ shift); zeros carry neither entropy nor gradient (0·log 0 = 0)."""
    total = values.sum(-1, keepdim=True)
    p = values / torch.where(total > 0, total, 1.0) + shift
    support = p > 0
    safe = torch.where(support, p, 1.0)
    if order == 1:
        entropy = -(safe * safe.log()).sum(-1)
    elif order == math.inf:
        entropy = -p.amax(-1).log()
    elif abs(order - 1) < 1e-3 and not shift:  # log Σ p·pᵃ⁻¹, whose digits the quotient would lose
        entropy = torch.log1p((safe * torch.expm1((order - 1) * safe.log()) * support).sum(-1)) / (1 - order)
    else:  # from the largest on, so that no power is too small
        top = p.amax(-1, keepdim=True)
        top = torch.where(top > 0, top, 1.0)
        logs = torch.where(support, (safe / top).log(), 0.0)
        terms = torch.where(support, order * logs, -math.inf).logsumexp(-1)
        entropy = order / (1 - order) * top.log().squeeze(-1) + terms / (1 - order)
    return torch.where(total[..., 0] > 0, entropy, -math.inf)
