"""What becomes of a method around its recipe: outcomes of many runs, collapse by one criterion, and shares with errors.

The settings of a study (`simdino.studies.Setting`) say which factors of a recipe were changed, and by which multiple.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch.nn.functional import normalize
from tqdm import tqdm

from simdino.config import DINO, PUBLISHED_EPS, Config, Model, Optim
from simdino.losses import coding_rate
from simdino.runs import Run, evaluated_branch

from ..experiments.atlas import fourth_order
from ..experiments.dino_map import differences_live, reduced_run
from ..experiments.sampling import random_probe_errors
from ..measures.collapse import patch_ranks
from ..measures.inputs import unit_rows
from ..measures.spectra import eigenvalues
from ..probes.backbone import load_backbone
from ..probes.image import logistic_regression
from ..probes.labeled import ImageSource, label_results
from ..probes.results import Result
from ..theory import sampled_rate
from .diagnosis import diagnose
from .kept_results import kept

# Features count as collapsed if either value is below its limit.
COLLAPSED_SPREAD = 0.05
COLLAPSED_RANK = 2.0

SettingRow = tuple[str, dict[str, float | str], str, Sequence[int]]  # method, at, recipe, seeds of a `Setting`


def outcomes(runs: Iterable[Run], *, progress: bool = False) -> pd.DataFrame:
    """What each run ended with: a table with one row for each run, indexed by recipe and seed.

    All columns are of the network that is evaluated, on held-out images:

    - knn: accuracy of the backbone's feature; knn_pixels: of raw pixels
    - effective_rank, alignment, spectrum (d,): of the features that the loss sees
    - spread: their coding rate's place between total collapse (0) and isotropy (1), at ε² = 0.05 for every run,
      whatever the objective's own ε
    - collapsed: features count as collapsed if either value is below its limit, spread < 0.05 or effective_rank < 2,
      for every method alike. Neither k-NN nor a scale-free measure alone sees a collapse: rounding noise classifies
      like an untrained network.

    Args:
        runs: finished runs.
        progress: show a progress bar.

    Raises:
        ValueError: two runs of one recipe and seed; a run without features or with a damaged file.
    """
    rows = []
    for run in tqdm(list(runs), desc="diagnosing", unit="run", disable=not progress):
        end = end_outcome(run)
        names = {"recipe": run.config["recipe"], "seed": run.config["seed"]}
        rows.append(names | end | {"spectrum": np.array(end["spectrum"])})
    table = pd.DataFrame(rows).set_index(["recipe", "seed"])
    if not table.index.is_unique:
        recipe, seed = table.index[table.index.duplicated()][0]
        raise ValueError(f"there are two runs of {recipe} with seed {seed}")
    return table.assign(collapsed=(table["spread"] < COLLAPSED_SPREAD) | (table["effective_rank"] < COLLAPSED_RANK))


@kept
def end_outcome(run: Run) -> dict[str, float | list[float]]:
    """What one run ended with."""
    end = diagnose(run, last=True, eps=PUBLISHED_EPS).sel(branch="teacher").isel(step=0)
    head = end.sel(layer="head")
    values = {"knn": end["knn"].sel(layer="backbone").item()}
    values |= {name: head[name].item() for name in ("effective_rank", "spread", "alignment")}
    return values | {
        "knn_pixels": end["knn_pixels"].item(),
        "spectrum": head["eigenvalues"].values[: end.attrs["d"]].tolist(),
    }


@kept
def batch_rates(run: Run) -> dict[str, float]:
    """Mean coding rates of batches of the held-out features of the head that one run ended with, at ε² = 0.05, in nats.

    The batches are as large as those that the run's rate was taken of. real: of the features; normal: of normal
    directions with the same spectrum; predicted: of B8, from that spectrum alone (`theory.sampled_rate`).
    """
    snapshot, optim = run.snapshot(run.steps[-1]), run.config["optim"]
    z = unit_rows(snapshot[f"{evaluated_branch(snapshot)}/head/test"]).double()
    (n, d), b, draws = z.shape, optim["batch_size"] // optim["groups"], 1000
    lam, generator = eigenvalues(z), torch.Generator().manual_seed(0)
    real = z[torch.rand(draws, n, generator=generator).argsort(1)[:, :b]]
    normal = torch.randn(draws, b, len(lam), generator=generator, dtype=z.dtype) * lam.clamp(min=0).sqrt()
    rates = {"real": real, "normal": normalize(normal, dim=-1)}
    return {name: coding_rate(x, eps=PUBLISHED_EPS).mean().item() for name, x in rates.items()} | {
        "predicted": sampled_rate(lam, b, d=d, eps=PUBLISHED_EPS)
    }


@kept
def survival_forecast(run: Run) -> dict[str, float]:
    """What a reduced network says of one of DINO's runs, from its configuration alone: `experiments.dino_map`.

    `lives`, 1 or 0, whether the differences survive; `ratio`, |E t − c|/√E‖t − E t‖² at step 30, or the last before.
    The reduced network has the run's seed, and nothing else in common with it.
    """
    c = run.config
    parts = {"model": Model(**c["model"]), "objective": DINO(**c["objective"]), "optim": Optim(**c["optim"])}
    center, spread = reduced_run(Config(c["recipe"], **parts), seed=c["seed"])
    at = min(30, len(spread) - 1)
    return {"lives": float(differences_live(spread)), "ratio": float(center[at] / spread[at])}


@kept
def fourth_order_outcome(run: Run) -> dict[str, float]:
    """The `experiments.atlas.fourth_order` of what one run ended with, by the images' classes; of photos, the picture.

    It is of the features that the loss sees, of held-out images, and empty for images without classes.
    """
    snapshot, probe = run.snapshot(run.steps[-1]), run.probe
    if "test_labels" not in probe:
        return {}
    features = unit_rows(snapshot[f"{evaluated_branch(snapshot)}/head/test"]).double()
    return fourth_order(features, probe["test_labels"])._asdict()


@kept
def probe_outcome(run: Run) -> dict[str, float]:
    """The error of ridge probes at the features that one run ended with, those that the loss sees of held-out images.

    It is the mean of `experiments.sampling.random_probe_errors` over 2,000 tasks at the paper's ε, with its sd.
    """
    snapshot = run.snapshot(run.steps[-1])
    features = unit_rows(snapshot[f"{evaluated_branch(snapshot)}/head/test"])
    errors = random_probe_errors(features, eps=PUBLISHED_EPS, draws=2000, seed=run.config["seed"])
    return {"error": errors.mean().item(), "sd": errors.std().item(), "tasks": len(errors)}


def outcomes_by_setting(settings: Iterable[SettingRow], runs: pd.DataFrame) -> pd.DataFrame:
    """Label `outcomes` by the settings of a study: one row for each run, with what was changed before what came out.

    Columns before those of `runs`: method, at, factor, multiple, recipe, seed. factor and multiple are of a setting
    that changes one factor. For the recipe itself factor is "" and multiple None; where two factors are changed both
    are None.

    Args:
        settings: from `simdino.studies.settings`.
        runs: from `outcomes`.

    Raises:
        ValueError: a setting without a run.
    """
    rows = []
    for method, at, recipe, seeds in settings:
        factor, multiple = {0: ("", None), 1: next(iter(at.items()), None)}.get(len(at), (None, None))
        for seed in seeds:
            if (recipe, seed) not in runs.index:
                raise ValueError(f"{recipe} has no run with seed {seed}")
            row = {"method": method, "at": at, "factor": factor, "multiple": multiple, "recipe": recipe, "seed": seed}
            rows.append(row | runs.loc[(recipe, seed)].to_dict())
    return pd.DataFrame(rows)


def untrained_knn(runs: Iterable[Run]) -> float:
    """Mean k-NN accuracy of the runs' networks before training, as `outcomes` has it after.

    Args:
        runs: whose first snapshot is of the untrained network.
    """
    values = [untrained_outcome(run)["knn"] for run in runs]
    return sum(values) / len(values)


@kept
def untrained_outcome(run: Run) -> dict[str, float]:
    """k-NN accuracy of one run's network before training."""
    return {"knn": diagnose(run).sel(branch="teacher", layer="backbone")["knn"][0].item()}


