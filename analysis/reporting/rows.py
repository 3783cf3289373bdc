"""The rows of a report: each measure with its error, its references and one sentence."""

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import theory
from ..measures.alignment_uniformity import alignment, uniformity, uniformity_optimum
from ..measures.classes import class_effective_rank, nc1
from ..measures.collapse import lidar, mean_collapse, patch_ranks
from ..measures.inputs import Array
from ..measures.intrinsic_dimension import twonn
from ..measures.moments import Moments
from ..measures.neighbors import NEIGHBORS, knn_accuracy
from ..measures.rates import coding_rate_of_spectrum
from ..measures.spectra import effective_rank, eigenvalues, participation_ratio, rankme
from ..measures.uncertainty import jackknife
from ..theory import white_noise_spectrum


class Row(NamedTuple):
    """One measure; None where it has no standard error, reference or optimum."""

    measure: str
    value: float
    se: float | None = None
    corrected: float | None = None  # without the bias of order 1/n
    white_noise: float | None = None  # what isotropic features have at the same n and d
    best: float | None = None
    healthier: str = "higher"  # "higher", "lower" or "neither"
    says: str = ""


class ClassRows(NamedTuple):
    """What labels add to a report."""

    within: float | None  # E‖z − class mean‖², unbiased; None if it cannot be told
    rows: list[Row]


class ViewRows(NamedTuple):
    """What views add to a report."""

    share: float  # E‖z − z′‖² of two views of one sample over that of different samples
    rows: list[Row]


def spectral_rows(moments: Moments, eps: float) -> list[Row]:
    """The measures that are functions of the moments (n, d) of unit rows, with their standard errors."""
    n, d = moments.n, moments.d
    r, white, centered_white = float(min(n, d)), white_noise_spectrum(n, d), white_noise_spectrum(n - 1, d)

    def measures(m: Moments) -> Float[Tensor, "7"]:
        lam, std = eigenvalues(m), m.covariance.diagonal().clamp(min=0).sqrt().mean() * math.sqrt(d)
        ranks = [effective_rank(lam), effective_rank(m, center=True), rankme(lam), participation_ratio(lam)]
        return torch.stack([coding_rate_of_spectrum(lam, eps=eps, d=d), *ranks, mean_collapse(m), std])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n/d = ")  # the report says it itself
        estimates = zip(*(t.tolist() for t in jackknife(measures, moments)[:3]), strict=True)
    rate, rank, centered, rankme_, ratio, mean, std = estimates
    isotropic, lowest = theory.rate_isotropic(n, d, eps), theory.rate_collapsed(d, eps)
    maximum = theory.rate_maximum(n, d, eps)
    near = f"{rate[0] / isotropic:.1%} of isotropic features', which is what training on mini-batches can attain"
    says = {
        "coding rate": f"{near}, {rate[0] / maximum:.1%} of R*, a tight frame's; all equal: {lowest:.3g} nats.",
        "effective rank": f"Energy in {rank[0]:.3g} of {r:.0f} directions, the mean's included.",
        "effective rank, centered": "Counts directions in which samples differ, however small the differences.",
        "RankMe": "Effective rank of the singular values, which weighs weak directions more.",
        "participation ratio": "(Σλ)²/Σλ², which weighs strong directions more.",
        "mean share": f"{mean[0]:.1%} of the energy is common to all samples; 1: all on one point.",
        "feature std": f"Coordinates vary by {std[0]:.1%} of what they do on the whole sphere; 0: all on one point.",
    }
    references = {
        "coding rate": (rate, isotropic, isotropic),
        "effective rank": (rank, effective_rank(white).item(), r),
        "effective rank, centered": (centered, effective_rank(centered_white).item(), float(min(n - 1, d))),
        "RankMe": (rankme_, rankme(white).item(), r),
        "participation ratio": (ratio, participation_ratio(white).item(), r),
        "mean share": (mean, 1 / n, 0.0),
        "feature std": (std, math.sqrt(1 - 1 / n), 1.0),
    }
    return [
        Row(name, *estimate, noise, best, "lower" if name == "mean share" else "higher", says[name])
        for name, (estimate, noise, best) in references.items()
    ]


