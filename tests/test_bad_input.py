"""Every public diagnostic on bad and odd input of every kind: a defined answer, or a ValueError that says why not."""

import re
from functools import partial

import numpy as np
import pytest
import torch

import analysis
from analysis.experiments import injected_collapse
from analysis.measures import (
    alignment_uniformity,
    classes,
    collapse,
    covariance,
    frames,
    intrinsic_dimension,
    moments,
    mutual_information,
    neighbors,
    normality,
    pair_tiles,
    rates,
    similarity,
    spectra,
    uncertainty,
)
from analysis.probes import image
from analysis.reporting import features
from tests.configurations import gaussian, simplex, sphere

N, D, K = 12, 5, 3
LABELS = torch.arange(N) % K


OTHER = sphere(N, D, seed=9)
WEIGHT = gaussian(K, D, seed=8)
NORMALITY = normality.STATISTICS


# A diagnostic as a function of one (n, d) array, under the name that its argument has. Each is given unit rows.
FEATURES = {
    "z": {
        "Moments.of": lambda z: moments.Moments.of(z).second_moment,
        "Moments.update": lambda z: moments.Moments(D).update(z).covariance,
        "feature_std": collapse.feature_std,
        "hyperspherical_energy": alignment_uniformity.hyperspherical_energy,
        "mean_collapse": collapse.mean_collapse,
        "self_clustering": frames.self_clustering,
        "uniformity": alignment_uniformity.uniformity,
        "uniformity_gap": alignment_uniformity.uniformity_gap,
        "coherence": frames.coherence,
        "frame_bounds": lambda z: torch.stack(frames.frame_bounds(z)),
        "frame_potential": frames.frame_potential,
        "frame_potential 4": partial(frames.frame_potential, order=4),
        "frame_potential_excess": frames.frame_potential_excess,
        "gram_cosines": pair_tiles.gram_cosines,
        "orthonormal_distance": lambda z: frames.orthonormal_distance(z[:D]),
        "simplex_distance": classes.simplex_distance,
        "tight_frame_distance": frames.tight_frame_distance,
        "tightness": frames.tightness,
        "twonn": lambda z: intrinsic_dimension.twonn(z).dimension,
        "gride": lambda z: intrinsic_dimension.gride(z).dimension,
        "levina_bickel": lambda z: intrinsic_dimension.levina_bickel(z, k=(2, 3)).dimension,
        "nearest_neighbors": lambda z: neighbors.nearest_neighbors(z, k=2).distances,
        "cdnv": lambda z: classes.cdnv(z, classes_of(z)),
        "class_overlap": lambda z: classes.class_overlap(z, classes_of(z)).pairs,
        "nc5": lambda z: classes.nc5(z, classes_of(z), outside=OTHER),
        "nrc1": lambda z: classes.nrc1(z, targets=2),
        "nrc2": lambda z: classes.nrc2(z, weight=WEIGHT),
        "bhep": normality.bhep,
        "class_effective_rank": lambda z: classes.class_effective_rank(z, classes_of(z)).ranks,
        "nc1": lambda z: classes.nc1(z, classes_of(z)),
        "nc2": lambda z: classes.nc2(z, classes_of(z)),
        "nc3": lambda z: classes.nc3(z, classes_of(z), weight=WEIGHT),
        "nc4": lambda z: classes.nc4(z, classes_of(z), weight=WEIGHT),
        "class_rates": lambda z: rates.class_rates(z, classes_of(z), eps=0.5),
        "rate_reduction": lambda z: rates.rate_reduction(z, classes_of(z), eps=0.5),
        "coding_rate": partial(rates.coding_rate, eps=0.5),
        "coding_rate_of_spectrum": partial(rates.coding_rate_of_spectrum, eps=0.5, d=D),
        "rate_optimality": lambda z: rates.rate_optimality(z, eps=0.5).measured,
        "collapsed": lambda z: injected_collapse.collapsed(z, torch.full((len(z), D), D**-0.5), share=0.5),
        **{f"sliced_normality {name}": partial(normality.sliced_normality, statistic=name) for name in NORMALITY},
        "alpha_req": partial(spectra.alpha_req, fit=(1, 3)),
        "anisotropy": spectra.anisotropy,
        "condition_number": spectra.condition_number,
        "effective_rank": spectra.effective_rank,
        "eigenvalues": spectra.eigenvalues,
        "eigenvalues_above_edge": spectra.eigenvalues_above_edge,
        "isoscore": spectra.isoscore,
        "mean_cosine": spectra.mean_cosine,
        "participation_ratio": spectra.participation_ratio,
        "participation_ratio unbiased": partial(spectra.participation_ratio, unbiased=True),
        "participation_ratio centered": partial(spectra.participation_ratio, unbiased=True, center=True),
        "rankme": spectra.rankme,
        "renyi_entropy": partial(spectra.renyi_entropy, order=2),
        "stable_rank": spectra.stable_rank,
        "permutation_reference": lambda z: torch.tensor(uncertainty.permutation_reference(spectra.rankme, z, draws=2)),
        "report": lambda z: torch.tensor([row.value for row in features.report(z, blocks=2).rows]),
    },
    "x": {
        "alignment": lambda x: alignment_uniformity.alignment(x, OTHER),
        "redundancy": covariance.redundancy,
        "variance_hinge": covariance.variance_hinge,
        "covariance_energy": covariance.covariance_energy,
        "debiased_cka": lambda x: similarity.debiased_cka(x, OTHER),
        "minibatch_cka": lambda x: similarity.minibatch_cka([(x, OTHER)] * 2),
        "svcca": lambda x: similarity.svcca(x, OTHER),
        "rsa": lambda x: similarity.rsa(x, OTHER),
        "neighbor_overlap": lambda x: neighbors.neighbor_overlap(x, OTHER, k=2),
        "information_imbalance": lambda x: neighbors.information_imbalance(x, OTHER),
        "infonce_bound": lambda x: mutual_information.infonce_bound(x, OTHER, temp=0.5),
        "dime": lambda x: mutual_information.dime(x, OTHER),
        "redundancy of views": lambda x: covariance.redundancy(x, OTHER),
        "principal_angles": lambda x: similarity.principal_angles(x, OTHER),
        "procrustes_distance": lambda x: similarity.procrustes_distance(x, OTHER),
    },
    "y": {
        "alignment": lambda y: alignment_uniformity.alignment(OTHER, y),
        "debiased_cka": lambda y: similarity.debiased_cka(OTHER, y),
        "minibatch_cka": lambda y: similarity.minibatch_cka([(OTHER, y)]),
        "svcca": lambda y: similarity.svcca(OTHER, y),
        "rsa": lambda y: similarity.rsa(OTHER, y),
        "neighbor_overlap": lambda y: neighbors.neighbor_overlap(OTHER, y, k=2),
        "information_imbalance": lambda y: neighbors.information_imbalance(OTHER, y),
        "infonce_bound": lambda y: mutual_information.infonce_bound(OTHER, y, temp=0.5),
        "dime": lambda y: mutual_information.dime(OTHER, y),
        "redundancy of views": lambda y: covariance.redundancy(OTHER, y),
        "principal_angles": lambda y: similarity.principal_angles(OTHER, y),
        "procrustes_distance": lambda y: similarity.procrustes_distance(OTHER, y),
    },
    "target": {"collapsed": lambda target: injected_collapse.collapsed(OTHER[:K], target[:K], share=0.5)},
    "weight": {
        "nc3": lambda w: classes.nc3(gaussian(N, D), LABELS, weight=w[:K]),
        "nc4": lambda w: classes.nc4(gaussian(N, D), LABELS, weight=w[:K]),
        "nrc2": lambda w: classes.nrc2(gaussian(N, D), weight=w[:K]),
        "nrc3": lambda w: classes.nrc3(w[:K], targets=gaussian(N, K)),
    },
    "train": {
        "knn_accuracy": lambda z: neighbors.knn_accuracy(z, classes_of(z), sphere(4, D), LABELS[:1].repeat(4), k=1),
        "few_shot_accuracy": lambda z: image.few_shot_accuracy(z, classes_of(z), OTHER[::3], LABELS[::3], shots=1),
        "linear_probe": lambda z: image.linear_probe(z, classes_of(z), OTHER[::3], LABELS[::3], epochs=2).accuracy,
        "logistic_regression": lambda z: image.logistic_regression(z, classes_of(z), OTHER[::3], LABELS[::3]).accuracy,
    },
    "test": {
        "knn_accuracy": lambda z: neighbors.knn_accuracy(sphere(N, D), LABELS, z, classes_of(z), k=2),
        "few_shot_accuracy": lambda z: image.few_shot_accuracy(OTHER, LABELS, z, classes_of(z), shots=2),
        "linear_probe": lambda z: image.linear_probe(OTHER, LABELS, z, classes_of(z), epochs=2).accuracy,
        "logistic_regression": lambda z: image.logistic_regression(OTHER, LABELS, z, classes_of(z)).accuracy,
    },
    "outside": {"nc5": lambda z: classes.nc5(gaussian(N, D), LABELS, outside=z)},
    "targets": {"nrc3": lambda z: classes.nrc3(gaussian(z.shape[-1] or 1, D), targets=z)},
    "views": {
        "alignment": lambda z: alignment_uniformity.alignment(stacked(z, 2)),
        "lidar": lambda z: collapse.lidar(stacked(z, 2)),
        "infonce_bound": lambda z: mutual_information.infonce_bound(stacked(z, 2), temp=0.5),
        "dime": lambda z: mutual_information.dime(stacked(z, 2)),
    },
    "tokens": {"patch_ranks": lambda z: torch.stack(collapse.patch_ranks(stacked(z, 2)))},
    "logits": {
        "prototype_entropy": lambda z: torch.stack(collapse.prototype_entropy(z)),
        "prototype_usage": collapse.prototype_usage,
        "center_drift": lambda z: collapse.center_drift(z, running_center=torch.zeros(D)),
    },
}
CASES = {f"{name}({argument})": (f, argument) for argument, group in FEATURES.items() for name, f in group.items()}


