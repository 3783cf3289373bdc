"""Tasks and the command: known answers on images made of colors, what data are, tables, one sentence for a mistake."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.commands import probe_command
from analysis.probes import tasks
from analysis.probes.backbone import Backbone, Features, load_backbone, load_backbones
from analysis.probes.results import Result, results_table
from analysis.probes.tasks import data_kind, existing_paths, probe_backbones
from simdino.config import Model
from simdino.train import get_run
from simdino.vit import Network
from simdino.weights import save_weights
from tests.simdino.test_train import TINY

Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).parents[2]
COLORS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)


def joined(arrays, key=""):
    """Arrays as PNG files end to end, and where each begins."""
    files = [io.BytesIO() for _ in arrays]
    for file, array in zip(files, arrays, strict=True):
        Image.fromarray(array).save(file, "PNG")
    data = [np.frombuffer(f.getvalue(), np.uint8) for f in files]
    return {f"{key}data": np.concatenate(data), f"{key}offsets": np.cumsum([0, *map(len, data)])}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """60 training and 30 test images, each of the color of its class with noise on it."""
    rng, labels = np.random.default_rng(0), np.arange(90) % 3
    noise = rng.integers(-20, 20, (90, 16, 24, 3))
    images = (COLORS[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "colors.npz"
    np.savez(path, **joined(images), labels=labels, split=np.arange(90) // 60, names=["red", "green", "blue"])
    return path


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """12 training and 8 test images: a green rectangle, class 1, on red, class 0; two columns are unlabeled."""
    rng, images, masks = np.random.default_rng(0), [], []
    for _ in range(20):
        mask = np.zeros((32, 48), np.uint8)
        top, left = 8 * rng.integers(1, 3), 8 * rng.integers(1, 4)
        mask[top : top + 8, left : left + 16] = 1
        images.append(COLORS[mask])
        mask[:, -2:] = 2
        masks.append(mask)
    path = tmp_path_factory.mktemp("data") / "rectangles.npz"
    arrays = joined(images) | joined(masks, "mask_")
    np.savez(path, **arrays, split=np.arange(20) // 12, names=["ground", "box", "unlabeled"])
    return path


def write(root, picture, i, *, mask=None):
    """An image of the colors of the classes in a picture (h, w), and its mask, in a folder."""
    for kind, array in (("images", COLORS[picture]), ("masks", picture if mask is None else mask)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / kind / f"{i:03d}.png")


def squares(root, n=10):
    """A folder of images of 48 × 56 pixels with a rectangle of class 1 or 2, on whole patches of 4 pixels."""
    for i in range(n):
        mask = np.zeros((48, 56), np.uint8)
        mask[8:28, 4 * (1 + i % 6) : 4 * (1 + i % 6) + 24] = 1 + i % 2
        write(root, mask, i)
    return root


@pytest.fixture
def pixels():
    return load_backbone("pixels", config=Model(stem="patch", patch=4, dim=8, heads=1), device="cpu")


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    monkeypatch.setattr(tasks, "linear_segmenter", partial(tasks.linear_segmenter, steps=300, lr=1e-2))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two sequences of six frames: a green square on red moves by a patch a frame."""
    images, masks = [], []
    for frame in [*range(6), *range(6)]:
        mask = np.zeros((32, 64), bool)
        mask[8:24, 8 * frame : 8 * frame + 16] = True
        images.append(COLORS[mask.astype(int)])
        masks.append(mask)
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    arrays = joined(images) | joined(masks, "mask_")
    np.savez(path, **arrays, sequence=np.arange(12) // 6, frame=np.arange(12) % 6, names=["one", "two"])
    return path


def color(name="color"):
    """Mean color of the image and of each patch."""

    def encode(x):
        return Features(x.mean((2, 3)), torch.nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1))

    return Backbone(name, 8, encode)


def values(results, **where):
    for column, value in where.items():
        results = results[results[column] == value]
    return dict(zip(results["measure"], results["value"], strict=True))


# --- Known answers


