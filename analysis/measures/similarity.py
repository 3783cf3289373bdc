"""Similarity of two representations: of layers, checkpoints, branches or networks.

Row i of x and row i of y are the same sample, and their dimensions may differ; for `principal_angles` it is the
dimension that is shared, and the rows may be of any samples. Results are float64 tensors, 0-d except for the angles,
and carry gradients, except for `rsa` of ranks.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers

from .gradients import square_root, thin_svd
from .inputs import Array, as_features, centered, paired_features, unit_rows
from .pair_tiles import gram_cosines

FEATURE_ROUNDING = torch.finfo(torch.float32).eps  # features are float32 at best, whatever they are computed in


def debiased_cka(x: Array, y: Array) -> Float[Tensor, ""]:
    """Debiased linear centered kernel alignment (CKA) of two representations.

    HSIC(x, y) / √(HSIC(x, x)·HSIC(y, y)), with the unbiased
    HSIC = [tr K̃L̃ + (1ᵀK̃1)(1ᵀL̃1)/((n − 1)(n − 2)) − 2/(n − 2)·1ᵀK̃L̃1] / (n(n − 3)), K̃ = xxᵀ without its diagonal,
    L̃ = yyᵀ likewise.

    It is 1 for representations that are equal up to rotation, scale and translation, to which it is invariant. For
    independent ones HSIC is 0 in expectation, whatever n and d, where the biased estimate tends to 1 for d ≫ n.
    Negative values occur and are returned as they are. It is 0 also where x or y has no variance to resolve, because
    HSIC(x, x) is no more than rounding, as for orthonormal rows.

    Args:
        x: (n, d) features, n ≥ 4.
        y: (n, e) features of the same samples, row by row.

    Raises:
        ValueError: fewer than four rows, different n, NaN.

    Source: Song et al. 2012 (unbiased HSIC); Kornblith et al. 2019 (arXiv 1905.00414); Nguyen et al. 2021.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 3.0], [9.0, 4.0]])
    >>> round(debiased_cka(x, 7 - 2 * x.flip(1)).item(), 6)
    1.0
    """
    return minibatch_cka([(x, y)])


def minibatch_cka(batches: Iterable[tuple[Array, Array]]) -> Float[Tensor, ""]:
    """Debiased linear CKA of two representations from batches of samples, one after another: nothing is kept of them.

    Σ_b HSIC(x_b, y_b) / √(Σ_b HSIC(x_b, x_b) · Σ_b HSIC(y_b, y_b)), with the unbiased HSIC of `debiased_cka`

    Each HSIC is unbiased whatever the size of its batch, and so the value does not drift with it. Its noise falls with
    the number of samples, and is that of `debiased_cka` for one batch. The memory is that of a batch.

    Args:
        batches: pairs (x, y) of features (n, d) and (n, e) of the same samples, n ≥ 4 in each.

    Raises:
        ValueError: no batch, or one as `debiased_cka` refuses.

    Source: Nguyen, Raghu & Kornblith 2021 (arXiv 2010.15327) eq. 5.

    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> round(minibatch_cka(zip(x.split(16), (7 - 2 * x.flip(1)).split(16))).item(), 6)
    1.0
    """
    totals, floors = None, None
    for x, y in batches:
        x, y = (centered(z) for z in paired_features(x, y, min_rows=4))
        weight = 1 / (len(x) * (len(x) - 3))
        here = weight * torch.stack((_unbiased_hsic(x, y), _unbiased_hsic(x, x), _unbiased_hsic(y, y)))
        spread = torch.stack([z.detach().square().sum(1).square().sum() for z in (x, y)])
        rounding = weight * FEATURE_ROUNDING**2 * len(x) * spread
        totals = here if totals is None else totals + here.to(totals)
        floors = rounding if floors is None else floors + rounding.to(floors)
    if totals is None:
        raise ValueError("minibatch_cka needs at least one batch")
    resolved = (totals[1:] > floors).all()
    norm = torch.where(resolved, totals[1] * totals[2], 1.0).sqrt()
    return torch.where(resolved, totals[0] / norm, 0.0)


def svcca(x: Array, y: Array, *, share: int | float = 0.99) -> Float[Tensor, ""]:
    """SVCCA: the mean canonical correlation of two representations, each reduced to its leading principal directions.

    mean_i ρᵢ,  ρ = σ(UᵀV), U and V orthonormal bases of what the leading columns of x and y span in ℝⁿ.

    The range is from 0, no direction in common, to 1; the mean is over the smaller number of directions. Features are
    centered here. With share=1 it keeps the numerical rank and is the mean CCA. Invariant to rotation, scale and
    translation, and with share=1 to every invertible linear map, and so 1 for any two representations of rank n − 1.
    It needs many more rows than directions: independent representations have E mean ρ² = r/(n − 1), r the larger number
    of directions. It is 0 where x or y has no variance.

    Args:
        x: (n, d) features, n ≥ 2.
        y: (n, e) features of the same samples, row by row.
        share: the share of the variance that the directions kept explain, in (0, 1].

    Raises:
        ValueError: share outside (0, 1], one row, different n, NaN.

    Source: Raghu et al. 2017 (arXiv 1706.05806); Hotelling 1936.

    >>> x, y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> round(svcca(x, 3 - 2 * x).item(), 6), round(svcca(x, y).item(), 6), round(svcca(x, x + y).item(), 6)
    (1.0, 0.0, 0.707107)
    """
    check_numbers(share=share)
    if share == 0:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    x, y = (_leading_columns(centered(z), share) for z in paired_features(x, y, min_rows=2))
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
    """Representational similarity analysis: the correlation of two representations' distances between samples.

    corr(δ(xᵢ, xⱼ), δ(yᵢ, yⱼ)) over the pairs i < j;  δ is 1 − the Pearson correlation of two rows, 1 − their cosine, or
    their Euclidean distance.

    The range is −1 to 1, where both have the same order of distances, and 0 in expectation for independent
    representations. Invariant to the order of samples and to scale. Invariant to rotation, too, except for
    distance="correlation", which wants d ≥ 2 and depends on the basis. It is 0 by definition where all distances of one
    are equal. Ranks carry no gradient. It needs O(n²) memory by nature.

    Args:
        x: (n, d) features, n ≥ 3.
        y: (n, e) features of the same samples, row by row.
        distance: δ.
        compare: correlates the ranks of the distances (average ranks for ties), or the distances themselves.

    Raises:
        ValueError: rows without a direction, which are zero, or constant for "correlation"; fewer than three rows,
            different n, an unknown distance or comparison, NaN.

    Source: Kriegeskorte, Mur & Bandettini 2008.

    >>> x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [9.0]])
    >>> round(rsa(x, y, distance="euclidean").item(), 6)  # the order of distances is the same
    1.0
    >>> round(rsa(x, y, distance="euclidean", compare="pearson").item(), 6)  # the distances are not
    0.917663
    """
    if distance not in ("correlation", "cosine", "euclidean"):
        raise ValueError(f'distance must be "correlation", "cosine" or "euclidean", got {distance!r}')
    if compare not in ("spearman", "pearson"):
        raise ValueError(f'compare must be "spearman" or "pearson", got {compare!r}')
    both = [_distances(z, distance, name) for z, name in zip(paired_features(x, y, min_rows=3), "xy", strict=True)]
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
    """Principal angles, in radians and ascending, between the subspaces that the rows of x and of y span in ℝᵈ.

    cos θᵢ = σᵢ(UᵀV), U and V orthonormal bases of the leading `rank` right singular directions.

    The range is [0, π/2]. All are 0 if one subspace holds the other, and all are π/2 if they are orthogonal, as classes
    are at the optimum of rate reduction. There are as many as the smaller rank. Small angles keep their digits.

    Args:
        x: (n, d) features.
        y: (m, d) features; m may differ from n.
        rank: how many leading directions of each, or (of x, of y); None takes the numerical rank.
        center: whether the rows of each are centered first.

    Raises:
        ValueError: a rank above the numerical rank, different d, features without any direction, NaN.

    Source: Björck & Golub 1973.

    >>> x, y = torch.eye(3)[:2], torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    >>> principal_angles(x, y).rad2deg().round(decimals=4).tolist()  # planes that share an axis
    [0.0, 45.0]
    """
    x = as_features(x, "x").double()
    y = as_features(y, "y", device=x.device).double()
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
    ranks = rank if isinstance(rank, tuple) else (rank, rank)
    for r in ranks:
        check_numbers(**({} if r is None else {"rank": r}))
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

    The range is from 0, equal up to rotation, reflection and scale, which is resolved to 10⁻⁸, to √2, where the columns
    of x and y are orthogonal, and by definition where x or y is zero. It is a metric: it obeys the triangle inequality.
    Translations matter unless center=True.

    Args:
        x: (n, d) features.
        y: (n, e) features of the same samples, row by row.
        center: whether the rows of each are centered first.

    Raises:
        ValueError: different n, NaN.

    Source: Schönemann 1966; as a metric on representations Williams et al. 2021 (arXiv 2110.14739).

    >>> x = torch.eye(4)[:, :2]  # varies over the first two samples
    >>> round(procrustes_distance(x, 5 * x.flip(1)).item(), 6)
    0.0
    >>> round(procrustes_distance(x, torch.eye(4)[:, 2:]).item(), 6)  # varies over the other two: √2
    1.414214
    """
    x, y = ((centered(z) if center else z) for z in paired_features(x, y))
    norms = torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(y)
    # With more dimensions than samples, the (n, n) triangular factor has the same Gram matrix as the features.
    # This factor alone has no gradient.
    x, y = (torch.linalg.qr(z.mT, mode="r").R.mT if z.shape[1] > len(z) and not z.requires_grad else z for z in (x, y))
    nuclear = torch.linalg.svdvals(x.mT @ y).sum()
    return square_root(2 - 2 * (nuclear / torch.where(norms > 0, norms, 1.0)).clamp(max=1))