def classes_of(z):
    return LABELS[: len(z)]


def stacked(z, copies):
    """Views or tokens of which z is the first, the others are its rows in other orders."""
    if isinstance(z, np.ndarray):
        return np.stack([np.roll(z, i, 0) for i in range(copies)])
    return torch.stack([z.roll(i, 0) for i in range(copies)])


def raised(f, x):
    with pytest.raises(ValueError) as error:
        f(x)
    return str(error.value)


def broken(value):
    z = sphere(N, D)
    z[2, 1] = value
    return z


# --- Refused

REFUSED = {
    "nan": broken(torch.nan),
    "inf": broken(torch.inf),
    "empty": torch.zeros(0, D),
    "no columns": torch.zeros(N, 0),
    "one axis": torch.arange(-2.0, D),
    "three axes": torch.zeros(2, N, D),
    "complex": sphere(N, D) * 1j,
    "text": np.full((N, D), "a"),
}
# A 1-D array is a spectrum where one is taken; a rate takes batches, and as a loss its types are checked by annotation.
NOT_REFUSED = {"coding_rate": {"one axis", "three axes", "complex", "text", "no columns"}}


NAMED = r"spectrum|unbiased|needs d >= 2|needs features"


@pytest.mark.parametrize("case", CASES)
def test_refused_by_the_name_of_the_argument(case):
    f, argument = CASES[case]
    kinds = REFUSED.keys() - NOT_REFUSED.get(case.split("(")[0], set())
    messages = {kind: raised(f, REFUSED[kind]) for kind in kinds}
    assert {kind: m for kind, m in messages.items() if not re.search(rf"\b{argument}\b|{NAMED}", m)} == {}


