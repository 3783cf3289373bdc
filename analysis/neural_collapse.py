"""Neural collapse: how far classes have contracted to their means, and the means to a simplex.

Every class counts alike, whatever its number of samples, so that a large class cannot hide a small one: Σ_W is the
mean of the classes' covariances, the centre the mean of the class means μ_k. For balanced classes these are the
definitions of Papyan, Han & Donoho 2020 (arXiv 2008.08186). All measures nc* and cdnv are 0 at perfect collapse; they
are 0-d float64 tensors. Classes without samples are left out, and fewer than two classes are a ValueError. From
features they carry gradients, from `Moments` with classes they do not.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis._input import Array, as_features, as_labels
from analysis.frames import simplex_distance, squared_distances
from analysis.moments import Moments
from analysis.spectra import effective_rank

RTOL = 1e-6  # class means span no direction whose singular value is below this share of the largest


def nc1(
    x: Array | Moments, labels: Array | None = None, *, of: Literal["pseudo_inverse", "traces"] = "pseudo_inverse"
) -> Float[Tensor, ""]:
    """NC1, variability collapse: tr(Σ_W Σ_B⁺)/K, or the quotient of traces tr Σ_W/tr Σ_B.

    Σ_B = (1/K) Σ_k (μ_k − μ)(μ_k − μ)ᵀ, whose pseudo-inverse comes from the singular values of the K class means:
    a d × d pseudo-inverse would invert rounding errors. The quotient weighs directions by what they hold.

    x: features `(n, d)` with labels `(n,)`, or `Moments` with classes. Range 0 (every sample on its class mean) to ∞
    (+∞ if all class means are equal, total collapse included); (r/K)·σ_W²/λ where Σ_B has r eigenvalues λ > 0.
    Invariant to rotation, translation and scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186); the quotient, Tirer, Huang & Niles-Weed 2023 (arXiv 2210.16658).
    """
    if of not in ("pseudo_inverse", "traces"):
        raise ValueError(f'of must be "pseudo_inverse" or "traces", got {of!r}')
    means, within, _ = _class_means(x, labels)
    centered = _centered(means)  # (K, d)
    _, s, directions = torch.linalg.svd(centered, full_matrices=False)
    floor = torch.finfo(s.dtype).eps * len(means) * torch.linalg.matrix_norm(means.detach())
    spanned = (s > RTOL * s[0]) & (s > floor)  # at most K − 1 of them
    v, s = directions[spanned], s[spanned]
    if not len(s):
        return torch.full((), torch.inf, dtype=means.dtype, device=means.device)
    if of == "traces":
        return within.trace() / (centered.square().sum() / len(means))
    return (torch.einsum("rd,de,re->r", v, within, v) / s.square()).sum()


def cdnv(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """CDNV: variances of two classes over the squared distance of their means, averaged over all pairs of classes.

    mean_{k≠l} (Var_k + Var_l)/(2‖μ_k − μ_l‖²),  Var_k = E‖z − μ_k‖² in class k.

    x, labels as in `nc1`. Range 0 (every sample on its class mean) to ∞ (+∞ if any two class means are equal): the
    nearest pairs dominate, where `nc1` averages. Invariant to rotation, translation and scale.

    Source: Galanti, György & Hutter 2022 (arXiv 2112.15121) definition 1.
    """
    means, _, variances = _class_means(x, labels)
    means = _centered(means)
    distances = squared_distances(means, means)  # (K, K)
    apart = distances > 8 * torch.finfo(means.dtype).eps * means.detach().square().sum(1).max()
    ratio = (variances[:, None] + variances) / (2 * torch.where(apart, distances, 1.0))
    other = ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    return torch.where(apart, ratio, torch.inf)[other].mean()


def nc2(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """NC2: distance of the centred class means to a simplex, `simplex_distance(μ_k − μ)`.

    Range 0 (equal norms, all cosines −1/(K − 1); reached only if K ≤ d + 1) to √2 (all class means equal).
    x, labels as in `nc1`. Invariant to rotation, translation and scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186); as one number Zhu et al. 2021 (arXiv 2105.02375).
    """
    return simplex_distance(_centered(_class_means(x, labels)[0]))


def nc3(x: Array | Moments, labels: Array | None = None, *, weight: Array) -> Float[Tensor, ""]:
    """NC3, self-duality: ‖W/‖W‖_F − M/‖M‖_F‖_F, M the centred class means.

    weight: `(K, d)`, the classifier's row of each class. Range 0 (the classifier is the class means) to 2 (opposite);
    √2 for unrelated ones, and by definition where M or W is zero. x, labels as in `nc1`, with samples of every class.
    Invariant to a common rotation.

    Source: Papyan et al. 2020 (arXiv 2008.08186).
    """
    means, *_ = _class_means(x, labels)
    weight = as_features(weight, "weight").to(means)
    if weight.shape != means.shape:
        raise ValueError(f"weight must have shape {tuple(means.shape)} (classes, d), got {tuple(weight.shape)}")
    centered = _centered(means)
    norms = torch.linalg.matrix_norm(centered) * torch.linalg.matrix_norm(weight)
    cosine = (centered * weight).sum() / torch.where(norms > 0, norms, 1.0)
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

    mean_k |⟨μ_k, μ_o⟩|/(‖μ_k‖‖μ_o‖), of the means as they are, not centred.

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
    call classes orthogonal that have few samples. x, labels as in `nc1`, two samples of a class at least, not centred.
    From 0 (orthogonal subspaces) to 1 (the same second moment up to scale), but for the noise of few samples, which may
    exceed 1. By energy, so that no rank has to be chosen; `principal_angles` takes one. 0 for a class without two rows
    that overlap. Invariant to rotation and scale, not to translation. Memory K·d².

    Source: Yu et al. 2020 (arXiv 2006.08558) theorem 1 (orthogonal subspaces as the optimum).
    """
    if isinstance(x, Moments):
        parts = {k: (m.second_moment, m.n, m.quartic_about_zero()) for k, m in enumerate(_parts(x, labels)) if m.n}
    else:
        z, labels = _labelled(x, labels)
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

    x, labels as in `nc1`. Range 1 to min(n_k, d), 0 for zeros (or centred constants). Higher is healthier. Biased low
    with n_k/d as every effective rank: compare classes at equal n_k.

    Source: Roy & Vetterli 2007.
    """
    if isinstance(x, Moments):
        sets = {k: part for k, part in enumerate(_parts(x, labels)) if part.n}
    else:
        z, labels = _labelled(x, labels)
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
    z, labels = _labelled(x, labels)
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


def _labelled(z: Array, labels: Array | None) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    if labels is None:
        raise ValueError("features need labels")
    z = as_features(z).double()
    return z, as_labels(labels, len(z), device=z.device)


def _centered(means: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    means = means - means[:1].detach()  # measured from one of them, equal means are exactly zero
    return means - means.mean(0)
