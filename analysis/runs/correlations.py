"""Which label-free measures predict accuracy: rank correlations over runs, within methods and across, with intervals.

`measure_runs` makes a table with one row for each run; `rank_correlations` takes it, or any with measures as columns.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from simdino.config import PUBLISHED_EPS
from simdino.runs import Run, evaluated_branch

from ..measures.alignment_uniformity import alignment, uniformity
from ..measures.collapse import lidar
from ..measures.inputs import unit_rows
from ..measures.neighbors import knn_accuracy_with_misses
from ..measures.rates import rate_optimality
from ..measures.spectra import alpha_req, anisotropy, eigenvalues, participation_ratio, rankme
from ..measures.uncertainty import leave_one_out_error, student_quantile
from .kept_results import kept

# Label-free measures, and the sign of the rank correlation with accuracy that their papers lead one to expect.
LABEL_FREE_MEASURES = {
    "RankMe": 1,  # Garrido et al. 2023
    "LiDAR": 1,  # Thilak et al. 2024
    "|α-ReQ − 1|": -1,  # Agrawal et al. 2022
    "rate / isotropic": 1,
    "participation ratio": 1,  # Gao et al. 2017
    "alignment": -1,  # Wang & Isola 2020, and the next two
    "uniformity": -1,
    "alignment + uniformity": -1,
    "anisotropy": -1,  # Razzhigaev et al. 2024
}
SCOPES = ("all", "within", "between")


def label_free_measures(
    z: Tensor, views: Tensor, *, eps: float = PUBLISHED_EPS, fit: tuple[int, int] = (11, 50)
) -> dict[str, float]:
    """The measures of `LABEL_FREE_MEASURES`, each as its paper has it.

    RankMe and LiDAR are of the features as they are; α-ReQ, participation ratio and anisotropy of the centered
    features; rate / isotropic, alignment E‖z − z′‖² and uniformity of unit rows.

    Args:
        z: (n, d), features.
        views: (2, k, d), features of two views of k samples.
        eps: the paper's ε of the rate.
        fit: the first and last eigenvalue that α-ReQ fits, as far as they are positive; NaN for fewer than two.
    """
    lam, unit, unit_views = eigenvalues(z, center=True), unit_rows(z), unit_rows(views)
    first, last = fit[0], min(fit[1], int((lam > 0).sum()))
    values = {
        "RankMe": rankme(z),
        "LiDAR": lidar(views),
        "|α-ReQ − 1|": abs(alpha_req(lam, fit=(first, last)) - 1) if last > first else math.nan,
        "rate / isotropic": rate_optimality(unit, eps=eps).of_isotropic,
        "participation ratio": participation_ratio(lam),
        "alignment": alignment(unit_views),
        "uniformity": uniformity(unit),
        "anisotropy": anisotropy(lam),
    }
    values["alignment + uniformity"] = values["alignment"] + values["uniformity"]
    return {name: float(values[name]) for name in LABEL_FREE_MEASURES}


def measure_runs(runs: Iterable[Run], *, progress: bool = False) -> pd.DataFrame:
    """Measure the backbone of each run at its last snapshot: one row for each run.

    Columns: method (the objective, under the name of its recipes), recipe, configuration (a hash of everything but the
    seed), seed, knn, and `label_free_measures`, of the network that is evaluated: the teacher, if there is one. Other
    accuracies can be joined by recipe and seed.

    Args:
        runs: with recorded features.
        progress: show a progress bar.

    Raises:
        ValueError: a run without snapshots.
    """
    rows = {}
    for run in tqdm(list(runs), desc="measuring", unit="run", disable=not progress):
        text = json.dumps(run.config | {"seed": None}, sort_keys=True)
        objective = run.config["objective"]
        rows[run.name] = {
            "method": "sim" * ("gamma" in objective) + "dino" + "v2" * ("patch_weight" in objective),
            "recipe": run.config["recipe"],
            "configuration": hashlib.sha256(text.encode()).hexdigest()[:10],
            "seed": run.config["seed"],
        } | backbone_measures(run)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


@kept
def backbone_measures(run: Run) -> dict[str, float]:
    """knn and `label_free_measures` of a run's last snapshot."""
    if not run.steps:
        raise ValueError(f"{run.path} has recorded no features yet")
    last, probe = run.snapshot(run.steps[-1]), run.probe
    branch = evaluated_branch(last)
    z, bank, views = (last[f"{branch}/backbone/{part}"] for part in ("test", "bank", "views"))
    knn = knn_accuracy_with_misses(bank, probe.get("bank_labels"), z, probe.get("test_labels"))
    return {"knn": knn} | label_free_measures(z, views)


