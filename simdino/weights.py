"""Weights of DINO, DINOv2, SimDINO, SimDINOv2 and timm read into our network, and ours written under either name.

No file is trusted: safetensors hold no code, and of a pickle only tensors and plain values are read.
"""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from simdino.config import Model
from simdino.runs import read_metadata, read_tensors, write_tensors
from simdino.vit import Network, ViT, resized_positions

# From the names in a file to ours, in this order.
RENAMED = [
    (r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module)\.", ""),  # wrappers: compiled, data-parallel, sharded
    (r"^dino_head\.", "head."),
    (r"^ibot_head\.", "patch_head."),
    (r"(?<![^.])blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # block chunks: the second number counts through
    (r"(?<![^.])reg_token$", "register_tokens"),  # timm
]
STEMS = ["backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.0.weight", "backbone.stem.weight"]


class Loaded(NamedTuple):
    """A network with a file's weights, and what did not go one to one; `network.config` is its description."""

    network: Network
    missing: list[str]  # tensors of the network that the file lacks: they have their initial values
    unexpected: list[str]  # tensors of the file, under its names, that the network has no place for
    interpolated: list[str]  # tensors of the network that were resized


def load_weights(
    path: str | Path,
    *,
    branch: Literal["teacher", "student"] = "teacher",
    config: Model | None = None,
    size: int | None = None,
) -> Loaded:
    """Build the network of a checkpoint from the shapes of its tensors, with its weights.

    Training and release files (.pth, .pt, .safetensors) are read of DINO, DINOv2 (registers, block chunks, SwiGLU),
    SimDINO and SimDINOv2, vision transformers under timm's names, what `save_weights` wrote, and a run's checkpoint. A
    file without a head gives a network without one.

    Args:
        path: the file.
        branch: which of the two networks of a training file.
        config: the network's description, where shapes do not tell it (of a run, `Model(**run.config["model"])`).
            Without it, heads are 64 wide, class tokens are the image's feature, and positions are resized as in DINOv2
            with registers if there are registers, else as in DINO.
        size: side of the images in pixels, if it is not the one that the position embeddings were trained for: they
            are then resized.

    Raises:
        ValueError: a file that cannot be read without running its code, or that holds no such network.
    """
    path = Path(path).expanduser()
    tensors, names = _renamed(_branch(_read(path), branch, path))
    described = read_metadata(path).get("model") if path.suffix == ".safetensors" else None
    config = config or (_described(described, path) if described else _inferred(tensors, path))
    stem = next((tensors[name] for name in STEMS if name in tensors), None)
    if stem is None or (config.arch == "vit" and "backbone.pos_embed" not in tensors):
        raise ValueError(f"{path} holds no network of ours: it begins with {_first(tensors)}")
    interpolated = []
    if config.arch == "vit":
        tensors["backbone.pos_embed"], size, resized = _sized(tensors["backbone.pos_embed"], config, size, path)
        interpolated = ["backbone.pos_embed"] * resized
    with torch.random.fork_rng(devices=[]):  # the initial values, overwritten below, cost the caller no randomness
        network = Network(config, size=size or config.patch, channels=stem.shape[1])
    state = network.state_dict()
    for name in state.keys() & tensors.keys():
        if tensors[name].shape != state[name].shape:
            shapes = f"{tuple(tensors[name].shape)} where {tuple(state[name].shape)} is expected"
            raise ValueError(f"{names[name]} in {path} has shape {shapes}")
    network.load_state_dict({k: v for k, v in tensors.items() if k in state}, strict=False)
    missing = [name for name in state if name not in tensors]
    return Loaded(network, missing, [names[k] for k in tensors if k not in state], interpolated)


def save_weights(network: Network, path: str | Path, *, names: Literal["ours", "timm"] = "ours") -> None:
    """Write a network to safetensors.

    Args:
        network: which one.
        path: the file.
        names: "ours" is DINO's names, backbone and heads, with the network's description, so that `load_weights` gives
            the same network back. "timm" is the backbone alone, for timm's vision transformers of equal sizes
            (num_classes=0, class token pooling, qkv_bias); with registers as its reg4_dinov2 models want them: the
            class token includes its position.

    Raises:
        ValueError: timm has no names for such a backbone.
    """
    tensors, metadata = network.state_dict(), {"format": "pt"}
    if names == "ours":
        metadata["model"] = json.dumps(dataclasses.asdict(network.config))
    elif not isinstance(network.backbone, ViT) or network.config.stem != "patch":
        raise ValueError("timm has names for a ViT with model.stem 'patch' only")
    else:
        tensors = {k: v for k, v in network.backbone.state_dict().items() if k != "mask_token"}
        if "register_tokens" in tensors:
            tensors["reg_token"] = tensors.pop("register_tokens")
            tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
            tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
        tensors = {k.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): v for k, v in tensors.items()}
    write_tensors(Path(path).expanduser(), tensors, metadata)


