"""What a number depends on besides the features: the size of the sample, and what its error bar is worth.

The features given are the whole population here, and samples are drawn from them with replacement. So the truth is
known, and it is that of real features.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..measures.inputs import Array, as_features, require_unit_rows
from ..measures.moments import Moments
from ..measures.rates import coding_rate_of_spectrum
from ..measures.spectra import effective_rank, eigenvalues, participation_ratio
from ..measures.uncertainty import jackknife
from ..theory import sampled_rate

SAMPLED_MEASURES = ("effective rank", "participation ratio", "coding rate")


def sampling_bias(z: Array, sizes: Sequence[int], *, eps: int | float, draws: int = 16, seed: int = 0) -> pd.DataFrame:
    """Three measures of samples of several sizes, as they come and corrected, beside the truth.

    Theory predicts the plain mean of two of them: of the participation ratio by 1/PR_n = 1/n + (1 − 1/n)/PR, and of the
    coding rate by `theory.sampled_rate`.

    Args:
        z: (N, d) the population, unit rows.
        sizes: the sizes n of the samples.
        eps: ε of the coding rate.
        draws: how many samples of each size.
        seed: of the draws.

    Returns:
        a row for each of `SAMPLED_MEASURES`, each n and each estimate: "plain", or "corrected" by the block jackknife
        with 16 blocks (for the participation ratio the unbiased estimate). The columns are the measure, n, n/d, the
        estimate, its mean and sd over the draws, the truth and the predicted mean, NaN where there is no closed form.

    Raises:
        ValueError: for rows off the sphere, and for samples of fewer than 16 rows.

    >>> table = sampling_bias(torch.eye(4), [16], eps=0.5, draws=2)
    >>> plain = table[table["estimate"] == "plain"].set_index("measure")
    >>> plain.loc["participation ratio", ["truth", "predicted"]].round(4).to_dict()  # 1/PR = 1/16 + (15/16)/4
    {'truth': 4.0, 'predicted': 3.3684}
    """
    z = as_features(z)
    require_unit_rows(z)
    z, generator = z.double(), torch.Generator().manual_seed(seed)
    d, lam = z.shape[1], eigenvalues(z)
    truth = _measures(lam, eps, d)
    rows = []
    for n in sizes:
        samples = [Moments.of(_sample(z, n, generator), blocks=16) for _ in range(draws)]
        plain, corrected = (torch.stack(parts) for parts in zip(*(_estimates(m, eps) for m in samples), strict=True))
        predicted = [math.nan, 1 / (1 / n + (1 - 1 / n) / truth[1].item()), sampled_rate(lam.cpu(), n, d=d, eps=eps)]
        unknown = [math.nan] * len(SAMPLED_MEASURES)
        for estimate, values, expected in (("plain", plain, predicted), ("corrected", corrected, unknown)):
            columns = zip(
                SAMPLED_MEASURES, values.mean(0).tolist(), values.std(0).tolist(), truth.tolist(), expected, strict=True
            )
            rows += [(measure, n, n / d, estimate, *numbers) for measure, *numbers in columns]
    return pd.DataFrame(rows, columns=["measure", "n", "n/d", "estimate", "mean", "sd", "truth", "predicted"])


def effective_rank_intervals(
    z: Array,
    n: int,
    *,
    draws: int,
    resamples: int = 100,
    order: Literal[1, 2] = 1,
    level: int | float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Confidence intervals of the effective rank from samples: the bootstrap over rows, and the jackknife over blocks.

    The bootstrap is the usual one, quantiles over resampled rows, as `torchmetrics.wrappers.BootStrapper` has it. Its
    intervals miss the truth: resampled rows repeat, so that it has the bias of the sample twice.

    Args:
        z: (N, d) the population.
        n: the size of the samples.
        draws: how many samples.
        resamples: of the bootstrap; 0 leaves it out.
        order: of the jackknife.
        level: the share of the intervals that should hold the truth.
        seed: of the draws.

    Returns:
        a row for each draw and method ("bootstrap" or "jackknife"), with the columns low, high, truth and covers,
        which says whether the truth lies between the two.
    """
    z, generator = as_features(z).double(), torch.Generator().manual_seed(seed)
    truth, tail = effective_rank(z).item(), (1 - level) / 2
    rows = []
    for draw in range(draws):
        sample = _sample(z, n, generator)
        bounds = {}
        if resamples:
            values = torch.stack([effective_rank(_sample(sample, n, generator)) for _ in range(resamples)])
            bounds["bootstrap"] = values.quantile(values.new_tensor([tail, 1 - tail])).tolist()
        bounds["jackknife"] = jackknife(effective_rank, Moments.of(sample, blocks=16), order=order).interval(level)
        rows += [(draw, name, low, high, truth, low <= truth <= high) for name, (low, high) in bounds.items()]
    return pd.DataFrame(rows, columns=["draw", "method", "low", "high", "truth", "covers"])


def random_probe_errors(z: Array, *, eps: int | float, draws: int, seed: int = 0) -> Float[Tensor, " draws"]:
    """How well ridge regressions on features recover random linear tasks from noisy labels, at the features themselves.

    ‖Zŵ − Zw‖²,  y = Zw + noise,  w ~ N(0, d/(nε²) I),  noise ~ N(0, I),  ŵ = (ZᵀZ + (nε²/d) I)⁻¹ Zᵀy

    Args:
        z: (n, d) the features.
        eps: the paper's ε, which says how noisy the labels are.
        draws: of task and noise.
        seed: of the draws.

    Returns:
        the squared error of each draw, in units of the noise's variance.
    """
    z = as_features(z).double().cpu()
    n, d = z.shape
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(d, draws, generator=generator, dtype=torch.float64) * (d / (n * eps**2)) ** 0.5
    noise = torch.randn(n, draws, generator=generator, dtype=torch.float64)
    ridge = n * eps**2 / d * torch.eye(d, dtype=torch.float64)
    found = torch.linalg.solve(z.mT @ z + ridge, z.mT @ (z @ w + noise))
    return (z @ (found - w)).square().sum(0)


def _sample(z: Float[Tensor, "N d"], n: int, generator: torch.Generator) -> Float[Tensor, "{n} d"]:
    """n rows, drawn with replacement."""
    return z[torch.randint(len(z), (n,), generator=generator)]


def _measures(lam: Float[Tensor, " r"], eps: int | float, d: int) -> Float[Tensor, " k"]:
    """The `SAMPLED_MEASURES` of a spectrum."""
    return torch.stack([effective_rank(lam), participation_ratio(lam), coding_rate_of_spectrum(lam, eps=eps, d=d)])


def _estimates(moments: Moments, eps: int | float) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The measures of one sample, as they come and corrected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that n/d < 10 is the point here
        estimate = jackknife(lambda m: _measures(eigenvalues(m), eps, m.d), moments)
    corrected = estimate.corrected.clone()
    corrected[1] = participation_ratio(moments, unbiased=True)
    return estimate.value, corrected
