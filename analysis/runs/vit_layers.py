"""A vision transformer layer by layer: spectra, what its patch tokens share, and where its attention looks."""

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..measures.collapse import mean_collapse
from ..measures.inputs import Array, as_floating, as_labels, unit_rows
from ..measures.moments import Moments
from ..measures.neighbors import knn_accuracy_with_misses
from ..measures.spectra import effective_rank, effective_ranks, eigenvalues
from ..measures.uncertainty import jackknife, leave_one_out_error
from ..theory import white_noise_spectrum


class TokenShares(NamedTuple):
    """The shares of the energy of patch tokens that lie in each part; they sum to 1."""

    common: Float[Tensor, ""]
    position: Float[Tensor, ""]
    image: Float[Tensor, ""]
    rest: Float[Tensor, ""]


@torch.no_grad()
def diagnose_layers(
    network: torch.nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Array | None = None,
    *,
    batch: int = 32,
    blocks: int = 16,
    positions: int = 8,
    progress: bool = False,
) -> xr.Dataset:
    """Diagnostics of every layer of a vision transformer on images, with standard errors (names that end in `_se`).

    Rows are put on the unit sphere, so that layers compare. layer 0 is what enters the first block, 1 to L the residual
    stream after each block, L + 1 its final norm. token is "image" (the image feature: class token, or mean of the
    patches) or "patch" (all patch tokens of all images). Variables:

    - eigenvalues, eigenvalues_centered (layer, token, eigen): of Γ and of the covariance, as shares
    - effective_rank, effective_rank_centered, mean_collapse: with the jackknife over blocks of images
    - share (layer, part): `token_shares`
    - rank_within: of an image's patches, mean over images; rank_between: of the patches of different images at one
      position, mean over `positions` of them
    - attention_entropy (block, head): of a query over all tokens, in nats, mean over queries
    - attention_distance: from a patch to the patches that it looks at, in patches, mean over patches
    - knn, where there are labels: of the second half of the images by the first, with its binomial error
    - white_noise (eigen): the centered spectrum of white noise of the same n

    attrs: n, t (patches), d, tokens; rank_noise and within_noise, the effective ranks of white noise; entropy and
    distance of uniform attention.

    Args:
        network: a `simdino.vit.ViT`, or what has its embed, blocks (norm1, attn), norm, patch_tokens and image_feature.
        images: (n, c, h, w), normalized as the network wants them.
        labels: (n,), classes of the images.
        batch: images in a forward pass.
        blocks: of the jackknife; divides n and `batch`, so that an image's patches share a block.
        positions: how many positions `rank_between` averages over.
        progress: show a progress bar.

    Raises:
        ValueError: numbers that `blocks` does not divide, a network without attention, a layer that is zero or NaN
            somewhere.
    """
    n, (h, w) = len(images), images.shape[2:]
    if not n or blocks < 2 or batch % blocks or n % blocks:
        raise ValueError(f"blocks must be 2 at least and divide batch {batch} and the {n} images, not {blocks}")
    if not all(hasattr(block, "attn") for block in network.blocks):
        raise ValueError("network must be a vision transformer: it has a block without attention")
    observed, training, device = None, network.training, next(network.parameters()).device
    network.eval()
    for some in tqdm(images.split(batch), desc="layers", unit="batch", disable=not progress):
        streams = list(_streams(network, some.to(device)))
        patches = network.patch_tokens(streams[0][0]).shape[1]
        grid = _grid(patches, h, w)
        observed = observed or [_Layer(x.shape[-1], patches, blocks, positions) for x, _ in streams]
        for layer, (tokens, attention) in zip(observed, streams, strict=True):
            layer.update(network.image_feature(tokens), network.patch_tokens(tokens), attention, grid)
    network.train(training)
    count, d = streams[0][0].shape[1:]
    table = xr.concat([layer.table() for layer in observed], "layer").assign_coords(layer=np.arange(len(observed)))
    if labels is not None:
        features = [layer.rows("image") for layer in observed]
        labels, half = as_labels(labels, n, device=features[0].device), n // 2
        hits = [knn_accuracy_with_misses(z[:half], labels[:half], z[half:], labels[half:]) for z in features]
        hits = np.array(hits)
        table["knn"], table["knn_se"] = ("layer", hits), ("layer", np.sqrt(hits * (1 - hits) / (n - half)))
    noise = white_noise_spectrum(n - 1, d)
    table["white_noise"] = ("eigen", np.pad(noise, (0, d - len(noise)), constant_values=np.nan))
    uniform = {"entropy": math.log(count), "distance": _distances(grid).mean().item()}
    ranks = {"rank_noise": effective_rank(noise).item()}
    ranks["within_noise"] = effective_rank(white_noise_spectrum(patches, d)).item()
    return table.assign_attrs(n=n, t=patches, d=d, tokens=count, **uniform, **ranks)


