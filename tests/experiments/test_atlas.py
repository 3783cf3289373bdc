"""The atlas of proposition C3: known configurations under its measures, known nullities, and a small map."""

import math

import numpy as np
import pytest
import torch

from analysis import theory
from analysis.experiments.atlas import ENERGIES, compare_optima, fourth_order, free_directions, geometry
from analysis.experiments.energies import coding_rate_energy, frame_potential_energy, koleo_energy, mmcr_energy
from analysis.experiments.landscape import harmonic_frame, hessian_spectrum, minimize, nullity, random_points
from tests import configurations


def test_geometry_of_the_twelve_vertices_of_the_icosahedron():
    lines = configurations.icosahedron().double()  # six of them
    values = geometry(torch.cat([lines, -lines]))
    exact = {"weakest": 1, "strongest": 1, "tightness": 1, "coherence": 1, "order_4": 0, "mean": 0}
    assert {name: getattr(values, name) for name in exact} == pytest.approx(exact, abs=1e-6)
    assert values.nearest == pytest.approx(1 / math.sin(2 * math.pi / 5), abs=1e-6)


def test_random_points_are_one_above_a_design_in_the_mean():
    rows = [geometry(z) for z in random_points(12, 3, restarts=400)]
    assert np.mean([row.order_4 for row in rows]) == pytest.approx(1, abs=0.05)
    assert np.mean([row.order_6 for row in rows]) == pytest.approx(1, abs=0.05)


def test_free_directions_are_the_nullity_of_the_exact_hessian():
    z = minimize(coding_rate_energy(0.5), 9, 4).z
    exact = nullity(hessian_spectrum(coding_rate_energy(0.5), z))
    assert free_directions(coding_rate_energy(0.5), z) == exact == theory.optimal_set_dimension(9, 4)
    assert free_directions(frame_potential_energy(), z) == exact


def test_free_directions_where_second_derivatives_of_singular_values_fail_and_at_a_kink():
    tight = minimize(mmcr_energy(), 7, 3).z
    assert free_directions(mmcr_energy(), tight) == theory.optimal_set_dimension(7, 3)
    assert math.isnan(free_directions(koleo_energy(), harmonic_frame(5, 2)))


def test_C3_atlas_groups_the_losses():
    table, points = compare_optima(6, 3, restarts=4)
    assert list(table.index) == [*ENERGIES, "random points"] == list(points)
    lines = configurations.icosahedron().double()
    assert table.coherence["coding rate, batches of 2"] == pytest.approx(
        (lines @ lines.T).abs().fill_diagonal_(0).max()
    )
    for name in ("uniformity", "InfoNCE"):  # the octahedron
        assert table.nearest[name] == pytest.approx(math.sqrt(2), abs=1e-6)
    flat = ["coding rate", "frame potential", "spectral contrastive", "MMCR", "VICReg"]
    assert (table.loc[flat, ["weakest", "strongest"]] - 1).abs().to_numpy().max() < 1e-6


def test_the_fourth_order_by_class_equals_a_loop():
    z = torch.nn.functional.normalize(torch.randn(30, 4, dtype=torch.float64), dim=1)
    labels = torch.tensor([7, 3, 3, 5, 7] * 5 + [3, 3, 3, 5, 9])
    found = fourth_order(z, labels)
    cosines = {(i, j): (z[i] @ z[j]).item() for i in range(30) for j in range(30) if i != j}
    same = [c**4 for (i, j), c in cosines.items() if labels[i] == labels[j]]
    different = [c**4 for (i, j), c in cosines.items() if labels[i] != labels[j]]
    assert found.all == pytest.approx((sum(same) + sum(different)) / (30 * 29))
    assert (found.same, found.different) == pytest.approx((sum(same) / len(same), sum(different) / len(different)))
    assert found.pairs == pytest.approx(len(same) / (30 * 29))
    assert found.share == pytest.approx(sum(same) / (sum(same) + sum(different)))
    normal = {True: [], False: []}
    for (i, j), _ in cosines.items():
        of = np.array([c for (k, m), c in cosines.items() if (labels[k], labels[m]) == (labels[i], labels[j])])
        normal[bool(labels[i] == labels[j])].append(of.mean() ** 4 + 6 * of.mean() ** 2 * of.var() + 3 * of.var() ** 2)
    assert found.normal_same == pytest.approx(np.mean(normal[True]))
    assert found.normal == pytest.approx(np.mean(normal[True] + normal[False]))


def test_a_normal_law_explains_the_cosines_of_gaussian_classes_and_one_gaussian_does_not():
    """Two classes on different directions: within each, cosines are near 1 in one and spread in the other."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1500, 48, generator=generator, dtype=torch.float64) / 48**0.5
    labels = torch.arange(1500) % 3
    z = torch.nn.functional.normalize(noise + torch.eye(48, dtype=torch.float64)[labels], dim=1)
    found = fourth_order(z, labels)
    assert found.normal / found.all == pytest.approx(1, abs=0.02)
    lam = torch.linalg.eigvalsh(z.mT @ z / 1500).numpy()
    assert abs(theory.gaussian_fourth_order(lam) / found.all - 1) > 0.5
    white = torch.nn.functional.normalize(noise, dim=1)
    lam = torch.linalg.eigvalsh(white.mT @ white / 1500).numpy()
    assert theory.gaussian_fourth_order(lam) / fourth_order(white, labels).all == pytest.approx(50**2 / 48**2, abs=0.1)
