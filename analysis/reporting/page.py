"""All that can be said of a run or of a file of features, on one page: report, spectra, curves, what to look at next.

`one_page` gathers it, notebook 20 draws it; `report_run` is the part about a run that prints as a table. A file is read
once, and a run diagnosed once.
"""

import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.special import gammaln
from torch import Tensor

from simdino.config import PUBLISHED_EPS
from simdino.runs import Run, evaluated_branch

from ..files import read_features, read_labels
from ..measures.inputs import as_labels, unit_rows
from ..measures.spectra import effective_rank, eigenvalues
from ..planning import Preflight, preflight
from ..runs.diagnosis import diagnose
from ..runs.vit_layers import token_shares
from ..theory import white_noise_spectrum
from .advice import next_steps
from .features import Report, read_unit_rows, report, report_of_rows, wrapped
from .judgement import JudgedAs

PAIRS = 1024  # rows of which all pairs are compared
BINS = 100  # of the cosines
BLOCKS = 16  # of the jackknife
# Measures of a report that stand side by side, and what their columns are called.
SHOWN_BESIDE = {
    "coding rate": "rate",
    "effective rank": "rank",
    "effective rank, centered": "rank centered",
    "mean share": "mean share",
    "feature std": "feature std",
    "alignment, ½E‖z − z′‖²": "½E‖z − z′‖²",
    "k-NN accuracy": "k-NN, halves",  # one half by the other; of a run the sentences say that by its bank
}


@dataclass(frozen=True, repr=False)
class RunReport:
    """The diagnostics of a run's layers at its first and last snapshot, and what is said of them.

    Two sentences compare the layers with baselines, and head and backbone have one `Report` each.
    """

    run: str
    table: pd.DataFrame  # one row for each layer and step
    sentences: tuple[str, ...]
    reports: dict[str, Report]  # of each layer at the last snapshot

    def to_json(self) -> str:
        """Everything in the report."""
        reports = {layer: json.loads(told.to_json()) for layer, told in self.reports.items()}
        table = json.loads(self.table.reset_index().to_json(orient="records"))
        plain = {"run": self.run, "sentences": self.sentences, "table": table, "reports": reports}
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        judged = [f"{layer}, {told.judgement.upper()}: {told.reason}" for layer, told in self.reports.items()]
        says = [line for sentence in (*self.sentences, *judged) for line in wrapped(sentence)]
        return "\n".join([self.run, *says, "", self.table.to_string(float_format="{:.3g}".format, na_rep="-")])

    def _repr_html_(self) -> str:
        reports = "".join(f"<h4>{escape(layer)}</h4>{told._repr_html_()}" for layer, told in self.reports.items())
        table = self.table.to_html(float_format="{:.3g}".format, na_rep="")
        return f"<p><b>{escape(self.run)}</b><br>{escape(' '.join(self.sentences))}</p>{table}{reports}"


@dataclass(frozen=True, repr=False)
class Page:
    """What `one_page` found: print it, show it, draw it.

    A file has one set, "features"; a run has two, "head" and "backbone".
    """

    name: str
    report: Report | RunReport
    reports: dict[str, Report]  # of each set
    spectra: pd.DataFrame  # set, index, eigenvalue, white_noise
    # set, measure, value, low, high (± 2 se): divided by the value for white noise of the same n and d
    relative: pd.DataFrame
    cosines: pd.DataFrame  # set, pairs ("all", or "one class" and "different classes"), cosine, density, white_noise
    sizes: pd.DataFrame  # set, n, effective_rank, white_noise: of n random rows
    next: tuple[str, ...]  # sentences
    facts: dict[str, float]  # of a run; empty for features
    curves: xr.Dataset | None = None  # `diagnose`, of the branch that is evaluated
    log: pd.DataFrame | None = None  # what was logged
    preflight: Preflight | None = None  # of a run of SimDINO
    read: tuple[str, ...] = ()  # of files: what was taken as what, and what was left

    def to_json(self) -> str:
        """Everything in the report, and of files what was read."""
        plain = json.loads(self.report.to_json()) | ({"read": self.read} if self.read else {})
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        lines = ["What to look at next:", *(line for step in self.next for line in wrapped(step, bullet="- ")), ""]
        if self.read:
            lines = ["Read:", *(line for said in self.read for line in wrapped(said, bullet="- ")), "", *lines]
        if self.preflight:
            known = self.preflight.sentences
            lines += ["Known before the run:", *(line for said in known for line in wrapped(said, bullet="- ")), ""]
        return "\n".join([*lines, repr(self.report)])

    def _repr_html_(self) -> str:
        steps = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.next)
        before = ""
        if self.preflight:
            known = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.preflight.sentences)
            before = f"<p><b>Known before the run</b></p><ul>{known}</ul>"
        read = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.read)
        return f"{read}<p><b>What to look at next</b></p><ul>{steps}</ul>{before}{self.report._repr_html_()}"


