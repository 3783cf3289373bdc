"""One embedding under the definitions that papers and public implementations use: `simdino conventions`.

Writes docs/conventions.md, for anybody who compares a number with somebody else's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from simdino.losses import coding_rate

from .measures.alignment_uniformity import uniformity
from .measures.inputs import Array, as_features
from .measures.intrinsic_dimension import gride, levina_bickel, twonn
from .measures.spectra import effective_rank, participation_ratio, renyi_entropy, stable_rank

PAGE = Path(__file__).parents[1] / "docs/conventions.md"
# What some return is a function of ours: displayed as it stands, evaluated at (value, n, d).
THEN = {
    "{}": lambda x, n, d: x,
    "log({}) / log(d)": lambda x, n, d: x.log() / d.log(),
    "{} / min(n, d)": lambda x, n, d: x / n.minimum(d),
    "1 - {} / min(n - 1, d)": lambda x, n, d: 1 - x / (n - 1).minimum(d),
    "exp({})": lambda x, n, d: x.exp(),
    "sqrt({})": lambda x, n, d: x.sqrt(),
    "{}.dimension": lambda x, n, d: x.dimension,
    "log(((n - 1)·exp({}) + 1) / n)": lambda x, n, d: (((n - 1) * x.exp() + 1) / n).log(),
}
SINGULAR = {"of": "singular_values"}


class Convention(NamedTuple):
    """One definition that goes by the name of its family: what differs, who uses it, and how to compute it here."""

    definition: str
    who: str
    measure: Callable
    keywords: dict
    then: str = "{}"  # a key of THEN


CONVENTIONS = {
    "effective rank": [
        Convention("p = σ/Σσ", "Roy & Vetterli 2007", effective_rank, {"preset": "roy2007"}),
        Convention("p = σ/Σσ + 1e-7", "RankMe's paper; embedding-quality", effective_rank, {"preset": "garrido2023"}),
        Convention("p = σ/Σσ + 1e-5", "stable-pretraining's RankMe", effective_rank, {"preset": "stable-pretraining"}),
        Convention("p = σ/Σσ, centered", "req-metrics, nngeom", effective_rank, {"preset": "req-metrics"}),
        Convention("p = λ/Σλ", "Skean et al. 2025", effective_rank, {"preset": "skean2025"}),
        Convention("p = λ/Σλ + 1e-7, centered", "reptrix's rankme", effective_rank, {"preset": "reptrix"}),
        Convention(
            "entropy over log d", "the RankMe of sirbastiano/RankMe", effective_rank, SINGULAR, "log({}) / log(d)"
        ),
        Convention(
            "unit rows, over min(n, d)",
            "rank term of lightly's DSE",
            effective_rank,
            SINGULAR | {"normalize": True},
            "{} / min(n, d)",
        ),
        Convention(
            "centered, 1 - share",
            "MONAI's embedding collapse",
            effective_rank,
            SINGULAR | {"center": True},
            "1 - {} / min(n - 1, d)",
        ),
    ],
    "participation ratio": [
        Convention("(Σλ)²/Σλ²", "the default here", participation_ratio, {}),
        Convention("(Σλ)²/Σλ², centered", "Gao et al. 2017", participation_ratio, {"preset": "gao2017"}),
        Convention("unbiased", "Chun et al. 2025", participation_ratio, {"preset": "chun2025"}),
        Convention("(Σσ)²/Σσ²", "also found", renyi_entropy, {"order": 2, **SINGULAR}, "exp({})"),
    ],
    "stable rank": [
        Convention(
            "Σλ/λ₁ = ‖z‖²_F/‖z‖²₂",
            "the default here; Rudelson & Vershynin 2007",
            stable_rank,
            {"preset": "rudelson2007"},
        ),
        Convention("Σλ/λ₁, centered", "NESum, He & Ozay 2022", stable_rank, {"preset": "he2022"}),
        Convention("‖z‖_F/‖z‖₂", "corvic, without the squares", stable_rank, {}, "sqrt({})"),
    ],
    "intrinsic dimension": [
        Convention("slope of -log(1 - F) on log μ, lowest 90 %", "TwoNN, Facco et al. 2017", twonn, {}, "{}.dimension"),
        Convention("n/Σ log μ, the maximum likelihood", "TwoNN by maximum likelihood", gride, {"k": 1}, "{}.dimension"),
        Convention("ratios r₁₆/r₈ instead of r₂/r₁", "GRIDE, Denti et al. 2022", gride, {"k": 8}, "{}.dimension"),
        Convention("mean of m_k, k = 10, …, 20", "Levina & Bickel 2004", levina_bickel, {}, "{}.dimension"),
    ],
    "coding rate of unit rows, nats": [
        Convention("α = d/ε², ε = 0.05", "MCR² and SimDINO's papers; mcr2", coding_rate, {"eps": 0.05}),
        Convention("α = d/ε, ε = 0.05", "SimDINO's and EMP-SSL's code", coding_rate, {"eps": 0.05**0.5}),
    ],
    "uniformity, nats": [
        Convention("pairs i < j", "Wang & Isola 2020", uniformity, {"normalize": True}),
        Convention("all n² pairs", "ReSi", uniformity, {"normalize": True}, "log(((n - 1)·exp({}) + 1) / n)"),
    ],
}
TEXT = """\
<!-- written by `simdino conventions`; edit analysis/peer_definitions.py instead -->
# Conventions

