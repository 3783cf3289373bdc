"""Backbones: ours by blocks, a run's recorded features, a real network, baselines, timm's interface, bad input."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from analysis.probes.backbone import (
    Backbone,
    Features,
    extract_features,
    image_features,
    load_backbone,
    load_backbones,
    read_config,
    resize_and_crop,
)
from simdino.augment import center_view, grayscale
from simdino.config import Crops, Model
from simdino.train import get_run
from simdino.vit import Network
from simdino.weights import save_weights
from simdino.whole_files import write_tensors
from tests.simdino.test_train import TINY

VITS = Path(__file__).parents[2].parent / "shared" / "data" / "vits14_imgfocus"
VIT = Model(stem="patch", patch=4, dim=64, depth=3, heads=1, pool="cls", registers=2, out=0)
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (Crops.mean, Crops.std))


def photos(n: int = 3, h: int = 16, w: int = 24, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, h, w), generator=generator, dtype=torch.uint8)


def saved(path: Path, config: Model = VIT, channels: int = 3) -> tuple[Path, Network]:
    torch.manual_seed(1)
    network = Network(config, size=16, channels=channels).eval()
    save_weights(network, path)
    return path, network


def same(batch: Features, other: Features) -> None:
    for x, y in zip(batch, other, strict=True):
        torch.testing.assert_close(x, y)


# --- Networks of ours


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("block", [-1, 2, 1, -3])
def test_a_block_is_read_after_the_final_norm_on_a_grid_of_any_shape(tmp_path, pool, block):
    path, network = saved(tmp_path / "tiny.safetensors", replace(VIT, pool=pool))
    images = photos()
    backbone = load_backbone(path, block=block)
    assert (backbone.name, backbone.patch, backbone.channels) == ("tiny", 4, 3)
    out = extract_features(backbone, images)
    _, taps = network((images / 255 - MEAN) / STD)
    tokens = network.backbone.norm(taps[f"block{block % 3}"])
    patches = tokens[:, 3:].unflatten(1, (4, 6))
    same(out, Features(tokens[:, 0] if pool == "cls" else patches.mean((1, 2)), patches))


def test_the_last_block_of_a_convnet_is_read_and_finer_ones_are_not(tmp_path):
    path, network = saved(
        tmp_path / "conv.safetensors", replace(VIT, arch="convnet", pool="mean", registers=0, depth=1)
    )
    images = photos()
    image, taps = network((images / 255 - MEAN) / STD)
    same(extract_features(load_backbone(path), images), Features(image, taps["tokens"].unflatten(1, (4, 6))))
    assert extract_features(load_backbone(path, block=2), images).image.shape == (3, 64)
    with pytest.raises(ValueError, match=r"block 1 of conv, a ConvNet, has finer maps than patches: 2 is the first"):
        load_backbone(path, block=1)


def test_blocks_that_are_not_there_are_refused(tmp_path):
    path, _ = saved(tmp_path / "tiny.safetensors")
    for block in (3, -4):
        with pytest.raises(ValueError, match=f"block must be between -3 and 2 for tiny, not {block}"):
            load_backbone(path, block=block)


def test_a_run_gives_the_features_that_it_recorded(tmp_path):
    run = get_run(replace(TINY, optim=replace(TINY.optim, steps=2)), tmp_path, progress=False)
    for branch in ("teacher", "student"):
        backbone = load_backbone(run.path, branch=branch)
        assert backbone.name == run.name
        found = image_features(backbone, run.probe["test_images"], size=TINY.crops.global_size)
        torch.testing.assert_close(found, run.snapshot(2)[f"{branch}/backbone/test"])


def test_a_run_without_self_distillation_has_one_network(tmp_path):
    optim = replace(TINY.optim, steps=2, teacher="student")
    run = get_run(replace(TINY, optim=optim), tmp_path, progress=False)
    found = image_features(load_backbone(run.path), run.probe["test_images"], size=TINY.crops.global_size)
    torch.testing.assert_close(found, run.snapshot(2)["student/backbone/test"])


def test_gray_networks_see_luma_and_color_networks_three_equal_channels(tmp_path):
    gray, _ = saved(tmp_path / "gray.safetensors", channels=1)
    color, _ = saved(tmp_path / "color.safetensors")
    images = photos()
    luma = (grayscale(images / 255) - MEAN.mean()) / STD.mean()
    same(extract_features(load_backbone(gray), images), load_backbone(gray)(luma))
    one = images[:, :1]
    same(extract_features(load_backbone(color), one), extract_features(load_backbone(color), one.expand(-1, 3, -1, -1)))
    assert load_backbone(gray).channels == 1


def test_a_real_network_gives_its_reference_tokens():
    """ONNX Runtime in fp32, which resizes positions to a size, without DINOv2's offset."""
    if not VITS.is_dir():
        pytest.skip("the pretrained ViT-S/14 (../shared/data) is not here")
    path = VITS / "vits14_imgfocus_fp16.safetensors"
    config = replace(load_backbone(path).network.config, pos_offset=0.0)
    x = torch.from_numpy(np.random.RandomState(0).randn(1, 3, 224, 224).astype(np.float32))
    with torch.no_grad():
        image, patches = load_backbone(path, config=config)(x)
    expected = torch.from_numpy(np.load(VITS / "reference_ort_fp32.npz")["final_norm_tokens"])
    torch.testing.assert_close(image, expected[:, 0], rtol=0, atol=0.0061)
    torch.testing.assert_close(patches.flatten(1, 2), expected[:, 1:], rtol=0, atol=0.0061)


