"""Weights that people have read into our network, and ours written under DINO's names or timm's.

A file's own names say what layout it has: DINO, DINOv2, SimDINO, iBOT, MAE and timm share one, Hugging Face has two.
What our network cannot compute is refused; what is taken, left or assumed is in what `load_weights` returns.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from simdino.config import Model, recognized, unfit_field
from simdino.vit import Network, ViT, resized_positions
from simdino.weight_files import WeightFile, read_weight_file
from simdino.whole_files import write_tensors

# Wrappers around networks and blocks: compiled, data-parallel, sharded, checkpointed, Lightning's Fabric.
WRAPPERS = r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|_forward_module)\."
# The tensor by which a network is found, wherever in a file it is: first layer of a ViT, of ours, of Hugging Face's.
STEMS = r"(?<![^.])(patch_embed\.proj(\.0)?|stem|embeddings\.patch_embeddings\.projection)\.weight$"
# From the names in a file to ours, in this order.
RENAMED = [
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # block chunks: the second number counts through
    (r"^reg_token$", "register_tokens"),  # timm
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # iBOT, DeiT III
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),  # from here on: Hugging Face
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"^(blocks\.\d+)\.attention\.(attention\.)?(query|key|value|[qkv]_proj)\.", r"\1.attn.\3."),
    (r"^(blocks\.\d+)\.attention\.(output\.dense|o_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."),
]
# Layers of a file, and the one of ours that has the rows of all.
STACKED = {
    ("attn.query", "attn.key", "attn.value"): "attn.qkv",
    ("attn.q_proj", "attn.k_proj", "attn.v_proj"): "attn.qkv",
    ("mlp.gate_proj", "mlp.up_proj"): "mlp.w12",
}
HEADS = {"head": "head", "dino_head": "head", "patch_head": "patch_head", "ibot_head": "patch_head"}  # and ours
HEAD_RENAMED = [
    (r"^layers\.", "mlp."),  # lightly
    (r"^last_layer\.parametrizations\.weight\.original0$", "last_layer.weight_g"),  # weight normalization, new style
    (r"^last_layer\.parametrizations\.weight\.original1$", "last_layer.weight_v"),
]
# The number of heads of each width that has one in DINO, DINOv2, timm, MAE and Hugging Face.
HEADS_OF_WIDTH = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
# What may be left of a network without changing its features: what comes after them, or is used in training only.
LEFT = (
    r"(mask_token|masked_embed|(head|heads|fc|classifier|linear|linear_head|pooler|mlp_head|probe|lm_head|prototypes"
    r"|predictor|projector|projection_head|decoder\w*)(\..*)?|blocks\.\d+\.attn\.(attn_mask|relative_position_index))"
)
# What our network does not compute, by names that tell it.
FOREIGN = {
    "rotary positions, as in DINOv3": r"rope|storage_tokens|embeddings\.patch_embeddings\.weight$",
    "normalized queries and keys": r"\.(q|k)_norm\.|\.(query|key)_norm\.|\.layernorm_qk",
    "a convolutional network before the first block, as in hybrids": r"patch_embed\.(backbone|conv\d|proj\.\d+\.\d)",
    "talking heads and blocks of the class token, as in CaiT": r"blocks_token_only|attn\.proj_[lw]\.",
    "pooling by attention, as in PE-core and SigLIP": r"attn_pool|attentional_pool|vision_model\.head\.probe",
    "a norm before the first block, as in CLIP": r"(norm|ln)_pre\b|pre_layrnorm|pre_layernorm",
    "biases of queries and values alone and relative positions, as in BEiT": r"\.(q|v)_bias$|rel(ative)?_pos",
    "a distillation token, as in DeiT": r"dist(illation)?_token",
    "a norm after averaging, as of timm's global_pool='avg'": r"(?<![^.])fc_norm\.",
    "a gated MLP in a form of its own, as in EVA": r"mlp\.(fc1_[gx]|norm|ffn_ln)",
    "one process's share of sharded tensors": r"_flat_param",
    "torchvision's layout": r"conv_proj\.weight|encoder_layer_\d",
}
OTHER_WAYS = "save its features and give them to `simdino report`, or hook the model with analysis.Monitor"
ROOM = 2**27  # numbers that tensors may have beyond the file's bytes: one stored number can be a tensor of any shape
BRANCHES = {"teacher": {"teacher", "momentum", "ema", "target"}, "student": {"student", "online"}}


class Loaded(NamedTuple):
    """A network with a file's weights, and what did not go one to one; `network.config` is its description."""

    network: Network
    missing: list[str]  # tensors of the network that the file lacks: they have their initial values
    unexpected: list[str]  # tensors of the file's network, under the file's names, that ours has no place for
    interpolated: list[str]  # tensors of the network that were resized
    taken: str  # what the names of the network's tensors begin with in the file; "" if with nothing
    left: list[str]  # what else is in the file
    assumed: list[str]  # what neither shapes nor names nor a description say

    def notes(self) -> list[str]:
        """What was taken, left and assumed, in sentences."""
        found = {
            "taken": [f"the network at {self.taken!r}"] if self.taken else [],
            "left": self.left,
            "missing": self.missing,
            "without a place": self.unexpected,
            "resized": self.interpolated,
            "assumed": self.assumed,
        }
        return [f"{what}: {_listed(names)}" for what, names in found.items() if names]


