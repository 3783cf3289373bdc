"""Spectral diagnostics: known spectra, naive twins, invariances, peers' definitions, degenerate input."""

import inspect
import math
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch

from analysis.measures import spectra
from analysis.measures.moments import Moments
from analysis.measures.spectra import (
    PRESETS,
    alpha_req,
    anisotropy,
    condition_number,
    effective_rank,
    effective_ranks,
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
from tests.configurations import simplex

RANKS = {
    "effective_rank": effective_rank,
    "singular": lambda x, **kw: effective_rank(x, of="singular_values", **kw),
    "rankme": rankme,
    "participation_ratio": participation_ratio,
    "stable_rank": stable_rank,
}
ALL = RANKS | {
    "isoscore": isoscore,
    "anisotropy": anisotropy,
    "condition_number": condition_number,
    "alpha_req": lambda x, **kw: alpha_req(x, fit=(2, 4), **kw),
    "renyi": lambda x, **kw: renyi_entropy(x, order=0.5, **kw),
}


def generator():
    return torch.Generator().manual_seed(0)


def with_spectrum(lam, n, seed=0):
    """Features (n, d) in float64 with exactly these eigenvalues of zᵀz/n, in a random basis."""
    g, d = torch.Generator().manual_seed(seed), len(lam)
    left = torch.linalg.qr(torch.randn(n, d, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    return left * (n * lam.double()).sqrt() @ right.T


@pytest.fixture
def z():
    return with_spectrum(1 / torch.arange(1, 7), 40) + 0.1


def assert_value(actual, expected, tol=1e-10):
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=tol, atol=tol)


# --- the spectrum itself


@pytest.mark.parametrize("n", [3, 6, 40])
@pytest.mark.parametrize("center", [False, True])
def test_eigenvalues_are_the_squared_singular_values_over_n(n, center):
    z = torch.randn(n, 6, generator=generator(), dtype=torch.float64) + 1
    naive = torch.linalg.svdvals(z - z.mean(0) if center else z).square() / n
    lam = eigenvalues(z, center=center)
    assert lam.shape == (min(n, 6),)
    torch.testing.assert_close(lam, naive, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(eigenvalues(Moments.of(z), center=center), lam)
    torch.testing.assert_close(eigenvalues(z.clone().requires_grad_(), center=center).detach(), lam)


def test_n_below_d_adds_no_rounding_eigenvalues():
    z = torch.randn(10, 200, generator=generator())
    assert eigenvalues(z).shape == eigenvalues(Moments.of(z)).shape == (10,)
    assert eigenvalues(z, center=True)[-1] == eigenvalues(Moments.of(z), center=True)[-1] == 0


def test_rank_deficient_features_have_exact_zeros():
    """Rounding eigenvalues would add 5·10⁻⁷ to the effective rank of the singular values."""
    z = with_spectrum(torch.cat([torch.ones(20), torch.zeros(44)]), 300)
    assert int((eigenvalues(z) > 0).sum()) == 20
    assert_value(effective_rank(z, of="singular_values"), 20, 1e-12)


def test_normalize_is_division_by_row_norms(z):
    unit = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(eigenvalues(z, normalize=True), eigenvalues(unit))
    assert_value(eigenvalues(unit).sum(), 1)


# --- known answers


@pytest.mark.parametrize("name", RANKS)
def test_every_rank_of_a_flat_spectrum_of_rank_r_is_r(name):
    kwargs = {"shift": 0.0} if name == "rankme" else {}
    for r, d in [(1, 8), (3, 8), (8, 8)]:
        assert_value(RANKS[name](with_spectrum((torch.arange(d) < r) / r, 30), **kwargs), r)
    simplex = torch.eye(9, dtype=torch.float64) - 1 / 9  # 9 rows, rank 8
    assert_value(RANKS[name](simplex, **kwargs), 8)


def test_two_level_spectrum_by_hand():
    lam = torch.tensor([0.75, 0.25])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert_value(effective_rank(lam), math.exp(entropy))
    assert_value(participation_ratio(lam), 1 / (0.75**2 + 0.25**2))
    assert_value(stable_rank(lam), 4 / 3)
    assert_value(condition_number(lam), 3)
    assert_value(anisotropy(lam), 0.75)
    assert_value(isoscore(lam), 1.6 - 1)
    p = np.sqrt([0.75, 0.25]) / np.sqrt([0.75, 0.25]).sum()
    assert_value(effective_rank(lam, of="singular_values"), np.exp(-(p * np.log(p)).sum()))


def test_renyi_entropy_has_the_ranks_as_special_orders_and_falls(z):
    lam = eigenvalues(z)
    assert_value(renyi_entropy(z, order=0).exp(), 6)
    assert_value(renyi_entropy(z, order=1).exp(), effective_rank(z))
    assert_value(renyi_entropy(z, order=2).exp(), lam.sum() ** 2 / lam.square().sum())
    assert_value(renyi_entropy(z, order=math.inf).exp(), lam.sum() / lam[0])
    assert_value(renyi_entropy(z, order=1 + 1e-6), renyi_entropy(z, order=1), 1e-5)
    assert_value(renyi_entropy(z, order=1000), renyi_entropy(z, order=math.inf), 1e-2)
    values = [renyi_entropy(z, order=a).item() for a in (0, 0.5, 1, 2, 5, math.inf)]
    assert values == sorted(values, reverse=True)
    with pytest.raises(ValueError, match="order"):
        renyi_entropy(z, order=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_alpha_req_of_a_power_law_is_its_exponent(alpha):
    lam = torch.arange(1, 65, dtype=torch.float64) ** -alpha
    assert_value(alpha_req(lam, fit=(1, 64)), alpha)
    assert_value(alpha_req(with_spectrum(lam, 100), fit=(11, 50)), alpha, 1e-8)
    lam[:5] *= 10  # outside the range
    assert_value(alpha_req(lam, fit=(6, 64)), alpha)


@pytest.mark.parametrize("order", [1 - 1e-9, 1 + 1e-9, 1 + 1e-5, 1e6, 1e15, 1e300])
def test_entropies_of_extreme_orders_tend_to_their_limits(order):
    lam = torch.full((100,), 0.01, dtype=torch.float64)
    assert_value(renyi_entropy(lam, order=order), math.log(100), 1e-9)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    limit = -(p * p.log()).sum().item() if order < 2 else -math.log(0.6) * order / (order - 1)
    assert_value(renyi_entropy(p, order=order), limit, 1e-5)


def test_weights_of_alpha_req_make_up_for_the_density_of_large_indices():
    lam = torch.tensor([1.0, 0.5, 0.4, 0.2], dtype=torch.float64)
    assert_value(alpha_req(lam, fit=(1, 4), weighted=True), weighted_decay(lam.numpy(), 1, 4))
    power_law = torch.arange(1, 65, dtype=torch.float64) ** -0.7
    assert_value(alpha_req(power_law, fit=(3, 64), weighted=True), 0.7)


def test_alpha_req_is_the_regression(z):
    lam = eigenvalues(z).numpy()
    slope = np.polyfit(np.log(np.arange(2, 6)), np.log(lam[1:5]), 1)[0]
    assert_value(alpha_req(z, fit=(2, 5)), -slope)
    for fit in [(0, 3), (3, 3), (2, 7)]:
        with pytest.raises(ValueError, match="fit"):
            alpha_req(z, fit=fit)


def test_isoscore_is_the_papers_algorithm(z):
    lam, d = np.linalg.eigvalsh(np.cov(z.numpy().T)), 6
    defect = np.linalg.norm(math.sqrt(d) * lam / np.linalg.norm(lam) - 1) / math.sqrt(2 * (d - math.sqrt(d)))
    share = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    assert_value(isoscore(z), (d * share - 1) / (d - 1))
    for k in range(1, 7):  # k of d directions, evenly: (k - 1)/(d - 1), the paper's example
        assert_value(isoscore((torch.arange(6) < k).double()), (k - 1) / 5)


def test_mean_cosine_is_the_mean_over_pairs(z):
    unit = z / z.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    expected = (cosines.sum() - 40) / (40 * 39)
    assert_value(mean_cosine(z, normalize=True), expected)
    assert_value(mean_cosine(Moments.of(unit)), expected)
    assert_value(mean_cosine(torch.eye(4)), 0)
    assert_value(mean_cosine(torch.eye(5, dtype=torch.float64) - 0.2, normalize=True), -1 / 4)
    for bad in (z, Moments.of(z)):
        with pytest.raises(ValueError, match="unit-norm"):
            mean_cosine(bad)


def test_white_noise_ends_at_the_marchenko_pastur_edge():
    z = torch.randn(2000, 100, generator=generator())
    edge = marchenko_pastur_edge(2000, 100)
    assert eigenvalues(z)[0] == pytest.approx(edge, rel=0.05)
    assert eigenvalues_above_edge(z, variance=1.1) == 0
    z[:, :3] *= 2
    assert eigenvalues_above_edge(z, variance=1.1) == eigenvalues_above_edge(Moments.of(z), variance=1.1) == 3
    assert eigenvalues_above_edge(z) == 3
    with pytest.raises(ValueError, match="depends on n"):
        eigenvalues_above_edge(torch.ones(3))


# --- the unbiased participation ratio


@pytest.mark.parametrize("form", [lambda z: z, Moments.of, lambda z: z.clone().requires_grad_()])
def test_unbiased_participation_ratio_is_the_u_statistic(form):
    """Distinct rows only: E⟨a, b⟩² over pairs, or over pairs of differences when centered (brute force)."""
    z = torch.randn(7, 3, generator=generator(), dtype=torch.float64) + 1
    pairs = [(z[i], z[j]) for i, j in permutations(range(7), 2)]
    naive = sum((a @ a) * (b @ b) for a, b in pairs) / sum((a @ b) ** 2 for a, b in pairs)
    assert_value(participation_ratio(form(z), unbiased=True).detach(), naive)
    fours = [(z[i] - z[j], z[k] - z[m]) for i, j, k, m in permutations(range(7), 4)]
    naive = sum((a @ a) * (b @ b) for a, b in fours) / sum((a @ b) ** 2 for a, b in fours)
    assert_value(participation_ratio(form(z), unbiased=True, center=True).detach(), naive)


@pytest.mark.parametrize("n", [50, 200])
def test_plain_participation_ratio_is_biased_as_predicted_and_the_unbiased_one_is_not(n):
    """1/PR_n = 1/n + 1/PR for the plain ratio, d = 100."""
    draws = [torch.randn(n, 100, generator=torch.Generator().manual_seed(s)) for s in range(20)]
    plain = np.mean([1 / participation_ratio(z) for z in draws])
    assert plain == pytest.approx(1 / n + 1 / 100, rel=0.02)
    for center in (False, True):
        unbiased = np.mean([1 / participation_ratio(z, unbiased=True, center=center) for z in draws])
        assert unbiased == pytest.approx(1 / 100, rel=0.03)


def test_unbiased_participation_ratio_at_the_ends():
    assert participation_ratio(torch.eye(4), unbiased=True) == math.inf  # no two rows overlap
    assert_value(participation_ratio(torch.ones(5, 3), unbiased=True), 1)
    assert participation_ratio(torch.ones(5, 3), unbiased=True, center=True) == 0
    with pytest.raises(ValueError, match="needs features or Moments"):
        participation_ratio(torch.ones(3), unbiased=True)
    with pytest.raises(ValueError, match="4 rows"):
        participation_ratio(torch.eye(3), unbiased=True, center=True)


# --- what others compute


def entropy_rank(values, shift=0.0):
    p = values / values.sum() + shift
    return np.exp(-(p * np.log(p)).sum())


def singular_values(z):
    return np.linalg.svd(z, compute_uv=False)


def covariance_values(z):
    return np.linalg.eigvalsh(np.cov(z.T))[::-1]


def squared_ratio(values):
    return values.sum() ** 2 / np.square(values).sum()


def cosine_mean(z):
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    return np.mean([a @ b for a, b in permutations(unit, 2)])


def unbiased_ratio(z):
    pairs = list(permutations(z, 2))
    return np.mean([(a @ a) * (b @ b) for a, b in pairs]) / np.mean([(a @ b) ** 2 for a, b in pairs])


# The definition as the paper states it or the package runs it, written with numpy.
def weighted_decay(lam, lo, hi):
    """Weighted least squares by its normal equations, as in the code of Stringer et al. and in reptrix."""
    j = np.arange(lo, hi + 1)
    x, y, w = np.stack((-np.log(j), np.ones(len(j))), 1), np.log(lam[lo - 1 : hi]), 1 / j[:, None]
    return np.linalg.solve(x.T @ (x * w), (w * x).T @ y)[0]


PEERS = {
    ("renyi_entropy", "skean2025"): lambda z: np.log(squared_ratio(singular_values(z) ** 2)),
    ("effective_rank", "roy2007"): lambda z: entropy_rank(singular_values(z)),
    ("effective_rank", "garrido2023"): lambda z: entropy_rank(singular_values(z), 1e-7),
    ("effective_rank", "skean2025"): lambda z: entropy_rank(singular_values(z) ** 2),
    ("effective_rank", "stable-pretraining"): lambda z: entropy_rank(singular_values(z), 1e-5),
    ("effective_rank", "req-metrics"): lambda z: entropy_rank(singular_values(z - z.mean(0))),
    ("effective_rank", "reptrix"): lambda z: entropy_rank(covariance_values(z), 1e-7),
    ("rankme", "garrido2023"): lambda z: entropy_rank(singular_values(z), 1e-7),
    ("rankme", "stable-pretraining"): lambda z: entropy_rank(singular_values(z), 1e-5),
    ("participation_ratio", "gao2017"): lambda z: squared_ratio(covariance_values(z)),
    ("participation_ratio", "chun2025"): unbiased_ratio,
    ("stable_rank", "rudelson2007"): lambda z: np.linalg.norm(z) ** 2 / np.linalg.norm(z, 2) ** 2,
    ("stable_rank", "he2022"): lambda z: covariance_values(z).sum() / covariance_values(z)[0],
    ("alpha_req", "agrawal2022"): lambda z: -np.polyfit(np.log([2, 3, 4]), np.log(covariance_values(z)[1:4]), 1)[0],
    ("alpha_req", "stringer2019"): lambda z: weighted_decay(covariance_values(z), 2, 4),
    ("alpha_req", "reptrix"): lambda z: weighted_decay(covariance_values(z), 2, 4),
    ("isoscore", "rudman2022"): lambda z: (squared_ratio(covariance_values(z)) - 1) / (z.shape[1] - 1),
    ("anisotropy", "razzhigaev2024"): lambda z: covariance_values(z)[0] / covariance_values(z).sum(),
    ("mean_cosine", "ethayarajh2019"): cosine_mean,
}
NEEDED = {"renyi_entropy": {"order": 2}, "alpha_req": {"fit": (2, 4)}}  # arguments without a default


def test_every_preset_has_a_peer():
    assert [(measure, name) for measure, names in PRESETS.items() for name in names] == list(PEERS)


@pytest.mark.parametrize(("name", "preset"), PEERS)
def test_presets_reproduce_papers_and_packages(name, preset):
    z = with_spectrum(1 / torch.arange(1, 17), 60) + 0.05
    measure, needed = getattr(spectra, name), NEEDED.get(name, {})
    value = measure(z, **needed, preset=preset)
    assert_value(value, PEERS[name, preset](z.numpy()))
    assert value == measure(z, **needed, **PRESETS[name][preset])


def test_presets_of_the_effective_rank_differ(z):
    values = {round(effective_rank(z, preset=name).item(), 6) for name in PRESETS["effective_rank"]}
    assert len(values) == len(PRESETS["effective_rank"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_known_and_stand_alone(name, z):
    measure, known = partial(getattr(spectra, name), z, **NEEDED.get(name, {})), list(PRESETS[name])
    with pytest.raises(ValueError, match=f"preset must be one of {', '.join(known)}, got 'colleague'"):
        measure(preset="colleague")
    options = inspect.signature(measure).parameters.values()
    given = {o.name: not o.default for o in options if isinstance(o.default, bool)}
    given |= {"shift": 1e-3} if name in ("effective_rank", "rankme") else {}
    given |= {"of": "singular_values"} if name in ("effective_rank", "renyi_entropy") else {}
    for keyword, value in given.items():
        with pytest.raises(ValueError, match="preset fixes the whole definition: pass no other keyword with it"):
            measure(preset=known[0], **{keyword: value})


def test_eps_inside_p_inflates_as_reported():
    """A rank-one embedding in 1024 dimensions reads 1.125 and an isotropic one 1088 with eps = 1e-5."""
    rank_one = torch.zeros(1024, dtype=torch.float64)
    rank_one[0] = 1
    assert effective_rank(rank_one, preset="stable-pretraining").item() == pytest.approx(1.125, abs=1e-3)
    assert effective_rank(torch.ones(1024), preset="stable-pretraining").item() == pytest.approx(1088, abs=1)


# --- invariances, forms, degenerate input


@pytest.mark.parametrize("name", ALL)
def test_forms_agree(name, z):
    value = ALL[name](z, center=False)
    assert value.dtype == torch.float64
    assert value.shape == ()
    for form in (Moments.of(z), z.numpy(), z.clone().requires_grad_()):
        assert_value(ALL[name](form, center=False).detach(), value, 1e-9)
    assert_value(ALL[name](eigenvalues(z)), value)
    assert_value(ALL[name](eigenvalues(z).flip(0).numpy()), value)
    strided = z.T.contiguous().T[::2]
    assert_value(ALL[name](strided, center=False), ALL[name](strided.contiguous(), center=False))
    assert_value(ALL[name](Moments.of(z), center=True), ALL[name](z - z.mean(0), center=False), 1e-9)


@pytest.mark.parametrize("name", ALL)
def test_invariant_to_rotation_scale_order_and_repetition(name, z):
    value = ALL[name](z)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator(), dtype=torch.float64)).Q
    for other in (z @ rotation, 7 * z, 1e-6 * z, z.flip(0), z.repeat(2, 1)):
        assert_value(ALL[name](other), value, 1e-8)


@pytest.mark.parametrize("name", ALL)
def test_centering_makes_invariant_to_translation(name, z):
    assert_value(ALL[name](z + 3, center=True), ALL[name](z, center=True), 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
def test_low_precision_input_is_upcast(dtype, z):
    low = (3 * z).to(dtype)
    for measure in ALL.values():
        assert_value(measure(low), measure(low.double()))


def test_gradients(z):
    """Against finite differences, where the spectrum is simple; finite where a direction is lost."""
    z = z[:8].requires_grad_()
    for name, measure in ALL.items():
        assert torch.autograd.gradcheck(lambda x, measure=measure: measure(x), z), name
    assert torch.autograd.gradcheck(lambda x: participation_ratio(x, unbiased=True, center=True), z)
    flat = torch.cat([torch.eye(3), torch.zeros(3, 2)], 1).requires_grad_()
    effective_rank(flat, of="singular_values").backward()
    assert flat.grad.isfinite().all()


def test_total_collapse_has_defined_values():
    equal = torch.full((10, 4), 0.3)
    for name, measure in RANKS.items():
        assert_value(measure(equal), 1, 1e-5)
        assert measure(equal, center=True) == measure(torch.zeros(5, 4)) == 0, name
        assert measure(equal.requires_grad_(), center=True) == 0
        equal = equal.detach()
    assert renyi_entropy(equal, order=1, center=True) == -math.inf
    assert isoscore(equal) == 0
    assert anisotropy(equal) == anisotropy(equal, center=True) == 1
    assert condition_number(equal) == condition_number(equal, center=True) == math.inf
    assert_value(mean_cosine(equal, normalize=True), 1, 1e-6)


def test_one_row_and_one_column():
    assert_value(effective_rank(torch.ones(1, 5)), 1)
    assert_value(effective_rank(torch.ones(5, 1)), 1)
    with pytest.raises(ValueError, match="d >= 2"):
        isoscore(torch.ones(5, 1))


@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_named(name, z):
    bad = z.clone()
    bad[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        ALL[name](bad)
    with pytest.raises(ValueError, match="shape"):
        ALL[name](z[None])
    with pytest.raises(ValueError, match="normalize the features before"):
        ALL[name](Moments.of(z), normalize=True)
    with pytest.raises(ValueError, match="seen no rows"):
        ALL[name](Moments(6))
    with pytest.raises(ValueError, match="cannot be centered or normalized"):
        ALL[name](torch.ones(4), normalize=True)
    with pytest.raises(ValueError, match="must not be negative"):
        ALL[name](torch.tensor([1.0, 1.0, 1.0, -0.5]))


def test_of_is_checked(z):
    with pytest.raises((ValueError, TypeError), match="of"):
        effective_rank(z, of="variance")


def test_every_public_function_is_tested_here():
    public = {k for k, v in vars(spectra).items() if getattr(v, "__module__", "") == spectra.__name__ and k[0] != "_"}
    assert public <= set(globals())


@pytest.mark.parametrize("n", [2, 3, 7])
def test_condition_number_of_centered_rows_is_of_the_directions_that_centering_leaves(n):
    """A simplex is flat within the n − 1 dimensions that it spans."""
    z = simplex(n, 7) + 3
    assert_value(condition_number(z, center=True), 1)
    assert_value(condition_number(Moments.of(z), center=True), 1)
    assert condition_number(z[:1], center=True) == math.inf


@pytest.mark.parametrize("shape", [(4, 3, 7), (4, 7, 3)])
@pytest.mark.parametrize("center", [False, True])
def test_effective_ranks_of_a_batch_are_those_of_its_members(shape, center):
    z = torch.cat((torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.ones(1, *shape[1:])))
    expected = torch.stack([effective_rank(member, center=center) for member in z])
    assert torch.allclose(effective_ranks(z, center=center), expected, rtol=1e-12)
