"""Collapse of features: to a point, to a cone, of views onto each other, of patches, of prototypes.

No single number sees every collapse. A network that maps all inputs to one point plus rounding noise has a healthy
centered effective rank, and so a healthy LiDAR: read `mean_collapse` and `feature_std`, which know the scale, beside
any rank. Results are 0-d float64 tensors on the device of the features and carry gradients.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln, logsumexp
from torch import Tensor

from .inputs import Array, as_features, as_floating, as_views, paired_views, require_unit_rows, unit_rows
from .moments import Moments
from .pairs import pair_mean, squared_distances, unit_features
from .spectra import effective_rank, effective_ranks


def alignment(
    x: Array, y: Array | None = None, *, power: int | float = 2, normalize: bool = False
) -> Float[Tensor, ""]:
    """Alignment: mean distance between the features of two views of one sample.

    E ‖xᵢ − yᵢ‖^power, averaged over all pairs of views.

    x, y: `(n, d)`, row i of both from sample i; or views `(v, n, d)` alone. Rows on the unit sphere, or
    `normalize=True`. Range [0, 2^power], lower is more invariant; independent isotropic views give 2 for power 2,
    total collapse gives 0, so read it beside `uniformity`. SimDINO's ½‖a − b‖² is half of it.
    ValueError: rows off the sphere, shapes that differ, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) section 4.1.1.
    """
    views = paired_views(x, y, normalize=normalize)
    if not normalize:
        require_unit_rows(views, "views" if y is None else "x or y")
    i, j = torch.combinations(torch.arange(len(views), device=views.device)).T  # (v(v−1)/2,) each
    distances = torch.stack([torch.linalg.vector_norm(views[a] - views[b], dim=-1) for a, b in zip(i, j, strict=True)])
    return distances.pow(power).mean(dtype=torch.float64)


def uniformity(z: Array, *, t: int | float = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """Uniformity: logarithm of the mean Gaussian potential over pairs of features.

    log mean_{i<j} exp(−t‖zᵢ − zⱼ‖²).

    z: `(n, d)`, n ≥ 2, rows on the unit sphere, or `normalize=True`. Range [−4t, 0] in nats, lower is more uniform:
    0 is total collapse, `uniformity_optimum(d)` the uniform distribution; finite sets that are spread better than
    random (a simplex: −2tn/(n − 1)) lie below it. Pairs are tiled: no (n, n) matrix, also under autograd.
    ValueError: rows off the sphere, fewer than two, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) section 4.1.2, as a mean over distinct pairs.
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    return pair_mean(z - z.mean(0), lambda r2: torch.exp(-t * r2), pairing=squared_distances).log()


def uniformity_optimum(d: int, *, t: int | float = 2) -> float:
    """Uniformity of the uniform distribution on the unit sphere of ℝᵈ, the infimum over all distributions.

    log E exp(−t‖x − y‖²) = −2t + log ₀F₁(; d/2; t²), here by the series of ₀F₁, whose terms are all positive.

    Source: Wang & Isola 2020 (arXiv 2005.10242) proposition 1; the value by E e^{κ⟨x,y⟩} = ₀F₁(; d/2; κ²/4).
    """
    if d < 1 or t <= 0:
        raise ValueError(f"uniformity_optimum needs d ≥ 1 and t > 0, got d={d}, t={t}")
    k = np.arange(int(2 * t) + 100)  # the largest term has k ≤ t
    return float(-2 * t + logsumexp(2 * k * np.log(t) - gammaln(k + 1) - gammaln(d / 2 + k) + gammaln(d / 2)))


