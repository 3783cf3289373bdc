"""The built-in sets are what their docstrings say; brought files are read exactly, and damaged ones named."""

import gc
import gzip
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simdino import data, image_files
from simdino.data import DATASETS, load

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
RNG = np.random.default_rng(0)


def nearest(d: data.Dataset, center: bool) -> float:
    """Accuracy of 20-NN on raw pixels: cosine, votes weighted by exp(cosine/.07)."""
    bank, test = d.train.float().flatten(1), d.test.float().flatten(1)
    mean = bank.mean(0) if center else 0
    weight, index = (F.normalize(test - mean) @ F.normalize(bank - mean).T).topk(20)
    votes = torch.zeros(len(test), len(d.classes)).scatter_add_(1, d.train_labels[index], (weight / 0.07).exp())
    return (votes.argmax(1) == d.test_labels).float().mean().item()


# Sets that need no files


def test_digits_are_the_1797_scans_in_writer_order():
    sklearn = pytest.importorskip("sklearn.datasets")
    d, bunch = load("digits"), sklearn.load_digits()
    assert d.train.shape == (1437, 1, 8, 8)
    assert d.test.shape == (360, 1, 8, 8)
    assert d.classes == tuple("0123456789")
    levels = torch.cat([d.train, d.test])[:, 0].double() * 16 / 255
    assert (levels - torch.from_numpy(bunch.images)).abs().max() < 0.04  # a half of 1/255, in sixteenths
    assert torch.cat([d.train_labels, d.test_labels]).tolist() == bunch.target.tolist()
    assert load("digits", size=16).test.shape == (360, 1, 16, 16)
    assert nearest(d, center=False) > 0.9


@pytest.fixture(scope="module")
def photos() -> data.Dataset:
    pytest.importorskip("skimage")
    return load("photos")


def test_photos_are_balanced_and_the_same_each_time(photos):
    assert photos.train.shape == (8000, 1, 32, 32)
    assert photos.test.shape == (1600, 1, 32, 32)
    assert len(photos.classes) == 16
    assert photos.train_labels.bincount().tolist() == [500] * 16
    assert photos.test_labels.bincount().tolist() == [100] * 16
    assert all(torch.equal(a, b) for a, b in zip(photos[:4], load("photos", size=32)[:4], strict=True))


def test_photos_train_and_test_columns_are_eight_pixels_apart():
    for width in (384, 400, 451, 512, 600, 640):
        train, test = (np.flatnonzero(data._photo_columns(width, part)) for part in (False, True))
        assert np.abs(train[:, None] - test).min() > 8
        assert len(train) > len(test) > 0.3 * width


def test_photos_crops_lie_in_their_own_columns():
    image = pytest.importorskip("PIL.Image")
    width = 384  # each pixel's level says on which side it lies
    test = data._photo_columns(width, True)
    levels = np.where(test, 255, np.where(data._photo_columns(width, False), 0, 128)) * np.ones((128, 1))
    dark = np.arange(128) // 8 % 2 == 0  # stripes: crops without contrast are refused
    levels[dark] = levels[dark] * 0.8
    levels[~dark] = 255 - (255 - levels[~dark]) * 0.8
    im = image.fromarray(levels.astype(np.uint8))
    for part in (False, True):
        for side in (32, 64):
            crops = np.stack([data._photo_crop(im, side, part, np.random.default_rng(i)) for i in range(40)])
            assert (crops.mean(0) > 127).all() == part


def test_photos_are_neither_trivial_nor_hopeless_for_raw_pixels(photos):
    assert 0.10 < nearest(photos, center=False) < 0.35
    assert 0.15 < nearest(photos, center=True) < 0.40


def test_photos_have_contrast_and_no_crop_twice_in_both_parts(photos):
    assert photos.train.float().std((1, 2, 3)).min() > 3.9
    assert photos.test.float().std((1, 2, 3)).min() > 3.9
    train = {x.numpy().tobytes() for x in photos.train}
    assert not any(x.numpy().tobytes() in train for x in photos.test)


# Files that users bring


