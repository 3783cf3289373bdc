"""Claims: every official layout is read tensor by tensor, and its network described by its shapes; what we write is
read back as the same function; what does not fit is named; no file's code is run."""

import argparse
import json
import re
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
from simdino.train import get_run
from simdino.vit import Network, resized_positions
from simdino.weights import load_weights, save_weights
from simdino.whole_files import read_tensors, write_tensors
from tests.simdino.peer_networks import PEERS, RECORDED, SIDES, built, computed, fill, images, shown
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
        (lambda s: {}, "it holds no tensors"),
        (lambda s: [torch.zeros(3)], "holds no tensors"),
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


# --- Networks of others


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check_peer(path: Path, shapes: dict, config: dict, tokens: dict, **more) -> None:
    """A peer's weights in each kind of file give the peer's own tokens, at each size that is recorded."""
    state, folder = fill(shapes), path / "folder"
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3}, path / "w.ckpt")
    write_tensors(path / "w.safetensors", state)
    write_tensors(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "peer"}))
    heads = {"heads": config["num_attention_heads"]} if config else {}
    for file in ("w.ckpt", "w.safetensors", "folder"):
        loaded = load_weights(path / file, config={**more, **({} if file == "folder" else heads)})
        assert loaded.missing == []
        assert [name for name in loaded.unexpected if "pooler." not in name] == []
        for side, expected in tokens.items():
            with torch.no_grad():
                found = loaded.network.eval()(images(int(side)))[1]["tokens"]
            assert relative(torch.tensor(shown(found)), torch.tensor(expected)) < 1e-5, (file, side)


TIMM_RULE = {"pos_offset": 0.0, "pos_antialias": True}  # which plain names do not tell from DINO's


@pytest.mark.parametrize("name", PEERS)
def test_networks_of_others_compute_what_their_own_classes_recorded(name, tmp_path):
    entry = json.loads(RECORDED.read_text())[name]
    check_peer(tmp_path, **entry, **(TIMM_RULE if name.startswith("timm") else {}))


@pytest.mark.parametrize("name", PEERS)
def test_networks_of_others_compute_what_their_own_classes_do_here(name, tmp_path):
    pytest.importorskip("timm" if name.startswith("timm") else "transformers")
    peer, config = built(name)
    tokens = {side: shown(computed(peer, side)) for side in SIDES}
    shapes = {k: list(v.shape) for k, v in peer.state_dict().items()}
    check_peer(tmp_path, shapes, config, tokens, **(TIMM_RULE if name.startswith("timm") else {}))


def older_names(name: str) -> str:
    """A tensor's name as transformers wrote it before version 5."""
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    for new, old in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
        name = name.replace(f".attention.{new}.", f".attention.attention.{old}.")
    return name.replace(".attention.o_proj.", ".attention.output.dense.")


@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel", "ViTModel"])
def test_older_names_of_hugging_face_give_the_same_network(name, tmp_path):
    state = fill(json.loads(RECORDED.read_text())[name]["shapes"])
    older = {older_names(k): v for k, v in state.items()}
    if name == "ViTModel":
        older = {
            k.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense."): v
            for k, v in older.items()
        }
    assert older.keys() != state.keys()
    write_tensors(tmp_path / "new.safetensors", state)
    write_tensors(tmp_path / "old.safetensors", {f"dinov2.{k}": v for k, v in older.items()})
    new, old = (load_weights(tmp_path / f"{which}.safetensors", config={"heads": 6}) for which in ("new", "old"))
    assert new.network.config == old.network.config
    assert all(torch.equal(v, old.network.state_dict()[k]) for k, v in new.network.state_dict().items())


def test_a_folder_brings_its_heads_and_norms_and_may_be_in_parts(tmp_path):
    state = fill(json.loads(RECORDED.read_text())["ViTModel"]["shapes"])
    config = {"model_type": "vit", "num_attention_heads": 2, "layer_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = list(state)
    for number, part in enumerate((names[:9], names[9:]), 1):
        write_tensors(tmp_path / f"model-{number:05d}-of-00002.safetensors", {k: state[k] for k in part})
    loaded = load_weights(tmp_path)
    assert (loaded.network.config.heads, loaded.network.backbone.norm.eps) == (2, 1e-5)
    assert not any("heads" in line for line in loaded.assumed)
    part = (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match="has 1 of 2 parts of the weights"):
        load_weights(tmp_path)
    part.rename(tmp_path / "model-00002-of-00002.safetensors")
    save_weights(loaded.network, tmp_path / "model_again.safetensors")
    assert load_weights(tmp_path / "model_again.safetensors").network.backbone.norm.eps == 1e-5
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match="holds several files of weights"):
        load_weights(tmp_path)
    (tmp_path / "model_again.safetensors").unlink()
    with pytest.raises(ValueError, match="the activation 'quick_gelu': ours is 'gelu'"):
        load_weights(tmp_path)


