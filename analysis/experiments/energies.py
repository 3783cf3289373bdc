"""Energies of n points: a factory returns a function from (..., n, d) to (...), of which smaller is better.

The points stand for features whose views agree: of each loss only what spreads them is left, its value where the views
coincide. They are taken as they are; `landscape.minimize` keeps them on the unit sphere.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from simdino.losses import coding_rate

Energy = Callable[[Tensor], Tensor]


def coding_rate_energy(
    eps: int | float, *, batch: int | None = None, center: bool = False, samples: int | None = None, seed: int = 0
) -> Energy:
    """Minus the coding rate of all points, or minus its mean over batches of them, in nats.

    -½ logdet(I + d/(nε²) ZᵀZ)

    It is least at the optima of A1 for all points, and at those of B2 for batches.

    Args:
        batch: the size of the batches, whose points are distinct; None takes all points at once.
        center: subtract the mean of the points, or that of each batch.
        samples: how many batches are drawn, once; None takes all C(n, batch) of them.
        seed: of the draw.

    Raises:
        ValueError: when the energy is evaluated, if there are more than 200 000 batches and `samples` is None.

    Source: Yu et al. 2020 (arXiv 2006.08558).

    >>> round(coding_rate_energy(1.0)(torch.eye(2)).item(), 4)  # -log 2
    -0.6931
    """

    def energy(z: Tensor) -> Tensor:
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


def batch_energy(energy: Energy, *, batch: int, samples: int | None = None, seed: int = 0) -> Energy:
    """The mean of an energy over batches of the points.

    Args:
        energy: of the points of a batch.
        batch: the size of the batches, whose points are distinct.
        samples: how many batches are drawn, once; None takes all C(n, batch) of them.
        seed: of the draw.

    >>> pairs = batch_energy(infonce_energy(temp=0.5), batch=2)
    >>> pairs(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])).item()  # (-4 - 2 - 2)/3
    -2.6666667461395264
    """
    return lambda z: energy(z[..., _batches(z.shape[-2], batch, samples, seed).to(z.device), :]).mean(-1)


@cache
def _batches(n: int, batch: int, samples: int | None, seed: int) -> Int[Tensor, "c {batch}"]:
    """The members of each batch: of all batches, or of `samples` random ones."""
    if samples is None:
        if math.comb(n, batch) > 200_000:
            raise ValueError(f"there are C({n}, {batch}) batches, too many to enumerate: give samples")
        return torch.tensor(list(combinations(range(n), batch)))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, n, generator=generator).argsort(1)[:, :batch]


def frame_potential_energy(order: int = 2) -> Energy:
    """The frame potential of even order p, the mean of ⟨zᵢ, zⱼ⟩^p over all pairs, self pairs included.

    Its minimum is at least `theory.frame_potential_minimum`.

    Args:
        order: p, the exponent of the cosines.

    Raises:
        ValueError: for an order that is odd or not positive.

    Source: Benedetto and Fickus 2003.

    >>> frame_potential_energy(4)(torch.eye(2)).item()  # two self pairs of four
    0.5
    """
    if order < 2 or order % 2:
        raise ValueError(f"order, the exponent of the cosines, must be even and positive, got {order}")
    return lambda z: (z @ z.mT).pow(order).mean((-2, -1))


def uniformity_energy(t: int | float = 2.0) -> Energy:
    """The uniformity loss of unit vectors.

    log mean_{i≠j} exp(-t ‖zᵢ - zⱼ‖²)

    Source: Wang and Isola 2020 (arXiv 2005.10242).

    >>> uniformity_energy()(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item()  # at the squared distance 4
    -8.0
    """

    def energy(z: Tensor) -> Tensor:
        n = z.shape[-2]
        return (2 * t * (_others(z @ z.mT) - 1)).flatten(-2).logsumexp(-1) - math.log(n * (n - 1))

    return energy


def spectral_contrastive_energy() -> Energy:
    """The spectral contrastive loss of unit vectors, which is a frame potential of order 2.

    mean_{i≠j} ⟨zᵢ, zⱼ⟩² - 2

    Source: HaoChen et al. 2021 (arXiv 2106.04156).

    >>> spectral_contrastive_energy()(torch.eye(3)).item()
    -2.0
    """
    return lambda z: _others(z @ z.mT).square().mean((-2, -1)) - 2


def infonce_energy(temp: int | float = 0.1, *, positive: bool = False) -> Energy:
    """The InfoNCE loss of unit vectors, with the positive left out of the sum or in it.

    mean_i log mean_{j≠i} exp((⟨zᵢ, zⱼ⟩ - 1)/τ),   with the positive mean_i log mean_j

    Args:
        temp: τ.
        positive: sum over j = i as well.

    Source: Oord et al. 2018 (arXiv 1807.03748).

    >>> infonce_energy(temp=0.5)(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item()  # (-1 - 1)/0.5
    -4.0
    """

    def energy(z: Tensor) -> Tensor:
        scores = (z @ z.mT - 1) / temp
        scores = scores if positive else _others(scores)
        return scores.logsumexp(-1).mean(-1) - math.log(scores.shape[-1])

    return energy


def koleo_energy() -> Energy:
    """The KoLeo loss of unit vectors, which pushes each from its nearest neighbor.

    -mean_i log min_{j≠i} ‖zᵢ - zⱼ‖

    It has a kink where several neighbors are nearest, and its minima are such points.

    Source: Sablayrolles et al. 2019 (arXiv 1806.03198).

    >>> round(koleo_energy()(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item(), 4)  # -log 2
    -0.6931
    """
    return lambda z: -0.5 * (2 - 2 * _others(z @ z.mT).amax(-1)).log().mean(-1)


def _others(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n-1"]:
    """The off-diagonal entries, row by row."""
    n = a.shape[-1]
    other = ~torch.eye(n, dtype=torch.bool, device=a.device)
    return a[..., other].unflatten(-1, (n, n - 1))


def mmcr_energy() -> Energy:
    """The loss of maximum manifold capacity representations (MMCR), minus the nuclear norm of Z.

    Its minimum on the sphere is minus `theory.nuclear_norm_maximum`.

    Source: Yerxa et al. 2023 (arXiv 2303.03307).

    >>> round(mmcr_energy()(torch.eye(4)).item(), 4)
    -4.0
    """
    return lambda z: -torch.linalg.svdvals(z).sum(-1)


def vicreg_energy(*, variance: int | float = 25.0, covariance: int | float = 1.0) -> Energy:
    """The variance and covariance terms of VICReg.

    variance · mean_j [1 - √(C_jj + 1e-4)]₊ + covariance/d · Σ_{i≠j} C_ij²

    C is the centered covariance (divided by n-1). On the unit sphere the target 1 of the deviations is out of reach, so
    that they are made equal and as large as possible.

    Args:
        variance: the weight of the variance term.
        covariance: the weight of the covariance term.

    Source: Bardes et al. 2022 (arXiv 2105.04906).

    >>> round(vicreg_energy()(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item(), 4)  # C = diag(2, 0): 25 (0 + 0.99)/2
    12.375
    """

    def energy(z: Tensor) -> Tensor:
        c = _covariance(z)
        spread = (1 - (c.diagonal(dim1=-2, dim2=-1) + 1e-4).sqrt()).relu().mean(-1)
        return variance * spread + covariance / z.shape[-1] * _others(c).square().sum((-2, -1))

    return energy


def barlow_twins_energy(*, redundancy: int | float = 5e-3) -> Energy:
    """The redundancy term of Barlow Twins, of the correlation matrix ρ of the features.

    redundancy · Σ_{i≠j} ρ_ij²

    It does not see the variances of the features: its optima need not be tight.

    Args:
        redundancy: the weight of the term.

    Source: Zbontar et al. 2021 (arXiv 2103.03230).

    >>> barlow_twins_energy()(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).item()
    0.0
    """

    def energy(z: Tensor) -> Tensor:
        c = _covariance(z)
        deviation = c.diagonal(dim1=-2, dim2=-1).sqrt()
        return redundancy * _others(c / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))).square().sum((-2, -1))

    return energy


def wmse_energy() -> Energy:
    """The loss of W-MSE for views that differ by little isotropic noise, in units of the variance of that noise.

    (2/d) tr C⁻¹,   C the centered covariance (divided by n)

    W-MSE compares views of a whitened batch, so that where they agree it is zero for every configuration of full rank.
    What tells these apart is how much whitening amplifies a difference of the views, E ‖C^{-½}(e - e')‖²/d.

    Source: Ermolov et al. 2021 (arXiv 2007.06346).

    >>> wmse_energy()(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).item()  # C = I/2
    4.0
    """

    def energy(z: Tensor) -> Tensor:
        n, d = z.shape[-2:]
        return 2 / d * torch.linalg.inv(_covariance(z) * (n - 1) / n).diagonal(dim1=-2, dim2=-1).sum(-1)

    return energy


def _covariance(z: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch d d"]:
    z = z - z.mean(-2, keepdim=True)
    return z.mT @ z / (z.shape[-2] - 1)


def sigreg_energy(*, slices: int = 256, seed: int = 0) -> Energy:
    """SIGReg, the mean distance of Epps and Pulley between projections of √d z and the normal law N(0, 1).

    mean_a ∫ |mean_i exp(itxᵢ) - exp(-t²/2)|² φ(t) dt,   xᵢ = √d ⟨a, zᵢ⟩

    φ is the normal density. The integral is taken in closed form, the mean over random unit directions a.

    Args:
        slices: how many directions.
        seed: of the directions, which are the same at every evaluation.

    Source: Balestriero and LeCun 2025 (arXiv 2511.08544).

    >>> round(sigreg_energy()(torch.ones(5, 1)).item(), 4)  # all projections equal ±1: 1 - √2 e^{-¼} + 1/√3
    0.476
    """

    def energy(z: Tensor) -> Tensor:
        d = z.shape[-1]
        directions = np.random.default_rng(seed).standard_normal((d, slices))
        directions = torch.as_tensor(directions / np.linalg.norm(directions, axis=0)).to(z)  # (d, slices)
        x = math.sqrt(d) * (z @ directions).mT  # (..., slices, n)
        pairs = (-0.5 * (x.unsqueeze(-1) - x.unsqueeze(-2)).square()).exp().mean((-2, -1))
        return (pairs - math.sqrt(2) * (-0.25 * x.square()).exp().mean(-1) + 1 / math.sqrt(3)).mean(-1)

    return energy


def dino_energy(
    prototypes: Float[Tensor, "K d"],
    *,
    center: bool = False,
    student_temp: int | float = 0.1,
    teacher_temp: int | float = 0.04,
) -> Energy:
    """The cross-entropy of DINO between a point as the teacher sees it and the same point as the student does.

    mean_i -Σ_k softmax(⟨zᵢ, w⟩/τ_t)_k log softmax(⟨zᵢ, w⟩/τ_s)_k

    Without centering, points that all lie on one prototype cost as little as points that are spread over all (C1).

    Args:
        prototypes: (K, d) the vectors w.
        center: subtract the mean over the points from the teacher's logits.
        student_temp: τ_s.
        teacher_temp: τ_t.

    Source: Caron et al. 2021 (arXiv 2104.14294).

    >>> blind = dino_energy(torch.eye(3))
    >>> torch.isclose(blind(torch.eye(3)), blind(torch.eye(3)[[0, 0, 0]])).item()
    True
    """

    def energy(z: Tensor) -> Tensor:
        logits = z @ prototypes.to(z).mT  # (..., n, K)
        teacher = logits - logits.mean(-2, keepdim=True) if center else logits
        return -((teacher / teacher_temp).softmax(-1) * (logits / student_temp).log_softmax(-1)).sum(-1).mean(-1)

    return energy