def picture(shape: tuple[int, ...] = (24, 24, 3)) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(x: np.ndarray) -> bytes:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(x).save(out := io.BytesIO(), "png")
    return out.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder_with_two_parts_is_read_by_class(tmp_path, held_out):
    x, y = picture(), picture()
    write(tmp_path / "train" / "cat" / "1.png", png(x))
    write(tmp_path / "train" / "dog" / "1.png", png(picture()))
    write(tmp_path / "train" / "dog" / "notes.txt", b"not an image")
    write(tmp_path / held_out / "dog" / "9.png", png(y))
    d = load("folder", root=tmp_path)
    assert d.classes == ("cat", "dog")
    assert d.train_labels.tolist() == [0, 1]
    assert d.test_labels.tolist() == [1]
    assert (d.train[0].permute(1, 2, 0).numpy() == x).all()
    assert (d.test[0].permute(1, 2, 0).numpy() == y).all()


def test_flat_folder_holds_out_every_fifth_file(tmp_path):
    for i in range(10):
        write(tmp_path / "a" / f"{i}.png", png(np.full((24, 24, 3), i, np.uint8)))
    d = load("folder", root=str(tmp_path))
    assert d.train[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert d.test[:, 0, 0, 0].tolist() == [4, 9]


@pytest.mark.parametrize("lazy", [False, True])
def test_images_in_no_folders_of_classes_have_no_labels(tmp_path, lazy):
    """One folder, of which every fifth file is held out, or two."""
    for i in range(10):
        write(tmp_path / "one" / f"{i}.png", png(np.full((24, 24, 3), i, np.uint8)))
        write(
            tmp_path / "two" / ("val" if i % 5 == 4 else "train") / f"{i}.png", png(np.full((24, 24, 3), i, np.uint8))
        )
    for root in ("one", "two"):
        d = load("folder", root=tmp_path / root, size=24, lazy=lazy)
        assert d.train[:][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
        assert d.test[:][:, 0, 0, 0].tolist() == [4, 9]
        assert (d.train_labels, d.test_labels, d.classes) == (None, None, ())
    write(tmp_path / "two" / "val" / "cat" / "1.png", png(picture()))
    with pytest.raises(ValueError, match=r"has the class cat, which .*train has not"):
        load("folder", root=tmp_path / "two", size=24)


def test_a_path_in_the_place_of_a_name_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "holiday" / "1.png", png(picture()))
    with pytest.raises(
        ValueError, match=r"holiday is a path .*: your own images are data.name=folder,data.root=holiday"
    ):
        load("holiday")
    with pytest.raises(ValueError, match=r"root must be None for photos, .* are data.name=folder,data.root=holiday"):
        load("photos", root="holiday")


def test_folder_of_unequal_images_needs_a_size(tmp_path):
    for i, shape in enumerate([(24, 24), (40, 30, 3), (20, 60, 3), (24, 24, 3), (24, 24, 4)]):
        write(tmp_path / "a" / f"{i}.png", png(picture(shape)))  # gray and RGBA become RGB
    with pytest.raises(ValueError, match=r"size is needed, as the images differ: .*0\.png and .*1\.png"):
        load("folder", root=tmp_path)
    d = load("folder", root=tmp_path, size=16)
    assert d.train.shape == (4, 3, 16, 16)
    assert d.test.shape == (1, 3, 16, 16)


def test_size_keeps_the_center_square(tmp_path):
    x = np.zeros((10, 30, 3), np.uint8)
    x[:, 10:20] = 200
    for i in range(5):
        write(tmp_path / "a" / f"{i}.png", png(x))
    assert (load("folder", root=tmp_path, size=10).train == 200).all()
    wide = torch.from_numpy(x).permute(2, 0, 1)[None]
    assert (data._resized(wide, 10) == 200).all()
    half = data._resized(wide, 5)[0, 0]
    assert half.shape == (5, 5)
    assert (half[:, 1:4] > 195).all()


# Files that are decoded when they are asked for


def gray_folder(root: Path, names: dict[str, list[str]]) -> None:
    """One image for each name, all of one level: its number among all of them."""
    files = [root / name / file for name, some in names.items() for file in some]
    for level, file in enumerate(files):
        write(file, png(np.full((24, 24, 3), level, np.uint8)))


def test_no_string_is_kept_for_a_path():
    """Strings are shared by forked processes only until each has counted its references to them."""

    def reachable(paths: list[str]) -> set[int]:
        kept, new = set(), [image_files.Files(paths, 16).__dict__]
        while new:
            some = [x for x in gc.get_referents(*new) if id(x) not in kept and not isinstance(x, type)]
            kept |= {id(x) for x in some}
            new = some
        return kept

    few, many = ([f"/images/{i}.png" for i in range(n)] for n in (10, 1000))
    files = image_files.Files(many, 16)
    assert len(reachable(many)) == len(reachable(few)) < 50
    assert files.files.text.nbytes == sum(map(len, many))
    assert list(files.files) == many
    assert files.files[-1] == files.files[torch.tensor(999)] == many[-1]
    with pytest.raises(IndexError):
        files.files[1000]
    assert list(pickle.loads(pickle.dumps(files)).files) == many


def test_names_that_are_not_ascii_or_no_text_at_all_survive(tmp_path):
    names = sorted(["é.png", "犬.png", "plain.png", os.fsdecode(b"\xff\xe9.png")])
    try:
        gray_folder(tmp_path, {"ü/a": names, "ü/b": ["1.png"]})
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    found = data._listing(tmp_path / "ü").files
    assert found == {
        "a": [str(tmp_path / "ü" / "a" / name) for name in names],
        "b": [str(tmp_path / "ü" / "b" / "1.png")],
    }
    assert image_files.Files([*found["a"], *found["b"]], 24)[:][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_lazy_images_are_those_that_are_kept(tmp_path):
    gray_folder(tmp_path, {"a": [f"{i}.png" for i in range(10)], "b": [f"{i}.JPEG.png" for i in range(5)]})
    kept, lazy = (load("folder", root=tmp_path, size=16, lazy=lazy) for lazy in (False, True))
    for part in ("train", "test"):
        images, files = getattr(kept, part), getattr(lazy, part)
        assert files.shape == tuple(images.shape)
        assert torch.equal(files[:], images)
        assert torch.equal(files[torch.tensor([2, 0])], images[[2, 0]])
        assert getattr(lazy, f"{part}_labels").tolist() == getattr(kept, f"{part}_labels").tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_their_order(tmp_path, workers):
    gray_folder(tmp_path, {"a": [f"{i}.png" for i in range(8)]})
    files = image_files.Files(data._listing(tmp_path / "a").loose, 16)
    order = [torch.tensor(index) for index in ([5, 1], [7, 0], [3, 3])]
    found = list(image_files.batches(files, order, workers=workers, device="cpu"))
    assert [batch[:, 0, 0, 0].tolist() for batch in found] == [[5, 1], [7, 0], [3, 3]]


def test_workers_needed_are_the_wanted_rate_over_that_of_one(tmp_path, monkeypatch):
    gray_folder(tmp_path, {"a": [f"{i}.png" for i in range(8)]})
    files = image_files.Files(data._listing(tmp_path / "a").loose, 16)
    clock, decoded = [0.0], image_files.decoded

    def slow(encoded, size):  # a quarter of a second for each image
        encoded = list(encoded)
        clock[0] += 0.25 * len(encoded)
        return decoded(encoded, size)

    monkeypatch.setattr(image_files, "decoded", slow)
    monkeypatch.setattr(image_files.time, "perf_counter", lambda: clock[0])
    for rate, workers in ((1.0, 1), (4.0, 1), (4.1, 2), (100.0, 25)):
        assert image_files.workers_needed(files, rate) == workers
        assert image_files.workers_needed(files, rate, sample=3) == workers
    with pytest.raises(ValueError, match="rate must be a positive number of images/s, not 0"):
        image_files.workers_needed(files, 0.0)


# What a reader of folders could take wrong without a word


def two_classes(root: Path, n: int = 6) -> Path:
    gray_folder(root, {name: [f"{i}.png" for i in range(n)] for name in ("cat", "dog")})
    return root


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".thumbnails", "@eaDir", "empty"])
def test_folders_of_systems_are_no_classes(tmp_path, name):
    two_classes(tmp_path)
    (tmp_path / name).mkdir()
    if name != "empty":
        write(tmp_path / name / "0.png", png(picture()))
        write(tmp_path / "cat" / name / "0.png", png(picture()))
    d = load("folder", root=tmp_path)
    assert d.classes == ("cat", "dog")
    assert (len(d.train), len(d.test)) == (10, 2)
    assert "cat 5 + 1, dog 5 + 1; left: " in d.read
    assert ("1 folders without images" if name == "empty" else "2 hidden folders") in d.read


