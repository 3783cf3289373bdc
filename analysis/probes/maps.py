"""Maps of patches: attention of the class token, similarity to one patch, and principal components as colors.

They are arrays, which `plots.image_grids.plot_maps` draws.
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
    """Attention of the class token to each patch in one block, a map for each head.

    softmax over all tokens of q_class · k / √e,  e the dimension of a head

    The sum of a map is below 1 by what the class token and registers take.

    Args:
        backbone: a vision transformer of ours.
        images: (n, c, h, w) normalized, as `preprocess` returns them.
        block: index of the block; −1 is the last.

    Raises:
        ValueError: a backbone that is no vision transformer of ours.

    Source: Caron et al. 2021 (DINO), figure 1.

    >>> from simdino.analysis.probes.backbone import load_backbone
    >>> from simdino.config import Model
    >>> config = Model(stem="patch", patch=4, dim=8, depth=1, heads=2, pool="cls", out=0)
    >>> backbone = load_backbone("random", config=config, device="cpu")
    >>> class_attention(backbone, torch.zeros(1, 3, 8, 12)).shape
    torch.Size([1, 2, 2, 3])
    """
    network = backbone.network
    if not hasattr(network, "attention_weights"):
        raise ValueError(f"{backbone.name} is no vision transformer of ours, so its attention is not at hand")
    grid = [side // backbone.patch for side in images.shape[2:]]
    weights = network.attention_weights(images.to(backbone.device), block=block)[:, :, 0]  # (n, heads, t)
    return weights[..., -grid[0] * grid[1] :].unflatten(-1, grid)


def patch_similarity(patches: Array, at: tuple[int, int], *, image: int = 0) -> Float[Tensor, "n gh gw"]:
    """Cosine of each patch with one patch of one of the images, in [−1, 1].

    Args:
        patches: (n, gh, gw, d) patch features.
        at: row and column of the patch that all are compared with.
        image: index of its image.

    Raises:
        ValueError: no such patch, a zero patch, NaN.

    >>> patch_similarity(torch.eye(2)[torch.tensor([[[0, 1, 1]]])], (0, 2)).tolist()
    [[[0.0, 1.0, 1.0]]]
    """
    z = unit_rows(as_patches(patches), "patches")
    if not all(0 <= i < n for i, n in zip((image, *at), z.shape[:3], strict=True)):
        raise ValueError(f"there is no patch {tuple(at)} of image {image} among patches of shape {tuple(z.shape[:3])}")
    return z @ z[image, at[0], at[1]]


def pca_rgb(patches: Array, *, threshold: float | None = None) -> Float[Tensor, "n gh gw 3"]:
    """The first three principal components of the patches of all images, as red, green and blue from 0 to 1.

    The components are common to the images, so that a color means the same in all of them. Each has the sign that makes
    its score of the largest size positive, and is stretched to [0, 1]: rotated, shifted or scaled features give the
    same picture. A component without variance, as of collapsed features, is ½.

    Args:
        patches: (n, gh, gw, d) patch features.
        threshold: of `pca_foreground`. The other patches are black, and the components are those of the foreground
            alone. None takes all patches.

    Raises:
        ValueError: NaN, or another shape.

    Source: Oquab et al. 2023 (DINOv2, arXiv 2304.07193), figure 1.

    >>> pca_rgb(torch.tensor([[[[0.0], [1.0], [4.0]]]]))[0, 0].tolist()  # one component; the others have no variance
    [[0.0, 0.5, 0.5], [0.25, 0.5, 0.5], [1.0, 0.5, 0.5]]
    """
    z = as_patches(patches).double()
    inside = torch.ones(z.shape[:3], dtype=torch.bool, device=z.device)
    if threshold is not None:
        inside = pca_foreground(z, threshold=threshold)
    rgb = z.new_zeros(*z.shape[:3], 3)
    if inside.any():
        rgb[inside] = _stretched(_scores(z[inside], 3))
    return rgb


def pca_foreground(patches: Array, *, threshold: float = 0.5) -> Bool[Tensor, "n gh gw"]:
    """Patches whose first principal component, stretched to [0, 1] over all images, exceeds a threshold.

    Its sign is such that the mean over the patches at the images' borders, where backgrounds are, is below the mean
    over all patches. Of collapsed features, which are ½ everywhere, all patches are foreground, or none.

    Args:
        patches: (n, gh, gw, d) patch features.
        threshold: between 0 and 1.

    Raises:
        ValueError: NaN, or another shape.

    Source: Oquab et al. 2023 (DINOv2, arXiv 2304.07193), figure 1.

    >>> labels = torch.zeros(1, 4, 5, dtype=torch.int64)
    >>> labels[:, 1:3, 1:3] = 1
    >>> torch.equal(pca_foreground(torch.eye(2)[labels]), labels == 1)
    True
    """
    z = as_patches(patches).double()
    first = _scores(z.flatten(0, 2), 1).view(z.shape[:3])
    border = torch.ones_like(first[0], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    first = -first if first[:, border].mean() > first.mean() else first
    return _stretched(first.flatten()[:, None]).view_as(first) > threshold


def _scores(z: Float[Tensor, "m d"], k: int) -> Float[Tensor, "m k"]:
    """Scores on the first k principal components, whose largest is positive; 0 where there is no such component."""
    z = z - z.mean(0)
    variance, axes = torch.linalg.eigh(z.T @ z)  # ascending
    axes = axes[:, variance > len(variance) * torch.finfo(z.dtype).eps * variance[-1]][:, -k:].flip(1)
    scores = torch.nn.functional.pad(z @ axes, (0, k - axes.shape[1]))
    extreme = scores.gather(0, scores.abs().argmax(0, keepdim=True))
    return scores * extreme.sign()


def _stretched(x: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """Each column stretched to [0, 1]; ½ where all of its entries are equal."""
    low, high = x.amin(0), x.amax(0)
    return torch.where(high > low, (x - low) / (high - low), 0.5)
