"""Energies of n points: a factory returns a function from (..., n, d) to (...), smaller is better.

The points stand for features whose views agree: of each loss only what spreads them is left (its value where the views
coincide). They are taken as they are; `landscape.minimize` keeps them on the unit sphere.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from simdino.losses import coding_rate

Energy = Callable[[Tensor], Tensor]


def coding_rate_energy(
    eps: float, *, batch: int | None = None, center: bool = False, samples: int | None = None, seed: int = 0
) -> Energy:
    """Minus the coding rate, -½ logdet(I + d/(n ε²) ZᵀZ), of all points, or its mean over batches of them, in nats.

    batch=None: full. batch=b: the mean over all C(n, b) batches of distinct points, or over `samples` of them, drawn
    once with `seed`. center=True subtracts the mean (of the batch). Least at A1's optima (full), B2's (batches).
    """

    def energy(z):
        n, d = z.shape[-2:]
        if batch is None:
            return -coding_rate(z - z.mean(-2, keepdim=True) if center else z, eps=eps)
        members = _batches(n, batch, samples, seed).to(z.device)  # (c, b)
        if batch < d:
            gram = z @ z.mT  # cheaper than to gather the points
            gram = gram[..., members[:, :, None], members[:, None, :]]  # (..., c, b, b)
            if center:
                gram = gram - gram.mean(-1, keepdim=True)
                gram = gram - gram.mean(-2, keepdim=True)
            eye = torch.eye(batch, dtype=z.dtype, device=z.device)
            return -0.5 * torch.logdet(eye + d / (batch * eps**2) * gram).mean(-1)
        z = z[..., members, :]  # (..., c, b, d)
        return -coding_rate(z - z.mean(-2, keepdim=True) if center else z, eps=eps).mean(-1)

    return energy


@cache
def _batches(n, batch, samples, seed):
    """Index sets (c, b): all of them, or `samples` random ones."""
    if samples is None:
        if math.comb(n, batch) > 200_000:
            raise ValueError(f"there are C({n}, {batch}) batches, too many to enumerate: give samples")
        return torch.tensor(list(combinations(range(n), batch)))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, n, generator=generator).argsort(1)[:, :batch]


def frame_potential_energy(order: int = 2) -> Energy:
    """The frame potential of even order p = 2k, the mean of ⟨z_i, z_j⟩^p over all pairs, self pairs included."""
    if order < 2 or order % 2:
        raise ValueError(f"order, the exponent of the cosines, must be even and positive, got {order}")
    return lambda z: (z @ z.mT).pow(order).mean((-2, -1))


def uniformity_energy(t: float = 2.0) -> Energy:
    """The uniformity loss of Wang and Isola 2020, log mean_{i≠j} exp(-t ‖z_i - z_j‖²)."""

    def energy(z):
        n = z.shape[-2]
        return (2 * t * (_others(z @ z.mT) - 1)).flatten(-2).logsumexp(-1) - math.log(n * (n - 1))

    return energy


def spectral_contrastive_energy() -> Energy:
    """The spectral contrastive loss, mean_{i≠j} ⟨z_i, z_j⟩² - 2, HaoChen et al. 2021: a frame potential."""
    return lambda z: _others(z @ z.mT).square().mean((-2, -1)) - 2


def infonce_energy(temp: float = 0.1) -> Energy:
    """InfoNCE, mean_i log mean_{j≠i} exp((⟨z_i, z_j⟩ - 1)/τ): the positive left out of the sum, Oord et al. 2018."""
    return lambda z: _others((z @ z.mT - 1) / temp).logsumexp(-1).mean(-1) - math.log(z.shape[-2] - 1)


def koleo_energy() -> Energy:
    """KoLeo, -mean_i log min_{j≠i} ‖z_i - z_j‖ of unit vectors, Sablayrolles et al. 2019."""
    return lambda z: -0.5 * (2 - 2 * _others(z @ z.mT).amax(-1)).log().mean(-1)


def _others(a):
    """The off-diagonal entries of (..., n, n) as (..., n, n-1)."""
    n = a.shape[-1]
    other = ~torch.eye(n, dtype=torch.bool, device=a.device)
    return a[..., other].unflatten(-1, (n, n - 1))


def mmcr_energy() -> Energy:
    """Maximum manifold capacity, minus the nuclear norm of Z, Yerxa et al. 2023."""
    return lambda z: -torch.linalg.svdvals(z).sum(-1)


def vicreg_energy(*, variance: float = 25.0, covariance: float = 1.0) -> Energy:
    """VICReg, variance · mean_j [1 - √(C_jj + 1e-4)]₊ + covariance/d · Σ_{i≠j} C_ij², Bardes et al. 2022.

    C is the centered covariance (divided by n-1). On the unit sphere the target 1 of the deviations is out of reach, so
    that they are made equal and as large as possible.
    """

    def energy(z):
        c = _covariance(z)
        spread = (1 - (c.diagonal(dim1=-2, dim2=-1) + 1e-4).sqrt()).relu().mean(-1)
        return variance * spread + covariance / z.shape[-1] * _others(c).square().sum((-2, -1))

    return energy


def barlow_twins_energy(*, redundancy: float = 5e-3) -> Energy:
    """Barlow Twins, redundancy · Σ_{i≠j} ρ_ij² with ρ the correlation matrix of the features, Zbontar et al. 2021.

    It does not see the variances of the features: its optima need not be tight.
    """

    def energy(z):
        c = _covariance(z)
        deviation = c.diagonal(dim1=-2, dim2=-1).sqrt()
        return redundancy * _others(c / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))).square().sum((-2, -1))

    return energy


def wmse_energy() -> Energy:
    """W-MSE of views that differ by little, isotropic noise, in units of its variance a view: 2 tr C⁻¹/d, C of /n.

    W-MSE compares views of a whitened batch, so where they agree it is zero for every configuration of full rank; what
    tells these apart is how much whitening amplifies a difference, E ‖C^{-½}(e - e')‖²/d. Ermolov et al. 2021.
    """

    def energy(z):
        n, d = z.shape[-2:]
        return 2 / d * torch.linalg.inv(_covariance(z) * (n - 1) / n).diagonal(dim1=-2, dim2=-1).sum(-1)

    return energy


def _covariance(z):
    z = z - z.mean(-2, keepdim=True)
    return z.mT @ z / (z.shape[-2] - 1)


def sigreg_energy(*, slices: int = 256, seed: int = 0) -> Energy:
    """SIGReg, the mean Epps-Pulley distance of projections of √d z from N(0, 1), Balestriero and LeCun 2025.

    mean_a ∫ |mean_i exp(itx_i) - exp(-t²/2)|² φ(t) dt with x_i = √d ⟨a, z_i⟩, φ the normal density and `slices` random
    unit directions a; the integral in closed form.
    """

    def energy(z):
        d = z.shape[-1]
        directions = np.random.default_rng(seed).standard_normal((d, slices))
        x = (
            math.sqrt(d) * (z @ torch.as_tensor(directions / np.linalg.norm(directions, axis=0)).to(z)).mT
        )  # (..., s, n)
        pairs = (-0.5 * (x.unsqueeze(-1) - x.unsqueeze(-2)).square()).exp().mean((-2, -1))
        return (pairs - math.sqrt(2) * (-0.25 * x.square()).exp().mean(-1) + 1 / math.sqrt(3)).mean(-1)

    return energy


def dino_energy(
    prototypes: Tensor, *, center: bool = False, student_temp: float = 0.1, teacher_temp: float = 0.04
) -> Energy:
    """DINO's cross-entropy of a point's softmax(⟨z, w⟩/τ_s) with its own softmax(⟨z, w⟩/τ_t), Caron et al. 2021.

    prototypes w: (K, d). center=True subtracts the batch mean from the teacher's logits. Without it, points
    that all lie on one prototype cost as little as points that are spread over all.
    """

    def energy(z):
        logits = z @ prototypes.to(z).mT  # (..., n, K)
        teacher = logits - logits.mean(-2, keepdim=True) if center else logits
        return -((teacher / teacher_temp).softmax(-1) * (logits / student_temp).log_softmax(-1)).sum(-1).mean(-1)

    return energy
