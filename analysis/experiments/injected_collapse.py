"""Features with a collapse of known size, and what the measures see of it.

`collapsed` injects a collapse into features, and `collapsed_spectrum` is the spectrum that this gives in closed form.
`collapse_sweep` and `shrink_sweep` read the measures along the way to total collapse beside their closed forms, and
`collapse_response` reads them on features of your own.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from simdino.config import PUBLISHED_EPS
from simdino.losses import check_numbers

from .. import theory
from ..measures.alignment_uniformity import uniformity, uniformity_optimum
from ..measures.collapse import feature_std, mean_collapse
from ..measures.gradients import thin_svd
from ..measures.inputs import Array, as_features, labeled_features, require_unit_rows, unit_rows
from ..measures.neighbors import KNN_TEMP, knn_accuracy
from ..measures.rates import coding_rate_of_spectrum
from ..measures.spectra import effective_rank, eigenvalues


def collapsed(z: Array, target: Array, *, share: float) -> Float[Tensor, "n d"]:
    """Features of which a share of the energy has collapsed to a target, on the unit sphere.

    √share·target + √(1 − share)·b,  b: z without its component in the subspace that the rows of target span, of norm 1.

    The target says what the collapse is. One row for all is collapse to a point, directions of a subspace are
    dimensional collapse, and the class means' directions are class collapse. Isotropic features have k/d of their
    energy in k dimensions already.

    Args:
        z: (n, d) features.
        target: (n, d) unit rows.
        share: in [0, 1].

    Raises:
        ValueError: a target that is not of unit rows or spans the whole space, shapes that differ, a share out of
            range, a row of z inside the span of target.

    >>> z, point = torch.eye(3)[1:], torch.eye(3)[[0, 0]]
    >>> collapsed(z, point, share=0.75).square().round(decimals=6).tolist()  # the energy of each coordinate
    [[0.75, 0.25, 0.0], [0.75, 0.0, 0.25]]
    """
    z = as_features(z).double()
    target = as_features(target, "target", device=z.device).double()
    require_unit_rows(target, "target")
    if z.shape != target.shape:
        raise ValueError(f"z and target must have one shape, got {tuple(z.shape)} and {tuple(target.shape)}")
    check_numbers(share=share)
    target = target.to(z.device)
    _, s, directions = thin_svd(target)
    basis = directions[s.square() > 1e-9 * s[0].square()].mT  # (d, k)
    if basis.shape[1] == z.shape[1]:
        raise ValueError("target spans the whole space: nothing is left that could collapse to it")
    rest = z - (z @ basis) @ basis.mT
    if (rest.norm(dim=1) <= 1e-12 * z.norm(dim=1)).any():
        raise ValueError("z has a row that target spans: nothing of it is left that could collapse")
    return math.sqrt(share) * target + math.sqrt(1 - share) * unit_rows(rest)


def collapsed_spectrum(share: float, rank: int, d: int) -> Float64[Tensor, " d"]:
    """Spectrum of isotropic features of which a share of the energy has collapsed evenly to `rank` dimensions.

    share/rank, `rank` times, and (1 − share)/(d − rank), d − rank times; descending, for infinitely many samples.

    Args:
        share: of the energy, in [0, 1].
        rank: the number of dimensions that it collapsed to, 1 ≤ rank < d.
        d: the dimension of the features.

    Raises:
        ValueError: share or rank out of range.

    >>> collapsed_spectrum(0.75, 1, 3).tolist()
    [0.75, 0.125, 0.125]
    """
    check_numbers(share=share, rank=rank, d=d)
    if not 1 <= rank < d:
        raise ValueError(f"rank must lie between 1 and d - 1 = {d - 1}, got {rank}")
    parts = [torch.full((rank,), share / rank), torch.full((d - rank,), (1 - share) / (d - rank))]
    return torch.cat(parts).double().sort(descending=True).values


def collapse_sweep(
    n: int, d: int, *, classes: int, rank: int, shares: Sequence[float], eps: float = PUBLISHED_EPS, seed: int = 0
) -> "pandas.DataFrame":  # noqa: F821
    """What each measure sees of three collapses that are injected into isotropic features, beside its closed form.

    The collapses are "to a point", "to a subspace" of `rank` dimensions, and "to class means" at the corners of a
    simplex. The measures are the effective rank (uncentered), the same centered, the coding rate, 1 − mean share, the
    feature std, the uniformity, and the spread within classes. All are scaled so that 1 is isotropic and 0 what total
    collapse to a point gives. A measure that stays at 1 is blind to that collapse.

    Args:
        n: the number of samples.
        d: their dimension.
        classes: K ≤ d; sample i is of class i modulo K.
        rank: the dimension of the subspace.
        shares: of the energy that has collapsed, each in (0, 1).
        eps: the coding rate's ε.
        seed: of the features.

    Returns:
        one row for each collapse, share and measure, with `measured` of n features and `predicted` for infinitely many.

    Raises:
        ValueError: a share outside (0, 1), or more classes than dimensions.

    >>> table = collapse_sweep(128, 8, classes=4, rank=2, shares=[0.99])
    >>> table["measure"][(table["collapse"] == "to a point") & (table["measured"] > 0.8)].tolist()  # blind
    ['effective rank, centered']
    """
    import pandas as pd

    check_numbers(n=n, d=d, classes=classes, rank=rank, eps=eps)
    if classes > d:
        raise ValueError(f"classes must be at most d={d}, for a simplex, got {classes}")
    for share in shares:
        check_numbers(share=share)
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
            measured = _healthiness(collapsed(z, target, share=share), labels, eps)
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

    Features are centered, put on the sphere, and drawn together toward a point in one dimension more, until distances
    are `size` times what they were. The centered effective rank stays. So does the k-NN accuracy, of one random half by
    the other: the neighbors stay and their votes even out, as at the temperature T/size². 1 − mean share is size². The
    coding rate above that of a point follows from the spectrum {1 − size², size²·λᵢ}, up to the little mean that unit
    rows keep.

    Args:
        z: (n, d) features.
        labels: (n,) class of each.
        sizes: each in (0, 1].
        eps: the coding rate's ε.
        seed: of the random halves.

    Returns:
        one row for each size and measure, with `measured` and `predicted`, both over the value at size 1.

    Raises:
        ValueError: a size outside (0, 1], fewer than 20 samples in a half, a row on the mean, NaN.

    >>> z, labels = torch.cat((torch.eye(4), -torch.eye(4))).repeat(8, 1), torch.arange(8).repeat(8)
    >>> table = shrink_sweep(z, labels, sizes=[0.01]).set_index("measure")["measured"]
    >>> table[["effective rank, centered", "1 − mean share"]].round(6).tolist()  # the first is blind
    [1.0, 0.0001]
    """
    import pandas as pd

    if not all(0 < size <= 1 for size in sizes):
        raise ValueError(f"sizes must lie in (0, 1], got {sizes}")
    z, labels = labeled_features(z, labels)
    z, n, d = z.double(), len(z), z.shape[1] + 1
    flat = torch.cat((unit_rows(z - z.mean(0)), z.new_zeros(n, 1)), 1)  # (n, d)
    point = torch.eye(d, dtype=z.dtype, device=z.device)[-1:].expand(n, d)
    bank, test = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(z.device).tensor_split(2)
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


