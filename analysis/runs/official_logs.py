"""What a log of the official code says: where its expansion term lies, and what would explain it.

`read_log` reads the logs of SimDINO and SimDINOv2, `explain` sets them beside the closed forms, `reported` does so with
the losses that users asked about on the official tracker. `official_eps` is the setting of the official code, which is
already a square; `eps` is the paper's ε, as everywhere else.
"""

import csv
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq

from simdino.array_files import reading
from simdino.losses import coding_rate, official_scaling
from simdino.runs import Run, evaluated_branch
from simdino.whole_files import read_json_lines

from .. import theory
from ..files import located
from ..measures.inputs import unit_rows
from ..measures.spectra import effective_rank
from ..theory import sampled_rate

COLUMN_NAMES = {  # of SimDINO's log.txt, of SimDINOv2's training_metrics.json, of a table
    "step": ("epoch", "iteration"),
    "loss": ("train_loss", "dino_mcr_loss", "loss"),
    "expansion": ("train_expa_loss", "dino_mcr_expa_loss", "expansion"),
    "cosine": ("train_comp_loss", "dino_mcr_comp_loss", "alignment_cosine", "cosine"),
}
# SimDINO ViT-B/16 on ImageNet-1k, 8 ranks of 64 images: (epoch, loss, γR, mean cosine of views), from the log that the
# authors published as assets/SimDNIOv1_vitb16.txt of github.com/RobinWu218/SimDINO; its last epoch is 99.
PUBLISHED = (
    (0, -0.8192, 0.3750, 0.4441),
    (1, -0.8802, 0.4172, 0.4630),
    (5, -1.0660, 0.4221, 0.6439),
    (10, -1.1291, 0.4216, 0.7075),
    (20, -1.1584, 0.4220, 0.7365),
    (50, -1.1333, 0.4193, 0.7140),
    (80, -1.2047, 0.4220, 0.7828),
    (99, -1.2822, 0.4238, 0.8584),
)


class Reported(NamedTuple):
    """A run of the official code with d = 256, its eps of 0.05 and covariances that are not gathered."""

    where: str
    ranks: int
    images: int  # of one view on one rank
    expansion: float  # the logged γR, NaN if it is not said
    outcome: str


# Issue numbers of github.com/RobinWu218/SimDINO. That #12 and #50 had one rank follows from their values, which two
# ranks cannot reach; the one of #50 is from a quarter of the way through.
REPORTED = (
    Reported("README, v1", 8, 64, 0.4238, "trained"),
    Reported("README, v2 (#50)", 8, 128, 0.5, "trained"),
    Reported("#48", 2, 256, math.nan, "retrieves worse"),
    Reported("#41", 2, 512, math.nan, "“significantly high”"),
    Reported("#12, start", 1, 24, 1.9398, "negative: normal?"),
    Reported("#12, end", 1, 24, 2.8581, "negative: normal?"),
    Reported("#50", 1, 32, 2.7359, "2.7 instead of 0.5?"),
    Reported("#29", 16, 64, math.nan, "collapsed"),
    Reported("#20", 32, 78, 0.0109, "collapsed, then NaN"),
)
PHASE_DIAGRAM_LABELS = {  # where a run was reported -> ranks × images of those that a phase diagram of collapse shows
    "#12, end": "1 × 24 (#12)",
    "#48": "2 × 256 (#48)",
    "README, v1": "8 × 64 (README)",
    "README, v2 (#50)": "8 × 128 (v2)",
    "#29": "16 × 64, collapsed (#29)",
    "#20": "32 × 78, collapsed (#20)",
}