def load_weights(
    path: str | Path,
    *,
    branch: str = "teacher",
    config: Model | Mapping | None = None,
    size: int | None = None,
) -> Loaded:
    """Build the network of a checkpoint from the shapes of its tensors, with its weights.

    Files (.safetensors, and what torch.save wrote) are read of DINO, DINOv2 (registers, block chunks, SwiGLU), SimDINO,
    SimDINOv2, iBOT, MAE (its encoder), timm's vision transformers, Hugging Face's Dinov2 (with registers, too) and ViT,
    and what training loops of Lightning, lightly, solo-learn and data-parallel or compiled modules make of these; of
    Hugging Face a folder with config.json, too; what `save_weights` wrote, and a run's checkpoint. A file without a
    head of ours gives a network without one.

    Args:
        path: the file or folder.
        branch: which network of a file with several: "teacher" (or its momentum, EMA or target network), "student" (or
            the online one), or what the names of the one that is meant begin with.
        config: the network's description, where shapes do not tell it (of a run, `Model(**run.config["model"])`), or
            only some of its fields, such as {"heads": 12}. Without it, the number of heads is the one that published
            networks of that width have, class tokens are the image's feature, and positions are resized as in DINOv2
            with registers if there are registers, as Hugging Face does under its names, else as in DINO.
        size: side of the images in pixels, if it is not the one that the position embeddings were trained for: they
            are then resized.

    Raises:
        ValueError: a file that cannot be read without running its code, that holds no such network or several of which
            any could be meant, or a network that ours does not compute, by what it has.
    """
    path = Path(path).expanduser()
    file = read_weight_file(path)
    found = _network(file, branch, path)
    tensors = found.tensors
    given = dataclasses.asdict(config) if isinstance(config, Model) else dict(config or {})
    fields, assumed = _checked(given, path), []
    if "model" in file.metadata:
        fields = _described(file.metadata["model"], path) | fields
    elif not _FIELDS.keys() <= fields.keys():
        fields, assumed = _inferred(found, file.config, fields, path)
    config = Model(**_checked(fields, path))
    described = file.metadata.get("norm_eps", file.config.get("layer_norm_eps"))
    norm_eps = _norm_eps(described, path) if described is not None else 1e-12 if found.layout == "vit" else 1e-6
    if described is None and found.layout == "vit":
        assumed.append("1e-12 beside the variance in norms, as ViTModel has by default")
    _check(config, found, path)
    interpolated = []
    if config.arch == "vit":
        tensors["backbone.pos_embed"], size, resized = _sized(tensors["backbone.pos_embed"], config, size, path)
        interpolated = ["backbone.pos_embed"] * resized
    size, channels = size or config.patch, tensors[found.stem].shape[1]
    with torch.device("meta"):  # names and shapes alone: nothing is allocated before they are those of the file
        state = Network(config, size=size, channels=channels).state_dict()
    missing, unexpected = _compared(found, state, path)
    with torch.random.fork_rng(devices=[]):  # the initial values, overwritten below, cost the caller no randomness
        network = Network(config, size=size, channels=channels)
    network.load_state_dict({k: v for k, v in tensors.items() if k in state}, strict=False)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norm_eps
    return Loaded(network, missing, unexpected, interpolated, found.place, found.left, assumed)


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
        metadata["norm_eps"] = repr(network.backbone.norm.eps)
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


