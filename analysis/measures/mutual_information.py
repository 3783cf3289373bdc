"""What one view of a sample tells about another: a bound on their mutual information, and a substitute for it, in nats.

x and y are features (n, d) of two views of the same n samples, row by row; or x alone holds views (v, n, d), and values
are averaged over their pairs. Results are 0-d float64 tensors and carry gradients.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simdino.losses import check_numbers

from .inputs import Array, paired_views, require_unit_rows
from .pair_tiles import PAIR_TILE, inner_products, squared_distances
from .spectra import renyi_entropy

KERNEL_ROUNDING = 1e-8  # of a kernel's eigenvalues, as a share of the largest


def infonce_bound(x: Array, y: Array | None = None, *, temp: int | float, normalize: bool = False) -> Float[Tensor, ""]:
    """InfoNCE's lower bound, in nats, of the mutual information of two views.

    log n − L,  L = −mean_i log(exp(⟨xᵢ, yᵢ⟩/τ)/Σⱼ exp(⟨xᵢ, yⱼ⟩/τ)), averaged with the same for x and y exchanged.

    Higher is more shared information. It is at most log n, which is all that n samples can show, however much there is.
    It is 0 in total collapse, and below 0 for views that have nothing in common. The critic ⟨x, y⟩/τ gives a bound for
    any τ, and the best τ the tightest. All pairs are visited, in tiles.

    Args:
        x: (n, d) features on the unit sphere, n ≥ 2, or (v, n, d) views of the same samples if y is left out.
        y: (n, d) features of another view, row by row.
        temp: the temperature τ that divides the inner products.
        normalize: puts the rows on the unit sphere first.

    Raises:
        ValueError: τ ≤ 0, one row, rows off the sphere, views of different samples, NaN.

    Source: van den Oord et al. 2018 (arXiv 1807.03748) eq. 4-5; Poole et al. 2019 (arXiv 1905.06922).

    >>> z = torch.eye(8)
    >>> round(infonce_bound(z, z, temp=0.02).item(), 6)  # log 8, all that eight samples can show
    2.079442
    """
    check_numbers(temp=temp)
    views = _views(x, y, normalize)
    require_unit_rows(views, "x or y" if y is not None else "views")
    values = []
    for a, b in torch.combinations(torch.arange(len(views))).tolist():
        own = (views[a] * views[b]).sum(1).mean() / temp
        values.append(math.log(views.shape[1]) + own - sum(_log_sums(views[a], views[b], temp)) / 2)
    return torch.stack(values).mean()


def dime(
    x: Array,
    y: Array | None = None,
    *,
    order: int | float = 1,
    bandwidth: int | float | None = None,
    permutations: int = 10,
    seed: int = 0,
    normalize: bool = False,
) -> Float[Tensor, ""]:
    """DiME: what knowing which rows belong together takes away from the joint matrix entropy of two views, in nats.

    E_Π S_a(K_x ∘ ΠK_yΠᵀ/n) − S_a(K_x ∘ K_y/n),  S_a the Rényi entropy of order a, Π random permutations.

    Higher is more shared information. It is 0 in expectation for independent views, 0 in total collapse, and about
    log K for views that agree on which of K orthogonal directions a sample has. It is 0 again where all rows are
    orthogonal, or σ is so small that they are: the number of samples bounds it as in `infonce_bound`, but here it says
    so by falling. It costs (permutations + 1) decompositions of (n, n) matrices: take a few thousand rows.

    Args:
        x: (n, d) features, n ≥ 2, or (v, n, d) views of the same samples if y is left out.
        y: (n, d) features of another view, row by row.
        order: a.
        bandwidth: σ of Gaussian kernels exp(−‖zᵢ − zⱼ‖²/(2σ²)); None takes cosines, of rows on the unit sphere or with
            normalize=True.
        permutations: how many of them the expectation is a mean of.
        seed: of the permutations.
        normalize: puts the rows on the unit sphere first.

    Raises:
        ValueError: σ ≤ 0, order < 0, no permutation, one row, rows off the sphere if there is no bandwidth, views of
            different samples, NaN.

    Source: Skean et al. 2023 (arXiv 2301.08164), there with Gaussian kernels and a = 1.01.

    >>> classes = torch.eye(4).repeat(32, 1)  # both views know which of four directions a sample has
    >>> abs(dime(classes, classes).item() - math.log(4)) < 0.1
    True
    """
    check_numbers(order=order, permutations=permutations, **({} if bandwidth is None else {"bandwidth": bandwidth}))
    views = _views(x, y, normalize)
    if bandwidth is None:
        require_unit_rows(views, "x or y" if y is not None else "views")
        kernels = [inner_products(z, z) for z in views]
    else:
        kernels = [
            (-squared_distances(c, c) / (2 * float(bandwidth) ** 2)).exp() for c in views - views.mean(1, keepdim=True)
        ]
    n, generator = views.shape[1], torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator).to(views.device) for _ in range(permutations)]

    def entropy(joint: Tensor) -> Tensor:
        lam = torch.linalg.eigvalsh(joint / n)
        return renyi_entropy(torch.where(lam > KERNEL_ROUNDING * lam[-1].detach(), lam, 0.0), order=order)

    values = []
    for a, b in torch.combinations(torch.arange(len(views))).tolist():
        apart = torch.stack([entropy(kernels[a] * kernels[b][p][:, p]) for p in orders]).mean()
        values.append(apart - entropy(kernels[a] * kernels[b]))
    return torch.stack(values).mean()


def _views(x: Array, y: Array | None, normalize: bool) -> Float[Tensor, "v n d"]:
    views = paired_views(x, y, normalize=normalize).double()
    if views.shape[1] < 2:
        raise ValueError("mutual information needs at least 2 samples, got 1")
    return views


def _log_sums(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], temp: int | float) -> tuple[Tensor, Tensor]:
    """Means over rows and over columns of log Σ exp(⟨xᵢ, yⱼ⟩/τ), tile by tile; a backward pass computes tiles again."""

    def tile(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        logits = inner_products(a, b) / temp
        return logits.logsumexp(1), logits.logsumexp(0)

    parts = {(i, j): None for i in range(0, len(x), PAIR_TILE) for j in range(0, len(y), PAIR_TILE)}
    for i, j in parts:
        args = x[i : i + PAIR_TILE], y[j : j + PAIR_TILE]
        parts[i, j] = checkpoint(tile, *args, use_reentrant=False) if len(x) > PAIR_TILE else tile(*args)
    starts = range(0, len(x), PAIR_TILE)
    rows = torch.cat([torch.stack([parts[i, j][0] for j in starts]).logsumexp(0) for i in starts])
    columns = torch.cat([torch.stack([parts[i, j][1] for i in starts]).logsumexp(0) for j in starts])
    return rows.mean(), columns.mean()