The name of a measure does not say what was computed. One embedding, the {n} × {d} raw pixels of scikit-learn's digits,
under the definitions that papers and public implementations use, each reproduced to 10⁻⁶:

{table}

σ are the singular values of z (n, d), λ = σ²/n the eigenvalues of Γ = zᵀz/n, of the covariance where centered.

**Why they differ.**

- *Singular values or eigenvalues.* λ ∝ σ², and squaring sharpens the distribution: the eigenvalue version weighs the
  top of the spectrum, the singular value version (RankMe) the tail, and the latter is never less.
- *Centering.* The mean of the features is one direction of Γ. Where it holds most of the energy (pixels, features after
  a ReLU, collapse to a point), it hides the rest from the uncentered ranks; the centered ones do not see it at all, and
  so miss the collapse to a point. Read both, and `mean_collapse`.
- *ε inside p.* p + ε is no distribution any more. At min(n, d) = 1024 and ε = 10⁻⁵ a flat spectrum reads 1088.
- *Normalized versions* (entropy over log d, rank over d, one minus it) have another scale, and the last another sign.
- *Scales in the intrinsic dimension.* The nearest neighbors see noise, which fills all of space, farther ones the
  manifold, its curvature and its edges. Levina and Bickel's mean is (k - 1)/(k - 2) too large besides.
- *Two averages of Levina and Bickel.* Theirs is the mean of m_k over rows and k; scikit-dimension combines rows by the
  harmonic mean, as MacKay and Ghahramani do, and reads about 5 % less.
- *n - 1 in GRIDE.* DADApy and req-metrics have n - 1 where the likelihood has n: at k = 1 theirs is 1 - 1/n times ours.
- *Weights in α-ReQ.* The paper fits log λ to log j without weights (`preset='agrawal2022'`). The code of Stringer and
  that of reptrix give index j the weight 1/j (`preset='stringer2019'`, `'reptrix'`): over the indices 11 to 60 of the
  digits the exponent is 4.448 without the weights and 3.508 with them.
- *Classes in NC1.* Here every class counts alike, whatever its size. Where Σ_W is the covariance of all samples around
  their class means, as in many implementations, a class counts by its number of samples; balanced classes agree.
- *The share in SVCCA.* `share` is one of the variance, Σσ². google/svcca and req-metrics take it of Σσ, and keep more
  directions: 0.73 and 0.89 where both are told to keep a half.
- *Centering in NRC1.* The directions are those of centered features, and the rows are not centered, as in the paper's
  code; with `center=True` both are.
- *The scale of SIGReg.* `sliced_normality` has the factor n and the standard normal density as weight, and is exact to
  10⁻¹⁰. LeJEPA's code takes a grid of few points and a weight of its own scale: its values are comparable among
  themselves only.
- *CKA of batches.* `minibatch_cka` averages the unbiased HSIC over batches before it divides; a mean of the CKA of each
  batch, or of biased ones, depends on the size of the batches.
- *ε or ε² in the coding rate.* The papers have α = d/ε², the code of SimDINO and EMP-SSL d/ε under the same name.
  Here `eps` is the papers' everywhere; `simdino.losses.official_scaling` translates.
- *The diagonal in uniformity.* The n pairs of a row with itself add 1/n inside the logarithm, which matters where
  the optimum, about -2t, is near: it cannot fall below -log n.

Here nothing is centered, normalized or shifted unless the call says so, and `preset=` names a definition as a whole
(`PRESETS` in `measures.spectra` lists them all). Compare numbers of one definition, at equal n and d
(`measures.uncertainty`). Results are on the device of the first argument, to which labels, targets and second sets of
features move; random numbers are drawn on the CPU, and so are the same on every device.
"""


def compare_definitions(z: Array) -> pd.DataFrame:
    """One set of features under every definition of `CONVENTIONS`.

    Args:
        z: features (n, d), n > d ≥ 2 and n > 20, as the intrinsic dimensions look at 20 neighbors.

    Returns:
        one row for each definition, with columns family, definition, who (uses it), call (how to compute it here)
        and value.

    >>> import numpy as np
    >>> table = compare_definitions(np.random.default_rng(0).normal(size=(40, 3)))
    >>> table["family"].unique().tolist()[:3]
    ['effective rank', 'participation ratio', 'stable rank']
    """
    z = as_features(z).double()
    n, d = z.new_tensor(z.shape)
    unit = z / z.norm(dim=1, keepdim=True)
    rows = []
    for family, members in CONVENTIONS.items():
        for definition, who, measure, keywords, then in members:
            x = unit if measure is coding_rate else z
            shown = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in keywords.items()]
            call = f"{measure.__name__}({', '.join(['z' if x is z else 'z/‖z‖', *shown])})"
            value = THEN[then](measure(x, **keywords), n, d).item()
            rows.append((family, definition, who, then.format(call), value))
    return pd.DataFrame(rows, columns=["family", "definition", "who", "call", "value"])


def conventions_page() -> str:
    """The text of docs/conventions.md: the table for the digits that come with scikit-learn, and what it shows."""
    from sklearn.datasets import load_digits

    z = load_digits().data
    lines = ["| measure | definition | who | here | value |", "|---|---|---|---|---|"]
    for row in compare_definitions(z).itertuples(index=False):
        lines.append(f"| {row.family} | {row.definition} | {row.who} | `{row.call}` | {row.value:.4g} |")
    return TEXT.format(n=len(z), d=z.shape[1], table="\n".join(lines))
