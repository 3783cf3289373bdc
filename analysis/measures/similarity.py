"""Similarity of two representations: of layers, checkpoints, branches or networks.

Rows of x and y correspond (row i is sample i in both), their dimensions may differ. Results are 0-d float64 tensors.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import Array, as_features, centered, unit_rows
from .pairs import gram_cosines

FEATURE_ROUNDING = torch.finfo(torch.float32).eps  # features are float32 at best, whatever they are computed in


def debiased_cka(x: Array, y: Array) -> Float[Tensor, ""]:
    """Debiased linear centered kernel alignment: HSIC(x, y) / √(HSIC(x, x)·HSIC(y, y)), with unbiased HSIC.

    HSIC = [tr K̃L̃ + (1ᵀK̃1)(1ᵀL̃1)/((n − 1)(n − 2)) − 2/(n − 2)·1ᵀK̃L̃1] / (n(n − 3)), K̃ = xxᵀ without its diagonal.

    x `(n, d)`, y `(n, e)`, n ≥ 4. 1: equal up to rotation, scale and translation, to which it is invariant; 0 in
    expectation of HSIC for independent ones, whatever n and d (the biased estimate tends to 1 for d ≫ n). Negative
    values occur and are returned as they are. 0 also where x or y has no variance to resolve (HSIC(x, x) no more
    than rounding, as for orthonormal rows).

    Source: Song et al. 2012 (unbiased HSIC); Kornblith et al. 2019 (arXiv 1905.00414); Nguyen et al. 2021.
    """
    x, y = (centered(z) for z in _paired(x, y, min_rows=4))
    x_own, y_own = _unbiased_hsic(x, x), _unbiased_hsic(y, y)
    floors = (FEATURE_ROUNDING**2 * len(z) * z.detach().square().sum(1).square().sum() for z in (x, y))
    resolved = torch.stack([own > floor for own, floor in zip((x_own, y_own), floors, strict=True)]).all()
    norm = torch.where(resolved, x_own * y_own, 1.0).sqrt()
    return torch.where(resolved, _unbiased_hsic(x, y) / norm, 0.0)


def svcca(x: Array, y: Array, *, share: int | float = 0.99) -> Float[Tensor, ""]:
    """SVCCA: mean canonical correlation of two representations, each reduced to its leading principal directions.

    mean_i ρᵢ,  ρ = σ(UᵀV), U and V orthonormal bases of what the leading columns of x and y span in ℝⁿ.

    x `(n, d)`, y `(n, e)`, centered here. share: of the variance, that the directions kept explain; 1 keeps the
    numerical rank and is the mean CCA. Averaged over the smaller number of directions. Range 0 (no direction in common)
    to 1. Invariant to rotation, scale and translation, with share=1 to every invertible linear map, and so 1 for any
    two representations of rank n − 1. It needs many more rows than directions: independent ones have
    E mean ρ² = r/(n − 1), r the larger number of directions. 0 where x or y has no variance.
    ValueError: share outside (0, 1], one row, NaN.

    Source: Raghu et al. 2017 (arXiv 1706.05806); Hotelling 1936.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    x, y = (_leading_columns(centered(z), share) for z in _paired(x, y, min_rows=2))
    if not x.shape[1] or not y.shape[1]:
        return x.new_zeros(())
    return torch.linalg.svdvals(x.mT @ y).clamp(max=1).mean()


def rsa(
    x: Array,
    y: Array,
    *,
    distance: Literal["correlation", "cosine", "euclidean"] = "correlation",
    compare: Literal["spearman", "pearson"] = "spearman",
) -> Float[Tensor, ""]:
    """Representational similarity analysis: the correlation of the two matrices of distances between samples.

    distance of rows i < j: 1 − their Pearson correlation, 1 − their cosine, or ‖xᵢ − xⱼ‖; compare: the correlation of
    the ranks (average ranks for ties) or of the distances themselves.

    x `(n, d)`, y `(n, e)`, n ≥ 3; O(n²) memory by nature. Range −1 to 1 (the same order of distances), 0 in expectation
    for independent ones. Invariant to the order of samples, to scale, and to rotation but with distance="correlation",
    which wants d ≥ 2 and depends on the basis. 0 by definition where all distances of one are equal. Ranks carry no
    gradient. ValueError: rows without a direction (zero, or constant for "correlation").

    Source: Kriegeskorte, Mur & Bandettini 2008.
    """
    if distance not in ("correlation", "cosine", "euclidean"):
        raise ValueError(f'distance must be "correlation", "cosine" or "euclidean", got {distance!r}')
    if compare not in ("spearman", "pearson"):
        raise ValueError(f'compare must be "spearman" or "pearson", got {compare!r}')
    both = [_distances(z, distance, name) for z, name in zip(_paired(x, y, min_rows=3), "xy", strict=True)]
    if compare == "spearman":
        rounding = max(torch.finfo(as_features(z).dtype).eps for z in (x, y))
        a, b = (_ranks(d, 8 * rounding) for d in both)
    else:
        a, b = both
    a, b = a - a.mean(), b - b.mean()
    least = 0.0 if distance == "euclidean" else 1.0  # 1 − cos is rounded as cos is
    resolved = all((d.max() - d.min() > FEATURE_ROUNDING * d.abs().max().clamp(min=least)) for d in both)
    return (a @ b) / (a.norm() * b.norm()) if resolved else 0 * (a @ b)