# --- Taken, whatever the type and the layout

TAKEN = {
    "bfloat16": sphere(N, D).bfloat16(),
    "float16": sphere(N, D).half(),
    "float32": sphere(N, D).float(),
    "integers": torch.eye(D, dtype=torch.int64).repeat(3, 1)[:N],
    "columns first": sphere(N, D).T.contiguous().T,
    "every other row": sphere(2 * N, D)[::2],
    "numpy": sphere(N, D).numpy(),
    "numpy, reversed": sphere(N, D).numpy()[::-1, ::-1].copy(),
}


@pytest.mark.parametrize("case", CASES)
def test_type_and_layout_do_not_matter(case):
    f = CASES[case][0]
    for kind, z in TAKEN.items():
        if case == "coding_rate(z)" and (isinstance(z, np.ndarray) or not z.is_floating_point()):
            continue  # the loss takes floating-point tensors, checked by annotation
        expected = f(torch.as_tensor(z).double().contiguous()).double()
        torch.testing.assert_close(
            f(z).double(), expected, rtol=1e-4, atol=1e-5, msg=lambda m, kind=kind: f"{kind}: {m}"
        )


# --- Degenerate: a value, or a reason

DEGENERATE = {
    "one row": sphere(1, D),
    "two rows": sphere(2, D),
    "fewer rows than columns": sphere(4, D),
    "one column": sphere(N, 1),
    "equal rows": sphere(1, D).repeat(N, 1),
    "all zero": torch.zeros(N, D),
    "a zero row": broken(0.0).index_fill(0, torch.tensor([2]), 0.0),
}
# What is infinite, and documented so; nothing else is, and nothing is ever NaN.
INFINITE = {
    "hyperspherical_energy": {"equal rows", "one column"},
    "nc1": {"equal rows", "all zero"},
    "cdnv": {"equal rows", "all zero", "one column"},  # of −1 and 1, with the same mean in two classes
    "sliced_normality jarque_bera": {"one row", "equal rows", "all zero"},
    "condition_number": {"equal rows", "all zero"},
    "renyi_entropy": {"all zero"},
    "center_drift": {"one row", "equal rows"},
}
REASON = (
    r"needs (at least )?\d|needs d|unit-norm|zero row|at least two classes|fit must|must have|must be views|spans"
    r"|k must|same samples|same dimension|one shape|has \d+ rows|is zero|has more rows|no sample|shots are more"
    r"|no class with two|must lie|constant row|must vary|different rows"
)