def _read(path: Path) -> Mapping:
    """Read what a file holds: tensors by name, perhaps in dictionaries of dictionaries."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if not path.is_file():
        raise ValueError(f"cannot read {path}: there is no such file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DINO keeps its command line by the tensors
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file raises
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}, not only tensors" if found else "it is damaged or holds more than tensors"
        raise ValueError(f"cannot read {path}: {reason}, and nothing in it was run") from None
    return state if isinstance(state, Mapping) else {}


def _branch(state: Mapping, branch: str, path: Path) -> dict[str, Tensor]:
    """Pick the tensors of one network out of a training file's dictionaries or prefixes."""
    state = {str(k): v for k, v in state.items()}
    for wrapper in ("model", "state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            return _branch(state[wrapper], branch, path)
    branches = {k.split(".")[0] for k in state} & {"student", "teacher"}
    if branches and branch not in branches:
        raise ValueError(f"{path} has no {branch}, only a {branches.pop()}")
    if isinstance(state.get(branch), Mapping):
        state = state[branch]
    elif branches:
        state = {k.removeprefix(f"{branch}."): v for k, v in state.items() if k.startswith(f"{branch}.")}
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def _renamed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Put tensors under our names; return them, and the file's name of each."""
    names = {}
    for name in state:
        ours = name
        for pattern, replacement in RENAMED:
            ours = re.sub(pattern, replacement, ours)
        names[ours] = name
    if not any(name.startswith("backbone.") for name in names):  # a release of the backbone alone
        names = {f"backbone.{ours}": name for ours, name in names.items()}
    fc1, fc2 = (state.get(names.get(f"backbone.blocks.0.mlp.{fc}.weight")) for fc in ("fc1", "fc2"))
    if fc1 is not None and fc2 is not None and len(fc1) == 2 * fc2.shape[1]:  # timm's packed SwiGLU
        names = {k.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): v for k, v in names.items()}
    return {ours: state[name] for ours, name in names.items()}, names


def _inferred(tensors: dict[str, Tensor], path: Path) -> Model:
    """Infer the description of a vision transformer from the names and shapes of its tensors."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    needed = [f"backbone.{k}" for k in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")]
    mlp = next((k for k in ("backbone.blocks.0.mlp.fc1.weight", "backbone.blocks.0.mlp.w3.weight") if k in shape), None)
    if not mlp or any(name not in shape for name in needed):
        reason = f"it begins with {_first(shape)}; a run's checkpoint needs its config"
        raise ValueError(f"{path} holds no official vision transformer: {reason}")
    dim = shape["backbone.cls_token"][-1]
    if dim % 64:
        raise ValueError(f"the number of heads of {path} does not follow from its width {dim}: give its config")
    swiglu, mask_token = mlp.endswith("w3.weight"), "backbone.mask_token" in shape
    registers = shape.get("backbone.register_tokens", (1, 0))[1]
    head = {}
    if "head.mlp.0.weight" in shape:
        last = max(k for k in shape if re.fullmatch(r"head\.mlp\.\d\.weight", k))
        head = {"hidden": shape["head.mlp.0.weight"][0], "out": shape[last][0]}
        head |= {"head_norm": "batch" if "head.mlp.1.running_mean" in shape else "none"}
        head |= {"prototypes": shape.get("head.last_layer.weight_v", (0,))[0]}
        head |= {"prototype_norm": "learned" if mask_token else "one"}
        separate = any(name.startswith("patch_head.") for name in shape)
        head |= {"patch_head": "separate" if separate else "shared" if mask_token else "none"}
    return Model(
        stem="patch",
        patch=shape["backbone.patch_embed.proj.weight"][-1],
        dim=dim,
        depth=1 + max(int(k.split(".")[2]) for k in shape if k.startswith("backbone.blocks.")),
        heads=dim // 64,
        mlp="swiglu" if swiglu else "gelu",
        mlp_ratio=1.5 * shape[mlp][1] / dim if swiglu else shape[mlp][0] / dim,
        pool="cls",
        registers=registers,
        mask_token=mask_token,
        layer_scale=1.0 if "backbone.blocks.0.ls1.gamma" in shape else 0.0,
        pos_offset=0.0 if registers else 0.1,
        pos_antialias=bool(registers),
        **(head or {"out": 0}),
    )


def _described(text: str, path: Path) -> Model:
    """Read the description that `save_weights` put beside the tensors."""
    try:
        return Model(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} describes its network in a way that is not understood: {error}") from None


def _sized(positions: Tensor, config: Model, size: int | None, path: Path) -> tuple[Tensor, int, bool]:
    """Fit position embeddings to images of a size; return them, that size, and whether they were resized."""
    t = positions.shape[1] if positions.ndim == 3 else 0
    if t > 1 and math.isqrt(t) ** 2 == t:  # timm with registers: the class token includes its own
        positions, t = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1), t + 1
    old = math.isqrt(max(t - 1, 0))
    if old**2 != t - 1:
        raise ValueError(f"the position embeddings {tuple(positions.shape)} of {path} are of no square image")
    if size is None or size == old * config.patch:
        return positions, old * config.patch, False
    if size % config.patch:
        raise ValueError(f"size {size} is not a multiple of the {config.patch}-pixel patches of {path}")
    grid, rule = size // config.patch, {"offset": config.pos_offset, "antialias": config.pos_antialias}
    return resized_positions(positions, grid, grid, **rule), size, True


def _first(names: Mapping) -> str:
    return ", ".join(list(names)[:3]) or "nothing"