# --- Baselines


def test_pixels_are_the_normalized_pixels_of_each_patch():
    images = photos(h=8, w=12)
    image, patches = extract_features(load_backbone("pixels", config=VIT), images)
    x = (images / 255 - MEAN) / STD
    assert patches.shape == (3, 2, 3, 48)
    for i, j in ((0, 0), (1, 2)):
        torch.testing.assert_close(patches[:, i, j], x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1))
    torch.testing.assert_close(image, x.flatten(1))


def test_pixels_of_a_large_image_are_means_of_32_a_side():
    images = photos(h=64, w=96)
    image, _ = extract_features(load_backbone("pixels", config=VIT), images)
    x = ((images / 255 - MEAN) / STD).unflatten(3, (32, 3)).unflatten(2, (32, 2)).mean((3, 5))
    torch.testing.assert_close(image, x.flatten(1))


def test_random_is_of_the_shape_asked_for_the_same_each_time_and_costs_no_randomness():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again = (load_backbone("random", config=VIT) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    same(extract_features(first, photos()), extract_features(again, photos()))
    assert first.network.config == VIT
    assert load_backbone("random").network.config.dim == 384
    assert (load_backbone("random").patch, load_backbone("pixels").patch) == (14, 14)


# --- Images in


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_batches_change_nothing(batch):
    backbone = load_backbone("random", config=VIT)
    same(extract_features(backbone, photos(5), batch=batch), extract_features(backbone, photos(5)))
    torch.testing.assert_close(
        image_features(backbone, photos(5), batch=batch), extract_features(backbone, photos(5)).image
    )
    same(extract_features(backbone, photos(5).numpy()), extract_features(backbone, photos(5)))


def test_any_function_of_images_is_a_backbone():
    seen = []

    def encode(x):
        seen.append(x)
        return Features(x.mean((2, 3)), x.permute(0, 2, 3, 1))

    mine = Backbone("mine", 1, encode, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    out = extract_features(mine, photos(), size=(4, 6))
    assert out.patches.shape == (3, 4, 6, 3)
    torch.testing.assert_close(seen[0], resize_and_crop(photos() / 255, (4, 6)))


def test_a_square_is_resized_as_the_view_of_training_does():
    images = photos(h=32, w=32)
    expected = center_view(images, 16, Crops()) * STD + MEAN
    torch.testing.assert_close(resize_and_crop(images / 255, 16), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(resize_and_crop(images / 255, (16, 16)), resize_and_crop(images / 255, 16))


def test_resizing_covers_the_size_and_keeps_the_center():
    x = torch.zeros(1, 1, 20, 60)
    x[..., 20:40] = 1  # the middle third
    assert torch.equal(resize_and_crop(x, (20, 20)), torch.ones(1, 1, 20, 20))
    assert resize_and_crop(x, (40, 60)).shape == (1, 1, 40, 60)
    assert resize_and_crop(x, None) is x
    assert resize_and_crop(x, (20, 60)) is x
    labels = torch.arange(6.0).view(1, 1, 2, 3)
    large = resize_and_crop(labels, (4, 6), mode="nearest-exact")
    assert torch.equal(large, labels.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (photos().float(), r"images must be uint8 \(n, 1 or 3, h, w\), n at least 1, not torch.float32"),
        (photos()[:, :2], r"not torch.uint8 \(3, 2, 16, 24\)"),
        (photos()[0], r"not torch.uint8 \(3, 16, 24\)"),
        (photos()[:0], r"not torch.uint8 \(0, 3, 16, 24\)"),
        (photos(h=15), "images of 15x24 are no whole number of the 4-pixel patches of random: give a size that is"),
    ],
)
def test_images_of_another_kind_are_named(images, message):
    for f in (extract_features, image_features):
        with pytest.raises(ValueError, match=message):
            f(load_backbone("random", config=VIT), images)


# --- What is asked for is not there


def test_nothing_of_that_name_and_what_would_be_needed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"vit_x is no run, no weights file, .* timm is needed: pip install"):
        load_backbone("vit_x")
    with pytest.raises(ValueError, match="is not a run directory"):
        load_backbone(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.safetensors"):
        load_backbone(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="device 'cudaa' cannot be used here"):
        load_backbone("pixels", device="cudaa")


def test_a_run_of_another_version_is_named(tmp_path):
    run = get_run(replace(TINY, optim=replace(TINY.optim, steps=2)), tmp_path, progress=False)
    text = (run.path / "config.json").read_text()
    (run.path / "config.json").write_text(text.replace('"patch":', '"patches_of":'))
    with pytest.raises(ValueError, match=r"the configuration of .* is of another version: .*patches_of"):
        load_backbone(run.path)


# --- Weights of others


def foreign(folder: Path, **config) -> Network:
    """A folder as Hugging Face has it, with the names of DINO inside, which may be."""
    torch.manual_seed(1)
    network = Network(replace(VIT, dim=192, heads=6, pos_offset=0.0, pos_antialias=True), size=16).eval()
    write_tensors(folder / "model.safetensors", network.backbone.state_dict())
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "num_attention_heads": 6, **config}))
    return network


