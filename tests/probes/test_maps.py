"""Maps: components and similarities that are known, and the attention that a network computes."""

import matplotlib
import pytest
import torch

from analysis.probes.backbone import load_backbone
from analysis.probes.maps import class_attention, patch_similarity, pca_foreground, pca_rgb
from simdino.config import Model
from tests.configurations import gaussian, rotation

matplotlib.use("agg")


# --- Similarity


def test_similarity_is_the_cosine_with_one_patch():
    patches = gaussian(2, 3, 4, 5)
    maps = patch_similarity(patches, (1, 2), image=1)
    assert maps[1, 1, 2].item() == pytest.approx(1)
    expected = torch.nn.functional.cosine_similarity(patches, patches[1, 1, 2], dim=-1)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(patch_similarity(-2 * patches.numpy(), (1, 2), image=1), maps)


# --- Principal components


def test_components_of_a_box_are_its_axes_by_length():
    """Coordinates of a 5 × 4 × 3 lattice, stretched 3:2:1, in six dimensions."""
    axes = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in (5, 4, 3)), indexing="ij")
    rgb = torch.stack(axes, -1)  # (5, 4, 3, 3)
    scales = torch.tensor([3.0, 2.0, 1.0]).double()
    patches = (rgb * scales) @ rotation(6)[:3] + 7
    found = pca_rgb(patches)
    for i in range(3):  # either end may be 1
        errors = [(found[..., i] - expected).abs().max() for expected in (rgb[..., i], 1 - rgb[..., i])]
        assert min(errors) < 1e-12


def test_the_picture_does_not_depend_on_rotation_shift_or_scale():
    patches = gaussian(2, 6, 7, 5) ** 3  # skewed: signs are well defined
    found = pca_rgb(patches)
    assert found.shape == (2, 6, 7, 3)
    assert found.amin((0, 1, 2)).tolist() == [0, 0, 0]
    assert found.amax((0, 1, 2)).tolist() == [1, 1, 1]
    torch.testing.assert_close(pca_rgb(0.1 * patches @ rotation(5) + 3), found)
    torch.testing.assert_close(pca_rgb(patches.flip(0)), found.flip(0))
    torch.testing.assert_close(pca_rgb(patches.float().numpy()), found, atol=1e-5, rtol=1e-5)


def test_a_component_without_variance_is_a_half():
    line = torch.arange(12.0).view(1, 3, 4, 1) * torch.tensor([1.0, 2, 0, 1])
    found = pca_rgb(line)
    assert {0.0, 1.0} <= set(found[..., 0].flatten().tolist())
    assert (found[..., 1:] == 0.5).all()
    assert (pca_rgb(torch.ones(2, 3, 4, 5)) == 0.5).all()
    assert pca_rgb(line[..., :2]).shape == (1, 3, 4, 3)  # fewer than three dimensions


def test_foreground_is_what_lies_inside():
    labels = torch.zeros(2, 8, 9, dtype=torch.int64)
    labels[:, 2:6, 3:7] = 1
    for features in (torch.eye(2), -torch.eye(2), torch.eye(2).flip(0)):
        patches = features[labels] + 0.01 * gaussian(2, 8, 9, 2).float()
        assert torch.equal(pca_foreground(patches), labels == 1)
        rgb = pca_rgb(patches, threshold=0.5)
        assert not rgb[labels == 0].any()
        assert rgb[labels == 1].amax(0)[0] == 1  # stretched within the foreground
    assert not pca_foreground(torch.ones(1, 3, 3, 2), threshold=0.5).any()
    assert not pca_rgb(torch.ones(1, 3, 3, 2), threshold=0.5).any()


# --- Attention


@pytest.mark.parametrize("registers", [0, 2])
def test_attention_is_what_the_class_token_reads_from_the_patches(registers):
    config = Model(stem="patch", patch=4, dim=16, depth=3, heads=2, pool="cls", out=0, registers=registers)
    backbone = load_backbone("random", config=config, device="cpu")
    images = gaussian(2, 3, 12, 20).float()
    maps = class_attention(backbone, images, block=1)
    assert maps.shape == (2, 2, 3, 5)
    network = backbone.network
    inside = network.blocks[1]
    tokens = inside.norm1(network.blocks[0](network.embed(images)))
    q, k, _ = inside.attn.split(tokens)
    weights = (q[:, :, 0, None] @ k.mT / 8**0.5).softmax(-1)[:, :, 0]  # (n, heads, t)
    torch.testing.assert_close(maps.flatten(2), weights[:, :, 1 + registers :])
    torch.testing.assert_close(maps.sum((2, 3)), 1 - weights[:, :, : 1 + registers].sum(-1))
    torch.testing.assert_close(class_attention(backbone, images), class_attention(backbone, images, block=2))


# --- Errors and pictures


def test_bad_input_is_named():
    patches = gaussian(2, 3, 4, 5)
    nan = patches.clone()
    nan[0, 0, 0, 0] = torch.nan
    for f in (pca_rgb, pca_foreground, lambda z: patch_similarity(z, (0, 0))):
        for value, message in [(nan, "patches contains NaN"), (patches[0], "patches must have shape")]:
            with pytest.raises(ValueError, match=message):
                f(value)
    for at, image in [((3, 0), 0), ((0, 4), 0), ((-1, 0), 0), ((0, 0), 2)]:
        with pytest.raises(ValueError, match="there is no patch"):
            patch_similarity(patches, at, image=image)
    with pytest.raises(ValueError, match="patches has a zero row"):
        patch_similarity(0 * patches, (0, 0))
    with pytest.raises(ValueError, match="pixels is no vision transformer of ours"):
        class_attention(load_backbone("pixels", device="cpu"), torch.zeros(1, 3, 28, 28))