def principal_angles(
    x: Array, y: Array, *, rank: int | tuple[int, int] | None = None, center: bool = False
) -> Float[Tensor, " r"]:
    """Principal angles between the feature subspaces that the rows of x and of y span in ℝᵈ, ascending.

    cos θᵢ = σᵢ(UᵀV), U and V orthonormal bases of the leading `rank` right singular directions.

    x `(n, d)`, y `(m, d)`: n and m may differ, d not. rank: leading directions of each, or (of x, of y); None takes
    the numerical rank. Radians in [0, π/2]: all 0 if one subspace holds the other, all π/2 if they are orthogonal,
    as classes are at the optimum of rate reduction. As many as the smaller rank. Small angles keep their digits.
    ValueError: a rank above the numerical rank, different d, features without any direction.

    Source: Björck & Golub 1973.
    """
    x, y = as_features(x, "x").double(), as_features(y, "y").double()
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
    ranks = rank if isinstance(rank, tuple) else (rank, rank)
    u, v = (
        _leading_directions(centered(z) if center else z, r, name)
        for z, r, name in zip((x, y), ranks, "xy", strict=True)
    )
    if u.shape[1] < v.shape[1]:
        u, v = v, u
    cosine = torch.linalg.svdvals(u.mT @ v)  # (r,), descending
    sine = torch.linalg.svdvals(v - u @ (u.mT @ v)).flip(0)  # (r,), ascending: the cosine of a small angle is flat
    return torch.atan2(sine, cosine)


def procrustes_distance(x: Array, y: Array, *, center: bool = False) -> Float[Tensor, ""]:
    """Procrustes distance: what remains between x and y, each of Frobenius norm 1, after the best rotation.

    min_Q ‖x/‖x‖_F − yQ/‖y‖_F‖_F = √(2 − 2‖xᵀy‖_*/(‖x‖_F‖y‖_F)); the smaller dimension is padded with zeros.

    x `(n, d)`, y `(n, e)`. Range 0 (equal up to rotation, reflection and scale; resolved to 10⁻⁸) to √2 (orthogonal;
    and by definition where one of them is zero). A metric: it obeys the triangle inequality. Translations matter
    unless center=True. ValueError: different n, NaN.

    Source: Schönemann 1966; as a metric on representations Williams et al. 2021 (arXiv 2110.14739).
    """
    x, y = ((centered(z) if center else z) for z in _paired(x, y))
    norms = torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(y)
    # With more dimensions than samples, the (n, n) triangular factor has the same Gram matrix as the features.
    x, y = (torch.linalg.qr(z.mT, mode="r").R.mT if z.shape[1] > len(z) else z for z in (x, y))
    nuclear = torch.linalg.svdvals(x.mT @ y).sum()
    return (2 - 2 * (nuclear / torch.where(norms > 0, norms, 1.0)).clamp(max=1)).sqrt()


def _paired(x: Array, y: Array, *, min_rows: int = 1) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    x, y = as_features(x, "x", min_rows=min_rows).double(), as_features(y, "y", min_rows=min_rows).double()
    if len(x) != len(y):
        raise ValueError(f"x and y must have rows of the same samples, got {len(x)} and {len(y)}")
    return x, y.to(x.device)


def _leading_columns(z: Float[Tensor, "n d"], share: int | float) -> Float[Tensor, "n r"]:
    """Orthonormal basis of what the leading principal directions of centered rows span in ℝⁿ."""
    u, s, _ = torch.linalg.svd(z, full_matrices=False)
    numerical = int((s > FEATURE_ROUNDING * min(z.shape) ** 0.5 * s[0]).sum())
    explained = s.detach().square().cumsum(0) / s.detach().square().sum().clamp_min(torch.finfo(s.dtype).tiny)
    return u[:, : min(numerical, int((explained < share * (1 - 1e-12)).sum()) + 1)]


def _distances(z: Float[Tensor, "n d"], distance: str, name: str) -> Float[Tensor, " pairs"]:
    """Of all pairs i < j."""
    if distance == "euclidean":
        return torch.pdist(centered(z))
    if distance == "correlation":
        z = centered(z, dim=1)  # constant rows are exactly zero
        if not z.any(1).all():
            raise ValueError(f"{name} has a constant row, which correlates with no other")
    return 1 - gram_cosines(unit_rows(z, name))


def _ranks(values: Float[Tensor, " n"], rounding: float) -> Float[Tensor, " n"]:
    """From 1, ties at their mean; values that differ by no more than rounding, relative to the largest, are tied."""
    grid = (values.detach() / (rounding * values.detach().abs().max().clamp_min(1e-300))).round()
    _, index, counts = grid.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[index].to(values)


def _unbiased_hsic(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """n(n − 3)·HSIC, without the (n, n) kernels where the features are narrower; translations cancel."""
    n = len(x)
    x_norms, y_norms = x.square().sum(1), y.square().sum(1)  # (n,): the diagonals that are left out
    x_sums, y_sums = x @ x.sum(0) - x_norms, y @ y.sum(0) - y_norms  # (n,): K̃1, L̃1
    product = (x.mT @ y).square().sum() if max(x.shape[1], y.shape[1]) < n else ((x @ x.mT) * (y @ y.mT)).sum()
    total = x_sums.sum() * y_sums.sum() / ((n - 1) * (n - 2))
    return product - (x_norms * y_norms).sum() + total - 2 / (n - 2) * (x_sums * y_sums).sum()


def _leading_directions(z: Float[Tensor, "n d"], rank: int | None, name: str) -> Float[Tensor, "d r"]:
    _, s, directions = torch.linalg.svd(z, full_matrices=False)
    numerical = int((s > FEATURE_ROUNDING * min(z.shape) ** 0.5 * s[0]).sum())
    if not numerical:
        raise ValueError(f"{name} is zero and spans no subspace")
    if rank is not None and not 1 <= rank <= numerical:
        raise ValueError(f"rank must be between 1 and the numerical rank of {name}, {numerical}, got {rank}")
    return directions[: rank or numerical].mT
