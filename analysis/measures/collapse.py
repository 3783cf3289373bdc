"""Collapse of features: to a point, to a cone, of patches, of prototypes; and LiDAR.

No single number sees every collapse. A network that maps all inputs to one point plus rounding noise has a healthy
centered effective rank, and so a healthy LiDAR: read `mean_collapse` and `feature_std`, which know the scale, beside
any rank. Results are 0-d float64 tensors on the device of the features. They carry gradients, except
`prototype_usage`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers

from .gradients import square_root
from .inputs import Array, as_features, as_floating, as_views, unit_rows
from .moments import Moments
from .spectra import effective_rank, effective_ranks

# --- Of features


def feature_std(z: Array) -> Float[Tensor, ""]:
    """Standard deviation of the normalized features, in units of the value that isotropic features have.

    √d · mean_j std_i(zᵢⱼ/‖zᵢ‖), with the population's standard deviation.

    The range is [0, 1]: 0 is total collapse, 1 isotropic. It sees complete collapse only. Features on a random line
    read about 0.8 and on a random plane 0.9, so read an effective rank beside it. The normalization is part of the
    definition, and a zero row stays zero. Invariant to the scale of each row, not to rotation.

    Args:
        z: (n, d) features.

    Raises:
        ValueError: NaN or no rows.

    Source: Chen & He 2021 (SimSiam, arXiv 2011.10566) section 4.1.

    >>> round(feature_std(torch.cat((torch.eye(4), -torch.eye(4)))).item(), 6), feature_std(torch.ones(8, 4)).item()
    (1.0, 0.0)
    """
    z = as_features(z)
    rows = z.any(1)  # (n,)
    unit = torch.zeros_like(z).index_put((rows,), unit_rows(z[rows])).double()
    return unit.std(0, correction=0).mean() * math.sqrt(z.shape[1])


def mean_collapse(x: Array | Moments) -> Float[Tensor, ""]:
    """Share of the features' energy that their mean holds.

    ‖E z‖² / E‖z‖².

    The range is [0, 1], and lower is healthier. 1 says that all samples are on one point; it is also the value of
    features that are all zero. Independent isotropic features give 1/n in expectation. On unit rows it is the mean
    cosine over all n² pairs. It tells rounding noise around one point, whose centered effective rank looks healthy,
    from real spread. Invariant to rotation and scale.

    Args:
        x: features (n, d), or `Moments`. Not centered features, whose value is 0.

    Raises:
        ValueError: NaN, no rows.

    >>> round(mean_collapse(torch.eye(5)).item(), 6), mean_collapse(torch.ones(5, 3)).item()
    (0.2, 1.0)
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


# --- Of views and of patches


def lidar(views: Array, *, delta: int | float = 1e-4) -> Float[Tensor, ""]:
    """LiDAR: effective rank of the spread between samples, after whitening by the spread between their views.

    Effective rank of Σ_w^(−½) Σ_b Σ_w^(−½),  Σ_b = cov of the samples' mean views,
    Σ_w = Σ (z − mean view)(z − mean view)ᵀ/(n(v − 1)) + δI.

    The range is 1 to min(n − 1, d), and 0 if all mean views are equal. Higher is healthier. δ is absolute, as in the
    paper: the value is not invariant to scale unless δ is small beside Σ_w. Σ_w is unbiased, as there; with the
    denominator nv, which is also found, the value differs by the weight of δ.

    Args:
        views: (v, n, d) features of v ≥ 2 augmentations of the same n samples. The view axis comes first, because
            grouping views by their position in a queue changes the value.
        delta: δ > 0.

    Raises:
        ValueError: δ ≤ 0, fewer than two views, NaN.

    Source: Thilak et al. 2024 (arXiv 2312.04000).

    >>> z = torch.eye(4)
    >>> round(lidar(torch.stack((z, z))).item(), 6)  # views that agree: the centered effective rank
    3.0
    """
    check_numbers(delta=delta)
    views = as_views(views).double()
    views = views - views[:1, :1].detach()  # measured from one row, equal rows are exactly zero
    means = views.mean(0)  # (n, d)
    within = (views - means).flatten(0, 1)  # (v·n, d)
    sigma = within.mT @ within / (len(within) - len(means))  # (d, d)
    factor = torch.linalg.cholesky(sigma + delta * torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device))
    between = means - means.mean(0)
    return effective_rank(torch.linalg.solve_triangular(factor, between.mT, upper=False).mT)


class PatchRanks(NamedTuple):
    """What `patch_ranks` finds: two effective ranks of patch tokens.

    >>> ranks = patch_ranks(torch.eye(3)[:, None].expand(3, 5, 3))  # an image has five times the same token
    >>> round(ranks.within.item(), 6), round(ranks.between.item(), 6)
    (1.0, 3.0)
    """

    within: Float[Tensor, ""]  # among the patches of an image
    between: Float[Tensor, ""]  # among images at a position


