"""The network: a vision transformer and a projection head, under the official checkpoints' names.

Every forward returns (output, taps): the intermediate features by name, so that instrumentation needs no hooks.
"""

import itertools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from simdino.config import Model

Taps = dict[str, Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention `(n, heads, tokens, dim)`; written out in bf16 on a CPU: there the fused one is slow."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (n, h, t, d/h)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale and stochastic depth, per sample."""

    def __init__(self, config: Model, drop_path: float):
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.heads)
        self.ls1 = LayerScale(dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio))
        self.ls2 = LayerScale(dim, config.layer_scale) if config.layer_scale else nn.Identity()
        self.drop_path = drop_path

    def drop(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.drop(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Image to patch tokens by one strided convolution (official), or by a stack of stride-2 ones.

    The stack learns faster on small images. It has no normalisation over the batch: that alone would keep
    features apart and hide collapse.
    """

    def __init__(self, config: Model, channels: int):
        super().__init__()
        if config.stem == "patch":
            self.proj = nn.Conv2d(channels, config.dim, config.patch, config.patch)
            return
        depth = int(math.log2(config.patch))
        if 2**depth != config.patch:
            raise ValueError(f"model.stem 'conv' needs a model.patch that is a power of two, not {config.patch}")
        widths = [channels] + [config.dim >> (depth - 1 - i) for i in range(depth)]
        layers = []
        for i, o in itertools.pairwise(widths):
            layers += [nn.Conv2d(i, o, 3, 2, 1), nn.GroupNorm(1, o), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d gh gw"]:
        return self.proj(x)


class ViT(nn.Module):
    """Vision transformer with registers; `forward` gives the image feature `(n, d)` and the tokens of every block."""

    def __init__(self, config: Model, *, size: int, channels: int = 3):
        super().__init__()
        self.pool, self.patch, self.registers = config.pool, config.patch, config.registers
        grid = size // config.patch
        self.patch_embed = PatchEmbed(config, channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, config.dim))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        rates = torch.linspace(0, config.drop_path, config.depth).tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.apply(_initialise)
        for token in [self.cls_token, self.pos_embed, *([self.register_tokens] if config.registers else [])]:
            nn.init.trunc_normal_(token, std=0.02)

    def positions(self, gh: int, gw: int) -> Tensor:
        """Position embedding for a grid of another size, bicubic, as in DINO."""
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        g = math.isqrt(patches.shape[1])
        if (gh, gw) != (g, g):
            grid = patches.float().unflatten(1, (g, g)).permute(0, 3, 1, 2)  # (1, d, g, g)
            grid = F.interpolate(grid, size=(gh, gw), mode="bicubic", align_corners=False)
            patches = grid.flatten(2).mT.to(patches.dtype)
        return torch.cat([cls, patches], 1)  # (1, 1 + gh·gw, d)

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Taps]:
        x = self.patch_embed(x)  # (n, d, gh, gw)
        n, _, gh, gw = x.shape
        x = torch.cat([self.cls_token.expand(n, -1, -1), x.flatten(2).mT], 1) + self.positions(gh, gw)
        if self.registers:  # after the position embedding: registers have none
            x = torch.cat([x[:, :1], self.register_tokens.expand(n, -1, -1), x[:, 1:]], 1)
        taps = {}
        for i, block in enumerate(self.blocks):
            x = taps[f"block{i}"] = block(x)  # (n, 1 + registers + gh·gw, d)
        tokens = taps["tokens"] = self.norm(x)
        return self.image_feature(tokens), taps

    def image_feature(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n d"]:
        """One vector an image: the class token, or the mean of the patch tokens."""
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1 + self.registers :].mean(1)


class Head(nn.Module):
    """DINO's three-layer projection on the unit sphere; with prototypes, their scores as well.

    The prototypes are unit vectors (weight normalisation with its gain frozen at 1).
    """

    def __init__(self, dim: int, *, hidden: int, out: int, prototypes: int = 0):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
        )
        self.apply(_initialise)
        self.prototypes = nn.Parameter(torch.empty(prototypes, out)) if prototypes else None
        if prototypes:
            nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n o"], Taps]:
        z = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):  # what the loss sees is float32 whatever the autocast
            z = F.normalize(z.float() if z.dtype != torch.float64 else z, dim=-1)
            if self.prototypes is None:
                return z, {"head": z}
            scores = z @ F.normalize(self.prototypes, dim=-1).T  # (n, K)
            return scores, {"head": z, "prototypes": scores}


class Network(nn.Module):
    """Backbone and head; taps: the tokens of each block, `backbone` the image feature, `head`, `prototypes`."""

    def __init__(self, config: Model, *, size: int, channels: int = 3):
        super().__init__()
        self.backbone = ViT(config, size=size, channels=channels)
        self.head = Head(config.dim, hidden=config.hidden, out=config.out, prototypes=config.prototypes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n o"], Taps]:
        feature, taps = self.backbone(x)
        out, head_taps = self.head(feature)
        return out, {**taps, "backbone": feature, **head_taps}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
