"""Images with masks from files: every layout, sizes that differ, and the sentences about what is wrong."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.probes.masks import load_masks, load_videos

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def picture(i: int, h: int = 12, w: int = 16) -> tuple[Image.Image, Image.Image]:
    """An image of one color that tells its index, and a mask with class i % 3 on the right half."""
    mask = np.zeros((h, w), np.uint8)
    mask[:, w // 2 :] = i % 3
    return Image.new("RGB", (w, h), (i, 2 * i, 3 * i)), Image.fromarray(mask)


def write(folder: Path, indices, **size) -> Path:
    for i in indices:
        image, mask = picture(i, **size)
        for kind, im in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            im.save(folder / kind / f"{i:03d}.png")
    return folder


def encoded(n: int, **more) -> dict[str, np.ndarray]:
    def packed(images):
        files = []
        for im in images:
            im.save(file := io.BytesIO(), "PNG")
            files.append(file.getvalue())
        return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])

    data, offsets = packed(picture(i)[0] for i in range(n))
    mask_data, mask_offsets = packed(picture(i)[1] for i in range(n))
    return {"data": data, "offsets": offsets, "mask_data": mask_data, "mask_offsets": mask_offsets} | more


# --- Layouts


def test_every_fifth_of_a_folder_is_held_out(tmp_path):
    found = load_masks(write(tmp_path, range(11)))
    assert found.train.shape == (9, 3, 12, 16)
    assert found.train.dtype == torch.uint8
    assert found.test[:, 2, 0, 0].tolist() == [12, 27]
    assert found.test_masks.shape == (2, 12, 16)
    assert found.test_masks[:, 0, -1].tolist() == [1, 0]
    assert found.classes == ("0", "1", "2")
    assert found.ignore is None
    assert found.things == (1, 2)
    ignoring = load_masks(tmp_path, ignore=1)
    assert (ignoring.ignore, ignoring.things) == (1, (2,))
    assert load_masks(tmp_path, ignore=2).classes == ("0", "1")


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_may_be_split(tmp_path, held_out):
    write(tmp_path / "train", (1, 2))
    write(tmp_path / held_out, (5,))
    found = load_masks(tmp_path)
    assert found.train[:, 0, 0, 0].tolist() == [1, 2]
    assert found.test[:, 0, 0, 0].tolist() == [5]


def test_an_npz_has_splits_and_names(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **encoded(6, split=np.array([0, 2, 1, 0, 2, 0]), names=np.array(["void", "b", "c"])))
    found = load_masks(path)
    assert found.train[:, 0, 0, 0].tolist() == [0, 3, 5]
    assert found.test[:, 0, 0, 0].tolist() == [1, 4]
    assert found.classes == ("void", "b", "c")
    assert found.ignore == 0
    assert found.things is None
    assert load_masks(path, ignore=2).ignore == 2


def test_videos_of_an_npz_are_ordered_by_frame(tmp_path):
    path = tmp_path / "videos.npz"
    order = {"sequence": np.array([1, 0, 1, 0, 1]), "frame": np.array([2, 1, 0, 0, 1])}
    np.savez(path, **encoded(5, names=np.array(["a", "b"]), **order))
    videos = dict(load_videos(path))
    assert [v.frames[:, 0, 0, 0].tolist() for v in videos.values()] == [[3, 1], [2, 4, 0]]
    assert videos["b"].masks[:, 0, -1].tolist() == [2, 1, 0]


def test_videos_of_folders_and_of_davis(tmp_path):
    for name in ("cow", "bee"):
        write(tmp_path / "mine" / name, range(3))
        for kind, place in (("images", "JPEGImages"), ("masks", "Annotations")):
            (tmp_path / "davis" / place / "480p").mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / name / kind).rename(tmp_path / "davis" / place / "480p" / name)
        write(tmp_path / "mine" / name, range(3))
    mine, davis = dict(load_videos(tmp_path / "mine")), dict(load_videos(tmp_path / "davis"))
    assert list(mine) == list(davis) == ["bee", "cow"]
    assert torch.equal(mine["cow"].frames, davis["cow"].frames)
    assert torch.equal(mine["cow"].masks, davis["cow"].masks)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real sets (../shared/data) are not here")
def test_real_sets():
    camvid = load_masks(SHARED / "camvid_seg/camvid_224x168.npz")
    assert (len(camvid.train), len(camvid.test), camvid.ignore) == (367, 233, 11)
    assert camvid.train_masks.unique().tolist() == list(range(12))
    coco = load_masks(SHARED / "coco200_seg/coco200_seg_224.npz")
    assert (len(coco.train), len(coco.test), coco.ignore, len(coco.classes)) == (100, 100, 0, 201)
    things = {coco.classes[i] for i in coco.things}
    assert {"person", "toothbrush"} <= things
    assert not things & {"unlabeled", "banner", "tree-merged"}
    videos = dict(load_videos(SHARED / "davis12_video/davis12_392x224.npz"))
    assert len(videos) == 12
    assert videos["dog"].frames.shape == (32, 3, 224, 392)
    assert videos["dog"].masks.unique().tolist() == [0, 1]


# --- Sizes and kinds of masks


def test_images_and_masks_are_cut_to_a_size_together(tmp_path):
    write(tmp_path / "train", (1,), h=12, w=16)
    write(tmp_path / "test", (2,), h=20, w=50)
    write(tmp_path / "train", (4,), h=12, w=18)
    with pytest.raises(ValueError, match="give a size"):
        load_masks(tmp_path)
    found = load_masks(tmp_path, size=(6, 8))
    assert found.train.shape == (2, 3, 6, 8)
    assert found.train[0].unique().tolist() == [1, 2, 3]
    assert found.test_masks[0].tolist() == [[0] * 4 + [2] * 4] * 6
    assert load_masks(tmp_path, size=10).test.shape == (1, 3, 10, 10)


def test_what_else_is_in_the_folder_is_named(tmp_path):
    write(tmp_path, range(5))
    (tmp_path / "labels").mkdir()
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / ".hidden").write_text("b")
    assert load_masks(tmp_path).read.endswith("left: labels, notes.txt")


def test_an_image_that_its_orientation_turns_is_refused_beside_a_mask(tmp_path):
    write(tmp_path, range(5), h=12, w=12)
    exif = Image.Exif()
    exif[0x0112] = 2
    image = Image.open(tmp_path / "images/001.png")
    image.load()
    image.save(tmp_path / "images/001.png", exif=exif)
    with pytest.raises(ValueError, match=r"001\.png is turned upright by EXIF, and its mask is not"):
        load_masks(tmp_path)


def test_a_mask_of_another_resolution_is_brought_to_its_image(tmp_path):
    write(tmp_path, range(5), h=12, w=16)
    picture(1, h=36, w=48)[1].save(tmp_path / "masks/001.png")
    picture(2, h=7, w=9)[1].save(tmp_path / "masks/002.png")  # 12:16 but for rounding
    found = load_masks(tmp_path)
    assert found.train_masks.shape == (4, 12, 16)
    assert found.train_masks[1].tolist() == [[0] * 8 + [1] * 8] * 12
    picture(1, h=16, w=12)[1].save(tmp_path / "masks/001.png")
    with pytest.raises(
        ValueError, match=r"the mask of .*001.png is 16x12 and does not have the aspect ratio of its 12x16 image"
    ):
        load_masks(tmp_path)


def test_palettes_bits_and_sixteen_bits_are_class_indices(tmp_path):
    write(tmp_path, range(10))
    palette = Image.fromarray(np.full((12, 16), 7, np.uint8), "P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "masks/000.png")
    Image.fromarray(np.ones((12, 16), bool)).save(tmp_path / "masks/001.png")
    Image.fromarray(np.full((12, 16), 300, np.uint16)).save(tmp_path / "masks/002.png")
    found = load_masks(tmp_path)
    assert found.train_masks[:3, 0, 0].tolist() == [7, 1, 300]
    assert len(found.classes) == 301
    assert found.train_masks.dtype == torch.int16
    Image.fromarray(np.full((12, 16), 40000, np.uint16)).save(tmp_path / "masks/002.png")
    assert load_masks(tmp_path).train_masks[2, 0, 0] == 40000


def test_255_is_no_label_where_there_are_classes_and_asked_about_where_there_are_none(tmp_path):
    write(tmp_path, range(10))
    edge = np.ones((12, 16), np.uint8)
    edge[0] = 255
    Image.fromarray(edge).save(tmp_path / "masks/001.png")
    found = load_masks(tmp_path)
    assert (found.ignore, found.classes, found.things) == (255, ("0", "1", "2"), (1, 2))
    assert "255 is taken as no label" in found.read
    asked = load_masks(tmp_path, ignore=-1)
    assert (asked.ignore, len(asked.classes)) == (None, 256)
    for i in range(10):
        Image.fromarray(np.where(edge == 1, 0, 255).astype(np.uint8)).save(tmp_path / f"masks/{i:03d}.png")
    with pytest.raises(ValueError, match=r"no values but 0 and 255: .*--ignore 255.*--ignore -1"):
        load_masks(tmp_path)
    assert load_masks(tmp_path, ignore=255).classes == ("0",)
    assert load_masks(tmp_path, ignore=-1).things[-1] == 255


def test_255_among_the_objects_of_a_video_is_refused(tmp_path):
    write(tmp_path / "cow", range(3))
    for value, fine in ((255, True), (1, False)):
        mask = np.zeros((12, 16), np.uint8)
        mask[0], mask[1] = 255, value
        for i in range(3):
            Image.fromarray(mask).save(tmp_path / f"cow/masks/{i:03d}.png")
        if fine:
            assert dict(load_videos(tmp_path))["cow"].masks.unique().tolist() == [0, 255]
        else:
            with pytest.raises(ValueError, match="objects and the value 255: write 0"):
                dict(load_videos(tmp_path))


def test_hidden_files_are_left_and_others_said(tmp_path):
    write(tmp_path, range(5))
    for kind in ("images", "masks"):
        (tmp_path / kind / "._000.png").write_bytes(b"\0\5\x16\7" + bytes(100))
        (tmp_path / kind / "notes.txt").write_text("x")
    (tmp_path / "masks/000.tif").write_bytes(b"x")
    found = load_masks(tmp_path)
    assert len(found.train) == 4
    assert "1 in" in found.read
    assert "2 in" in found.read
    assert "000.tif" in found.read
    (tmp_path / "images/000.bmp").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"images has 000.bmp and 000.png: masks belong to images by their stems"):
        load_masks(tmp_path)


def test_masks_that_are_no_indices_are_refused(tmp_path):
    write(tmp_path, range(5))
    Image.fromarray(np.full((12, 16), 2**25, np.int32)).save(tmp_path / "masks/001.png", "TIFF")
    with pytest.raises(ValueError, match=r"the mask of .*001.png has values \(I\) that are no class indices"):
        load_masks(tmp_path)


# --- Errors


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/images"):
        load_masks(tmp_path)
    write(tmp_path, range(4))
    with pytest.raises(ValueError, match="has no images to test on: every fifth, by name, is held out"):
        load_masks(tmp_path)
    write(tmp_path, range(5))
    Image.new("RGB", (16, 12)).save(tmp_path / "masks/003.png")
    with pytest.raises(ValueError, match=r"the mask of .*003.png has colors \(RGB\)"):
        load_masks(tmp_path)
    (tmp_path / "masks/003.png").unlink()
    with pytest.raises(ValueError, match=r"images/003 of .* has no partner in masks"):
        load_masks(tmp_path)
    (tmp_path / "masks/003.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"the mask of .*003.png is not a readable image"):
        load_masks(tmp_path)
    (tmp_path / "images/003.png").unlink()
    with pytest.raises(ValueError, match=r"masks/003 of .* has no partner in images"):
        load_masks(tmp_path)


def test_what_is_wrong_with_videos_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no sequences"):
        next(load_videos(tmp_path))
    for kind in ("images", "masks"):
        (tmp_path / "cow" / kind).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"the sequence cow of .* has no frames"):
        next(load_videos(tmp_path))


def test_what_is_wrong_with_an_npz_is_named(tmp_path):
    path, good = tmp_path / "set.npz", encoded(3, split=np.array([0, 1, 1]), names=np.array(["a", "b", "c"]))
    for change, message in [
        ({"split": None}, "it has no array split"),
        ({"split": np.array([0, 1])}, "is damaged: data, offsets and split do not fit together"),
        ({"mask_offsets": good["mask_offsets"] + 9}, "is damaged: mask_data, mask_offsets and split"),
        ({"names": np.array([{}], dtype=object)}, "its array names: it is an array of object"),
        ({"data": good["data"][::-1].copy()}, "image 0 of .* is not a readable image"),
        ({"split": np.array([1, 1, 1])}, "has no images to train on"),
        ({"split": np.array([0, 0, 0])}, "has no images to test on"),
        ({"split": np.array(["a", "b", "c"])}, "split must be whole numbers"),
        ({"names": np.array(["a"])}, "have the value 2, and there are 1 names of classes"),
    ]:
        np.savez(path, **{name: value for name, value in (good | change).items() if value is not None})
        with pytest.raises(ValueError, match=message):
            load_masks(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"cannot read .*array.npy: "):
        load_masks(tmp_path / "array.npy")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot read .*set.npz: "):
        load_masks(path)
