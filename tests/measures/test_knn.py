"""The k-NN classifier: recorded official accuracies, a naive twin, tiles, invariances, the sentences of errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from analysis.measures import neighbors
from analysis.measures.collapse import mean_collapse
from analysis.measures.neighbors import knn_accuracy, knn_accuracy_with_misses

ORACLE = Path(__file__).parents[1] / "data" / "oracle.json"


def blobs(seed: int = 0, m: int = 120, n: int = 40, d: int = 8, classes: int = 5):
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, d, generator=g, dtype=torch.float64)
    train_labels = torch.arange(m) % classes
    test_labels = torch.arange(n) % classes
    train = centers[train_labels] + 1.2 * torch.randn(m, d, generator=g, dtype=torch.float64)
    test = centers[test_labels] + 1.2 * torch.randn(n, d, generator=g, dtype=torch.float64)
    return train, train_labels, test, test_labels


def naive_knn(train, train_labels, test, test_labels, k: int, temp: float, top: int) -> float:
    hits = 0
    for z, label in zip(test, test_labels.tolist(), strict=True):
        cosines = [(torch.dot(z, x) / (z.norm() * x.norm())).item() for x in train]
        votes: dict[int, float] = {}
        for i in sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]:
            c = train_labels[i].item()
            votes[c] = votes.get(c, 0.0) + np.exp(cosines[i] / temp)
        hits += label in sorted(range(5), key=lambda c: -votes.get(c, 0))[:top]
    return hits / len(test)


def test_reproduces_the_official_accuracies():
    rows = json.loads(ORACLE.read_text())["knn"]["rows"]
    rng = np.random.default_rng(95)
    train_labels, test_labels = rng.integers(0, 10, 500), rng.integers(0, 10, 200)
    centers = rng.standard_normal((10, 16))
    train = centers[train_labels] + 1.2 * rng.standard_normal((500, 16))
    test = centers[test_labels] + 1.2 * rng.standard_normal((200, 16))
    ks = tuple(k for k, _, _ in rows)
    top1 = knn_accuracy(train, train_labels, test, test_labels, k=ks, chunk=64)
    top5 = knn_accuracy(train, train_labels, test, test_labels, k=ks, top=5)
    for k, official1, official5 in rows:
        assert 100 * top1[k].item() == pytest.approx(official1, abs=1e-9)
        assert 100 * top5[k].item() == pytest.approx(official5, abs=1e-9)


@pytest.mark.parametrize("k", [1, 7, 120])
@pytest.mark.parametrize(("temp", "top"), [(0.07, 1), (1.0, 2)])
def test_equals_a_loop_over_samples(k, temp, top):
    data = blobs()
    fast = knn_accuracy(*data, k=k, temp=temp, top=top)
    assert fast.item() == pytest.approx(naive_knn(*data, k, temp, top))


def test_tiles_of_either_side_change_nothing(monkeypatch):
    data = blobs()
    whole = knn_accuracy(*data, k=(1, 3, 20, 60))
    monkeypatch.setattr(neighbors, "BANK_TILE", 17)  # smaller than k, and it does not divide m
    tiled = knn_accuracy(*data, k=(1, 3, 20, 60), chunk=7)
    assert list(tiled) == [1, 3, 20, 60]
    assert {k: v.item() for k, v in tiled.items()} == {k: v.item() for k, v in whole.items()}


@pytest.mark.parametrize("k", [1, 20, 200, 1000])
@pytest.mark.parametrize("kind", ["random", "few values", "sorted", "equal"])
def test_nearest_are_the_largest_inner_products(k, kind, monkeypatch):
    """In two tiles and groups of columns, whatever the order and however many are equal."""
    monkeypatch.setattr(neighbors, "BANK_TILE", 2500)
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    bank = {"random": bank, "few values": bank.round(), "sorted": bank.sort(0).values, "equal": 0 * bank + 1}[kind]
    queries = torch.tensor([[1.0], [-2.0], [0.0]], dtype=torch.float64)
    values, index = neighbors.largest_products(queries, bank, k)
    assert torch.equal(values, (queries @ bank.T).topk(k).values)
    assert torch.equal(values, (queries @ bank.T).gather(1, index))
    assert all(len(row.unique()) == k for row in index)


def test_no_matrix_of_all_pairs_is_held():
    """Largest tensor of any operation: a tile of a chunk, which grows with neither side."""
    biggest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            out = function(*args, **(kwargs or {}))
            biggest = max([biggest, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
            return out

    train, test = torch.randn(3 * neighbors.BANK_TILE, 2), torch.randn(1000, 2)
    with Watch():
        knn_accuracy(train, torch.arange(len(train)) % 3, test, torch.arange(1000) % 3, k=(5, 20), chunk=16)
    assert 16 * neighbors.BANK_TILE <= biggest < 2 * 16 * neighbors.BANK_TILE < len(train) * len(test) / 50


def test_copies_of_the_training_set_are_found_and_orthogonal_classes_are_perfect():
    train, labels, _, _ = blobs()
    assert knn_accuracy(train, labels, train, labels, k=1).item() == 1
    axes = torch.eye(4).repeat_interleave(5, 0)
    assert knn_accuracy(axes, torch.arange(20) // 5, axes[::5], torch.arange(4), k=5).item() == 1


def test_total_collapse_scores_one_class_share():
    labels = torch.arange(60) % 3
    assert knn_accuracy(torch.ones(60, 4), labels, torch.ones(30, 4), labels[:30], k=5).item() == pytest.approx(1 / 3)


def test_invariant_to_rotation_scale_and_order_of_the_training_set():
    train, train_labels, test, test_labels = blobs()
    value = knn_accuracy(train, train_labels, test, test_labels, k=9)
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    scale = torch.linspace(0.1, 9, len(test), dtype=torch.float64)[:, None]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(2))
    assert knn_accuracy(3 * train @ q, train_labels, scale * test @ q, test_labels, k=9) == value
    assert knn_accuracy(train[order], train_labels[order], test, test_labels, k=9) == value


def test_the_noise_of_a_collapsed_network_still_classifies():
    train, train_labels, test, test_labels = blobs()
    value = knn_accuracy(train, train_labels, test, test_labels, k=9).item()
    offset = 1e5 * torch.linalg.qr(torch.ones(8, 1, dtype=torch.float64)).Q.T  # all cosines are 1 − 10⁻⁹
    assert value > 0.7
    assert mean_collapse(train + offset).item() > 1 - 1e-8
    assert knn_accuracy(train + offset, train_labels, test + offset, test_labels, k=9).item() > value - 0.2


def test_small_temperature_does_not_overflow_and_is_nearest_neighbor():
    data = blobs()
    assert knn_accuracy(*data, k=20, temp=1e-4) == knn_accuracy(*data, k=1)


def test_accepts_half_precision_numpy_and_strided_views():
    train, train_labels, test, test_labels = blobs(m=100, n=50)
    value = knn_accuracy(train, train_labels, test, test_labels, k=5)
    assert value.shape == ()
    assert value.dtype == torch.float64
    strided = torch.cat((train, train), 1)[:, :8]
    assert knn_accuracy(strided, train_labels, test.T.contiguous().T, test_labels, k=5) == value
    assert knn_accuracy(train.numpy(), train_labels.numpy(), test.numpy(), test_labels.numpy(), k=5) == value
    half = knn_accuracy(train.bfloat16(), train_labels, test.bfloat16(), test_labels, k=5)
    assert half.item() == pytest.approx(value.item(), abs=0.05)


def test_autocast_does_not_touch_the_similarities():
    data = [x.float() if x.is_floating_point() else x for x in blobs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = knn_accuracy(*data, k=9)
    assert inside == knn_accuracy(*data, k=9)


def test_k_may_be_a_numpy_integer():
    data = blobs()
    assert knn_accuracy(*data, k=np.int64(9)) == knn_accuracy(*data, k=9)
    assert knn_accuracy(*data, k=[np.int64(3), 9]) == knn_accuracy(*data, k=(3, 9))


def test_bad_input_is_named():
    train, train_labels, test, test_labels = blobs()
    good = {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels, "k": 5}
    nan, zero = test.clone(), train.clone()
    nan[3, 2], zero[5] = torch.nan, 0
    for change, message in [
        ({"k": 121}, "k must be between 1 and the number of training samples, 120"),
        ({"k": 0}, "k must be"),
        ({"k": ()}, "k must be"),
        ({"temp": 0}, "temp must be positive"),
        ({"top": 0}, "top must be a positive integer"),
        ({"chunk": 0}, "chunk must be a positive integer"),
        ({"test_labels": test_labels + 1}, "test_labels has class 5, of which train_labels has no sample"),
        ({"train_labels": train_labels[:-1]}, "labels must have shape"),
        ({"train_labels": train_labels - 1}, "negative"),
        ({"test_labels": test_labels.double()}, "integers"),
        ({"test": test[:, :7]}, "same dimension, got 8 and 7"),
        ({"test": nan}, "test contains NaN"),
        ({"train": zero}, "train has a zero row"),
        ({"train": train[0]}, "train must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            knn_accuracy(**(good | change))


def test_classes_are_those_of_the_training_set_whatever_their_numbers():
    train, train_labels, test, test_labels = blobs()
    apart = torch.tensor([3, 10**12, 7, 10**6, 0])  # order and gaps: class 3's samples are now called 10⁶
    value = knn_accuracy(train, train_labels, test, test_labels, k=9)
    assert knn_accuracy(train, apart[train_labels], test, apart[test_labels], k=9) == value


def test_what_cannot_be_looked_up_is_a_miss():
    train, train_labels, test, test_labels = blobs(m=12)
    found = knn_accuracy(train, train_labels, test, test_labels, k=12).item()  # fewer than NEIGHBORS are all taken
    assert knn_accuracy_with_misses(train, train_labels, test, test_labels) == found
    dead, unknown = torch.cat((test, torch.zeros(8, 8))), torch.cat((test, test[:8]))
    assert (
        knn_accuracy_with_misses(
            torch.cat(
                (train, torch.zeros(9, 8))
            ),  # zero rows are nobody's neighbors, and of class 7 there are no others
            torch.cat((train_labels, torch.full((9,), 7))),
            torch.cat((dead, unknown)),
            torch.cat((test_labels, test_labels[:8], test_labels, torch.full((8,), 7))),
        )
        == pytest.approx(found * 80 / 96)
    )
    assert knn_accuracy_with_misses(train, train_labels, test, test_labels + 5) == 0
    assert knn_accuracy_with_misses(0 * train, train_labels, test, test_labels) == 0