def _leading_columns(z: Float[Tensor, "n d"], share: int | float) -> Float[Tensor, "n r"]:
    """Orthonormal basis of what the leading principal directions of centered rows span in ℝⁿ."""
    u, s, _ = thin_svd(z)
    numerical = int((s > FEATURE_ROUNDING * min(z.shape) ** 0.5 * s[0]).sum())
    explained = s.detach().square().cumsum(0) / s.detach().square().sum().clamp_min(torch.finfo(s.dtype).tiny)
    return u[:, : min(numerical, int((explained < share * (1 - 1e-12)).sum()) + 1)]


def _distances(z: Float[Tensor, "n d"], distance: str, name: str) -> Float[Tensor, " pairs"]:
    """Distances of all pairs i < j."""
    if distance == "euclidean":
        return torch.pdist(centered(z))
    if distance == "correlation":
        z = centered(z, dim=1)  # constant rows are exactly zero
        if not z.any(1).all():
            raise ValueError(f"{name} has a constant row, which correlates with no other")
    return 1 - gram_cosines(unit_rows(z, name))


def _ranks(values: Float[Tensor, " n"], rounding: float) -> Float[Tensor, " n"]:
    """Ranks from 1, ties at their mean; values that differ by no more than `rounding` of the largest are tied."""
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
    _, s, directions = thin_svd(z)
    numerical = int((s > FEATURE_ROUNDING * min(z.shape) ** 0.5 * s[0]).sum())
    if not numerical:
        raise ValueError(f"{name} is zero and spans no subspace")
    if rank is not None and not 1 <= rank <= numerical:
        raise ValueError(f"rank must be between 1 and the numerical rank of {name}, {numerical}, got {rank}")
    return directions[: rank or numerical].mT