def test_colors_are_classified_and_counted(labeled):
    results = probe_backbones([color()], [labeled])
    found = values(results)
    assert found == dict.fromkeys(
        ["k-NN, k = 10", "k-NN, k = 20", "1-shot", "5-shot", "10-shot", "linear probe", "logistic regression"], 1.0
    )
    assert set(results["n"]) == {30}
    knn = results.set_index("measure").loc["k-NN, k = 10"]
    z2 = 1.959963984540054**2
    assert (knn["low"], knn["high"]) == pytest.approx((1 / (1 + z2 / 30), 1))  # Wilson's, of 30 of 30
    assert results.set_index("measure").loc["5-shot", "sd"] == 0
    assert results.set_index("measure").loc["linear probe", "note"].startswith("lr = ")


def test_blind_features_get_the_share_of_a_class(labeled):
    blind = Backbone("blind", 8, lambda x: Features(torch.ones(len(x), 2), torch.ones(len(x), 2, 3, 2)))
    found = values(probe_backbones([color(), blind], [labeled], tasks=["knn", "linear"]), backbone="blind")
    assert list(found.values()) == pytest.approx([1 / 3] * len(found))


def test_fewer_training_images_than_any_k_are_all_neighbors(labeled):
    results = probe_backbones([color()], [labeled], tasks=["knn"], train=7, test=5)
    assert values(results).keys() == {"k-NN, k = 7"}
    assert set(results["n"]) == {5}


def test_rectangles_are_segmented(masked):
    results = probe_backbones([color()], [masked])
    found = values(results)
    for kind in ("linear", "k-NN", "prototypes"):
        assert found[f"mIoU, {kind}"] > 0.8  # bilinear borders cost a little
        ground, box = found[f"IoU of ground, {kind}"], found[f"IoU of box, {kind}"]
        assert found[f"mIoU, {kind}"] == pytest.approx((ground + box) / 2)
    assert len(found) == 3 * 3  # no class of the unlabeled, and no objects: which classes are, nobody knows
    assert " of ground" not in results_table(results)
    with pytest.raises(ValueError, match=r"discover has nothing to work on in .*rectangles"):
        probe_backbones([color()], [masked], tasks=["segment", "discover"])


def test_pixels_without_labels_are_ignored(tmp_path, pixels):
    for path in (squares(tmp_path) / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:, :4] = 255
        Image.fromarray(mask).save(path)
    rows = probe_backbones([pixels], [tmp_path], tasks=["segment"], ignore=255).set_index("measure")
    for kind in ("linear", "k-NN", "prototypes"):
        row = rows.loc[f"mIoU, {kind}"]
        assert 0.85 < row["value"] <= 1  # corners are rounded
        assert row["low"] <= row["value"] <= row["high"]
        assert row["n"] == 2  # every fifth
        assert rows.loc[f"IoU of 1, {kind}", "value"] > 0.8
        assert f"IoU of 255, {kind}" not in rows.index


def test_objects_are_discovered(tmp_path, pixels):
    """Of 10 images all are used, since nothing is trained."""
    corloc, ap, ap50 = probe_backbones([pixels], [squares(tmp_path)], tasks=["discover"]).itertuples()
    assert (corloc.measure, corloc.value, corloc.n) == ("CorLoc, TokenCut", 1, 10)
    assert corloc.note == "the box around the whole image: 0.000"
    assert (ap.measure, ap.value, ap.n, ap.note) == ("mask AP, MaskCut", 1, 10, "10 regions are true objects")
    assert (ap50.measure, ap50.value) == ("mask AP50, MaskCut", 1)


def test_what_is_found_in_images_without_an_object_counts_against_precision(tmp_path, pixels):
    squares(tmp_path)
    for i in range(5):  # what is seen there is not called an object
        picture = np.array(Image.open(tmp_path / f"masks/{i:03d}.png"))
        write(tmp_path, picture, i, mask=np.zeros_like(picture))
    corloc, ap, _ = probe_backbones([pixels], [tmp_path], tasks=["discover"]).itertuples()
    assert (corloc.value, corloc.n) == (1, 5)
    assert ap.n == 10
    assert ap.value < 1