def test_hidden_files_are_no_images_and_others_are_said(tmp_path):
    two_classes(tmp_path)
    write(tmp_path / "cat" / "._0.png", b"\0\5\x16\7" + bytes(100))
    write(tmp_path / ".DS_Store", b"x")
    write(tmp_path / "cat" / "9.heic", b"x")
    write(tmp_path / "loose.png", png(picture()))
    d = load("folder", root=tmp_path)
    assert len(d.train) == 10
    for said in ("2 hidden files", "1 files of another kind (.heic)", "1 images in no class's folder"):
        assert said in d.read


def test_images_in_folders_inside_a_class_are_its_own(tmp_path):
    two_classes(tmp_path)
    gray_folder(tmp_path / "cat", {"sub": [f"{i}.png" for i in range(4)]})
    d = load("folder", root=tmp_path)
    assert len(d.train) + len(d.test) == 16
    assert d.train_labels.tolist().count(0) + d.test_labels.tolist().count(0) == 10
    assert "4 of them lie in folders inside a class's" in d.read


def test_parts_and_wrappers_are_not_taken_for_classes(tmp_path):
    two_classes(tmp_path / "a" / "pets")
    with pytest.raises(ValueError, match=r"if these are the classes, the root is .*pets"):
        load("folder", root=tmp_path / "a")
    two_classes(tmp_path / "b" / "training")
    two_classes(tmp_path / "b" / "validation")
    with pytest.raises(ValueError, match=r"training and validation in .* are no classes, by their names"):
        load("folder", root=tmp_path / "b")
    two_classes(tmp_path / "c" / "train")
    two_classes(tmp_path / "c" / "test", 1)
    two_classes(tmp_path / "c" / "val")
    assert "left: 1 other folder (val)" in load("folder", root=tmp_path / "c").read
    two_classes(tmp_path / "d", 4)
    with pytest.raises(ValueError, match="no test images: every fifth of a class, by name, is held out"):
        load("folder", root=tmp_path / "d")


