"""Every public function of features, and what it is called with to compare a device with the CPU."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from simdino import analysis
from tests.configurations import gaussian, sphere


class Call(NamedTuple):
    """A function, and what it is called with."""

    function: Callable
    args: tuple
    kwargs: dict


def call(function, *args, **kwargs):
    return Call(function, args, kwargs)


N, D, K = 24, 6, 3
Z, OTHER = sphere(N, D), sphere(N, D, seed=9)
LABELS = torch.arange(N) % K
WEIGHT = gaussian(K, D, seed=8)
VIEWS = torch.stack((Z, OTHER))
GRID = gaussian(4, 3, 3, D, seed=7)  # patches
EPS = {"eps": 0.5}


def top_rank(moments):
    return analysis.effective_rank(moments, center=True)


# Every public function that takes features, with what it is called with.
CALLS = {
    "Moments": call(lambda z, labels: list(vars(analysis.Moments.of(z, labels).by_class[0]).values())[:4], Z, LABELS),
    "alignment": call(analysis.alignment, Z, OTHER),
    "alpha_req": call(analysis.alpha_req, Z, fit=(1, 4)),
    "anisotropy": call(analysis.anisotropy, Z),
    "bhep": call(analysis.bhep, Z),
    "cdnv": call(analysis.cdnv, Z, LABELS),
    "center_drift": call(analysis.center_drift, Z, running_center=OTHER[0]),
    "class_effective_rank": call(analysis.class_effective_rank, Z, LABELS),
    "class_overlap": call(analysis.class_overlap, Z, LABELS),
    "class_rates": call(analysis.class_rates, Z, LABELS, **EPS),
    "coding_rate": call(analysis.coding_rate, Z, **EPS),
    "coding_rate_of_spectrum": call(analysis.coding_rate_of_spectrum, Z, **EPS),
    "coherence": call(analysis.coherence, Z),
    "collapsed": call(analysis.collapsed, Z, OTHER[:1].expand(N, D), share=0.5),
    "condition_number": call(analysis.condition_number, Z),
    "covariance_energy": call(analysis.covariance_energy, Z),
    "debiased_cka": call(analysis.debiased_cka, Z, OTHER),
    "minibatch_cka": call(lambda x, y: analysis.minibatch_cka([(x, y)]), Z, OTHER),
    "dime": call(analysis.dime, Z, OTHER),
    "effective_rank": call(analysis.effective_rank, Z),
    "eigenvalues": call(analysis.eigenvalues, Z),
    "eigenvalues_above_edge": call(analysis.eigenvalues_above_edge, Z),
    "feature_std": call(analysis.feature_std, Z),
    "frame_bounds": call(analysis.frame_bounds, Z),
    "frame_potential": call(analysis.frame_potential, Z),
    "frame_potential_excess": call(analysis.frame_potential_excess, Z),
    "gride": call(analysis.gride, Z, k=2),
    "hyperspherical_energy": call(analysis.hyperspherical_energy, Z),
    "infonce_bound": call(analysis.infonce_bound, Z, OTHER, temp=0.5),
    "information_imbalance": call(analysis.information_imbalance, Z, OTHER),
    "isoscore": call(analysis.isoscore, Z),
    "isotropic_reference": call(analysis.isotropic_reference, top_rank, N, D, draws=2),
    "jackknife": call(lambda z: analysis.jackknife(top_rank, analysis.Moments.of(z, blocks=4)), gaussian(80, D)),
    "knn_accuracy": call(analysis.knn_accuracy, Z, LABELS, OTHER, LABELS, k=3),
    "levina_bickel": call(analysis.levina_bickel, Z, k=(3, 5)),
    "lidar": call(analysis.lidar, VIEWS),
    "mean_collapse": call(analysis.mean_collapse, Z),
    "mean_cosine": call(analysis.mean_cosine, Z),
    "nc1": call(analysis.nc1, Z, LABELS),
    "nc2": call(analysis.nc2, Z, LABELS),
    "nc3": call(analysis.nc3, Z, LABELS, weight=WEIGHT),
    "nc4": call(analysis.nc4, Z, LABELS, weight=WEIGHT, bias=WEIGHT[:, 0]),
    "nc5": call(analysis.nc5, Z, LABELS, outside=OTHER),
    "nearest_neighbors": call(analysis.nearest_neighbors, Z, k=3),
    "neighbor_overlap": call(analysis.neighbor_overlap, Z, OTHER, k=3),
    "nrc1": call(analysis.nrc1, Z, targets=2),
    "nrc2": call(analysis.nrc2, Z, weight=WEIGHT),
    "nrc3": call(analysis.nrc3, WEIGHT, targets=OTHER[:, :K]),
    "orthonormal_distance": call(analysis.orthonormal_distance, Z[:D]),
    "participation_ratio": call(analysis.participation_ratio, Z, unbiased=True),
    "patch_ranks": call(analysis.patch_ranks, GRID.flatten(1, 2)),
    "permutation_reference": call(analysis.permutation_reference, top_rank, Z, draws=2),
    "principal_angles": call(analysis.principal_angles, Z[:2], OTHER[:3]),
    "procrustes_distance": call(analysis.procrustes_distance, Z, OTHER),
    "prototype_entropy": call(analysis.prototype_entropy, Z),
    "prototype_usage": call(analysis.prototype_usage, Z),
    "rankme": call(analysis.rankme, Z),
    "rate_optimality": call(analysis.rate_optimality, Z, **EPS),
    "rate_reduction": call(analysis.rate_reduction, Z, LABELS, **EPS),
    "redundancy": call(analysis.redundancy, Z, OTHER),
    "renyi_entropy": call(analysis.renyi_entropy, Z, order=2),
    "report": call(lambda *args, **kwargs: analysis.report(*args, **kwargs).rows, Z, labels=LABELS, blocks=2),
    "rsa": call(analysis.rsa, Z, OTHER),
    "self_clustering": call(analysis.self_clustering, Z),
    "shrink_sweep": call(analysis.shrink_sweep, sphere(60, D), torch.arange(60) % K, sizes=[0.5]),
    "simplex_distance": call(analysis.simplex_distance, Z[:D]),
    "sliced_normality": call(analysis.sliced_normality, Z),
    "stable_rank": call(analysis.stable_rank, Z),
    "svcca": call(analysis.svcca, Z, OTHER),
    "tight_frame_distance": call(analysis.tight_frame_distance, Z),
    "tightness": call(analysis.tightness, Z),
    "twonn": call(analysis.twonn, Z),
    "uniformity": call(analysis.uniformity, Z),
    "uniformity_gap": call(analysis.uniformity_gap, Z),
    "variance_hinge": call(analysis.variance_hinge, Z),
}


def parts(result):
    """The tensors and numbers that a result is made of."""
    if isinstance(result, pd.DataFrame):
        result = result.select_dtypes("number").to_numpy().ravel().tolist()
    if isinstance(result, np.ndarray):
        result = result.ravel().tolist()
    if isinstance(result, list | tuple):
        return [part for some in result for part in parts(some)]
    return [result] if isinstance(result, torch.Tensor | float | int) else []


def called(wanted, device, which="all"):
    """The result of a call with its tensors on the device: all of them, the first, or the others."""
    seen = 0

    def move(x):
        nonlocal seen
        if not isinstance(x, torch.Tensor):
            return x
        seen += 1
        return x.to(device) if which == "all" or (which == "first") == (seen == 1) else x

    args = [move(x) for x in wanted.args]
    return wanted.function(*args, **{name: move(x) for name, x in wanted.kwargs.items()})