def test_small_regions_are_no_objects(tmp_path, pixels):
    squares(tmp_path)
    for i in range(10, 12):
        mask = np.zeros((48, 56), np.uint8)
        mask[4:7, 4:7] = 1  # 9 pixels, and 10.5 are needed
        write(tmp_path, mask, i)
    assert next(probe_backbones([pixels], [tmp_path], tasks=["discover"]).itertuples()).n == 10


def test_discovery_needs_objects(tmp_path, pixels):
    squares(tmp_path, n=5)
    for i in range(1, 5):
        write(tmp_path, np.zeros((48, 56), np.uint8), i)
    with pytest.raises(ValueError, match="discover needs two images with objects of at least 10"):
        probe_backbones([pixels], [tmp_path], tasks=["discover"])


def test_squares_are_followed(videos):
    results = probe_backbones([color()], [videos], size=(32, 64))
    found = values(results)
    assert min(found.values()) > 0.85  # but for the corners, which bilinear interpolation rounds off
    assert found["J&F mean"] == pytest.approx((found["J mean"] + found["F mean"]) / 2)
    assert set(results["n"]) == {2}
    assert (results["low"] == results["value"]).all()  # the two are alike
    assert set(probe_backbones([color()], [videos], sequences=1)["n"]) == {1}
    two = probe_backbones([color(), color()], [videos])  # seeds of one name
    assert len(two) == 6
    assert two.groupby("measure")["value"].nunique().tolist() == [1, 1, 1]


def test_sides_are_rounded_up_to_whole_patches_and_masks_go_along(masked):
    odd = replace(color("odd"), patch=20)
    odd = replace(
        odd, encode=lambda x: Features(x.mean((2, 3)), torch.nn.functional.avg_pool2d(x, 20).permute(0, 2, 3, 1))
    )
    results = probe_backbones([odd, color()], [masked], tasks=["segment"])
    assert values(results, backbone="odd").keys() == values(results, backbone="color").keys()
    assert values(results, backbone="odd")["IoU of ground, k-NN"] > 0.6


def test_several_sets_and_backbones_in_one_table(labeled, videos):
    results = probe_backbones([color("a"), color("b")], [labeled, videos], tasks=["knn", "video"])
    assert list(results.columns) == list(Result._fields)
    lines = results_table(results).splitlines()
    assert lines[0].split() == ["a", "b"]
    assert [line.split()[0] for line in lines[2:] if not line.startswith(" ")] == ["colors", "squares"]
    assert len(lines) == 2 + 2 + 3
    alone = probe_backbones([color()], [videos, labeled], tasks=["knn"])  # nothing is asked of the videos
    assert set(alone["data"]) == {"colors"}
    assert set(alone["task"]) == {"knn"}


def test_table_says_what_is_uncertain_and_what_is_not_there():
    rows = [
        Result("set", "a", "knn", "k-NN", 0.5, 0.4, 0.6, n=10),
        Result("set", "b", "knn", "k-NN", 0.2, 0.1, 0.3, n=10),
        Result("set", "b", "knn", "k-NN", 0.4, 0.3, 0.5, n=10),  # another seed
        Result("set", "a", "few-shot", "1-shot", 0.3, sd=0.05, n=10),
        Result("other", "a", "segment", "IoU of x", 0.3, detail=True),
    ]
    lines = results_table(pd.DataFrame(rows, columns=Result._fields)).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "set k-NN 0.500 [0.400, 0.600] 0.300 ± 0.141 (n = 2)" in text
    assert "1-shot 0.300 ± 0.050 -" in text
    assert len(lines) == 4
    assert results_table(probe_backbones([], [])) == "nothing was measured: none of the data are here"


# --- What data are


def test_kinds_of_data(labeled, masked, videos, tmp_path):
    assert [data_kind(path) for path in (labeled, masked, videos)] == ["labels", "masks", "video"]
    assert [data_kind(name) for name in ("photos", "digits", "cifar10=/somewhere")] == ["labels"] * 3
    for folder, kind in [
        ("a/train/cat", "labels"),
        ("b/cat", "labels"),
        ("c/masks", "masks"),
        ("d/train/masks", "masks"),
        ("e/dog/masks", "video"),
        ("f/JPEGImages", "video"),
    ]:
        (tmp_path / folder).mkdir(parents=True)
        assert data_kind(tmp_path / folder.split("/")[0]) == kind


