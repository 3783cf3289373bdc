"""Diagnostics of self-supervised features, tested against closed forms: of arrays, of streams and of recorded runs.

    >>> import torch
    >>> from simdino.analysis import Moments, effective_rank, jackknife
    >>> z = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))  # (n, d), rows are samples
    >>> round(effective_rank(z).item(), 2)
    15.87
    >>> estimate = jackknife(effective_rank, Moments.of(z, blocks=16))  # the bias of a finite sample removed
    >>> round(estimate.corrected, 2), round(estimate.se, 2)
    (16.0, 0.02)

`report(z)` gives all of it as a table with one judgement, `diagnose` does the same for a recorded run, and `preflight`
says before a run what its loss can be. `theory` has the closed forms, `plots` the plots (which need matplotlib);
`simdino report FILE_OR_RUN` prints a report.

The package has two names, `simdino.analysis` and `analysis`, for one set of modules. Use the long one in code of your
own: a folder or file called `analysis` beside your script hides the short one.
"""

import sys

if __name__ == "analysis":  # imported by its short name: from here on that is simdino.analysis
    import simdino.analysis

    sys.modules[__name__] = simdino.analysis

from .experiments.injected_collapse import collapse_sweep, collapsed, collapsed_spectrum, shrink_sweep
from .measures.alignment_uniformity import (
    alignment,
    hyperspherical_energy,
    uniformity,
    uniformity_gap,
    uniformity_optimum,
)
from .measures.classes import (
    cdnv,
    class_effective_rank,
    class_overlap,
    nc1,
    nc2,
    nc3,
    nc4,
    nc5,
    nrc1,
    nrc2,
    nrc3,
    simplex_distance,
)
from .measures.collapse import (
    center_drift,
    feature_std,
    lidar,
    mean_collapse,
    patch_ranks,
    prototype_entropy,
    prototype_usage,
)
from .measures.covariance import covariance_energy, redundancy, variance_hinge
from .measures.frames import (
    coherence,
    frame_bounds,
    frame_potential,
    frame_potential_bound,
    frame_potential_excess,
    orthonormal_distance,
    orthoplex_bound,
    self_clustering,
    sphere_potential,
    tight_frame_distance,
    tightness,
    welch_bound,
)
from .measures.intrinsic_dimension import gride, levina_bickel, twonn
from .measures.moments import Moments
from .measures.mutual_information import dime, infonce_bound
from .measures.neighbors import information_imbalance, knn_accuracy, nearest_neighbors, neighbor_overlap
from .measures.normality import bhep, sliced_normality
from .measures.rates import class_rates, coding_rate, coding_rate_of_spectrum, rate_optimality, rate_reduction
from .measures.similarity import debiased_cka, minibatch_cka, principal_angles, procrustes_distance, rsa, svcca
from .measures.spectra import (
    alpha_req,
    anisotropy,
    condition_number,
    effective_rank,
    eigenvalues,
    eigenvalues_above_edge,
    isoscore,
    marchenko_pastur_edge,
    mean_cosine,
    participation_ratio,
    rankme,
    renyi_entropy,
    stable_rank,
)
from .measures.uncertainty import isotropic_reference, jackknife, permutation_reference
from .planning import preflight
from .reporting.features import report
from .runs.diagnosis import diagnose
from .theory import white_noise_spectrum

__all__ = [
    "Moments",
    "alignment",
    "alpha_req",
    "anisotropy",
    "bhep",
    "cdnv",
    "center_drift",
    "class_effective_rank",
    "class_overlap",
    "class_rates",
    "coding_rate",
    "coding_rate_of_spectrum",
    "coherence",
    "collapse_sweep",
    "collapsed",
    "collapsed_spectrum",
    "condition_number",
    "covariance_energy",
    "debiased_cka",
    "diagnose",
    "dime",
    "effective_rank",
    "eigenvalues",
    "eigenvalues_above_edge",
    "feature_std",
    "frame_bounds",
    "frame_potential",
    "frame_potential_bound",
    "frame_potential_excess",
    "gride",
    "hyperspherical_energy",
    "infonce_bound",
    "information_imbalance",
    "isoscore",
    "isotropic_reference",
    "jackknife",
    "knn_accuracy",
    "levina_bickel",
    "lidar",
    "marchenko_pastur_edge",
    "mean_collapse",
    "mean_cosine",
    "minibatch_cka",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "nc5",
    "nearest_neighbors",
    "neighbor_overlap",
    "nrc1",
    "nrc2",
    "nrc3",
    "orthonormal_distance",
    "orthoplex_bound",
    "participation_ratio",
    "patch_ranks",
    "permutation_reference",
    "preflight",
    "principal_angles",
    "procrustes_distance",
    "prototype_entropy",
    "prototype_usage",
    "rankme",
    "rate_optimality",
    "rate_reduction",
    "redundancy",
    "renyi_entropy",
    "report",
    "rsa",
    "self_clustering",
    "shrink_sweep",
    "simplex_distance",
    "sliced_normality",
    "sphere_potential",
    "stable_rank",
    "svcca",
    "tight_frame_distance",
    "tightness",
    "twonn",
    "uniformity",
    "uniformity_gap",
    "uniformity_optimum",
    "variance_hinge",
    "welch_bound",
    "white_noise_spectrum",
]
