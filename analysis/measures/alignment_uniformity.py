"""Alignment of views and uniformity on the sphere, Wang & Isola's two axes, and the energies of pairs beside them.

Results are 0-d float64 tensors on the device of the features, and carry gradients.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln, logsumexp
from torch import Tensor

from simdino.losses import check_numbers

from .inputs import Array, paired_views, require_unit_rows
from .pair_tiles import pair_mean, squared_distances, unit_features


def alignment(
    x: Array, y: Array | None = None, *, power: int | float = 2, normalize: bool = False
) -> Float[Tensor, ""]:
    """Alignment: the mean distance between the features of two views of one sample.

    E ‖xᵢ − yᵢ‖^power, averaged over all pairs of views.

    The range is [0, 2^power], and lower is more invariant. Independent isotropic views give 2 for power 2. Total
    collapse gives 0, so read it beside `uniformity`. SimDINO's ½‖a − b‖² is half of it.

    Args:
        x: (n, d) features on the unit sphere, or (v, n, d) views of the same samples if y is left out.
        y: (n, d) features of another view; row i of x and of y come from sample i.
        power: of the distance.
        normalize: puts the rows on the unit sphere first.

    Raises:
        ValueError: rows off the sphere, shapes that differ, fewer than two views, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) section 4.1.1.

    >>> x = torch.eye(3)
    >>> round(alignment(x, x.roll(1, 0)).item(), 6)  # every pair of views is orthogonal
    2.0
    """
    check_numbers(power=power)
    views = paired_views(x, y, normalize=normalize)
    if not normalize:
        require_unit_rows(views, "views" if y is None else "x or y")
    i, j = torch.combinations(torch.arange(len(views), device=views.device)).T  # (v(v−1)/2,) each
    distances = torch.stack([torch.linalg.vector_norm(views[a] - views[b], dim=-1) for a, b in zip(i, j, strict=True)])
    return distances.double().pow(power).mean()


def uniformity(z: Array, *, t: int | float = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """Uniformity: the logarithm of the mean Gaussian potential over pairs of features.

    log mean_{i<j} exp(−t‖zᵢ − zⱼ‖²).

    The range is [−4t, 0] in nats, and lower is more uniform. 0 is total collapse, `uniformity_optimum(d)` the uniform
    distribution. Finite sets that are spread better than random lie below the optimum, such as a simplex at
    −2tn/(n − 1). Pairs are visited in tiles, so that no (n, n) matrix is formed, also under autograd.

    Args:
        z: (n, d) features on the unit sphere, n ≥ 2.
        t: the potential's inverse width.
        normalize: puts the rows on the unit sphere first.

    Raises:
        ValueError: rows off the sphere, fewer than two rows, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) section 4.1.2, as a mean over distinct pairs.

    >>> round(uniformity(torch.eye(5)).item(), 6)  # all squared distances are 2
    -4.0
    """
    check_numbers(t=t)
    z = unit_features(z, normalize=normalize, min_rows=2)
    return pair_mean(z - z.mean(0), lambda r2: torch.exp(-t * r2), pairing=squared_distances).log()


def uniformity_optimum(d: int, *, t: int | float = 2) -> float:
    """Uniformity of the uniform distribution on the unit sphere of ℝᵈ, the infimum over all distributions, in nats.

    log E exp(−t‖x − y‖²) = −2t + log ₀F₁(; d/2; t²), here by the series of ₀F₁, whose terms are all positive.

    Args:
        d: the dimension of the space, d ≥ 1.
        t: the potential's inverse width, t > 0.

    Raises:
        ValueError: d < 1 or t ≤ 0.

    Source: Wang & Isola 2020 (arXiv 2005.10242) proposition 1; the value by E e^{κ⟨x,y⟩} = ₀F₁(; d/2; κ²/4).

    On the ordinary sphere it is elementary:

    >>> round(uniformity_optimum(3), 6), round(-4 + np.log(np.sinh(4) / 4).item(), 6)
    (-2.079777, -2.079777)
    """
    check_numbers(d=d, t=t)
    k = np.arange(int(2 * t) + 100)  # the largest term has k ≤ t
    return float(-2 * t + logsumexp(2 * k * np.log(t) - gammaln(k + 1) - gammaln(d / 2 + k) + gammaln(d / 2)))


def uniformity_gap(z: Array, *, t: int | float = 2, normalize: bool = False) -> Float[Tensor, ""]:
    """`uniformity` minus its value for the uniform distribution on the sphere, in nats.

    0 is as uniform as independent uniform samples, in expectation of the potential, and −`uniformity_optimum(d)` is
    total collapse. Lower is more uniform. Slightly negative values are possible at finite n, where points that repel
    each other beat random ones.

    Args:
        z: (n, d) features on the unit sphere, n ≥ 2.
        t: the potential's inverse width, t > 0.
        normalize: puts the rows on the unit sphere first.

    Raises:
        ValueError: rows off the sphere, fewer than two rows, t ≤ 0, NaN.

    Source: Wang & Isola 2020 (arXiv 2005.10242) proposition 1.

    >>> z = torch.eye(3)[[0, 0, 0, 0]]  # total collapse
    >>> round(uniformity_gap(z).item() + uniformity_optimum(3), 6)
    0.0
    """
    z = unit_features(z, normalize=normalize, min_rows=2)
    return uniformity(z, t=t) - uniformity_optimum(z.shape[1], t=t)


def hyperspherical_energy(z: Array, *, s: int | float = 0, normalize: bool = False) -> Float[Tensor, ""]:
    """Hyperspherical energy: the mean Riesz potential over pairs of features.

    mean_{i<j} ‖zᵢ − zⱼ‖⁻ˢ,  or mean_{i<j} −log‖zᵢ − zⱼ‖ for s = 0.

    Lower is more spread. At most d + 1 rows are best as a simplex, for any s, with all ‖zᵢ − zⱼ‖² = 2n/(n − 1). It is
    +∞ if two rows coincide, as in total collapse: where `uniformity` averages, this looks at the closest pairs, the
    more so the larger s. Computed in float64, in tiles.

    Args:
        z: (n, d) features on the unit sphere, n ≥ 2.
        s: the exponent of the Riesz potential, s ≥ 0.
        normalize: puts the rows on the unit sphere first.

    Raises:
        ValueError: s < 0, rows off the sphere, fewer than two rows, NaN.

    Source: Liu et al. 2018 (arXiv 1805.09298); for neural collapse Gao et al. 2023 (arXiv 2303.06484).

    >>> round(hyperspherical_energy(torch.eye(4)).item(), 6), round(hyperspherical_energy(torch.eye(4), s=2).item(), 6)
    (-0.346574, 0.5)
    """
    check_numbers(s=s)
    z = unit_features(z, normalize=normalize, min_rows=2).double()

    def potential(r2: Tensor) -> Tensor:
        return -r2.log() / 2 if s == 0 else r2.pow(-s / 2)

    return pair_mean(z - z.mean(0), potential, pairing=squared_distances)