def mean_outcomes(settings: Iterable[SettingRow], runs: pd.DataFrame, *, untrained: float) -> pd.DataFrame:
    """Average `outcomes` over the seeds of each setting of a study: one row for each setting.

    Columns: what was changed, as in `outcomes_by_setting`; the means of what `outcomes` says; seeds, their number;
    knn_sd, NaN for a single seed; relative, k-NN accuracy over that of the method's best setting; gain, k-NN accuracy
    above `untrained`, as a share of the gain of the method's recipe.

    Args:
        settings: from `simdino.studies.settings`.
        runs: from `outcomes`.
        untrained: k-NN accuracy before training (`untrained_knn`).
    """
    rows = []
    for _, own in outcomes_by_setting(settings, runs).groupby("recipe", sort=False):
        same = own.iloc[0][["method", "at", "factor", "multiple", "recipe"]].to_dict()
        means = own.drop(columns="seed").mean(numeric_only=True).to_dict()
        rows.append(same | {"seeds": len(own)} | means | {"knn_sd": own["knn"].std()})
    table = pd.DataFrame(rows)
    best = table.groupby("method")["knn"].transform("max")
    reference = table["method"].map(table[table["factor"] == ""].set_index("method")["knn"])
    return table.assign(relative=table["knn"] / best, gain=(table["knn"] - untrained) / (reference - untrained))