def one_page(
    what: str | Path,
    *,
    labels: str | Path | None = None,
    eps: float | None = None,
    judged_as: JudgedAs | None = None,
    features: str | None = None,
    label: str | None = None,
) -> Page:
    """Gather all that can be said of a run directory, or of features (n, d) in a file, as `files.read_features` reads.

    Spectra, cosines and sizes are of at most 4,096 random rows, put on the unit sphere, without rows that are zero.

    Args:
        what: the run directory or the file.
        labels: a file of class indices (`files.read_labels`), if the features have some that are not beside them.
        eps: the paper's ε, for features (default: 0.2236); a run has its own.
        judged_as: "head" (the default) or "backbone", for features; a run's layers are judged as what they are.
        features: the array or columns of the features, where the file leaves that open.
        label: the array or column of the labels, where it has another name than labels have.

    Raises:
        ValueError: no such file, damage, labels that do not fit, too few rows, what could be read in two ways.
    """
    path = Path(what).expanduser()
    if path.is_dir():
        if (labels, eps, judged_as, features, label) != (None,) * 5:
            raise ValueError("a run has its own labels, ε and layers: labels, eps and judged_as are for features")
        return _page_of_run(Run.load(path))
    beside = labels is None
    z, given, read = read_features(path, features=features, label=label if beside else None, with_labels=beside)
    read = (read,)
    if not beside:
        given, of_labels = read_labels(labels, label=label)
        read += (of_labels,)
        if z.shape and len(given) != z.shape[0]:
            raise ValueError(f"{Path(labels).name} has {len(given)} labels, and {path.name} {z.shape[0]} rows")
    rows = read_unit_rows(z, BLOCKS)
    options = {"eps": PUBLISHED_EPS if eps is None else eps, "judged_as": judged_as or "head"}
    told = report_of_rows(rows, labels=given, **options)
    classes = None if given is None else as_labels(given, told.n)[rows.index]
    tables = _tables({"features": rows.sample}, {"features": told}, classes)
    steps = next_steps({"features": (told.judgement, told.n, told.d)})
    return Page(path.name, told, {"features": told}, *tables, steps, {}, read=read)


def side_by_side(pages: dict[str, Page]) -> pd.DataFrame:
    """Put the reports of several runs or files into one table: a row for each and each of its sets.

    Args:
        pages: from `one_page`, by the names that the rows have.

    Returns:
        The judgement, n, d, ε and the measures in `SHOWN_BESIDE`; NaN where a set has none.
    """
    rows = {}
    for name, page in pages.items():
        for of, told in page.reports.items():
            values = {SHOWN_BESIDE[row.measure]: row.value for row in told.rows if row.measure in SHOWN_BESIDE}
            rows[name, of] = {"judgement": str(told.judgement), "n": told.n, "d": told.d, "ε": told.eps, **values}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["", "set"])
    return table[[column for column in ("judgement", "n", "d", "ε", *SHOWN_BESIDE.values()) if column in table]]


def several_pages(pages: dict[str, Page]) -> str:
    """Say of several runs or files what `side_by_side` does, then of each why, and what to look at next."""
    table = side_by_side(pages)
    parts = [table.to_string(float_format="{:.3g}".format, na_rep="-", sparsify=False)]
    for name, page in pages.items():
        says = getattr(page.report, "sentences", ())
        says = [
            *page.read,
            *says,
            *(f"{of}, {told.judgement.upper()}: {told.reason}" for of, told in page.reports.items()),
        ]
        lines = [line for sentence in says for line in wrapped(sentence)]
        lines += [line for step in page.next for line in wrapped(step, bullet="- ")]
        parts.append("\n".join([f"=== {name}", *lines]))
    return "\n\n".join(parts)


