"""A header that does not tell the truth is found before anything is allocated; what is damaged is named."""

import io
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from simdino.array_files import npy_header, npz_chunks, npz_headers, read_npz

X = np.arange(240, dtype=np.float32).reshape(40, 6)


def npy(x=X, **changes) -> bytes:
    """A .npy file, with changes to its header."""
    np.save(out := io.BytesIO(), x)
    data = out.getvalue()
    header = data[10 : 10 + int.from_bytes(data[8:10], "little")].decode()
    for key, value in changes.items():
        header = re.sub(rf"'{key}': (\([^)]*\)|[^,]*)", f"'{key}': {value}", header)
    return data[:8] + len(header).to_bytes(2, "little") + header.encode() + data[-x.nbytes :]


def zipped(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


LIES = {
    "more rows": {"shape": "(2000000000, 6)"},
    "a negative length": {"shape": "(40, -6)"},
    "less than there are": {"shape": "(39, 6)"},
    "no number": {"shape": "('a',)"},
    "a truth value": {"shape": "(True, 240)"},
    "more than numbers go": {"shape": "(10**30,)"},
    "far too many": {"shape": "(99999999999999999999, 6)"},
    "unclosed": {"shape": "((((("},
    "another type": {"descr": "'<f8'"},
    "objects": {"descr": "'|O'"},
    "fields": {"descr": "[('a', '<f4')]"},
    "no type": {"descr": "'|V4'"},
    "nothing at all": {"descr": "'|S0'"},
    "a type that is none": {"descr": "3"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused_before_anything_is_allocated(tmp_path, lie):
    data = npy(**LIES[lie])
    (tmp_path / "x.npy").write_bytes(data)
    zipped(tmp_path / "x.npz", x=data)
    tracemalloc.start()
    for read, path in ((npy_header, tmp_path / "x.npy"), (lambda p: read_npz(p, ["x"]), tmp_path / "x.npz")):
        with pytest.raises(ValueError, match=f"cannot read {path}: "):
            read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_bfloat16_that_lost_its_type_is_told_what_to_do(tmp_path):
    np.save(tmp_path / "x.npy", (X.view("u4") >> 16).astype("u2").view("V2"))
    with pytest.raises(ValueError, match=r"bfloat16: save x.astype\(np.float32\)"):
        npy_header(tmp_path / "x.npy")


def test_two_arrays_in_one_file_are_refused(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        np.save(file, X)
        np.save(file, X)
    with pytest.raises(ValueError, match=r"1088 bytes follow its array"):
        npy_header(tmp_path / "x.npy")


def test_a_zip_that_says_more_than_it_can_hold_is_refused(tmp_path):
    path = zipped(tmp_path / "x.npz", x=npy())
    data = path.read_bytes()
    size = len(npy()).to_bytes(4, "little")
    path.write_bytes(data.replace(size, (2**31).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"compressed ones cannot hold"):
        npz_headers(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_by_name_and_in_chunks(tmp_path, save):
    arrays = {"x": X, "by_columns": np.asfortranarray(X), "none": X[:0], "number": np.array(3), "text": np.array(["a"])}
    save(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz", arrays)
    assert all(np.array_equal(found[name], x) and found[name].dtype == x.dtype for name, x in arrays.items())
    chunks = list(npz_chunks(tmp_path / "x.npz", "x", 16))
    assert [len(chunk) for chunk in chunks] == [16, 16, 8]
    assert np.array_equal(np.concatenate(chunks), X)


def test_what_cannot_be_read_beside_an_array_does_not_keep_it_from_being_read(tmp_path):
    np.savez(tmp_path / "x.npz", x=X, objects=np.array([{}], dtype=object))
    assert npz_headers(tmp_path / "x.npz")["objects"] is None
    assert np.array_equal(read_npz(tmp_path / "x.npz", ["x"])["x"], X)
    with pytest.raises(ValueError, match="its array objects: it is an array of object"):
        read_npz(tmp_path / "x.npz", ["objects"])
    with pytest.raises(ValueError, match="no array a, b; it has x, objects"):
        read_npz(tmp_path / "x.npz", ["b", "x", "a"])


@pytest.mark.parametrize("length", [0, 5, 20, 100, 300])
def test_a_file_cut_short_is_named(tmp_path, length):
    (tmp_path / "x.npy").write_bytes(npy()[:length])
    path = zipped(tmp_path / "x.npz", x=npy())
    path.write_bytes(path.read_bytes()[:length])
    for read, file in ((npy_header, "x.npy"), (npz_headers, "x.npz")):
        with pytest.raises(ValueError, match=f"cannot read {tmp_path / file}: ."):
            read(tmp_path / file)


def test_values_that_changed_are_found_by_the_zip(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=X)
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        read_npz(path, ["x"])
