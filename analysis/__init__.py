"""Diagnostics of self-supervised features: importable, tested against closed forms, for arrays, streams and runs.

    from analysis import effective_rank, Moments, jackknife
    effective_rank(z)                                               # z (n, d): rows are samples
    jackknife(effective_rank, Moments.of(z, blocks=16)).interval()  # with its error

Whole runs: `analysis.diagnose` (a table of all this over training), `analysis.rates.preflight` (before training).
`analysis.report` makes a table with one judgement of all this, also as `python -m analysis.report FILE_OR_RUN`;
`analysis.theory` has the closed forms, `analysis.plots` the plots (which need matplotlib).
"""

from analysis.collapse import (
    alignment,
    center_drift,
    feature_std,
    hyperspherical_energy,
    lidar,
    mean_collapse,
    patch_ranks,
    prototype_entropy,
    prototype_usage,
    self_clustering,
    uniformity,
    uniformity_gap,
    uniformity_optimum,
)
from analysis.covariance import covariance_energy, redundancy, variance_hinge
from analysis.frames import (
    coherence,
    frame_bounds,
    frame_potential,
    frame_potential_bound,
    frame_potential_excess,
    orthonormal_distance,
    orthoplex_bound,
    simplex_distance,
    sphere_potential,
    tight_frame_distance,
    tightness,
    welch_bound,
)
from analysis.information import dime, infonce_bound
from analysis.intrinsic import gride, levina_bickel, twonn
from analysis.moments import Moments
from analysis.neighbors import information_imbalance, nearest_neighbors, neighbor_overlap
from analysis.neural_collapse import cdnv, class_effective_rank, class_overlap, nc1, nc2, nc3, nc4, nc5
from analysis.normality import bhep, sliced_normality
from analysis.probes import knn_accuracy
from analysis.rates import class_rates, coding_rate, coding_rate_of_spectrum, rate_optimality, rate_reduction
from analysis.references import collapse_sweep, collapsed, collapsed_spectrum, shrink_sweep, white_noise_spectrum
from analysis.regression_collapse import nrc1, nrc2, nrc3
from analysis.similarity import debiased_cka, principal_angles, procrustes_distance, rsa, svcca
from analysis.spectra import (
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
from analysis.uncertainty import isotropic_reference, jackknife, permutation_reference

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
    "principal_angles",
    "procrustes_distance",
    "prototype_entropy",
    "prototype_usage",
    "rankme",
    "rate_optimality",
    "rate_reduction",
    "redundancy",
    "renyi_entropy",
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
