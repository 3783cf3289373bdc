"""Claims: every official layout is read tensor by tensor, and its network described by its shapes; what we write is
read back as the same function; what does not fit is named; no file's code is run."""

import argparse
import json
import os
import re
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from simdino.augment import center_view
from simdino.config import Model
from simdino.record import record_features
from simdino.runs import read_tensors, write_tensors
from simdino.train import get_run
from simdino.vit import Network, resized_positions
from simdino.weights import load_weights, save_weights
from tests.simdino.test_train import TINY

SHARED = Path(__file__).parents[2].parent / "shared"
TINY_VIT = Model(stem="patch", patch=4, dim=192, depth=2, heads=3, pool="cls", pos_offset=0.1, hidden=24, out=16)
V2 = replace(TINY_VIT, registers=3, mask_token=True, layer_scale=0.1, pos_offset=0.0, pos_antialias=True)

# --- The official layouts, in files that hold one number a tensor


@pytest.fixture(scope="module")
def layouts():
    return json.loads((Path(__file__).parents[1] / "data" / "checkpoint_layouts.json").read_text())


def shapes(layout: dict, chunks: list | None = None) -> dict[str, list[int]]:
    """A recorded layout with its block numbers written out."""
    sizes = {k: v[:-1] if isinstance(v[-1], str) else v for k, v in layout.items()}
    numbers = [f"{c}.{i}" for c, i in chunks] if chunks else [str(i) for i in range(12)]
    written = {}
    for name, size in sizes.items():
        head, dot, tail = re.sub(r"\{c\}\.\{i\}|\{i\}", "*", name).partition("*")
        written |= {head + n + tail: size for n in numbers} if dot else {name: size}
    return written


def numbered(sizes: dict[str, list[int]], first: int = 1) -> dict[str, torch.Tensor]:
    """Tensors of these shapes, each filled with a number of its own and stored as that number."""
    return {name: torch.tensor(float(first + i)).expand(size) for i, (name, size) in enumerate(sizes.items())}


def backbones(layouts: dict) -> dict[str, dict[str, list[int]]]:
    """Every backbone layout in full; those recorded in part are completed from one of the same width."""
    v1_base = layouts["dino_v1 vit_base/16 backbone"]
    v2_small = layouts["dinov2 vits14 hub (img 518, block_chunks 0, init_values 1.0)"]
    chunks, chunked = layouts["simdinov2 chunk -> block ids"], {}
    for name, size in (v2_small | layouts["simdinov2 vits16 pos/reg/cls"]).items():
        chunked[name.replace("blocks.{i}", "blocks.{c}.{i}")] = size
    return {
        "dino s": shapes(layouts["dino_v1 vit_small/16 backbone"]),
        "dino b": shapes(v1_base),
        "dinov2 s": shapes(v2_small),
        "dinov2 s reg4": shapes(v2_small | layouts["dinov2 vits14_reg4 extra"]),
        "dinov2 b": shapes(v1_base | layouts["dinov2 vitb14 shapes"]),
        "simdinov2 s": shapes(chunked, chunks),
        "simdinov2 b": shapes(layouts["simdinov2 vitb16 (block_chunks 4, reg 4, layerscale .1)"], chunks),
    }


SMALL = Model(stem="patch", patch=16, dim=384, depth=12, heads=6, pool="cls", pos_offset=0.1, out=0)
SMALL_V2 = replace(SMALL, patch=14, mask_token=True, layer_scale=1.0)
REGISTERS = {"registers": 4, "pos_offset": 0.0, "pos_antialias": True}
EXPECTED = {
    "dino s": SMALL,
    "dino b": replace(SMALL, dim=768, heads=12),
    "dinov2 s": SMALL_V2,
    "dinov2 s reg4": replace(SMALL_V2, **REGISTERS),
    "dinov2 b": replace(SMALL_V2, dim=768, heads=12),
    "simdinov2 s": replace(SMALL_V2, patch=16, **REGISTERS),
    "simdinov2 b": replace(SMALL_V2, patch=16, dim=768, heads=12, **REGISTERS),
}


def ours(name: str) -> str:
    """The network's name of an official tensor."""
    name = re.sub(r"_orig_mod\.|module\.", "", name)
    name = re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
    name = name.replace("dino_head.", "head.").replace("ibot_head.", "patch_head.")
    return name if name.startswith(("backbone.", "head.", "patch_head.")) else f"backbone.{name}"


def check_numbers(network: torch.nn.Module, written: dict[str, torch.Tensor]) -> None:
    state = network.state_dict()
    assert {ours(name) for name in written} == state.keys()
    for name, tensor in written.items():
        low, high = state[ours(name)].aminmax()
        assert low == high == tensor.flatten()[0], name
        assert state[ours(name)].shape == tensor.shape


