"""Neural regression collapse: features of a regression on t targets contract to t directions, those of the weights.

The counterpart of `analysis.neural_collapse` where there are no classes. All three are 0 at perfect collapse; they are
0-d float64 tensors and carry gradients. Rows are put on the unit sphere first, as the definitions do.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from analysis._input import Array, as_features, unit_rows


def nrc1(z: Array, *, targets: int, center: bool = False) -> Float[Tensor, ""]:
    """NRC1: share of the unit rows' energy outside the leading principal directions, as many as there are targets.

    mean_i ‖ẑᵢ − P ẑᵢ‖²,  ẑ = z/‖z‖ (of z − z̄ with center=True), P onto the leading directions of the covariance of z.

    z: `(n, d)`, 1 ≤ targets ≤ d. Range 0 to 1; isotropic features give 1 − targets/d. The directions are those of
    centred features, the rows are not centred, as in the paper's code: features with a large mean in another direction
    do not count as collapsed, unless center=True. Only directions in which rows differ count: 1 where none do.
    ValueError: zero rows, targets out of range, NaN.

    Source: Andriopoulos et al. 2024 (arXiv 2409.04180) section 3.
    """
    z = as_features(z, min_rows=2).double()
    if not 1 <= targets <= z.shape[1]:
        raise ValueError(f"targets must lie between 1 and d={z.shape[1]}, got {targets}")
    centered = z - z[:1].detach()  # measured from a row, equal rows are exactly zero
    centered = centered - centered.mean(0)
    _, s, directions = torch.linalg.svd(centered, full_matrices=False)
    varies = s > torch.finfo(torch.float32).eps * min(z.shape) ** 0.5 * s[0]
    directions = directions[varies][:targets]  # (targets or fewer, d)
    return _outside(unit_rows(centered if center else z), directions)


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
    return _outside(unit_rows(z - z.mean(0) if center else z), directions)


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
    targets = targets - targets[:1].detach()  # measured from a row, equal rows are exactly zero
    targets = targets - targets.mean(0)
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