def rank_correlations(
    table: pd.DataFrame,
    *,
    target: str = "knn",
    measures: Sequence[str] | None = None,
    method: str = "method",
    unit: str | None = "configuration",
    level: float = 0.95,
) -> pd.DataFrame:
    """Spearman's ρ and Kendall's τ_b of measures with an accuracy over runs, with confidence intervals.

    Three scopes, since a measure may be right within methods and wrong across them (Simpson's paradox):

    - "all": over all runs, whatever the method, so that differences between methods count
    - "within": stratified by method, what a measure says where the method is given. ρ is of ranks that are taken, and
      centered, within each method; τ is over the pairs of runs of one method.
    - "between": over the methods' means

    Intervals are Fisher's z ± t·se, with se by leaving out one unit at a time, and at least that of independent normal
    pairs; 95 % intervals held the truth in 94 to 100 % of simulated samples (12 to 48 runs, 1 or 4 methods). A perfect
    correlation is taken as one swap of neighbors short of it.

    Args:
        table: one row for each run. Rows whose measure or target is NaN are left out, measure by measure.
        target: the column of the accuracy.
        measures: columns; by default those of `LABEL_FREE_MEASURES` that are there.
        method: the column that names the method.
        unit: the column whose equal entries are not independent, as runs of one configuration that differ in the seed;
            None: every run is.
        level: of the intervals.

    Returns:
        One row per measure, scope and statistic: value in [-1, 1], low, high, runs, units, and the sign that is
        expected of the measure (1 if `LABEL_FREE_MEASURES` does not have it). NaN where all values are tied, or units
        are too few.

    Raises:
        ValueError: a column that is not there, no measure.

    Source: Kendall 1945 (ties); Bonett & Wright 2000, Fieller et al. 1957 (standard errors).
    """
    measures = [name for name in LABEL_FREE_MEASURES if name in table] if measures is None else list(measures)
    missing = [name for name in [target, method, *measures, *([unit] if unit else [])] if name not in table]
    if missing or not measures:
        raise ValueError(f"table has no column {missing[0]!r}" if missing else "table has no measure")
    rows = []
    for measure in measures:
        given = table[table[[measure, target]].notna().all(axis=1)]
        x, y = (given[name].to_numpy(dtype=float) for name in (measure, target))
        strata = pd.factorize(given[method])[0]
        units = pd.factorize(given[unit])[0] if unit else np.arange(len(given))
        means = given.groupby(method)[[measure, target]].mean().to_numpy(dtype=float).T  # (2, methods)
        alone = np.arange(means.shape[1])
        samples = {
            "all": (x, y, np.zeros(len(x), dtype=int), units),
            "within": (x, y, strata, units),
            "between": (*means, np.zeros_like(alone), alone),
        }
        for scope in SCOPES:
            for name, statistic in (("spearman", _spearman), ("kendall", _kendall)):
                value, low, high = _interval(statistic, *samples[scope], level)
                row = {"measure": measure, "scope": scope, "statistic": name, "value": value, "low": low, "high": high}
                row |= {"runs": len(samples[scope][0]), "units": len(np.unique(samples[scope][3]))}
                rows.append(row | {"expected": LABEL_FREE_MEASURES.get(measure, 1)})
    return pd.DataFrame(rows)


def in_expected_direction(found: pd.DataFrame, *, statistic: str = "spearman") -> pd.DataFrame:
    """Turn the signs of `rank_correlations` so that positive is as expected: value, low, high by measure and scope.

    Args:
        found: from `rank_correlations`.
        statistic: "spearman" or "kendall".
    """
    table = found[found["statistic"] == statistic].set_index(["measure", "scope"])
    turned = table[["value", "low", "high"]].mul(table["expected"], axis=0)
    turned[["low", "high"]] = np.sort(turned[["low", "high"]], axis=1)
    return turned


