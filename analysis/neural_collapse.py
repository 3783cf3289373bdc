"""Neural collapse: how far classes have contracted to their means, and the means to a simplex.

Every class counts alike, whatever its number of samples, so that a large class cannot hide a small one: Σ_W is the
mean of the classes' covariances, the centre the mean of the class means μ_k. For balanced classes these are the
definitions of Papyan, Han & Donoho 2020 (arXiv 2008.08186). All four measures are 0 at perfect collapse; they are
0-d float64 tensors. Classes without samples are left out, and fewer than two classes are a ValueError. From
features they carry gradients, from `Moments` with classes they do not.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis._input import Array, as_features, as_labels
from analysis.frames import simplex_distance
from analysis.moments import Moments
from analysis.spectra import effective_rank

RTOL = 1e-6  # class means span no direction whose singular value is below this share of the largest


def nc1(x: Array | Moments, labels: Array | None = None) -> Float[Tensor, ""]:
    """NC1, variability collapse: tr(Σ_W Σ_B⁺)/K.

    Σ_B = (1/K) Σ_k (μ_k − μ)(μ_k − μ)ᵀ, whose pseudo-inverse comes from the singular values of the K class means:
    a d × d pseudo-inverse would invert rounding errors.

    x: features `(n, d)` with labels `(n,)`, or `Moments` with classes. Range 0 (every sample on its class mean) to ∞
    (+∞ if all class means are equal, total collapse included); about (d/K)·σ_W²/σ_B² per direction between.
    Invariant to rotation, translation and scale.

    Source: Papyan et al. 2020 (arXiv 2008.08186).
    """
    means, within = _class_means(x, labels)
    centered = _centered(means)  # (K, d)
    _, s, directions = torch.linalg.svd(centered, full_matrices=False)
    floor = torch.finfo(s.dtype).eps * len(means) * torch.linalg.matrix_norm(means.detach())
    spanned = (s > RTOL * s[0]) & (s > floor)  # at most K − 1 of them
    v, s = directions[spanned], s[spanned]
    if not len(s):
        return torch.full((), torch.inf, dtype=means.dtype, device=means.device)
    return (torch.einsum("rd,de,re->r", v, within, v) / s.square()).sum()


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
    means, _ = _class_means(x, labels)
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
    means, _ = _class_means(z, labels)
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


def _class_means(x: Array | Moments, labels: Array | None) -> tuple[Float[Tensor, "k d"], Float[Tensor, "d d"]]:
    """Means of the classes that have samples, and the mean of their covariances, in float64."""
    if isinstance(x, Moments):
        parts = [part for part in _parts(x, labels) if part.n]
        means = torch.stack([part.mean for part in parts])
        within = sum(part.covariance for part in parts) / len(parts)
    else:
        z, labels = _labelled(x, labels)
        _, index, counts = labels.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(counts), z.shape[1], dtype=z.dtype, device=z.device)
        means = means.index_add(0, index, z) / counts[:, None]  # (K, d)
        residual = (z - means[index]) / (len(counts) * counts[index, None]).sqrt()  # (n, d)
        within = residual.mT @ residual
    if len(means) < 2:
        raise ValueError("neural collapse needs samples of at least two classes")
    return means, within


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