def read_log(path: str | Path) -> pd.DataFrame:
    """Read a log of the official code: step (epoch or iteration), loss, expansion γR, and cosine.

    cosine is the mean over pairs of different views, which the code calls `comp`. A last line that is still being
    written is left out, with a warning. `attrs["read"]` says which columns were taken; the others are left.

    Args:
        path: JSON lines, or a .csv.

    Raises:
        ValueError: no such file, a damaged line, a column that is not there, a word in a number's place.
    """
    path = Path(path).expanduser()
    with reading(path):
        table = _read_table(path) if path.suffix.lower() == ".csv" else pd.DataFrame(read_json_lines(path))
    found = {ours: next((name for name in names if name in table), None) for ours, names in COLUMN_NAMES.items()}
    missing = [COLUMN_NAMES[ours][0] for ours, name in found.items() if name is None]
    if missing or table.empty:
        raise ValueError(f"{path} is no log of SimDINO: it lacks {', '.join(missing) or 'any row'}")
    table = table[list(found.values())]
    plain = table.map(lambda value: value if isinstance(value, int | float | str) else math.nan)
    numbers = plain.apply(pd.to_numeric, errors="coerce").replace([math.inf, -math.inf], math.nan)
    wrong = np.argwhere((numbers.isna() & (table.notna() | (numbers.columns == found["step"]))).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        value = table.iloc[row, column]
        shown = repr(value) if isinstance(value, str) else value
        raise ValueError(f"cannot read {path}: {table.columns[column]} of row {row + 1} is {shown}")
    whole = numbers[found["step"]]
    if (whole != whole.round()).any() or (abs(whole) > 2**53).any():
        raise ValueError(f"cannot read {path}: {found['step']} must be whole numbers")
    numbers = numbers.set_axis(list(found), axis=1).astype({"step": int})
    numbers.attrs["read"] = f"{path.name}: " + ", ".join(f"{name} as {ours}" for ours, name in found.items())
    return numbers


def published_log(path: str | Path | None = None) -> pd.DataFrame:
    """The authors' log of ViT-B/16 by epochs: the file if it is there, else the epochs of `PUBLISHED`.

    Args:
        path: of the file, as `files.located` finds it.
    """
    found = located(path)
    return read_log(found) if found else pd.DataFrame(PUBLISHED, columns=list(COLUMN_NAMES))


def explain(
    log: pd.DataFrame,
    *,
    d: int = 256,
    images: int = 64,
    ranks: int = 8,
    official_eps: float = 0.05,
    gathered: bool = False,
) -> pd.DataFrame:
    """Set a log beside the bounds of its expansion term γR, and beside what would explain it.

    For `expa_type` 1 the rate is that of (s + t)/2, where s and t are the student's and the teacher's features of one
    view. The log does not give their cosine c; the cosine in the log is between different views. Columns besides
    the log's, where the levels of the expansion include γ:

    - collapsed, isotropic, ceiling: at c = 1; isotropic_at_cosine, ceiling_at_cosine: if c were the logged cosine
    - of_isotropic, of_ceiling: the expansion over those at c = 1, the smallest that these shares can be; the former is
      the share of what batches of many more images can attain (`theory.attainable_rate`), the ceiling is R*
    - cosine_needed: the smallest c with which the expansion is possible (`theory.mean_cosine_bound`)
    - cosine_isotropic: the c with which isotropic features would have this expansion, at most 1
    - dimension: k, if features are isotropic in k dimensions (`flat_dimension`) and c = 1; for smaller c, k is larger
    - power_law_rank: the effective rank of the spectrum λⱼ ∝ j⁻ᵃ that would have this expansion, at c = 1

    A row whose expansion is NaN stays so.

    Args:
        log: from `read_log`.
        d: dimension of the features; the defaults are those of the published run.
        images: of one view on one rank.
        ranks: processes that trained.
        official_eps: the official code's eps, already a square (`simdino.losses.official_scaling`).
        gathered: whether covariances were summed over ranks.

    Raises:
        ValueError: sizes that are not positive.
    """
    n, eps, gamma = _setting(d, images, ranks, official_eps, gathered)
    levels = pd.DataFrame([_levels(n, d, theory.eps_of_mean(eps, c), gamma) for c in log["cosine"]], index=log.index)
    low, isotropic, ceiling = _levels(n, d, eps, gamma).values()
    rates = log["expansion"] / gamma
    return log.assign(
        collapsed=low,
        isotropic=isotropic,
        ceiling=ceiling,
        isotropic_at_cosine=levels["isotropic"],
        ceiling_at_cosine=levels["ceiling"],
        of_isotropic=log["expansion"] / isotropic,
        of_ceiling=log["expansion"] / ceiling,
        cosine_needed=theory.mean_cosine_bound(rates, n, d, eps),
        cosine_isotropic=[_isotropic_cosine(rate, n, d, eps) for rate in rates],
        dimension=flat_dimension(rates, n=n, d=d, eps=eps),
        power_law_rank=[_power_law_rank(rate, n, d, eps) for rate in rates],
    )


def reported(runs: tuple[Reported, ...] = REPORTED) -> pd.DataFrame:
    """Runs that users reported, each with the bounds of its expansion term, its collapse number, and `spread`.

    spread = (expansion − collapsed)/(isotropic − collapsed): 0 is total collapse, 1 independent random directions.

    Args:
        runs: with the settings that `Reported` fixes; by default those that the project has recorded.

    Returns:
        a row for each run: the fields of `Reported`, collapsed, isotropic, ceiling, spread and collapse_number.
    """
    rows = []
    for run in runs:
        n, eps, gamma = _setting(256, run.images, run.ranks, 0.05, False)
        levels = _levels(n, 256, eps, gamma)
        spread = (run.expansion - levels["collapsed"]) / (levels["isotropic"] - levels["collapsed"])
        number = theory.collapse_number(256, eps, gamma)
        rows.append(run._asdict() | levels | {"spread": spread, "collapse_number": number})
    return pd.DataFrame(rows)


class ReportedCollapse(NamedTuple):
    """The collapse number of a run that somebody reported, and how the run ended."""

    collapse_number: float
    collapsed: bool


def reported_collapses() -> dict[str, ReportedCollapse]:
    """Collapse numbers of reported runs that differ in their ranks and images, and whether these runs collapsed.

    Returns:
        a run per label of `PHASE_DIAGRAM_LABELS`, in its order; `theory.collapse_number` says what the number means.

    >>> [label for label, run in reported_collapses().items() if run.collapsed]
    ['16 × 64, collapsed (#29)', '32 × 78, collapsed (#20)']
    """
    table = reported().set_index("where").loc[list(PHASE_DIAGRAM_LABELS)]
    collapsed = table["outcome"].str.startswith("collapsed")
    runs = map(ReportedCollapse, table["collapse_number"].tolist(), collapsed.tolist())
    return dict(zip(PHASE_DIAGRAM_LABELS.values(), runs, strict=True))


def flat_dimension(rate: int | float | pd.Series, *, n: int, d: int, eps: float) -> float | np.ndarray:
    """The k for which features that are isotropic in k of d dimensions have this expected rate in batches of n.

    It is d for the rate of isotropic features and for larger ones. A batch of n < k rows hardly tells dimensions apart:
    the rate of infinitely many dimensions is still finite, n/2·log(1 + α/n).

    Args:
        rate: in nats; a number or many.
        n: rows of a batch.
        d: dimension of the features.
        eps: the paper's ε.

    >>> rate = theory.rate_isotropic(8, 4, 0.5)
    >>> round(float(flat_dimension(rate, n=8, d=4, eps=0.5)), 6)  # all four dimensions
    4.0
    """
    dimensions = np.arange(1, d + 1)
    rates = [theory.rate_isotropic(n, int(k), eps * math.sqrt(k / d)) for k in dimensions]  # α = d/ε² stays
    return np.interp(np.asarray(rate, dtype=float), rates, dimensions)


def rates_of_means(n: int, d: int, *, eps: float, cosine: float, draws: int = 200, seed: int = 0) -> np.ndarray:
    """Simulated coding rates of the means (s + t)/2 of pairs of random unit vectors with ⟨s, t⟩ = cosine, in nats.

    Args:
        n: pairs in a batch.
        d: dimension of the vectors.
        eps: the paper's ε.
        cosine: c, in [-1, 1].
        draws: batches.
        seed: of the random vectors.

    Returns:
        (draws,) rates, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    s, t = unit_rows(torch.randn(2, draws, n, d, generator=generator, dtype=torch.float64))
    t = unit_rows(t - (s * t).sum(-1, keepdim=True) * s)
    return coding_rate((s + cosine * s + math.sqrt(1 - cosine**2) * t) / 2, eps=eps).numpy()


def run_cosines(run: Run) -> pd.DataFrame:
    """Mean cosines of the head's features at each recorded step of one of our runs, which official logs leave out.

    Args:
        run: with recorded features of a head.

    Returns:
        a row for each step: step; student_teacher, of the two branches for one image as it is (1 without a teacher);
        views, of two augmentations of one image, in the branch that is evaluated.
    """
    rows = []
    for step in run.steps:
        snapshot = run.snapshot(step)
        branch = evaluated_branch(snapshot)
        same = (snapshot["student/head/test"] * snapshot[f"{branch}/head/test"]).sum(1).mean().item()
        views = snapshot[f"{branch}/head/views"].prod(0).sum(1).mean().item()
        rows.append({"step": step, "student_teacher": same, "views": views})
    return pd.DataFrame(rows)


def _read_table(path: Path) -> pd.DataFrame:
    """A .csv as a table of text, of which a last line that is cut short is left out, with a warning."""
    rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    if len(rows) > 1 and len(rows[-1]) < len(rows[0]):
        warnings.warn(f"the last line of {path} is cut short and left out", stacklevel=2)
        rows.pop()
    odd = [i for i, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if odd:
        raise ValueError(f"line {odd[0]} has {len(rows[odd[0] - 1])} cells, and the first line {len(rows[0])}")
    return pd.DataFrame(rows[1:], columns=rows[0] if rows else None).replace("", None)


def _power_law_rank(rate: float, n: int, d: int, eps: float) -> float:
    """Effective rank of the spectrum λⱼ ∝ j⁻ᵃ, j ≤ d, a ≥ 0, whose expected rate in batches of n this is."""

    def spectrum(a: float) -> np.ndarray:
        lam = np.arange(1, d + 1.0) ** -a
        return lam / lam.sum()

    def excess(a: float) -> float:
        return sampled_rate(spectrum(a), n, d=d, eps=eps) - rate

    if not math.isfinite(rate) or rate <= theory.rate_collapsed(d, eps):
        return math.nan if math.isnan(rate) else 1.0
    steepest = 50.0  # of one direction, to rounding
    if excess(0.0) <= 0 or excess(steepest) >= 0:
        return float(d) if excess(0.0) <= 0 else 1.0
    return effective_rank(spectrum(brentq(excess, 0.0, steepest))).item()


def _isotropic_cosine(rate: float, n: int, d: int, eps: float) -> float:
    """The c with which isotropic s and t have this rate of (s + t)/2, at most 1."""

    def excess(c: float) -> float:
        return theory.rate_isotropic(n, d, theory.eps_of_mean(eps, c)) - rate

    if math.isnan(rate):
        return math.nan
    least = -1 + 1e-9
    if excess(1.0) <= 0 or excess(least) >= 0:
        return 1.0 if excess(1.0) <= 0 else -1.0
    return brentq(excess, least, 1.0)


def _setting(d: int, images: int, ranks: int, official_eps: float, gathered: bool) -> tuple[int, float, float]:
    """Rows of one covariance, the paper's ε and γ of a run of the official code."""
    for name, value in {"d": d, "images": images, "ranks": ranks, "official_eps": official_eps}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    eps, gamma = official_scaling(d, images, official_eps, world_size=ranks, gathered=gathered)
    return images * (ranks if gathered else 1), eps, gamma


def _levels(n: int, d: int, eps: float, gamma: float) -> dict[str, float]:
    return {
        "collapsed": gamma * theory.rate_collapsed(d, eps),
        "isotropic": gamma * theory.rate_isotropic(n, d, eps),
        "ceiling": gamma * theory.rate_maximum(n, d, eps),
    }
