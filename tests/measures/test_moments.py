"""Moments: one pass, many batches, shards and ranks give the same numbers, and those are the definitions."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from analysis.measures.moments import STATE, Moments, dual_gram, gram


@pytest.fixture
def z():
    return torch.randn(57, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6) + 3


def assert_same(a, b, rtol=1e-12):
    assert a.n == b.n
    for name in STATE:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=rtol, atol=1e-10)
    for one, other in zip(a.by_class + a.by_block, b.by_class + b.by_block, strict=True):
        assert_same(one, other, rtol)


def test_definitions(z):
    m, y = Moments.of(z), z - z.mean(0)
    norms2 = y.square().sum(1)
    assert m.n == 57
    torch.testing.assert_close(m.mean, z.mean(0))
    torch.testing.assert_close(m.scatter, y.T @ y)
    torch.testing.assert_close(m.cubic, norms2 @ y)
    torch.testing.assert_close(m.quartic, norms2.square().sum())
    torch.testing.assert_close(m.quartic_about_zero(), z.square().sum(1).square().sum())
    torch.testing.assert_close(m.second_moment, z.T @ z / 57)
    torch.testing.assert_close(m.covariance, torch.cov(z.T, correction=0))


def test_batches_of_any_size_give_the_numbers_of_one_pass(z):
    m = Moments(5, classes=3, blocks=4)
    labels = torch.arange(57) * 7 % 3
    for start, stop in [(0, 1), (1, 20), (20, 22), (22, 57)]:
        assert m.update(z[start:stop], labels[start:stop]) is m
    assert_same(m, Moments.of(z, labels, blocks=4))


def test_blocks_are_every_kth_row_and_classes_their_rows(z):
    labels = np.arange(57) % 3
    m = Moments.of(z, labels, blocks=4)
    for b in range(4):
        assert_same(m.by_block[b], Moments.of(z[b::4]))
        assert_same(m.without(b), Moments.of(torch.cat([z[i::4] for i in range(4) if i != b])), rtol=1e-10)
    for k in range(3):
        assert_same(m.by_class[k], Moments.of(z[k::3]))


def test_uneven_shards_merge_to_the_same_numbers(z):
    whole = Moments(5)
    for shard in (z[:3], z[3:50], z[50:]):
        whole.merge(Moments.of(shard))
    assert_same(whole.merge(Moments(5)), Moments.of(z))


def test_chunks(z, monkeypatch):
    monkeypatch.setattr("analysis.measures.moments.CHUNK", 1)  # 64 rows
    many = z.repeat(5, 1)
    assert_same(Moments.of(many), Moments(5).update(many[:100]).update(many[100:]))
    torch.testing.assert_close(Moments.of(many).scatter, 5 * Moments.of(z).scatter)


# --- Small batches wait


def rows_of(n, d=16):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1)) * 3 + 2


@pytest.fixture
def added(monkeypatch):
    """How many rows were added to the sums each time."""
    counts = []
    add = Moments._add_rows
    monkeypatch.setattr(Moments, "_add_rows", lambda self, z, labels: counts.append(len(z)) or add(self, z, labels))
    return counts


def test_small_batches_are_added_together_and_large_ones_at_once(added):
    z, m = rows_of(91), Moments(16)
    for batch in z.split([1, 7, 5, 9, 40, 3, 3, 15, 8]):  # 16 rows at most wait
        m.update(batch)
    assert added == [16, 6, 40, 16]
    assert m.n == 91
    assert added == [16, 6, 40, 16, 13]
    assert_same(m, Moments.of(z))


def test_uneven_batches_with_classes_blocks_and_types_are_one_pass():
    z, labels = rows_of(91), torch.arange(91) * 7 % 3
    m, start = Moments(16, classes=3, blocks=4), 0
    for i, count in enumerate([1, 7, 5, 9, 40, 3, 3, 15, 8]):
        some = slice(start, start + count)
        m.update(z[some].double() if i % 3 == 1 else z[some], labels[some])
        start += count
    assert_same(m, Moments.of(z, labels, blocks=4))


def test_no_more_rows_wait_than_the_memory_for_them(added, monkeypatch):
    monkeypatch.setattr("analysis.measures.moments.WAITING", 5 * 16 * 4)  # bytes of five float32 rows
    m = Moments(16)
    for row in rows_of(12).split(1):
        m.update(row)
    assert added == [5, 5]
    assert m._rows.shape == (5, 16)
    m.update(rows_of(2).double())  # two float64 rows are all there may be
    assert added == [5, 5, 2, 2]


def test_rows_that_wait_are_their_values_at_the_update(z):
    mine = z[:3].clone()
    m = Moments(5).update(mine)
    mine.zero_()
    assert_same(m, Moments.of(z[:3]))


@pytest.mark.parametrize("name", ["n", "by_class", "by_block", "covariance", "second_moment", *STATE])
def test_whatever_is_asked_for_counts_the_rows_that_wait(name):
    z, labels = rows_of(20), torch.arange(20) % 3
    m = Moments(16, classes=3, blocks=2).update(z[:17], labels[:17]).update(z[17:], labels[17:])
    assert m._waiting == 3
    getattr(m, name)
    assert m._waiting == 0
    assert_same(m, Moments.of(z, labels, blocks=2))


def test_merging_counts_the_rows_that_wait_on_both_sides():
    z = rows_of(25)
    one, other = Moments(16).update(z[:5]), Moments(16).update(z[5:22]).update(z[22:])
    assert_same(one.merge(other), Moments.of(z))
    assert_same(other, Moments.of(z[5:]))


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: Moments(16, blocks=2).update(rows_of(4)).load_state_dict(m.state_dict()),
    ],
    ids=["copy", "deepcopy", "pickle", "state_dict"],
)
def test_copies_have_the_rows_that_wait_and_go_their_own_way(again):
    z = rows_of(25)
    m = Moments(16, blocks=2).update(z[:18]).update(z[18:21])
    other = again(m)
    assert_same(other, Moments.of(z[:21], blocks=2))
    assert_same(m, Moments.of(z[:21], blocks=2))
    if again is not copy.copy:  # which has the blocks in common
        m.update(z[21:])
        other.update(z[:1])
        assert (m.n, other.n) == (25, 22)
        assert_same(m, Moments.of(z, blocks=2))


def test_nan_is_refused_by_the_update_that_brings_it():
    z = rows_of(10)
    m = Moments(16).update(z[:4])
    with pytest.raises(ValueError, match="z contains NaN"):
        m.update(torch.full((2, 16), torch.nan))
    assert_same(m.update(z[4:]), Moments.of(z))


def test_rows_wait_in_and_out_of_inference_mode():
    z, m = rows_of(10), Moments(16)
    with torch.inference_mode():
        m.update(z[:4] + 0)
    m.update(z[4:6])
    with torch.inference_mode():
        m.update(z[6:] + 0)
    assert_same(m, Moments.of(z))


def test_a_large_offset_costs_no_digits():
    """One pass over raw second moments in float32 gives negative eigenvalues here."""
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    shifted = (z.double() + 1e4).float()
    m = Moments(8)
    for batch in shifted.split(300):
        m.update(batch)
    torch.testing.assert_close(m.covariance, torch.cov(shifted.double().T, correction=0), rtol=1e-9, atol=1e-12)


def test_equal_rows_have_a_scatter_of_exactly_zero():
    m = Moments(3).update(torch.full((10, 3), 0.1)).update(torch.full((7, 3), 0.1))
    assert m.scatter.eq(0).all()
    assert m.quartic == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_every_dtype_is_upcast(dtype):
    z = (torch.arange(24).reshape(8, 3) % 7).to(dtype)
    assert_same(Moments.of(z), Moments.of(z.double()), rtol=1e-12)


def test_non_contiguous_and_numpy_input(z):
    assert_same(Moments.of(z.T.contiguous().T[::2]), Moments.of(z[::2].numpy()))


def test_fast_precision_has_float32_products_and_float64_sums(z):
    exact, fast = Moments.of(z.float()), Moments.of(z.float(), precision="fast")
    assert fast.scatter.dtype == torch.float64
    torch.testing.assert_close(fast.scatter, exact.scatter, rtol=1e-5, atol=1e-3)
    assert not torch.equal(fast.scatter, exact.scatter)


def test_autocast_does_not_reach_the_products(z):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = Moments.of(z.float(), precision="fast")
    assert_same(fast, Moments.of(z.float(), precision="fast"))


def test_gradients_stop(z):
    assert not Moments.of(z.requires_grad_()).scatter.requires_grad


def test_gram_with_and_without_gradient(z):
    torch.testing.assert_close(gram(z), z.T @ z)
    torch.testing.assert_close(gram(z.clone().requires_grad_()), z.T @ z)
    torch.testing.assert_close(gram(z.mT), z @ z.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_of_more_columns_than_a_block(dtype):
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(gram(x), x.T @ x)
    torch.testing.assert_close(Moments.of(x).second_moment, x.double().T @ x.double() / 40)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_dual_gram_some_columns_at_a_time(center, grad, monkeypatch):
    monkeypatch.setattr("analysis.measures.moments.COLUMNS", 1)  # 64 columns
    x = torch.randn(9, 150, generator=torch.Generator().manual_seed(0)) + 1
    y = (x - x.mean(0) if center else x).double()
    torch.testing.assert_close(dual_gram(x.requires_grad_(grad), center=center).detach(), y @ y.T, rtol=1e-6, atol=1e-5)


def test_state_dict_round_trip(z):
    m = Moments.of(z, torch.arange(57) % 3, blocks=2)
    state = m.state_dict()
    copy = Moments(5, classes=3, blocks=2).load_state_dict(state)
    assert_same(copy, m)
    copy.update(z, torch.arange(57) % 3)
    assert_same(m, Moments(5, classes=3, blocks=2).load_state_dict(state))  # loading has copied
    with pytest.raises(ValueError, match="another d, classes or blocks"):
        Moments(5, classes=3).load_state_dict(state)


def test_bad_input_is_named(z):
    with pytest.raises(ValueError, match="z contains NaN"):
        Moments(5).update(torch.full((2, 5), torch.nan))
    with pytest.raises(ValueError, match="d=5 columns"):
        Moments(5).update(z[:, :4])
    with pytest.raises(ValueError, match="labels must be given exactly when"):
        Moments(5, classes=2).update(z)
    with pytest.raises(ValueError, match="below classes=2"):
        Moments(5, classes=2).update(z, torch.arange(57))
    with pytest.raises(ValueError, match="cannot be merged"):
        Moments(5).merge(Moments(5, blocks=2))
    with pytest.raises(ValueError, match="blocks must be 0 or at least 2"):
        Moments(5, blocks=1)


def _rank_process(rank, path, shards, labels):
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    m = Moments(5, classes=3, blocks=4).update(shards[rank][:4], labels[rank][:4])
    m.update(shards[rank][4:], labels[rank][4:]).all_reduce()  # some of the first rank's rows wait
    torch.save(m.state_dict(), f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_with_uneven_shards(z, tmp_path):
    labels = torch.arange(57) % 3
    cut = 8  # a multiple of the blocks, so that they hold the same rows, and far from half
    mp.spawn(_rank_process, (tmp_path, (z[:cut], z[cut:]), (labels[:cut], labels[cut:])), nprocs=2)
    whole = Moments.of(z, labels, blocks=4)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(Moments(5, classes=3, blocks=4).load_state_dict(state), whole)