def share_within(table: pd.DataFrame, *, column: str = "relative", least: float = 0.95) -> pd.DataFrame:
    """How large a share of each method's settings works: one row for each method.

    Only settings that change one factor count. Columns: n, their number; within, how many have `column` at `least`;
    share and its 95 % Wilson interval (low, high); collapsed, the share that collapsed. The interval is that of n
    independent draws of settings: read it as how much n settings can say.

    The column "relative" is lenient with a method that learns less, since the untrained network's accuracy counts, and
    the best of many settings lies above the recipe by chance. "gain" has neither fault, and is noisier for such a
    method.

    Args:
        table: from `mean_outcomes`.
        column: of the table, what is compared with `least`.
        least: 0.95 of "relative" means at most 5 % below the method's best setting.
    """
    rows = {}
    for method, part in table[table["factor"].fillna("") != ""].groupby("method", sort=False):
        within = part[column] >= least
        low, high = binomtest(int(within.sum()), len(part)).proportion_ci(method="wilson")
        rows[method] = {"n": len(part), "within": int(within.sum()), "share": within.mean(), "low": low, "high": high}
        rows[method]["collapsed"] = (part["collapsed"] > 0).mean()
    return pd.DataFrame.from_dict(rows, orient="index")


class Difference(NamedTuple):
    """A difference and its 95 % interval."""

    difference: float
    low: float
    high: float


def share_difference(a: pd.Series, b: pd.Series) -> Difference:
    """The difference of two shares, rows of `share_within`, with its 95 % interval.

    From Wilson's intervals (l, u) of each: a − b − √((a − lₐ)² + (u_b − b)²), a − b + √((uₐ − a)² + (b − l_b)²).

    Args:
        a: with the entries share, low and high.
        b: the same, what is subtracted.

    Source: Newcombe 1998, Statistics in Medicine 17, method 10.

    >>> certain = pd.Series({"share": 0.75, "low": 0.75, "high": 0.75})
    >>> share_difference(certain, pd.Series({"share": 0.5, "low": 0.25, "high": 0.75}))  # b alone is uncertain
    Difference(difference=0.25, low=0.0, high=0.5)
    """
    difference = a["share"] - b["share"]
    down = ((a["share"] - a["low"]) ** 2 + (b["high"] - b["share"]) ** 2) ** 0.5
    up = ((a["high"] - a["share"]) ** 2 + (b["share"] - b["low"]) ** 2) ** 0.5
    return Difference(float(difference), float(difference - down), float(difference + up))


