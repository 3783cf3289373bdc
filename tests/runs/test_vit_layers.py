"""Claims: shares of tokens are those of the pieces they were made of; attention's entropy and distance have the values
of uniform and of pointed attention; layers, gathered batch by batch, are what the whole says at once."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.files import located
from analysis.measures.collapse import mean_collapse, patch_ranks
from analysis.measures.neighbors import knn_accuracy
from analysis.measures.spectra import effective_rank, eigenvalues
from analysis.runs.vit_layers import TokenShares, attention_distance, attention_entropy, diagnose_layers, token_shares
from analysis.theory import white_noise_spectrum
from simdino.config import Model
from simdino.vit import Network
from simdino.weights import load_weights
from tests.configurations import gaussian

N, SIZE = 32, 20
TINY = Model(stem="patch", patch=4, dim=24, depth=2, heads=3, pool="cls", registers=2, out=0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Network(TINY, size=SIZE).backbone.eval()
    for parameter in network.parameters():  # so that attention is far from uniform and tokens from one another
        parameter.data.mul_(4)
    return network


@pytest.fixture(scope="module")
def images():
    return torch.randn(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# --- Shares


def pieces(common=0.0, position=0.0, image=0.0, rest=0.0, n=6, t=5, d=16):
    """Tokens (n, t, d) with exactly these mean square norms of the four parts."""
    parts = [
        torch.ones(n, t, d, dtype=torch.float64),
        gaussian(1, t, d, seed=1),
        gaussian(n, 1, d, seed=2),
        gaussian(n, t, d, seed=3),
    ]
    parts[1] -= parts[1].mean(1, keepdim=True)
    parts[2] -= parts[2].mean(0, keepdim=True)
    parts[3] -= parts[3].mean(0, keepdim=True) + parts[3].mean(1, keepdim=True) - parts[3].mean((0, 1), keepdim=True)
    sizes = [
        math.sqrt(energy) / part.square().sum(-1).mean().sqrt()
        for energy, part in zip((common, position, image, rest), parts, strict=True)
    ]
    return sum(size * part for size, part in zip(sizes, parts, strict=True))


@pytest.mark.parametrize(
    "shares",
    [(1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.1, 0.2, 0.3, 0.4)],
)
def test_shares_are_those_of_the_pieces(shares):
    for scale in (1.0, 1e3):
        found = token_shares(pieces(*shares) * scale)
        assert [value.item() for value in found] == pytest.approx(shares, abs=1e-9)


def test_shares_of_white_noise_are_what_sample_sizes_make_of_it():
    n, t = 40, 25
    found = [token_shares(gaussian(n, t, 8, seed=seed)) for seed in range(60)]
    mean = {part: np.mean([getattr(f, part).item() for f in found]) for part in TokenShares._fields}
    expected = {"common": 1 / (n * t), "position": (1 - 1 / t) / n, "image": (1 - 1 / n) / t}
    for part, value in expected.items():
        assert mean[part] == pytest.approx(value, rel=0.05 if part != "common" else 0.3)


def test_shares_do_not_move_under_rotations_and_sum_to_one():
    tokens = gaussian(6, 5, 16) + 1
    found = token_shares(tokens)
    assert sum(v.item() for v in found) == pytest.approx(1)
    turned = token_shares(tokens @ torch.linalg.qr(gaussian(16, 16, seed=4)).Q)
    assert [v.item() for v in turned] == pytest.approx([v.item() for v in found])


def test_shares_of_degenerate_tokens():
    assert [v.item() for v in token_shares(torch.zeros(2, 3, 4))] == [1, 0, 0, 0]
    assert token_shares(torch.ones(1, 1, 4)).common == 1
    assert token_shares(torch.ones(2, 3, 4, dtype=torch.bfloat16)).common == 1
    assert token_shares(np.ones((2, 3, 4), dtype=np.int64)).common == 1
    with pytest.raises(ValueError, match=r"tokens must have shape \(n, t, d\)"):
        token_shares(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tokens contains NaN"):
        token_shares(torch.full((2, 3, 4), math.nan))


# --- Attention


def test_uniform_attention_reaches_the_mean_distance_with_the_largest_entropy():
    t, grid = 7, (2, 3)  # one class token
    weights = torch.full((2, 4, t, t), 1 / t)
    at = np.array([(i, j) for i in range(2) for j in range(3)])
    distances = np.linalg.norm(at[:, None] - at, axis=-1)
    assert attention_entropy(weights) == pytest.approx(np.full((2, 4), math.log(t)), rel=1e-6)
    assert attention_distance(weights, grid) == pytest.approx(np.full((2, 4), distances.mean()), rel=1e-6)


def test_pointed_attention():
    own = torch.eye(7).expand(1, 1, 7, 7)
    assert attention_entropy(own).item() == 0
    assert attention_distance(own, (2, 3)).item() == 0
    class_token = torch.zeros(1, 1, 7, 7)
    class_token[..., 0] = 1
    assert attention_distance(class_token, (2, 3)).item() == 0  # no patch is looked at
    corner = torch.zeros(1, 1, 7, 7)
    corner[..., 1] = 0.25  # the patch in the corner, as far as patches are concerned
    corner[..., 0] = 0.75
    expected = np.mean([math.hypot(i, j) for i in range(2) for j in range(3)])
    assert attention_distance(corner, (2, 3)).item() == pytest.approx(expected)


def test_bad_attention_is_refused():
    with pytest.raises(ValueError, match=r"weights must have shape \(n, h, t, t\)"):
        attention_entropy(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"weights are of 5 tokens, fewer than the 6 of grid"):
        attention_distance(torch.ones(1, 1, 5, 5) / 5, (2, 3))


# --- Layers


def test_layers_are_what_the_tokens_say_at_once(network, images):
    table = diagnose_layers(network, images, batch=8, blocks=4)
    with torch.no_grad():
        _, taps = network(images)
        streams = [network.embed(images), taps["block0"], taps["block1"], taps["tokens"]]
    assert table.sizes["layer"] == len(streams)
    for layer, tokens in enumerate(streams):
        image, patches = F.normalize(tokens[:, 0], dim=-1), F.normalize(network.patch_tokens(tokens), dim=-1)
        for token, z in (("image", image), ("patch", patches.flatten(0, 1))):
            at = table.sel(layer=layer, token=token)
            for name, center in (("eigenvalues", False), ("eigenvalues_centered", True)):
                lam = eigenvalues(z, center=center)
                expected = (lam / lam.sum().clamp(min=1e-300)).numpy()
                if expected.sum() > 0.5 and not (layer == 0 and token == "image"):  # there the class tokens are equal
                    np.testing.assert_allclose(at[name][: len(lam)], expected, atol=1e-6)
            assert at["effective_rank"].item() == pytest.approx(effective_rank(z).item(), rel=1e-5)
            assert at["mean_collapse"].item() == pytest.approx(mean_collapse(z).item(), rel=1e-5)
            if not (layer == 0 and token == "image"):
                centered = effective_rank(z, center=True).item()
                assert at["effective_rank_centered"].item() == pytest.approx(centered, rel=1e-5)
        shares = token_shares(patches)
        np.testing.assert_allclose(table["share"].sel(layer=layer), list(shares), atol=1e-6)
        ranks = patch_ranks(patches)
        assert table["rank_within"].sel(layer=layer).item() == pytest.approx(ranks.within.item(), rel=1e-5)
    assert (table.attrs["n"], table.attrs["t"], table.attrs["d"], table.attrs["tokens"]) == (N, 25, 24, 28)


def test_the_rank_between_images_is_that_of_patch_ranks_at_all_positions(network, images):
    table = diagnose_layers(network, images, batch=8, blocks=4, positions=100)
    with torch.no_grad():
        tokens = network.patch_tokens(network(images)[1]["block1"])
    expected = patch_ranks(F.normalize(tokens, dim=-1)).between.item()
    assert table["rank_between"].sel(layer=2).item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_that_of_the_network(network, images):
    table = diagnose_layers(network, images, batch=8, blocks=4)
    assert table["attention_entropy"].sel(layer=[0, 3]).isnull().all()
    for block in (0, 1):
        with torch.no_grad():
            weights = network.attention_weights(images, block=block)
        per_image = attention_entropy(weights)
        at = table.sel(layer=block + 1)
        np.testing.assert_allclose(at["attention_entropy"], per_image.mean(0), rtol=1e-5)
        np.testing.assert_allclose(at["attention_entropy_se"], per_image.std(0) / math.sqrt(N), rtol=1e-4)
        np.testing.assert_allclose(at["attention_distance"], attention_distance(weights, (5, 5)).mean(0), rtol=1e-5)
        assert (at["attention_entropy"] < table.attrs["entropy"]).all()


def test_batches_change_nothing(network, images):
    one, two = (diagnose_layers(network, images, torch.arange(N) % 2, batch=b, blocks=4) for b in (4, 32))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-7, err_msg=name)


def test_errors_of_shares_leave_out_blocks_of_images(network, images):
    table = diagnose_layers(network, images, batch=8, blocks=4)
    with torch.no_grad():
        patches = F.normalize(network.patch_tokens(network(images)[1]["block0"]), dim=-1)
    left_out = [list(token_shares(patches[torch.arange(N) % 4 != b])) for b in range(4)]
    spread = np.std(left_out, axis=0) * math.sqrt(3)
    np.testing.assert_allclose(table["share_se"].sel(layer=1), spread, rtol=1e-4)


def test_knn_is_of_one_half_by_the_other(network, images):
    labels = torch.arange(N) % 3
    table = diagnose_layers(network, images, labels, batch=8, blocks=4)
    with torch.no_grad():
        z = network(images)[0]
    expected = knn_accuracy(z[:16], labels[:16], z[16:], labels[16:], k=16).item()
    assert table["knn"].sel(layer=3).item() == pytest.approx(expected)
    assert table["knn_se"].sel(layer=3).item() == pytest.approx(math.sqrt(expected * (1 - expected) / 16))
    assert "knn" not in diagnose_layers(network, images[:8], batch=8, blocks=4)


def test_a_class_that_the_first_half_lacks_is_a_miss(network, images):
    labels = torch.tensor([0] * 16 + [0] * 12 + [1] * 4)
    table = diagnose_layers(network, images, labels, batch=8, blocks=4)
    assert table["knn"].values == pytest.approx(np.full(4, 12 / 16))


def test_white_noise_of_the_same_size_stands_beside(network, images):
    table = diagnose_layers(network, images[:16], batch=8, blocks=4)
    noise = white_noise_spectrum(15, 24)
    np.testing.assert_allclose(table["white_noise"][:15], noise)
    assert table["white_noise"][15:].isnull().all()
    assert table.attrs["rank_noise"] == pytest.approx(effective_rank(noise).item())
    assert table.attrs["within_noise"] == pytest.approx(effective_rank(white_noise_spectrum(25, 24)).item())


def test_a_real_pretrained_network_gives_the_tokens_that_were_recorded():
    weights = located("../shared/data/vits14_imgfocus/vits14_imgfocus_fp16.safetensors")
    if weights is None:
        pytest.skip("the pretrained ViT-S/14 (../shared/data) is not here")
    config = replace(load_weights(weights).network.config, pos_offset=0.0)
    loaded = load_weights(weights, size=224, config=config)
    assert not loaded.missing + loaded.unexpected
    x = torch.from_numpy(np.random.RandomState(0).randn(1, 3, 224, 224).astype(np.float32))
    with torch.no_grad():
        tokens = loaded.network.eval().backbone(x)[1]["tokens"]
    recorded = np.load(weights.with_name("reference_ort_fp32.npz"))["final_norm_tokens"]
    assert np.abs(tokens - recorded).max() < 0.0061  # mean absolute value 1.9; the weights were rounded to fp16


def test_an_oblong_image_keeps_its_grid_and_the_mode_of_the_network(network):
    network.train()
    table = diagnose_layers(network, torch.randn(4, 3, 8, 20), batch=4, blocks=2)
    assert network.training
    network.eval()
    assert table.attrs["t"] == 10
    at = np.array([(i, j) for i in range(2) for j in range(5)])
    assert table.attrs["distance"] == pytest.approx(np.linalg.norm(at[:, None] - at, axis=-1).mean())


@pytest.mark.parametrize(("count", "options"), [(6, {}), (8, {"batch": 6}), (8, {"blocks": 1}), (0, {})])
def test_blocks_must_divide(network, images, count, options):
    with pytest.raises(ValueError, match=r"blocks must be 2 at least and divide batch"):
        diagnose_layers(network, images[:count], **{"batch": 8, "blocks": 4} | options)


def test_a_network_without_attention_is_refused(images):
    convnet = Network(Model(arch="convnet", patch=4, dim=24, out=0), size=SIZE).backbone
    with pytest.raises(ValueError, match="must be a vision transformer"):
        diagnose_layers(convnet, images, batch=8, blocks=4)


def test_labels_that_do_not_fit_are_refused(network, images):
    with pytest.raises(ValueError, match=r"labels must have shape"):
        diagnose_layers(network, images[:8], torch.zeros(3, dtype=torch.int64), batch=8, blocks=4)
