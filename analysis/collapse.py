"""Collapse of features: to a point, to a cone, of views onto each other, of patches, of prototypes.

No single number sees every collapse. A network that maps all inputs to one point plus rounding noise has a healthy
centred effective rank: read `mean_collapse` and `feature_std`, which know the scale, beside any rank.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln, logsumexp
from torch import Tensor

from analysis._input import Array, as_features, as_views, require_unit_rows, unit_rows
from analysis.frames import pair_mean, squared_distances, unit_features


def alignment(
    x: Array, y: Array | None = None, *, power: int | float = 2, normalize: bool = False
) -> Float[Tensor, ""]:
    """Alignment: mean distance between the features of two views of one sample.

    E ‖xᵢ − yᵢ‖^power, averaged over all pairs of views.

    x, y: `(n, d)`, row i of both from sample i; or views `(v, n, d)` alone. Rows on the unit sphere, or
    `normalize=True`. Range [0, 2^power], lower is more invariant; independent isotropic views give 2 for power 2,
    total collapse gives 0, so read it beside `uniformity`. SimDINO's ½‖a − b‖² is half of it.
    ValueError: rows off the sphere, shapes that differ, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) eq. 7.
    """
    if y is not None:
        x, y = as_features(x, "x"), as_features(y, "y")
        if x.shape != y.shape:
            raise ValueError(f"x and y must be views of the same samples, got {tuple(x.shape)} and {tuple(y.shape)}")
        x = torch.stack((x, y.to(x)))
    views = as_views(x, normalize=normalize)
    if not normalize:
        require_unit_rows(views, "views")
    i, j = torch.combinations(torch.arange(len(views), device=views.device)).T  # (v(v−1)/2,) each
    distances = torch.stack([torch.linalg.vector_norm(views[a] - views[b], dim=-1) for a, b in zip(i, j, strict=True)])
    return distances.pow(power).mean(dtype=torch.float64).to(views.dtype)


def uniformity(z: Array, *, t: int | float = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """Uniformity: logarithm of the mean Gaussian potential over pairs of features.

    log mean_{i<j} exp(−t‖zᵢ − zⱼ‖²).

    z: `(n, d)`, n ≥ 2, rows on the unit sphere, or `normalize=True`. Range [−4t, 0] in nats, lower is more uniform:
    0 is total collapse, `uniformity_optimum(d)` the uniform distribution; finite sets that are spread better than
    random (a simplex: −2tn/(n − 1)) lie below it. Pairs are tiled: no (n, n) matrix, also under autograd.
    ValueError: rows off the sphere, fewer than two, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) eq. 8, as a mean over distinct pairs.
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


def feature_std(z: Array) -> Float[Tensor, ""]:
    """Standard deviation of the normalised features, in units of the isotropic value.

    √d · mean_j std_i(zᵢⱼ/‖zᵢ‖), with the population's standard deviation.

    z: `(n, d)`; the normalisation is part of the definition, a zero row stays zero. Range [0, 1]: 0 is total
    collapse, 1 isotropic. It sees complete collapse only: features on a random line read about 0.8 and on a random
    plane 0.9, so read an effective rank beside it. Invariant to the scale of rows, not to rotation.

    Source: Chen & He 2021 (SimSiam, arXiv 2011.10566) section 4.1.
    """
    z = as_features(z)
    rows = z.any(1)  # (n,)
    unit = torch.zeros_like(z).index_put((rows,), unit_rows(z[rows]))
    return unit.std(0, correction=0).mean() * z.shape[1] ** 0.5


def mean_collapse(z: Array) -> Float[Tensor, ""]:
    """Share of the features' energy that their mean holds.

    ‖E z‖² / E‖z‖².

    z: `(n, d)`, not centred (that would make it 0). Range [0, 1], lower is healthier: 1 is all samples on one point
    (also the value of all-zero features), independent isotropic features give 1/n in expectation. On unit rows it is
    the mean cosine over all n² pairs. It tells rounding noise around one point, whose centred effective rank looks
    healthy, from real spread. Invariant to rotation and scale. ValueError: NaN, empty.
    """
    z = as_features(z)
    z = z / z.detach().abs().amax().clamp_min(torch.finfo(z.dtype).tiny)  # keeps the squares in range
    mean = z.mean(0, dtype=torch.float64)  # (d,)
    energy = z.square().sum(dtype=torch.float64) / len(z)
    if energy == 0:
        return torch.ones_like(energy, dtype=z.dtype)
    return (mean.square().sum() / energy).clamp(max=1).to(z.dtype)
