"""What features say about themselves, as a table with one judgement.

    python -m analysis.report FEATURES [--labels FILE] [--eps 0.2236] [--json OUT]    a file of features, or a run

`report` for arrays, `run_report` for run directories; both print well, show well in a notebook, and export.
"""

import argparse
import json
import math
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from analysis._files import Stream, read_features, read_labels
from analysis._input import Array, as_features, as_labels, as_views, unit_rows
from analysis._rows import Row, class_rows, judge, kept_of_rate, pair_rows, spectral_rows, token_rows, view_rows
from analysis.collapse import mean_collapse
from analysis.diagnose import diagnose
from analysis.moments import CHUNK, Moments
from analysis.rates import coding_rate_of_spectrum
from analysis.spectra import eigenvalues
from simdino.runs import Run, write_text

SUBSET = 4096  # rows that measures of pairs and of classes see, at random
WIDTH = 98


@dataclass(frozen=True, repr=False)
class Report:
    """Measures of one set of features and the judgement; `print` it, or take `to_frame()` or `to_json()`."""

    n: int
    d: int
    eps: float
    blocks: int
    judgement: str
    because: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def conventions(self) -> str:
        return (
            f"rows on the unit sphere, Γ = zᵀz/n, uncentred unless named; ε = {self.eps:.4g} (squared in the rate), "
            f"nats; ± one standard error by the jackknife over {self.blocks} blocks"
        )

    @property
    def headline(self) -> str:
        return f"{self.n} features in {self.d} dimensions, n/d = {self.n / self.d:.3g}"

    def to_frame(self) -> pd.DataFrame:
        """A row per measure."""
        return pd.DataFrame(self.rows).set_index("measure")

    def to_json(self) -> str:
        """Everything in the report; NaN and infinities, for which JSON has no number, as null."""
        plain = asdict(self) | {"rows": [row._asdict() for row in self.rows], "conventions": self.conventions}
        return json.dumps(_json(plain), indent=1, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        lines = [self.headline, *_wrapped(self.conventions), ""]
        lines += [*_wrapped(f"{self.judgement.upper()}: {self.because}"), ""]
        lines += [line for warning in self.warnings for line in _wrapped(f"warning: {warning}")]
        lines += [f"{'':26}{'value ± se':>22}{'corrected':>11}{'white noise':>13}{'best':>11}   healthier"]
        for row in self.rows:
            value = _number(row.value) + (f" ± {_number(row.se, 2)}" if row.se is not None else "  " + " " * 7)
            numbers = f"{_number(row.corrected):>11}{_number(row.white_noise):>13}{_number(row.best):>11}"
            lines += [f"{row.measure:26}{value:>22}{numbers}   {row.healthier}", *_wrapped(row.says, indent=2)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>warning: {escape(w)}" for w in self.warnings)
        head = f"<p><b>{escape(self.judgement)}</b>: {escape(self.because)}</p>"
        foot = f"<p><small>{escape(self.headline)}; {escape(self.conventions)}{notes}</small></p>"
        return head + self.to_frame().to_html(float_format="{:.4g}".format, na_rep="") + foot


def report(
    z: Array | Stream | Moments,
    *,
    labels: Array | None = None,
    views: Array | None = None,
    tokens: Array | None = None,
    eps: float = 0.05**0.5,
    blocks: int = 16,
) -> Report:
    """Report on features z (n, d): measures with error and reference, and one judgement.

    Rows are put on the unit sphere (zero rows stay zero). labels (n,), views (v, m, d) of any m samples and tokens
    (k, t, d) add what can be said of classes, augmentations and patches. z may be a memory map: it is read in chunks
    once, in O(blocks·d²) memory; measures of pairs and of classes take 4,096 random rows, and say so. Or z is `Moments`
    of unit rows, with blocks, gathered during training: then those measures are left out. eps: the paper's ε, the
    resolution at which features count as different.

    The judgement, the first of these that holds. All of them know the scale: rounding noise around one point has a
    healthy *centred* rank, and k-NN as good as an untrained network's. Let s = (R − R_collapsed)/(R_isotropic −
    R_collapsed), the part kept of the coding rate that random directions have over one point at the same n and d.

    - mean collapse: s < ½, and the mean's energy explains more of the missing rate than the shape of the spectrum
      does. Half is where a spectrum λⱼ ∝ 1/j, known from healthy networks and from cortex, still passes at any d in
      use (s = 0.8 at d = 64, 0.7 at 2,048), and λⱼ ∝ 1/j² no longer does (s < 0.45 from d = 64 on). Complete if
      E‖z − z̄‖² < ε²: then the mean alone is a code of precision ε for every feature.
    - class collapse: E‖z − z̄_class‖² < ε², by the same argument (two rows a class at least).
    - dimensional collapse: s < ½.
    - view problem: two views of a sample differ by more than half of what views of different samples do, so that
      augmentation moves features more than content does.
    - too few samples to judge: n < d. Rank above n cannot be seen; a collapse named above can, since white noise of
      the same n is the reference.
    - healthy: none of these. It does not say that the features are useful.

    Rows `mean share` and `feature std` (Chen & He 2021) read the mean and the scale by themselves.
    ValueError: fewer rows than blocks, NaN, wrong shapes.
    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    streamed = isinstance(z, Moments)
    shape = (z.n, z.d) if streamed else tuple(z.shape)
    if len(shape) != 2:
        raise ValueError(f"z must have shape (n, d), got {shape}")
    (n, d), blocks = shape, len(z.by_block) if streamed else blocks
    if d == 0:
        raise ValueError(f"z must not be empty, got shape {shape}")
    if n < max(blocks, 2):
        raise ValueError(f"z has {n} rows, and {max(blocks, 2)} are needed for standard errors by {blocks} blocks")
    if streamed and (labels is not None or abs(z.second_moment.trace() - 1) > 1e-2):
        raise ValueError("z as Moments must be of unit rows, and comes without labels")
    low = f"n/d = {n / d:.3g} is below 10: ranks and rates are biased low, and corrected values still are"
    notes = [low] * (n < 10 * d)
    moments, zeros, sample, index = (z, 0, None, None) if streamed else read_rows(z, blocks)
    if zeros:
        notes.append(f"{zeros} of {n} rows are zero and were left so")
    if n > SUBSET and not streamed:
        notes.append(f"measures of pairs and of classes are of {SUBSET} random rows")
    rows = spectral_rows(moments, eps)
    values = {row.measure: row.value for row in rows}
    if not zeros and not streamed:
        rows += pair_rows(sample)
    within = view_share = None
    if labels is not None:
        labels = as_labels(labels, n, device=sample.device)[index.to(sample.device)]
        within, more = class_rows(sample, labels)
        rows += more
    if views is not None:
        view_share, more = view_rows(as_views(views, normalize=True))
        rows += more
    if tokens is not None:
        rows += token_rows(tokens)
    verdict = judge(
        n, d, rate=values["coding rate"], mean=values["mean share"], eps=eps, within=within, views=view_share
    )
    if verdict[0] == "mean collapse" and verdict[1].startswith("Partial"):
        shape = eigenvalues(moments, center=True)
        kept = kept_of_rate(n, d, coding_rate_of_spectrum(shape / shape.sum(), eps=eps, d=d).item(), eps)
        verdict = verdict[0], f"{verdict[1]} Centred, and scaled up to unit energy, they would keep {kept:.0%}."
    return Report(n, d, float(eps), blocks, *verdict, tuple(rows), tuple(notes))


def verdict(moments: Moments, *, eps: float = 0.05**0.5) -> tuple[str, str]:
    """The judgement of `report` and its reason for `Moments` of any rows, brought to unit energy on average.

    For a training loop: one decomposition, no blocks needed. ValueError: no rows.
    """
    lam = eigenvalues(moments)
    lam = lam / lam.sum().clamp_min(torch.finfo(lam.dtype).tiny)
    rate = coding_rate_of_spectrum(lam, eps=eps, d=moments.d).item()
    return judge(moments.n, moments.d, rate=rate, mean=mean_collapse(moments).item(), eps=eps)


@dataclass(frozen=True, repr=False)
class RunReport:
    """A run's layers at its first and last snapshot, two sentences on their worth, a `Report` of head and backbone."""

    run: str
    layers: pd.DataFrame
    sentences: tuple[str, ...]
    taps: dict[str, Report]

    def to_json(self) -> str:
        """Everything in the report."""
        taps = {name: json.loads(tap.to_json()) for name, tap in self.taps.items()}
        layers = json.loads(self.layers.reset_index().to_json(orient="records"))
        plain = {"run": self.run, "sentences": self.sentences, "layers": layers, "taps": taps}
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        judged = [f"{name}, {tap.judgement.upper()}: {tap.because}" for name, tap in self.taps.items()]
        says = [line for sentence in (*self.sentences, *judged) for line in _wrapped(sentence)]
        return "\n".join([self.run, *says, "", self.layers.to_string(float_format="{:.3g}".format, na_rep="-")])

    def _repr_html_(self) -> str:
        taps = "".join(f"<h4>{escape(name)}</h4>{tap._repr_html_()}" for name, tap in self.taps.items())
        layers = self.layers.to_html(float_format="{:.3g}".format, na_rep="")
        return f"<p><b>{escape(self.run)}</b><br>{escape(' '.join(self.sentences))}</p>{layers}{taps}"


def run_report(run: Run | str | Path) -> RunReport:
    """Report on a run: `diagnose` at its first and last snapshot, and `report` of the last head and backbone.

    All of the teacher, the network that is kept, on held-out images. k-NN is judged by raw pixels and by the untrained
    network (step 0), the rate by its value for random directions, for the best and for equal features.
    ValueError: not a run directory, a damaged file, no snapshots.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    table = diagnose(run).sel(branch="teacher")
    steps = sorted({run.steps[0], run.steps[-1]})
    names = ["effective_rank", "effective_rank_centered", "mean_collapse", "feature_std", "alignment", "knn"]
    layers = table[names].sel(step=steps).to_dataframe(dim_order=["layer", "step"])[names]
    layers = layers.rename(
        columns={"effective_rank": "rank", "effective_rank_centered": "rank centred", "alignment": "½E‖z − z′‖²"}
    )
    knn, rate = table["knn"].sel(layer="backbone"), table["rate"].sel(layer="head", step=steps[-1]).item()
    low, isotropic, high = (table[f"rate_{k}"].item() for k in ("collapsed", "isotropic", "ceiling"))
    sentences = (
        f"k-NN of the backbone at step {steps[-1]}: {knn.sel(step=steps[-1]).item():.1%}; untrained network (step "
        f"{steps[0]}) {knn.sel(step=steps[0]).item():.1%}, raw pixels {table['knn_pixels'].item():.1%}.",
        f"Coding rate of the head: {rate:.4g} nats, {rate / high:.1%} of the ceiling {high:.4g}; random directions "
        f"{isotropic:.4g}, all features equal {low:.4g}.",
    )
    last, labels, eps = run.snapshot(steps[-1]), run.probe["test_labels"], table.attrs["eps"]
    branch = "teacher" if "teacher/head/test" in last else "student"
    taps = {}
    for tap in ("head", "backbone"):
        key = f"{branch}/{tap}"
        taps[tap] = report(last[f"{key}/test"], labels=labels, views=last.get(f"{key}/views"), eps=eps)
    return RunReport(f"{run.name}, {branch} network, steps {steps[0]} to {steps[-1]}", layers, sentences, taps)


def read_rows(z: Array | Stream, blocks: int) -> tuple[Moments, int, Float[Tensor, "m d"], Int[Tensor, " m"]]:
    """In one pass, chunk by chunk, of unit rows: moments, the number of zero rows, and random rows with their index."""
    n, d = z.shape
    index = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SUBSET].sort().values
    moments, zeros, sample = None, 0, []
    step = max(8 * CHUNK // d, 64)  # 32 MiB of float32, half a chunk for each of 16 blocks
    chunks = z.chunks(step) if isinstance(z, Stream) else (z[start : start + step] for start in range(0, n, step))
    with tqdm(total=n, unit="row", unit_scale=True, desc="reading", delay=2, leave=False, disable=None) as bar:
        for rows in chunks:
            rows = _unit_or_zero(as_features(np.array(rows) if isinstance(rows, np.ndarray) else rows, "z").detach())
            moments = moments or Moments(d, blocks=blocks, device=rows.device)
            here = index[(index >= moments.n) & (index < moments.n + len(rows))] - moments.n
            sample.append(rows[here.to(rows.device)])
            moments.update(rows)
            zeros += int((~rows.any(1)).sum())
            bar.update(len(rows))
    return moments, zeros, torch.cat(sample), index


def _unit_or_zero(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows on the unit sphere, but for zero rows, which have no direction and stay zero."""
    rows = z.any(1)
    return unit_rows(z) if rows.all() else torch.zeros_like(z).index_put((rows,), unit_rows(z[rows]))


def _wrapped(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _number(x: float | None, digits: int = 4) -> str:
    """A few digits, and no powers of ten for what has more of them before the point."""
    if x is None:
        return "-"
    return f"{x:.0f}" if 10**digits <= abs(x) < 1e9 else f"{x:.{digits}g}"


def _json(value: object) -> object:
    """NaN and infinity as None, which JSON can say, all the way down."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> None:
    """Command line: print the report of a file of features or of a run directory."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=main.__doc__.splitlines()[0])
    parser.add_argument(
        "what", type=Path, help="features (n, d) as .npy, .npz, .safetensors, .parquet, or a run directory"
    )
    parser.add_argument("--labels", type=Path, help="class of each row: .npy, .npz, .safetensors, or text, one a line")
    parser.add_argument("--eps", type=float, default=0.05**0.5, help="the paper's ε (default: %(default).4f)")
    parser.add_argument("--json", type=Path, help="write the report there, too")
    given = parser.parse_args(arguments)
    try:
        if given.what.is_dir():
            result = run_report(given.what)
        else:
            z, labels = read_features(given.what)
            result = report(z, labels=read_labels(given.labels) if given.labels else labels, eps=given.eps)
        if given.json:
            write_text(given.json, result.to_json())
    except (ValueError, OSError) as error:
        sys.exit(f"report: {error}")
    print(result)


if __name__ == "__main__":
    main()