def test_folders_and_named_sets_are_read(tmp_path, labeled):
    for label, rgb in enumerate(COLORS):
        (tmp_path / f"class{label}").mkdir()
        for i in range(10):
            Image.new("RGB", (20 + i, 16), tuple(map(int, rgb))).save(tmp_path / f"class{label}/{i}.png")
    for data in (tmp_path, f"folder={tmp_path}"):
        assert set(values(probe_backbones([color()], [data], tasks=["knn"], size=16)).values()) == {1}
    found = probe_backbones([color()], [tmp_path], tasks=["knn"], size=16, train=9, test=4)
    assert set(found["n"]) == {4}
    assert re.search(r"24 training and 6 test images .* of 3 classes: class0 8 \+ 2", *found.attrs["read"])
    with pytest.raises(ValueError, match="size is needed, as the images differ"):
        probe_backbones([color()], [tmp_path])
    assert values(probe_backbones([color()], [f"npz={labeled}"], tasks=["knn"]))["k-NN, k = 10"] == 1


def class_folders(root):
    """Thirty images of plain colors in three folders."""
    for label, rgb in enumerate(COLORS):
        (root / f"class{label}").mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (16, 16), tuple(map(int, rgb))).save(root / f"class{label}/{i}.png")


def test_what_could_be_a_name_or_a_path_is_refused_and_each_can_be_written(tmp_path, monkeypatch):
    """Own images in a folder called as a built-in set are, not in silence, either."""
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "digits")
    with pytest.raises(ValueError, match=r"digits is a name, and a path here, too: write \./digits .*, digits= for"):
        probe_backbones([color()], ["digits"], tasks=["knn"])
    options = {"tasks": ["knn"], "size": 16}
    for path in ("./digits", Path("digits"), str(tmp_path / "digits")):
        assert set(probe_backbones([color()], [path], **options)["n"]) == {6}
    found = probe_backbones([color()], ["digits=", tmp_path / "digits"], **options)
    assert found.groupby("data", sort=False)["n"].first().to_dict() == {"digits": 360, str(tmp_path / "digits"): 6}
    (tmp_path / "pixels").mkdir()
    with pytest.raises(ValueError, match=r"pixels is a name, and a path here, too: write \./pixels"):
        load_backbones(["pixels"])
    with pytest.raises(ValueError, match="not a run directory"):
        load_backbones(["./pixels"])


def test_images_without_classes_are_refused_where_classes_are_needed(tmp_path):
    for i in range(10):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{i}.png")
    with pytest.raises(
        ValueError, match=r"knn, few-shot, linear, logistic need classes, and the images in .* lie in no"
    ):
        probe_backbones([color()], [tmp_path])


def test_paths_that_exist_start_at_the_project(tmp_path):
    assert existing_paths(["README.md", "nothing", tmp_path]) == [ROOT / "README.md", tmp_path]


def test_mistakes_are_named(labeled, tmp_path):
    (tmp_path / "no.npz").write_bytes(b"no")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for options, message in [
        ({"data": ["nothing"]}, "there are no data nothing"),
        ({"data": [tmp_path / "no.npz"]}, r"cannot read .*no\.npz: it is no \.npz"),
        ({"data": [tmp_path / "array.npy"]}, r"cannot read .*array\.npy: it is no \.npz"),
        ({"tasks": ["kn"]}, "unknown task 'kn'; did you mean 'knn'"),
        ({"tasks": ["video"]}, "video needs video, which none of the data have: .*colors"),
        ({"data": [], "tasks": ["knn"]}, "knn needs labels, which none of the data have"),
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"sequences": -1}, "sequences must be at least 1, got -1"),
        ({"size": 20}, "images of 20x20 are no whole number of the 8-pixel patches of color"),
    ]:
        with pytest.raises(ValueError, match=message):
            probe_backbones(**({"backbones": [color()], "data": [labeled]} | options))


# --- The command


def refused(*arguments):
    """The sentence with which the command exits."""
    with pytest.raises(SystemExit) as stopped:
        probe_command([*map(str, arguments)])
    assert len(stopped.value.code.splitlines()) == 1
    return stopped.value.code