def report_run(run: Run | str | Path) -> RunReport:
    """Report on a run: `diagnose` at its first and last snapshot, and `report` of the last head and backbone.

    Everything is of the network that is evaluated: the teacher, or the student of a run without one; and on held-out
    images. k-NN accuracy is compared with that of raw pixels and of the untrained network (step 0), the coding rate
    with those of random directions, of equal features, and the largest possible.

    Raises:
        ValueError: not a run directory, a damaged file, no snapshots.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    curves = diagnose(run).sel(branch="teacher")
    return _report_of_run(run, curves, run.snapshot(run.steps[-1]))


def _report_of_run(run: Run, curves: xr.Dataset, last: dict[str, Tensor]) -> RunReport:
    """`report_run` from what `diagnose` says of the evaluated network and from the features of the last snapshot."""
    steps = sorted({run.steps[0], run.steps[-1]})
    names = ["effective_rank", "effective_rank_centered", "mean_collapse", "feature_std", "alignment", "knn"]
    table = curves[names].sel(step=steps).to_dataframe(dim_order=["layer", "step"])[names]
    table = table.rename(
        columns={"effective_rank": "rank", "effective_rank_centered": "rank centered", "alignment": "½E‖z − z′‖²"}
    )
    knn, rate = curves["knn"].sel(layer="backbone"), curves["rate"].sel(layer="head", step=steps[-1]).item()
    low, isotropic, high = (curves[f"rate_{k}"].item() for k in ("collapsed", "isotropic", "ceiling"))
    labels, eps, branch = run.probe.get("test_labels"), curves.attrs["eps"], evaluated_branch(last)
    accuracy = "The images have no classes, and so there is no k-NN accuracy."
    if labels is not None:
        accuracy = (
            f"k-NN of the backbone at step {steps[-1]}: {knn.sel(step=steps[-1]).item():.1%}; untrained network (step "
            f"{steps[0]}) {knn.sel(step=steps[0]).item():.1%}, raw pixels {curves['knn_pixels'].item():.1%}."
        )
    sentences = (
        accuracy,
        f"Coding rate of the head: {rate:.4g} nats, {rate / isotropic:.1%} of what training on mini-batches can "
        f"attain, that of random directions {isotropic:.4g}; all features equal {low:.4g}, one batch of all images "
        f"(R*) {high:.4g}.",
    )
    reports = {}
    for layer in ("head", "backbone"):
        z, views = last[f"{branch}/{layer}/test"], last.get(f"{branch}/{layer}/views")
        reports[layer] = report(z, labels=labels, views=views, eps=eps, judged_as=layer)
    return RunReport(f"{run.name}, {branch} network, steps {steps[0]} to {steps[-1]}", table, sentences, reports)


def _page_of_run(run: Run) -> Page:
    needed = ["rate", "rate_isotropic"] + ["loss_rate"] * ("gamma" in run.config["objective"])
    log = run.logged(*needed)
    if log.empty:
        raise ValueError(f"{run.path} has logged nothing yet")
    curves = diagnose(run).sel(branch="teacher")
    last = run.snapshot(run.steps[-1])
    told, branch = _report_of_run(run, curves, last), evaluated_branch(last)
    sets = {layer: last[f"{branch}/{layer}/test"] for layer in told.reports}
    tables = _tables(sets, told.reports, run.probe.get("test_labels"))
    before, facts = _preflight(run.config, log), _facts(curves, log)
    judged = {layer: (found.judgement, found.n, found.d) for layer, found in told.reports.items()}
    patches = last.get(f"{branch}/head/patches")  # as the loss sees them
    if patches is not None and "patch_gamma" in run.config["objective"]:
        shares = token_shares(unit_rows(patches))
        facts["patches"] = (shares.rest / (1 - shares.common).clamp(min=1e-12)).item()
    return Page(run.name, told, told.reports, *tables, next_steps(judged, facts), facts, curves, log, before)


def _preflight(config: dict, log: pd.DataFrame) -> Preflight | None:
    """Of a run's configuration, with the rate that was logged last; None without an expansion term."""
    objective, optim = config["objective"], config["optim"]
    if "gamma" not in objective:
        return None
    return preflight(
        n=optim["batch_size"] // optim["groups"],
        d=config["model"]["out"],
        eps=objective["eps"],
        gamma=objective["gamma"],
        stop_gradient=optim["teacher"] != "student-with-gradient",
        rate_of=objective.get("rate_of", "student"),
        global_crops=config["crops"]["global_crops"],
        local_crops=config["crops"]["local_crops"],
        measured=objective["gamma"] * log["loss_rate"].iloc[-1],
    )


