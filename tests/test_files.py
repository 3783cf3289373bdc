"""Tables, arrays and labels of others: what is taken is said, what could be meant in two ways is refused by name."""

import io
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.files import class_indices, read_features, read_labels

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((40, 6)).astype(np.float32)
LABELS = np.arange(40) % 4


def array(found):
    return np.concatenate([np.asarray(chunk) for chunk in found.features.chunks(7)])


def refused(f, *arguments, **options):
    with pytest.raises(ValueError) as error:
        f(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def columns(**more):
    return pd.DataFrame(Z, columns=[f"f{i}" for i in range(6)]).assign(**more)


# --- Tables: what is a feature, what a label, and what is left

TABLES = {
    "shuffled": (columns().sample(frac=1, random_state=0).sort_index(), "left: __index_level_0__ (the table's index)"),
    "filtered": (columns().set_axis([*range(5, 44), 99]), "left: __index_level_0__"),
    "grouped": (columns(person=np.arange(40)[::-1] ** 2).set_index("person"), "left: person (the table's index)"),
    "label": (columns(label=LABELS), "f0, f1, f2, f3, f4, f5 as features, label as labels"),
    "text": (columns(name="a", labels=LABELS), "left: name ("),
    "lists": (pd.DataFrame({"embedding": list(Z), "label": LABELS, "image_id": range(40)}), "left: image_id (whole"),
    "names": (columns(**{"class": np.array(["cat", "dog"])[LABELS % 2]}), "as labels of 2 classes: cat, dog"),
    "series of both types": (columns(f6=LABELS).drop(columns="f6"), "f0, f1, f2, f3, f4, f5 as features"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_s_index_and_labels_are_no_features(tmp_path, name):
    pytest.importorskip("pyarrow")
    table, said = TABLES[name]
    table.to_parquet(tmp_path / "z.parquet")
    found = read_features(tmp_path / "z.parquet")
    assert found.features.shape == (40, 6)
    assert np.array_equal(array(found), Z)
    assert said in found.read


REFUSED_TABLES = {
    "an identifier beside features": columns(image_id=7 * np.arange(40)),
    "a score beside features": columns(score=RNG.random(40)),
    "two series": columns(g0=0.5, g1=0.5),
    "whole and real numbers": pd.DataFrame({"height": Z[:, 0], "year": LABELS}),
    "two columns of lists": pd.DataFrame({"image": list(Z), "text": list(Z)}),
    "two labels": columns(label=LABELS, target=LABELS),
    "text alone": pd.DataFrame({"name": ["a"] * 40}),
}


@pytest.mark.parametrize("name", REFUSED_TABLES)
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_that_can_be_read_in_two_ways_is_refused_with_the_option(tmp_path, name, suffix):
    path, table = tmp_path / f"z.{suffix}", REFUSED_TABLES[name]
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(path)
    elif "lists" in name:
        pytest.skip("text has no lists")
    else:
        table.to_csv(path, index=False)
    assert (
        "say with --label " in refused(read_features, path)
        if "labels" in name
        else "--features" in refused(read_features, path)
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_columns_are_named_by_patterns(tmp_path, suffix):
    path, table = tmp_path / f"z.{suffix}", columns(score=0.5, group=LABELS)
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    found = read_features(path, features="f*", label="group")
    np.testing.assert_allclose(array(found), Z, rtol=1e-6)
    assert found.labels.tolist() == LABELS.tolist()
    assert "left: score (numbers)" in found.read
    assert array(read_features(path, features="f1,score")).shape == (40, 2)
    assert "has no h*" in refused(read_features, path, features="f*,h*")
    assert "has no kind" in refused(read_features, path, features="f*", label="kind")


@pytest.mark.parametrize("options", [{"index": True}, {"index": False}, {"index": False, "header": False}])
def test_text_with_and_without_an_index_and_a_header(tmp_path, options):
    columns().to_csv(tmp_path / "z.csv", **options)
    np.testing.assert_allclose(array(read_features(tmp_path / "z.csv")), Z, rtol=1e-6)


def test_rows_that_only_count_are_no_feature(tmp_path):
    np.savetxt(tmp_path / "z.csv", np.column_stack([np.arange(40), Z]), fmt=["%d"] + 6 * ["%.9g"], delimiter=",")
    found = read_features(tmp_path / "z.csv")
    assert found.features.shape == (40, 6)
    assert "left: 0 (row numbers)" in found.read


def as_text(text: str, folder, name="z.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_a_table_of_pandas_without_names_has_a_header(tmp_path):
    pd.DataFrame(Z).to_csv(tmp_path / "z.csv", index=False)
    np.testing.assert_allclose(array(read_features(tmp_path / "z.csv")), Z, rtol=1e-6)


def test_names_of_rows_without_a_name_of_their_own_are_left_and_named(tmp_path):
    found = read_features(as_text("f0,f1\ns0,0,0.5\ns1,0.5,0.25\ns2,1,0.5\n", tmp_path))
    assert array(found).tolist() == [[0, 0.5], [0.5, 0.25], [1, 0.5]]
    assert "left: names of rows (the table's index)" in found.read


UNCLEAR_TEXT = {
    "# a comment\n0,0,0\n": "its first line is a comment",
    "f0;f1\n0,5;0,25\n": "not separated by ','",
    "0,5;0,25\n": "both ',' and ';'",
    "0;1;2\n": "not separated by ','",
    "f0\tf1\n0\t1\n": "not separated by ','",
    "f0,f1,f2\n0,1,2\n0.5,oops,1\n": "f1 of z.csv is text",
    "f0,f1\n0,1.5\n1,2.5\n2,0.5\n": "f0 of z.csv is row numbers",
    "0.5,0.25,1\n0.1,0.2,4\n": "of several kinds",
    "a,b\n1,2,3,4\n": "2 cells more",
}


@pytest.mark.parametrize("text", UNCLEAR_TEXT)
def test_text_that_is_no_plain_table_is_refused(tmp_path, text):
    assert UNCLEAR_TEXT[text] in refused(read_features, as_text(text, tmp_path))


def test_another_column_of_labels_is_no_feature(tmp_path):
    table = pd.DataFrame({"a": Z[:, 0], "b": Z[:, 1], "Y": LABELS * 1.0, "label": LABELS})
    table.to_csv(tmp_path / "z.csv", index=False)
    found = read_features(tmp_path / "z.csv", label="label")
    assert found.features.shape == (40, 2)
    assert "left: Y" in found.read


@pytest.mark.parametrize("text", ["a.jpg 0\nb.jpg 1\n", "a\t0\nb\t1\n", "0,1,2\n"])
def test_several_columns_in_lines_of_labels_are_refused(tmp_path, text):
    assert "several columns" in refused(read_labels, as_text(text, tmp_path, "y.txt"))


def test_a_name_like_na_is_a_label(tmp_path):
    rows = "".join(f"{x},{c}\n" for x, c in zip(Z[:6, 0], ["NA", "US", "NA", "US", "US", "NA"], strict=True))
    assert read_features(as_text("f0,label\n" + rows, tmp_path)).labels.tolist() == [0, 1, 0, 1, 1, 0]


# --- Arrays


def test_of_several_arrays_one_is_named(tmp_path):
    np.savez(tmp_path / "z.npz", a=Z, b=Z + 1, y=LABELS)
    assert "a, b: say which with --features" in refused(read_features, tmp_path / "z.npz")
    found = read_features(tmp_path / "z.npz", features="b")
    assert np.array_equal(array(found), Z + 1)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.read == "z.npz: b as features, y as labels; left: a ((40, 6) float32)"
    assert "has no c; it has a, b, y" in refused(read_features, tmp_path / "z.npz", features="c")


def test_a_label_is_none_whatever_it_is_called(tmp_path):
    for name in ("labels", "label", "targets", "target", "y", "class"):
        np.savez(tmp_path / "z.npz", anything=Z, **{name: LABELS})
        found = read_features(tmp_path / "z.npz")
        assert (found.features.shape, found.labels.tolist()) == ((40, 6), LABELS.tolist())


def test_what_is_no_tensor_is_named_and_quantized_ones_are_none(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"z": torch.tensor(Z), "q": quantized, "names": ["a"], "epoch": 3}, tmp_path / "z.pt")
    assert "left: q (Tensor), names (list), epoch (int)" in read_features(tmp_path / "z.pt").read
    torch.save({"model": {"w": torch.ones(3)}}, tmp_path / "w.pt")
    assert "it has none, but model (dict)" in refused(read_features, tmp_path / "w.pt")
    torch.save({"z": Z}, tmp_path / "array.pt")
    assert "np.savez the arrays" in refused(read_features, tmp_path / "array.pt")
    torch.save(torch.tensor(3), tmp_path / "one.pt")
    assert "no row for each" in refused(read_labels, tmp_path / "one.pt")


def test_tensors_that_torch_saved(tmp_path):
    torch.save(torch.from_numpy(Z), tmp_path / "z.pt")
    torch.save({"features": torch.from_numpy(Z), "labels": torch.from_numpy(LABELS), "epoch": 3}, tmp_path / "z.pth")
    for name in ("z.pt", "z.pth"):
        assert np.array_equal(array(read_features(tmp_path / name)), Z)
    assert read_labels(tmp_path / "z.pth").labels.tolist() == LABELS.tolist()
    torch.save(torch.zeros(1).expand(10**9, 6), tmp_path / "z.pt")
    assert "more than the file has" in refused(read_features, tmp_path / "z.pt")


# --- Labels

LABEL_TEXT = {
    "a header": "label\n" + "\n".join(map(str, LABELS)),
    "a header of another name": "kind\n" + "\n".join(map(str, LABELS)),
    "a byte-order mark": "\ufeff" + "\n".join(map(str, LABELS)),
    "Windows' line ends": "\r\n".join(map(str, LABELS)) + "\r\n",
    "two columns": "path,label\n" + "\n".join(f"{i}.jpg,{y}" for i, y in enumerate(LABELS)),
    "real numbers": "\n".join(f"{y:.6e}" for y in LABELS),
    "empty lines at the end": "\n".join(map(str, LABELS)) + "\n\n\n",
}


@pytest.mark.parametrize("name", LABEL_TEXT)
def test_labels_in_text_of_every_kind(tmp_path, name):
    (tmp_path / "y.csv").write_bytes(LABEL_TEXT[name].encode())
    assert read_labels(tmp_path / "y.csv").labels.tolist() == LABELS.tolist()


def test_names_are_classes_in_their_order(tmp_path):
    (tmp_path / "y.txt").write_text("dog\ncat\ndog\nemu\n")
    labels, said = read_labels(tmp_path / "y.txt")
    assert labels.tolist() == [1, 0, 1, 2]
    assert said == "y.txt: each line as labels of 3 classes: cat, dog, emu"


BAD_LABEL_TEXT = {
    "1\n2\n\n3\n": "line 3 is empty",
    "1\ntwo\n3\n": "line 2 is 'two', and others are numbers",
    "cat\n2\ndog\n": "line 2 is '2', and others are names",
    "a.jpg\nb.jpg\nc.jpg\n": "a label of its own for each of 3 rows",
    "a,b\n1,2\n": "columns a, b: say with --label",
    "1,2\n3\n": "line 2 has 1 columns, and the first line 2",
    "1.5\n2\n": "row 0 is 1.5",
    "": "it is empty",
}


@pytest.mark.parametrize("text", BAD_LABEL_TEXT)
def test_labels_in_text_that_are_none_are_refused_by_their_line(tmp_path, text):
    (tmp_path / "y.csv").write_text(text)
    message = refused(read_labels, tmp_path / "y.csv")
    assert BAD_LABEL_TEXT[text] in message
    assert "y.csv" in message


@pytest.mark.parametrize(
    "values",
    [LABELS.astype(t) for t in ("i1", "u1", "u2", ">i4", ">i8", "u8", "f2", "f4", ">f8")]
    + [LABELS[:, None], np.array(["a", "b", "c", "d"])[LABELS], np.array([b"a", b"b", b"c", b"d"])[LABELS]],
    ids=str,
)
def test_labels_of_every_type_are_class_indices(values):
    labels, _ = class_indices(values, "y")
    assert labels.dtype == np.int64
    assert labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (LABELS + 0.5, "row 0 is 0.5"),
        (np.where(LABELS, LABELS, np.nan), "row 0 is nan"),
        (np.eye(4), "shape"),
        (np.array(3), "shape"),
        (LABELS.astype("M8[D]"), "not datetime64"),
        (LABELS + 0j, "not complex128"),
        (np.array(["a", None, "b"], dtype=object), "row 1 has no label"),
        (np.full(4, 2**63, dtype=np.uint64), "class indices"),
        (np.array(["a", "", "b", "a"]), "row 1 is empty"),
        (np.array(["1", "b", "b"]), "row 1 is 'b', and others are numbers"),
        (np.array(["2020-01-01", "2020-01-02", "2020-01-01"]), "a date"),
        (np.array([True, None, False], dtype=object), "row 1 has no label"),
        (np.array([1, "a", 1], dtype=object), "row 1 is 'a', and others are numbers"),
    ],
    ids=str,
)
def test_what_is_no_label_is_refused(values, words):
    assert words in refused(class_indices, values, "y of z.npz")


def test_numbers_as_text_and_truth_values_are_class_indices():
    assert class_indices(np.array(["10", "2", "10"]), "y")[0].tolist() == [10, 2, 10]
    assert class_indices(np.array([True, False, True], dtype=object), "y")[0].tolist() == [1, 0, 1]


def test_labels_may_be_bfloat16(tmp_path):
    torch.save({"z": torch.tensor(Z), "y": torch.tensor(LABELS).bfloat16()}, tmp_path / "z.pt")
    assert read_features(tmp_path / "z.pt").labels.tolist() == LABELS.tolist()


def test_a_file_whose_only_array_is_called_labels_is_read(tmp_path):
    np.savez(tmp_path / "y.npz", labels=LABELS)
    assert read_labels(tmp_path / "y.npz").labels.tolist() == LABELS.tolist()


# --- Pickles that would run code


class Hostile:
    """Unpickled, it calls what it was made with."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def hostile_files(folder, mark):
    """A dozen files that would make the file `mark` if anything in them were unpickled."""
    bomb = Hostile(open, str(mark), "w")
    raw = pickle.dumps(bomb)
    npy = io.BytesIO()
    np.lib.format.write_array(npy, np.array([bomb], dtype=object), allow_pickle=True)
    for suffix in ("npy", "npz", "pt", "pth", "safetensors", "csv", "txt", "parquet"):
        (folder / f"raw.{suffix}").write_bytes(raw)
    (folder / "objects.npy").write_bytes(npy.getvalue())
    for name, member in (("z", npy.getvalue()), ("labels", npy.getvalue()), ("raw", raw)):
        with zipfile.ZipFile(folder / f"{name}.npz", "w") as file:
            file.writestr(f"{name}.npy", member)
    torch.save({"z": bomb}, folder / "zip.pt")
    torch.save(bomb, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "no_torch.pt", "w") as file:
        file.writestr("no_torch/data.pkl", raw)
    return sorted(folder.iterdir())


def test_no_pickle_runs_any_code(tmp_path):
    mark, folder = tmp_path / "ran", tmp_path / "files"
    folder.mkdir()
    paths = hostile_files(folder, mark)
    assert len(paths) >= 12
    pickle.loads((folder / "raw.npy").read_bytes()).close()
    assert mark.exists()  # it would
    mark.unlink()
    for path in paths:
        for read in (read_features, read_labels):
            assert path.name in refused(read, path)
    assert not mark.exists()