def shades(tmp_path, save) -> torch.Tensor:
    """The levels of five equal images, as they are read, and what is said of them."""
    for i in range(5):
        (tmp_path / "a").mkdir(exist_ok=True)
        save(tmp_path / "a" / f"{i}.png")
    d = load("folder", root=tmp_path)
    return d.train[0].permute(1, 2, 0), d.read


def test_sixteen_bits_keep_their_levels_and_unknown_ranges_are_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
    levels, said = shades(tmp_path, image.fromarray(ramp).save)
    assert levels[0, :, 1].tolist() == list(range(256))
    assert "5 with 16 bits, brought to 8" in said
    for x in (ramp.astype(np.float32) / 65535, ramp.astype(np.int32)):
        with pytest.raises(ValueError, match=r"0\.png is not a readable image: .*nobody says: save it with 8 bits"):
            shades(tmp_path, lambda path, x=x: image.fromarray(x).save(path, "TIFF"))


def test_sixteen_bits_of_a_color_are_said(tmp_path):
    pytest.importorskip("PIL.Image")
    levels = (np.arange(6 * 9 * 3) * 400).astype(">u2").reshape(6, 9, 3)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in levels)))
    png = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    found, said = shades(tmp_path, lambda path: path.write_bytes(png))
    assert abs(found.numpy() - levels / 257).max() <= 1
    assert "5 with 16 bits, brought to 8" in said


