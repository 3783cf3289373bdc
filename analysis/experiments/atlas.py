"""The atlas of proposition C3: the minima of neighboring losses, from the same starts, under the same measures."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

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


def geometry(z: Float[Tensor, "n d"]) -> dict[str, float]:
    """Second order, higher even orders and distances of n unit vectors, each by one or two numbers.

    weakest, strongest: extreme eigenvalues of dΓ, 1 for tight frames. coherence: the largest |cosine|. order 4, order
    6: even frame potentials between 0, a projective design, and 1, the mean of random points. nearest: the smallest
    distance of two points. mean: the norm of the mean.
    """
    n, d = z.shape
    lam = d * eigenvalues(z, normalize=True)
    random = {order: (1 - sphere_potential(d, order=order)) / (n - 1) for order in (4, 6)}
    values = {
        "weakest": lam[-1],
        "strongest": lam[0],
        "tightness": tightness(z),
        "coherence": coherence(z, normalize=True),
    }
    values |= {
        f"order {p}": frame_potential_excess(z, order=p, normalize=True) / excess for p, excess in random.items()
    }
    values |= {"nearest": torch.pdist(z).min(), "mean": z.mean(0).norm()}
    return {name: float(value) for name, value in values.items()}


def free_directions(energy: Energy, z: Float[Tensor, "n d"], *, step: float = 1e-5) -> float:
    """Nullity of the Riemannian Hessian at a minimum, rotations included; nan where the energy has a kink.

    By differences of gradients: the second derivative of singular values (MMCR) divides by their gaps, which are zero
    at a tight frame. A kink is a minimum where the gradient is not zero (over 1e-4): KoLeo's, where several neighbors
    are nearest.
    """
    n, d = z.shape
    basis = torch.linalg.svd(z.unsqueeze(-2)).Vh[:, 1:, :]  # (n, d-1, d)
    u = step * torch.eye(n * (d - 1), dtype=z.dtype).unflatten(1, (n, d - 1))
    u = torch.cat([u, -u, torch.zeros_like(u[:1])]).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(normalize(z + torch.einsum("bnk,nkd->bnd", u, basis), dim=-1)).sum(), u)
    plus, minus, (here,) = gradient.flatten(1).split([n * (d - 1), n * (d - 1), 1])
    hessian = (plus - minus) / (2 * step)
    if here.norm() > 1e-4:
        return float("nan")
    return float(nullity(torch.linalg.eigvalsh((hessian + hessian.mT) / 2).numpy(), tol=1e-6))


def compare_optima(
    n: int, d: int, *, restarts: int = 20, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, Float[Tensor, "n d"]]]:
    """The best minimum of each energy among `restarts` common starts: a row of numbers, and the points.

    Columns: `geometry`, then energy, reached (the share of restarts that end within 1e-8 of the best) and free
    (`free_directions`). The last row, "random points", is the mean geometry of the starts.
    """
    rows, points = {}, {}
    for name, energy in ENERGIES.items():
        found = minimize(energy, n, d, restarts=restarts, seed=seed, tol=1e-10, max_iter=500)
        best = found.energies.min()
        rows[name] = geometry(found.z) | {
            "energy": best.item(),
            "reached": (found.energies < best + 1e-8).double().mean().item(),
            "free": free_directions(energy, found.z),
        }
        points[name] = found.z
    starts = random_points(n, d, restarts=restarts, seed=seed)
    rows["random points"] = pd.DataFrame([geometry(z) for z in starts]).mean().to_dict() | {"energy": np.nan}
    points["random points"] = starts[0]
    return pd.DataFrame.from_dict(rows, orient="index"), points
