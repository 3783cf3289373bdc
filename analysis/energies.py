"""Energies of n points (..., n, d): each factory returns a function to values (...), smaller is better.

The points are taken as they are; `landscape.minimise` keeps them on the unit sphere.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

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
            return -_rate(z - z.mean(-2, keepdim=True) if center else z, eps)
        members = _batches(n, batch, samples, seed).to(z.device)  # (c, b)
        if batch < d:
            gram = z @ z.mT  # cheaper than to gather the points
            gram = gram[..., members[:, :, None], members[:, None, :]]  # (..., c, b, b)
            if center:
                gram = gram - gram.mean(-1, keepdim=True)
                gram = gram - gram.mean(-2, keepdim=True)
            return -0.5 * torch.logdet(_eye(gram) + d / (batch * eps**2) * gram).mean(-1)
        z = z[..., members, :]  # (..., c, b, d)
        return -_rate(z - z.mean(-2, keepdim=True) if center else z, eps).mean(-1)

    return energy


def _eye(a):
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _rate(z, eps):
    n, d = z.shape[-2:]
    gram = z.mT @ z if d < n else z @ z.mT
    return 0.5 * torch.logdet(_eye(gram) + d / (n * eps**2) * gram)


@cache
def _batches(n, batch, samples, seed):
    """Index sets (c, b): all of them, or `samples` random ones."""
    if samples is None:
        if math.comb(n, batch) > 200_000:
            raise ValueError(f"there are C({n}, {batch}) batches, too many to enumerate: give samples")
        return torch.tensor(list(combinations(range(n), batch)))
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, n, generator=generator).argsort(dim=1)[:, :batch]


def frame_potential_energy(order: int = 1) -> Energy:
    """The even frame potential of order k, the mean of ⟨z_i, z_j⟩^{2k} over all pairs, self pairs included."""
    return lambda z: (z @ z.mT).pow(2 * order).mean((-2, -1))


def uniformity_energy(t: float = 2.0) -> Energy:
    """The uniformity loss of Wang and Isola 2020, log mean_{i≠j} exp(-t ‖z_i - z_j‖²)."""

    def energy(z):
        n = z.shape[-2]
        other = ~torch.eye(n, dtype=torch.bool, device=z.device)
        exponent = (2 * t * (z @ z.mT - 1))[..., other]  # (..., n(n-1))
        return exponent.logsumexp(-1) - math.log(n * (n - 1))

    return energy