def test_images_are_upright_and_transparency_is_said(tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = picture((6, 9, 3))
    exif = image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    levels, said = shades(tmp_path, lambda path: image.fromarray(x).save(path, exif=exif))
    assert np.array_equal(levels, np.rot90(x, -1))
    assert "5 turned upright by EXIF" in said
    exif[0x0112] = 99  # means nothing
    levels, said = shades(tmp_path, lambda path: image.fromarray(x).save(path, exif=exif))
    assert np.array_equal(levels, x)
    assert "EXIF" not in said
    levels, said = shades(tmp_path, image.fromarray(picture((6, 9, 4))).save)
    assert levels.shape == (6, 9, 3)
    assert "5 with transparency, which is left" in said
    pages = [image.fromarray(picture((6, 9, 3))) for _ in range(3)]
    with pytest.raises(ValueError, match="it has 3 frames or pages"):
        shades(tmp_path, lambda path: pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:]))


def test_folder_problems_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither class folders nor images"):
        load("folder", root=tmp_path)
    write(tmp_path / "train" / "cat" / "1.png", png(picture())[:100])
    with pytest.raises(FileNotFoundError, match="neither test nor val"):
        load("folder", root=tmp_path)
    write(tmp_path / "val" / "cow" / "1.png", png(picture()))
    with pytest.raises(ValueError, match="cow"):
        load("folder", root=tmp_path)
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "cat")
    with pytest.raises(ValueError, match=r"train.cat.1\.png is not a readable image"):
        load("folder", root=tmp_path)