def pair_rows(z: Float[Tensor, "n d"]) -> list[Row]:
    """The measures of pairs of unit rows: uniformity and intrinsic dimension."""
    best = uniformity_optimum(z.shape[1])
    says = "Repulsion of pairs; 0: all on one point. Random directions are as good as many points get."
    rows = [Row("uniformity", uniformity(z).item(), white_noise=best, best=best, healthier="lower", says=says)]
    try:
        found = twonn(z)
    except ValueError:  # fewer than three different rows
        return rows
    copies = f" {found.duplicates} of {len(z)} rows are copies." if found.duplicates else ""
    says = (
        f"TwoNN: dimension of the manifold near a sample; ranks count the linear directions of the whole set.{copies}"
    )
    dimension, se = found.dimension.item(), found.se.item()
    return [*rows, Row("intrinsic dimension", dimension, se, healthier="neither", says=says)]


def class_rows(z: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> ClassRows:
    """The measures of classes of unit rows, and the spread within classes, by which they are judged.

    (None, []) for fewer than two classes, or fewer than two samples per class on average.
    """
    names, index, counts = labels.unique(return_inverse=True, return_counts=True)
    k, (n, d) = len(counts), z.shape
    if k < 2 or n < 2 * k:
        return ClassRows(None, [])
    z = z.double()
    means = torch.zeros(k, d, dtype=z.dtype, device=z.device).index_add(0, index, z) / counts[:, None]
    within = ((z - means[index]).square().sum() / (n - k)).item()
    says = f"E‖z − class mean‖² over {k} classes; 0: only the class is left."
    rows = [Row("spread within classes", within, white_noise=1.0, says=says)]
    says = "Spread within over spread between the class means; 0: only the class is left."
    rows.append(Row("NC1", nc1(z, labels).item(), says=says))
    ranks, noise = class_effective_rank(z, index, center=True).ranks, {}
    for size in counts[counts > 2].unique().tolist():
        noise[size] = effective_rank(white_noise_spectrum(size - 1, d)).item()
    shares = [r / noise[c] if c in noise else math.inf for r, c in zip(ranks.tolist(), counts.tolist(), strict=True)]
    worst = min(range(k), key=shares.__getitem__)
    if math.isfinite(shares[worst]):
        size = counts[worst].item()
        says = (
            f"Centered effective rank within class {names[worst].item()}, the worst beside white noise of {size} rows."
        )
        best = float(min(size - 1, d))
        rows.append(Row("rank of the worst class", ranks[worst].item(), white_noise=noise[size], best=best, says=says))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(z.device)
    bank, test = order[::2], order[1::2]
    test = test[torch.isin(index[test], index[bank])]
    if z.any(1).all() and len(test):
        near, largest = min(NEIGHBORS, len(bank)), (counts.max() / n).item()
        hits = knn_accuracy(z[bank], index[bank], z[test], index[test], k=near).item()
        says = (
            f"Half of the samples, classified by their {near} nearest neighbors in the other half; compare with an "
            "untrained network."
        )
        rows.append(Row("k-NN accuracy", hits, white_noise=largest, best=1.0, says=says))
    return ClassRows(within, rows)


def view_rows(views: Float[Tensor, "v n d"]) -> ViewRows:
    """The measures of views of unit rows, and the share by which they are judged."""
    v, n, d = views.shape
    if n < 2:
        raise ValueError("views needs at least 2 samples")
    means = views.double().mean(1)  # (v, d)
    own = 1 - alignment(views).item() / 2  # mean cosine of two views of a sample
    cosine = ((means.sum(0).square().sum() - means.square().sum()) / (v * (v - 1))).item()  # of any two of other views
    apart = max(1 - (n * cosine - own) / (n - 1), 0.0)  # ½E‖z − z′‖² of different samples
    share = (1 - own) / apart if apart > 1e-12 else 0.0
    says = f"Half of `alignment` between two views of one sample: {share:.1%} of its value between different samples."
    rows = [Row("alignment, ½E‖z − z′‖²", 1 - own, white_noise=1.0, best=0.0, healthier="lower", says=says)]
    says = f"Directions in which samples differ by more than their views do, from {v} views of {n} samples."
    return ViewRows(share, [*rows, Row("LiDAR", lidar(views).item(), best=float(min(n - 1, d)), says=says)])


def token_rows(tokens: Array) -> list[Row]:
    """Effective ranks of patch tokens (k, t, d)."""
    ranks, (k, t, d) = patch_ranks(tokens), tokens.shape
    agree = "Effective rank among the patches of one image; 1: they all agree."
    place = "Effective rank among images at one patch; 1: patches know only their place."
    found = [("patches of an image", ranks.within, t, agree), ("images at a patch", ranks.between, k, place)]
    return [
        Row(
            name,
            rank.item(),
            white_noise=effective_rank(white_noise_spectrum(n, d)).item(),
            best=float(min(n, d)),
            says=says,
        )
        for name, rank, n, says in found
    ]
