"""Features to compare with: the spectrum of white noise, and features with a collapse of known size.

`collapsed` injects a collapse into features, `collapsed_spectrum` is the spectrum that this gives in closed form, and
`collapse_sweep` and `shrink_sweep` read the measures along the way to total collapse.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from simdino.config import PUBLISHED_EPS

from .. import theory
from ..measures.collapse import feature_std, mean_collapse, uniformity, uniformity_optimum
from ..measures.inputs import Array, as_features, as_labels, require_unit_rows, unit_rows
from ..measures.neighbors import knn_accuracy
from ..measures.rates import coding_rate_of_spectrum
from ..measures.spectra import effective_rank, eigenvalues

KNN_TEMP = 0.07  # of k-NN, as DINO has it


def collapsed(z: Array, target: Array, *, share: float) -> Float[Tensor, "n d"]:
    """Features of which a share of the energy has collapsed: √share·target + √(1 − share)·b, on the unit sphere.

    b: z without its component in the subspace that the rows of target span, of unit norm. What the collapse is lies
    in target `(n, d)`, unit rows: one row for all is collapse to a point, directions of a subspace are dimensional
    collapse, the class means' directions class collapse.

    z `(n, d)`. share in [0, 1]; isotropic features already have k/d of their energy in k dimensions.
    ValueError: target that is not of unit rows or spans the whole space, shapes that differ.
    """
    z, target = as_features(z).double(), as_features(target, "target").double()
    require_unit_rows(target, "target")
    if z.shape != target.shape:
        raise ValueError(f"z and target must have one shape, got {tuple(z.shape)} and {tuple(target.shape)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    lam, directions = torch.linalg.eigh(target.mT @ target)
    basis = directions[:, lam > 1e-9 * lam[-1]]  # (d, k)
    if basis.shape[1] == z.shape[1]:
        raise ValueError("target spans the whole space: nothing is left that could collapse to it")
    rest = z - (z @ basis) @ basis.mT
    return math.sqrt(share) * target + math.sqrt(1 - share) * unit_rows(rest)


def collapsed_spectrum(share: float, rank: int, d: int) -> Float64[Tensor, " d"]:
    """Spectrum of isotropic features of which a share of the energy has collapsed evenly to `rank` dimensions.

    share/rank, `rank` times, and (1 − share)/(d − rank), d − rank times; descending. Infinitely many samples.
    """
    if not 1 <= rank < d:
        raise ValueError(f"rank must lie between 1 and d - 1 = {d - 1}, got {rank}")
    parts = [torch.full((rank,), share / rank), torch.full((d - rank,), (1 - share) / (d - rank))]
    return torch.cat(parts).double().sort(descending=True).values


def collapse_sweep(
    n: int, d: int, *, classes: int, rank: int, shares: Sequence[float], eps: float = PUBLISHED_EPS, seed: int = 0
) -> "pandas.DataFrame":  # noqa: F821
    """What each measure sees of three collapses that are injected into isotropic features, beside its closed form.

    A row per collapse ("to a point", "to a subspace" of `rank` dimensions, "to class means" at the corners of a
    simplex), share and measure: `measured` of n features, and `predicted` for infinitely many; both scaled so that
    1 is isotropic and 0 what total collapse to a point gives. A measure that stays at 1 is blind to that collapse.

    measures: effective rank (uncentered), the same centered, coding rate, 1 − mean share, feature std, uniformity, and
    spread within classes. ValueError for a share outside (0, 1).
    """
    import pandas as pd

    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares must lie in (0, 1), got {shares}")
    generator = torch.Generator().manual_seed(seed)
    z = unit_rows(torch.randn(n, d, generator=generator, dtype=torch.float64))
    labels = torch.arange(n) % classes
    corners = torch.zeros(classes, d, dtype=torch.float64)
    corners[:, :classes] = torch.eye(classes, dtype=torch.float64) - 1 / classes
    plane = torch.zeros_like(z)
    plane[:, :rank] = unit_rows(z[:, :rank])
    targets = {
        "to a point": (torch.eye(d, dtype=torch.float64)[:1].expand(n, d), 1),
        "to a subspace": (plane, rank),
        "to class means": (unit_rows(corners)[labels], classes - 1),
    }
    rows = []
    for kind, (target, k) in targets.items():
        for share in shares:
            measured = healthiness(collapsed(z, target, share=share), labels, eps)
            predicted = _healthiness_predicted(kind, share, k, d, eps)
            rows += [
                {"collapse": kind, "share": share, "measure": name, "measured": value, "predicted": predicted[name]}
                for name, value in measured.items()
            ]
    return pd.DataFrame(rows)


def shrink_sweep(
    z: Array, labels: Array, *, sizes: Sequence[float], eps: float = PUBLISHED_EPS, seed: int = 0
) -> "pandas.DataFrame":  # noqa: F821
    """The trap: what measures see of features that shrink around one point, beside what they must see.

    z `(n, d)` is centered, put on the sphere and drawn together towards a point in one dimension more, until distances
    are `size` times what they were, 0 < size ≤ 1. A row per size and measure, both values over that at size 1:
    effective rank, centered, which stays; k-NN accuracy of one random half by the other, whose neighbors stay and
    whose votes even out, as at the temperature T/size²; 1 − mean share, size²; the coding rate above that of a point,
    which follows from the spectrum {1 − size², size²·λᵢ} up to the little mean that unit rows keep.
    """
    import pandas as pd

    z, labels = as_features(z).double(), as_labels(labels, len(z))
    n, d = len(z), z.shape[1] + 1
    flat = torch.cat((unit_rows(z - z.mean(0)), torch.zeros(n, 1, dtype=z.dtype)), 1)  # (n, d)
    point = torch.eye(d, dtype=z.dtype)[-1:].expand(n, d)
    bank, test = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    lam = eigenvalues(flat)

    def excess(x: Tensor) -> float:
        return float(coding_rate_of_spectrum(x, eps=eps, d=d)) - theory.rate_collapsed(d, eps)

    def neighbors(x: Tensor, temp: float) -> float:
        return float(knn_accuracy(x[bank], labels[bank], x[test], labels[test], temp=temp))

    def measured(size: float) -> dict[str, float]:
        drawn = collapsed(flat, point, share=1 - size**2)
        return {
            "effective rank, centered": float(effective_rank(drawn, center=True)),
            "k-NN accuracy": neighbors(drawn, KNN_TEMP),
            "1 − mean share": 1 - float(mean_collapse(drawn)),
            "coding rate": excess(eigenvalues(drawn)),
        }

    def predicted(size: float) -> dict[str, float]:
        spectrum = torch.cat((lam.new_tensor([1 - size**2]), size**2 * lam[: d - 1]))
        return {
            "effective rank, centered": 1.0,
            "k-NN accuracy": neighbors(flat, KNN_TEMP / size**2) / whole["k-NN accuracy"],
            "1 − mean share": size**2,
            "coding rate": excess(spectrum) / excess(lam),
        }

    whole, rows = measured(1.0), []
    for size in sizes:
        known = predicted(size)
        for name, value in measured(size).items():
            row = {"size": size, "measure": name, "measured": value / whole[name]}
            rows.append(row | {"predicted": known[name]})
    return pd.DataFrame(rows)


def healthiness(z: Float[Tensor, "n d"], labels: Tensor, eps: float) -> dict[str, float]:
    """Measures of unit rows, each scaled to 0 for total collapse and 1 for isotropic features."""
    d, lam = z.shape[1], eigenvalues(z)
    low, high = theory.rate_collapsed(d, eps), theory.rate_maximum(d, d, eps)
    within = torch.stack([mean_collapse(z[labels == k]) for k in labels.unique()])
    return {
        "effective rank": float(effective_rank(lam) - 1) / (d - 1),
        "effective rank, centered": float(effective_rank(z, center=True) - 1) / (d - 1),
        "coding rate": float(coding_rate_of_spectrum(lam, eps=eps, d=d) - low) / (high - low),
        "1 − mean share": 1 - float(mean_collapse(z)),
        "feature std": float(feature_std(z)),
        "uniformity": float(uniformity(z)) / uniformity_optimum(d),
        "spread within classes": 1 - float(within.mean()),
    }


def _healthiness_predicted(kind: str, share: float, k: int, d: int, eps: float) -> dict[str, float]:
    """`healthiness` of infinitely many features; the target and the rest, k and d − k dimensions, are independent."""
    lam, rest = collapsed_spectrum(share, k, d), (1 - share) / (d - k)  # rest: variance of a direction of the rest
    low, high = theory.rate_collapsed(d, eps), theory.rate_maximum(d, d, eps)
    if kind == "to a point":
        target, stds = 0.0, [0.0]
    elif kind == "to a subspace":
        target, stds = uniformity_optimum(k, t=2 * share), [math.sqrt(share / k)] * k
    else:  # two samples share their class with probability 1/K, and otherwise ‖cᵢ − cⱼ‖² = 2K/(K − 1)
        target = math.log((1 + k * math.exp(-4 * share * (k + 1) / k)) / (k + 1))
        stds = [math.sqrt((share + rest) / (k + 1))] * (k + 1)
    stds = stds + [math.sqrt(rest)] * (d - len(stds))
    uniform = target + uniformity_optimum(d - k, t=2 * (1 - share))
    centered = collapsed_spectrum(1.0, d - 1, d) if kind == "to a point" else lam
    return {
        "effective rank": float(effective_rank(lam) - 1) / (d - 1),
        "effective rank, centered": float(effective_rank(centered) - 1) / (d - 1),
        "coding rate": float(coding_rate_of_spectrum(lam, eps=eps, d=d) - low) / (high - low),
        "1 − mean share": 1 - share if kind == "to a point" else 1.0,
        "feature std": sum(stds) / math.sqrt(d),
        "uniformity": uniform / uniformity_optimum(d),
        "spread within classes": 1.0 if kind == "to a subspace" else 1 - share,
    }


def collapse_response(
    z: Array, labels: Array, *, share: float, rank: int = 4, eps: float = PUBLISHED_EPS
) -> "pandas.DataFrame":  # noqa: F821
    """What is left of each measure when a share of the features' energy collapses, over its value for the features.

    z unit rows (n, d), labels (n,). Columns: collapse to a point (the direction of the mean), to a subspace (the
    leading `rank` directions), to class means. Rows: the measures of `collapse_sweep`, 0 for total collapse to a point.
    A measure that stays at 1 is blind to that collapse. ValueError: rows off the sphere, a target that spans all of ℝᵈ.
    """
    import pandas as pd

    z = as_features(z)
    require_unit_rows(z)
    z, labels = z.double(), as_labels(labels, len(z))
    directions = torch.linalg.eigh(z.mT @ z).eigenvectors[:, -rank:]  # (d, rank)
    means = torch.stack([z[labels == k].mean(0) if (labels == k).any() else z[0] for k in range(labels.max() + 1)])
    targets = {
        "to a point": unit_rows(z.mean(0, keepdim=True)).expand_as(z),
        "to a subspace": unit_rows(z @ directions @ directions.mT),
        "to class means": unit_rows(means)[labels],
    }
    left = {kind: healthiness(collapsed(z, target, share=share), labels, eps) for kind, target in targets.items()}
    return pd.DataFrame(left).div(pd.Series(healthiness(z, labels, eps)), axis=0)
