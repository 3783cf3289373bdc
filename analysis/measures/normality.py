"""How far features are from a normal distribution, the optimum that some losses aim at.

`sliced_normality` looks at projections on random directions, by a univariate statistic; `bhep` at all of ℝᵈ at once.
Lower is closer to normal. Results are 0-d float64 tensors and carry gradients.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from simdino.losses import check_numbers

from .inputs import Array, as_features, centered
from .pair_tiles import pair_mean, squared_distances

# Trapezoidal rule for the weight exp(−t²/2), t ≤ 7.2: exact to 1e-10 for projections less than 14 apart.
NODES, STEP = 24, 0.3
NormalityStatistic = Literal[
    "epps_pulley", "cramer_von_mises", "watson", "anderson_darling", "jarque_bera", "shapiro_francia"
]


def sliced_normality(
    z: Array, *, statistic: NormalityStatistic = "epps_pulley", directions: int = 256, seed: int = 0
) -> Float[Tensor, ""]:
    """Sliced normality: a univariate statistic of the projections ⟨zᵢ, u⟩, averaged over random unit directions u.

    With φ_n the empirical characteristic function, y₁ ≤ … ≤ y_n the sorted projections and pᵢ = Φ(yᵢ):

    - epps_pulley: n ∫ |φ_n(t) − exp(−t²/2)|² w(t) dt, w the standard normal density. Null value 1 − 1/√3 ≈ 0.423.
      Exact to 10⁻¹⁰ while projections are less than 14 apart; features of a much larger scale read about
      a fifth low, and clusters 2π/0.3 ≈ 21 apart up to half high.
    - cramer_von_mises: W² = 1/(12n) + Σ (pᵢ − (2i − 1)/(2n))². Null value 1/6.
    - watson: U² = W² − n(p̄ − ½)², which forgives a shift. Null value 1/12.
    - anderson_darling: A² = −n − Σ (2i − 1)/n·(log pᵢ + log(1 − p_{n+1−i})), which weighs the tails. Null value 1.
    - jarque_bera: n/6·(skewness² + (kurtosis − 3)²/4). Null value 2, for large n.
    - shapiro_francia: 1 − r², r the correlation of y with the normal quantiles Φ⁻¹((i − ⅜)/(n + ¼)). Its null value
      tends to 0.

    Lower is closer to normal. The null value is the expectation under N(0, I), at any n unless said otherwise. What a
    departure adds grows with n, except for shapiro_francia, which is at most 1. Features are taken as they are. The
    first four statistics compare with N(0, 1), so that unit rows have to be multiplied by √d, and others standardized,
    beforehand; the last two see the shape alone. Features that are all zero have n·(1 − √2 + 1/√3) for epps_pulley. For
    the last two, equal rows are as far from normal as can be, by definition: +∞ and 1.

    Args:
        z: (n, d) features.
        statistic: which of the six.
        directions: the number of random directions.
        seed: of the directions, which depend on seed, directions and d only.

    Raises:
        ValueError: an unknown statistic, no direction, NaN.

    Source: Epps & Pulley 1983; Anderson & Darling 1954; Watson 1961; Jarque & Bera 1980; Shapiro & Francia 1972;
    sliced, as a loss, Balestriero & LeCun 2025 (LeJEPA, arXiv 2511.08544).

    >>> round(sliced_normality(torch.zeros(10, 3)).item(), 6)  # total collapse, 10·(1 − √2 + 1/√3)
    1.631367
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
    check_numbers(directions=directions)
    z = as_features(z).double()
    if statistic in ("jarque_bera", "shapiro_francia"):
        z = z - z[:1].detach()  # of the shape alone; measured from a row, equal rows have projections of exactly zero
    u = torch.randn(z.shape[1], directions, dtype=z.dtype, generator=torch.Generator().manual_seed(seed))
    projected = z @ torch.nn.functional.normalize(u, dim=0).to(z.device)  # (n, directions)
    return STATISTICS[statistic](projected).mean()


