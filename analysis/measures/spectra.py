"""Functions of the spectrum of features, each of them written once, for whatever form the spectrum comes in.

x is features (n, d), a `Moments`, or the eigenvalues themselves (1-D). The spectrum is that of the second moment
Γ = zᵀz/n, or of the covariance with center=True; `normalize` puts the rows on the unit sphere first. Nothing is
centered, normalized or shifted unless the call says so. Results are 0-d float64 tensors on the device of x and carry
gradients with respect to features. All of them are invariant to rotation, those of the normalized spectrum
pᵢ = λᵢ/Σλ to scale, too. A spectrum of zeros (constant features, centered) has rank 0 and entropy −∞.
Finite samples bias most of them (`measures.uncertainty`): compare values at equal n and d only.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inputs import Array, as_features, as_spectrum, centered, require_unit_rows
from .moments import Moments, dual_gram, gram

Of = Literal["eigenvalues", "singular_values"]
# One embedding, many "effective ranks": what papers and public implementations compute, in our keywords.
PRESETS = {
    "roy2007": {"of": "singular_values"},
    "garrido2023": {"of": "singular_values", "shift": 1e-7},
    "skean2025": {"of": "eigenvalues"},
    "stable-pretraining": {"of": "singular_values", "shift": 1e-5},
    "req-metrics": {"of": "singular_values", "center": True},
    "reptrix": {"of": "eigenvalues", "center": True},
}


def eigenvalues(x: Array | Moments, *, center: bool = False, normalize: bool = False) -> Float[Tensor, " r"]:
    """Eigenvalues of Γ = zᵀz/n, or of the covariance (1/n) with center=True, descending, r = min(n, d) of them.

    The squared singular values of z over n. Formed in float64 from the Gram matrix of the smaller side, so that
    n < d adds no rounding eigenvalues; centered features have rank n − 1 at most, and what lies beyond is zero, as is
    what rounding may have made: λ ≤ √r·2·10⁻¹⁶·λ₁, singular values below 10⁻⁷ of the largest. On the sphere Σλ = 1.

    ValueError: NaN, infinite or empty input; center or normalize asked of a spectrum, normalize of `Moments`.
    """
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
) -> Float[Tensor, ""]:
    """Matrix Rényi entropy of order a in nats; the limits are taken at a = 1 (von Neumann) and a = ∞.

    S_a = log(Σ pᵢᵃ)/(1 − a),  S₁ = −Σ pᵢ log pᵢ,  S_∞ = −log max p,  pᵢ = λᵢ/Σλ (or σᵢ/Σσ).

    Range 0 (rank one) to log r (flat spectrum of rank r); higher is more spread. exp S_a is the rank at a = 0,
    the effective rank at 1, the participation ratio at 2 and the stable rank at ∞; S_a falls with a.

    Source: Sánchez Giraldo et al. 2015 (arXiv 1211.2459); Skean et al. 2025 (arXiv 2502.02013).
    """
    if order < 0:
        raise ValueError(f"order must not be negative, got {order}")
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
    """Exponential of the spectrum's Shannon entropy: exp(−Σ qᵢ log qᵢ), qᵢ = pᵢ + shift, pᵢ = λᵢ/Σλ or σᵢ/Σσ.

    of: "eigenvalues" of Γ, or "singular_values" of z (Roy & Vetterli), which weigh the tail more and never give
    less. shift shifts p without renormalizing, as some implementations do; with it, the range 1 (rank one) to
    r = min(n, d) (flat) no longer holds. Higher is healthier. preset: a definition of `PRESETS` instead of the
    other keywords.

    Source: Roy & Vetterli 2007, eq. 3; Skean et al. 2025 (arXiv 2502.02013) for eigenvalues.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        if (of, shift, center, normalize) != ("eigenvalues", 0.0, False, False):
            raise ValueError("preset fixes the whole definition: pass no other keyword with it")
        return effective_rank(x, **PRESETS[preset])
    return _entropy(_values(x, of, center, normalize), 1.0, shift=shift).exp()


