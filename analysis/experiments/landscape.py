"""Landscapes of energies over n points on the unit sphere: minima from many starts at once, Hessians, saddles.

An energy (see `energies`) maps points (..., n, d) to values (...), so that restarts are one more batch dimension.
Nothing here knows the predictions of `theory`.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn.functional import normalize, pad

from simdino.losses import simdinov2_loss

from .energies import Energy, coding_rate_energy


class Minimum(NamedTuple):
    """What `minimize` found: the best configuration, then one entry per restart."""

    z: Float[Tensor, "n d"]
    energies: Float[Tensor, " restarts"]
    gradient_norms: Float[Tensor, " restarts"]
    iterations: Int[Tensor, " restarts"]
    points: Float[Tensor, "restarts n d"]


class Saddle(NamedTuple):
    """A critical point and the unit tangent vector along which it is left."""

    z: Float[Tensor, "n d"]
    direction: Float[Tensor, "n d"]


def random_points(n: int, d: int, *, restarts: int = 1, seed: int = 0) -> Float[Tensor, "restarts n d"]:
    """Independent uniform unit vectors (restarts, n, d) in float64, the same for a seed on every machine."""
    if min(n, d, restarts) < 1:
        raise ValueError(f"n, d and restarts must be at least 1, got {n}, {d} and {restarts}")
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(restarts, n, d, generator=generator, dtype=torch.float64), dim=-1)


def _value_and_gradient(energy, x):
    x = x.detach().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), _tangent(gradient, x.detach())


def _tangent(v, x):
    return torch.addcmul(v, (v * x).sum(-1, keepdim=True), x, value=-1)


def minimize(
    energy: Energy,
    n: int,
    d: int,
    *,
    restarts: int = 1,
    seed: int = 0,
    tol: float = 1e-12,
    max_iter: int = 2000,
    block: int | None = None,
    device: str = "cpu",
) -> Minimum:
    """Minimum of an energy over n unit vectors in d dimensions from random starts, all restarts in one call.

    Riemannian L-BFGS on the product of spheres (retraction: normalize; the history is kept in the ambient space),
    each restart with its own curvature, line search and stopping: the norm of its
    Riemannian gradient is at most `tol`, or no step lowers its energy any more. `block` restarts advance together:
    None is as many as stay in cache on a CPU (half a megabyte of points), and all of them on a GPU.
    """
    starts = random_points(n, d, restarts=restarts, seed=seed).to(device)
    block = block or (max(1, 2**16 // (n * d)) if starts.device.type == "cpu" else restarts)
    parts = [_lbfgs(energy, x, tol, max_iter) for x in starts.split(block)]
    points, energies, norms, iterations = (torch.cat(part) for part in zip(*parts, strict=True))
    return Minimum(points[energies.argmin()], energies, norms, iterations, points)


# Why not a library: pymanopt optimizes one point at a time, geoopt has no L-BFGS (and its line search is shared by
# all points of a tensor), and torch.optim.LBFGS sees one flat vector, so restarts would share curvature and step.
def _lbfgs(energy, x, tol, max_iter, memory=4):
    """Batched L-BFGS from x (r, n, d); returns points, energies, gradient norms and iterations, all (r, ...).

    The bank holds `memory` steps s, as many changes y of the gradient, and the gradient: it is read twice an iteration,
    to multiply it with the gradient and to combine it into the next direction. Products with y are differences
    of products with gradients (Byrd, Nocedal and Schnabel 1994, section 3.2).
    """
    f, g = _value_and_gradient(energy, x)
    norm, alive = g.flatten(1).norm(dim=1), torch.arange(len(x), device=x.device)
    out = x.clone(), f.clone(), norm.clone(), torch.zeros_like(alive)
    bank = x.new_zeros(len(x), 2 * memory + 1, *x.shape[1:])
    inner = x.new_zeros(len(x), 2, memory, memory)  # ⟨s_i, y_j⟩ for i ≤ j and ⟨y_i, y_j⟩, oldest first; zeros: no pair
    seen = x.new_zeros(len(x), 2, memory)  # ⟨s_i, g⟩ and ⟨y_i, g⟩ of the last gradient
    slots = torch.arange(memory, device=x.device)
    order = (slots + slots[:, None] + 1) % memory  # of the slots, oldest first, by the newest
    oldest_first = torch.cat([order, memory + order], dim=1)
    as_stored = torch.cat([oldest_first, torch.full_like(order[:, :1], 2 * memory)], dim=1).argsort()
    p, slope, step = -g, -norm.square(), 1 / norm.clamp(min=1.0)
    for iteration in range(1, max_iter + 1):
        x_new, f, g_new, moved = _line_search(energy, x, f, p, slope, step)
        slot = iteration % memory
        torch.sub(x_new, x, out=bank[:, slot])
        torch.sub(g_new, g, out=bank[:, memory + slot])
        bank[:, -1], x, g = g_new, x_new, g_new
        products = (g.flatten(1)[:, None] @ bank.flatten(2).mT)[:, 0]  # (r, 2 memory + 1)
        norm = products[:, -1].sqrt()
        keep = (norm > tol) & moved & (iteration < max_iter)
        if not keep.all():
            for target, value in zip(out, (x, f, norm, torch.full_like(alive, iteration)), strict=True):
                target[alive] = value
            if not keep.any():
                break
            state = alive, x, f, g, bank, inner, seen, products
            alive, x, f, g, bank, inner, seen, products = (value[keep] for value in state)
        pair = bank[:, slot : 2 * memory : memory]  # (r, 2, n, d), the new s and y
        newest = (pair * pair[:, 1:]).sum((2, 3))  # ⟨s, y⟩ and ⟨y, y⟩
        curved = newest[:, 0] > 1e-16 * newest[:, 1]
        if not curved.all():
            pair *= curved[:, None, None, None]
            products[:, slot : 2 * memory : memory] *= curved[:, None]
        now = products[:, oldest_first[slot]].view_as(seen)
        change, seen = now - pad(seen[:, :, 1:], (0, 1)), now
        change[:, :, -1] = newest
        inner = pad(inner[:, :, 1:, 1:], (0, 1, 0, 1))
        inner[..., -1] = change * curved[:, None, None]
        inner[:, 1, -1] = inner[:, 1, :, -1]
        weights = _weights(*now.unsqueeze(-1).unbind(1), *inner.unbind(1))[:, as_stored[slot]]
        p = (weights[:, None] @ bank.flatten(2)).view_as(g)  # its radial part is lost in the retraction
        slope = torch.linalg.vecdot(weights, products)
        uphill = slope >= 0
        if uphill.any():
            p, slope = torch.where(uphill[:, None, None], -g, p), torch.where(uphill, -products[:, -1], slope)
        step = torch.ones_like(f)
    return out


def _weights(sg, yg, sy, yy):
    """-H g with the inverse Hessian estimate H in compact form (ibid., eq. 3.1), as weights of all s, all y and g."""
    curvature = sy.diagonal(dim1=1, dim2=2)
    scale = (curvature[:, -1] / yy[:, -1, -1]).nan_to_num(1.0)[:, None, None]
    upper = sy + torch.diag_embed((curvature == 0).to(sy))
    u = torch.linalg.solve_triangular(upper, sg, upper=True)
    v = torch.linalg.solve_triangular(upper.mT, curvature[..., None] * u + scale * (yy @ u - yg), upper=False)
    return torch.cat([-v, scale * u, -scale], dim=1)[:, :, 0]


def _line_search(energy, x, f, p, slope, step, halvings=40):
    """Backtracking, each restart on its own: Armijo, or near rounding the approximate Wolfe test of Hager and Zhang."""

    def trial(i, step):
        point = torch.addcmul(x[i], step[:, None, None], p[i])
        point /= point.norm(dim=-1, keepdim=True)
        value, gradient = _value_and_gradient(energy, point)
        low = value <= f[i] + 1e-4 * step * slope[i]
        if not low.all():
            flat = value <= f[i] + 1e-14 * (1 + f[i].abs())
            low |= flat & ((gradient * p[i]).sum((1, 2)) <= -0.9 * slope[i])
        return point, value, gradient, low

    x_new, f_new, g_new, done = trial(slice(None), step)
    for _ in range(halvings):
        if done.all():
            break
        todo = (~done).nonzero()[:, 0]
        step[todo] *= 0.5
        x_new[todo], f_new[todo], g_new[todo], done[todo] = trial(todo, step[todo])
    return x_new, f_new, g_new, done


def _hessian(energy, z, v=None):
    """Products of the Hessian of u -> energy(normalize(z + Bu)) at 0 with v (k, n(d-1)), or all of it (None).

    B is an orthonormal basis of the tangent space. Each product is one more entry of the energy's batch dimension.
    """
    n, d = z.shape
    basis = torch.linalg.svd(z.unsqueeze(-2)).Vh[:, 1:, :]  # (n, d-1, d), rows orthonormal and orthogonal to z_i
    v = torch.eye(n * (d - 1), dtype=z.dtype, device=z.device) if v is None else v
    u = torch.zeros_like(v, requires_grad=True)
    moved = z + torch.einsum("knc,ncd->knd", u.unflatten(1, (n, d - 1)), basis)
    (gradient,) = torch.autograd.grad(energy(normalize(moved, dim=-1)).sum(), u, create_graph=True)
    return torch.autograd.grad((gradient * v).sum(), u)[0]


def hessian_spectrum(energy: Energy, z: Float[Tensor, "n d"], *, k: int | None = None) -> Float[np.ndarray, " k"]:
    """Eigenvalues, ascending, of the Riemannian Hessian of an energy at unit vectors z (n, d), all n(d-1) of them.

    Exact: the Hessian in a chart whose retraction, normalizing, is of second order. With k only the k smallest, by
    Lanczos, when n(d-1) is too large for a dense matrix.
    """
    if k is None:
        return torch.linalg.eigvalsh(_hessian(energy, z)).cpu().numpy()

    def product(v):
        return _hessian(energy, z, torch.as_tensor(v.reshape(1, -1)).to(z))[0].cpu().numpy()

    size = z.numel() - len(z)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    return np.sort(eigsh(operator, k=k, which="SA", return_eigenvectors=False))


def curvature_split(
    energy: Energy, z: Float[Tensor, "n d"], *, reference: Energy, tol: float = 1e-8
) -> tuple[float, float]:
    """Mean curvature of an energy at z along the directions in which `reference` is flat, and along all others.

    Means of vᵀHv over orthonormal bases of the null space (|λ| ≤ tol · max|λ|) of the reference's Riemannian Hessian
    and of its complement. nan where one of the two is empty.
    """
    values, vectors = torch.linalg.eigh(_hessian(reference, z))
    curvature = torch.linalg.vecdot(vectors, _hessian(energy, z) @ vectors, dim=0)
    flat = values.abs() <= tol * values.abs().max()
    return curvature[flat].mean().item(), curvature[~flat].mean().item()


def batch_descent(
    n: int, d: int, *, batch: int, eps: float, epochs: int, lr: float = 0.02, restarts: int = 1, seed: int = 0
) -> Float[Tensor, "restarts n d"]:
    """Points after stochastic gradient ascent on the rate of random batches, from random starts.

    One batch of distinct points a step, epochs · n/batch steps, z ← normalize(z + η b ∇R) with η falling linearly from
    lr to 0: per point the same step and the same number of visits for every batch size.
    """
    z, generator = random_points(n, d, restarts=restarts, seed=seed), torch.Generator().manual_seed(seed)
    scale, row = d / (batch * eps**2), torch.arange(restarts)[:, None]
    steps = epochs * n // batch
    for step in range(steps):
        members = torch.rand(restarts, n, generator=generator).argsort(1)[:, :batch]
        x = z[row, members]  # (r, b, d)
        gradient = scale * torch.linalg.solve(torch.eye(batch, dtype=z.dtype) + scale * x @ x.mT, x)
        z[row, members] = normalize(x + lr * (1 - step / steps) * batch * gradient, dim=-1)
    return z


def nullity(eigenvalues: Float[np.ndarray, " k"], *, tol: float = 1e-8) -> int:
    """Number of eigenvalues that are zero, |λ| ≤ tol · max|λ|."""
    magnitude = np.abs(eigenvalues)
    return int((magnitude <= tol * magnitude.max(initial=0.0)).sum())


def harmonic_frame(n: int, d: int) -> Float[Tensor, "n d"]:
    """A unit-norm tight frame of n ≥ d points in d dimensions: cosines and sines of the frequencies 1, 2, ..., d/2.

    Rows (√(2/d) cos(2πjk/n), √(2/d) sin(2πjk/n)), with a constant 1/√d more if d is odd; the identity for n = d.
    """
    if n < d:
        raise ValueError(f"a tight frame needs n >= d points, got n={n}, d={d}")
    if n == d:
        return torch.eye(n, dtype=torch.float64)
    angle = 2 * math.pi / n * torch.outer(torch.arange(n), torch.arange(1, d // 2 + 1)).double()  # (n, d // 2)
    constant = torch.full((n, d % 2), math.sqrt(0.5), dtype=torch.float64)
    return math.sqrt(2 / d) * torch.cat([angle.cos(), angle.sin(), constant], dim=1)


def orthonormal_sets(m: int, directions: Float[Tensor, "c d"]) -> Float[Tensor, "c m d"]:
    """For each of c unit vectors m ≤ d orthonormal ones whose mean is along it: the first m axes, reflected."""
    d = directions.shape[1]
    if m > d:
        raise ValueError(f"at most d = {d} vectors are orthonormal, got m = {m}")
    axes = torch.eye(d, dtype=directions.dtype, device=directions.device)
    mean = axes[:m].sum(0) / math.sqrt(m)
    sign = torch.where(directions @ mean < 0, 1.0, -1.0)[:, None].to(axes)  # the better conditioned of two reflections
    normal = normalize(mean - sign * directions, dim=1)
    return sign[:, None] * (axes[:m] - 2 * normal[:, :m, None] * normal[:, None])


def patch_collapse_path(
    t: np.ndarray, *, n: int, d: int, m: int, eps: float, gamma: float, patch_gamma: float
) -> np.ndarray:
    """SimDINOv2's loss on a path of networks from spread patches, t = 0, to constant ones, 1; optimal but for those.

    Two views of n images whose features are an orthonormal basis (n = d) throughout; m masked tokens in each crop,
    orthonormal at first, their means a tight frame, which move to one point. Teacher and student agree.
    """
    tokens, eye = orthonormal_sets(m, harmonic_frame(2 * n, d)).flatten(0, 1), torch.eye(d, dtype=torch.float64)
    weights, views = torch.full((2 * n * m,), 1 / (2 * n * m), dtype=torch.float64), eye[:n].expand(2, n, d)
    moved = [normalize((1 - s) * tokens + s * eye[-1:], dim=1) for s in t]
    options = {"eps": eps, "gamma": gamma, "patch_gamma": patch_gamma}
    return np.array([simdinov2_loss(views, views, z, z, weights, **options)[0].item() for z in moved])


def saddle(n1: int, d1: int, n2: int, d2: int) -> Saddle:
    """A critical point of every rate that is not optimal: tight frames of n1 and n2 points in orthogonal subspaces.

    The direction moves the first group, whose rows are linearly dependent (n1 > d1), into the second subspace:
    v_i = a_i e, Σ a_i z_i = 0, ‖a‖ = 1. The rate ascends along it if the first group is the denser, n1/d1 > n2/d2.
    """
    if n1 <= d1:
        raise ValueError(f"the first group must be linearly dependent, n1 > d1, got n1={n1}, d1={d1}")
    first, second = harmonic_frame(n1, d1), harmonic_frame(n2, d2)
    z = torch.block_diag(first, second)
    direction = torch.zeros_like(z)
    direction[:n1, d1] = torch.linalg.svd(first).U[:, -1]
    return Saddle(z, direction)


def geodesic(
    z: Float[Tensor, "n d"], direction: Float[Tensor, "n d"], *, t: Float[Tensor, " steps"]
) -> Float[Tensor, "steps n d"]:
    """Points along great circles: z_i cos(t‖v_i‖) + v_i sin(t‖v_i‖)/‖v_i‖ for a tangent direction v, one per t."""
    angle = t[:, None, None] * direction.norm(dim=-1, keepdim=True)
    return z * angle.cos() + t[:, None, None] * direction * torch.sinc(angle / math.pi)


def rate_maxima(grid: list[tuple[int, int, float]], *, restarts: int = 20, seed: int = 0) -> pd.DataFrame:
    """Largest coding rates found for (n, d, ε) triples: n, d, eps, best and worst restart, largest gradient_norm."""
    rows = []
    for n, d, eps in grid:
        found = minimize(coding_rate_energy(eps), n, d, restarts=restarts, seed=seed)
        best, worst = -found.energies.min().item(), -found.energies.max().item()
        rows.append((n, d, eps, best, worst, found.gradient_norms.max().item()))
    return pd.DataFrame(rows, columns=["n", "d", "eps", "best", "worst", "gradient_norm"])


def optimum_spectra(
    pairs: list[tuple[int, int]], *, eps: float = 0.5, seed: int = 0
) -> dict[tuple[int, int], Float[np.ndarray, " k"]]:
    """Eigenvalues of the Hessian of the coding rate (ascending) at a maximum found from one start, per (n, d)."""
    energy = coding_rate_energy(eps)
    return {(n, d): -hessian_spectrum(energy, minimize(energy, n, d, seed=seed).z)[::-1] for n, d in pairs}
