"""The network: a backbone (vision transformer or ConvNet) and a projection head, under the official names.

Every forward of a backbone, a head or the whole returns (output, taps): taps are the intermediate features by name, so
that instrumentation needs no hooks.
"""

import itertools
import math
import os
from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simdino.config import Model

Images = Float[Tensor, "n c h w"]
Maps = Float[Tensor, "n d gh gw"]
Tokens = Float[Tensor, "n t d"]
Masks = Bool[Tensor, "n p"] | None  # True where a patch is hidden, row by row
Output = tuple[Float[Tensor, "n d"], dict[str, Tensor]]


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tokens) -> Float[Tensor, "3 n h t e"]:
        """Compute queries, keys and values of every head."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def weights(self, x: Tokens) -> Float[Tensor, "n h t t"]:
        """Compute how much each token (row) reads from each other; rows sum to 1."""
        q, k, _ = self.split(x)
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)

    def forward(self, x: Tokens) -> Tokens:
        q, k, v = self.split(x)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # there the fused one is slow
            x = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tokens) -> Tokens:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """w3(silu(a) ⊙ b) with (a, b) = w12(x); two thirds as wide as MLP, for as many parameters (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        width = math.ceil(int(hidden * 2 / 3) / 8) * 8
        self.w12 = nn.Linear(dim, 2 * width)
        self.w3 = nn.Linear(width, dim)

    def forward(self, x: Tokens) -> Tokens:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tokens) -> Tokens:
        return x * self.gamma


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drop whole residuals, sample by sample: each is 0 with probability `rate`, else divided by 1 − rate."""
    if not rate:
        return x
    keep = 1 - rate
    return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)


def drop_path_rates(config: Model, depth: int) -> list[float]:
    """Return the rate of stochastic depth of each block.

    >>> drop_path_rates(Model(drop_path=0.2), 3)
    [0.0, 0.1, 0.2]
    """
    first = 0.0 if config.drop_path_rule == "linear" else config.drop_path
    return np.linspace(first, config.drop_path, depth).tolist()


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale and stochastic depth."""

    def __init__(self, config: Model, rate: float):
        super().__init__()
        dim, mlp = config.dim, SwiGLU if config.mlp == "swiglu" else MLP
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.heads)
        self.ls1 = LayerScale(dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp(dim, int(dim * config.mlp_ratio))
        self.ls2 = LayerScale(dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.rate = rate

    def forward(self, x: Tokens) -> Tokens:
        rate = self.rate if self.training else 0.0
        x = x + drop_path(self.ls1(self.attn(self.norm1(x))), rate)
        return x + drop_path(self.ls2(self.mlp(self.norm2(x))), rate)


class ChannelsLastGELU(nn.Module):
    """GELU of maps whose channels lie last in memory, as of a contiguous tensor: 1.4 to 2.4 times as fast on a CPU."""

    def forward(self, x: Images) -> Maps:
        return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def patch_embed(config: Model, channels: int) -> nn.Sequential:
    """Build what turns images into patch tokens (n, d, gh, gw): one strided convolution, or a stack of stride 2.

    The one convolution is the official stem. The stack learns faster on small images; it has no normalization over
    the batch, which alone would keep features apart and hide collapse.

    Raises:
        ValueError: a stack for a patch that is no power of two.
    """
    if config.stem == "patch":
        return nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, config.dim, config.patch, config.patch)))
    depth = int(math.log2(config.patch))
    if 2**depth != config.patch:
        raise ValueError(f"model.stem 'conv' needs a model.patch that is a power of two, not {config.patch}")
    widths = [channels] + [config.dim >> (depth - 1 - i) for i in range(depth)]
    layers = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Conv2d(i, o, 3, 2, 1), nn.GroupNorm(1, o), ChannelsLastGELU()]
    stack = nn.Sequential(OrderedDict(proj=nn.Sequential(*layers[:-1])))
    return stack.to(memory_format=torch.channels_last)  # in which a CPU is 1.3 times as fast


