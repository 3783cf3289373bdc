"""White noise and injected collapses: known spectra, and measures that follow their closed forms along the way."""

import math

import numpy as np
import pytest
import torch

from analysis import theory
from analysis.experiments.injected_collapse import (
    collapse_response,
    collapse_sweep,
    collapsed,
    collapsed_spectrum,
    shrink_sweep,
)
from analysis.measures.collapse import mean_collapse
from analysis.measures.rates import coding_rate_of_spectrum
from analysis.measures.spectra import effective_rank, eigenvalues, participation_ratio, rankme
from analysis.theory import white_noise_spectrum
from tests.configurations import gaussian, simplex, sphere

EPS = 0.05**0.5


@pytest.mark.parametrize(("n", "d"), [(640, 64), (100, 80), (64, 64), (40, 100), (10_000, 16)])
def test_white_noise_has_the_closed_forms_of_marchenko_and_pastur(n, d):
    """E x log x = y/2 and E x² = 1 + y; the Shannon transform is theory's; within what r quantiles resolve."""
    lam = white_noise_spectrum(n, d)
    r, y = min(n, d), min(n, d) / max(n, d)
    assert lam.shape == (r,)
    assert lam.sum().item() == pytest.approx(1, abs=1e-12)
    assert (np.diff(lam) <= 0).all()
    assert effective_rank(lam).item() == pytest.approx(r * math.exp(-y / 2), rel=1e-3)
    assert participation_ratio(lam).item() == pytest.approx(1 / (1 / n + 1 / d), rel=1e-3)
    assert coding_rate_of_spectrum(lam, eps=EPS, d=d).item() == pytest.approx(
        theory.rate_isotropic(n, d, EPS), rel=1e-3
    )
    assert (1 - math.sqrt(y)) ** 2 <= r * lam[-1].item()
    assert r * lam[0].item() <= (1 + math.sqrt(y)) ** 2 * (1 + 1e-3)


@pytest.mark.parametrize(("n", "d"), [(320, 64), (64, 64), (32, 64), (400, 16)])
def test_white_noise_is_what_random_unit_vectors_give(n, d):
    draws = [eigenvalues(sphere(n, d, seed=seed)) for seed in range(8)]
    noise = white_noise_spectrum(n, d)
    torch.testing.assert_close(torch.stack(draws).mean(0), torch.from_numpy(noise), rtol=0, atol=0.1 * noise[0])
    for measure in (effective_rank, rankme, participation_ratio):
        mean = torch.stack([measure(lam) for lam in draws]).mean().item()
        assert mean == pytest.approx(measure(noise).item(), rel=0.01)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_collapsed_set_has_the_injected_share_of_its_energy_in_the_target(share):
    z, target = sphere(50, 8), simplex(4, 8)[torch.arange(50) % 4]
    out = collapsed(z, target, share=share)
    basis = torch.linalg.svd(target, full_matrices=False).Vh[:3]
    torch.testing.assert_close(out.norm(dim=1), torch.ones(50, dtype=out.dtype))
    torch.testing.assert_close((out @ basis.T).square().sum(1), torch.full((50,), share, dtype=out.dtype))


def test_collapse_to_a_point_moves_the_mean_share_alone():
    point = torch.eye(16, dtype=torch.float64)[:1].expand(4000, 16)
    for share in (0.2, 0.7):
        z = collapsed(sphere(4000, 16), point, share=share)
        assert mean_collapse(z).item() == pytest.approx(share + (1 - share) / 4000, abs=2e-3)


def test_collapsed_spectrum_of_infinitely_many():
    torch.testing.assert_close(collapsed_spectrum(0.5, 2, 4), torch.tensor([0.25, 0.25, 0.25, 0.25]).double())
    torch.testing.assert_close(collapsed_spectrum(0.9, 1, 3), torch.tensor([0.9, 0.05, 0.05]).double())
    torch.testing.assert_close(collapsed_spectrum(0.1, 1, 3), torch.tensor([0.45, 0.45, 0.1]).double())