_FIELDS = get_type_hints(Model)


class _Found(NamedTuple):
    """The network of a file that was chosen, under our names."""

    place: str  # what its names begin with in the file
    stem: str  # the tensor by which it was found
    tensors: dict[str, Tensor]
    names: dict[str, str]  # the file's name of each, and of those without a place in any network of ours
    layout: str  # "official", "timm" with registers, "hugging face", or its "vit"
    left: list[str]  # what else is in the file


def _network(file: WeightFile, branch: str, path: Path) -> _Found:
    """Choose a network of a file, by the place of its first layer, and the head beside it."""
    clean: dict[str, str] = {}
    for place in file.tensors:
        name = re.sub(WRAPPERS, "", place)
        if name in clean:
            raise ValueError(f"{path} has two tensors {name}: {clean[name]} and {place}")
        clean[name] = place
    starts = {name[: m.start()]: m[0] for name in clean if (m := re.search(STEMS, name))}
    if not starts:
        _refuse_foreign(clean, path)
        raise ValueError(f"{path} holds no vision transformer of a known layout: it begins with {_first(file.names)}")
    start = _branch(list(starts), branch, path)
    nested = [other for other in starts if other != start and other.startswith(start)]
    place = clean[start + starts[start]]
    outer = place.removesuffix(starts[start]) if place.endswith(starts[start]) else ""  # its wrappers included
    own = {k[len(start) :]: v for k, v in clean.items() if k.startswith(start) and not k.startswith(tuple(nested))}
    own = {k: v for k, v in own.items() if v.startswith(outer)}
    _refuse_foreign(own, path)
    ours = {}
    for name in own:
        new = name
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        ours[f"backbone.{new}"] = own[name]
    if len(ours) < len(own):
        raise ValueError(f"{path} has two tensors of one meaning, among {_first(own.values())}")
    renamed = {new: file.tensors[place] for new, place in ours.items()}
    taken, before, segments = set(own.values()), "", start.split(".")[:-1]
    at = max((i for i, segment in enumerate(segments) if segment.endswith("backbone")), default=None)
    if at is not None:
        before = "".join(f"{segment}." for segment in segments[:at]) + segments[at].removesuffix("backbone")
        for kind, new in HEADS.items():
            beside = {k[len(before + kind) + 1 :]: v for k, v in clean.items() if k.startswith(f"{before}{kind}.")}
            taken |= set(beside.values())
            for name, place in _head(beside).items():
                ours[f"{new}.{name}"] = place
                if not name.startswith("?"):
                    renamed[f"{new}.{name}"] = file.tensors[place]
    if sum(file.tensors[place].numel() for place in taken) > max(ROOM, file.size):
        raise ValueError(f"cannot read {path}: its tensors are larger than the file itself")
    _pack(renamed, ours)
    names = {new: file.names[place] for new, place in ours.items()}
    layout = "official"
    if starts[start].startswith("embeddings"):
        layout = "vit" if any("layernorm_before" in name for name in own) else "hugging face"
    elif "reg_token" in own:
        layout = "timm"
    stem = "backbone." + re.sub(r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj", starts[start])
    rest = [re.sub(WRAPPERS, "", place) for place in [*file.tensors, *file.others] if place not in taken]
    return _Found(start.rstrip("."), stem, renamed, names, layout, _groups(rest, start))


def _branch(starts: list[str], branch: str, path: Path) -> str:
    """The network that is meant, of those whose names begin in these ways."""

    def side(start: str) -> str:
        words = set(re.split(r"[._]", start.lower()))
        return next((name for name, of in BRANCHES.items() if words & of), "")

    shown = ", ".join(start.rstrip(".") or "the file itself" for start in starts)
    if branch not in BRANCHES:
        meant = [start for start in starts if f"{start}.".startswith(f"{branch.rstrip('.')}.")]
        if len(meant) != 1:
            raise ValueError(f"{path} has {'no' if not meant else 'several'} networks at {branch!r}, but: {shown}")
        return meant[0]
    meant = [start for start in starts if side(start) == branch]
    plain, others = [s for s in starts if not side(s)], [s for s in starts if side(s) not in ("", branch)]
    if not meant and (branch == "student" or not others):
        meant = plain
    if not meant and not plain:
        raise ValueError(f"{path} has no {branch}, only a {side(others[0])}")
    if len(meant) != 1:
        raise ValueError(
            f"{path} holds several networks, {shown}: say with branch (--branch) how the right one's names begin"
        )
    return meant[0]


def _pack(tensors: dict[str, Tensor], names: dict[str, str]) -> None:
    """Stack layers that are one in our network, name timm's packed SwiGLU, set a decoder's mask token aside."""
    for layers, stack in STACKED.items():
        for name in [name for name in tensors if f".{layers[0]}." in name]:
            parts = [name.replace(f".{layers[0]}.", f".{layer}.") for layer in layers]
            if all(part in tensors and tensors[part].ndim for part in parts):
                packed = name.replace(f".{layers[0]}.", f".{stack}.")
                names[packed], tensors[packed] = names[parts[0]], torch.cat([tensors[part] for part in parts])
                for part in parts:
                    del tensors[part], names[part]
    fc1, fc2 = (tensors.get(f"backbone.blocks.0.mlp.{fc}.weight") for fc in ("fc1", "fc2"))
    if fc1 is not None and fc2 is not None and fc1.ndim == fc2.ndim == 2 and len(fc1) == 2 * fc2.shape[1]:
        for kept in (tensors, names):
            for name in [name for name in kept if re.search(r"\.mlp\.fc[12]\.", name)]:
                kept[name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")] = kept.pop(name)
    if tensors.get("backbone.mask_token", torch.empty(0, 0)).ndim != 2:
        del tensors["backbone.mask_token"]


def _head(found: dict[str, str]) -> dict[str, str]:
    """The tensors of a head of three layers under our names; "?" stands before those that have no place in it."""
    renamed = {}
    for name, place in found.items():
        for pattern, replacement in HEAD_RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = place
    batch = "mlp.1.running_mean" in renamed
    wanted = [f"mlp.{i}.{part}" for i in ((0, 3, 6) if batch else (0, 2, 4)) for part in ("weight", "bias")]
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted += [f"mlp.{i}.{part}" for i in (1, 4) for part in parts] if batch else []
    if any(name not in renamed for name in wanted) or {n for n in renamed if n.startswith("mlp.")} - set(wanted):
        wanted = []
    last = ["last_layer.weight_g", "last_layer.weight_v"]
    wanted += last if wanted and all(name in renamed for name in last) else []
    return {name if name in wanted else f"?{name}": place for name, place in renamed.items()}


def _groups(places: list[str], start: str) -> list[str]:
    """What is left of a file: the first names in which it differs from the network that was taken, each once."""
    own, groups = start.split("."), {}
    for place in places:
        parts = place.split(".")
        same = next((i for i, (a, b) in enumerate(zip(own, parts, strict=False)) if a != b), len(own))
        groups[".".join(parts[: same + 1])] = None
    return list(groups)


def _inferred(found: _Found, described: dict, given: dict, path: Path) -> tuple[dict, list[str]]:
    """Infer the description of a vision transformer from names, shapes and a config.json; say what was assumed."""
    tensors = found.tensors
    if found.stem != "backbone.patch_embed.proj.weight":
        raise ValueError(f"{path} holds no official vision transformer: a run's checkpoint needs its config")

    def sizes(name: str, rank: int) -> tuple[int, ...]:
        shape = tuple(tensors[name].shape)
        if len(shape) != rank or 0 in shape:
            raise ValueError(f"{found.names[name]} in {path} has shape {shape}, where {rank} dimensions are expected")
        return shape

    mlp = next(
        (k for k in ("backbone.blocks.0.mlp.fc1.weight", "backbone.blocks.0.mlp.w3.weight") if k in tensors), None
    )
    lacking = [k for k in ("cls_token", "pos_embed", "blocks.0.norm1.weight") if f"backbone.{k}" not in tensors]
    lacking += [] if mlp else ["blocks.0.mlp.fc1.weight"]
    if lacking:
        whose = f"; it begins with {_first(found.names.values())}"
        raise ValueError(f"{path} holds no vision transformer that ours computes: it has no {_listed(lacking)}{whose}")
    dim, _, *kernel = sizes(found.stem, 4)
    if kernel[0] != kernel[1]:
        raise ValueError(f"{path} has patches of {kernel[0]}x{kernel[1]}: ours are square; {OTHER_WAYS}")
    hugging = found.layout in ("hugging face", "vit")
    if described.get("hidden_act", "gelu") != "gelu" and mlp.endswith("fc1.weight"):
        raise ValueError(f"{path} has the activation {described['hidden_act']!r}: ours is 'gelu'; {OTHER_WAYS}")
    assumed = [f"patches of {kernel[0]} pixels, the first layer's kernel"]
    heads = given.get("heads", described.get("num_attention_heads"))
    if heads is None:
        heads = HEADS_OF_WIDTH.get(dim)
        if heads is None or (dim == 384 and re.search("(base|momentum)_encoder", found.place)):  # MoCo v3's has 12
            way = "give its config, such as config={'heads': 6}, or --config '{\"heads\": 6}'"
            raise ValueError(f"the number of heads of {path} does not follow from its width {dim}: {way}")
        assumed.append(f"{heads} heads of {dim // heads}, as published networks of width {dim} have")
    registers = sizes("backbone.register_tokens", 3)[1] if "backbone.register_tokens" in tensors else 0
    swiglu, mask_token = mlp.endswith("w3.weight"), "backbone.mask_token" in tensors
    sizes_said = {"patch_size": kernel[0], "hidden_size": dim, "num_hidden_layers": len(_blocks(tensors))}
    for name, value in (sizes_said | {"use_swiglu_ffn": swiglu}).items():
        if described.get(name, value) not in (value, [value, value]):
            raise ValueError(f"the config.json of {path} says {name} {described[name]!r}, and the tensors say {value}")
    width = sizes(mlp, 2)[1 if swiglu else 0]
    if not registers and found.layout == "official":
        assumed.append("positions on another grid as in DINO (offset 0.1)")
    assumed.append("the class token is the image's feature")
    head = {}
    if "head.mlp.0.weight" in tensors:
        last = max(k for k in tensors if re.fullmatch(r"head\.mlp\.\d\.weight", k) and tensors[k].ndim == 2)
        head = {"hidden": sizes("head.mlp.0.weight", 2)[0], "out": sizes(last, 2)[0]}
        head |= {"head_norm": "batch" if "head.mlp.1.running_mean" in tensors else "none"}
        scored = "head.last_layer.weight_v" in tensors
        head |= {"prototypes": sizes("head.last_layer.weight_v", 2)[0] if scored else 0}
        head |= {"prototype_norm": "learned" if mask_token else "one"}
        separate = any(name.startswith("patch_head.") for name in tensors)
        head |= {"patch_head": "separate" if separate else "shared" if mask_token else "none"}
    fields = {
        "stem": "patch",
        "patch": kernel[0],
        "dim": dim,
        "depth": len(_blocks(tensors)),
        "heads": heads,
        "mlp": "swiglu" if swiglu else "gelu",
        "mlp_ratio": 1.5 * width / dim if swiglu else width / dim,
        "pool": "cls",
        "registers": registers,
        "mask_token": mask_token,
        "layer_scale": 1.0 if "backbone.blocks.0.ls1.gamma" in tensors else 0.0,
        "pos_offset": 0.0 if registers or hugging else 0.1,
        "pos_antialias": bool(registers),
        **(head or {"out": 0}),
    }
    return fields | given, assumed


def _blocks(tensors: Collection[str]) -> set[int]:
    return {int(m[1]) for name in tensors if (m := re.match(r"backbone\.blocks\.(\d{1,9})\.", name))}


def _checked(fields: dict, path: Path) -> dict:
    """Fields of a network's description, each of which has to be one, and of its type and range."""
    for name, value in fields.items():
        kind = _FIELDS[recognized(name, _FIELDS, "field of a network's configuration")]
        if get_origin(kind) is Literal:
            recognized(value, get_args(kind), f"model.{name}")
    if wrong := unfit_field({"model": fields}):
        raise ValueError(f"{wrong} of {path} cannot be {fields[wrong.removeprefix('model.')]!r}")
    return fields


def _norm_eps(value: object, path: Path) -> float:
    try:
        eps = float(value)
    except (TypeError, ValueError):
        eps = math.nan
    if not 0 < eps < 1:
        raise ValueError(f"the configuration of {path} has {value!r} as the ε of its norms")
    return eps


def _described(text: str, path: Path) -> dict:
    """Read the description that `save_weights` put beside the tensors."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found.keys() <= _FIELDS.keys():
        raise ValueError(f"{path} describes its network in a way that is not understood: {text[:80]}")
    return found


def _check(config: Model, found: _Found, path: Path) -> None:
    """Refuse a description that describes no network, or one of other blocks than the file's."""
    if config.dim % config.heads:
        raise ValueError(f"model.dim {config.dim} of {path} is not a multiple of model.heads {config.heads}")
    blocks, count = _blocks(found.tensors), config.depth * (3 if config.arch == "convnet" else 1)
    if blocks != set(range(count)):
        last = max(blocks, default=0)
        raise ValueError(f"{path} has {len(blocks)} blocks, the last of number {last}, where 0 to {count - 1} are due")
    if config.arch == "vit" and "backbone.pos_embed" not in found.tensors:
        raise ValueError(f"{path} holds no vision transformer that ours computes: it has no pos_embed")
    if found.tensors[found.stem].ndim != 4:
        raise ValueError(f"{found.names[found.stem]} in {path} is no convolution of images; {OTHER_WAYS}")


def _compared(found: _Found, state: Mapping[str, Tensor], path: Path) -> tuple[list[str], list[str]]:
    """Compare a file's tensors with the network's: what is missing and unexpected, where it changes no features.

    Raises:
        ValueError: what would change them, or tensors of another shape or kind.
    """
    tensors, names = found.tensors, found.names
    missing = [name for name in state if name not in tensors]
    needed = [name for name in missing if name.startswith("backbone.") and name != "backbone.mask_token"]
    if needed:
        raise ValueError(f"{path} lacks {_listed([name.removeprefix('backbone.') for name in needed])}; {OTHER_WAYS}")
    unexpected = {ours: name for ours, name in names.items() if ours not in state}
    more = [v for k, v in unexpected.items() if k.startswith("backbone.") and not re.fullmatch(LEFT, k[9:])]
    if more:
        raise ValueError(f"{path} has tensors that our network has no place for, {_listed(more)}; {OTHER_WAYS}")
    for name in (name for name in state if name in tensors):
        tensor, expected = tensors[name], state[name]
        if tensor.shape != expected.shape:
            shapes = f"{tuple(tensor.shape)} where {tuple(expected.shape)} is expected"
            raise ValueError(f"{names[name]} in {path} has shape {shapes}")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_floating_point() != expected.is_floating_point():
            raise ValueError(f"{names[name]} in {path} holds {tensor.dtype}, no plain numbers: quantized or damaged")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{names[name]} in {path} contains NaN or infinite values")
    return missing, list(unexpected.values())


def _refuse_foreign(names: Collection[str], path: Path) -> None:
    """Refuse what our network does not compute, by its name."""
    for what, pattern in FOREIGN.items():
        found = [name for name in names if re.search(pattern, name) and not re.fullmatch(LEFT, name)]
        if found:
            raise ValueError(f"{path} is of a network that ours does not compute: {what} ({found[0]}); {OTHER_WAYS}")


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


def _listed(names: Collection[str]) -> str:
    """The first names of several, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(list(names)[:4]) + more


def _first(names: Collection[str]) -> str:
    return ", ".join(list(names)[:3]) or "nothing"
