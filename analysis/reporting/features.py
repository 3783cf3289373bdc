"""What features say about themselves, as a table with one judgement: `report`.

`rows` makes the lines of the table, `judgement` judges them; `page` has the report of a run, and what to look at next.
"""

import json
import math
import textwrap
from dataclasses import asdict, dataclass, field
from html import escape
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from simdino.config import PUBLISHED_EPS
from simdino.losses import check_numbers

from ..files import Stream
from ..measures.collapse import mean_collapse
from ..measures.inputs import Array, as_features, as_labels, as_tensor, as_views, unit_rows
from ..measures.moments import CHUNK, Moments
from ..measures.rates import coding_rate_of_spectrum
from ..measures.spectra import effective_rank, eigenvalues
from .judgement import JudgedAs, Judgement, Verdict, judge, kept_of_rate
from .rows import Row, class_rows, pair_rows, spectral_rows, token_rows, view_rows

SUBSET = 4096  # rows that measures of pairs and of classes see, at random
WIDTH = 98  # columns of the printed report


@dataclass(frozen=True, repr=False)
class Report:
    """Measures of one set of features and the judgement; `print` it, or take `to_frame()` or `to_json()`."""

    n: int
    d: int
    eps: float
    blocks: int
    judged_as: JudgedAs
    judgement: Judgement
    reason: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def conventions(self) -> str:
        """What the numbers are, in one line."""
        return (
            f"rows on the unit sphere, Γ = zᵀz/n, uncentered unless named; ε = {self.eps:.4g} (squared in the rate), "
            f"nats; ± one standard error by the jackknife over {self.blocks} blocks; judged as features of a "
            f"{self.judged_as}"
        )

    @property
    def headline(self) -> str:
        """How many features of how many dimensions."""
        return f"{self.n} features in {self.d} dimensions, n/d = {self.n / self.d:.3g}"

    def to_frame(self) -> "pandas.DataFrame":  # noqa: F821
        """A row per measure, indexed by its name."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("measure")

    def to_json(self) -> str:
        """Everything in the report; NaN and infinities, for which JSON has no number, as null."""
        plain = asdict(self) | {"rows": [row._asdict() for row in self.rows], "conventions": self.conventions}
        return json.dumps(_json(plain), indent=1, ensure_ascii=False, allow_nan=False)

    def __repr__(self) -> str:
        lines = [self.headline, *wrapped(self.conventions), ""]
        lines += [*wrapped(f"{self.judgement.upper()}: {self.reason}"), ""]
        lines += [line for warning in self.warnings for line in wrapped(f"warning: {warning}")]
        lines += [f"{'':26}{'value ± se':>22}{'corrected':>11}{'white noise':>13}{'best':>11}   healthier"]
        for row in self.rows:
            value = _number(row.value) + (f" ± {_number(row.se, 2)}" if row.se is not None else "  " + " " * 7)
            numbers = f"{_number(row.corrected):>11}{_number(row.white_noise):>13}{_number(row.best):>11}"
            lines += [f"{row.measure:26}{value:>22}{numbers}   {row.healthier}", *wrapped(row.says, bullet="  ")]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>warning: {escape(w)}" for w in self.warnings)
        head = f"<p><b>{escape(self.judgement)}</b>: {escape(self.reason)}</p>"
        foot = f"<p><small>{escape(self.headline)}; {escape(self.conventions)}{notes}</small></p>"
        return head + self.to_frame().to_html(float_format="{:.4g}".format, na_rep="") + foot


class UnitRows(NamedTuple):
    """Features (n, d) as one pass over them leaves them: all that a report and its page are made of."""

    moments: Moments  # of the unit rows, in blocks
    zeros: int  # rows that are zero, and stay so
    sample: Float[Tensor, "m d"]  # at most SUBSET random unit rows
    index: Int[Tensor, " m"]  # which of the n rows they are


def report(
    z: Array | Stream | Moments,
    *,
    labels: Array | None = None,
    views: Array | None = None,
    tokens: Array | None = None,
    eps: float = PUBLISHED_EPS,
    blocks: int = 16,
    judged_as: JudgedAs = "head",
) -> Report:
    """Report on features: measures with error and reference, and one judgement (`reporting.judgement.judge`).

    Rows are put on the unit sphere (zero rows stay zero). The judgement knows the scale: rounding noise around one
    point has a healthy *centered* rank, and k-NN as good as an untrained network's. "Healthy" does not say that the
    features are useful. Rows `mean share` and `feature std` (Chen & He 2021) show the mean and the scale by themselves.

    Args:
        z: (n, d), rows are samples. A memory map is read in chunks once, in O(blocks·d²) memory; measures of pairs and
            of classes take 4,096 random rows, and say so. Or `Moments` of unit rows, with blocks, gathered during
            training: then those measures are left out.
        labels: (n,) integers, names or categories, adds what can be said of classes.
        views: (v, m, d) of any m samples, adds what can be said of augmentations.
        tokens: (k, t, d), adds what can be said of the patches of k images.
        eps: the paper's ε, the resolution at which features count as different.
        blocks: of the jackknife.
        judged_as: "head", features that a loss asks to spread, or "backbone", features that nothing does.

    Returns:
        A `Report`, which prints as a table.

    Raises:
        ValueError: fewer rows than blocks, NaN, wrong shapes.

    >>> z = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    >>> report(z).judgement
    <Judgement.HEALTHY: 'healthy'>
    >>> report(z + 10).judgement
    <Judgement.MEAN_COLLAPSE: 'mean collapse'>
    """
    if isinstance(z, Moments):
        _check((z.n, z.d), len(z.by_block))
        if not z.by_block:
            raise ValueError("z as Moments needs blocks for its standard errors: Moments(d, blocks=16)")
        if labels is not None:
            raise ValueError("z as Moments keeps no rows that labels could be of: pass the features instead")
        if not z.has_unit_energy:
            raise ValueError("z as Moments must be of unit rows: normalize the features before they are added")
        rows = UnitRows(z, 0, torch.empty(0, z.d), torch.empty(0, dtype=torch.int64))
    else:
        rows = read_unit_rows(z, blocks)
    return report_of_rows(rows, labels=labels, views=views, tokens=tokens, eps=eps, judged_as=judged_as)


def report_of_rows(
    rows: UnitRows,
    *,
    labels: Array | None = None,
    views: Array | None = None,
    tokens: Array | None = None,
    eps: float = PUBLISHED_EPS,
    judged_as: JudgedAs = "head",
) -> Report:
    """`report` of features that `read_unit_rows` has read; arguments as there."""
    check_numbers(eps=eps)
    moments, zeros, sample, index = rows
    n, d = moments.n, moments.d
    warnings = []
    if n < 10 * d:
        warnings.append(
            f"n/d = {n / d:.3g} is below 10: ranks and rates are biased low, and corrected values still are"
        )
    if zeros:
        warnings.append(f"{zeros} of {n} rows are zero and were left so")
    if 0 < len(sample) < n:
        warnings.append(f"measures of pairs and of classes are of {SUBSET} random rows")
    table = spectral_rows(moments, eps)
    values = {row.measure: row.value for row in table}
    if len(sample) and not zeros:
        table += pair_rows(sample)
    within = view_share = None
    if labels is not None:
        labels = as_labels(labels, n, device=sample.device)[index.to(sample.device)]
        within, of_classes = class_rows(sample, labels)
        table += of_classes
    if views is not None:
        view_share, of_views = view_rows(as_views(views, normalize=True))
        table += of_views
    if tokens is not None:
        table += token_rows(tokens)
    judgement, reason = judge(
        n,
        d,
        rate=values["coding rate"],
        mean=values["mean share"],
        rank=values["effective rank, centered"],
        eps=eps,
        within=within,
        views=view_share,
        judged_as=judged_as,
    )
    if judgement is Judgement.MEAN_COLLAPSE and 1 - values["mean share"] >= eps**2:
        shape = eigenvalues(moments, center=True)
        kept = kept_of_rate(n, d, coding_rate_of_spectrum(shape / shape.sum(), eps=eps, d=d).item(), eps)
        reason = f"{reason} Centered, and scaled up to unit energy, they would keep {kept:.0%}."
    return Report(n, d, float(eps), len(moments.by_block), judged_as, judgement, reason, tuple(table), tuple(warnings))


def verdict(moments: Moments, *, eps: float = PUBLISHED_EPS, judged_as: JudgedAs = "head") -> Verdict:
    """The judgement of `report` and its reason for `Moments` of any rows, brought to unit energy on average.

    For a training loop: two decompositions, no blocks needed.

    Args:
        moments: `Moments` of features, on the sphere or not.
        eps: the paper's ε.
        judged_as: "head" or "backbone", as in `report`.

    Raises:
        ValueError: no rows.

    >>> verdict(Moments.of(torch.ones(50, 4))).judgement
    <Judgement.MEAN_COLLAPSE: 'mean collapse'>
    """
    lam = eigenvalues(moments)
    lam = lam / lam.sum().clamp_min(torch.finfo(lam.dtype).tiny)
    return judge(
        moments.n,
        moments.d,
        rate=coding_rate_of_spectrum(lam, eps=eps, d=moments.d).item(),
        mean=mean_collapse(moments).item(),
        rank=effective_rank(moments, center=True).item(),
        eps=eps,
        judged_as=judged_as,
    )


def read_unit_rows(z: Array | Stream, blocks: int) -> UnitRows:
    """Features (n, d) in one pass, chunk by chunk: moments of their unit rows, and random unit rows.

    ValueError: fewer rows than blocks, NaN, wrong shapes.
    """
    in_parts = isinstance(z, Stream) or (type(z) in (np.ndarray, np.memmap) and z.ndim == 2)
    name = z.name if isinstance(z, Stream) else "z"
    z = z if in_parts else as_tensor(z, "z")
    _check(tuple(z.shape), blocks, name)
    n, d = z.shape
    index = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SUBSET].sort().values
    moments, zeros, sample = None, 0, []
    step = max(8 * CHUNK // d, 64)  # 32 MiB of float32, half a chunk for each of 16 blocks
    chunks = z.chunks(step) if isinstance(z, Stream) else (z[start : start + step] for start in range(0, n, step))
    with tqdm(total=n, unit="row", unit_scale=True, desc="reading", delay=2, leave=False, disable=None) as bar:
        for rows in chunks:
            rows = _unit_or_zero(as_features(np.array(rows) if isinstance(rows, np.ndarray) else rows, name).detach())
            moments = moments or Moments(d, blocks=blocks, device=rows.device)
            here = index[(index >= moments.n) & (index < moments.n + len(rows))] - moments.n
            sample.append(rows[here.to(rows.device)])
            moments.update(rows)
            zeros += int((~rows.any(1)).sum())
            bar.update(len(rows))
    return UnitRows(moments, zeros, torch.cat(sample), index)


def wrapped(text: str, bullet: str = "") -> list[str]:
    """Lines of a text that fit the printed report, after a bullet and indented by its width."""
    return textwrap.wrap(text, WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet))


def _check(shape: tuple[int, ...], blocks: int, name: str = "z") -> None:
    if len(shape) != 2:
        raise ValueError(f"{name} must have shape (n, d), got {shape}")
    if not isinstance(blocks, Integral):
        raise ValueError(f"blocks must be an integer, got {blocks}")
    if shape[1] == 0:
        raise ValueError(f"{name} must not be empty, got shape {shape}")
    if shape[0] < max(blocks, 2):
        raise ValueError(
            f"{name} has {shape[0]} rows, and {max(blocks, 2)} are needed for standard errors by {blocks} blocks"
        )


def _unit_or_zero(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows on the unit sphere, but for zero rows, which have no direction and stay zero."""
    rows = z.any(1)
    return unit_rows(z) if rows.all() else torch.zeros_like(z).index_put((rows,), unit_rows(z[rows]))


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
