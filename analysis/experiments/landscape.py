"""Landscapes of energies over n points on the unit sphere: minima from many starts at once, Hessians, saddles.

An energy (see `energies`) maps points (..., n, d) to values (...), so that the restarts are one more batch dimension.
Nothing here knows the predictions of `theory`.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn.functional import normalize, pad

from simdino.losses import simdinov2_loss

from .energies import Energy, coding_rate_energy


class Minimum(NamedTuple):
    """What `minimize` found: the best configuration, and where each restart ended."""

    z: Float[Tensor, "n d"]  # the best of the points
    energies: Float[Tensor, " restarts"]
    gradient_norms: Float[Tensor, " restarts"]
    iterations: Int[Tensor, " restarts"]
    points: Float[Tensor, "restarts n d"]


class Saddle(NamedTuple):
    """A critical point, and the unit tangent vector along which it is left."""

    z: Float[Tensor, "n d"]
    direction: Float[Tensor, "n d"]


def random_points(n: int, d: int, *, restarts: int = 1, seed: int = 0) -> Float[Tensor, "restarts n d"]:
    """Independent uniform unit vectors in float64, the same for a seed on every machine.

    Raises:
        ValueError: for n, d or restarts below 1.

    >>> random_points(5, 3, restarts=2).shape
    torch.Size([2, 5, 3])
    """
    if min(n, d, restarts) < 1:
        raise ValueError(f"n, d and restarts must be at least 1, got {n}, {d} and {restarts}")
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(restarts, n, d, generator=generator, dtype=torch.float64), dim=-1)


def _value_and_gradient(
    energy: Energy, x: Float[Tensor, "r n d"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, "r n d"]]:
    """The energy of each configuration, and its Riemannian gradient."""
    x = x.detach().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), _tangent(gradient, x.detach())


def _tangent(v: Float[Tensor, "r n d"], x: Float[Tensor, "r n d"]) -> Float[Tensor, "r n d"]:
    """v without its parts along the unit vectors x."""
    return torch.addcmul(v, (v * x).sum(-1, keepdim=True), x, value=-1)


def minimize(
    energy: Energy,
    n: int,
    d: int,
    *,
    restarts: int = 1,
    seed: int = 0,
    tol: int | float = 1e-12,
    max_iter: int = 2000,
    block: int | None = None,
    device: str = "cpu",
) -> Minimum:
    """Minimize an energy over n unit vectors in d dimensions from random starts, all of them in one call.

    Riemannian L-BFGS on the product of spheres: the retraction normalizes, and the history is kept in the ambient
    space. Each restart has its own curvature, line search and end, which does not depend on the others.

    Args:
        energy: what is minimized, of points (..., n, d).
        n: points.
        d: their dimension.
        restarts: how many `random_points` to start from.
        seed: of the starts.
        tol: the norm of the Riemannian gradient at which a restart has arrived; it also ends where no step lowers its
            energy any more.
        max_iter: the largest number of iterations.
        block: how many restarts advance together; None takes as many as stay in cache on a CPU (half a megabyte of
            points), and all of them on a GPU.
        device: "cpu" or "cuda".

    >>> found = minimize(coding_rate_energy(1.0), 8, 2)
    >>> round(found.energies.item(), 4)  # a tight frame, at -log 2
    -0.6931
    """
    starts = random_points(n, d, restarts=restarts, seed=seed).to(device)
    block = block or (max(1, 2**16 // (n * d)) if starts.device.type == "cpu" else restarts)
    parts = [_lbfgs(energy, x, tol, max_iter) for x in starts.split(block)]
    points, energies, norms, iterations = (torch.cat(part) for part in zip(*parts, strict=True))
    return Minimum(points[energies.argmin()], energies, norms, iterations, points)


# Why not a library: pymanopt optimizes one point at a time, geoopt has no L-BFGS (and its line search is shared by
# all points of a tensor), and torch.optim.LBFGS sees one flat vector, so restarts would share curvature and step.
def _lbfgs(
    energy: Energy, x: Float[Tensor, "r n d"], tol: int | float, max_iter: int, memory: int = 4
) -> tuple[Float[Tensor, "r n d"], Float[Tensor, " r"], Float[Tensor, " r"], Int[Tensor, " r"]]:
    """Batched L-BFGS from x: the points where each restart ends, their energies, gradient norms and iterations.

    The bank holds `memory` steps s, as many changes y of the gradient, and the gradient. It is read twice in an
    iteration, to multiply it with the gradient and to combine it into the next direction. Products with y are
    differences of products with gradients (Byrd, Nocedal and Schnabel 1994, section 3.2).
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