def test_every_measure_follows_its_closed_form_through_three_collapses():
    """2,048 samples in 32 dimensions; effective ranks carry their bias −d/2n, and 1 % of noise remains."""
    table = collapse_sweep(2048, 32, classes=8, rank=4, shares=[0.3, 0.6, 0.9, 0.99])
    assert len(table) == 3 * 4 * 7
    assert not table.isna().any().any()
    assert (table["measured"] - table["predicted"]).abs().max() < 0.015


def test_who_is_blind_to_what():
    table = collapse_sweep(1024, 32, classes=8, rank=4, shares=[0.99]).set_index(["collapse", "measure"])["measured"]
    assert table["to a point", "effective rank, centered"] > 0.95
    assert table["to a point", "1 − mean share"] < 0.02
    assert table["to a subspace", "1 − mean share"] > 0.95
    assert table["to a subspace", "effective rank"] < 0.15
    assert table["to a subspace", "spread within classes"] > 0.95
    assert table["to class means", "spread within classes"] < 0.02
    assert (table[:, "coding rate"] < 0.4).all()


def test_the_trap_closes_on_centered_ranks_and_neighbors_only():
    labels = torch.arange(300) % 3
    z = 5 + torch.nn.functional.one_hot(labels, 10) + 0.4 * gaussian(300, 10)
    table = shrink_sweep(z, labels, sizes=[1.0, 0.1, 1e-3])
    assert table["measured"].to_numpy() == pytest.approx(table["predicted"].to_numpy(), rel=1e-3)
    close = table[table["size"] == 1e-3].set_index("measure")["measured"]
    assert close["effective rank, centered"] == pytest.approx(1, rel=1e-6)
    assert close["k-NN accuracy"] >= 0.95
    assert close["1 − mean share"] == pytest.approx(1e-6, rel=1e-4)
    assert close["coding rate"] < 1e-3
    assert (table[table["size"] == 1.0]["measured"] == 1).all()


def test_bad_input_is_named():
    z = sphere(6, 3)
    with pytest.raises(ValueError, match="share must lie"):
        collapsed(z, z[:1].expand(6, 3), share=1.5)
    with pytest.raises(ValueError, match="one shape"):
        collapsed(z, z[:3], share=0.5)
    with pytest.raises(ValueError, match="whole space"):
        collapsed(z, z, share=0.5)
    with pytest.raises(ValueError, match="unit-norm"):
        collapsed(z, 2 * z, share=0.5)
    with pytest.raises(ValueError, match="n must be a positive integer"):
        white_noise_spectrum(0, 3)
    with pytest.raises(ValueError, match="rank must lie"):
        collapsed_spectrum(0.5, 3, 3)
    with pytest.raises(ValueError, match=r"shares must lie in \(0, 1\)"):
        collapse_sweep(64, 8, classes=2, rank=2, shares=[1.0])


@pytest.mark.parametrize("size", [0.0, -0.5, 1.5])
def test_a_size_that_is_no_shrinking_is_refused(size):
    with pytest.raises(ValueError, match=r"sizes must lie in \(0, 1\]"):
        shrink_sweep(sphere(40, 4), torch.arange(40) % 2, sizes=[0.5, size])


def test_response_of_isotropic_classes_is_that_of_the_injected_collapse():
    z, labels, share = sphere(2000, 16), torch.arange(2000) % 3, 0.9
    table = collapse_response(z, labels, share=share, rank=3)
    assert table.loc["effective rank, centered", "to a point"] == pytest.approx(1, abs=0.08)  # d - 1 of d directions
    assert table.loc["1 − mean share", "to a point"] == pytest.approx(1 - share, abs=0.01)
    assert table.loc["1 − mean share", "to a subspace"] == pytest.approx(1, abs=0.05)
    assert table.loc["spread within classes", "to class means"] == pytest.approx(1 - share, abs=0.01)
    assert table.loc["coding rate"].between(0, 0.9).all()
