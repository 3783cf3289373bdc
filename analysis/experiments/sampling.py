"""What a number depends on besides the features: the size of the sample, the error bar, the kind of collapse.

The features given are the whole population here, and samples are drawn from them with replacement: so the truth is
known, and is that of real features.
"""

import math
import warnings
from collections.abc import Sequence

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


def sampling_bias(z: Array, sizes: Sequence[int], *, eps: float, draws: int = 16, seed: int = 0) -> pd.DataFrame:
    """Three measures of samples of several sizes, as they come and corrected, beside the truth.

    z: the population, unit rows (N, d). A row per measure, n and estimate ("plain" or "corrected": the block jackknife
    with 16 blocks, for the participation ratio the unbiased estimate): mean and sd over draws, truth, and what theory
    predicts the plain mean to be, NaN for what has no closed form: 1/PR_n = 1/n + (1 − 1/n)/PR and `sampled_rate`.

    ValueError: rows off the sphere, fewer than 16 rows in a sample.
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
        predicted = [math.nan, 1 / (1 / n + (1 - 1 / n) / truth[1].item()), sampled_rate(lam, n, d=d, eps=eps)]
        unknown = [math.nan] * len(SAMPLED_MEASURES)
        for estimate, values, expected in (("plain", plain, predicted), ("corrected", corrected, unknown)):
            columns = zip(
                SAMPLED_MEASURES, values.mean(0).tolist(), values.std(0).tolist(), truth.tolist(), expected, strict=True
            )
            rows += [(measure, n, n / d, estimate, *numbers) for measure, *numbers in columns]
    return pd.DataFrame(rows, columns=["measure", "n", "n/d", "estimate", "mean", "sd", "truth", "predicted"])


def intervals(
    z: Array, n: int, *, draws: int, resamples: int = 100, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Confidence intervals of the effective rank from samples of n: bootstrap over rows, and jackknife over blocks.

    z: the population (N, d). A row per draw and method ("bootstrap" or "jackknife"): low, high, truth and covers. The
    bootstrap is the usual one, quantiles over resampled rows, as `torchmetrics.wrappers.BootStrapper` has it.
    """
    z, generator = as_features(z).double(), torch.Generator().manual_seed(seed)
    truth, tail = effective_rank(z).item(), (1 - level) / 2
    rows = []
    for draw in range(draws):
        sample = _sample(z, n, generator)
        values = torch.stack([effective_rank(_sample(sample, n, generator)) for _ in range(resamples)])
        bounds = {"bootstrap": values.quantile(values.new_tensor([tail, 1 - tail])).tolist()}
        bounds["jackknife"] = jackknife(effective_rank, Moments.of(sample, blocks=16)).interval(level)
        rows += [(draw, name, low, high, truth, low <= truth <= high) for name, (low, high) in bounds.items()]
    return pd.DataFrame(rows, columns=["draw", "method", "low", "high", "truth", "covers"])


def _sample(z: Float[Tensor, "N d"], n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    return z[torch.randint(len(z), (n,), generator=generator)]


def _measures(lam: Float[Tensor, " r"], eps: float, d: int) -> Float[Tensor, " k"]:
    return torch.stack([effective_rank(lam), participation_ratio(lam), coding_rate_of_spectrum(lam, eps=eps, d=d)])


def _estimates(moments: Moments, eps: float) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The measures of one sample, as they come and corrected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that n/d < 10 is the point here
        estimate = jackknife(lambda m: _measures(eigenvalues(m), eps, m.d), moments)
    corrected = estimate.corrected.clone()
    corrected[1] = participation_ratio(moments, unbiased=True)
    return estimate.value, corrected