def token_shares(tokens: Array) -> TokenShares:
    """Where the energy of patch tokens lies: in what all have in common, their position, their image, or the rest.

    z_ip = m + (p_p − m) + (a_i − m) + rest, with m the mean of all, p_p of a position, a_i of an image. Squared, these
    sum to the tokens' mean ‖z‖² without cross terms, and the shares to 1.

    With common near 1 all tokens lie on one point. With image + rest = 0 patches know only their position. With
    rest = 0 an image's patches all say the same, position aside, which is the patch collapse that SimDINOv2's loss
    allows. White noise has 1/(nt), 1/n, 1/t and the rest. All-zero tokens count as common.

    Args:
        tokens: (n, t, d), t patch tokens of each of n images.

    Raises:
        ValueError: NaN, another rank.

    Source: two-way analysis of variance (Fisher 1925), on vectors.

    >>> token_shares(torch.ones(2, 3, 4)).common.item()
    1.0
    """
    tokens = as_floating(tokens, "tokens", "n t d").double()
    return TokenShares(*_shares(tokens.mean(1), tokens.mean(0), tokens.square().sum(-1).mean()))


def _shares(
    image: Float[Tensor, "n d"], position: Float[Tensor, "t d"], energy: Float[Tensor, ""]
) -> Float[Tensor, "4"]:
    """`token_shares` from the mean tokens of images and of positions, and the mean square norm."""
    mean = position.mean(0)
    spread = [(means - mean).square().sum(1).mean() for means in (position, image)]
    parts = torch.stack([mean.square().sum(), *spread])
    parts = torch.cat((parts, (energy - parts.sum()).clamp(min=0)[None]))
    nothing = torch.tensor([1.0, 0, 0, 0], dtype=parts.dtype).to(parts.device)
    return torch.where(energy > 0, parts / torch.where(energy > 0, energy, 1.0), nothing)


def attention_entropy(weights: Array) -> Float[Tensor, "n h"]:
    """Entropy of attention in nats: −Σⱼ Aᵢⱼ log Aᵢⱼ, mean over the queries i.

    Range 0 (each query looks at one token) to log t (at all alike, as an untrained network's do).

    Args:
        weights: (n, h, t, t), attention whose rows sum to 1.

    >>> attention_entropy(torch.eye(4)[None, None]).item()
    0.0
    """
    return torch.special.entr(as_floating(weights, "weights", "n h t t").double()).sum(-1).mean(-1)


def attention_distance(weights: Array, grid: tuple[int, int]) -> Float[Tensor, "n h"]:
    """Mean distance that attention reaches, in patches: Σⱼ Aᵢⱼ‖xᵢ − xⱼ‖/Σⱼ Aᵢⱼ over patches j, mean over patches i.

    A patch that looks at no patch counts as 0.

    Args:
        weights: (n, h, t, t), attention whose last gh·gw tokens are the patches.
        grid: (gh, gw), rows and columns of patches.

    Raises:
        ValueError: fewer tokens than the grid has.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), figure 7.

    >>> attention_distance(torch.ones(1, 1, 4, 4) / 4, (1, 4)).item()
    1.25
    """
    weights = as_floating(weights, "weights", "n h t t")
    patches = grid[0] * grid[1]
    if patches > weights.shape[-1]:
        raise ValueError(f"weights are of {weights.shape[-1]} tokens, fewer than the {patches} of grid {grid}")
    weights = weights[..., -patches:, -patches:].double()
    total = weights.sum(-1)
    reach = (weights * _distances(grid).to(weights)).sum(-1)
    return torch.where(total > 0, reach / torch.where(total > 0, total, 1.0), 0.0).mean(-1)