@pytest.mark.parametrize("name", EXPECTED)
def test_every_released_backbone_is_read_tensor_by_tensor(layouts, name, tmp_path):
    written = numbered(backbones(layouts)[name])
    torch.save(written, tmp_path / "backbone.pth")
    loaded = load_weights(tmp_path / "backbone.pth")
    assert loaded.network.config == EXPECTED[name]
    assert loaded[1:4] == ([], [], [])
    check_numbers(loaded.network, written)


def training_file(kind: str, student: dict, teacher: dict) -> dict:
    """What the official trainers save around the two networks."""

    def put(prefix: str, tensors: dict) -> dict:
        return {prefix + k: v for k, v in tensors.items()}

    if kind.startswith("dinov2"):
        model = put("student.", student) | put("teacher.", teacher) | {"dino_loss.center": torch.zeros(1, 8)}
        return {"model": model, "optimizer": {"state": {}}, "iteration": 3}
    if kind.startswith("simdinov2"):
        return {"teacher": teacher}
    compiled = "_orig_mod." if kind == "compiled" else ""
    return {
        "student": put(f"{compiled}module.", student),
        "teacher": put(compiled, teacher),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", lr=0.1, global_crops_scale=(0.4, 1.0), use_fp16=True),
        "dino_loss": OrderedDict(center=torch.zeros(1, 8)),
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }


LEARNED = {"prototype_norm": "learned", "patch_head": "shared"}
TRAINING = {  # kind of file: backbone, its head in the layouts, that head's name, and what the shapes say of it
    "plain": ("dino s", "dino_v1 head (384, 65536)", "head.", {"prototypes": 65536}),
    "compiled": ("dino b", "simdino_v1 head (768)", "head.", {}),
    "dinov2": ("dinov2 s", "dinov2 head (384, 65536, bottleneck 256)", "dino_head.", LEARNED | {"prototypes": 65536}),
    "simdinov2": ("simdinov2 b", "simdinov2 head (768, remove_last_layer)", "dino_head.", LEARNED),
}


@pytest.mark.parametrize(("kind", "branch"), [(k, b) for k in TRAINING for b in ("teacher", "student")][:-1])
def test_every_training_file_gives_the_branch_asked_for(layouts, kind, branch, tmp_path):
    backbone, head, prefix, expected = TRAINING[kind]
    sizes = {f"backbone.{k}": v for k, v in backbones(layouts)[backbone].items()}
    sizes |= {prefix + k: v for k, v in shapes(layouts[head]).items()}
    networks = {"student": numbered(sizes), "teacher": numbered(sizes, first=1000)}
    torch.save(training_file(kind, **networks), tmp_path / "checkpoint.pth")
    loaded = load_weights(tmp_path / "checkpoint.pth", branch=branch)
    assert loaded[1:4] == ([], [], [])
    assert loaded.network.config == replace(EXPECTED[backbone], hidden=2048, out=256, **expected)
    check_numbers(loaded.network, networks[branch])
    frozen = [n for n, p in loaded.network.named_parameters() if not p.requires_grad]
    assert frozen == (["head.last_layer.weight_g"] if kind == "plain" else [])


def test_a_head_with_batch_normalization_is_read_with_its_statistics(layouts, tmp_path):
    network = Network(replace(TINY_VIT, head_norm="batch", prototypes=9), size=16)
    heads = {k.removeprefix("head."): v for k, v in network.state_dict().items() if k.startswith("head.")}
    assert list(heads) == layouts["dino_v1 head use_bn"]
    network(torch.randn(8, 3, 16, 16))
    torch.save({"teacher": network.state_dict()}, tmp_path / "checkpoint.pth")
    loaded = load_weights(tmp_path / "checkpoint.pth")
    assert loaded[1:4] == ([], [], [])
    check_same(loaded.network, network)


def test_recorded_prefixes_are_among_those_above(layouts):
    known = set(Network(replace(SMALL, depth=1, out=16), size=32).state_dict())
    for names in (names for title, names in layouts.items() if re.match("v1 (student|teacher) keys", title)):
        assert {ours(name) for name in names} <= known


# --- Files of our own, and timm's names


def check_same(a: Network, b: Network, size: int = 24) -> None:
    """The same function, bit for bit, on another grid than the trained one, too."""
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        one, two = a.eval()(x)[1], b.eval()(x)[1]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