def _facts(curves: xr.Dataset, log: pd.DataFrame) -> dict[str, float]:
    """The numbers that `next_steps` judges a run by."""
    knn, low = curves["knn"].sel(layer="backbone"), curves["rate_collapsed"].item()
    log = log.assign(rate=log["rate"].astype(float))  # of nulls alone it has no type
    spread = (log["rate"] - low) / (log["rate_isotropic"] - low)  # of batches, which are logged more often
    tenth = max(len(log) // 10, 1)
    end, middle = log.tail(tenth), slice((len(log) - tenth) // 2, (len(log) + tenth) // 2 + 1)
    facts = {
        "knn": knn[-1].item(),
        "knn_untrained": knn[0].item(),
        "knn_pixels": curves["knn_pixels"].item(),
        "images": float(curves.attrs["n"]),
        "spread": float(spread.tail(tenth).mean()),
        "spread_halfway": float(spread.iloc[middle].mean()),
        "alignment": curves["alignment"].sel(layer="head")[-1].item(),
    }
    if "gradient_rate" in log:
        facts["pull"] = float((end["gradient_rate"] / end["gradient_alignment"]).median())
    return facts


def _tables(sets: dict[str, Tensor], reports: dict[str, Report], labels: Tensor | None) -> list[pd.DataFrame]:
    """spectra, relative, cosines and sizes of a `Page`."""
    rows = []
    for name, z in sets.items():
        given = z.any(1)
        unit, classes = unit_rows(z[given]), None if labels is None else labels[given]
        tables = (_spectrum(unit), _relative(reports[name]), _cosines(unit, classes), _sizes(unit))
        rows.append([table.assign(set=name) for table in tables])
    return [pd.concat(tables, ignore_index=True) for tables in zip(*rows, strict=True)]


def _spectrum(z: Float[Tensor, "n d"]) -> pd.DataFrame:
    lam, noise = eigenvalues(z), white_noise_spectrum(*z.shape)
    return pd.DataFrame({"index": np.arange(1, len(lam) + 1), "eigenvalue": lam, "white_noise": noise})


def _relative(told: Report) -> pd.DataFrame:
    """The measures of a report that rise with spread, divided by the value for white noise of the same n and d."""
    rows = [row for row in told.rows if row.white_noise and row.se is not None and row.healthier == "higher"]
    return pd.DataFrame(
        {
            "measure": row.measure,
            "value": row.value / row.white_noise,
            "low": (row.value - 2 * row.se) / row.white_noise,
            "high": (row.value + 2 * row.se) / row.white_noise,
        }
        for row in rows
    )


def _cosines(z: Float[Tensor, "n d"], labels: Int[Tensor, " n"] | None) -> pd.DataFrame:
    """Densities of the cosines of pairs, of one class and of different ones if there are labels, and of white noise.

    Independent directions in d dimensions: (1 − c²)^((d − 3)/2)·Γ(d/2)/(√π·Γ((d − 1)/2)).
    """
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:PAIRS].to(z.device)
    z, d = z[order].double(), z.shape[1]
    i, j = torch.triu_indices(len(z), len(z), 1)
    c = (z @ z.mT)[i, j].clamp(-1, 1).cpu().numpy()
    kinds = {"all": np.ones(len(c), dtype=bool)}
    if labels is not None:
        same = (labels[order.cpu()][i] == labels[order.cpu()][j]).numpy()
        kinds = {"one class": same, "different classes": ~same}
    edges = np.linspace(-1, 1, BINS + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    constant = gammaln(d / 2) - gammaln((d - 1) / 2) - math.log(math.pi) / 2 if d > 1 else math.nan
    table = pd.DataFrame({"cosine": middle, "white_noise": np.exp(constant + (d - 3) / 2 * np.log1p(-(middle**2)))})
    counts = {kind: np.histogram(c[of], edges)[0] for kind, of in kinds.items() if of.any()}
    width = edges[1] - edges[0]
    return pd.concat([table.assign(pairs=kind, density=n / n.sum() / width) for kind, n in counts.items()])


def _sizes(z: Float[Tensor, "n d"]) -> pd.DataFrame:
    """Effective rank of random subsets of the rows, from all of them down to 1/64, and that of white noise."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1)).to(z.device)
    counts = sorted({max(round(len(z) / 2**k), 2) for k in range(7)})
    ranks = [effective_rank(z[order[:count]]).item() for count in counts]
    noise = [effective_rank(white_noise_spectrum(count, z.shape[1])).item() for count in counts]
    return pd.DataFrame({"n": counts, "effective_rank": ranks, "white_noise": noise})