def test_a_folder_of_hugging_face_is_read_with_its_normalization(tmp_path, monkeypatch):
    network = foreign(tmp_path / "hub")
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    assert "images are normalized by ImageNet's mean and deviation" in load_backbone(tmp_path / "hub").notes
    (tmp_path / "hub/preprocessor_config.json").write_text(json.dumps(half))
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone = load_backbone("~/hub")
    assert (backbone.name, backbone.mean, backbone.std) == ("hub", (0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(extract_features(backbone, photos()).image, network((photos() / 255 - 0.5) / 0.25)[0])
    assert "assumed: patches of 4 pixels, the first layer's kernel" in backbone.notes[-1]


def test_a_folder_s_descriptions_are_read_or_refused(tmp_path):
    foreign(tmp_path)
    about = tmp_path / "preprocessor_config.json"
    about.write_text('{"do_normalize": false, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    assert (load_backbone(tmp_path).mean, load_backbone(tmp_path).std) == ((0.0,) * 3, (1.0,) * 3)
    for text in ("{", '{"image_mean": [0.5]}', '{"image_mean": [0.5], "image_std": [0.5]}', '{"image_mean": 1}'):
        about.write_text(text)
        with pytest.raises(ValueError, match=r"cannot read .*preprocessor_config\.json"):
            load_backbone(tmp_path)
    about.unlink()
    for field, value in {"patch_size": 16, "hidden_size": 384, "num_hidden_layers": 12, "use_swiglu_ffn": True}.items():
        foreign(tmp_path, **{field: value})
        with pytest.raises(ValueError, match=f"says {field} {value}, and the tensors say"):
            load_backbone(tmp_path)


def test_a_folder_whose_config_is_that_of_no_run_is_not_called_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match=r"holds no weights, such as model\.safetensors"):
        load_backbone(tmp_path)
    for text, sentence in (
        ('{"a": 1}', r"is not a run directory: its config\.json is of something else, without a recipe"),
        ('{"recipe": "a"}', r"is not a run directory: its config\.json has no model, optim, crops"),
        ("[1]", r"cannot read .*config\.json: it is no JSON object"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            load_backbone(tmp_path)


def test_a_description_is_read_from_json_and_from_files(tmp_path):
    path = tmp_path / "config.json"
    for text, expected in (
        ('{"num_attention_heads": 6, "hidden_size": 192}', {"heads": 6}),
        ('{"model": {"heads": 6}, "optim": {}}', {"heads": 6}),
        ('{"heads": 6}', {"heads": 6}),
    ):
        path.write_text(text)
        assert read_config(str(path)) == read_config(text) == expected
    foreign(tmp_path)
    weights = tmp_path / "model.safetensors"
    assert load_backbone(weights).network.config.heads == 3
    assert load_backbones([weights, "random"], config={"heads": 6})[1].network.config.heads == 6
    for text, sentence in (("{", "cannot read the configuration"), (str(weights), "cannot read the configuration")):
        with pytest.raises(ValueError, match=sentence):
            read_config(text)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="is no JSON object, such as"):
        read_config(str(path))


# --- timm


class TimmViT(nn.Module):
    """What we use of a timm transformer: its documented attributes, and `forward_intermediates`."""

    num_prefix_tokens, pretrained_cfg = 2, {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    feature_info = [{"reduction": 4}] * 3

    def __init__(self, pool):
        super().__init__()
        self.global_pool = pool

    def forward_intermediates(self, x, indices, norm, intermediates_only, return_prefix_tokens):
        assert norm and intermediates_only and return_prefix_tokens  # noqa: PT018
        maps = nn.functional.avg_pool2d(x, 4) + indices[0]  # (n, 3, gh, gw)
        prefix = torch.stack((x.amax((2, 3)), x.amin((2, 3))), 1)  # class token, register
        return [(maps, prefix)]


class TimmConvNet(nn.Module):
    pretrained_cfg, global_pool = TimmViT.pretrained_cfg, "avg"
    feature_info = SimpleNamespace(info=[{"reduction": 2}, {"reduction": 8}])

    def forward_intermediates(self, x, indices, norm, intermediates_only):
        return [nn.functional.avg_pool2d(x, (2, 8)[indices[0]])]


@pytest.fixture
def timm(monkeypatch):
    module = ModuleType("timm")

    def create_model(name, *, pretrained, num_classes, **more):
        assert pretrained
        assert num_classes == 0
        if name == "conv" and more:
            raise TypeError("unexpected keyword argument 'dynamic_img_size'")
        models = {
            "token": lambda: TimmViT("token"),
            "avg": lambda: TimmViT("avg"),
            "conv": TimmConvNet,
            "old": nn.Identity,
        }
        if name not in models:
            raise RuntimeError(f"Unknown model ({name})\nmore lines")
        return models[name]()

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)


def test_timm_models_bring_their_normalization_patch_and_pooling(timm):
    images = photos()
    x = (images / 255 - 0.5) / 0.25
    for name, expected in (("token", x.amax((2, 3))), ("avg", x.mean((2, 3)) + 1)):
        backbone = load_backbone(name, block=1)
        assert (backbone.name, backbone.patch) == (name, 4)
        out = extract_features(backbone, images)
        torch.testing.assert_close(out.image, expected)
        torch.testing.assert_close(out.patches, nn.functional.avg_pool2d(x, 4).permute(0, 2, 3, 1) + 1)
    backbone = load_backbone("conv")
    assert backbone.patch == 8
    torch.testing.assert_close(extract_features(backbone, images).image, x.mean((2, 3)))
    assert load_backbone("conv", block=0).patch == 2


def test_what_timm_cannot_give_is_one_sentence(timm):
    with pytest.raises(
        ValueError, match=r"^nope is no run, no weights file, and timm cannot give it: Unknown model \(nope\)$"
    ):
        load_backbone("nope")
    with pytest.raises(ValueError, match="timm's old has no forward_intermediates"):
        load_backbone("old")
    with pytest.raises(ValueError, match="block must be between -2 and 1 for conv"):
        load_backbone("conv", block=2)


def test_timm_itself_gives_its_own_image_feature(monkeypatch):
    real = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = real.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True)
    monkeypatch.setattr(real, "create_model", lambda *a, **k: model)  # nothing is downloaded
    backbone, images = load_backbone("vit_tiny_patch16_224"), photos(2, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(extract_features(backbone, images).image, model((images / 255 - 0.5) / 0.5))
    assert backbone.patch == 16
