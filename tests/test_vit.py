"""Claims: the network has the official names and arithmetic; taps are returned; the head ends on the sphere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simdino.config import RECIPES, Model
from simdino.vit import Head, Network, ViT, attention

ORACLE = Path(__file__).parents[1].parent / "shared" / "oracle" / "oracle.json"
OFFICIAL = Model(stem="patch", patch=4, dim=192, depth=12, heads=3, pool="cls")


def fill(model: torch.nn.Module, seed: int, scale: float = 0.02) -> None:
    """The recorded numbers' rule for weights: one seeded draw a tensor, in the order of the sorted names."""
    rng, state = np.random.default_rng(seed), model.state_dict()
    for name in sorted(state):
        draw = torch.tensor(rng.standard_normal(tuple(state[name].shape)))
        ones = name.endswith(("norm.weight", "norm1.weight", "norm2.weight"))
        state[name] = torch.ones_like(draw) if ones else scale * draw
    model.load_state_dict(state)


@pytest.fixture(scope="module")
def oracle():
    if not ORACLE.is_file():
        pytest.skip("the numbers recorded from the official code are not on this machine")
    return json.loads(ORACLE.read_text())


def stats(x: torch.Tensor) -> list[float]:
    return [x.mean().item(), x.std().item(), *x[0].flatten()[:8].tolist()]


def test_vit_equals_the_official_one(oracle):
    record = oracle["vit"]["v1"]
    model = ViT(OFFICIAL, size=32).double().eval()
    fill(model, record["seed"])
    assert sum(p.numel() for p in model.parameters()) == record["n_params"]
    assert len(model.state_dict()) == record["n_keys"]
    images = torch.tensor(np.random.default_rng(record["seed"] + 1).standard_normal((2, 3, 32, 32)))
    feature, taps = model(images)
    assert list(taps["tokens"].shape) == record["32x32"]["tokens"]
    assert stats(feature) == pytest.approx(record["32x32"]["cls_stats"], rel=1e-9, abs=1e-11)
    assert stats(taps["tokens"][:, 1:]) == pytest.approx(record["32x32"]["patch_stats"], rel=1e-9, abs=1e-11)


def test_head_equals_the_official_one(oracle):
    record = oracle["heads"]["simdino_v1"]
    assert sorted(f"mlp.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")) == record["keys"]
    assert sorted(Head(48, hidden=32, out=16).state_dict()) == record["keys"]


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


def test_head_is_float32_and_on_the_sphere_under_autocast():
    net = Network(RECIPES["dino"].model, size=32, channels=3)
    with torch.autocast("cpu", torch.bfloat16):
        scores, taps = net(torch.randn(4, 3, 32, 32))
    assert scores.dtype == taps["head"].dtype == torch.float32
    torch.testing.assert_close(taps["head"].norm(dim=-1), torch.ones(4), atol=1e-6, rtol=0)
    assert scores.abs().max() <= 1 + 1e-6  # prototypes have norm 1, too


def test_positions_of_another_grid_interpolate_the_trained_ones():
    """A constant stays itself; a ramp stays a ramp, to the 0.05 by which torch's bicubic kernel bends it."""
    model = ViT(replace(OFFICIAL, depth=1), size=32)
    model.pos_embed.data[:, 1:] = torch.arange(8.0).repeat(8, 1).flatten()[None, :, None]  # channel 0 on: columns
    model.pos_embed.data[..., 0] = 3.0
    grid = model.positions(12, 16)[0, 1:].view(12, 16, 192)
    torch.testing.assert_close(grid[..., 0], torch.full((12, 16), 3.0))
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(grid[8, 4:12, 1], expected[4:12], atol=0.05, rtol=0)
    assert model(torch.randn(2, 3, 16, 24))[0].shape == (2, 192)


def test_written_out_attention_equals_the_fused_one():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind()
    torch.testing.assert_close((q @ k.mT / 8**0.5).softmax(-1) @ v, attention(q, k, v))
    bf16 = attention(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    torch.testing.assert_close(bf16, attention(q, k, v), atol=0.03, rtol=0.03)


def test_drop_path_keeps_the_mean_and_rests_in_evaluation():
    model = ViT(replace(OFFICIAL, depth=2, drop_path=0.5), size=32)
    x = torch.ones(4000, 1, 1)
    dropped = model.blocks[1].train().drop(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert model.blocks[1].eval().drop(x) is x


def test_mean_pooling_leaves_class_token_and_registers_out():
    model = ViT(replace(OFFICIAL, depth=1, registers=2, pool="mean"), size=32)
    tokens = torch.randn(3, 1 + 2 + 64, 192)
    torch.testing.assert_close(model.image_feature(tokens), tokens[:, 3:].mean(1))
