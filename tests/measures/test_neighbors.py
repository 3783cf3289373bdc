"""Neighbors against a full matrix of distances and scikit-learn; overlap and imbalance where ranks are known."""

import pytest
import torch

from analysis.measures.neighbors import information_imbalance, nearest_neighbors, neighbor_overlap
from tests.configurations import D, gaussian, rotation


def matrix(z: torch.Tensor) -> torch.Tensor:
    """All distances, infinite to oneself."""
    z = torch.as_tensor(z).double()
    return (z[:, None] - z).norm(dim=2).fill_diagonal_(torch.inf)


@pytest.mark.parametrize("tile", [1, 7, 40, 64])
def test_neighbors_are_the_smallest_of_all_distances_whatever_the_tiles(tile, monkeypatch):
    monkeypatch.setattr("analysis.measures.neighbors.TILE_ROWS", tile)
    monkeypatch.setattr("analysis.measures.neighbors.TILE_COLUMNS", 2 * tile + 1)
    z = gaussian(40, 5)
    expected, order = matrix(z).sort(1)
    distances, index = nearest_neighbors(z, k=6)
    torch.testing.assert_close(distances, expected[:, :6])
    assert torch.equal(index, order[:, :6])
    assert nearest_neighbors(z, k=39).indices.sort(1).values.tolist() == [
        [j for j in range(40) if j != i] for i in range(40)
    ]


def test_neighbors_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.neighbors")
    z = gaussian(300, 8).float()
    distances, index = sklearn.NearestNeighbors(n_neighbors=5).fit(z.numpy()).kneighbors()
    ours = nearest_neighbors(z, k=5)
    torch.testing.assert_close(ours.distances, torch.from_numpy(distances).to(D), rtol=1e-5, atol=1e-6)
    assert (ours.indices == torch.from_numpy(index)).double().mean() > 0.999


def test_close_pairs_far_from_the_origin_keep_their_digits_and_duplicates_are_at_zero():
    point = gaussian(1, 4)
    z = 1e4 + torch.cat((point, point + 1e-9, point, gaussian(5, 4, seed=1)))
    distances, index = nearest_neighbors(z, k=2)
    assert distances[0, 0].item() == 0
    assert index[0, 0].item() == 2
    assert distances[0, 1].item() == pytest.approx(matrix(z)[0, 1].item(), rel=1e-6)
    assert (nearest_neighbors(torch.full((6, 3), 0.1), k=3).distances == 0).all()


def test_distances_carry_gradients():
    assert torch.autograd.gradcheck(lambda z: nearest_neighbors(z, k=3).distances, (gaussian(7, 3).requires_grad_(),))


@pytest.mark.parametrize("k", [1, 4])
def test_overlap_and_imbalance_equal_the_full_matrices(k, monkeypatch):
    monkeypatch.setattr("analysis.measures.neighbors.TILE_ROWS", 11)
    monkeypatch.setattr("analysis.measures.neighbors.TILE_COLUMNS", 7)
    x = gaussian(30, 4)
    y = x[:, :2] @ gaussian(2, 3, seed=1) + 0.3 * gaussian(30, 3, seed=2)
    a, b = (matrix(z).argsort(1)[:, :k] for z in (x, y))
    shared = sum(len(set(i.tolist()) & set(j.tolist())) for i, j in zip(a, b, strict=True))
    assert neighbor_overlap(x, y, k=k).item() == pytest.approx(shared / (30 * k))
    ranks = matrix(y).argsort(1).argsort(1) + 1
    expected = 2 / 30 * ranks.gather(1, a).double().mean()
    assert information_imbalance(x, y, k=k).item() == pytest.approx(expected.item())


def test_the_same_neighbors_and_none():
    x = gaussian(50, 4)
    for y in (x, 3 * x @ rotation(4) - 7):
        assert neighbor_overlap(x, y, k=5).item() == 1
        assert information_imbalance(x, y).item() == pytest.approx(2 / 50)
        assert information_imbalance(x, y, k=5).item() == pytest.approx(6 / 50)
    overlaps, imbalances = [], []
    for s in range(40):
        x, y = gaussian(50, 4, seed=2 * s), gaussian(50, 4, seed=2 * s + 1)
        overlaps.append(neighbor_overlap(x, y, k=5))
        imbalances.append(information_imbalance(x, y))
    assert torch.stack(overlaps).mean().item() == pytest.approx(5 / 49, rel=0.1)
    assert torch.stack(imbalances).mean().item() == pytest.approx(1, abs=0.05)


def test_imbalance_tells_who_holds_more():
    x = gaussian(400, 2)
    part = x[:, :1]
    assert information_imbalance(x, part).item() < 0.1  # near in the plane is near on the line
    assert information_imbalance(part, x).item() > 0.3


def test_total_collapse():
    x, point = gaussian(20, 3), torch.full((20, 3), 0.1)
    assert information_imbalance(x, point).item() == pytest.approx(2 / 20)  # nobody is closer than the neighbor
    assert 0 <= neighbor_overlap(x, point, k=3).item() <= 1
    assert information_imbalance(point, x).item() == pytest.approx(1, abs=0.6)


def test_bad_input_is_named():
    x = gaussian(10, 3)
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        nearest_neighbors(x, k=0)
    with pytest.raises(ValueError, match="z needs at least 11 rows, got 10"):
        nearest_neighbors(x, k=10)
    for f in (neighbor_overlap, information_imbalance):
        with pytest.raises(ValueError, match="rows of the same samples, got 10 and 9"):
            f(x, x[:9], k=2)


@pytest.mark.parametrize("seed", [1, 2])
def test_equally_far_is_not_closer_in_any_rotation(seed):
    """y has ten classes of equal rows: the rank of a neighbor of the same class is 1, of another 1 + its own class."""
    x, y = gaussian(100, 8, seed=3), torch.eye(10, dtype=torch.float64).repeat_interleave(10, 0)
    near = matrix(x).argmin(1)
    same = (near // 10 == torch.arange(100) // 10).double()
    expected = 2 / 100 * (same + (1 - same) * 10).mean()
    assert information_imbalance(x, y).item() == pytest.approx(expected.item())
    turned = y @ torch.linalg.qr(gaussian(10, 10, seed=seed)).Q
    assert information_imbalance(x, turned).item() == pytest.approx(expected.item())
