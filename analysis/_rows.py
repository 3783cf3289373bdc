"""The rows of a report: each measure with its error, its references and a sentence."""

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis import theory
from analysis._input import Array
from analysis.collapse import alignment, lidar, mean_collapse, patch_ranks, uniformity, uniformity_optimum
from analysis.moments import Moments
from analysis.neural_collapse import nc1
from analysis.probes import knn_accuracy
from analysis.rates import coding_rate_of_spectrum
from analysis.references import white_noise_spectrum
from analysis.spectra import effective_rank, eigenvalues, participation_ratio, rankme
from analysis.uncertainty import jackknife

NEIGHBOURS = 20


class Row(NamedTuple):
    """One measure; None where it has no standard error, reference or optimum."""

    measure: str
    value: float
    se: float | None
    corrected: float | None  # without the bias of order 1/n
    white_noise: float | None  # what isotropic features have at the same n and d
    best: float | None
    healthier: str  # "higher" or "lower"
    says: str


def spectral_rows(moments: Moments, eps: float) -> list[Row]:
    """The measures that are functions of the moments of unit rows, with their standard errors."""
    n, d = moments.n, moments.d
    r, white, centred_white = float(min(n, d)), white_noise_spectrum(n, d), white_noise_spectrum(n - 1, d)

    def measures(m: Moments) -> Float[Tensor, "7"]:
        lam, std = eigenvalues(m), m.covariance.diagonal().clamp(min=0).sqrt().mean() * math.sqrt(d)
        ranks = [effective_rank(lam), effective_rank(m, center=True), rankme(lam), participation_ratio(lam)]
        return torch.stack([coding_rate_of_spectrum(lam, eps=eps, d=d), *ranks, mean_collapse(m), std])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n/d = ")  # the report says it itself
        estimates = zip(*(t.tolist() for t in jackknife(measures, moments)[:3]), strict=True)
    rate, rank, centred, rankme_, ratio, mean, std = estimates
    isotropic, lowest = theory.rate_isotropic(n, d, eps), theory.rate_collapsed(d, eps)
    maximum = theory.rate_maximum(n, d, eps)
    near = f"{rate[0] / isotropic:.1%} of isotropic features', {rate[0] / maximum:.1%} of the best"
    return [
        Row("coding rate", *rate, isotropic, maximum, "higher", f"{near}; all features equal: {lowest:.3g} nats."),
        Row(
            "effective rank",
            *rank,
            effective_rank(white).item(),
            r,
            "higher",
            f"Energy in {rank[0]:.3g} of {r:.0f} directions, the mean's included.",
        ),
        Row(
            "effective rank, centred",
            *centred,
            effective_rank(centred_white).item(),
            float(min(n - 1, d)),
            "higher",
            "Directions in which samples differ; blind to how little they do.",
        ),
        Row(
            "RankMe",
            *rankme_,
            rankme(white).item(),
            r,
            "higher",
            "Effective rank of the singular values, which weighs weak directions more.",
        ),
        Row(
            "participation ratio",
            *ratio,
            participation_ratio(white).item(),
            r,
            "higher",
            "(Σλ)²/Σλ², which weighs strong directions more.",
        ),
        Row(
            "mean share",
            *mean,
            1 / n,
            0.0,
            "lower",
            f"{mean[0]:.1%} of the energy is common to all samples; 1: all on one point.",
        ),
        Row(
            "feature std",
            *std,
            math.sqrt(1 - 1 / n),
            1.0,
            "higher",
            f"Coordinates vary by {std[0]:.1%} of what they do on the whole sphere; 0: all on one point.",
        ),
    ]


def uniformity_row(z: Float[Tensor, "n d"]) -> Row:
    """Of unit rows."""
    value, best = uniformity(z).item(), uniformity_optimum(z.shape[1])
    says = "Repulsion of pairs; 0: all on one point. Random directions are as good as many points get."
    return Row("uniformity", value, None, None, best, best, "lower", says)


def class_rows(z: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> tuple[float | None, list[Row]]:
    """(E‖z − class mean‖² without bias, rows) of unit rows; None and no rows if classes have fewer than two a head."""
    _, index, counts = labels.unique(return_inverse=True, return_counts=True)
    k, n = len(counts), len(z)
    if k < 2 or n < 2 * k:
        return None, []
    z = z.double()
    means = torch.zeros(k, z.shape[1], dtype=z.dtype, device=z.device).index_add(0, index, z) / counts[:, None]
    within = ((z - means[index]).square().sum() / (n - k)).item()
    rows = [
        Row(
            "spread within classes",
            within,
            None,
            None,
            1.0,
            None,
            "higher",
            f"E‖z − class mean‖² over {k} classes; 0: only the class is left.",
        ),
        Row(
            "NC1",
            nc1(z, labels).item(),
            None,
            None,
            None,
            None,
            "higher",
            "Spread within over spread between the class means; 0: only the class is left.",
        ),
    ]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(z.device)
    bank, test = order[::2], order[1::2]
    test = test[torch.isin(index[test], index[bank])]
    if z.any(1).all() and len(test):
        near = min(NEIGHBOURS, len(bank))
        hits = knn_accuracy(z[bank], index[bank], z[test], index[test], k=near).item()
        largest = (counts.max() / n).item()
        rows.append(
            Row(
                "k-NN accuracy",
                hits,
                None,
                None,
                largest,
                1.0,
                "higher",
                f"One half of the samples classified by {near} of the other; compare an untrained network.",
            )
        )
    return within, rows


def view_rows(views: Float[Tensor, "v n d"]) -> tuple[float, list[Row]]:
    """(E‖z − z′‖² of two views of a sample over that of different samples, rows) of unit rows."""
    v, n, d = views.shape
    if n < 2:
        raise ValueError("views needs at least 2 samples")
    means = views.double().mean(1)  # (v, d)
    own = 1 - alignment(views).item() / 2  # mean cosine of two views of a sample
    cosine = ((means.sum(0).square().sum() - means.square().sum()) / (v * (v - 1))).item()  # of any two of other views
    apart = max(1 - (n * cosine - own) / (n - 1), 0.0)  # ½E‖z − z′‖² of different samples
    share = (1 - own) / apart if apart > 1e-12 else 0.0
    says = f"Half of `alignment`, of two views of a sample; {share:.1%} of that of different samples, {apart:.3g}."
    row = Row("alignment, ½E‖z − z′‖²", 1 - own, None, None, 1.0, 0.0, "lower", says)
    says = f"Directions in which samples differ by more than their views do, from {v} views of {n} samples."
    return share, [row, Row("LiDAR", lidar(views).item(), None, None, None, float(min(n - 1, d)), "higher", says)]


def token_rows(tokens: Array) -> list[Row]:
    """Effective ranks of patch tokens (k, t, d)."""
    ranks = patch_ranks(tokens)
    k, t, d = tokens.shape
    return [
        Row(
            "patches of an image",
            ranks["within"].item(),
            None,
            None,
            effective_rank(white_noise_spectrum(t, d)).item(),
            float(min(t, d)),
            "higher",
            "Effective rank among the patches of one image; 1: they all agree.",
        ),
        Row(
            "images at a patch",
            ranks["between"].item(),
            None,
            None,
            effective_rank(white_noise_spectrum(k, d)).item(),
            float(min(k, d)),
            "higher",
            "Effective rank among images at one patch; 1: patches know only their place.",
        ),
    ]