def test_command_prints_a_table_and_writes_json(labeled, tmp_path, capsys):
    out = tmp_path / "out.json"
    probe_command(
        ["pixels", "--data", str(labeled), "--tasks", "knn", "--train", "30", "--size", "14x28", "--json", str(out)]
    )
    record = json.loads(out.read_text())
    assert record["asked"]["size"] == [14, 28]
    assert {"commit", "versions", "hardware"} <= record.keys()
    assert [r["measure"] for r in record["results"]] == ["k-NN, k = 10", "k-NN, k = 20"]
    assert record["results"][0]["value"] == 1
    assert record["results"][0]["sd"] is None
    assert "k-NN, k = 10" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture
def run(tmp_path):
    """A run of one step, on digits of 16 × 16 pixels."""
    config = replace(TINY, optim=replace(TINY.optim, steps=1))
    return get_run(config, tmp_path / "runs", progress=False, device="cpu").path


def test_command_measures_runs_on_what_they_were_trained_on(run, labeled, tmp_path, capsys):
    out = ["--tasks", "knn", "--train", "100", "--test", "50", "--json", str(tmp_path / "out.json")]
    for line, data, size, notes in [
        (
            [run, "random"],
            ["digits="],
            16,
            ["on the data of training, --data digits=", "at the size of training, --size 16"],
        ),
        ([run, "--data", labeled], [str(labeled)], 16, ["at the size of training, --size 16"]),
        ([run, "--size", "8"], ["digits="], 8, ["on the data of training, --data digits="]),
        (["pixels", "--data", labeled, "--size", "14"], [str(labeled)], 14, []),
    ]:
        probe_command([*map(str, line), *out])
        asked = json.loads((tmp_path / "out.json").read_text())["asked"]
        assert (asked["data"], asked["size"]) == (data, size)
        said = capsys.readouterr().out.splitlines()
        assert said[: len(notes)] == notes
        assert not said[len(notes)].startswith(("on the", "at the"))


def test_command_says_where_data_are_needed(run, tmp_path):
    assert "say with --data what to measure on: no run is given" in refused("pixels")
    other = replace(TINY, optim=replace(TINY.optim, steps=1), data=replace(TINY.data, name="photos"))
    other = get_run(other, tmp_path / "runs", progress=False, device="cpu").path
    assert "the runs were trained on digits= and on photos=" in refused(run, other)


def test_command_in_a_process_of_its_own(labeled):
    def command(*arguments):
        line = [sys.executable, "-m", "simdino", "probe", *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)

    good = command("pixels", "--data", labeled, "--tasks", "knn")
    assert (good.returncode, good.stderr) == (0, "")
    bad = command("pixels", "--data", "nothing")
    assert bad.returncode == 1
    assert bad.stdout == ""
    assert len(bad.stderr.splitlines()) == 1


def test_command_refuses_in_one_sentence(labeled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "nobody is no run" in refused("nobody", "--data", labeled)
    assert "there are no data" in refused("pixels", "--data", "nothing")
    assert "there is no folder" in refused("pixels", "--data", labeled, "--json", tmp_path / "no" / "out.json")
    assert "unknown task" in refused("pixels", "--data", labeled, "--tasks", "knm")
    for wrong in (["--size", "5y"], ["--size", "0"], ["--train", "many"]):
        with pytest.raises(SystemExit) as stopped:
            probe_command(["pixels", "--data", str(labeled), *wrong])
        assert stopped.value.code == 2


def test_baselines_have_the_shape_of_the_first_backbone_and_names_are_distinct(tmp_path):
    config = Model(stem="patch", patch=4, dim=64, depth=2, heads=1, out=0)
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "net.safetensors", tmp_path / "other/net.safetensors"):
        save_weights(Network(config, size=8), path)
    paths = [str(tmp_path / "net.safetensors"), str(tmp_path / "other/net.safetensors")]
    loaded = load_backbones(["pixels", *paths, "random"])
    assert [b.name for b in loaded] == ["pixels", *paths, "random"]
    assert [b.patch for b in loaded] == [4] * 4
    assert loaded[-1].network.config == config
    assert [b.patch for b in load_backbones(["pixels"])] == [14]