BACKBONE = dict(Network(replace(TINY_VIT, out=0), size=16).backbone.state_dict())
PLACES = [  # of the network in the file: names before it, dictionaries around it
    ("model.", ["state_dict"]),  # Lightning
    ("encoder.", ["state_dict"]),
    ("_forward_module.module.", ["model"]),
    ("module._orig_mod.backbone.", ["model"]),
    ("_fsdp_wrapped_module.", []),
    ("teacher_backbone.vit.", ["state_dict"]),  # lightly
    ("_method.teacher_embedding_model.wrapped_model._model.", ["state_dict"]),
    ("momentum_backbone.", ["state_dict"]),  # solo-learn
    ("", ["model_ema"]),  # timm
    ("", ["module"]),  # DeepSpeed
    ("", ["target_encoder"]),
]


@pytest.mark.parametrize(("prefix", "around"), PLACES)
def test_a_network_is_found_wherever_it_is_in_a_file(prefix, around, tmp_path):
    state = {prefix + k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for k, v in BACKBONE.items()}
    for name in reversed(around):
        state = {name: state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    torch.save(state, tmp_path / "w.ckpt")
    loaded = load_weights(tmp_path / "w.ckpt")
    assert loaded[1:4] == ([], [], [])
    assert sorted(loaded.left) == (["epoch", "optimizer"] if around else [])
    found = loaded.network.backbone.state_dict()
    assert all(torch.equal(found[k], v) for k, v in BACKBONE.items())


def both(first: str, second: str) -> dict:
    return {first + k: v for k, v in BACKBONE.items()} | {second + k: v + 1 for k, v in BACKBONE.items()}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("backbone.", "momentum_backbone."),
        ("student_backbone.vit.", "teacher_backbone.vit."),
        ("model.", "model_ema."),
        ("online_network.", "target_network."),
    ],
)
def test_of_two_networks_the_one_that_is_meant_is_taken(first, second, tmp_path):
    torch.save({"state_dict": both(first, second)}, tmp_path / "w.ckpt")
    for branch, expected in (("student", 0), ("teacher", 1), (f"state_dict.{second}", 1)):
        loaded = load_weights(tmp_path / "w.ckpt", branch=branch)
        assert torch.equal(loaded.network.backbone.cls_token, BACKBONE["cls_token"] + expected)
        assert loaded.taken == f"state_dict.{(first, second)[expected]}".rstrip(".")
        assert loaded.left == [f"state_dict.{(second, first)[expected].split('.')[0]}"]


def test_of_two_networks_either_of_which_could_be_meant_none_is_taken(tmp_path):
    torch.save(both("image_a.", "image_b."), tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"holds several networks, image_a, image_b: say with branch \(--branch\)"):
        load_weights(tmp_path / "w.ckpt")
    assert load_weights(tmp_path / "w.ckpt", branch="image_b").taken == "image_b"
    with pytest.raises(ValueError, match="has no networks at 'image_c', but: image_a, image_b"):
        load_weights(tmp_path / "w.ckpt", branch="image_c")


def test_a_decoder_and_a_classifier_are_left_and_said(tmp_path):
    decoder = {"mask_token": torch.zeros(1, 1, 128), "decoder_pos_embed": torch.zeros(1, 17, 128)}
    decoder |= {"decoder_blocks.0.norm1.weight": torch.zeros(128), "decoder_norm.bias": torch.zeros(128)}
    torch.save({"model": BACKBONE | decoder | {"head.weight": torch.zeros(10, 192)}}, tmp_path / "mae.pth")
    loaded = load_weights(tmp_path / "mae.pth")
    assert loaded.unexpected == [*decoder, "head.weight"]
    assert not loaded.network.config.mask_token
    notes = "\n".join(loaded.notes())
    for said in ("without a place: mask_token, decoder_pos_embed", "3 heads of 64", "patches of 4 pixels", "taken: "):
        assert said in notes


