"""Claims: the networks have the official names and arithmetic; taps are returned; heads end on the sphere; what masks
hide is seen by nothing; no image's feature depends on the other images."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simdino.config import Model
from simdino.recipes import RECIPES
from simdino.vit import Attention, Head, Network, SwiGLU, ViT, drop_path, resized_positions

ORACLE = Path(__file__).parents[1] / "data" / "oracle.json"
OFFICIAL = Model(stem="patch", patch=4, dim=192, depth=12, heads=3, pool="cls", pos_offset=0.1)
V2 = Model(stem="patch", patch=4, dim=64, depth=4, heads=4, pool="cls", mask_token=True, layer_scale=1.0)
V2S = {
    "v2_reg4_antialias_off0": replace(V2, registers=4, pos_antialias=True),
    "v2_reg0_off0.1": replace(V2, pos_offset=0.1),
}
SMALL = Model(patch=8, dim=32, depth=2, heads=4, hidden=24, out=16, mask_token=True, patch_head="shared")
SMALLS = {
    "vit": replace(SMALL, stem="patch"),
    "vit-conv-stem": replace(SMALL, registers=3),
    "convnet": replace(SMALL, arch="convnet"),
    "convnet-4": replace(SMALL, arch="convnet", patch=4, depth=1),
}


def fill(model: torch.nn.Module, seed: int, scale: float = 0.02) -> None:
    """The recorded numbers' rule for weights: one seeded draw a tensor, in the order of the sorted names.

    Running statistics use up their draw but stay at mean 0 and variance 1.
    """
    rng, state = np.random.default_rng(seed), model.state_dict()
    for name in sorted(state):
        draw = scale * torch.tensor(rng.standard_normal(tuple(state[name].shape)))
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", ".weight_g")):
            draw = torch.ones_like(draw)
        if not re.search("running|num_batches", name):
            state[name] = 1 + draw if name.endswith(".gamma") else draw
    model.load_state_dict(state)


@pytest.fixture(scope="module")
def oracle():
    return json.loads(ORACLE.read_text())


def stats(x: torch.Tensor) -> list[float]:
    return [x.mean().item(), x.std().item(), *x[0].flatten()[:8].tolist()]


def exactly(expected: list[float]):
    return pytest.approx(expected, rel=1e-9, abs=1e-11)


def images(seed: int, size: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((2, 3, size, size)))


# --- The vision transformer


@pytest.fixture(scope="module")
def v1(oracle):
    model = ViT(OFFICIAL, size=32).double().eval()
    fill(model, oracle["vit"]["v1"]["seed"])
    return model


@pytest.mark.parametrize("size", [32, 48])
def test_vit_equals_dinos(oracle, v1, size):
    """Tokens, the position embeddings on another grid (48) and the last block's attention, in float64."""
    record = oracle["vit"]["v1"]
    expected, x = record[f"{size}x{size}"], images(record["seed"] + 1, size)
    feature, taps = v1(x)
    assert sum(p.numel() for p in v1.parameters()) == record["n_params"]
    assert len(v1.state_dict()) == record["n_keys"]
    assert list(taps["tokens"].shape) == expected["tokens"]
    assert stats(feature) == exactly(expected["cls_stats"])
    assert stats(taps["tokens"][:, 1:]) == exactly(expected["patch_stats"])
    attention = v1.attention_weights(x)
    rows = [*attention[0, :, 0, 1:5].mean(0).tolist(), attention.std().item()]
    assert rows == exactly(expected["attn"])
    positions = resized_positions(v1.pos_embed, size // 4, size // 4, offset=0.1)
    assert [*stats(positions)[:2], *positions[0, 1, :8].tolist()] == exactly(expected["pos"])


@pytest.mark.parametrize("name", V2S)
@pytest.mark.parametrize("size", [32, 48])
def test_vit_equals_dinov2s(oracle, name, size):
    """Registers, LayerScale, masks; at 48 within float32's rounding, in which DINOv2 resizes positions."""
    record = oracle["vit"][name]
    expected, near = record[f"{size}x{size}"], {"rel": 1e-9, "abs": 1e-11} if size == 32 else {"rel": 1e-5, "abs": 1e-6}
    model = ViT(V2S[name], size=32).double().eval()
    fill(model, record["seed"])
    assert sum(p.numel() for p in model.parameters()) == record["n_params"]
    assert sorted(model.state_dict())[:8] == record["keys_head"]
    x = images(record["seed"] + 1, size)
    feature, taps = model(x)
    assert stats(feature) == pytest.approx(expected["cls_stats"], **near)
    assert stats(model.patch_tokens(taps["tokens"])) == pytest.approx(expected["patch_stats"], **near)
    if expected["reg_stats"]:
        assert stats(taps["tokens"][:, 1:5]) == pytest.approx(expected["reg_stats"], **near)
    masks = torch.tensor(np.random.default_rng(64).random((2, (size // 4) ** 2)) < 0.4)
    assert masks.sum() == expected["n_masked"]
    assert stats(model(x, masks)[0]) == pytest.approx(expected["masked_cls_stats"], **near)
    c = V2S[name]
    grid = (size // 4, size // 4)
    positions = resized_positions(model.pos_embed, *grid, offset=c.pos_offset, antialias=c.pos_antialias)
    assert [*stats(positions)[:2], *positions[0, 1, :8].tolist()] == pytest.approx(expected["pos"], **near)


@pytest.mark.parametrize(
    ("config", "size", "parameters"),
    [
        (Model(stem="patch", patch=16, dim=192, depth=12, heads=3), 224, "v1 vit_tiny16"),
        (Model(stem="patch", patch=16, dim=384, depth=12, heads=6), 224, "v1 vit_small16"),
        (Model(stem="patch", patch=16, dim=768, depth=12, heads=12), 224, "v1 vit_base16"),
        (
            Model(stem="patch", patch=14, dim=384, depth=12, mask_token=True, layer_scale=1.0),
            518,
            "v2 vit_small14_518_ls",
        ),
        (replace(V2, patch=16, dim=768, depth=12, registers=4, layer_scale=0.1), 224, "simv2 vitb16_reg4_ls"),
    ],
)
def test_the_official_sizes_have_the_official_number_of_parameters(config, size, parameters):
    layouts = ORACLE.with_name("checkpoint_layouts.json")
    with torch.device("meta"):
        model = ViT(config, size=size)
    assert sum(p.numel() for p in model.parameters()) == json.loads(layouts.read_text())["n_params"][parameters]


def cubic_matrix(old: int, new: int, scale: float) -> np.ndarray:
    """Rows: what each new point takes of the old ones by cubic convolution (Keys 1981, a = -0.75), border repeated."""
    w, a = np.zeros((new, old)), -0.75
    for i in range(new):
        point = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(point)) - 1, int(np.floor(point)) + 3):
            s = abs(point - j)
            near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
            w[i, min(max(j, 0), old - 1)] += near if s <= 1 else far
    return w


@pytest.mark.parametrize(("gh", "gw"), [(4, 4), (12, 12), (8, 12)])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_resized_positions_are_cubic_convolution(gh, gw, offset):
    """On images of 16, 48 and 32x48 pixels with patches of 4; the offset moves the sampling points, no more."""
    x = torch.randn(1, 65, 5, dtype=torch.float64)
    rows, columns = (cubic_matrix(8, g, (g + offset) / 8) for g in (gh, gw))
    expected = np.einsum("ai,bj,ijd->abd", rows, columns, x[0, 1:].view(8, 8, 5).numpy())
    y = resized_positions(x, gh, gw, offset=offset)
    assert torch.equal(y[:, 0], x[:, 0])
    np.testing.assert_allclose(y[0, 1:].view(gh, gw, 5), expected, atol=1e-12)


def test_antialiased_positions_damp_what_a_smaller_grid_cannot_hold():
    """A chessboard is the highest frequency; halved, its low-passed version is nearly its mean, 0."""
    board = torch.ones(8, 8)
    board[::2, 1::2] = board[1::2, ::2] = -1
    x = torch.cat([torch.zeros(1), board.flatten()])[None, :, None]
    assert resized_positions(x, 4, 4, antialias=True).abs().max() < 0.1
    assert resized_positions(x, 3, 3).abs().max() > 0.5
    torch.testing.assert_close(resized_positions(torch.ones_like(x), 4, 4, antialias=True), torch.ones(1, 17, 1))


def test_positions_are_resized_in_float32_at_least():
    x = torch.randn(1, 17, 6)
    assert torch.equal(resized_positions(x.bfloat16(), 6, 6), resized_positions(x.bfloat16().float(), 6, 6).bfloat16())
    assert resized_positions(x, 4, 4) is x


def test_written_out_attention_equals_the_fused_one():
    layer, x = Attention(32, 4), torch.randn(3, 9, 32)
    fused = layer(x)
    v = layer.split(x)[2]
    torch.testing.assert_close(layer.proj((layer.weights(x) @ v).transpose(1, 2).flatten(2)), fused)
    torch.testing.assert_close(layer.weights(x).sum(-1), torch.ones(3, 4, 9))
    torch.testing.assert_close(layer.bfloat16()(x.bfloat16()).float(), fused, atol=0.03, rtol=0.03)


def test_attention_weights_are_those_of_the_forward_pass():
    """The named block's weights rebuild its residual from the block before."""
    model = ViT(replace(SMALLS["vit-conv-stem"], layer_scale=0.0), size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    before, block = model(x)[1]["block0"], model.blocks[1]
    v = block.attn.split(block.norm1(before))[2]
    expected = block.attn.proj((model.attention_weights(x, block=1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.attn(block.norm1(before)), expected)
    assert model.attention_weights(x, block=0).shape == (2, 4, 1 + 3 + 16, 1 + 3 + 16)
    assert torch.equal(model.attention_weights(x, block=-1), model.attention_weights(x, block=1))


@pytest.mark.parametrize(
    ("dim", "ratio", "width"), [(384, 4.0, 1024), (1536, 4.0, 4096), (64, 3.0, 128), (48, 4.0, 128)]
)
def test_swiglu_has_two_thirds_of_the_width_in_multiples_of_eight(dim, ratio, width):
    layer = SwiGLU(dim, int(dim * ratio))
    assert layer.w12.weight.shape == (2 * width, dim)
    assert layer.w3.weight.shape == (dim, width)


def test_swiglu_gates_the_second_half_by_the_first():
    layer, x = SwiGLU(16, 64).double(), torch.randn(2, 3, 16, dtype=torch.float64)
    a = x @ layer.w12.weight[:48].T + layer.w12.bias[:48]
    b = x @ layer.w12.weight[48:].T + layer.w12.bias[48:]
    expected = (a / (1 + (-a).exp()) * b) @ layer.w3.weight.T + layer.w3.bias
    torch.testing.assert_close(layer(x), expected)
    block = ViT(replace(SMALL, mlp="swiglu"), size=32).blocks[0]
    assert sorted(name for name in block.state_dict() if "mlp" in name) == [
        f"mlp.{w}.{part}" for w in ("w12", "w3") for part in ("bias", "weight")
    ]


def test_layer_scale_multiplies_each_residual():
    model = ViT(replace(SMALL, depth=1, layer_scale=0.1), size=32).eval()
    block, x = model.blocks[0], torch.randn(2, 5, 32)
    y = x + 0.1 * block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), y + 0.1 * block.mlp(block.norm2(y)))


def test_drop_path_keeps_the_mean_drops_whole_samples_and_rests_in_evaluation():
    x = torch.ones(4000, 3, 2)
    dropped = drop_path(x, 0.5)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(x))
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert drop_path(x, 0.0) is x
    for config in (SMALLS["vit"], SMALLS["convnet"]):
        net = Network(replace(config, drop_path=0.5), size=32)
        assert net.backbone.blocks[-1].rate == 0.5
        assert net.backbone.blocks[0].rate == 0.0  # linear in depth
        x = torch.randn(8, 3, 32, 32)
        assert not torch.equal(net(x)[0], net(x)[0])
        assert torch.equal(net.eval()(x)[0], net(x)[0])


def test_initialization_is_the_official_one():
    """Truncated normal of 0.02 for matrices, positions and tokens, zero for biases and the mask token."""
    torch.manual_seed(0)
    model = ViT(V2S["v2_reg4_antialias_off0"], size=32)
    for name, p in model.named_parameters():
        if re.search(r"(qkv|proj|fc1|fc2)\.weight|cls|pos|register", name) and not name.startswith("patch_embed"):
            assert p.std().item() == pytest.approx(0.02, rel=0.3), name
            assert p.abs().max() < 0.12
        elif name == "mask_token" or re.search(r"(norm|blocks).*bias", name):
            assert not p.any(), name


# --- Masks


@pytest.mark.parametrize("name", SMALLS)
def test_what_a_mask_hides_is_seen_by_nothing(name):
    """Other pixels under the mask change no token; without the mask they do."""
    torch.manual_seed(0)
    net, patch = Network(SMALLS[name], size=32).double().eval(), SMALLS[name].patch
    net.backbone.mask_token.data.normal_()
    x, side = torch.randn(3, 3, 32, 32, dtype=torch.float64), 32 // SMALLS[name].patch
    masks = torch.rand(3, side**2) < 0.4
    pixels = F.interpolate(masks.view(3, 1, side, side).double(), scale_factor=patch).bool()
    other = torch.where(pixels, torch.randn_like(x), x)
    assert not torch.equal(x, other)
    torch.testing.assert_close(net(other, masks)[1]["tokens"], net(x, masks)[1]["tokens"], rtol=0, atol=1e-12)
    assert not torch.allclose(net(other)[1]["tokens"], net(x)[1]["tokens"])
    assert torch.equal(net(x, torch.zeros_like(masks))[0], net(x)[0])
    moved = net(x, masks)[0]
    net.backbone.mask_token.data.normal_()
    assert not torch.allclose(net(x, masks)[0], moved)


@pytest.mark.parametrize("name", ["vit", "convnet"])
def test_a_mask_hides_the_patch_it_names(name):
    """Row by row: with patch (0, 1) of 4 x 4 hidden, pixels of columns 8 to 15 no longer matter, the others do."""
    net, x = Network(SMALLS[name], size=32).double().eval(), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    masks = torch.arange(16)[None] == 1
    before, inside, outside = net(x, masks)[0], x.clone(), x.clone()
    inside[..., :8, 8:16] += 1
    outside[..., 8:16, :8] += 1
    torch.testing.assert_close(net(inside, masks)[0], before)
    assert not torch.allclose(net(outside, masks)[0], before)


@pytest.mark.parametrize("name", ["vit", "convnet"])
def test_bad_masks_are_refused(name):
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"masks \(2, 15\) are not one per patch of 2 images of 32x32"):
        Network(SMALLS[name], size=32)(x, torch.zeros(2, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"model\.mask_token is False"):
        Network(replace(SMALLS[name], mask_token=False), size=32)(x, torch.zeros(2, 16, dtype=torch.bool))


# --- Heads and taps

HEADS = {
    "dino_v1": {"prototypes": 40},
    "simdino_v1": {},
    "simdino_v1_bn": {"head_norm": "batch"},
    "dinov2": {"prototypes": 40, "prototype_norm": "learned"},
    "simdinov2": {},
}


@pytest.mark.parametrize("name", HEADS)
def test_head_equals_the_official_one(oracle, name):
    record = oracle["heads"][name]
    head = Head(Model(dim=24, hidden=48, out=16, **HEADS[name])).double().eval()
    assert sorted(head.state_dict()) == record["keys"]
    fill(head, record["seed"])
    x = torch.tensor(np.random.default_rng(record["seed"] + 1).standard_normal((5, 24)))
    y, _ = head(x)
    assert list(y.shape) == record["y_shape"]
    assert [y.mean().item(), y.std().item(), *y[0, :4].tolist()] == exactly(record["y"])


def test_prototype_norms_are_one_or_learned():
    for norm in ("one", "learned"):
        head = Head(Model(prototypes=9, prototype_norm=norm))
        scores, _ = head(torch.randn(4, 96))
        scores.square().sum().backward()
        assert scores.abs().max() <= 1 + 1e-6
        assert head.last_layer.weight_v.grad.any()
        assert (head.last_layer.weight_g.grad is not None) == (norm == "learned")
        head.last_layer.weight_g.data *= 3
        torch.testing.assert_close(head(torch.ones(1, 96))[0], 3 * scores_of(head, torch.ones(1, 96)))
        head.last_layer.weight_v.data *= 7  # only the direction counts
        torch.testing.assert_close(head(torch.ones(1, 96))[0], 3 * scores_of(head, torch.ones(1, 96)))


def scores_of(head: Head, x: torch.Tensor) -> torch.Tensor:
    """Cosines of the head's features with the prototypes."""
    return F.cosine_similarity(head(x)[1]["head"][:, None], head.last_layer.weight_v[None], dim=-1)


@pytest.mark.parametrize("name", ["simdino", "dino"])
def test_taps_name_every_stage(name):
    model = replace(RECIPES[name].model, depth=2, registers=3)
    net = Network(model, size=32, channels=1)
    out, taps = net(torch.randn(5, 1, 32, 32))
    expected = {"block0", "block1", "tokens", "backbone", "head"} | ({"prototypes"} if model.prototypes else set())
    assert set(taps) == expected
    assert taps["block0"].shape == (5, 1 + 3 + 16, model.dim)
    torch.testing.assert_close(taps["head"].norm(dim=-1), torch.ones(5))
    assert out.shape == (5, model.prototypes or model.out)


@pytest.mark.parametrize("name", SMALLS)
def test_backbones_keep_one_contract(name):
    config = SMALLS[name]
    net, side = Network(config, size=32), 32 // config.patch
    out, taps = net(torch.randn(5, 3, 32, 32))
    assert [k for k in taps if k.startswith("block")] == [f"block{i}" for i in range(len(net.backbone.blocks))]
    assert taps["patches"].shape == (5, side**2, 32)
    assert torch.equal(taps["backbone"], taps["patches"].mean(1))
    assert torch.equal(taps["backbone"], net.backbone.image_feature(taps["tokens"]))
    assert out.shape == (5, 16)
    assert net(torch.randn(2, 3, 16, 24))[1]["patches"].shape == (2, side**2 * 3 // 8, 32)  # a local crop


@pytest.mark.parametrize("patch_head", ["shared", "separate"])
def test_packed_patches_go_through_the_shared_or_their_own_head(patch_head):
    net = Network(replace(SMALLS["vit"], patch_head=patch_head), size=32)
    _, taps = net(torch.randn(3, 3, 32, 32))
    packed = taps["patches"][torch.rand(3, 16) < 0.5]  # (m, d)
    z, _ = (net.patch_head or net.head)(packed)
    assert z.shape == (len(packed), 16)
    assert any(k.startswith("patch_head") for k in net.state_dict()) == (patch_head == "separate")
    assert torch.equal(net.head(packed)[0], z) == (patch_head == "shared")


def test_a_network_without_head_gives_its_feature():
    net = Network(replace(SMALLS["vit"], out=0, patch_head="none"), size=32)
    out, taps = net(torch.randn(2, 3, 32, 32))
    assert torch.equal(out, taps["backbone"])
    assert set(taps) == {"block0", "block1", "tokens", "backbone"}


def test_head_is_float32_and_on_the_sphere_under_autocast():
    net = Network(RECIPES["dino"].model, size=32, channels=3)
    with torch.autocast("cpu", torch.bfloat16):
        scores, taps = net(torch.randn(4, 3, 32, 32))
    assert scores.dtype == taps["head"].dtype == torch.float32
    torch.testing.assert_close(taps["head"].norm(dim=-1), torch.ones(4), atol=1e-6, rtol=0)
    assert scores.abs().max() <= 1 + 1e-6  # prototypes have norm 1, too


def test_mean_pooling_leaves_class_token_and_registers_out():
    model = ViT(replace(OFFICIAL, depth=1, registers=2, pool="mean"), size=32)
    tokens = torch.randn(3, 1 + 2 + 64, 192)
    torch.testing.assert_close(model.image_feature(tokens), tokens[:, 3:].mean(1))


# --- The ConvNet


@pytest.mark.parametrize("name", SMALLS)
def test_no_feature_depends_on_the_other_images(name):
    """In training too; batch normalization, in the head as DINO offers it, breaks this: it can hide collapse."""
    net, x = Network(SMALLS[name], size=32).double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x)[0][:1], net(x[:1])[0])
    batch = Network(replace(SMALLS[name], head_norm="batch"), size=32).double()
    assert not torch.allclose(batch(x)[0][:2], batch(x[:2])[0])


def test_every_parameter_of_the_convnet_learns():
    net = Network(replace(SMALLS["convnet"], patch_head="separate"), size=32)
    out, taps = net(torch.randn(4, 3, 32, 32), torch.rand(4, 16) < 0.5)
    (out.sum() + net.patch_head(taps["patches"].flatten(0, 1))[0].sum()).backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("change", [{"pool": "cls"}, {"registers": 2}, {"patch": 6}, {"dim": 30, "heads": 3}])
def test_what_a_convnet_has_not_is_refused(change):
    with pytest.raises(ValueError, match="a convnet needs patch and dim in multiples of 4, pool 'mean' and no regis"):
        Network(replace(SMALLS["convnet"], **change), size=24)