def uniformity_gap(z: Array, *, t: int | float = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """`uniformity` minus its value for the uniform distribution on the sphere, in nats.

    0 is as uniform as independent uniform samples in expectation of the potential; −`uniformity_optimum(d)` is total
    collapse; slightly negative values are possible at finite n (repelling points beat random ones).
    Arguments and errors as in `uniformity`.
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    return uniformity(z, t=t) - uniformity_optimum(z.shape[1], t=t)


def hyperspherical_energy(z: Array, *, s: int | float = 0, normalize: bool = False) -> Float[Tensor, ""]:
    """Hyperspherical energy: the mean Riesz potential of pairs, mean_{i<j} ‖zᵢ − zⱼ‖⁻ˢ, or −log‖zᵢ − zⱼ‖ for s = 0.

    z: `(n, d)`, n ≥ 2, rows on the unit sphere, or `normalize=True`. Lower is more spread; at most d + 1 rows are
    best as a simplex, for any s, with all ‖zᵢ − zⱼ‖² = 2n/(n − 1). +∞ if two rows coincide, as in total collapse:
    where `uniformity` averages, this looks at the closest pairs, the more so the larger s. Computed in float64, in
    tiles. ValueError: s < 0, rows off the sphere, NaN.

    Source: Liu et al. 2018 (arXiv 1805.09298); for neural collapse Gao et al. 2023 (arXiv 2303.06484).
    """
    if s < 0:
        raise ValueError(f"s must not be negative, got {s}")
    z = unit_features(z, normalize=normalize, min_rows=2).double()

    def potential(r2: Tensor) -> Tensor:
        return -r2.log() / 2 if s == 0 else r2.pow(-s / 2)

    return pair_mean(z - z.mean(0), potential, pairing=squared_distances)


def feature_std(z: Array) -> Float[Tensor, ""]:
    """Standard deviation of the normalized features, in units of the isotropic value.

    √d · mean_j std_i(zᵢⱼ/‖zᵢ‖), with the population's standard deviation.

    z: `(n, d)`; the normalization is part of the definition, a zero row stays zero. Range [0, 1]: 0 is total
    collapse, 1 isotropic. It sees complete collapse only: features on a random line read about 0.8 and on a random
    plane 0.9, so read an effective rank beside it. Invariant to the scale of rows, not to rotation.

    Source: Chen & He 2021 (SimSiam, arXiv 2011.10566) section 4.1.
    """
    z = as_features(z)
    rows = z.any(1)  # (n,)
    unit = torch.zeros_like(z).index_put((rows,), unit_rows(z[rows])).double()
    return unit.std(0, correction=0).mean() * math.sqrt(z.shape[1])


def mean_collapse(x: Array | Moments) -> Float[Tensor, ""]:
    """Share of the features' energy that their mean holds.

    ‖E z‖² / E‖z‖².

    x: features `(n, d)`, not centered (that would make it 0), or `Moments`. Range [0, 1], lower is healthier: 1 is all
    samples on one point (also the value of all-zero features), independent isotropic features give 1/n in
    expectation. On unit rows it is the mean cosine over all n² pairs. It tells rounding noise around one point, whose
    centered effective rank looks healthy, from real spread. Invariant to rotation and scale. ValueError: NaN, empty.
    """
    if isinstance(x, Moments):
        if x.n == 0:
            raise ValueError("Moments have seen no rows")
        point, spread = x.mean.square().sum(), x.covariance.trace()
    else:
        z = as_features(x)
        z = z.double() / z.detach().abs().max().double().clamp_min(torch.finfo(torch.float64).tiny)
        point, spread = z.mean(0).square().sum(), (z - z.mean(0)).square().sum() / len(z)
    energy = point + spread
    return torch.where(energy > 0, point / torch.where(energy > 0, energy, 1.0), 1.0)


def lidar(views: Array, *, delta: int | float = 1e-4) -> Float[Tensor, ""]:
    """LiDAR: effective rank of the spread between samples, after whitening by the spread between their views.

    Effective rank of Σ_w^(−½) Σ_b Σ_w^(−½),  Σ_b = cov of the samples' mean views,
    Σ_w = Σ (z − mean view)(z − mean view)ᵀ/(n(v − 1)) + δI.

    views: `(v, n, d)`, v ≥ 2 augmentations of the same n samples; the view axis comes first, since grouping views by
    position in a queue changes the value. Range 1 to min(n − 1, d), 0 if all mean views are equal. Higher is healthier.
    δ is absolute, as in the paper: not invariant to scale unless δ is small beside Σ_w. Σ_w is unbiased, as there; with
    1/(nv), as also found, the value differs by what δ weighs. ValueError: δ ≤ 0, NaN.

    Source: Thilak et al. 2024 (arXiv 2312.04000).
    """
    if delta <= 0:
        raise ValueError(f"delta must be positive, got {delta}")
    views = as_views(views).double()
    views = views - views[:1, :1].detach()  # measured from one row, equal rows are exactly zero
    centers = views.mean(0)  # (n, d)
    within = (views - centers).flatten(0, 1)  # (v·n, d)
    sigma = within.mT @ within / (len(within) - len(centers))  # (d, d)
    factor = torch.linalg.cholesky(sigma + delta * torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device))
    between = centers - centers.mean(0)
    return effective_rank(torch.linalg.solve_triangular(factor, between.mT, upper=False).mT)


def patch_ranks(tokens: Array, *, center: bool = False) -> dict[str, Float[Tensor, ""]]:
    """Effective ranks of patch tokens: among the patches of an image, and among images at a position.

    within = mean over images of the effective rank of the (t, d) tokens; between = mean over positions, of (n, d).

    tokens: `(n, t, d)`. within 1: an image's patches lie on one line (only global information); between 1: every
    image has the same tokens (only position). Both 1: patch collapse, which SimDINOv2's loss does not exclude.
    Ranges [1, min(t, d)] and [1, min(n, d)], 0 only for zeros (or centered constants); higher is healthier. Without
    centering, rounding noise on constant tokens reads 1; with it, min(t, d).

    Source: Roy & Vetterli 2007 for the rank; Wu et al. 2025 (arXiv 2502.10385) for the patch term.
    """
    tokens = as_floating(tokens, "tokens", "n t d")
    return {
        name: effective_ranks(sets, center=center).mean()
        for name, sets in (("within", tokens), ("between", tokens.transpose(0, 1)))
    }


def prototype_entropy(logits: Array, *, temp: int | float = 1.0) -> dict[str, Float[Tensor, ""]]:
    """Entropies of prototype assignments in nats: of their mean, of each sample, and the difference.

    p = softmax(logits/temp);  marginal H(E p),  conditional E H(p),  information = marginal − conditional.

    logits: `(n, K)`; subtract the center first where the method does. marginal in [0, log K], 0: one prototype takes
    all; conditional in [0, log K], log K: all assignments are uniform, which the marginal alone calls healthy.
    information, the mutual information of sample and prototype, in [0, log min(n, K)], is 0 in both collapses; higher
    is healthier. ValueError: temp ≤ 0, NaN.

    Source: Caron et al. 2021 (arXiv 2104.14294) section 5.3 (the two collapses).
    """
    if temp <= 0:
        raise ValueError(f"temp must be positive, got {temp}")
    logits = as_floating(logits, "logits", "n K")
    mean, conditional = 0.0, 0.0
    for rows in logits.split(max(1, 2**24 // logits.shape[1])):  # K may be 65536: no second copy of the whole
        log_p = (rows.double() / temp).log_softmax(1)
        mean = mean + log_p.exp().sum(0) / len(logits)  # (K,)
        conditional = conditional - (log_p.exp() * log_p).sum() / len(logits)
    marginal = torch.special.entr(mean).sum()
    return {"marginal": marginal, "conditional": conditional, "information": (marginal - conditional).clamp_min(0)}


def prototype_usage(logits: Array) -> Float[Tensor, ""]:
    """Share of the prototypes that are the best one of at least one sample.

    logits: `(n, K)`. Range 1/K (one prototype takes all) to min(1, n/K): compare at equal n. Higher is healthier.
    Not differentiable. Equal logits go to one prototype, so that uniform collapse reads 1/K, too.
    """
    logits = as_floating(logits, "logits", "n K").detach()
    used = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    used[logits.argmax(1)] = 1
    return used.mean()


def center_drift(logits: Array, *, running_center: Array) -> Float[Tensor, ""]:
    """How far a running center lags behind the mean of the scores, in units of the scores' spread.

    ‖P(E t − c)‖ / √(E‖P(t − E t)‖²), P the projection orthogonal to the vector of ones, which softmax ignores.

    logits: teacher scores `(n, K)`, running_center c: `(K,)`. 0: it is up to date; above 1 it shifts the assignments
    more than the samples do, and centering no longer guards against collapse. +∞ for equal scores off the center.

    Source: Caron et al. 2021 (arXiv 2104.14294) eq. 4 (the center).
    """
    logits = as_floating(logits, "logits", "n K").double()
    center = as_floating(running_center, "running_center", "K").to(logits)
    if len(center) != logits.shape[1]:
        raise ValueError(f"running_center must have shape ({logits.shape[1]},), got {tuple(center.shape)}")
    scores = logits - center
    scores = scores - scores.mean(1, keepdim=True)  # (n, K)
    lag, spread = scores.mean(0).norm(), (scores - scores.mean(0)).square().sum(1).mean().sqrt()
    return torch.where(lag > 0, lag / spread, 0.0)