@pytest.mark.parametrize("style", ["old", "parametrizations", "lightly", "solo"])
def test_prototypes_are_kept_however_they_are_named(style, tmp_path):
    network = Network(replace(TINY_VIT, prototypes=9), size=16)
    state = {f"teacher.{k}": v for k, v in network.state_dict().items()}
    new = {"last_layer.weight_g": "last_layer.parametrizations.weight.original0"}
    new |= {"last_layer.weight_v": "last_layer.parametrizations.weight.original1"}
    for old, name in new.items() if style in ("parametrizations", "lightly") else ():
        state = {k.replace(old, name): v for k, v in state.items()}
    if style == "lightly":
        state = {k.replace("teacher.", "teacher_").replace("head.mlp", "head.layers"): v for k, v in state.items()}
    if style == "solo":
        state = {k.replace("teacher.", "momentum_"): v for k, v in state.items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    loaded = load_weights(tmp_path / "w.ckpt")
    assert loaded[1:4] == ([], [], [])
    assert loaded.network.config.prototypes == 9
    check_same(loaded.network, network)


def test_what_a_head_has_beside_is_named(tmp_path):
    network = Network(replace(TINY_VIT, prototypes=9), size=16)
    more = {"backbone.masked_embed": torch.zeros(1, 192), "head.last_layer2.weight_v": torch.zeros(9, 16)}
    torch.save({"teacher": network.state_dict() | more}, tmp_path / "ibot.pth")
    assert load_weights(tmp_path / "ibot.pth").unexpected == list(more)
    odd = {k.replace("mlp.4.", "mlp.5."): v for k, v in network.state_dict().items()}
    torch.save({"teacher": odd}, tmp_path / "odd.pth")
    loaded = load_weights(tmp_path / "odd.pth")
    assert loaded.network.head is None
    assert loaded.unexpected == [k for k in odd if k.startswith("head.")]


def in_blocks(name: str, *size: int) -> dict:
    return {f"blocks.{i}.{name}": torch.zeros(size) for i in range(2)}


FOREIGN_NETWORKS = {
    "rotary positions, as in DINOv3": {"rope_embed.periods": torch.zeros(16)},
    "a norm before the first block, as in CLIP": {"norm_pre.weight": torch.zeros(192)},
    "normalized queries and keys": in_blocks("attn.q_norm.weight", 64),
    "biases of queries and values alone": in_blocks("attn.q_bias", 192),
    "talking heads and blocks of the class token, as in CaiT": in_blocks("attn.proj_l.weight", 3, 3),
    "pooling by attention, as in PE-core": {"attn_pool.latent": torch.zeros(1, 1, 192)},
    "a convolutional network before the first block, as in hybrids": {
        "patch_embed.backbone.stem.conv.weight": torch.zeros(3)
    },
    "a distillation token, as in DeiT": {"dist_token": torch.zeros(1, 1, 192)},
    "a norm after averaging": {"fc_norm.weight": torch.zeros(192)},
    "our network has no place for, blocks.0.attn.gate, blocks.1.attn.gate": in_blocks("attn.gate", 3),
}


@pytest.mark.parametrize("what", FOREIGN_NETWORKS)
def test_what_ours_does_not_compute_is_refused_by_name_with_the_way_out(what, tmp_path):
    torch.save(BACKBONE | FOREIGN_NETWORKS[what], tmp_path / "w.pth")
    with pytest.raises(ValueError, match=re.escape(what)) as caught:
        load_weights(tmp_path / "w.pth")
    assert "save its features and give them to `simdino report`, or hook the model" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight"], "rotary positions"),
        (["visual.conv1.weight", "visual.ln_pre.weight"], "as in CLIP"),
        (["conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"], "torchvision's layout"),
        (["_fsdp_wrapped_module._flat_param"], "one process's share"),
    ],
)
def test_other_layouts_are_named(names, what, tmp_path):
    torch.save({name: torch.zeros(3) for name in names}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=what):
        load_weights(tmp_path / "w.pth")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    torch.save(BACKBONE | {"cls_token": torch.full_like(BACKBONE["cls_token"], torch.nan)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"cls_token in .* contains NaN or infinite values"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["norm.bias", "blocks.1.mlp.fc1.weight", "pos_embed", "blocks.0.attn.qkv.bias"])
def test_a_network_that_lacks_a_tensor_is_refused(name, tmp_path):
    torch.save({k: v for k, v in BACKBONE.items() if k != name}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"(lacks|it has no) {re.escape(name)}"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16), (1536, 24)]
)
def test_the_number_of_heads_is_that_of_published_networks(width, heads, tmp_path):
    config = replace(TINY_VIT, dim=width, heads=heads, depth=1, mlp_ratio=0.01, out=0)
    loaded = load_weights(backbone_file(tmp_path / "w.pth", config=config))
    assert loaded.network.config.heads == heads
    assert any(line.startswith(f"{heads} heads of {width // heads}") for line in loaded.assumed)


def test_other_numbers_of_heads_are_asked_for_and_checked(tmp_path):
    config = replace(TINY_VIT, dim=384, heads=12, depth=1, mlp_ratio=0.01, out=0)
    path = backbone_file(tmp_path / "moco.pth", lambda s: {f"module.base_encoder.{k}": v for k, v in s.items()}, config)
    with pytest.raises(ValueError, match=r"number of heads of .* width 384: give its config, such as config=\{'heads'"):
        load_weights(path)
    assert load_weights(path, config={"heads": 12}).network.config.heads == 12
    for wrong, sentence in (
        ({"heads": 5}, "model.dim 384 of .* is not a multiple of model.heads 5"),
        ({"heads": "12"}, "model.heads of .* cannot be '12'"),
        ({"head": 12}, "unknown field of a network's configuration 'head'; did you mean 'heads'"),
        ({"pool": "max", "heads": 12}, "unknown model.pool 'max'"),
        ({"pos_antialias": "yes", "heads": 12}, "model.pos_antialias of .* cannot be 'yes'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_weights(path, config=wrong)


def test_files_are_plain_safetensors_that_anyone_can_read(tmp_path):
    save_weights(Network(V2, size=16), tmp_path / "network.safetensors")
    assert "backbone.blocks.1.ls2.gamma" in safetensors.torch.load_file(tmp_path / "network.safetensors")
