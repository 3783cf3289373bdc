"""Input is validated in one place: what passes, what it becomes, and the sentence that bad input gets."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import sparse

from analysis.measures.inputs import (
    as_features,
    as_labels,
    as_masks,
    as_spectrum,
    as_tensor,
    as_views,
    paired_labels,
    require_unit_rows,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_all_but_float64_becomes_float32(dtype):
    z = torch.ones(3, 2).to(dtype)
    assert as_features(z).dtype == torch.float32
    assert as_features(z.double()).dtype == torch.float64
    assert as_views(z.expand(2, 3, 2)).dtype == torch.float32


def test_numpy_and_strided_arrays_pass_with_their_values():
    z = np.arange(24.0).reshape(6, 4)
    for view in (z, z[::2], z.T):
        assert np.array_equal(as_features(view).numpy(), view)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_normalized_rows_have_norm_one_and_their_gradient(scale):
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * scale
    unit = as_features(z, normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(as_views(z[None].expand(2, 4, 3), normalize=True)[1], unit)
    require_unit_rows(unit.bfloat16().float())
    assert torch.autograd.gradcheck(lambda x: as_features(x, normalize=True), (z / scale).double().requires_grad_())


Z = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
RECORDS = np.zeros(6, dtype=[("id", "i1"), ("z", "f4", (3,))])
RECORDS["z"] = Z
LOCKED = Z.copy()
LOCKED.flags.writeable = False
ROWS = np.empty(6, dtype=object)
ROWS[:] = list(Z)
SAME = {  # what people keep those numbers in
    "big-endian": Z.astype(">f4"),
    "long double": Z.astype(np.longdouble),
    "negative strides": Z[::-1, ::-1].copy()[::-1, ::-1],
    "column-major": np.asfortranarray(Z),
    "strides of a record": RECORDS["z"],
    "not writable": LOCKED,
    "objects": Z.astype(object),
    "column of arrays": ROWS,
    "decimals": np.array([[Decimal(float(x)) for x in row] for row in Z]),
    "masked, nothing hidden": np.ma.masked_array(Z),
    "matrix": np.asmatrix(Z),
    "list of lists": Z.tolist(),
    "list of arrays": list(Z),
    "list of tensors": [torch.tensor(row) for row in Z],
    "frame": pd.DataFrame(Z),
    "frame, shuffled": pd.DataFrame(Z[::-1], index=range(6)[::-1]),
    "frame, nullable": pd.DataFrame(Z).astype("Float32"),
    "series of lists": pd.Series(list(Z)),
    "xarray": xr.DataArray(Z, dims=("sample", "d"), coords={"sample": range(6)}),
    "scipy.sparse": sparse.csr_array(Z),
    "sparse tensor": torch.tensor(Z).to_sparse(),
    "buffer": memoryview(Z),
}


@pytest.mark.parametrize("kind", SAME)
def test_numbers_are_the_same_whatever_they_are_kept_in(kind):
    expected = Z[::-1] if kind == "frame, shuffled" else Z  # rows in their order, an index is none
    assert np.array_equal(as_features(SAME[kind]).numpy(), expected)


def test_bfloat16_is_read_also_where_numpy_has_lost_its_type():
    half = torch.tensor(Z).bfloat16()
    stored = half.view(torch.int16).numpy().view("V2")
    assert torch.equal(as_tensor(stored, "z"), half)
    assert torch.equal(as_tensor(stored[::-1], "z"), half.flip(0))


def test_unsigned_integers_keep_their_values():
    for kind in ("u2", ">u2", "u4", "u8"):
        assert as_tensor(np.array([0, 2**16 - 1], dtype=kind), "z").tolist() == [0, 2**16 - 1]
    assert as_tensor(np.array([2**64 - 1], dtype="u8"), "z").tolist() == [2.0**64]


def test_a_list_of_tensors_keeps_its_gradient():
    rows = [torch.ones(2, requires_grad=True) for _ in range(3)]
    assert as_features(rows).requires_grad


NOT_AN_ARRAY = {
    "z must be one array, got None": None,
    "z must be one array, got 'z.npy'": "z.npy",
    "z must be one array, got dict": {"z": Z},
    "z must be one array, got Dataset": xr.Dataset({"z": xr.DataArray(Z)}),
    "z must be one array: .*inhomogeneous": [[1.0, 2.0], [3.0]],
    "z must be one array: .*equal size": [torch.ones(2), torch.ones(3)],
    "z must be one array, got rows of different lengths": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "z must be one array, got the named fields id, z": RECORDS,
    "z has masked values": np.ma.masked_array(Z, Z > 0),
    "its columns name, kind are not": pd.DataFrame(Z).assign(name="a", kind=pd.Categorical(list("aabbcc"))),
    "z must be numeric, got text such as 'a'": np.array([[1.0, "a"]], dtype=object),
    "z must be numeric, got dates such as '2026-01-01'": np.array([["2026-01-01"]], dtype="M8[D]"),
    "z must be numeric, got objects such as <NA>": np.array([[1.0, pd.NA]], dtype=object),
    "z must be numeric, got 3 bytes without a type": np.zeros((6, 3), "V3"),
    "z contains NaN": np.array([[1.0, None]], dtype=object),
    "z contains NaN or infinite": np.full((2, 2), np.longdouble("1e4000")),
    "z must have shape": np.array(1.0),
    "z must be real": Z.astype(np.clongdouble),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("message", NOT_AN_ARRAY)
def test_what_is_no_array_of_numbers_is_named(message):
    with pytest.raises(ValueError, match=message):
        as_features(NOT_AN_ARRAY[message])


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_values_whose_fourth_powers_are_no_numbers_are_refused_with_the_range(size):
    with pytest.raises(ValueError, match=r"largest value between 1e-60 and 1e\+60, .*, got .*e[-+]200: scale it"):
        as_features(size * Z.astype(np.float64))
    assert as_features(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]
    assert as_spectrum(np.array([size])).tolist() == [size]


NAMES = ["cat", "ant", "bee", "cat", "ant", "bee"]
NAMED = {
    "list": NAMES,
    "array": np.array(NAMES),
    "bytes": np.array(NAMES, dtype="S"),
    "objects": np.array(NAMES, dtype=object),
    "series": pd.Series(NAMES, index=range(6)[::-1]),
    "categories": pd.Categorical(NAMES),
    "series of categories": pd.Series(NAMES).astype("category"),
    "xarray": xr.DataArray(np.array(NAMES)),
}


@pytest.mark.parametrize("kind", NAMED)
def test_names_are_numbered_in_alphabetical_order(kind):
    assert as_labels(NAMED[kind], 6).tolist() == [2, 0, 1, 2, 0, 1]


def test_categories_have_their_own_order_and_integers_stay():
    assert as_labels(pd.Categorical(NAMES, categories=["cat", "bee", "ant", "dog"]), 6).tolist() == [0, 2, 1, 0, 2, 1]
    for kind in (">i8", "u2", "u8", object):
        assert as_labels(np.array([5, 3, 5]).astype(kind), 3).tolist() == [5, 3, 5]
    assert as_labels(pd.array([5, 3], dtype="Int64"), 2).tolist() == [5, 3]
    assert as_labels([torch.tensor(5), torch.tensor(3)], 2).tolist() == [5, 3]


BAD_NAMES = {
    "labels has missing values": np.array(["a", None], dtype=object),
    "labels has missing values: drop": pd.Categorical(["a", None]),
    "labels has missing values: drop their": pd.Series(["a", None]),
    "labels must be all names or all integers, got int, str": np.array(["a", 1], dtype=object),
    "labels must be integers or names of classes, got torch.float64": np.array([0.0, 1.0]),
    "labels must have shape": np.array([["a", "b"]]),
    "labels must be numeric, got dates": pd.date_range("2026", periods=2),
    "labels must be one array, got None": None,
}


@pytest.mark.parametrize("message", BAD_NAMES)
def test_labels_that_are_neither_names_nor_integers_are_named(message):
    with pytest.raises(ValueError, match=message):
        as_labels(BAD_NAMES[message], 2)


def test_names_of_two_sets_are_numbered_together():
    first, second, names = paired_labels(["b", "c"], np.array(["c", "a", "c"]), sizes=(2, 3))
    assert (first.tolist(), second.tolist(), names) == ([1, 2], [2, 0, 2], ["a", "b", "c"])
    with pytest.raises(ValueError, match="train_labels and test_labels must both be names"):
        paired_labels(["b", "c"], [0, 1], sizes=(2, 2))
    with pytest.raises(ValueError, match="class indices where batches come one by one"):
        as_labels(["b", "c"], 2, classes=3)  # of a batch: the next one may have other names


def test_masks_of_any_layout():
    masks = np.arange(12, dtype=">u2").reshape(1, 3, 4)[:, ::-1]
    assert as_masks(masks, 1).tolist() == masks.tolist()


def test_finite_values_whose_sum_overflows_pass():
    assert as_features(torch.full((2, 2), 3e38)).isfinite().all()


BAD = {
    "z must have shape \\(n, d\\), got \\(3,\\)": torch.ones(3),
    "z must not be empty": torch.ones(0, 3),
    "z contains NaN or infinite": torch.tensor([[1.0, float("inf")]]),
    "z must be real": torch.ones(2, 2) * 1j,
    "z must be numeric": np.array([["a", "b"]]),
    "z needs at least 2 rows, got 1": torch.ones(1, 3),
    "z has a zero row": torch.zeros(2, 3),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_features_are_named(message):
    with pytest.raises(ValueError, match=message):
        as_features(BAD[message], normalize=True, min_rows=2)


def test_rows_off_the_sphere_are_named():
    with pytest.raises(ValueError, match="teacher must have unit-norm rows"):
        require_unit_rows(1.1 * torch.eye(3), "teacher")


def test_views():
    with pytest.raises(ValueError, match="views must have shape \\(v, n, d\\)"):
        as_views(torch.ones(3, 2))
    with pytest.raises(ValueError, match="at least 2 views, got 1"):
        as_views(torch.ones(1, 3, 2))


def test_labels():
    assert as_labels(np.array([0, 2], dtype=np.uint8), 2, classes=3).dtype == torch.int64
    for bad, message in [
        (torch.tensor([0, 3]), "below classes=3"),
        (torch.tensor([-1, 0]), "not be negative"),
        (torch.tensor([0.0, 1.0]), "must be integers"),
        (torch.tensor([0]), "shape \\(2,\\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            as_labels(bad, 2, classes=3)


def test_spectrum_is_sorted_and_rounding_is_cut():
    assert as_spectrum(torch.tensor([1.0, 3.0, -1e-8])).tolist() == [3, 1, 0]
    with pytest.raises(ValueError, match="must not be negative"):
        as_spectrum(torch.tensor([1.0, -0.1]))
