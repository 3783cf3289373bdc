"""Feature sets whose geometry is known, for tests of whatever measures it."""

import itertools
import math

import torch

D = torch.float64


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def sphere(*shape: int, seed: int = 0) -> torch.Tensor:
    """Independent uniform unit vectors."""
    return torch.nn.functional.normalize(gaussian(*shape, seed=seed), dim=-1)


def rotation(d: int, seed: int = 5) -> torch.Tensor:
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


def simplex(n: int, d: int | None = None) -> torch.Tensor:
    """n unit vectors in ℝᵈ, d ≥ n, that span n − 1 dimensions, all cosines −1/(n − 1)."""
    z = torch.zeros(n, d or n, dtype=D)
    z[:, :n] = (torch.eye(n, dtype=D) - 1 / n) * math.sqrt(n / (n - 1))
    return z


def mercedes() -> torch.Tensor:
    """Three unit vectors at 120° in the plane, the Mercedes-Benz frame."""
    angles = torch.arange(3, dtype=D) * 2 * math.pi / 3
    return torch.stack((angles.cos(), angles.sin()), 1)


def icosahedron() -> torch.Tensor:
    """The six diagonals of the icosahedron: equiangular lines in ℝ³, c² = 1/5, and a projective 4-design."""
    phi = (1 + math.sqrt(5)) / 2
    rows = [(0, 1, phi), (0, 1, -phi), (1, phi, 0), (1, -phi, 0), (phi, 0, 1), (-phi, 0, 1)]
    return torch.tensor(rows, dtype=D) / math.sqrt(1 + phi**2)


def orthoplex(d: int) -> torch.Tensor:
    """±eᵢ, 2d unit vectors."""
    return torch.cat((torch.eye(d, dtype=D), -torch.eye(d, dtype=D)))


def unbiased_bases() -> torch.Tensor:
    """The 24-cell's 12 diagonals: three mutually unbiased orthonormal bases of ℝ⁴."""
    signs = torch.tensor(list(itertools.product((1, -1), repeat=3)), dtype=D)
    return torch.cat((torch.eye(4, dtype=D), torch.cat((torch.ones(8, 1, dtype=D), signs), 1) / 2))