def _weights(
    sg: Float[Tensor, "r k 1"], yg: Float[Tensor, "r k 1"], sy: Float[Tensor, "r k k"], yy: Float[Tensor, "r k k"]
) -> Float[Tensor, "r 2*k+1"]:
    """-H g with the inverse Hessian estimate H in compact form (ibid., eq. 3.1), as weights of all s, all y and g."""
    curvature = sy.diagonal(dim1=1, dim2=2)
    scale = (curvature[:, -1] / yy[:, -1, -1]).nan_to_num(1.0)[:, None, None]
    upper = sy + torch.diag_embed((curvature == 0).to(sy))
    u = torch.linalg.solve_triangular(upper, sg, upper=True)
    v = torch.linalg.solve_triangular(upper.mT, curvature[..., None] * u + scale * (yy @ u - yg), upper=False)
    return torch.cat([-v, scale * u, -scale], dim=1)[:, :, 0]


def _line_search(
    energy: Energy,
    x: Float[Tensor, "r n d"],
    f: Float[Tensor, " r"],
    p: Float[Tensor, "r n d"],
    slope: Float[Tensor, " r"],
    step: Float[Tensor, " r"],
    halvings: int = 40,
) -> tuple[Float[Tensor, "r n d"], Float[Tensor, " r"], Float[Tensor, "r n d"], Bool[Tensor, " r"]]:
    """Halve the step of each restart until Armijo's test holds, or near rounding the approximate Wolfe test.

    Returns the points, their energies and gradients, and whether a step was found.

    Source: Hager and Zhang 2005, for the approximate Wolfe test.
    """

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


def _hessian(
    energy: Energy, z: Float[Tensor, "n d"], v: Float[Tensor, "k n*(d-1)"] | None = None
) -> Float[Tensor, "k n*(d-1)"]:
    """Products of the Hessian of u -> energy(normalize(z + Bu)) at 0 with v, or all of it (None).

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
    """Eigenvalues of the Riemannian Hessian of an energy at unit vectors, ascending.

    They are exact, those of the Hessian in a chart whose retraction, normalizing, is of second order.

    Args:
        z: (n, d) the unit vectors.
        k: only the k smallest, by Lanczos, for n(d-1) that are too many for a dense matrix; None gives all n(d-1).

    >>> round(hessian_spectrum(coding_rate_energy(1.0), torch.eye(2)).max().item(), 4)  # α = n = 2: 2 (2/4)²
    0.5
    """
    if k is None:
        return torch.linalg.eigvalsh(_hessian(energy, z)).cpu().numpy()

    def product(v):
        return _hessian(energy, z, torch.as_tensor(v.reshape(1, -1)).to(z))[0].cpu().numpy()

    size = z.numel() - len(z)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    return np.sort(eigsh(operator, k=k, which="SA", return_eigenvectors=False))


class CurvatureSplit(NamedTuple):
    """Mean curvatures of an energy, along the directions in which another one is flat and along all others."""

    flat: float
    curved: float


def curvature_split(
    energy: Energy, z: Float[Tensor, "n d"], *, reference: Energy, tol: int | float = 1e-8
) -> CurvatureSplit:
    """Mean curvature of an energy at z along the directions in which `reference` is flat, and along all others.

    These are means of vᵀHv over orthonormal bases of the null space of the reference's Riemannian Hessian, and of its
    complement; nan where one of the two is empty.

    Args:
        z: (n, d) unit vectors.
        tol: an eigenvalue of the reference counts as zero for |λ| ≤ tol · max|λ|.

    >>> rate = coding_rate_energy(1.0)
    >>> round(curvature_split(rate, harmonic_frame(3, 2), reference=rate).curved, 4)  # E2: the trace 1/3, shared by two
    0.1667
    """
    values, vectors = torch.linalg.eigh(_hessian(reference, z))
    curvature = torch.linalg.vecdot(vectors, _hessian(energy, z) @ vectors, dim=0)
    flat = values.abs() <= tol * values.abs().max()
    return CurvatureSplit(curvature[flat].mean().item(), curvature[~flat].mean().item())


def batch_descent(
    n: int,
    d: int,
    *,
    batch: int,
    eps: int | float,
    epochs: int,
    lr: int | float = 0.02,
    restarts: int = 1,
    seed: int = 0,
) -> Float[Tensor, "restarts n d"]:
    """Points after stochastic gradient ascent on the rate of random batches, from random starts.

    z ← normalize(z + η b ∇R)

    Each of the epochs · n/batch steps takes one batch of b distinct points, and η falls linearly from lr to 0. So a
    point takes steps of the same length, and is visited as often, for every batch size.

    Args:
        n: points.
        d: their dimension.
        batch: b, points in a batch.
        eps: ε of the rate.
        epochs: how often each point is visited.
        lr: η at the start.
        restarts: how many `random_points` to start from.
        seed: of the starts and of the batches.

    >>> points = batch_descent(6, 2, batch=6, eps=1.0, epochs=400, lr=0.1)
    >>> round(-coding_rate_energy(1.0)(points).item(), 3)  # close to a tight frame, at log 2
    0.693
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