class _Layer:
    """What is kept of one layer while images go by."""

    def __init__(self, d: int, patches: int, blocks: int, positions: int):
        self.blocks = blocks
        self.by_position = torch.zeros(blocks, patches, d, dtype=torch.float64)  # sums over a block's images
        self.second = torch.zeros(blocks, d, d, dtype=torch.float64)  # Σ zzᵀ over a block's patches
        self.positions = torch.linspace(0, patches - 1, min(positions, patches)).round().long()
        self.kept: dict[str, list[Tensor]] = {}

    def update(self, image: Tensor, patches: Tensor, attention: Tensor | None, grid: tuple[int, int]) -> None:
        image, patches = unit_rows(image.cpu()), unit_rows(patches.cpu())
        by_block = patches.double().unflatten(0, (-1, self.blocks)).transpose(0, 1)  # (blocks, images, t, d)
        self.by_position += by_block.sum(1)
        tokens = by_block.flatten(1, 2)
        self.second += tokens.mT @ tokens
        row = {"image": image, "mean": patches.double().mean(1), "positions": patches[:, self.positions]}
        row |= {"rank_within": effective_ranks(patches)}
        if attention is not None:
            row |= {"attention_entropy": attention_entropy(attention.cpu())}
            row |= {"attention_distance": attention_distance(attention.cpu(), grid)}
        for name, value in row.items():
            self.kept.setdefault(name, []).append(value)

    def rows(self, name: str) -> Float[Tensor, "n ..."]:
        return torch.cat(self.kept[name])

    def table(self) -> xr.Dataset:
        d, out = self.second.shape[-1], {}
        by_token = {"image": Moments.of(self.rows("image"), blocks=self.blocks), "patch": self._patch_moments()}
        for name, center in (("eigenvalues", False), ("eigenvalues_centered", True)):
            spectra = np.full((2, d), np.nan)
            for i, moments in enumerate(by_token.values()):
                lam = eigenvalues(moments, center=center)
                spectra[i, : len(lam)] = lam / lam.sum().clamp(min=torch.finfo(lam.dtype).tiny)
            out[name] = (("token", "eigen"), spectra)
        values, errors = zip(*(_estimated(moments) for moments in by_token.values()), strict=True)
        for k, name in enumerate(("effective_rank", "effective_rank_centered", "mean_collapse")):
            out |= {name: ("token", [v[k] for v in values]), f"{name}_se": ("token", [e[k] for e in errors])}
        out |= self._of_tokens()
        for name in ("attention_entropy", "attention_distance"):
            if name in self.kept:
                per_image = self.rows(name)  # (n, h)
                out |= {name: ("head", per_image.mean(0)), f"{name}_se": ("head", _standard_error(per_image))}
        coords = {"token": list(by_token), "eigen": np.arange(1, d + 1), "part": list(TokenShares._fields)}
        return xr.Dataset(out, coords)

    def _patch_moments(self) -> Moments:
        """Of all patches, in blocks of images; without the sums of third and fourth order, which nothing here asks."""
        whole, parts = Moments(self.by_position.shape[-1]), []
        for sums, second in zip(self.by_position, self.second, strict=True):
            part = Moments(whole.d)
            part.n = len(self.rows("mean")) // self.blocks * len(sums)
            part.mean = sums.sum(0) / part.n
            part.scatter = second - part.n * torch.outer(part.mean, part.mean)
            parts.append(part)
            whole.merge(part)
        whole.by_block = parts
        return whole

    def _of_tokens(self) -> dict[str, tuple]:
        """Shares and ranks of the patch tokens."""
        mean, n = self.rows("mean"), len(self.rows("mean"))
        one = torch.ones((), dtype=torch.float64)  # the energy of unit rows
        total = self.by_position.sum(0)
        share = _shares(mean, total / n, one)
        left_out = []
        for block in range(self.blocks):
            others = torch.arange(n) % self.blocks != block
            left_out.append(_shares(mean[others], (total - self.by_position[block]) / others.sum(), one))
        within = self.rows("rank_within")
        between = effective_ranks(self.rows("positions").transpose(0, 1))
        return {
            "share": ("part", share),
            "share_se": ("part", leave_one_out_error(torch.stack(left_out))),
            "rank_within": ((), within.mean()),
            "rank_within_se": ((), _standard_error(within)),
            "rank_between": ((), between.mean()),
        }


def _estimated(moments: Moments) -> tuple[list[float], list[float]]:
    """Effective rank, the same centered, and mean collapse, with standard errors."""

    def measures(m: Moments) -> Float[Tensor, "3"]:
        return torch.stack([effective_rank(m), effective_rank(m, center=True), mean_collapse(m)])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n/d = ")  # white noise of the same size is the reference
        estimate = jackknife(measures, moments)
    return estimate.value.tolist(), estimate.se.tolist()


def _standard_error(x: Float[Tensor, "n ..."]) -> Tensor:
    return x.std(0) / math.sqrt(len(x))


def _streams(network: torch.nn.Module, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Tokens (b, t, d) of every layer and the attention (b, h, t, t) that made them, None if none did."""
    x = network.embed(images)
    yield x, None
    for block in network.blocks:
        attention = block.attn.weights(block.norm1(x))
        x = block(x)
        yield x, attention
    yield network.norm(x), None


def _grid(patches: int, h: int, w: int) -> tuple[int, int]:
    """Rows and columns of a number of square patches that fill an image."""
    rows = round(math.sqrt(patches * h / w))
    return rows, patches // rows


def _distances(grid: tuple[int, int]) -> Float[Tensor, "p p"]:
    """Distances between the patches of a grid, in patches."""
    at = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid))  # (p, 2)
    return torch.cdist(at, at)