def matched_settings(table: pd.DataFrame, method: str, rival: str) -> pd.DataFrame:
    """Join two methods on the settings that they share, recipes included: knn, effective_rank, collapsed of both.

    Args:
        table: from `mean_outcomes`.
        method: the method whose columns keep their names.
        rival: the other, whose columns end in its name.
    """
    columns = ["knn", "effective_rank", "collapsed"]
    sides = [table[table["method"] == m].dropna(subset="factor") for m in (method, rival)]
    a, b = (side.assign(setting=[_label(at) for at in side["at"]]).set_index("setting")[columns] for side in sides)
    return a.join(b.add_suffix(f"_{rival}"), how="inner")


def _label(at: dict[str, float | str]) -> str:
    """A setting in words: "γ × 2", "ConvNet"; "recipe" where nothing is changed."""
    words = (k if isinstance(k, str) else f"{name} × {k:g}" for name, k in at.items())
    return ", ".join(words) or "recipe"


def linear_accuracy(runs: Iterable[Run], *, first: bool = False, progress: bool = False) -> pd.Series:
    """Accuracy of a logistic regression on each run's backbone features, indexed by recipe and seed.

    It is fitted to the recorded training images and tested on the recorded held-out ones, of the network that is
    evaluated (`probes.image.logistic_regression`). Runs are many, so only three regularizations are tried.

    Args:
        runs: finished runs.
        first: at the start of training instead of its end.
        progress: show a progress bar.
    """
    rows = {}
    for run in tqdm(list(runs), desc="probing", unit="run", disable=not progress):
        rows[run.config["recipe"], run.config["seed"]] = linear_outcome(run, first=first)["linear"]
    return pd.Series(rows, name="linear").rename_axis(["recipe", "seed"])


@kept
def linear_outcome(run: Run, *, first: bool) -> dict[str, float]:
    """Accuracy of `linear_accuracy` for one run; NaN of images without classes."""
    snapshot, probe = run.snapshot(run.steps[0 if first else -1]), run.probe
    if "bank_labels" not in probe:
        return {"linear": math.nan}
    branch = evaluated_branch(snapshot)
    train, test = (snapshot[f"{branch}/backbone/{part}"] for part in ("bank", "test"))
    result = logistic_regression(train, probe["bank_labels"], test, probe["test_labels"], l2=(0.1, 0.01, 0.001))
    return {"linear": result.accuracy.item()}


def photo_scores(runs: Iterable[Run], *, train: int, test: int, progress: bool = False) -> pd.DataFrame:
    """Probe the runs' backbones with which photograph a crop is from: k-NN, a few images of each, a linear classifier.

    Args:
        runs: finished runs.
        train: how many of the training crops are taken.
        test: how many of the held-out crops.
        progress: show a progress bar.

    Returns:
        Rows with the columns of `probes.results.Result`; the backbone is named by the recipe, and its seeds follow in
        the order of the runs.
    """
    rows = []
    for run in tqdm(list(runs), desc="probing", unit="run", disable=not progress):
        names = {"data": "photos", "backbone": run.config["recipe"]}
        rows.append(pd.DataFrame(photo_outcome(run, train=train, test=test)).assign(**names))
    return pd.concat(rows, ignore_index=True)[list(Result._fields)]


