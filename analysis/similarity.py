"""Similarity of two representations: of layers, checkpoints, branches or networks; and of one to a Gaussian.

Rows of x and y correspond (row i is sample i in both), their dimensions may differ. Results are 0-d float64 tensors.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from analysis._input import Array, as_features

# Trapezoidal rule for the weight exp(−t²/2), t ≤ 7.2: exact to 1e-10 for projections less than 14 apart.
NODES, STEP = 24, 0.3


def debiased_cka(x: Array, y: Array) -> Float[Tensor, ""]:
    """Debiased linear centred kernel alignment: HSIC(x, y) / √(HSIC(x, x)·HSIC(y, y)), with unbiased HSIC.

    HSIC = [tr K̃L̃ + (1ᵀK̃1)(1ᵀL̃1)/((n − 1)(n − 2)) − 2/(n − 2)·1ᵀK̃L̃1] / (n(n − 3)), K̃ = xxᵀ without its diagonal.

    x `(n, d)`, y `(n, e)`, n ≥ 4. 1: equal up to rotation, scale and translation, to which it is invariant; 0 in
    expectation of HSIC for independent ones, whatever n and d (the biased estimate tends to 1 for d ≫ n). Negative
    values occur and are returned as they are. 0 also where x or y has no variance to resolve (HSIC(x, x) ≤ 0).

    Source: Song et al. 2012 (unbiased HSIC); Kornblith et al. 2019 (arXiv 1905.00414); Nguyen et al. 2021.
    """
    x, y = (_centered(z) for z in _paired(x, y, min_rows=4))
    x_own, y_own = _unbiased_hsic(x, x), _unbiased_hsic(y, y)
    resolved = (x_own > 0) & (y_own > 0)
    norm = torch.where(resolved, x_own * y_own, 1.0).sqrt()
    return torch.where(resolved, _unbiased_hsic(x, y) / norm, 0.0)


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
        _leading_directions(_centered(z) if center else z, r, name)
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
    x, y = ((_centered(z) if center else z) for z in _paired(x, y))
    norms = torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(y)
    # With more dimensions than samples, the (n, n) triangular factor has the same Gram matrix as the features.
    x, y = (torch.linalg.qr(z.mT, mode="r").R.mT if z.shape[1] > len(z) else z for z in (x, y))
    nuclear = torch.linalg.svdvals(x.mT @ y).sum()
    return (2 - 2 * (nuclear / torch.where(norms > 0, norms, 1.0)).clamp(max=1)).sqrt()


def sliced_normality(z: Array, *, directions: int = 256, seed: int = 0) -> Float[Tensor, ""]:
    """Sliced Epps–Pulley statistic: how far z is from a standard normal distribution N(0, I).

    Mean over random unit directions u of n ∫ |φ_n(t) − exp(−t²/2)|² w(t) dt, φ_n the empirical characteristic
    function of ⟨zᵢ, u⟩, w the standard normal density.

    z: `(n, d)`, taken as it is: features on the unit sphere have to be multiplied by √d, others standardised, first.
    Under N(0, I) its expectation is 1 − 1/√3 ≈ 0.423 at any n; lower is closer to normal, otherwise it grows with n;
    z = 0 gives n·(1 − √2 + 1/√3). Exact to 10⁻¹⁰ while projections are less than 14 apart; features of a much larger
    scale read up to a fifth too high. The directions depend on seed, directions and d only.

    Source: Epps & Pulley 1983; sliced, as a loss, Balestriero & LeCun 2025 (LeJEPA, arXiv 2511.08544).
    """
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    z = as_features(z).double()
    u = torch.randn(z.shape[1], directions, dtype=z.dtype, generator=torch.Generator().manual_seed(seed))
    projected = z @ torch.nn.functional.normalize(u, dim=0).to(z.device)  # (n, directions)
    phase = torch.polar(torch.ones_like(projected), STEP * projected)
    power, total = torch.ones_like(phase), torch.zeros((), dtype=z.dtype, device=z.device)
    for k in range(1, NODES + 1):  # the integrand is even, and 0 at t = 0
        t, power = k * STEP, power * phase  # exp(i·t·projected): a product costs a tenth of a sine and a cosine
        difference = power.mean(0) - math.exp(-(t**2) / 2)  # (directions,)
        total = total + math.exp(-(t**2) / 2) * (difference.real.square() + difference.imag.square()).mean()
    return len(z) * 2 * STEP / math.sqrt(2 * math.pi) * total


def _paired(x: Array, y: Array, *, min_rows: int = 1) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    x, y = as_features(x, "x", min_rows=min_rows).double(), as_features(y, "y", min_rows=min_rows).double()
    if len(x) != len(y):
        raise ValueError(f"x and y must have rows of the same samples, got {len(x)} and {len(y)}")
    return x, y.to(x.device)


def _centered(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    z = z - z[:1].detach()  # measured from a row, equal rows are exactly zero
    return z - z.mean(0)


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
    numerical = int((s > torch.finfo(torch.float32).eps * max(z.shape) * s[0]).sum())
    if not numerical:
        raise ValueError(f"{name} is zero and spans no subspace")
    if rank is not None and not 1 <= rank <= numerical:
        raise ValueError(f"rank must be between 1 and the numerical rank of {name}, {numerical}, got {rank}")
    return directions[: rank or numerical].mT
