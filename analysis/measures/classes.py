"""Collapse of classes and of regression targets, which last layers drive features to: NC1 to NC5, CDNV, NRC1 to NRC3.

Neural collapse says that the classes contract to their means (`nc1`, `cdnv`), the means to a simplex (`nc2`,
`simplex_distance`), the classifier to the means (`nc3`, `nc4`), and that other data end up orthogonal to them (`nc5`).
Regression collapse says that features contract to as many directions as there are targets (`nrc1`), which are those of
the last layer's weights (`nrc2`), and that the weights take the form that the targets' covariance gives them (`nrc3`).
All of these are 0 at perfect collapse. `class_overlap` and `class_effective_rank` ask what rate reduction wants
instead: classes on orthogonal subspaces, each of full rank.

Every class counts alike, whatever its number of samples, so that a large class cannot hide a small one: Σ_W is the
mean of the classes' covariances, the center the mean of the class means μ_k. For balanced classes these are the
definitions of Papyan, Han & Donoho 2020 (arXiv 2008.08186). Classes without samples are left out, and fewer than two
classes are a ValueError. Values are 0-d float64 tensors. From features they carry gradients, except `nc4`; from
`Moments` with classes they do not.
"""

import math
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .gradients import matrix_root, square_root, thin_svd
from .inputs import Array, as_features, as_floating, centered, labeled_features, unit_rows
from .moments import Moments, gram
from .pair_tiles import squared_distances
from .spectra import effective_rank

RTOL = 1e-6  # class means span no direction whose singular value is below this share of the largest


# --- Neural collapse


def nc1(
    x: Array | Moments, labels: Array | None = None, *, form: Literal["pseudo_inverse", "traces"] = "pseudo_inverse"
) -> Float[Tensor, ""]:
    """NC1, the variability collapse: how large the spread within classes is beside the spread of the class means.

    tr(Σ_W Σ_B⁺)/K,  or tr Σ_W / tr Σ_B with form="traces";  Σ_B = (1/K) Σ_k (μ_k − μ)(μ_k − μ)ᵀ.

    The range is from 0, where every sample is on its class mean, to ∞. It is +∞ where all class means are equal, which
    includes total collapse. With within-class variance σ² in every direction and r eigenvalues λ of Σ_B it is
    (r/K)·σ²/λ. The pseudo-inverse comes from the singular values of the K class means, because a d × d
    pseudo-inverse would invert rounding errors. The quotient of traces weighs each direction by the variance that it
    holds. Invariant to rotation, translation and scale.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row of features; none with `Moments`.
        form: which of the two definitions.

    Raises:
        ValueError: features without labels, `Moments` without classes, fewer than two classes with samples, NaN.

    Source: Papyan et al. 2020 (arXiv 2008.08186); the quotient, Tirer, Huang & Niles-Weed 2023 (arXiv 2210.16658).

    >>> z = torch.tensor([[3.0], [5.0], [-3.0], [-5.0]])  # means ±4, variance 1 in each class
    >>> round(nc1(z, torch.tensor([0, 0, 1, 1])).item(), 6)  # 1/16 over K = 2
    0.03125
    """
    if form not in ("pseudo_inverse", "traces"):
        raise ValueError(f'form must be "pseudo_inverse" or "traces", got {form!r}')
    means, within, _ = _class_statistics(x, labels)
    spread = centered(means)  # (K, d)
    floor = torch.finfo(means.dtype).eps * len(means) * torch.linalg.matrix_norm(means.detach())
    if not torch.linalg.matrix_norm(spread.detach(), 2) > floor:
        return torch.full((), torch.inf, dtype=means.dtype, device=means.device)
    if form == "traces":
        return within.trace() / (spread.square().sum() / len(means))
    inverse = torch.linalg.pinv(
        spread, atol=floor, rtol=RTOL
    )  # (d, K), of rank K − 1 at most; Σ_B⁺/K = inverse·inverseᵀ
    return (within @ inverse * inverse).sum()


