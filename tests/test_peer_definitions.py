"""The table of conventions: every row against the formula written out with numpy, and the page against the table."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from analysis.measures.spectra import PRESETS
from analysis.peer_definitions import PAGE, compare_definitions, conventions_page
from tests.configurations import gaussian

Z = gaussian(40, 7, seed=3).numpy() / np.arange(1, 8) + 0.5
N, D = Z.shape
CENTERED, UNIT = Z - Z.mean(0), Z / np.linalg.norm(Z, axis=1, keepdims=True)


def sigma(z):
    return np.linalg.svd(z, compute_uv=False)


def entropy_rank(values, shift=0.0):
    p = values / values.sum() + shift
    return np.exp(-np.sum(p * np.log(p)))


def ratio(values):
    return values.sum() ** 2 / np.square(values).sum()


def unbiased_ratio(z):
    """Trace squared and ‖Γ‖² from pairs of distinct rows alone."""
    pairs = list(itertools.permutations(z, 2))
    return np.mean([(a @ a) * (b @ b) for a, b in pairs]) / np.mean([(a @ b) ** 2 for a, b in pairs])


def rate(alpha):
    return np.log(np.linalg.det(np.eye(D) + alpha / N * UNIT.T @ UNIT)) / 2


def potential(pairs):
    return np.log(np.mean([np.exp(-2 * np.sum((a - b) ** 2)) for a, b in pairs]))


def likeliest(log_mu, k):
    """GRIDE's maximum, by a search."""

    def cost(i):
        tail = ((2 * k - 1) * i + 1) * log_mu.sum()
        return tail - len(log_mu) * np.log(i) - (k - 1) * np.log(np.expm1(i * log_mu)).sum()

    return minimize_scalar(cost, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-10}).x


DISTANCES = np.sort(np.linalg.norm(Z[:, None] - Z, axis=2), 1)[:, 1:]  # to the others, ascending
LOG_MU = np.sort(np.log(DISTANCES[:, 1] / DISTANCES[:, 0]))[: int(0.9 * N)]
TAIL = -np.log(1 - np.arange(1, len(LOG_MU) + 1) / N)

NAIVE = [
    entropy_rank(sigma(Z)),
    entropy_rank(sigma(Z), 1e-7),
    entropy_rank(sigma(Z), 1e-5),
    entropy_rank(sigma(CENTERED)),
    entropy_rank(np.linalg.eigvalsh(Z.T @ Z)),
    entropy_rank(np.linalg.eigvalsh(np.cov(Z.T)), 1e-7),
    np.log(entropy_rank(sigma(Z))) / np.log(D),
    entropy_rank(sigma(UNIT)) / min(N, D),
    1 - entropy_rank(sigma(CENTERED)) / min(N - 1, D),
    ratio(np.linalg.eigvalsh(Z.T @ Z)),
    ratio(np.linalg.eigvalsh(np.cov(Z.T))),
    unbiased_ratio(Z),
    ratio(sigma(Z)),
    np.square(sigma(Z)).sum() / sigma(Z)[0] ** 2,
    np.square(sigma(CENTERED)).sum() / sigma(CENTERED)[0] ** 2,
    np.linalg.norm(Z) / sigma(Z)[0],
    (LOG_MU @ TAIL) / (LOG_MU @ LOG_MU),
    N / np.log(DISTANCES[:, 1] / DISTANCES[:, 0]).sum(),
    likeliest(np.log(DISTANCES[:, 15] / DISTANCES[:, 7]), 8),
    np.mean([[1 / np.mean(np.log(r[k - 1] / r[: k - 1])) for r in DISTANCES] for k in range(10, 21)]),
    rate(D / 0.05**2),
    rate(D / 0.05),
    potential(itertools.combinations(UNIT, 2)),
    potential(itertools.product(UNIT, UNIT)),
]


def test_every_row_is_the_formula_it_names():
    table = compare_definitions(Z)
    assert table["value"].tolist() == pytest.approx(NAIVE, rel=1e-6)
    assert table["value"].nunique() == len(NAIVE)


@pytest.mark.parametrize("measure", ["effective_rank", "participation_ratio", "stable_rank"])
def test_every_preset_of_a_listed_measure_is_in_the_table(measure):
    calls = " ".join(compare_definitions(Z)["call"])
    assert [name for name in PRESETS[measure] if f"{measure}(z, preset='{name}')" not in calls] == []


def test_page_is_up_to_date():
    pytest.importorskip("sklearn")
    assert PAGE.read_text() == conventions_page(), "run simdino conventions"
