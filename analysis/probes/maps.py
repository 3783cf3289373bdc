"""What people look at first: attention of the class token, similarity of patches, patches' principal components as RGB.

Arrays out, of patches: `plots.image_grids.plot_maps` draws them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..measures.inputs import Array, as_patches, unit_rows
from .backbone import Backbone


@torch.no_grad()
def class_attention(
    backbone: Backbone, images: Float[Tensor, "n c h w"], *, block: int = -1
) -> Float[Tensor, "n heads gh gw"]:
    """Attention of the class token to each patch in one block, a map a head, for normalized images.

    softmax(q_class · k / √e) over all tokens: of one head's map the sum is below 1 by what class token and registers
    take. ValueError: a backbone that is no vision transformer of ours.

    Source: Caron et al. 2021 (DINO), figure 1.
    """
    network = backbone.network
    if not hasattr(network, "attention_weights"):
        raise ValueError(f"{backbone.name} is no vision transformer of ours, so its attention is not at hand")
    grid = [side // backbone.patch for side in images.shape[2:]]
    weights = network.attention_weights(images.to(backbone.device), block=block)[:, :, 0]  # (n, heads, t)
    return weights[..., -grid[0] * grid[1] :].unflatten(-1, grid)


def patch_similarity(patches: Array, at: tuple[int, int], *, image: int = 0) -> Float[Tensor, "n gh gw"]:
    """Cosine of each patch (n, gh, gw, d) with the one in row and column `at` of one of the images; in [−1, 1].

    ValueError: no such patch, a zero patch, NaN.
    """
    z = unit_rows(as_patches(patches), "patches")
    if not all(0 <= i < n for i, n in zip((image, *at), z.shape[:3], strict=True)):
        raise ValueError(f"there is no patch {tuple(at)} of image {image} among patches of shape {tuple(z.shape[:3])}")
    return z @ z[image, at[0], at[1]]


def pca_rgb(patches: Array, *, threshold: float | None = None) -> Float[Tensor, "n gh gw 3"]:
    """The first three principal components of all patches (n, gh, gw, d) as red, green and blue, each from 0 to 1.

    Components are common to the images, so that a color means one thing in all of them. Each has the sign that makes
    its score of the largest size positive, and is stretched to [0, 1]: rotated, shifted or scaled features give the
    same picture. A component without variance, as of collapsed features, is ½.
    threshold: patches that are not `foreground` are black, and the components are those of the foreground alone.

    Source: Oquab et al. 2023 (DINOv2, arXiv 2304.07193), figure 1.
    """
    z = as_patches(patches).double()
    inside = torch.ones(z.shape[:3], dtype=torch.bool, device=z.device)
    if threshold is not None:
        inside = foreground(z, threshold=threshold)
    rgb = z.new_zeros(*z.shape[:3], 3)
    if inside.any():
        rgb[inside] = _stretched(_scores(z[inside], 3))
    return rgb


def foreground(patches: Array, *, threshold: float = 0.5) -> Bool[Tensor, "n gh gw"]:
    """Patches (n, gh, gw, d) whose first principal component, stretched to [0, 1] over all of them, exceeds threshold.

    Its sign is the one in which the mean over the patches at the images' borders, where backgrounds are, is below the
    mean over all. Collapsed features (½ everywhere) have a foreground of all patches or of none.
    """
    z = as_patches(patches).double()
    first = _scores(z.flatten(0, 2), 1).view(z.shape[:3])
    border = torch.ones_like(first[0], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    first = -first if first[:, border].mean() > first.mean() else first
    return _stretched(first.flatten()[:, None]).view_as(first) > threshold


def _scores(z: Float[Tensor, "m d"], k: int) -> Float[Tensor, "m k"]:
    """Scores on the first k principal components, the largest of each positive; 0 where there is no such component."""
    z = z - z.mean(0)
    variance, axes = torch.linalg.eigh(z.T @ z)  # ascending
    axes = axes[:, variance > len(variance) * torch.finfo(z.dtype).eps * variance[-1]][:, -k:].flip(1)
    scores = torch.nn.functional.pad(z @ axes, (0, k - axes.shape[1]))
    extreme = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    return scores * extreme.sign()


def _stretched(x: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """Each column to [0, 1] by its least and largest entry; ½ where they are equal."""
    low, high = x.amin(0), x.amax(0)
    return torch.where(high > low, (x - low) / (high - low), 0.5)