def rankme(
    x: Array | Moments, *, shift: int | float = 1e-7, center: bool = False, normalize: bool = False
) -> Float[Tensor, ""]:
    """RankMe, the effective rank of the singular values: exp(−Σ qₖ log qₖ), qₖ = σₖ/‖σ‖₁ + shift.

    Range 1 (total collapse) to min(n, d), up to about 10⁻⁷·min(n, d)·16 from the shift. Higher is healthier.

    Source: Garrido et al. 2023 (arXiv 2210.02885), eq. 1, with its eps for float32.
    """
    return effective_rank(x, of="singular_values", shift=shift, center=center, normalize=normalize)


def participation_ratio(
    x: Array | Moments, *, unbiased: bool = False, center: bool = False, normalize: bool = False
) -> Float[Tensor, ""]:
    """Participation ratio (Σλ)²/Σλ², the effective number of eigenvalues.

    Range 1 (rank one) to min(n, d) (flat); higher is healthier. From n samples the plain ratio is biased low,
    1/PR_n ≈ 1/n + 1/PR. With unbiased=True numerator and denominator are each estimated without bias from the
    pairs of distinct rows, the trace, ‖Γ‖²_F and Σ‖z‖⁴; the result may exceed d, and is +∞ where no two
    rows overlap. That needs features or `Moments`, with 2 rows (4 if centered).

    Source: Gao et al. 2017; Chun et al. 2025 (arXiv 2509.26560), rows only; Himeno & Yamada 2014 (centered traces).
    """
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


def stable_rank(x: Array | Moments, *, center: bool = False, normalize: bool = False) -> Float[Tensor, ""]:
    """Stable (numerical) rank Σλ/λ₁ = ‖z‖²_F/‖z‖²₂.

    Range 1 (one dominant direction) to min(n, d) (flat); higher is healthier. Strongly biased by the sample's
    largest eigenvalue: −42 % at n/d = 10 for isotropic features.

    Source: Rudelson & Vershynin 2007; as NESum, He & Ozay 2022.
    """
    return _entropy(eigenvalues(x, center=center, normalize=normalize), math.inf).exp()


def alpha_req(
    x: Array | Moments, *, fit: tuple[int, int], center: bool = False, normalize: bool = False
) -> Float[Tensor, ""]:
    """Decay exponent α of a power-law spectrum λⱼ ∝ j^(−α): minus the slope of log λⱼ on log j, lo ≤ j ≤ hi.

    fit = (lo, hi): the indices, from 1, both included. The paper centers and reads α ≈ 1 as healthy: larger
    has collapsed directions, smaller is flat. White noise alone gives 0.3 to 0.5 at n/d ≤ 2.
    ValueError where the range holds fewer than two or vanishing eigenvalues.

    Source: Agrawal et al. 2022 (α-ReQ), eq. 3; Stringer et al. 2019.
    """
    lam, (lo, hi) = eigenvalues(x, center=center, normalize=normalize), fit
    positive = int((lam > 0).sum())
    if not 1 <= lo < hi <= positive:
        raise ValueError(f"fit must satisfy 1 <= lo < hi <= {positive} (the positive eigenvalues), got {fit}")
    log_j = torch.arange(lo, hi + 1, dtype=lam.dtype, device=lam.device).log()
    log_j = log_j - log_j.mean()
    return -(log_j @ lam[lo - 1 : hi].log()) / log_j.square().sum()


def condition_number(x: Array | Moments, *, center: bool = False, normalize: bool = False) -> Float[Tensor, ""]:
    """Condition number λ₁/λᵣ of Γ, r = min(n, d), which is the squared condition number of z.

    Centered rows have one direction less: r = min(n − 1, d), and one row, which has none, gives ∞.

    Range 1 (flat) to ∞ (a direction is lost); lower is healthier. The flat sample of isotropic features reads
    ((1 + √(d/n))/(1 − √(d/n)))².
    """
    lam = eigenvalues(x, center=center, normalize=normalize)
    if center:
        lam = lam[: max((x.n if isinstance(x, Moments) else len(x)) - 1, 1)]
    return torch.where(lam[-1] > 0, lam[0] / torch.where(lam[-1] > 0, lam[-1], 1.0), math.inf)