def cdnv(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """CDNV: the variances of two classes over the squared distance of their means, averaged over all pairs of classes.

    mean_{k≠l} (Var_k + Var_l)/(2‖μ_k − μ_l‖²),  Var_k = E‖z − μ_k‖² in class k.

    The range is from 0, where every sample is on its class mean, to ∞, and +∞ if any two class means are equal. The
    nearest pairs of classes dominate it, where `nc1` averages over directions. Invariant to rotation, translation and
    scale.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row of features; none with `Moments`.

    Raises:
        ValueError: as in `nc1`.

    Source: Galanti, György & Hutter 2022 (arXiv 2112.15121) definition 1.

    >>> z = torch.tensor([[3.0], [5.0], [-3.0], [-5.0]])  # means ±4, variance 1 in each class
    >>> round(cdnv(z, torch.tensor([0, 0, 1, 1])).item(), 6)  # (1 + 1)/(2 · 8²)
    0.015625
    """
    means, _, variances = _class_statistics(x, labels)
    means = centered(means)
    distances = squared_distances(means, means)  # (K, K)
    apart = distances > 8 * torch.finfo(means.dtype).eps * means.detach().square().sum(1).max()
    ratio = (variances[:, None] + variances) / (2 * torch.where(apart, distances, 1.0))
    other = ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    return torch.where(apart, ratio, torch.inf)[other].mean()


def nc2(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """NC2: the distance of the centered class means to a simplex, `simplex_distance(μ_k − μ)`.

    The range is from 0, where the centered means have equal norms and all cosines −1/(K − 1), to √2, where all class
    means are equal. 0 can be reached only if K ≤ d + 1. Invariant to rotation, translation and scale.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row of features; none with `Moments`.

    Raises:
        ValueError: as in `nc1`.

    Source: Papyan et al. 2020 (arXiv 2008.08186); as one number Zhu et al. 2021 (arXiv 2105.02375).

    >>> line = torch.tensor([[-1.0], [0.0], [1.0]])  # three classes in a row, where a simplex needs a plane
    >>> round(nc2(line, torch.arange(3)).item(), 6), round(nc2(torch.eye(3), torch.arange(3)).item(), 6)
    (0.765367, 0.0)
    """
    return simplex_distance(centered(_class_statistics(x, labels).means))


def simplex_distance(z: Array) -> Float[Tensor, ""]:
    """Distance of the Gram matrix of rows to that of a regular simplex, both scaled to norm 1.

    ‖G/‖G‖_F − E/‖E‖_F‖_F,  G = zzᵀ,  E = I − 11ᵀ/n.

    The simplex is the simplex equiangular tight frame. The range is from 0, which is reached only if n ≤ d + 1, to √2,
    where all rows are equal, and by definition where all are zero. Lower is closer. It is computed from traces, without
    the (n, n) matrix, and resolves differences of 10⁻⁸. Invariant to rotation and scale, not to translation.

    Args:
        z: (n, d) rows, n ≥ 2; for neural collapse the class means, centered by the caller.

    Raises:
        ValueError: fewer than two rows, NaN.

    Source: Papyan et al. 2020 (arXiv 2008.08186), NC2; in this form Zhu et al. 2021 (arXiv 2105.02375).

    >>> round(simplex_distance(torch.eye(3) - 1 / 3).item(), 6)  # the corners of a triangle around its center
    0.0
    """
    z = as_features(z, min_rows=2).double()
    n = len(z)
    norm = gram(z if n >= z.shape[1] else z.mT).square().sum()
    norm = square_root(norm)  # ‖G‖_F
    overlap = (z.square().sum() - z.sum(0).square().sum() / n) / math.sqrt(n - 1)  # ⟨G, E⟩/‖E‖_F
    return square_root(2 - 2 * (overlap / torch.where(norm > 0, norm, 1.0)).clamp(0, 1))


def nc3(x: Array | Moments, labels: Array | None = None, *, weight: Array) -> Float[Tensor, ""]:
    """NC3, the self-duality: the distance of the classifier's weights to the centered class means, each of norm 1.

    ‖W/‖W‖_F − M/‖M‖_F‖_F,  M the centered class means.

    The range is from 0, where the classifier is the class means, to 2, where it is their opposite. Unrelated weights
    give √2, and so do M or W of zero, by definition. Invariant to a common rotation of features and weights.

    Args:
        x: features (n, d), or `Moments` with classes; samples of every class.
        labels: (n,) class of each row of features; none with `Moments`.
        weight: (K, d) the classifier's row of each class.

    Raises:
        ValueError: weight of another shape; otherwise as in `nc1`.

    Source: Papyan et al. 2020 (arXiv 2008.08186).

    >>> z, labels = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1])
    >>> [round(nc3(z, labels, weight=torch.tensor([[w], [-w]])).item(), 6) for w in (5.0, -5.0)]
    [0.0, 2.0]
    """
    means = _class_statistics(x, labels).means
    weight = _row_per_class(weight, means)
    spread = centered(means)
    norms = torch.linalg.matrix_norm(spread) * torch.linalg.matrix_norm(weight)
    cosine = (spread * weight).sum() / torch.where(norms > 0, norms, 1.0)
    return square_root(2 - 2 * cosine.clamp(-1, 1))


def nc4(z: Array, labels: Array, *, weight: Array, bias: Array | None = None) -> Float[Tensor, ""]:
    """NC4: the share of samples that the classifier and the nearest class mean put into different classes.

    P(argmax_k ⟨w_k, z⟩ + b_k ≠ argmin_k ‖z − μ_k‖).

    The range is from 0, where the two always agree, to 1. Not differentiable.

    Args:
        z: (n, d) features.
        labels: (n,) class of each row, with samples of every class.
        weight: (K, d) the classifier's row of each class.
        bias: (K,) the classifier's bias, zero if left out.

    Raises:
        ValueError: weight or bias of another shape; otherwise as in `nc1`.

    Source: Papyan et al. 2020 (arXiv 2008.08186).

    >>> z, labels = torch.tensor([[3.0], [5.0], [-3.0], [-5.0]]), torch.tensor([0, 0, 1, 1])
    >>> weight = torch.tensor([[1.0], [-1.0]])
    >>> nc4(z, labels, weight=weight).item(), nc4(z, labels, weight=weight, bias=torch.tensor([-7.0, 0.0])).item()
    (0.0, 0.25)
    """
    means = _class_statistics(z, labels).means
    z, weight = as_features(z).double(), _row_per_class(weight, means)
    scores = z @ weight.mT
    if bias is not None:
        bias = as_floating(bias, "bias", "k", device=means.device).to(means.dtype)
        if bias.shape != (len(means),):
            raise ValueError(f"bias must have shape ({len(means)},), got {tuple(bias.shape)}")
        scores = scores + bias
    nearest = (z - means[0]) @ (means - means[0]).mT - (means - means[0]).square().sum(1) / 2  # −½‖z − μ_k‖² + const
    return (scores.argmax(1) != nearest.argmax(1)).double().mean()


def nc5(x: Array | Moments, labels: Array | None = None, *, outside: Array | Moments) -> Float[Tensor, ""]:
    """NC5: how far the mean of samples from outside the classes is from orthogonal to the class means.

    mean_k |⟨μ_k, μ_o⟩|/(‖μ_k‖‖μ_o‖), of the means as they are, not centered.

    The range is from 0, orthogonal, to 1. Where it is low, data from outside can be told by their angle to the classes.
    A mean of zero counts as orthogonal. Invariant to rotation and scale, not to translation.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row of features; none with `Moments`.
        outside: features (m, d) of data that belong to none of the classes, or their `Moments`.

    Raises:
        ValueError: outside of another d, or `Moments` that have seen no rows; otherwise as in `nc1`.

    Source: Ben Ammar et al. 2024 (NECO, arXiv 2310.06823) section 4.

    >>> z, labels = torch.eye(3)[:2], torch.arange(2)
    >>> nc5(z, labels, outside=torch.eye(3)[2:]).item(), round(nc5(z, labels, outside=torch.ones(4, 3)).item(), 6)
    (0.0, 0.57735)
    """
    means = _class_statistics(x, labels).means
    if not isinstance(outside, Moments):
        rows = as_features(outside, "outside", device=means.device).double()
        other, energy = rows.mean(0), rows.detach().square().sum(1).mean()
    elif outside.n == 0:
        raise ValueError("outside needs Moments that have seen rows")
    else:
        other, energy = outside.mean.to(means), outside.second_moment.trace().to(means)
    if other.detach().square().sum() <= (16 * torch.finfo(means.dtype).eps) ** 2 * energy:
        other = 0 * other  # a mean that is nothing but rounding
    if other.shape != means.shape[1:]:
        raise ValueError(f"outside must have d={means.shape[1]} columns, got {len(other)}")
    norms = means.norm(dim=1) * other.norm()
    return ((means @ other).abs() / torch.where(norms > 0, norms, 1.0)).clamp(max=1).mean()


# --- What is left of each class


class ClassOverlap(NamedTuple):
    """What `class_overlap` finds: the overlap of every pair of classes, their mean, and the worst pair.

    >>> overlap = class_overlap(torch.eye(2)[[0, 0, 1, 1, 1, 1]], torch.tensor([3, 3, 5, 5, 8, 8]))
    >>> overlap.worst.item(), overlap.worst_classes.tolist()  # of classes 5 and 8, which lie on one line
    (1.0, [5, 8])
    """

    pairs: Float[Tensor, "k k"]  # in the order of the labels, 1 on the diagonal
    mean: Float[Tensor, ""]  # of the pairs of different classes
    worst: Float[Tensor, ""]  # the largest of them
    worst_classes: Int[Tensor, "2"]  # the labels of that pair


def class_overlap(x: Array | Moments, labels: Array | None = None) -> ClassOverlap:
    """How much the subspaces of classes overlap: the cosine of the second moments of every two classes.

    ⟨Γ_k, Γ_l⟩/(‖Γ_k‖‖Γ_l‖),  Γ_k = E zzᵀ in class k.

    It is 0 for orthogonal subspaces, the optimum of rate reduction, and 1 for the same second moment up to scale. The
    noise of few samples may lift it above 1. ‖Γ_k‖² is estimated from pairs of distinct rows: the plain estimate is
    1/n_k too large for unit rows, and would call classes orthogonal that have few samples. A class without two rows
    that overlap has overlap 0 with all others. Directions count by their energy, so that no rank has to be chosen;
    `principal_angles` takes one. Nothing is centered. Invariant to rotation and scale, not to translation. The memory
    is K·d².

    Args:
        x: features (n, d), or `Moments` with classes; at least two samples of each class.
        labels: (n,) class of each row of features; none with `Moments`.

    Raises:
        ValueError: fewer than two classes with samples, a class of one sample, NaN.

    Source: Yu et al. 2020 (arXiv 2006.08558) theorem 1 (orthogonal subspaces as the optimum).

    >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])  # two lines at 45°
    >>> round(class_overlap(z, torch.tensor([0, 0, 1, 1])).mean.item(), 6)  # cos² 45°
    0.5
    """
    groups = _by_class(x, labels)
    parts = [
        (rows.second_moment, rows.n, rows.quartic_about_zero())
        if isinstance(rows, Moments)
        else (rows.mT @ rows / len(rows), len(rows), rows.square().sum(1).square().sum())
        for rows in groups.values()
    ]
    if len(parts) < 2:
        raise ValueError("class_overlap needs samples of at least two classes")
    if min(n for _, n, _ in parts) < 2:
        raise ValueError("class_overlap needs at least 2 samples of every class")
    flat = torch.stack([moment.flatten() for moment, _, _ in parts])  # (K, d²)
    products = flat @ flat.mT
    norms2 = torch.stack([((n * m).square().sum() - quartic) / (n * (n - 1)) for m, n, quartic in parts])
    resolved = norms2 > torch.finfo(torch.float32).eps * products.diagonal()  # (K,): the rest is rounding
    scale = torch.where(resolved, norms2, 1.0).rsqrt() * resolved
    pairs = products * scale * scale[:, None]
    diagonal = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    worst = int(pairs.detach().masked_fill(diagonal, -1).argmax())
    names, pairs = list(groups), pairs.masked_fill(diagonal, 1.0)
    worst_classes = torch.tensor([names[i] for i in divmod(worst, len(names))]).to(pairs.device)
    return ClassOverlap(pairs, pairs[~diagonal].mean(), pairs.flatten()[worst], worst_classes)


class ClassRanks(NamedTuple):
    """What `class_effective_rank` finds: the effective rank within every class, and the worst of them.

    >>> ranks = class_effective_rank(torch.eye(3), torch.tensor([4, 7, 7]))
    >>> round(ranks.worst.item(), 6), ranks.worst_class.item()
    (1.0, 4)
    """

    ranks: Float[Tensor, " k"]  # in the order of the labels
    worst: Float[Tensor, ""]  # the lowest of them
    worst_class: Int[Tensor, ""]  # its label


def class_effective_rank(x: Array | Moments, labels: Array | None = None, *, center: bool = False) -> ClassRanks:
    """Effective rank of the features within each class, and the worst of them: the collapse that an average hides.

    The range of each is from 1 to min(n_k, d), and 0 for zeros, or for constants with center=True. Higher is healthier.
    It is biased low with n_k/d, as every effective rank: compare classes at equal n_k.

    Args:
        x: features (n, d), or `Moments` with classes.
        labels: (n,) class of each row of features; none with `Moments`.
        center: whether each class is taken around its mean.

    Raises:
        ValueError: features without labels, `Moments` without classes, NaN.

    Source: Roy & Vetterli 2007.

    >>> z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # a line, and a plane
    >>> class_effective_rank(z, torch.tensor([0, 0, 1, 1])).ranks.round(decimals=6).tolist()
    [1.0, 2.0]
    """
    groups = _by_class(x, labels)
    ranks = torch.stack([effective_rank(rows, center=center) for rows in groups.values()])  # (K,)
    return ClassRanks(ranks, ranks.min(), torch.tensor(list(groups)).to(ranks.device)[ranks.argmin()])


# --- Regression collapse


def nrc1(z: Array, *, targets: int, center: bool = False) -> Float[Tensor, ""]:
    """NRC1: the share of the unit rows' energy outside the leading principal directions, one direction per target.

    mean_i ‖ẑᵢ − P ẑᵢ‖²,  ẑ = z/‖z‖ (of z − z̄ with center=True), P onto the leading directions of the covariance of z.

    The range is 0 to 1, and isotropic features give 1 − targets/d. The directions are those of centered features while
    the rows are not centered, as in the paper's code: features with a large mean in another direction do not count as
    collapsed, unless center=True. Only directions in which rows differ count, and it is 1 where rows do not differ.

    Args:
        z: (n, d) features, n ≥ 2.
        targets: the number of regression targets, 1 ≤ targets ≤ d.
        center: whether the rows are centered, too.

    Raises:
        ValueError: zero rows, targets out of range, one row, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3.

    >>> z = torch.cat((torch.eye(4), -torch.eye(4)))
    >>> round(nrc1(z, targets=1).item(), 6)  # isotropic: 1 − 1/4
    0.75
    """
    z = as_features(z, min_rows=2).double()
    if not isinstance(targets, Integral) or not 1 <= targets <= z.shape[1]:
        raise ValueError(f"targets must lie between 1 and d={z.shape[1]}, got {targets}")
    spread = centered(z)
    _, s, directions = thin_svd(spread)
    varies = s > torch.finfo(torch.float32).eps * min(z.shape) ** 0.5 * s[0]
    directions = directions[varies][:targets]  # (targets or fewer, d)
    return _outside(unit_rows(spread if center else z), directions)


def nrc2(z: Array, *, weight: Array, center: bool = False) -> Float[Tensor, ""]:
    """NRC2: the share of the unit rows' energy outside the span of the last layer's weights.

    mean_i ‖ẑᵢ − P ẑᵢ‖²,  ẑ = z/‖z‖ (of z − z̄ with center=True), P onto the rows of weight.

    The range is 0 to 1. Features that know nothing of the weights give 1 − t/d.

    Args:
        z: (n, d) features.
        weight: (t, d) the last layer's row of each target, of full rank t ≤ d.
        center: whether the rows of z are centered first.

    Raises:
        ValueError: zero rows, weights that depend on one another, another d, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3.

    >>> round(nrc2(torch.eye(4), weight=torch.tensor([[0.0, 2.0, 0.0, 0.0]])).item(), 6)  # one row of four is inside
    0.75
    """
    z = as_features(z).double()
    weight = as_features(weight, "weight", device=z.device).double()
    if weight.shape[1] != z.shape[1]:
        raise ValueError(f"weight must have d={z.shape[1]} columns, got {weight.shape[1]}")
    _, s, directions = thin_svd(weight)
    if len(weight) > weight.shape[1] or not s[-1] > torch.finfo(torch.float32).eps * s[0]:
        raise ValueError("weight must have full rank: its rows depend on one another")
    return _outside(unit_rows(centered(z) if center else z), directions)


def nrc3(weight: Array, *, targets: Array) -> Float[Tensor, ""]:
    """NRC3: the distance of the weights' Gram matrix to the form that the covariance Σ of the targets gives it.

    min_γ ‖G/‖G‖_F − A/‖A‖_F‖²_F,  G = WWᵀ,  A = Σ^½ − √γ·I, 0 ≤ γ ≤ λ_min(Σ).

    The range is 0 to 2. γ is found in closed form. At 0 the weights of uncorrelated targets are orthogonal. Invariant
    to rotation of the features and to the scale of the weights.

    Args:
        weight: (t, d) the last layer's row of each target.
        targets: (n, t) the regression targets, t ≥ 2.

    Raises:
        ValueError: targets of one dimension, for which it says nothing, or targets that do not vary; a weight without
            one row per target; zero weights, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3 and theorem 4.1.

    >>> targets = torch.cat((torch.eye(2), -torch.eye(2)))  # uncorrelated
    >>> orthogonal, parallel = torch.eye(2), torch.ones(2, 2)
    >>> [round(nrc3(weight, targets=targets).item(), 6) for weight in (orthogonal, parallel)]  # 0 and 2 − √2
    [0.0, 0.585786]
    """
    weight = as_features(weight, "weight").double()
    targets = as_features(targets, "targets", min_rows=2, device=weight.device).double()
    t = targets.shape[1]
    if t < 2 or len(weight) != t:
        raise ValueError(f"targets needs 2 columns or more, and weight a row for each, got {t} and {len(weight)}")
    targets = centered(targets)
    covariance = targets.mT @ targets / len(targets)
    lam = torch.linalg.eigvalsh(covariance)
    products, deviation = weight @ weight.mT, square_root(lam)  # (t, t), (t,)
    if not lam[-1] > 0 or not products.trace() > 0:
        raise ValueError("targets must vary, and weight must not be zero: they have no form to compare")
    root = matrix_root(covariance)
    a, e, c = (products * root).sum(), products.trace(), deviation.sum()
    flat = (a * c - e * lam.sum()) / (t * a - e * c)  # the slope of the cosine in √γ has one root
    ends = torch.stack((0 * deviation[0], deviation[0], flat.nan_to_num(0).clamp(min=0).minimum(deviation[0])))
    forms = root - ends.detach()[:, None, None] * torch.eye(t, dtype=root.dtype, device=root.device)  # (3, t, t)
    norms = torch.linalg.matrix_norm(forms)  # 0 where all deviations are equal to √γ
    floor = torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(root).detach()
    cosines = (forms * products).sum((1, 2)) / torch.where(norms > floor, norms, torch.inf)
    return 2 - 2 * (cosines / torch.linalg.matrix_norm(products)).max().clamp(max=1)


# --- Helpers


class _ClassStatistics(NamedTuple):
    """Of the K classes that have samples, in float64."""

    means: Float[Tensor, "k d"]
    within: Float[Tensor, "d d"]  # Σ_W, the mean of their covariances
    variances: Float[Tensor, " k"]  # the traces of their covariances


def _class_statistics(x: Array | Moments, labels: Array | None) -> _ClassStatistics:
    if isinstance(x, Moments):
        parts = list(_by_class(x, labels).values())
        if len(parts) < 2:
            raise ValueError("neural collapse needs samples of at least two classes")
        covariances = [part.covariance for part in parts]
        return _ClassStatistics(
            torch.stack([part.mean for part in parts]),
            sum(covariances) / len(parts),
            torch.stack([c.trace() for c in covariances]),
        )
    z, labels = labeled_features(x, labels)
    z = z.double()
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError("neural collapse needs samples of at least two classes")
    first = z[:1].detach()  # measured from a row, the means of equal rows are equal to the bit
    means = torch.zeros(len(counts), z.shape[1], dtype=z.dtype, device=z.device)
    means = first + means.index_add(0, index, z - first) / counts[:, None]  # (K, d)
    residual = (z - means[index]) / counts[index, None].sqrt()  # (n, d)
    variances = z.new_zeros(len(counts)).index_add(0, index, residual.square().sum(1))
    return _ClassStatistics(means, residual.mT @ residual / len(counts), variances)


def _by_class(x: Array | Moments, labels: Array | None) -> dict[int, Moments] | dict[int, Float[Tensor, "_ d"]]:
    """The `Moments`, or the rows, of each class that has samples, by label."""
    if isinstance(x, Moments):
        if labels is not None or not x.by_class:
            raise ValueError("Moments must have classes of their own, and come without labels")
        return {k: part for k, part in enumerate(x.by_class) if part.n}
    z, labels = labeled_features(x, labels)
    z = z.double()
    return {k: z[labels == k] for k in labels.unique().tolist()}


def _row_per_class(weight: Array, means: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    weight = as_features(weight, "weight", device=means.device).to(means.dtype)
    if weight.shape != means.shape:
        raise ValueError(f"weight must have shape {tuple(means.shape)} (classes, d), got {tuple(weight.shape)}")
    return weight


def _outside(rows: Float[Tensor, "n d"], directions: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """Mean energy of rows outside the span of orthonormal directions."""
    return (rows - (rows @ directions.mT) @ directions).square().sum(1).mean()