OURS = {
    "vit": TINY_VIT,
    "everything": replace(V2, mlp="swiglu", prototypes=9, prototype_norm="learned", patch_head="separate", pool="mean"),
    "conv stem, narrow heads": replace(TINY_VIT, stem="conv", heads=4, mlp_ratio=3.0),
    "convnet": replace(TINY_VIT, arch="convnet", pool="mean", mask_token=True),
    "no head": replace(V2, out=0),
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_saved_is_read_back_as_the_same_network(name, tmp_path):
    network = Network(OURS[name], size=16)
    save_weights(network, tmp_path / "network.safetensors")
    loaded = load_weights(tmp_path / "network.safetensors")
    assert loaded.network.config == network.config
    assert loaded[1:4] == ([], [], [])
    check_same(loaded.network, network)
    state = loaded.network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())


TIMM_BLOCK = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]


TIMM = [TINY_VIT, V2, replace(V2, mlp="swiglu"), replace(V2, registers=0, pos_offset=0.1, pos_antialias=False)]


@pytest.mark.parametrize("config", TIMM, ids=["plain", "registers", "swiglu", "layer scale"])
def test_timm_names_go_and_come_back_as_the_same_function(config, tmp_path):
    network, path = Network(replace(config, out=0), size=16), tmp_path / "timm.safetensors"
    save_weights(network, path, names="timm")
    written = read_tensors(path)
    layers = ["patch_embed.proj", "norm", *(f"blocks.{i}.{k}" for i in range(2) for k in TIMM_BLOCK)]
    expected = {"cls_token", "pos_embed", *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))}
    expected |= {f"blocks.{i}.ls{k}.gamma" for i in range(2) for k in (1, 2)} if config.layer_scale else set()
    assert written.keys() == expected | ({"reg_token"} if config.registers else set())
    assert written["pos_embed"].shape[1] == 16 + (config.registers == 0)
    loaded = load_weights(path)
    assert loaded[1:4] == ([], [], [])
    assert loaded.network.config.mlp == config.mlp
    check_same(loaded.network, network)


def test_timm_has_no_names_for_our_stems_and_convnet(tmp_path):
    for name in ("conv stem, narrow heads", "convnet"):
        with pytest.raises(ValueError, match=r"timm has names for a ViT with model\.stem 'patch' only"):
            save_weights(Network(OURS[name], size=16), tmp_path / "timm.safetensors", names="timm")


def test_a_runs_checkpoint_gives_the_features_that_the_run_recorded(tmp_path):
    run = get_run(replace(TINY, optim=replace(TINY.optim, steps=2)), tmp_path, progress=False)
    config = Model(**run.config["model"])
    images = center_view(run.probe["test_images"], TINY.crops.global_size, TINY.crops)
    for branch in ("teacher", "student"):
        loaded = load_weights(run.path / "checkpoint.safetensors", branch=branch, config=config)
        assert loaded[1:4] == ([], [], [])
        expected = run.snapshot(2)[f"{branch}/backbone/test"]
        torch.testing.assert_close(record_features(loaded.network, images, TINY)["backbone"], expected)
    with pytest.raises(ValueError, match="a run's checkpoint needs its config"):
        load_weights(run.path / "checkpoint.safetensors")


# --- A real network


def test_a_real_network_gives_its_reference_tokens():
    """ViT-S/14 in fp16 against ONNX Runtime in fp32, which resizes positions to a size, without DINOv2's offset."""
    folder = SHARED / "data" / "vits14_imgfocus"
    path = folder / "vits14_imgfocus_fp16.safetensors"
    if not path.is_file():
        pytest.skip("the pretrained ViT-S/14 is not on this machine")
    loaded = load_weights(path)
    assert loaded[1:4] == ([], [], [])
    assert loaded.network.config == replace(SMALL_V2, mask_token=False)
    assert loaded.network.backbone.pos_embed.shape == (1, 1 + 37**2, 384)
    loaded = load_weights(path, config=replace(loaded.network.config, pos_offset=0.0))
    x = torch.from_numpy(np.random.RandomState(0).randn(1, 3, 224, 224).astype(np.float32))
    with torch.no_grad():
        _, taps = loaded.network.eval()(x)
    expected = torch.from_numpy(np.load(folder / "reference_ort_fp32.npz")["final_norm_tokens"])
    torch.testing.assert_close(taps["tokens"], expected, rtol=0, atol=0.0061)
    assert (taps["tokens"] - expected).abs().mean() < 0.0015 < expected.abs().mean() / 1000


# --- What does not go one to one


def backbone_file(path: Path, change=lambda tensors: tensors, config: Model = TINY_VIT) -> Path:
    """A released backbone, with something changed."""
    state = Network(replace(config, out=0), size=16).backbone.state_dict()
    torch.save(change(state), path)
    return path