def patch_ranks(tokens: Array, *, center: bool = False) -> PatchRanks:
    """Effective ranks of patch tokens: among the patches of an image, and among images at a position.

    within = mean over images of the effective rank of their (t, d) tokens;
    between = mean over positions of the effective rank of their (n, d) tokens.

    With within 1, an image's patches lie on one line, and hold only global information. With between 1, every image
    has the same tokens, which hold only the position. Both 1 is patch collapse, which SimDINOv2's loss does not
    exclude. The ranges are [1, min(t, d)] and [1, min(n, d)], and 0 only for zeros, or for constants with center=True.
    Higher is healthier. Rounding noise on constant tokens reads 1 without centering, and min(t, d) with it.

    Args:
        tokens: (n, t, d) patch tokens of n images.
        center: whether each set of tokens is taken around its mean.

    Raises:
        ValueError: tokens of another shape, NaN.

    Source: Roy & Vetterli 2007 for the rank; Wu et al. 2025 (arXiv 2502.10385) for the patch term.

    >>> ranks = patch_ranks(torch.eye(6)[:4].expand(3, 4, 6))  # four orthogonal tokens, the same in three images
    >>> [round(rank.item(), 6) for rank in ranks]
    [4.0, 1.0]
    """
    tokens = as_floating(tokens, "tokens", "n t d")
    return PatchRanks(*(effective_ranks(sets, center=center).mean() for sets in (tokens, tokens.transpose(0, 1))))


# --- Of prototypes


class PrototypeEntropy(NamedTuple):
    """What `prototype_entropy` finds: three entropies in nats.

    >>> entropy = prototype_entropy(torch.zeros(4, 2))  # undecided
    >>> round(entropy.marginal.item(), 6), round(entropy.conditional.item(), 6), entropy.information.item()
    (0.693147, 0.693147, 0.0)
    """

    marginal: Float[Tensor, ""]  # of the mean assignment
    conditional: Float[Tensor, ""]  # of a sample's assignment, on average
    information: Float[Tensor, ""]  # their difference, the mutual information of sample and prototype


def prototype_entropy(logits: Array, *, temp: int | float = 1.0) -> PrototypeEntropy:
    """Entropies of prototype assignments in nats: of their mean, of each sample, and the difference.

    p = softmax(logits/temp);  marginal H(E p),  conditional E H(p),  information = marginal − conditional.

    There are two collapses. A marginal of 0, in the range [0, log K], says that one prototype takes all. A conditional
    of log K, in the same range, says that all assignments are uniform, which the marginal alone calls healthy. The
    information is 0 in both. Its range is [0, log min(n, K)], and higher is healthier.

    Args:
        logits: (n, K) scores of K prototypes; subtract the running center first where the method does.
        temp: the temperature that divides the logits.

    Raises:
        ValueError: temp ≤ 0, NaN.

    Source: Caron et al. 2021 (arXiv 2104.14294) section 5.3 (the two collapses).

    >>> round(prototype_entropy(1000 * torch.eye(8)).information.item(), 6)  # each sample has its prototype: log 8
    2.079442
    """
    check_numbers(temp=temp)
    logits = as_floating(logits, "logits", "n K")
    mean, conditional = 0.0, 0.0
    for rows in logits.split(max(1, 2**24 // logits.shape[1])):  # K may be 65536: no second copy of the whole
        log_p = (rows.double() / temp).log_softmax(1)
        mean = mean + log_p.exp().sum(0) / len(logits)  # (K,)
        conditional = conditional - (log_p.exp() * log_p).sum() / len(logits)
    marginal = torch.special.entr(mean).sum()
    return PrototypeEntropy(marginal, conditional, (marginal - conditional).clamp_min(0))


def prototype_usage(logits: Array) -> Float[Tensor, ""]:
    """Share of the prototypes that are the best one of at least one sample.

    The range is from 1/K, where one prototype takes all, to min(1, n/K): compare at equal n. Higher is healthier. Equal
    logits go to one prototype, so that uniform collapse reads 1/K, too. Not differentiable.

    Args:
        logits: (n, K) scores of K prototypes.

    Raises:
        ValueError: NaN, no rows.

    >>> prototype_usage(torch.eye(8)[[0, 0, 3]]).item()  # two of eight
    0.25
    """
    logits = as_floating(logits, "logits", "n K").detach()
    used = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    used[logits.argmax(1)] = 1
    return used.mean()


def center_drift(logits: Array, *, running_center: Array) -> Float[Tensor, ""]:
    """How far a running center lags behind the mean of the scores, in units of the scores' spread.

    ‖P(E t − c)‖ / √(E‖P(t − E t)‖²), P the projection orthogonal to the vector of ones, which softmax ignores.

    At 0 the center is up to date. Above 1 it shifts the assignments more than the samples do, and centering no longer
    guards against collapse. It is +∞ for equal scores off the center.

    Args:
        logits: (n, K) the teacher's scores t, before the center is subtracted.
        running_center: (K,) the center c.

    Raises:
        ValueError: a center of another length, NaN.

    Source: Caron et al. 2021 (arXiv 2104.14294) eq. 4 (the center).

    >>> scores = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    >>> center_drift(scores, running_center=scores.mean(0)).item()
    0.0
    >>> round(center_drift(scores, running_center=torch.zeros(2)).item(), 6)  # the mean (2, −2) over the spread √2
    2.0
    """
    logits = as_floating(logits, "logits", "n K").double()
    running_center = as_floating(running_center, "running_center", "K", device=logits.device).double()
    if len(running_center) != logits.shape[1]:
        raise ValueError(f"running_center must have shape ({logits.shape[1]},), got {tuple(running_center.shape)}")
    scores = logits - running_center
    scores = scores - scores.mean(1, keepdim=True)  # (n, K)
    lag, spread = scores.mean(0).norm(), square_root((scores - scores.mean(0)).square().sum(1).mean())
    ratio = torch.where(spread > 0, lag / torch.where(spread > 0, spread, 1.0), math.inf)
    return torch.where(lag > 0, ratio, 0.0)