class CorrelationDifference(NamedTuple):
    """How much better one measure ranks an accuracy than another, with its 95 % interval over units."""

    difference: float
    low: float
    high: float
    units: int


def correlation_difference(
    table: pd.DataFrame,
    measure: str,
    rival: str,
    *,
    target: str = "knn",
    method: str = "method",
    unit: str = "configuration",
) -> CorrelationDifference:
    """Spearman's ρ of one measure with an accuracy less that of another, both within methods.

    ρ is that of `rank_correlations`, scope "within", its sign turned to what `LABEL_FREE_MEASURES` expects. Two
    measures of the same runs are correlated: the interval is difference ± t·se, with se of the difference by leaving
    out one unit at a time. Rows where either measure or the accuracy is NaN are left out.

    Args:
        table: one row for each run.
        measure: a column.
        rival: the column that it is compared with.
        target: the column of the accuracy.
        method: the column that names the method.
        unit: the column whose equal entries are not independent.

    Returns:
        The difference in [-2, 2], low and high, NaN where units are too few, and how many units there are.
    """
    given = table[table[[measure, rival, target]].notna().all(axis=1)]
    y, strata = given[target].to_numpy(dtype=float), pd.factorize(given[method])[0]
    units = pd.factorize(given[unit])[0]
    sides = [(LABEL_FREE_MEASURES.get(x, 1), given[x].to_numpy(dtype=float)) for x in (measure, rival)]

    def difference(rows: np.ndarray) -> float:
        one, other = (sign * _spearman(x[rows], y[rows], strata[rows]) for sign, x in sides)
        return one - other

    value, names = difference(units >= 0), np.unique(units)
    free = len(names) - len(np.unique(strata)) - 1
    if math.isnan(value) or free < 3:
        return CorrelationDifference(value, math.nan, math.nan, len(names))
    left_out = np.array([difference(units != u) for u in names])
    half = student_quantile(0.95, free) * float(leave_one_out_error(left_out))
    return CorrelationDifference(value, value - half, value + half, len(names))


CorrelationStatistic = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def _spearman(x: np.ndarray, y: np.ndarray, strata: np.ndarray) -> float:
    """Correlation of ranks within strata, centered there; NaN if all are tied."""
    a, b = np.zeros(len(x)), np.zeros(len(x))
    for stratum in np.unique(strata):
        of = strata == stratum
        a[of], b[of] = (stats.rankdata(v[of]) - (of.sum() + 1) / 2 for v in (x, y))
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else math.nan


def _kendall(x: np.ndarray, y: np.ndarray, strata: np.ndarray) -> float:
    """(concordant − discordant)/√(pairs untied in x · pairs untied in y) over the pairs within strata."""
    same = strata[:, None] == strata
    a, b = (np.sign(v[:, None] - v) * same for v in (x, y))
    scale = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else math.nan


def _interval(
    statistic: CorrelationStatistic, x: np.ndarray, y: np.ndarray, strata: np.ndarray, units: np.ndarray, level: float
) -> tuple[float, float, float]:
    """A statistic and its confidence interval, NaN where there are too few units."""
    value, names = statistic(x, y, strata), np.unique(units)
    free = len(names) - len(np.unique(strata)) - 2
    if math.isnan(value) or free < 2:
        return value, math.nan, math.nan
    sizes = np.bincount(strata)
    swap = 12 / (sizes * (sizes**2 - 1.0)).sum() if statistic is _spearman else 4 / (sizes * (sizes - 1)).sum()

    def z(r: float) -> float:
        return math.atanh(np.clip(r, swap - 1, 1 - swap))

    left_out = np.array([z(statistic(x[units != u], y[units != u], strata[units != u])) for u in names])
    jackknife = leave_one_out_error(left_out)
    normal = math.sqrt((1 + value**2 / 2) / free) if statistic is _spearman else math.sqrt(0.437 / (free - 1))
    half = student_quantile(level, free + 1) * max(jackknife, normal)
    return value, math.tanh(z(value) - half), math.tanh(z(value) + half)