def isoscore(x: Array | Moments, *, center: bool = True, normalize: bool = False) -> Float[Tensor, ""]:
    """IsoScore (PR − 1)/(d − 1) of the covariance, PR = (Σλ)²/Σλ²: the share of dimensions used evenly.

    The paper's isotropy defect reduces to this: with λ̂ = √d·λ/‖λ‖, d − ½‖λ̂ − 1‖² = √d·Σλ/‖λ‖. Centered, as in the
    paper. Range 0 (one direction, or none) to 1 (isotropic); higher is healthier. A spectrum counts as d long.

    Source: Rudman et al. 2022 (arXiv 2108.07344), algorithm 1.
    """
    d = x.d if isinstance(x, Moments) else x.shape[-1]
    if d < 2:
        raise ValueError("isoscore needs d >= 2")
    center = center and (isinstance(x, Moments) or x.ndim == 2)
    return (participation_ratio(x, center=center, normalize=normalize).clamp(min=1) - 1) / (d - 1)


def anisotropy(x: Array | Moments, *, center: bool = False, normalize: bool = False) -> Float[Tensor, ""]:
    """Anisotropy λ₁/Σλ, the share of the strongest direction: one over the stable rank.

    Range 1/min(n, d) (isotropic) to 1 (one direction, or none); lower is healthier.

    Source: Razzhigaev et al. 2024 (arXiv 2311.05928), eq. 1, who center.
    """
    return 1 / stable_rank(x, center=center, normalize=normalize).clamp(min=1)


def mean_cosine(x: Array | Moments, *, normalize: bool = False) -> Float[Tensor, ""]:
    """Mean cosine of two distinct rows, (n‖z̄‖² − 1)/(n − 1) for unit rows.

    Range −1/(n − 1) (the mean is zero) to 1 (all rows equal); close to 0 is healthy. ValueError unless the rows
    are of unit norm (or normalize=True), and for n < 2.

    Source: Ethayarajh 2019 (arXiv 1909.00512), as "anisotropy".
    """
    if isinstance(x, Moments):
        spread = x.quartic_about_zero() / max(x.n, 1) - 1  # with E‖z‖² = 1, the variance of ‖z‖²
        if normalize or abs(spread) > 1e-2 or abs(x.second_moment.trace() - 1) > 1e-2:
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
    """Upper edge σ²(1 + √(d/n))² of the Marchenko–Pastur law: where the eigenvalues of white noise end.

    variance: σ², the noise per direction (1/d for unit rows). Eigenvalues above the edge are signal, up to
    fluctuations of relative size n^(−2/3).

    Source: Marchenko & Pastur 1967.
    """
    return variance * (1 + math.sqrt(d / n)) ** 2


def eigenvalues_above_edge(
    x: Array | Moments, *, variance: int | float | None = None, center: bool = False, normalize: bool = False
) -> Int[Tensor, ""]:
    """Number of eigenvalues above the Marchenko–Pastur edge: directions that noise of that variance cannot make.

    variance: σ² of the noise; None takes the whole of the features as noise, trΓ/d, and so counts conservatively.
    Needs features or `Moments`, since the edge depends on n.
    """
    if not isinstance(x, Moments) and x.ndim == 1:
        raise ValueError("eigenvalues_above_edge needs features or Moments: the edge depends on n")
    lam = eigenvalues(x, center=center, normalize=normalize)
    n, d = (x.n, x.d) if isinstance(x, Moments) else x.shape
    noise = variance if variance is not None else lam.detach().sum().item() / d
    return (lam > marchenko_pastur_edge(n, d, variance=noise)).sum()


def effective_ranks(z: Float[Tensor, "b n d"], *, center: bool = False) -> Float[Tensor, " b"]:
    """`effective_rank` of each of b sets of features, by one batched decomposition."""
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
    return torch.where(lam > 0, torch.where(lam > 0, lam, 1.0).sqrt(), 0.0)  # √ has no gradient at 0


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
    else:
        entropy = torch.where(support, order * safe.log(), -math.inf).logsumexp(-1) / (1 - order)
    return torch.where(total[..., 0] > 0, entropy, -math.inf)