def mixture_rates(
    z: Float[Tensor, "k d"], laws: Float[np.ndarray, "m k"], *, batch: int, eps: int | float
) -> Float[np.ndarray, " m"]:
    """The mean coding rates of batches of independent draws from laws on the same points, over all k^batch batches.

    Args:
        z: (k, d) unit vectors.
        laws: (m, k) their probabilities, a law in each row.
        batch: the size of the batches, which may have a point more than once.
        eps: ε of the rate.

    >>> law = np.array([[0.5, 0.5]])  # the same point twice: ½ log 3; two orthogonal ones: log 2
    >>> mixture_rates(torch.eye(2), law, batch=2, eps=1.0).round(4).tolist() == [round(np.log(12) / 4, 4)]
    True
    """
    batches = torch.cartesian_prod(*[torch.arange(len(z))] * batch)  # (k^b, b)
    rates = -coding_rate_energy(eps)(z[batches]).cpu().numpy().reshape([len(z)] * batch)
    means = []
    for law in laws:
        mean = rates
        for _ in range(batch):
            mean = mean @ law
        means.append(float(mean))
    return np.array(means)


def nullity(eigenvalues: Float[np.ndarray, " k"], *, tol: int | float = 1e-8) -> int:
    """The number of eigenvalues that are zero up to rounding, |λ| ≤ tol · max|λ|.

    >>> nullity(np.array([0.0, 1e-12, 2.0]))
    2
    """
    magnitude = np.abs(eigenvalues)
    return int((magnitude <= tol * magnitude.max(initial=0.0)).sum())