@kept
def photo_outcome(run: Run, *, train: int, test: int) -> dict[str, list]:
    """What `photo_scores` says of one run, column by column."""
    tasks = ["knn", "few-shot", "linear"]
    found = pd.DataFrame(label_results(ImageSource("photos"), [load_backbone(run.path)], tasks, train=train, test=test))
    found = found.drop(columns=["data", "backbone"]).astype(object)
    return found.where(found.notna(), None).to_dict("list")  # NaN is not equal to itself


def patch_ranks_over_training(runs: Iterable[Run]) -> "xarray.Dataset":  # noqa: F821
    """Effective ranks of the patch tokens that the loss sees, by recipe, seed and step: within and between images.

    They are `measures.collapse.patch_ranks` of the same held-out images at every snapshot, of the network that is
    evaluated.

    Args:
        runs: whose objective has patches.

    Raises:
        ValueError: a run without patches.
    """
    rows = []
    for run in runs:
        found = patch_outcome(run)
        if not found["step"]:
            raise ValueError(f"{run.name} has no patches: its objective is of the image feature alone")
        rows.append(pd.DataFrame(found).assign(recipe=run.config["recipe"], seed=run.config["seed"]))
    return pd.concat(rows).set_index(["recipe", "seed", "step"]).to_xarray()


@kept
def patch_outcome(run: Run) -> dict[str, list]:
    """What `patch_ranks_over_training` says of one run: step, within, between; empty where there are no patches."""
    found: dict[str, list] = {"step": [], "within": [], "between": []}
    for step in run.steps:
        snapshot = run.snapshot(step)
        tokens = snapshot.get(f"{evaluated_branch(snapshot)}/head/patches")
        if tokens is not None:
            within, between = patch_ranks(tokens)
            for name, value in {"step": step, "within": within.item(), "between": between.item()}.items():
                found[name].append(value)
    return found


class WithAndWithout(NamedTuple):
    """The runs of a method with something, and its runs without it, indexed by seed."""

    with_: pd.DataFrame
    without: pd.DataFrame


def with_and_without(runs: pd.DataFrame, factor: str, value: float | str) -> dict[str, WithAndWithout]:
    """Split the runs of each method: those of its recipe, and those with one factor changed.

    Args:
        runs: from `outcomes_by_setting`.
        factor: the factor that is changed.
        value: its multiple, or name, in the changed runs.
    """
    changed = (runs["factor"] == factor) & (runs["multiple"] == value)
    both = {}
    for method in runs["method"].unique():
        own = runs["method"] == method
        tables = (runs[own & which].set_index("seed") for which in (runs["factor"] == "", changed))
        both[method] = WithAndWithout(*tables)
    return both


def gain_kept(sides: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], quantity: str, baseline: float) -> pd.DataFrame:
    """The part of a gain over a baseline that is kept without something: mean(without − b)/mean(with − b).

    NaN where no gain is left to keep: with something, the mean is not two standard errors above the baseline.

    Args:
        sides: of each method, the tables with something and without it, indexed by seed (`with_and_without`).
        quantity: a column of both.
        baseline: b, the value that counts as no gain.

    Returns:
        A table (seeds, methods) of the jackknife's pseudo-values n·θ − (n − 1)·θ₋ᵢ: their mean is the ratio corrected
        for bias, their standard error the ratio's. With one seed, the ratio itself.

    >>> runs = pd.DataFrame({"knn": [0.75]}), pd.DataFrame({"knn": [0.5]})  # with, without
    >>> gain_kept({"dino": runs}, "knn", 0.25)["dino"].tolist()  # half of the gain over 0.25
    [0.5]
    """
    ratios = {}
    for name, both in sides.items():
        with_, without = (side[quantity] - baseline for side in both)
        n, ratio = len(with_), without.mean() / with_.mean()
        left_out = (without.sum() - without) / (with_.sum() - with_) if n > 1 else ratio
        gained = with_.mean() > (2 * with_.std() / n**0.5 if n > 1 else 0)
        ratios[name] = n * ratio - (n - 1) * left_out + (0 if gained else np.nan) * with_
    return pd.DataFrame(ratios)
