"""Neural collapse: how far classes have contracted to their means, and the means to a simplex.

Every class counts alike, whatever its number of samples, so that a large class cannot hide a small one: Σ_W is the
mean of the classes' covariances, the center the mean of the class means μ_k. For balanced classes these are the
definitions of Papyan, Han & Donoho 2020 (arXiv 2008.08186). All measures nc* and cdnv are 0 at perfect collapse; they
are 0-d float64 tensors. Classes without samples are left out, and fewer than two classes are a ValueError. From
features they carry gradients, from `Moments` with classes they do not.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .inputs import Array, as_features, as_labels, centered, unit_rows
from .moments import Moments, gram
from .pairs import squared_distances
from .spectra import effective_rank

RTOL = 1e-6  # class means span no direction whose singular value is below this share of the largest


def nc1(
    x: Array | Moments, labels: Array | None = None, *, form: Literal["pseudo_inverse", "traces"] = "pseudo_inverse"
) -> Float[Tensor, ""]:
    """NC1, variability collapse: tr(Σ_W Σ_B⁺)/K, or the quotient of traces tr Σ_W/tr Σ_B.

    Σ_B = (1/K) Σ_k (μ_k − μ)(μ_k − μ)ᵀ, whose pseudo-inverse comes from the singular values of the K class means:
    a d × d pseudo-inverse would invert rounding errors. The quotient weighs directions by what they hold.

    x: features `(n, d)` with labels `(n,)`, or `Moments` with classes. Range 0 (every sample on its class mean) to ∞
    (+∞ if all class means are equal, total collapse included); (r/K)·σ_W²/λ where Σ_B has r eigenvalues λ > 0.
    Invariant to rotation, translation and scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186); the quotient, Tirer, Huang & Niles-Weed 2023 (arXiv 2210.16658).
    """
    if form not in ("pseudo_inverse", "traces"):
        raise ValueError(f'form must be "pseudo_inverse" or "traces", got {form!r}')
    means, within, _ = _class_means(x, labels)
    spread = centered(means)  # (K, d)
    _, s, directions = torch.linalg.svd(spread, full_matrices=False)
    floor = torch.finfo(s.dtype).eps * len(means) * torch.linalg.matrix_norm(means.detach())
    spanned = (s > RTOL * s[0]) & (s > floor)  # at most K − 1 of them
    v, s = directions[spanned], s[spanned]
    if not len(s):
        return torch.full((), torch.inf, dtype=means.dtype, device=means.device)
    if form == "traces":
        return within.trace() / (spread.square().sum() / len(means))
    return (torch.einsum("rd,de,re->r", v, within, v) / s.square()).sum()


def cdnv(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """CDNV: variances of two classes over the squared distance of their means, averaged over all pairs of classes.

    mean_{k≠l} (Var_k + Var_l)/(2‖μ_k − μ_l‖²),  Var_k = E‖z − μ_k‖² in class k.

    x, labels as in `nc1`. Range 0 (every sample on its class mean) to ∞ (+∞ if any two class means are equal): the
    nearest pairs dominate, where `nc1` averages. Invariant to rotation, translation and scale.

    Source: Galanti, György & Hutter 2022 (arXiv 2112.15121) definition 1.
    """
    means, _, variances = _class_means(x, labels)
    means = centered(means)
    distances = squared_distances(means, means)  # (K, K)
    apart = distances > 8 * torch.finfo(means.dtype).eps * means.detach().square().sum(1).max()
    ratio = (variances[:, None] + variances) / (2 * torch.where(apart, distances, 1.0))
    other = ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    return torch.where(apart, ratio, torch.inf)[other].mean()


def nc2(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """NC2: distance of the centered class means to a simplex, `simplex_distance(μ_k − μ)`.

    Range 0 (equal norms, all cosines −1/(K − 1); reached only if K ≤ d + 1) to √2 (all class means equal).
    x, labels as in `nc1`. Invariant to rotation, translation and scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186); as one number Zhu et al. 2021 (arXiv 2105.02375).
    """
    return simplex_distance(centered(_class_means(x, labels)[0]))


def nc3(x: Array | Moments, labels: Array | None = None, *, weight: Array) -> Float[Tensor, ""]:
    """NC3, self-duality: ‖W/‖W‖_F − M/‖M‖_F‖_F, M the centered class means.

    weight: `(K, d)`, the classifier's row of each class. Range 0 (the classifier is the class means) to 2 (opposite);
    √2 for unrelated ones, and by definition where M or W is zero. x, labels as in `nc1`, with samples of every class.
    Invariant to a common rotation.

    Source: Papyan et al. 2020 (arXiv 2008.08186).
    """
    means, *_ = _class_means(x, labels)
    weight = as_features(weight, "weight").to(means)
    if weight.shape != means.shape:
        raise ValueError(f"weight must have shape {tuple(means.shape)} (classes, d), got {tuple(weight.shape)}")
    spread = centered(means)
    norms = torch.linalg.matrix_norm(spread) * torch.linalg.matrix_norm(weight)
    cosine = (spread * weight).sum() / torch.where(norms > 0, norms, 1.0)
    return (2 - 2 * cosine.clamp(-1, 1)).sqrt()


def nc4(z: Array, labels: Array, *, weight: Array, bias: Array | None = None) -> Float[Tensor, ""]:
    """NC4: share of the samples that the classifier and the nearest class mean put into different classes.

    P(argmax_k ⟨w_k, z⟩ + b_k ≠ argmin_k ‖z − μ_k‖).

    z: `(n, d)`, labels `(n,)` with samples of every class, weight `(K, d)`, bias `(K,)`. Range 0 to 1. Not
    differentiable.

    Source: Papyan et al. 2020 (arXiv 2008.08186).
    """
    means, *_ = _class_means(z, labels)
    z, weight = as_features(z).to(means), as_features(weight, "weight").to(means)
    if weight.shape != means.shape:
        raise ValueError(f"weight must have shape {tuple(means.shape)} (classes, d), got {tuple(weight.shape)}")
    scores = z @ weight.mT
    if bias is not None:
        bias = torch.as_tensor(bias).to(means)
        if bias.shape != (len(means),):
            raise ValueError(f"bias must have shape ({len(means)},), got {tuple(bias.shape)}")
        scores = scores + bias
    nearest = (z - means[0]) @ (means - means[0]).mT - (means - means[0]).square().sum(1) / 2  # −½‖z − μ_k‖² + const
    return (scores.argmax(1) != nearest.argmax(1)).double().mean()


def nc5(x: Array | Moments, labels: Array | None = None, *, outside: Array | Moments) -> Float[Tensor, ""]:
    """NC5: how far the mean of samples from outside the classes is from orthogonal to the class means.

    mean_k |⟨μ_k, μ_o⟩|/(‖μ_k‖‖μ_o‖), of the means as they are, not centered.

    x, labels as in `nc1`; outside: features `(m, d)` of other data, or their `Moments`. Range 0 (orthogonal) to 1.
    Low where data from outside can be told by their angle. A mean of zero counts as orthogonal. Invariant to rotation
    and scale, not to translation.

    Source: Ben Ammar et al. 2024 (NECO, arXiv 2310.06823) section 4.
    """
    means, *_ = _class_means(x, labels)
    other = outside.mean if isinstance(outside, Moments) else as_features(outside, "outside").double().mean(0)
    if isinstance(outside, Moments) and outside.n == 0:
        raise ValueError("outside needs Moments that have seen rows")
    if other.shape != means.shape[1:]:
        raise ValueError(f"outside must have d={means.shape[1]} columns, got {len(other)}")
    norms = means.norm(dim=1) * other.to(means).norm()
    return ((means @ other.to(means)).abs() / torch.where(norms > 0, norms, 1.0)).clamp(max=1).mean()


def class_overlap(
    x: Array | Moments, labels: Array | None = None
) -> dict[str, Float[Tensor, "k k"] | Float[Tensor, ""] | Int[Tensor, "2"]]:
    """Overlap of the classes' subspaces: cosines of their second moments, 0 at the optimum of rate reduction.

    pairs `(K, K)`: ⟨Γ_k, Γ_l⟩/(‖Γ_k‖‖Γ_l‖), Γ_k = E zzᵀ in class k, in the order of the labels, diagonal 1; mean and
    worst of the pairs k ≠ l; worst_classes `(2,)`, the labels of the worst pair.

    ‖Γ_k‖² is estimated from pairs of distinct rows: the plain estimate is 1/n_k too large for unit rows, and would
    call classes orthogonal that have few samples. x, labels as in `nc1`, two samples of a class at least, not centered.
    From 0 (orthogonal subspaces) to 1 (the same second moment up to scale), but for the noise of few samples, which may
    exceed 1. By energy, so that no rank has to be chosen; `principal_angles` takes one. 0 for a class without two rows
    that overlap. Invariant to rotation and scale, not to translation. Memory K·d².

    Source: Yu et al. 2020 (arXiv 2006.08558) theorem 1 (orthogonal subspaces as the optimum).
    """
    if isinstance(x, Moments):
        parts = {k: (m.second_moment, m.n, m.quartic_about_zero()) for k, m in enumerate(_parts(x, labels)) if m.n}
    else:
        z, labels = _labeled(x, labels)
        rows = {k: z[labels == k] for k in labels.unique().tolist()}
        parts = {k: (r.mT @ r / len(r), len(r), r.square().sum(1).square().sum()) for k, r in rows.items()}
    if len(parts) < 2:
        raise ValueError("class_overlap needs samples of at least two classes")
    if min(n for _, n, _ in parts.values()) < 2:
        raise ValueError("class_overlap needs at least 2 samples of every class")
    flat = torch.stack([moment.flatten() for moment, _, _ in parts.values()])  # (K, d²)
    products = flat @ flat.mT
    norms2 = torch.stack([((n * m).square().sum() - quartic) / (n * (n - 1)) for m, n, quartic in parts.values()])
    resolved = norms2 > torch.finfo(torch.float32).eps * products.diagonal()  # (K,): the rest is rounding
    scale = torch.where(resolved, norms2, 1.0).rsqrt() * resolved
    pairs = products * scale * scale[:, None]
    diagonal = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    worst = int(pairs.detach().masked_fill(diagonal, -1).argmax())
    names, pairs = list(parts), pairs.masked_fill(diagonal, 1.0)
    worst_classes = torch.tensor([names[i] for i in divmod(worst, len(names))], device=pairs.device)
    return {
        "pairs": pairs,
        "mean": pairs[~diagonal].mean(),
        "worst": pairs.flatten()[worst],
        "worst_classes": worst_classes,
    }


def class_effective_rank(
    x: Array | Moments, labels: Array | None = None, *, center: bool = False
) -> dict[str, Float[Tensor, " k"] | Float[Tensor, ""] | Int[Tensor, ""]]:
    """Effective rank within each class, and the worst: the collapse that an average hides.

    ranks `(K,)` in the order of the class labels; worst, their minimum; worst_class, the label it belongs to.

    x, labels as in `nc1`. Range 1 to min(n_k, d), 0 for zeros (or centered constants). Higher is healthier. Biased low
    with n_k/d as every effective rank: compare classes at equal n_k.

    Source: Roy & Vetterli 2007.
    """
    if isinstance(x, Moments):
        sets = {k: part for k, part in enumerate(_parts(x, labels)) if part.n}
    else:
        z, labels = _labeled(x, labels)
        sets = {k: z[labels == k] for k in labels.unique().tolist()}
    ranks = torch.stack([effective_rank(part, center=center) for part in sets.values()])  # (K,)
    worst_class = torch.tensor(list(sets), device=ranks.device)[ranks.argmin()]
    return {"ranks": ranks, "worst": ranks.min(), "worst_class": worst_class}


def _class_means(
    x: Array | Moments, labels: Array | None
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "d d"], Float[Tensor, " k"]]:
    """Of the classes that have samples, in float64: means, the mean of their covariances, traces of the covariances."""
    if isinstance(x, Moments):
        parts = [part for part in _parts(x, labels) if part.n]
        if len(parts) < 2:
            raise ValueError("neural collapse needs samples of at least two classes")
        covariances = [part.covariance for part in parts]
        return (
            torch.stack([part.mean for part in parts]),
            sum(covariances) / len(parts),
            torch.stack([c.trace() for c in covariances]),
        )
    z, labels = _labeled(x, labels)
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError("neural collapse needs samples of at least two classes")
    first = z[:1].detach()  # measured from a row, the means of equal rows are equal to the bit
    means = torch.zeros(len(counts), z.shape[1], dtype=z.dtype, device=z.device)
    means = first + means.index_add(0, index, z - first) / counts[:, None]  # (K, d)
    residual = (z - means[index]) / counts[index, None].sqrt()  # (n, d)
    variances = z.new_zeros(len(counts)).index_add(0, index, residual.square().sum(1))
    return means, residual.mT @ residual / len(counts), variances


def _parts(x: Moments, labels: Array | None) -> list[Moments]:
    if labels is not None or not x.by_class:
        raise ValueError("Moments must have classes of their own, and come without labels")
    return x.by_class


def _labeled(z: Array, labels: Array | None) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    if labels is None:
        raise ValueError("features need labels")
    z = as_features(z).double()
    return z, as_labels(labels, len(z), device=z.device)


def simplex_distance(z: Array) -> Float[Tensor, ""]:
    """Distance of the Gram matrix to a regular simplex (simplex equiangular tight frame), both of norm 1.

    ‖G/‖G‖_F − E/‖E‖_F‖_F,  G = zzᵀ,  E = I − 11ᵀ/n.

    z: `(n, d)`, n ≥ 2: class means for neural collapse, centered by the caller. Range 0 (reached only if n ≤ d + 1)
    to √2 (all rows equal, and by definition all zero); lower is closer. By traces, without the (n, n) matrix, hence
    resolved to 10⁻⁸. Invariant to scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186), NC2; in this form Zhu et al. 2021 (arXiv 2105.02375).
    """
    z = as_features(z, min_rows=2).double()
    n = len(z)
    norm = gram(z if n >= z.shape[1] else z.mT).square().sum().sqrt()  # ‖G‖_F
    overlap = (z.square().sum() - z.sum(0).square().sum() / n) / math.sqrt(n - 1)  # ⟨G, E⟩/‖E‖_F
    return (2 - 2 * (overlap / torch.where(norm > 0, norm, 1.0)).clamp(0, 1)).sqrt()


def nrc1(z: Array, *, targets: int, center: bool = False) -> Float[Tensor, ""]:
    """NRC1: share of the unit rows' energy outside the leading principal directions, as many as there are targets.

    mean_i ‖ẑᵢ − P ẑᵢ‖²,  ẑ = z/‖z‖ (of z − z̄ with center=True), P onto the leading directions of the covariance of z.

    z: `(n, d)`, 1 ≤ targets ≤ d. Range 0 to 1; isotropic features give 1 − targets/d. The directions are those of
    centered features, the rows are not centered, as in the paper's code: features with a large mean in another
    direction do not count as collapsed, unless center=True. Only directions in which rows differ count: 1 where none
    do. ValueError: zero rows, targets out of range, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3.
    """
    z = as_features(z, min_rows=2).double()
    if not 1 <= targets <= z.shape[1]:
        raise ValueError(f"targets must lie between 1 and d={z.shape[1]}, got {targets}")
    spread = centered(z)
    _, s, directions = torch.linalg.svd(spread, full_matrices=False)
    varies = s > torch.finfo(torch.float32).eps * min(z.shape) ** 0.5 * s[0]
    directions = directions[varies][:targets]  # (targets or fewer, d)
    return _outside(unit_rows(spread if center else z), directions)


def nrc2(z: Array, *, weight: Array, center: bool = False) -> Float[Tensor, ""]:
    """NRC2: share of the unit rows' energy outside the span of the last layer's weights.

    mean_i ‖ẑᵢ − P ẑᵢ‖²,  ẑ = z/‖z‖ (of z − z̄ with center=True), P onto the rows of weight.

    z: `(n, d)`, weight: `(t, d)`, of full rank t ≤ d. Range 0 to 1; features that know nothing of the weights give
    1 − t/d. ValueError: zero rows, weights that depend on one another, another d, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3.
    """
    z, weight = as_features(z).double(), as_features(weight, "weight").double()
    if weight.shape[1] != z.shape[1]:
        raise ValueError(f"weight must have d={z.shape[1]} columns, got {weight.shape[1]}")
    _, s, directions = torch.linalg.svd(weight, full_matrices=False)
    if len(weight) > weight.shape[1] or not s[-1] > torch.finfo(torch.float32).eps * s[0]:
        raise ValueError("weight must have full rank: its rows depend on one another")
    return _outside(unit_rows(centered(z) if center else z), directions)


def nrc3(weight: Array, *, targets: Array) -> Float[Tensor, ""]:
    """NRC3: distance of the weights' Gram matrix from the form that the covariance Σ of the targets gives it.

    min_γ ‖G/‖G‖_F − A/‖A‖_F‖²_F,  G = WWᵀ,  A = Σ^½ − √γ·I, 0 ≤ γ ≤ λ_min(Σ).

    weight: `(t, d)`, targets: `(n, t)`, t ≥ 2. Range 0 to 2; γ in closed form. At 0 the weights of uncorrelated targets
    are orthogonal. Invariant to rotation of the features and to the scale of the weights.
    ValueError: targets of one dimension, for which it says nothing, or that do not vary; zero weights, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3 and theorem 4.1.
    """
    weight, targets = as_features(weight, "weight").double(), as_features(targets, "targets", min_rows=2).double()
    t = targets.shape[1]
    if t < 2 or len(weight) != t:
        raise ValueError(f"targets needs 2 columns or more, and weight a row for each, got {t} and {len(weight)}")
    targets = centered(targets)
    lam, vectors = torch.linalg.eigh(targets.mT @ targets / len(targets))
    gram, deviation = weight @ weight.mT, lam.clamp(min=0).sqrt()  # (t, t), (t,)
    if not lam[-1] > 0 or not gram.trace() > 0:
        raise ValueError("targets must vary, and weight must not be zero: they have no form to compare")
    root = (vectors * deviation) @ vectors.mT
    a, e, c = (gram * root).sum(), gram.trace(), deviation.sum()
    flat = (a * c - e * lam.sum()) / (t * a - e * c)  # the slope of the cosine in √γ has one root
    ends = torch.stack((0 * deviation[0], deviation[0], flat.nan_to_num(0).clamp(min=0).minimum(deviation[0])))
    forms = root - ends.detach()[:, None, None] * torch.eye(t, dtype=root.dtype, device=root.device)  # (3, t, t)
    norms = torch.linalg.matrix_norm(forms)  # 0 where all deviations are equal to √γ
    floor = torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(root).detach()
    cosines = (forms * gram).sum((1, 2)) / torch.where(norms > floor, norms, torch.inf) / torch.linalg.matrix_norm(gram)
    return 2 - 2 * cosines.max().clamp(max=1)


def _outside(rows: Float[Tensor, "n d"], directions: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """Mean energy of rows outside the span of orthonormal directions."""
    return (rows - (rows @ directions.mT) @ directions).square().sum(1).mean()