def _healthiness(z: Float[Tensor, "n d"], labels: Tensor, eps: float) -> dict[str, float]:
    """Measures of unit rows, each scaled to 0 for total collapse to a point and 1 for isotropic features."""
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
    """`_healthiness` of infinitely many features; the target and the rest, k and d − k dimensions, are independent."""
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
    around_mean = collapsed_spectrum(1.0, d - 1, d) if kind == "to a point" else lam
    return {
        "effective rank": float(effective_rank(lam) - 1) / (d - 1),
        "effective rank, centered": float(effective_rank(around_mean) - 1) / (d - 1),
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

    The measures are those of `collapse_sweep`, 0 for total collapse to a point. A measure that stays at 1 is blind to
    that collapse.

    Args:
        z: (n, d) unit rows.
        labels: (n,) class of each.
        share: of the energy that collapses, in [0, 1].
        rank: the dimension of the subspace.
        eps: the coding rate's ε.

    Returns:
        one row for each measure, and one column for each collapse: to a point (the direction of the mean), to a
        subspace (the leading `rank` directions), and to the class means.

    Raises:
        ValueError: rows off the sphere, a target that spans all of ℝᵈ, labels of another shape, NaN.

    >>> z = unit_rows(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    >>> left = collapse_response(z, torch.arange(60) % 3, share=0.99)
    >>> left["to a point"].idxmax()  # blind to it
    'effective rank, centered'
    """
    import pandas as pd

    z, labels = labeled_features(z, labels)
    require_unit_rows(z)
    z = z.double()
    directions = torch.linalg.eigh(z.mT @ z).eigenvectors[:, -rank:]  # (d, rank)
    means = torch.stack([z[labels == k].mean(0) if (labels == k).any() else z[0] for k in range(labels.max() + 1)])
    targets = {
        "to a point": unit_rows(z.mean(0, keepdim=True)).expand_as(z),
        "to a subspace": unit_rows(z @ directions @ directions.mT),
        "to class means": unit_rows(means)[labels],
    }
    left = {kind: _healthiness(collapsed(z, target, share=share), labels, eps) for kind, target in targets.items()}
    return pd.DataFrame(left).div(pd.Series(_healthiness(z, labels, eps)), axis=0)