def bhep(z: Array, *, beta: int | float | None = None, standardize: bool = True) -> Float[Tensor, ""]:
    """BHEP statistic of multivariate normality: a weighted L² distance of characteristic functions on all of ℝᵈ.

    (1/n) Σᵢⱼ exp(−β²‖yᵢ − yⱼ‖²/2) − 2(1 + β²)^(−d/2) Σᵢ exp(−β²‖yᵢ‖²/(2(1 + β²))) + n(1 + 2β²)^(−d/2),
    y = S^(−½)(z − z̄), S the covariance (1/n).

    The range is 0 to 4n, and lower is closer to normal. 4n is also its value, by definition, where the covariance is
    singular (n ≤ d, collapse). Standardized, it is affine invariant. Under N(0, I) its expectation without
    standardization is 1 − (1 + 2β²)^(−d/2), at any n, and with it, for large n,
    1 − a^(−d/2)·(1 + dβ²/a + d(d + 2)β⁴/(2a²)), a = 1 + 2β². In d = 1 with β = 1 and without standardization it is
    `sliced_normality`. All pairs are visited, in tiles.

    Args:
        z: (n, d) features.
        beta: β > 0; None takes Henze & Zirkler's, (n(2d + 1)/4)^(1/(d + 4))/√2.
        standardize: False compares z as it is with N(0, I).

    Raises:
        ValueError: β ≤ 0, NaN.

    Source: Baringhaus & Henze 1988; Henze & Zirkler 1990.

    >>> normal = torch.special.ndtri(torch.arange(1, 100) / 100)[:, None]  # 99 quantiles
    >>> bhep(normal).item() < 0.1, bhep(normal.exp()).item() > 1, bhep(torch.zeros(10, 3)).item()  # the last is 4n
    (True, True, 40.0)
    """
    z = as_features(z).double()
    n, d = z.shape
    beta = (n * (2 * d + 1) / 4) ** (1 / (d + 4)) / math.sqrt(2) if beta is None else beta
    check_numbers(beta=beta)
    if standardize:
        z = centered(z)
        covariance = z.mT @ z / n
        lam = torch.linalg.eigvalsh(covariance.detach())
        if n <= d or not lam[0] > torch.finfo(z.dtype).eps * d * lam[-1]:
            return 0 * z[0, 0] + 4 * n
        z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), z.mT, upper=False).mT
    others = pair_mean(z, lambda r2: (-(beta**2) / 2 * r2).exp(), pairing=squared_distances) if n > 1 else 0.0
    own = (-(beta**2) / (2 * (1 + beta**2)) * z.square().sum(1)).exp().sum() * (1 + beta**2) ** (-d / 2)
    return 1 + (n - 1) * others - 2 * own + n * (1 + 2 * beta**2) ** (-d / 2)


def _epps_pulley(y: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    phase = torch.polar(torch.ones_like(y), STEP * y)
    power, total = torch.ones_like(phase), y.new_zeros(y.shape[1])
    for k in range(1, NODES + 1):  # the integrand is even, and 0 at t = 0
        t, power = k * STEP, power * phase  # exp(i·t·y): a product costs a tenth of a sine and a cosine
        difference = power.mean(0) - math.exp(-(t**2) / 2)
        total = total + math.exp(-(t**2) / 2) * (difference.real.square() + difference.imag.square())
    return len(y) * 2 * STEP / math.sqrt(2 * math.pi) * total


def _steps(y: Float[Tensor, "n k"]) -> Float[Tensor, "n 1"]:
    """2i − 1, for i = 1, …, n."""
    return torch.arange(1, 2 * len(y), 2, dtype=y.dtype, device=y.device)[:, None]


def _cramer_von_mises(y: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    p, n = torch.special.ndtr(y.sort(0).values), len(y)
    return 1 / (12 * n) + (p - _steps(y) / (2 * n)).square().sum(0)


def _watson(y: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    return _cramer_von_mises(y) - len(y) * (torch.special.ndtr(y).mean(0) - 0.5).square()


def _anderson_darling(y: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    y = y.sort(0).values
    return -len(y) - (_steps(y) * (torch.special.log_ndtr(y) + torch.special.log_ndtr(-y.flip(0)))).mean(0)


def _jarque_bera(y: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    y = y - y.mean(0)
    variance = y.square().mean(0)
    y = y / torch.where(variance > 0, variance, 1.0).sqrt()
    value = len(y) / 6 * (y.pow(3).mean(0).square() + (y.pow(4).mean(0) - 3).square() / 4)
    return torch.where(variance > 0, value, math.inf)


def _shapiro_francia(y: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    y = y.sort(0).values
    y = y - y.mean(0)
    quantiles = torch.special.ndtri((_steps(y) / 2 + 0.125) / (len(y) + 0.25))  # (n, 1), antisymmetric
    norms = y.square().sum(0) * quantiles.square().sum()
    return 1 - (quantiles * y).sum(0).square() / torch.where(norms > 0, norms, 1.0)


STATISTICS: dict[str, Callable[[Float[Tensor, "n k"]], Float[Tensor, " k"]]] = {
    "epps_pulley": _epps_pulley,
    "cramer_von_mises": _cramer_von_mises,
    "watson": _watson,
    "anderson_darling": _anderson_darling,
    "jarque_bera": _jarque_bera,
    "shapiro_francia": _shapiro_francia,
}
