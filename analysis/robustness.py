"""What becomes of a method around its recipe: outcomes of many runs, collapse by one criterion, and shares with errors.

A study's settings are rows (method, at, recipe, seeds): `at` says which factors were changed, by which multiple.
"""

from collections.abc import Iterable, Sequence

import pandas as pd
from scipy.stats import binomtest
from tqdm import tqdm

from analysis.diagnose import EPS, diagnose
from simdino.runs import Run

SPREAD, RANK = 0.05, 2.0  # below either the features have collapsed


def outcomes(runs: Iterable[Run], *, progress: bool = False) -> pd.DataFrame:
    """What each run ended with, a row a run, indexed by recipe and seed.

    Of the network that is evaluated, on held-out images: knn, of the backbone's feature; knn_pixels, of raw pixels;
    effective_rank and alignment of the features that the loss sees; spread, their coding rate's place between total
    collapse (0) and isotropy (1), at ε² = 0.05 for all, whatever the objective's own; mean_collapse of the backbone.
    collapsed: spread < 0.05 or effective_rank < 2, the one criterion for every method. (Neither k-NN nor a scale-free
    measure alone sees a collapse: rounding noise classifies like an untrained network.)

    ValueError: two runs of one recipe and seed; a run without features or with a damaged file.
    """
    rows = []
    for run in tqdm(list(runs), desc="diagnosing", unit="run", disable=not progress):
        end = diagnose(run, last=True, eps=EPS).sel(branch="teacher").isel(step=0)
        head, backbone = end.sel(layer="head"), end.sel(layer="backbone")
        row = {"recipe": run.config["recipe"], "seed": run.config["seed"], "knn": backbone["knn"]}
        row |= {name: head[name] for name in ("effective_rank", "spread", "alignment")}
        row |= {"mean_collapse": backbone["mean_collapse"], "knn_pixels": end["knn_pixels"]}
        rows.append({k: v.item() if hasattr(v, "item") else v for k, v in row.items()})
    table = pd.DataFrame(rows).set_index(["recipe", "seed"])
    if not table.index.is_unique:
        recipe, seed = table.index[table.index.duplicated()][0]
        raise ValueError(f"there are two runs of {recipe} with seed {seed}")
    return table.assign(collapsed=(table["spread"] < SPREAD) | (table["effective_rank"] < RANK))


def neighbourhood(settings: Iterable[Sequence], runs: pd.DataFrame) -> pd.DataFrame:
    """A row a setting: its factors and the means over its seeds of what `outcomes` says.

    Besides the columns of `outcomes`: method, at, factor and multiple (of a setting that changes one; else None, and
    "" of the recipe itself), seeds, knn_sd (NaN with one seed), and relative, the k-NN accuracy as a share of the best
    of the method's settings, whichever that is. ValueError: a setting without a run.
    """
    rows = []
    for method, at, recipe, seeds in settings:
        keys = [(recipe, seed) for seed in seeds]
        if missing := [key for key in keys if key not in runs.index]:
            raise ValueError(f"{missing[0][0]} has no run with seed {missing[0][1]}")
        own = runs.loc[keys]
        one = {0: ("", None), 1: next(iter(at.items()), None)}.get(len(at), (None, None))
        row = {"method": method, "at": at, "factor": one[0], "multiple": one[1], "recipe": recipe, "seeds": len(keys)}
        rows.append(row | own.mean().to_dict() | {"knn_sd": own["knn"].std()})
    table = pd.DataFrame(rows)
    return table.assign(relative=table["knn"] / table.groupby("method")["knn"].transform("max"))


def share_within(table: pd.DataFrame, *, drop: float = 0.05) -> pd.DataFrame:
    """How large a part of each method's neighbourhood works: a row a method, from `neighbourhood`.

    Of the n settings that change one factor, the share whose k-NN accuracy is at most `drop` below the method's best
    (relative), with Wilson's interval at 95 % (low, high), and the share that collapsed. The interval is that of n
    independent draws of settings: read it as how much n settings can say.
    """
    rows = {}
    for method, part in table[table["factor"].fillna("") != ""].groupby("method", sort=False):
        within = part["relative"] >= 1 - drop
        low, high = binomtest(int(within.sum()), len(part)).proportion_ci(method="wilson")
        rows[method] = {"n": len(part), "within": int(within.sum()), "share": within.mean(), "low": low, "high": high}
        rows[method]["collapsed"] = (part["collapsed"] > 0).mean()
    return pd.DataFrame.from_dict(rows, orient="index")


def share_difference(a: pd.Series, b: pd.Series) -> tuple[float, float, float]:
    """The difference of two shares, rows of `share_within`, and its interval at 95 %: (difference, low, high).

    From Wilson's intervals (l, u) of each: a − b − √((a − lₐ)² + (u_b − b)²), a − b + √((uₐ − a)² + (b − l_b)²).
    Source: Newcombe 1998, Statistics in Medicine 17, method 10.
    """
    difference = a["share"] - b["share"]
    down = ((a["share"] - a["low"]) ** 2 + (b["high"] - b["share"]) ** 2) ** 0.5
    up = ((a["high"] - a["share"]) ** 2 + (b["share"] - b["low"]) ** 2) ** 0.5
    return float(difference), float(difference - down), float(difference + up)


def matched(table: pd.DataFrame, method: str, rival: str) -> pd.DataFrame:
    """The settings that two methods share, the recipes among them: knn, effective_rank, collapsed of both."""
    columns = ["knn", "effective_rank", "collapsed"]
    sides = [table[table["method"] == m].dropna(subset="factor") for m in (method, rival)]
    keys = [side["factor"] + " " + side["multiple"].astype(str) for side in sides]
    a, b = (side.set_index(key)[columns] for side, key in zip(sides, keys, strict=True))
    return a.join(b, how="inner", lsuffix="", rsuffix=f"_{rival}")