@pytest.mark.parametrize("case", CASES)
def test_degenerate_features_have_a_value_or_a_reason(case):
    f, infinite = CASES[case][0], INFINITE.get(case.split("(")[0], set())
    for kind, z in DEGENERATE.items():
        try:
            value = torch.as_tensor(f(z)).double()
        except ValueError as error:
            assert re.search(REASON, str(error)), f"{kind}: {error}"  # noqa: PT017  refusing is one of two right answers
        else:
            assert not value.isnan().any(), kind
            assert value.isinf().any() == (kind in infinite), kind


# --- Where a loss would be: finite gradients at ties, at the optimum, at lost rank

EYE = torch.eye(D, dtype=torch.float64)
SPECIAL = {
    **DEGENERATE,
    "orthonormal": EYE,
    "tight frame": EYE.repeat(2, 1),
    "uneven frame": EYE.repeat(3, 1)[:N],
    "opposite rows": torch.cat((EYE, -EYE)),
    "the other set": OTHER,
    "pairs of equal rows": sphere(6, D).repeat(2, 1),
    "rows of integers": torch.tensor([[i % 3, i % 2, 1, 0, 2] for i in range(N)]) / 3,
    "more columns than rows": sphere(N, 30),
    "rank 2": torch.nn.functional.normalize(gaussian(N, 2) @ gaussian(2, D, seed=3), dim=1),
    "one point for each class": sphere(K, D).repeat(N // K, 1),
    "classes on a simplex": simplex(K, D).repeat(N // K, 1),
    "equal class means": sphere(N // K, D).repeat_interleave(K, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_where_values_are(case):
    for kind, z in SPECIAL.items():
        z = z.double().clone().requires_grad_()
        try:
            value = torch.as_tensor(CASES[case][0](z)).double()
        except ValueError:  # refused, as above
            continue
        finite = value[value.isfinite()]
        if value.requires_grad and len(finite):
            (gradient,) = torch.autograd.grad(finite.sum(), z)
            assert gradient.isfinite().all(), kind
            assert gradient.abs().max() < 1e6, kind  # and no rounding that is divided by rounding


# --- Labels, views, streams

LABELED = {
    "class_effective_rank": classes.class_effective_rank,
    "nc1": classes.nc1,
    "nc2": classes.nc2,
    "cdnv": classes.cdnv,
    "class_overlap": classes.class_overlap,
    "nc5": partial(classes.nc5, outside=OTHER),
    "nc3": partial(classes.nc3, weight=WEIGHT),
    "nc4": partial(classes.nc4, weight=WEIGHT),
    "class_rates": partial(rates.class_rates, eps=0.5),
    "rate_reduction": partial(rates.rate_reduction, eps=0.5),
    "Moments.of": moments.Moments.of,
    "Moments.update": lambda z, labels: moments.Moments(D, classes=K).update(z, labels),
    "report": lambda z, labels: features.report(z, labels=labels, blocks=2),
    "few_shot_accuracy": lambda z, labels: image.few_shot_accuracy(z, labels, z, LABELS, shots=1),
    "linear_probe": lambda z, labels: image.linear_probe(z, labels, z, LABELS, epochs=1),
    "logistic_regression": lambda z, labels: image.logistic_regression(z, LABELS, z, labels),
    "knn_accuracy, train": lambda z, labels: neighbors.knn_accuracy(z, labels, z, LABELS, k=1),
    "knn_accuracy, test": lambda z, labels: neighbors.knn_accuracy(z, LABELS, z, labels, k=1),
}
BAD_LABELS = {
    "negative": LABELS - 1,
    "floating": LABELS.float(),
    "boolean": LABELS > 0,
    "too few": LABELS[:-1],
    "two axes": LABELS[:, None],
    "numpy, floating": LABELS.double().numpy(),
}


@pytest.mark.parametrize("name", LABELED)
def test_bad_labels_are_named(name):
    f = partial(LABELED[name], sphere(N, D))
    assert [kind for kind, labels in BAD_LABELS.items() if "labels" not in raised(f, labels)] == []


@pytest.mark.parametrize("name", sorted(LABELED.keys() - {"Moments.update", "report"}))
def test_names_of_classes_count_as_integers_do(name):
    """In every function that takes labels; so do integers with gaps, whose size costs nothing."""
    f = partial(LABELED[name], sphere(N, D))
    numbered = torch.as_tensor([0, 1, 2])[LABELS]
    if "knn" in name or name in ("few_shot_accuracy", "linear_probe", "logistic_regression"):
        with pytest.raises(ValueError, match="train_labels and test_labels must both be names"):
            f(np.array(["ant", "bee", "cat"])[LABELS])  # the other set has numbers
        return
    expected = told(f(numbered))
    assert told(f(np.array(["ant", "bee", "cat"])[LABELS])) == expected
    assert told(f(torch.tensor([3, 10, 10**12])[LABELS])) == expected


def told(value):
    """The numbers of a result, but for the labels that it names."""
    if isinstance(value, moments.Moments):
        return [part.mean.tolist() for part in value.by_class]
    parts = value if isinstance(value, tuple) else (value,)
    return [part.tolist() for part in parts if part.is_floating_point()]


def test_report_and_nearest_neighbors_take_names():
    z, names = sphere(N, D), np.array(["ant", "bee", "cat"])[LABELS]
    assert repr(features.report(z, labels=names, blocks=2)) == repr(features.report(z, labels=LABELS, blocks=2))
    accuracy = neighbors.knn_accuracy(OTHER, names, z, list(names), k=3)
    assert accuracy == neighbors.knn_accuracy(OTHER, LABELS, z, LABELS, k=3)
    with pytest.raises(ValueError, match="test_labels has class 'dog', of which train_labels has no sample"):
        neighbors.knn_accuracy(OTHER, names, z, np.full(N, "dog"), k=3)


def test_labels_out_of_range_are_named_where_the_range_is_known():
    assert "labels must be below classes=3" in raised(partial(LABELED["Moments.update"], sphere(N, D)), LABELS + 1)
    assert "test_labels has class 3" in raised(partial(LABELED["knn_accuracy, test"], sphere(N, D)), LABELS + 1)


PAIRED = ["alignment", "debiased_cka", "procrustes_distance", "svcca", "rsa", "neighbor_overlap"]
PAIRED += ["information_imbalance", "infonce_bound", "dime", "redundancy of views"]


@pytest.mark.parametrize("name", PAIRED)
def test_rows_that_do_not_correspond_are_named(name):
    assert re.search("x and y must", raised(lambda y: CASES[f"{name}(y)"][0](y), OTHER[:-1]))


def test_one_view_is_none():
    for f in (
        alignment_uniformity.alignment,
        collapse.lidar,
        mutual_information.dime,
        partial(mutual_information.infonce_bound, temp=1),
    ):
        assert "views needs at least 2 views" in raised(f, OTHER[None])


def test_moments_without_rows_are_named():
    empty = moments.Moments(D, classes=K, blocks=2)
    for name in ("effective_rank", "isoscore", "condition_number", "eigenvalues_above_edge", "anisotropy", "alpha_req"):
        assert "Moments have seen no rows" in raised(CASES[f"{name}(z)"][0], empty)
    for f in (collapse.mean_collapse, frames.tightness, partial(rates.rate_optimality, eps=0.5)):
        assert "Moments" in raised(f, empty)
    assert "non-empty blocks" in raised(partial(uncertainty.jackknife, spectra.rankme), empty)


def test_every_public_diagnostic_is_here():
    tested = {case.split("(")[0].split()[0] for case in CASES}
    not_of_features = [
        "Moments",
        "jackknife",
        "isotropic_reference",
        "white_noise_spectrum",
        "collapsed_spectrum",
        "diagnose",
        "preflight",
    ]
    not_of_features += ["frame_potential_bound", "marchenko_pastur_edge", "orthoplex_bound", "sphere_potential"]
    not_of_features += ["uniformity_optimum", "welch_bound"]
    demonstrations = {"collapse_sweep", "shrink_sweep"}
    assert set(analysis.__all__) - tested == {*not_of_features, *demonstrations}