def masked_stem(stem: nn.Module, x: Images, masks: Masks, token: Tensor | None, patch: int) -> Maps:
    """Apply a stem and put the mask token at the masked patches.

    Their pixels go in as 0, so that a stem whose windows overlap carries nothing of them to their neighbors.

    Args:
        stem: from images to maps.
        x: images (n, c, h, w).
        masks: True where a patch is hidden (n, p), or None.
        token: the mask token (1, d).
        patch: side of a patch in pixels.

    Raises:
        ValueError: masks without a token, or of another number of patches.
    """
    if masks is None:
        return stem(x)
    n, _, h, w = x.shape
    if token is None:
        raise ValueError("masks were given, but model.mask_token is False")
    if masks.shape != (n, (h // patch) * (w // patch)) or h % patch or w % patch:
        raise ValueError(f"masks {tuple(masks.shape)} are not one per patch of {n} images of {h}x{w}, patch {patch}")

    def mask(scale: int) -> Tensor:
        return masks.view(n, 1, h // patch, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    x = stem(x.masked_fill(mask(patch), 0))
    return torch.where(mask(x.shape[2] * patch // h), token[..., None, None].to(x.dtype), x)


def resized_positions(x: Tokens, gh: int, gw: int, *, offset: float = 0.0, antialias: bool = False) -> Tensor:
    """Interpolate position embeddings to another grid: bicubic, in float32 at least.

    Args:
        x: those of the class token and a square grid (1, 1 + p, d).
        gh: rows of the new grid.
        gw: its columns.
        offset: 0.1 in DINO and DINOv2, which scale by (new size + 0.1)/old size: sampling points move by a fraction.
        antialias: whether a smaller grid is low-passed.
    """
    cls, patches = x[:, :1], x[:, 1:]
    g = math.isqrt(patches.shape[1])
    if (gh, gw) == (g, g):
        return x
    size = {"scale_factor": ((gh + offset) / g, (gw + offset) / g)} if offset else {"size": (gh, gw)}
    grid = patches if patches.dtype == torch.float64 else patches.float()
    grid = grid.unflatten(1, (g, g)).permute(0, 3, 1, 2)  # (1, d, g, g)
    grid = F.interpolate(grid, **size, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([cls, grid.flatten(2).mT.to(cls.dtype)], 1)  # (1, 1 + gh·gw, d)


class ViT(nn.Module):
    """Vision transformer; `forward` gives the image feature (n, d) and the tokens of every block."""

    def __init__(self, config: Model, *, size: int, channels: int = 3):
        super().__init__()
        self.config, self.checkpointing, dim = config, False, config.dim
        self.patch_embed = patch_embed(config, channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // config.patch) ** 2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, dim)) if config.mask_token else None
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_path_rates(config, config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.apply(_initialize)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in [self.cls_token, *([self.register_tokens] if config.registers else [])]:
            nn.init.trunc_normal_(token, std=config.token_std)

    def embed(self, x: Images, masks: Masks = None) -> Tokens:
        """Compute what enters the first block: class token, registers, patches or the mask token in their place."""
        config = self.config
        x = masked_stem(self.patch_embed, x, masks, self.mask_token, config.patch)  # (n, d, gh, gw)
        n, _, *grid = x.shape
        x = torch.cat([self.cls_token.expand(n, -1, -1), x.flatten(2).mT], 1)
        x = x + resized_positions(self.pos_embed, *grid, offset=config.pos_offset, antialias=config.pos_antialias)
        if config.registers:  # after the position embedding: registers have none
            x = torch.cat([x[:, :1], self.register_tokens.expand(n, -1, -1), x[:, 1:]], 1)
        return x

    def forward(self, x: Images, masks: Masks = None) -> Output:
        x, taps = self.embed(x, masks), {}
        for i, block in enumerate(self.blocks):
            saving = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if saving else block(x)  # (n, 1 + registers + gh·gw, d)
            taps[f"block{i}"] = x
        tokens = taps["tokens"] = self.norm(x)
        return self.image_feature(tokens), taps

    def patch_tokens(self, tokens: Tokens) -> Float[Tensor, "n p d"]:
        """Return the tokens without class token and registers."""
        return tokens[:, 1 + self.config.registers :]

    def image_feature(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Return one vector per image: the class token, or the mean of the patch tokens."""
        return tokens[:, 0] if self.config.pool == "cls" else self.patch_tokens(tokens).mean(1)

    def attention_weights(self, x: Images, *, block: int = -1) -> Float[Tensor, "n heads t t"]:
        """Compute the attention of one block; row 0 is where the class token looks."""
        x, block = self.embed(x), range(len(self.blocks))[block]
        for earlier in self.blocks[:block]:
            x = earlier(x)
        return self.blocks[block].attn.weights(self.blocks[block].norm1(x))


class ConvBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions; halves the grid where the width changes."""

    def __init__(self, width: int, out: int, *, rate: float):
        super().__init__()
        stride, self.rate = 1 if width == out else 2, rate
        first = [nn.GroupNorm(1, width), nn.GELU(), nn.Conv2d(width, out, 3, stride, 1)]
        self.residual = nn.Sequential(*first, nn.GroupNorm(1, out), nn.GELU(), nn.Conv2d(out, out, 3, 1, 1))
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1, stride)

    def forward(self, x: Images) -> Maps:
        return self.shortcut(x) + drop_path(self.residual(x), self.rate if self.training else 0.0)


class ConvNet(nn.Module):
    """Small residual network that behaves as a ViT: three stages, which end in one token of width `dim` per patch.

    Each image is normalized by itself: batch normalization alone would keep features apart and hide collapse.
    """

    def __init__(self, config: Model, *, channels: int = 3):
        super().__init__()
        if config.patch % 4 or config.dim % 4 or config.pool == "cls" or config.registers:
            raise ValueError("a convnet needs patch and dim in multiples of 4, pool 'mean' and no registers")
        self.config, width = config, config.dim // 4
        self.stem = nn.Conv2d(channels, width, 3, config.patch // 4, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if config.mask_token else None
        widths = [width] * (1 + config.depth) + [2 * width] * config.depth + [4 * width] * config.depth
        pairs = zip(itertools.pairwise(widths), drop_path_rates(config, 3 * config.depth), strict=True)
        self.blocks = nn.ModuleList(ConvBlock(i, o, rate=rate) for (i, o), rate in pairs)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def forward(self, x: Images, masks: Masks = None) -> Output:
        x = masked_stem(self.stem, x, masks, self.mask_token, self.config.patch)  # (n, d/4, 4·gh, 4·gw)
        taps = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            taps[f"block{i}"] = x.flatten(2).mT  # (n, 16·gh·gw, d/4), then (n, 4·gh·gw, d/2), then (n, gh·gw, d)
        tokens = taps["tokens"] = self.norm(taps[f"block{i}"])
        return self.image_feature(tokens), taps

    def patch_tokens(self, tokens: Tokens) -> Tokens:
        """Return all tokens: there is one for each patch."""
        return tokens

    def image_feature(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Return one vector per image: the mean of the tokens."""
        return tokens.mean(1)


class Head(nn.Module):
    """DINO's three-layer projection on the unit sphere; with prototypes, their scores as well.

    Prototype k is g·v/‖v‖ with g = weight_g[k], which stays 1 (DINO) or is learned (DINOv2), and v = weight_v[k].
    """

    def __init__(self, config: Model):
        super().__init__()
        layers, k = [], config.prototypes
        for i in (config.dim, config.hidden):
            norm = [nn.BatchNorm1d(config.hidden)] if config.head_norm == "batch" else []
            layers += [nn.Linear(i, config.hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(config.hidden, config.out))
        self.apply(_initialize)
        g, v = torch.ones(k, 1), nn.init.trunc_normal_(torch.empty(k, config.out), std=0.02)
        g = nn.Parameter(g, requires_grad=config.prototype_norm == "learned")
        self.last_layer = nn.ParameterDict({"weight_g": g, "weight_v": v} if k else {})

    def forward(self, x: Float[Tensor, "n i"]) -> Output:
        z = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):  # what the loss sees is float32 whatever the autocast
            z = F.normalize(z.float() if z.dtype != torch.float64 else z, dim=-1)
            if not self.last_layer:
                return z, {"head": z}
            scores = z @ (self.last_layer.weight_g * F.normalize(self.last_layer.weight_v, dim=-1)).T  # (n, K)
            return scores, {"head": z, "prototypes": scores}


class Network(nn.Module):
    """Backbone and head.

    Taps: `block0`, ... the tokens of each block; `tokens`, those of the last, normalized; `backbone`, the image
    feature; `head`; `prototypes`; and where patches have a head `patches` (n, p, d), its input.
    """

    def __init__(self, config: Model, *, size: int, channels: int = 3):
        super().__init__()
        self.config = config
        vit = config.arch == "vit"
        self.backbone = ViT(config, size=size, channels=channels) if vit else ConvNet(config, channels=channels)
        self.head = Head(config) if config.out else None
        self.patch_head = Head(config) if config.out and config.patch_head == "separate" else None

    def forward(self, x: Images, masks: Masks = None, select: Int64[Tensor, " m"] | None = None) -> Output:
        """Send the image feature through the head.

        Args:
            x: images (n, c, h, w).
            masks: the patches that are hidden from the backbone, row by row (n, p).
            select: the patches that go through `patch_head` if there is one, else through `head`, counted over all
                images: i·p + j is patch j of image i. Their outputs (m, d) are the tap `selected`.
        """
        feature, taps = self.backbone(x, masks)
        taps["backbone"] = feature
        if self.config.patch_head != "none":
            taps["patches"] = self.backbone.patch_tokens(taps["tokens"])
        if self.head is None:
            return feature, taps
        out, head_taps = self.head(feature)
        if select is not None:
            taps["selected"] = (self.patch_head or self.head)(taps["patches"].flatten(0, 1).index_select(0, select))[0]
        return out, {**taps, **head_taps}


def usable_device(device: str | torch.device | None) -> str:
    """Return the device that was asked for or, for None, cuda where there is one, each rank its own.

    Raises:
        ValueError: it cannot be used here.

    >>> usable_device("cpu")
    'cpu'
    """
    device = str(device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