def test_a_size_resizes_the_positions_and_says_so(tmp_path):
    path = backbone_file(tmp_path / "backbone.pth")
    same, other = load_weights(path, size=16), load_weights(path, size=24)
    assert same.interpolated == []
    assert other.interpolated == ["backbone.pos_embed"]
    expected = resized_positions(same.network.backbone.pos_embed, 6, 6, offset=0.1)
    assert torch.equal(other.network.backbone.pos_embed, expected)
    check_same(same.network, other.network, size=24)
    with pytest.raises(ValueError, match="size 30 is not a multiple of the 4-pixel patches"):
        load_weights(path, size=30)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    def change(state):
        state = {f"module.{k}": v for k, v in state.items()}
        return state | {"module.head.weight": torch.zeros(10, 192), "module.head.bias": torch.zeros(10)}

    loaded = load_weights(backbone_file(tmp_path / "backbone.pth", change))
    assert loaded.missing == []
    assert loaded.unexpected == ["module.head.weight", "module.head.bias"]
    with_head = load_weights(backbone_file(tmp_path / "b.pth"), config=TINY_VIT)
    assert with_head.missing == [f"head.mlp.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")]


def test_half_precision_is_read_into_float32_and_randomness_is_left_alone(tmp_path):
    path = backbone_file(tmp_path / "backbone.pth", lambda state: {k: v.half() for k, v in state.items()})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loaded = load_weights(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}


def without(*names):
    return lambda state: {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: {"conv1.weight": torch.zeros(3), "bn1.bias": torch.zeros(2)},
            "holds no vision transformer of a known layout: it begins with conv1.weight",
        ),
        (lambda s: {}, "it begins with nothing"),
        (lambda s: [torch.zeros(3)], "begins with nothing"),
        (lambda s: {0: torch.zeros(3)}, r"begins with 0$"),
        (without("cls_token"), "computes: it has no cls_token; it begins with pos_embed"),
        (without("blocks.0.mlp.fc1.weight"), "computes: it has no blocks.0.mlp.fc1.weight"),
        (lambda s: {"student": s}, "has no teacher, only a student"),
        (lambda s: s | {"pos_embed": torch.zeros(1, 16, 192)[:, :12]}, r"\(1, 12, 192\) of .* are of no square image"),
        (lambda s: s | {"pos_embed": torch.zeros(17, 192)}, "are of no square image"),
        (lambda s: s | {"norm.bias": torch.zeros(3)}, r"norm.bias in .* has shape \(3,\) where \(192,\) is expected"),
    ],
)
def test_a_file_without_such_a_network_is_refused(change, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_weights(backbone_file(tmp_path / "backbone.pth", change))
    assert "\n" not in str(caught.value)


def test_heads_that_are_not_64_wide_need_a_description(tmp_path):
    config = replace(TINY_VIT, dim=96, heads=3, out=0)
    path = backbone_file(tmp_path / "backbone.pth", config=config)
    with pytest.raises(ValueError, match=r"number of heads of .* does not follow from its width 96: give its config"):
        load_weights(path)
    assert load_weights(path, config=config)[1:4] == ([], [], [])


def test_a_description_that_is_not_understood_is_refused(tmp_path):
    tensors = Network(TINY_VIT, size=16).state_dict()
    for number, text in enumerate(('{"depht": 3}', "{", "[1]")):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, tensors, {"model": text})
        with pytest.raises(ValueError, match="describes its network in a way that is not understood"):
            load_weights(path)


# --- No code is run


class Trap:
    """What a hostile file holds: unpickled, it would make a directory."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"args": argparse.Namespace(lr=t)}, lambda t: {"teacher": t}])
@pytest.mark.parametrize("new", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(wrap, new, tmp_path):
    path, sprung = tmp_path / "checkpoint.pth", tmp_path / "sprung"
    torch.save(wrap(Trap(sprung)), path, _use_new_zipfile_serialization=new)
    content = zipfile.ZipFile(path).read("checkpoint/data.pkl") if new else path.read_bytes()
    assert b"mkdir" in content
    with pytest.raises(ValueError, match=r"holds \S*mkdir, not only tensors, and nothing in it was run: save its tensors"):
        load_weights(path)
    assert not sprung.exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_damaged_or_missing_file_is_named(tmp_path):
    whole = backbone_file(tmp_path / "whole.pth").read_bytes()
    for name, content in {
        "cut.pth": whole[:-200],
        "text.pth": b"hello",
        "empty.pt": b"",
        "x.safetensors": b"1",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read .*{name}") as caught:
            load_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("nothing.pth", "nothing.safetensors"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            load_weights(str(tmp_path / name))


def test_files_are_plain_safetensors_that_anyone_can_read(tmp_path):
    save_weights(Network(V2, size=16), tmp_path / "network.safetensors")
    assert "backbone.blocks.1.ls2.gamma" in safetensors.torch.load_file(tmp_path / "network.safetensors")