def cifar_files(root: Path, name: str) -> dict[str, np.ndarray]:
    """Random files of the right sizes; returns the rows of each."""
    head, files = (1, [f"data_batch_{i}.bin" for i in range(1, 6)]) if name == "cifar10" else (2, ["train.bin"])
    rows = {f: picture((50_000 // len(files), head + 3072)) for f in files}
    rows["test_batch.bin" if name == "cifar10" else "test.bin"] = picture((10_000, head + 3072))
    for f, x in rows.items():
        x[:, head - 1] %= 10 if name == "cifar10" else 100
        write(root / f, x.tobytes())
    names = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    write(root / names, ("\n".join(f"c{i}" for i in range(10 if name == "cifar10" else 100)) + "\n\n").encode())
    return rows


@pytest.mark.parametrize(
    ("name", "directory", "first"),
    [("cifar10", "cifar-10-batches-bin", "data_batch_1.bin"), ("cifar100", "cifar-100-binary", "train.bin")],
)
def test_cifar_is_read_in_its_binary_version_alone(tmp_path, name, directory, first):
    write(tmp_path / "data_batch_1", b"pickle")
    write(tmp_path / "train", b"pickle")
    with pytest.raises(
        FileNotFoundError, match=r"pickled python version, .*: unpack cifar-100?-binary.tar.gz from https"
    ):
        load(name, root=tmp_path)
    rows, head = cifar_files(tmp_path / directory, name), 1 if name == "cifar10" else 2
    d = load(name, root=tmp_path)  # the folder itself, or the one it was unpacked in
    assert d.train.shape == (50_000, 3, 32, 32)
    assert d.test.shape == (10_000, 3, 32, 32)
    assert d.classes[:2] == ("c0", "c1")
    pixel = rows[first][7, head + 1024 + 2 * 32 + 5]  # image 7, green, row 2, column 5
    assert d.train[7, 1, 2, 5].item() == pixel
    assert d.train_labels[7].item() == rows[first][7, head - 1]
    write(tmp_path / directory / first, b"\0" * 100)
    with pytest.raises(ValueError, match=f"{first} is damaged: 100 bytes"):
        load(name, root=tmp_path / directory)


def idx(x: np.ndarray) -> bytes:
    return struct.pack(f">{1 + x.ndim}I", 0x0800 + x.ndim, *x.shape) + x.tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_are_read_packed_or_not(tmp_path, name, packed):
    x = {part: picture((n, 28, 28)) for part, n in (("train", 6), ("t10k", 3))}
    for part, images in x.items():
        for file, content in (
            (f"{part}-images-idx3-ubyte", idx(images)),
            (f"{part}-labels-idx1-ubyte", idx(np.arange(len(images), dtype=np.uint8))),
        ):
            write(tmp_path / (file + ".gz" * packed), gzip.compress(content) if packed else content)
    d = load(name, root=tmp_path)
    assert (d.train[:, 0].numpy() == x["train"]).all()
    assert (d.test[:, 0].numpy() == x["t10k"]).all()
    assert d.train_labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(d.classes) == 10
    assert load(name, root=tmp_path, size=32).train.shape == (6, 1, 32, 32)

    file = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.* is damaged"):
        load(name, root=tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"neither t10k-images-idx3-ubyte nor .* \(official page: https"):
        load(name, root=tmp_path)


def write_npz(path: Path, **changed) -> None:
    encoded = [png(np.full((24, 24, 3), i, np.uint8)) for i in range(5)]
    arrays = {
        "data": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]),
        "labels": np.array([0, 1, 0, 1, 0], np.uint8),
        "split": np.array([0, 0, 1, 0, 1]),
        "names": np.array(["cat", "dog"]),
    }
    np.savez(path, **{k: v for k, v in (arrays | changed).items() if v is not None})


def test_npz_is_split_and_labeled(tmp_path):
    write_npz(tmp_path / "a.npz")
    d = load("npz", root=tmp_path / "a.npz")
    assert d.train[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert d.test[:, 0, 0, 0].tolist() == [2, 4]
    assert d.train_labels.tolist() == [0, 1, 1]
    assert d.classes == ("cat", "dog")
    assert load("npz", root=tmp_path / "a.npz", size=8).train.shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "it has no array labels"),
        ({"labels": np.array([{}] * 5)}, r"cannot read .*a\.npz: its array labels: it is an array of object"),
        ({"labels": np.array([0, 1, 0, 2, 0])}, r"training labels outside 0\.\.1"),
        ({"labels": np.array([0])}, "offsets, labels, split and data do not fit"),
        ({"offsets": np.arange(6) * 10_000}, "offsets, labels, split and data do not fit"),
        ({"data": np.zeros(10_000, np.uint8)}, r"image 0 of .*a\.npz is not a readable image"),
        ({"split": np.zeros(5, int)}, "no test images"),
    ],
)
def test_npz_problems_are_named(tmp_path, changed, message):
    write_npz(tmp_path / "a.npz", **changed)
    with pytest.raises(ValueError, match=message):
        load("npz", root=tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\3\4 cut short"])
def test_npz_that_is_none_is_named(tmp_path, content):
    write(tmp_path / "a.npz", content)
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz: "):
        load("npz", root=tmp_path / "a.npz")


def test_an_array_under_the_name_of_an_npz_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz: "):
        load("npz", root=tmp_path / "a.npz")


@pytest.mark.skipif(not SHARED.exists(), reason="the real image sets (../shared/data) are not here")
def test_npz_reads_the_real_flowers():
    d = load("npz", root=SHARED / "flowers5_128" / "flowers5_128.npz", size=16)
    assert d.train.shape == (2934, 3, 16, 16)
    assert d.test.shape == (736, 3, 16, 16)
    assert d.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


# What is common to all


def test_every_set_is_named_as_its_function_and_bad_names_are_refused():
    assert set(DATASETS) == {"digits", "photos", "folder", "npz", "cifar10", "cifar100", "mnist", "fashion_mnist"}
    with pytest.raises(ValueError, match=r"unknown image set .* Known: digits, photos"):
        load("imagenet")


def test_a_missing_root_is_named_with_the_official_page(tmp_path):
    with pytest.raises(ValueError, match=r"root must say .*cs\.toronto\.edu"):
        load("cifar10")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load("folder", root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root must be None"):
        load("digits", root=tmp_path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    for name, package in (("digits", "scikit-learn"), ("photos", "scikit-image")):
        with pytest.raises(ModuleNotFoundError, match=rf"{name} needs {package}: pip install -e '\.\[train\]'"):
            load(name)
