"""The atlas of proposition C3: the minima of neighboring losses, from the same starts, under the same measures."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ..measures.frames import coherence, frame_potential_excess, sphere_potential, tightness
from ..measures.spectra import eigenvalues
from . import energies
from .energies import Energy
from .landscape import minimize, nullity, random_points

ATLAS_EPS = 0.5
ENERGIES: dict[str, Energy] = {
    "coding rate": energies.coding_rate_energy(ATLAS_EPS),
    "coding rate, centered": energies.coding_rate_energy(ATLAS_EPS, center=True),
    "frame potential": energies.frame_potential_energy(),
    "spectral contrastive": energies.spectral_contrastive_energy(),
    "MMCR": energies.mmcr_energy(),
    "VICReg": energies.vicreg_energy(),
    "W-MSE, noisy views": energies.wmse_energy(),
    "Barlow Twins": energies.barlow_twins_energy(),
    "coding rate, batches of 2": energies.coding_rate_energy(ATLAS_EPS, batch=2),
    "uniformity": energies.uniformity_energy(),
    "InfoNCE": energies.infonce_energy(),
    "KoLeo": energies.koleo_energy(),
    "SIGReg": energies.sigreg_energy(),
}


class Geometry(NamedTuple):
    """The second order, the higher even orders and the distances of a configuration of unit vectors."""

    weakest: float  # the smallest eigenvalue of dΓ, 1 for tight frames
    strongest: float  # the largest one
    tightness: float  # of `measures.frames`, 1 for tight frames
    coherence: float  # the largest |cosine|
    order_4: float  # the frame potential, between 0 for a projective design and 1 for the mean of random points
    order_6: float
    nearest: float  # the smallest distance of two points
    mean: float  # the norm of the mean


def geometry(z: Float[Tensor, "n d"]) -> Geometry:
    """Numbers that tell configurations of n unit vectors apart, some of which all second-order losses share.

    >>> square = torch.cat([torch.eye(2), -torch.eye(2)]).double()
    >>> found = geometry(square)
    >>> round(found.tightness, 6), round(found.nearest, 6), round(found.mean, 6)
    (1.0, 1.414214, 0.0)
    """
    n, d = z.shape
    lam = d * eigenvalues(z, normalize=True)

    def above_design(order: int) -> Tensor:
        random = (1 - sphere_potential(d, order=order)) / (n - 1)  # the mean excess of random points
        return frame_potential_excess(z, order=order, normalize=True) / random

    values = (
        lam[-1],
        lam[0],
        tightness(z),
        coherence(z, normalize=True),
        above_design(4),
        above_design(6),
        torch.pdist(z).min(),
        z.mean(0).norm(),
    )
    return Geometry(*map(float, values))


class FourthOrder(NamedTuple):
    """The mean fourth power of the cosines of pairs, of all and split by class."""

    all: float
    same: float  # of pairs of one class
    different: float  # of pairs of two classes
    pairs: float  # the share of all pairs that are of one class
    share: float  # their share of the sum over all pairs
    normal: float  # the mean if the cosines of each two classes were normal with their own mean and variance
    normal_same: float  # the same of pairs of one class


def fourth_order(z: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> FourthOrder:
    """The fourth-order potential of unit vectors, split into pairs of one class and pairs of two.

    mean_{i≠j} c⁴,  c = ⟨zᵢ, zⱼ⟩;  a normal c of mean m and variance v has E c⁴ = m⁴ + 6m²v + 3v²

    Classes of one sample have no pairs of one class.

    Args:
        z: (n, d) unit vectors.
        labels: (n,) their classes.

    >>> found = fourth_order(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    >>> found.same, found.different, round(found.pairs, 4), found.share
    (1.0, 0.0, 0.3333, 1.0)
    """
    member = one_hot(labels.unique(return_inverse=True)[1]).to(z)  # (n, K)
    sums = z.new_zeros(3, member.shape[1], member.shape[1])  # of c, c² and c⁴ over the pairs of each two classes
    for rows, of in zip(z.split(1024), member.split(1024), strict=True):
        c = rows @ z.mT
        sums += torch.stack([of.mT @ c**p @ member for p in (1, 2, 4)])
    count = member.sum(0)
    sums -= count.diag()  # a vector with itself
    pairs = count.outer(count) - count.diag()
    mean, square, fourth = sums / pairs.clamp(min=1)
    variance = square - mean**2
    normal = mean**4 + 6 * mean**2 * variance + 3 * variance**2
    same = torch.eye(len(count), dtype=torch.bool, device=z.device)
    of_all, of_same, of_different = (pairs / pairs.sum(), *(pairs * on / (pairs * on).sum() for on in (same, ~same)))
    values = (
        (of_all * fourth).sum(),
        (of_same * fourth).sum(),
        (of_different * fourth).sum(),
        of_all[same].sum(),
        (pairs * fourth)[same].sum() / (pairs * fourth).sum(),
        (of_all * normal).sum(),
        (of_same * normal).sum(),
    )
    return FourthOrder(*map(float, values))


def free_directions(energy: Energy, z: Float[Tensor, "n d"], *, step: int | float = 1e-5) -> float:
    """The nullity of the Riemannian Hessian of an energy at a minimum, rotations included.

    The Hessian is taken by differences of gradients, since the second derivative of singular values (MMCR) divides by
    their gaps, which are zero at a tight frame.

    Args:
        z: (n, d) the minimum, unit vectors.
        step: of the differences.

    Returns:
        a whole number; nan at a kink, which is a minimum whose gradient is not zero (over 1e-4), as those of KoLeo
        are, where several neighbors are nearest.

    >>> free_directions(ENERGIES["coding rate"], torch.eye(3).double())  # the three rotations of an orthonormal basis
    3.0
    """
    n, d = z.shape
    basis = torch.linalg.svd(z.unsqueeze(-2)).Vh[:, 1:, :]  # (n, d-1, d)
    u = step * torch.eye(n * (d - 1), dtype=z.dtype, device=z.device).unflatten(1, (n, d - 1))
    u = torch.cat([u, -u, torch.zeros_like(u[:1])]).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(normalize(z + torch.einsum("bnk,nkd->bnd", u, basis), dim=-1)).sum(), u)
    plus, minus, (here,) = gradient.flatten(1).split([n * (d - 1), n * (d - 1), 1])
    hessian = (plus - minus) / (2 * step)
    if here.norm() > 1e-4:
        return float("nan")
    return float(nullity(torch.linalg.eigvalsh((hessian + hessian.mT) / 2).cpu().numpy(), tol=1e-6))


class Atlas(NamedTuple):
    """The minima of all energies, by their names: numbers that tell them apart, and the points."""

    table: pd.DataFrame
    points: dict[str, Float[Tensor, "n d"]]


def compare_optima(n: int, d: int, *, restarts: int = 20, seed: int = 0) -> Atlas:
    """The best minimum of each of `ENERGIES` over n unit vectors in d dimensions, from starts that all have in common.

    Args:
        restarts: how many starts.
        seed: of the starts.

    Returns:
        a table with a row for each energy, and the points of its minimum. The columns are the fields of `Geometry`,
        energy, reached (the share of restarts that end within 1e-8 of the best) and free (`free_directions`). The last
        row, "random points", has the mean geometry of the starts, and one of them for its points.
    """
    rows, points = {}, {}
    for name, energy in ENERGIES.items():
        found = minimize(energy, n, d, restarts=restarts, seed=seed, tol=1e-10, max_iter=500)
        best = found.energies.min()
        rows[name] = geometry(found.z)._asdict() | {
            "energy": best.item(),
            "reached": (found.energies < best + 1e-8).double().mean().item(),
            "free": free_directions(energy, found.z),
        }
        points[name] = found.z
    starts = random_points(n, d, restarts=restarts, seed=seed)
    rows["random points"] = pd.DataFrame([geometry(z) for z in starts]).mean().to_dict() | {"energy": np.nan}
    points["random points"] = starts[0]
    return Atlas(pd.DataFrame.from_dict(rows, orient="index"), points)