def harmonic_frame(n: int, d: int) -> Float[Tensor, "n d"]:
    """A unit-norm tight frame of n ≥ d points in d dimensions: cosines and sines of the frequencies 1, 2, ..., d/2.

    Row j is √(2/d) (cos(2πjk/n), sin(2πjk/n)) over the frequencies k, and one more constant 1/√d if d is odd. For n = d
    it is the identity.

    Raises:
        ValueError: for n < d.

    >>> z = harmonic_frame(3, 2)
    >>> torch.allclose(z.mT @ z, 1.5 * torch.eye(2, dtype=torch.float64))  # n/d
    True
    """
    if n < d:
        raise ValueError(f"a tight frame needs n >= d points, got n={n}, d={d}")
    if n == d:
        return torch.eye(n, dtype=torch.float64)
    angle = 2 * math.pi / n * torch.outer(torch.arange(n), torch.arange(1, d // 2 + 1)).double()  # (n, d // 2)
    constant = torch.full((n, d % 2), math.sqrt(0.5), dtype=torch.float64)
    return math.sqrt(2 / d) * torch.cat([angle.cos(), angle.sin(), constant], dim=1)


def orthonormal_sets(m: int, directions: Float[Tensor, "c d"]) -> Float[Tensor, "c m d"]:
    """For each of c unit vectors m ≤ d orthonormal ones whose mean points along it.

    They are the first m axes, reflected.

    Args:
        directions: (c, d) the unit vectors.

    Raises:
        ValueError: for m > d.

    >>> pair = orthonormal_sets(2, torch.eye(3)[:1])[0]
    >>> torch.allclose(pair.sum(0) / math.sqrt(2), torch.eye(3)[0], atol=1e-6)
    True
    """
    d = directions.shape[1]
    if m > d:
        raise ValueError(f"at most d = {d} vectors are orthonormal, got m = {m}")
    axes = torch.eye(d, dtype=directions.dtype, device=directions.device)
    mean = axes[:m].sum(0) / math.sqrt(m)
    sign = torch.where(directions @ mean < 0, 1.0, -1.0)[:, None].to(axes)  # the better conditioned of two reflections
    normal = normalize(mean - sign * directions, dim=1)
    return sign[:, None] * (axes[:m] - 2 * normal[:, :m, None] * normal[:, None])


def patch_collapse_path(
    t: Float[np.ndarray, " steps"],
    *,
    n: int,
    d: int,
    m: int,
    eps: int | float,
    gamma: int | float,
    patch_gamma: int | float,
) -> Float[np.ndarray, " steps"]:
    """The loss of SimDINOv2 on a path of networks whose patches collapse, and which are optimal in all else.

    In two views of n images the features of the images are orthonormal throughout. Each crop has m masked tokens, which
    are orthonormal at t = 0, their means a tight frame, and which all lie on one point at t = 1. Teacher and student
    agree.

    Args:
        t: (steps,) places on the path, from 0 to 1.
        n: images in a view, at most d.
        patch_gamma: the weight of the rates of the patches.

    >>> options = {"n": 3, "d": 3, "m": 2, "eps": 0.5, "gamma": 0.1}
    >>> blind = patch_collapse_path(np.array([0.0, 1.0]), patch_gamma=0.0, **options)
    >>> seeing = patch_collapse_path(np.array([0.0, 1.0]), patch_gamma=0.1, **options)
    >>> bool(abs(blind[1] - blind[0]) < 1e-6), bool(seeing[1] > seeing[0] + 0.1)
    (True, True)
    """
    tokens, eye = orthonormal_sets(m, harmonic_frame(2 * n, d)).flatten(0, 1), torch.eye(d, dtype=torch.float64)
    weights, views = torch.full((2 * n * m,), 1 / (2 * n * m), dtype=torch.float64), eye[:n].expand(2, n, d)
    moved = [normalize((1 - s) * tokens + s * eye[-1:], dim=1) for s in t]
    options = {"eps": eps, "gamma": gamma, "patch_gamma": patch_gamma}
    return np.array([simdinov2_loss(views, views, z, z, weights, **options)[0].item() for z in moved])


def saddle(n1: int, d1: int, n2: int, d2: int) -> Saddle:
    """A critical point of every rate that is not optimal: tight frames of n1 and n2 points in orthogonal subspaces.

    The direction moves the first group, whose rows are linearly dependent, into the second subspace: vᵢ = aᵢe with
    Σ aᵢzᵢ = 0 and ‖a‖ = 1. The rate ascends along it if the first group is the denser one, n1/d1 > n2/d2.

    Args:
        n1, d1: points and dimensions of the first group.
        n2, d2: points and dimensions of the second group.

    Raises:
        ValueError: for n1 ≤ d1, or n2 < d2.

    >>> z, direction = saddle(2, 1, 1, 1)  # one point twice, and one orthogonal to it
    >>> z.round(decimals=6).tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    >>> round(2 * direction[0, 1].item() * direction[1, 1].item(), 6)  # the twins part: ±1/√2
    -1.0
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
    """Configurations along great circles, one for each t.

    zᵢ cos(t‖vᵢ‖) + vᵢ sin(t‖vᵢ‖)/‖vᵢ‖

    Args:
        z: (n, d) unit vectors.
        direction: (n, d) a tangent vector v.
        t: (steps,) how far to go.

    >>> x, y = torch.eye(2).split(1)
    >>> torch.allclose(geodesic(x, y, t=torch.tensor([math.pi / 2])), y, atol=1e-6)
    True
    """
    angle = t[:, None, None] * direction.norm(dim=-1, keepdim=True)
    return z * angle.cos() + t[:, None, None] * direction * torch.sinc(angle / math.pi)


def rate_maxima(grid: list[tuple[int, int, int | float]], *, restarts: int = 20, seed: int = 0) -> pd.DataFrame:
    """The largest coding rates found from random starts, for each n, d and ε.

    Args:
        grid: the triples (n, d, ε).

    Returns:
        a row for each triple: n, d, eps, the rates (in nats) of the best and the worst restart, and the largest
        gradient_norm of the restarts.

    >>> round(rate_maxima([(8, 2, 1.0)], restarts=2)["worst"].item(), 4)  # log 2
    0.6931
    """
    rows = []
    for n, d, eps in grid:
        found = minimize(coding_rate_energy(eps), n, d, restarts=restarts, seed=seed)
        best, worst = -found.energies.min().item(), -found.energies.max().item()
        rows.append((n, d, eps, best, worst, found.gradient_norms.max().item()))
    return pd.DataFrame(rows, columns=["n", "d", "eps", "best", "worst", "gradient_norm"])


def optimum_spectra(
    pairs: list[tuple[int, int]], *, eps: int | float = 0.5, seed: int = 0
) -> dict[tuple[int, int], Float[np.ndarray, " k"]]:
    """Eigenvalues of the Riemannian Hessian of the coding rate at a maximum that was found from one random start.

    Args:
        pairs: the (n, d) to solve.

    Returns:
        for each (n, d) its n(d-1) eigenvalues in nats, ascending.

    >>> round(optimum_spectra([(3, 2)], eps=1.0)[3, 2].sum().item(), 4)  # E2: -⅓ (2/2)²
    -0.3333
    """
    energy = coding_rate_energy(eps)
    return {(n, d): -hessian_spectrum(energy, minimize(energy, n, d, seed=seed).z)[::-1] for n, d in pairs}
