"""All that can be said of a run or of a file of features, on one page: report, spectra, curves, what to look at next.

`dossier` gathers it, `analysis.plots_studies.plot_dossier` draws it, notebook 20 does both.
"""

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

from analysis._files import read_features, read_labels
from analysis._input import as_labels, unit_rows
from analysis.advice import next_steps
from analysis.diagnose import EPS, diagnose
from analysis.layers import token_shares
from analysis.rates import Preflight, preflight
from analysis.references import white_noise_spectrum
from analysis.report import Report, RunReport, read_rows, report, run_report
from analysis.spectra import effective_rank, eigenvalues
from simdino.runs import Run

PAIRS = 1024  # rows of which all pairs are compared
BINS = 100


@dataclass(frozen=True, repr=False)
class Dossier:
    """What `dossier` found: print it, show it in a notebook, draw it. A set is "features", or "head" and "backbone"."""

    name: str
    report: Report | RunReport
    reports: dict[str, Report]  # of each set
    spectra: pd.DataFrame  # set, index, eigenvalue, white_noise
    relative: pd.DataFrame  # set, measure, value, low, high: over what white noise of the same n and d has, ± 2 se
    cosines: pd.DataFrame  # set, pairs ("all", or "one class" and "different classes"), cosine, density, white_noise
    sizes: pd.DataFrame  # set, n, effective_rank, white_noise: of so many of the rows
    next: tuple[str, ...]  # sentences
    facts: dict[str, float]  # of a run; empty for features
    curves: xr.Dataset | None = None  # `diagnose`, of the branch that is evaluated
    log: pd.DataFrame | None = None  # what was logged
    preflight: Preflight | None = None  # of a run of SimDINO

    def __repr__(self) -> str:
        parts = ["What to look at next:", *(f"- {sentence}" for sentence in self.next), ""]
        return "\n".join(parts + ([str(self.preflight), ""] if self.preflight else []) + [repr(self.report)])

    def _repr_html_(self) -> str:
        steps = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.next)
        before = (
            "".join(f"<li>{escape(sentence)}</li>" for sentence in self.preflight.sentences) if self.preflight else ""
        )
        before = f"<p><b>Known before the run</b></p><ul>{before}</ul>" if before else ""
        return f"<p><b>What to look at next</b></p><ul>{steps}</ul>{before}{self.report._repr_html_()}"


def dossier(what: str | Path, *, labels: str | Path | None = None, eps: float | None = None) -> Dossier:
    """Gather all that can be said of a run directory, or of features (n, d) in a .npy, .npz, .safetensors or .parquet.

    labels: a file of class indices (`read_labels`), if the features have some that are not beside them. eps: the
    paper's ε, for features; a run has its own. Spectra, cosines and sizes are of at most 4,096 random rows, put on the
    unit sphere, without rows that are zero. ValueError: no such file, damage, labels that do not fit, too few rows.
    """
    path = Path(what).expanduser()
    if path.is_dir():
        if labels is not None or eps is not None:
            raise ValueError("a run has its own labels and ε: labels and eps are for files of features")
        return _of_run(Run.load(path))
    z, given = read_features(path)
    given = read_labels(Path(labels).expanduser()) if labels is not None else given
    told = report(z, labels=given, eps=EPS if eps is None else eps)
    _, _, sample, index = read_rows(z, told.blocks)
    classes = None if given is None else as_labels(given, told.n)[index]
    tables = _tables({"features": sample}, {"features": told}, classes)
    return Dossier(path.name, told, {"features": told}, *tables, next_steps({"features": told}), {})


def _of_run(run: Run) -> Dossier:
    told, log = run_report(run), run.metrics
    if log.empty:
        raise ValueError(f"{run.path} has logged nothing yet")
    curves, last = diagnose(run).sel(branch="teacher"), run.snapshot(run.steps[-1])
    branch = "teacher" if "teacher/head/test" in last else "student"
    tables = _tables({tap: last[f"{branch}/{tap}/test"] for tap in told.taps}, told.taps, run.probe["test_labels"])
    before, facts = _preflight(run.config, log), _facts(curves, log)
    patches = last.get(f"{branch}/head/patches")  # as the loss sees them
    if patches is not None and "patch_gamma" in run.config["objective"]:
        shares = token_shares(unit_rows(patches))
        facts["patches"] = (shares["rest"] / (1 - shares["common"]).clamp(min=1e-12)).item()
    return Dossier(run.name, told, told.taps, *tables, next_steps(told.taps, facts), facts, curves, log, before)


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
        measured=objective["gamma"] * log["loss_rate"].iloc[-1],
    )


def _facts(curves: xr.Dataset, log: pd.DataFrame) -> dict[str, float]:
    """The numbers that `next_steps` judges a run by."""
    knn, low = curves["knn"].sel(layer="backbone"), curves["rate_collapsed"].item()
    spread = (log["rate"] - low) / (log["rate_isotropic"] - low)  # of batches, which are logged more often
    tenth = max(len(log) // 10, 1)
    end, middle = log.tail(tenth), slice((len(log) - tenth) // 2, (len(log) + tenth) // 2 + 1)
    facts = {
        "knn": knn[-1].item(),
        "knn_untrained": knn[0].item(),
        "knn_pixels": curves["knn_pixels"].item(),
        "images": float(curves.attrs["n"]),
        "spread": spread.tail(tenth).mean().item(),
        "spread_halfway": spread.iloc[middle].mean().item(),
        "alignment": curves["alignment"].sel(layer="head")[-1].item(),
    }
    if "gradient_rate" in log:
        facts["pull"] = float((end["gradient_rate"] / end["gradient_alignment"]).median())
    return facts


def _tables(sets: dict[str, Tensor], reports: dict[str, Report], labels: Tensor | None) -> list[pd.DataFrame]:
    """spectra, relative, cosines and sizes of a `Dossier`."""
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
    """The measures of a report that rise with spread, over what white noise of the same n and d has."""
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
    """Effective rank of the first so many of the rows, shuffled, and that of white noise."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1)).to(z.device)
    counts = sorted({max(round(len(z) / 2**k), 2) for k in range(7)})
    ranks = [effective_rank(z[order[:count]]).item() for count in counts]
    noise = [effective_rank(white_noise_spectrum(count, z.shape[1])).item() for count in counts]
    return pd.DataFrame({"n": counts, "effective_rank": ranks, "white_noise": noise})
