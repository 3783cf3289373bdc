"""A backbone takes images and gives a feature of each image and of each patch, whoever trained it."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from simdino.augment import grayscale
from simdino.config import Crops, Model
from simdino.image_files import Files
from simdino.runs import Run
from simdino.vit import ConvNet, Network, ViT, usable_device
from simdino.weights import load_weights
from simdino.whole_files import read_json

from ..files import is_name
from ..measures.inputs import Array, as_tensor

BASELINES = ("pixels", "random")  # names of backbones that nobody trained
# DINOv2's ViT-S/14: the shape of "random", and the patch of "pixels", where nothing else is said.
VIT_S = Model(stem="patch", patch=14, dim=384, depth=12, heads=6, pool="cls", out=0, layer_scale=1.0)
PIXELS_SIDE = 32  # of the image feature of "pixels": larger images are averaged down to it


Size = int | tuple[int, int] | None  # of images in pixels, a side or (height, width); None leaves them as they are


class Features(NamedTuple):
    """What a backbone makes of n images: a vector for each image, and one for each patch of a gh × gw grid."""

    image: Float[Tensor, "n d"]
    patches: Float[Tensor, "n gh gw e"]


@dataclass(frozen=True)
class Backbone:
    """A function from normalized images (n, channels, h, w) to `Features`, and what one must know to feed it.

    Any model takes part as `Backbone("mine", patch=16, encode=function)`. The function is only called with images whose
    h and w are multiples of `patch`.

    >>> mean_color = Backbone("mine", patch=1, encode=lambda x: Features(x.mean((2, 3)), x.permute(0, 2, 3, 1)))
    >>> mean_color(torch.zeros(2, 3, 4, 5)).patches.shape
    torch.Size([2, 4, 5, 3])
    """

    name: str
    patch: int  # pixels
    encode: Callable[[Float[Tensor, "n c h w"]], Features]
    channels: int = 3  # 1: images are turned gray
    mean: tuple[float, ...] = Crops.mean  # of each channel, by which images are normalized; ImageNet's
    std: tuple[float, ...] = Crops.std
    device: str = "cpu"
    network: ViT | ConvNet | None = None  # the network inside `encode`, up to the block that is read, if it is ours
    notes: tuple[str, ...] = ()  # of weights that others made: what was taken, left and assumed

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Features:
        return self.encode(images)


def load_backbone(
    what: str | Path,
    *,
    block: int = -1,
    branch: str = "teacher",
    config: Model | Mapping | None = None,
    device: str | torch.device | None = None,
) -> Backbone:
    """The backbone of a run directory, of weights, of a timm model's name, or a baseline: "pixels" or "random".

    Weights are all that `simdino.weights.load_weights` reads; a folder of Hugging Face brings its own normalization of
    images, if it has a preprocessor_config.json. "random" is an untrained network (seed 0), by
    default of the shape of ViT-S/14. "pixels" gives the normalized pixels of each patch and, averaged down to at most
    32 × 32, those of each image. Images may have any size whose sides are multiples of the patch, because position
    embeddings are resized. The image feature is the class token or the mean of the patch tokens, as the model's `pool`
    says.

    Args:
        what: path or name.
        block: index of the block whose output is read, after the final norm, as DINO's `get_intermediate_layers` does;
            −1 is the last.
        branch: which network of a training file is read: "teacher", "student", or what its names begin with. A run
            without self-distillation has only one.
        config: the network's description. It is for files whose shapes do not tell it, which may be given some of its
            fields, too, such as {"heads": 12}; for "random", and for "pixels", which takes its patch.
        device: None is cuda where there is one.

    Raises:
        ValueError: nothing of that name, a baseline's name that is a path, too, a damaged file, a block that is not
            there, or a device that cannot be used.

    >>> load_backbone("pixels", device="cpu")(torch.zeros(1, 3, 28, 42)).patches.shape
    torch.Size([1, 2, 3, 588])
    """
    path, device = Path(what).expanduser(), usable_device(device)
    baseline = is_name(what, BASELINES, "and rename that for the baseline")
    if baseline and isinstance(config, Mapping):
        config = dataclasses.replace(VIT_S, **config)
    if baseline and what == "pixels":
        return _pixels((config or VIT_S).patch, device)
    if baseline:
        config = dataclasses.replace(config or VIT_S, out=0, prototypes=0, patch_head="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = Network(config, size=16 * config.patch)
        return _ours("random", network, block, device)
    if path.is_dir() and (is_run(path) or not (path / "config.json").is_file()):
        run = Run.load(path)
        lacking = [k for k in ("model", "optim", "crops") if not isinstance(run.config, dict) or k not in run.config]
        if lacking:
            raise ValueError(f"{path} is not a run directory: its config.json has no {', '.join(lacking)}")
        if run.config["optim"]["teacher"] != "ema":
            branch = "student"
        try:
            config = config or Model(**run.config["model"])
        except TypeError as error:
            raise ValueError(f"the configuration of {path} is of another version: {error}") from None
        loaded = load_weights(path / "checkpoint.safetensors", branch=branch, config=config)
        crops = run.config["crops"]
        backbone = _ours(run.name, loaded.network, block, device)
        return dataclasses.replace(backbone, mean=tuple(crops["mean"]), std=tuple(crops["std"]))
    if path.exists():
        loaded = load_weights(path, branch=branch, config=config)
        mean, std, known = _normalization(path)
        notes = loaded.notes() + ([] if known else ["images are normalized by ImageNet's mean and deviation"])
        backbone = _ours(path.name if path.is_dir() else path.stem, loaded.network, block, device)
        return dataclasses.replace(backbone, mean=mean, std=std, notes=tuple(notes))
    return _timm(str(what), block, device)


def is_run(path: Path) -> bool:
    """Whether the config.json of a folder is that of a run rather than of a model that others made."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True  # a damaged one, which the reader of runs names
    return not isinstance(config, dict) or not {"model_type", "architectures", "architecture"} & config.keys()


def read_config(text: str) -> dict:
    """Read a network's description: JSON, or the path of a JSON file.

    Args:
        text: fields of `simdino.config.Model`, such as {"heads": 12}; a run's configuration; or that of a model of
            Hugging Face.

    Returns:
        Fields, all or some, as `load_backbone` takes them for weights.

    Raises:
        ValueError: no JSON object.

    >>> read_config('{"heads": 12}')
    {'heads': 12}
    """
    try:
        found = json.loads(
            text if text.lstrip().startswith("{") else Path(text).expanduser().read_text(encoding="utf-8")
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the configuration {text}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'the configuration {text} is no JSON object, such as {{"heads": 12}}')
    if "num_attention_heads" in found:
        return {"heads": found["num_attention_heads"]}
    return found["model"] if isinstance(found.get("model"), dict) else found


def load_backbones(
    what: Sequence[str | Path],
    *,
    block: int = -1,
    branch: str = "teacher",
    config: Model | Mapping | None = None,
    device: str | torch.device | None = None,
) -> list[Backbone]:
    """Several backbones to be compared; "pixels" and "random" get the patch and the shape of the first other one.

    Where two would have the same name, they are named as they are in `what`.

    Args:
        what: paths and names as for `load_backbone`, as are block, branch and device.
        config: as for `load_backbone`, of all that is neither a run nor a name.

    Raises:
        ValueError: as `load_backbone`.

    >>> [backbone.patch for backbone in load_backbones(["pixels"], device="cpu")]
    [14]
    """
    options = {"block": block, "branch": branch, "device": device}

    def given(w: str | Path) -> Model | Mapping | None:
        path = Path(w).expanduser()
        return None if path.is_dir() and is_run(path) else config

    loaded = {w: load_backbone(w, config=given(w), **options) for w in what if w not in BASELINES}
    first = next(iter(loaded.values()), None)
    shape = None if first is None else dataclasses.replace(VIT_S, patch=first.patch)
    shape = first.network.config if first and first.network else shape
    loaded |= {w: load_backbone(w, config=shape, **options) for w in what if w in BASELINES}
    names = [loaded[w].name for w in what]
    found = ((w, loaded[w]) for w in what)
    return [b if names.count(b.name) == 1 else dataclasses.replace(b, name=str(w)) for w, b in found]


@torch.no_grad()
def extract_features(
    backbone: Backbone,
    images: Array | Files,
    *,
    size: Size = None,
    batch: int = 32,
    progress: bool = False,
) -> Features:
    """Features of images and of their patches, computed batch by batch, on the backbone's device.

    Images are divided by 255 and normalized by the backbone's mean and std. Image files are decoded batch by batch.

    Args:
        images: (n, 1 or 3, h, w) uint8.
        size: side or (height, width) in pixels. Images are resized to cover it, and then their center is cut out. None
            leaves them as they are.
        batch: images that go through the backbone at a time.
        progress: show a bar.

    Returns:
        image (n, d) and patches (n, gh, gw, e).

    Raises:
        ValueError: images of another type or shape, or sides that are no multiples of the patch.

    >>> features = extract_features(load_backbone("pixels", device="cpu"), torch.zeros(2, 3, 28, 14, dtype=torch.uint8))
    >>> features.image.shape, features.patches.shape
    (torch.Size([2, 1176]), torch.Size([2, 2, 1, 588]))
    """
    image, patches = zip(*_batches(backbone, images, size, batch, progress), strict=True)
    return Features(torch.cat(image), torch.cat(patches))


@torch.no_grad()
def image_features(
    backbone: Backbone,
    images: Array | Files,
    *,
    size: Size = None,
    batch: int = 32,
    progress: bool = False,
) -> Float[Tensor, "n d"]:
    """The image features of `extract_features` alone, (n, d).

    Patch features take hundreds of times their memory, and are dropped batch by batch. Arguments and errors are those
    of `extract_features`.

    >>> image_features(load_backbone("pixels", device="cpu"), torch.zeros(2, 3, 14, 14, dtype=torch.uint8)).shape
    torch.Size([2, 588])
    """
    return torch.cat([out.image for out in _batches(backbone, images, size, batch, progress)])


def resize_and_crop(
    x: Float[Tensor, "n c h w"], size: Size, *, mode: str = "bicubic"
) -> Float[Tensor, "n c new_h new_w"]:
    """Images resized, with antialiasing, to cover a size, and then cut to it around their center.

    Args:
        x: (n, c, h, w) values from 0 to 1; masks may have any values.
        size: side or (height, width) in pixels; None returns x as it is.
        mode: of the interpolation. "nearest-exact" is for masks, which are cut as their images are.

    >>> resize_and_crop(torch.zeros(1, 3, 20, 60), (10, 10)).shape
    torch.Size([1, 3, 10, 10])
    """
    if size is None or x.shape[2:] == (wanted := (size, size) if isinstance(size, int) else tuple(size)):
        return x
    h, w = x.shape[2:]
    scale = max(wanted[0] / h, wanted[1] / w)
    inner = [max(side, round(old * scale)) for side, old in zip(wanted, (h, w), strict=True)]
    if mode == "nearest-exact":
        x = F.interpolate(x, inner, mode=mode)
    else:
        x = F.interpolate(x, inner, mode=mode, antialias=True).clamp(0, 1)
    top, left = ((new - side) // 2 for new, side in zip(inner, wanted, strict=True))
    return x[:, :, top : top + wanted[0], left : left + wanted[1]]


def preprocess(backbone: Backbone, images: Array, *, size: Size = None) -> Float[Tensor, "n channels h w"]:
    """Images as `extract_features` shows them to the backbone: resized and cut to a size, then normalized.

    A backbone of one channel sees gray images in luma; a backbone of three sees three equal channels of a gray image.

    Args:
        images: (n, 1 or 3, h, w) uint8.
        size: side or (height, width) in pixels; None leaves the images as they are.

    Raises:
        ValueError: as `extract_features`.

    >>> white = torch.full((1, 3, 14, 14), 255, dtype=torch.uint8)
    >>> x = preprocess(load_backbone("pixels", device="cpu"), white)  # (1 − mean)/std of ImageNet's channels
    >>> [round(value, 2) for value in x[0, :, 0, 0].tolist()]
    [2.25, 2.43, 2.64]
    """
    images = as_tensor(images, "images")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8 or not len(images):
        what = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be uint8 (n, 1 or 3, h, w), n at least 1, not {what}")
    x = resize_and_crop(images.to(backbone.device).float() / 255, size)
    h, w = x.shape[2:]
    if h % backbone.patch or w % backbone.patch:
        of = f"the {backbone.patch}-pixel patches of {backbone.name}"
        raise ValueError(f"images of {h}x{w} are no whole number of {of}: give a size that is")
    mean, std = (torch.tensor(values)[:, None, None].to(x.device) for values in (backbone.mean, backbone.std))
    if backbone.channels == 1:
        return (grayscale(x) - mean.mean()) / std.mean()
    return (x - mean) / std  # a gray image becomes three equal channels, before it is normalized


def _batches(backbone: Backbone, images: Array | Files, size: Size, batch: int, progress: bool) -> Iterator[Features]:
    """Features of the images, a batch at a time."""
    images = images if isinstance(images, Files) else as_tensor(images, "images")
    shown = {"desc": f"features of {backbone.name}", "unit": "batch", "leave": False}
    starts = range(0, len(images), batch) if len(images) else [0]
    for start in tqdm(starts, **shown, disable=None if progress else True):
        yield backbone(preprocess(backbone, images[start : start + batch], size=size))


def _block(block: int, count: int, name: str) -> int:
    """The index of a block from the first, of `count`."""
    if not -count <= block < count:
        raise ValueError(f"block must be between {-count} and {count - 1} for {name}, not {block}")
    return block % count


def _ours(name: str, network: Network, block: int, device: str) -> Backbone:
    """A network of ours up to a block; what comes after it is neither kept nor computed."""
    model, config = network.backbone, network.config
    last = _block(block, len(model.blocks), name)
    if isinstance(model, ConvNet) and last < 2 * config.depth:
        raise ValueError(
            f"block {block} of {name}, a ConvNet, has finer maps than patches: {2 * config.depth} is the first"
        )
    model.blocks = model.blocks[: last + 1]
    model.to(device).eval().requires_grad_(False)

    def encode(images: Tensor) -> Features:
        grid = tuple(side // config.patch for side in images.shape[2:])
        image, taps = model(images)
        return Features(image, model.patch_tokens(taps["tokens"]).unflatten(1, grid))

    stem = model.stem if isinstance(model, ConvNet) else model.patch_embed
    channels = next(stem.parameters()).shape[1]
    return Backbone(name, config.patch, encode, channels=channels, device=device, network=model)


def _normalization(path: Path) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and deviation of images that a folder of Hugging Face or timm has, else ImageNet's; whether it has."""
    for name, inside, keys in (
        ("preprocessor_config.json", None, ("image_mean", "image_std")),
        ("config.json", "pretrained_cfg", ("mean", "std")),
    ):
        if not (path / name).is_file():
            continue
        try:
            found = read_json(path / name)
            found = found.get(inside, {}) if inside else found
            if found.get("do_normalize") is False:
                return (0.0,) * 3, (1.0,) * 3, True
            if not found.keys() & set(keys):
                continue
            mean, std = (tuple(map(float, found[key])) for key in keys)
            if not len(mean) == len(std) == 3 or min(std) <= 0:
                raise ValueError(f"{keys[0]} and {keys[1]} are not those of three channels")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"cannot read {path / name}: {type(error).__name__} {error}") from None
        except ValueError as error:
            said = str(error)
            raise ValueError(said if said.startswith("cannot") else f"cannot read {path / name}: {said}") from None
        return mean, std, True
    return Backbone.mean, Backbone.std, False


def _pixels(patch: int, device: str) -> Backbone:
    """The baseline whose features are the pixels themselves."""

    def encode(images: Tensor) -> Features:
        h, w = images.shape[2:]
        grid = images.unflatten(3, (w // patch, patch)).unflatten(2, (h // patch, patch))  # (n, c, gh, p, gw, p)
        small = F.adaptive_avg_pool2d(images, (min(h, PIXELS_SIDE), min(w, PIXELS_SIDE)))
        return Features(small.flatten(1), grid.permute(0, 2, 4, 1, 3, 5).flatten(3))

    return Backbone("pixels", patch, encode, device=device)


def _timm(name: str, block: int, device: str) -> Backbone:
    """A pretrained timm model, through its own `forward_intermediates`; maps of a stage stand for patches."""
    try:
        import timm
    except ImportError:
        reason = "and to look for a timm model of that name, timm is needed: pip install -e '.[timm]'"
        raise ValueError(f"{name} is no run, no weights file, {reason}") from None
    try:
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
        except TypeError:  # only transformers have positions to resize
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever timm, its hub and the network between them raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} is no run, no weights file, and timm cannot give it: {reason}") from None
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"timm's {name} has no forward_intermediates, by which its features would be read")
    model.to(device).eval().requires_grad_(False)
    stages = model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info
    at = _block(block, len(stages), name)
    options = {"indices": [at], "norm": True, "intermediates_only": True}
    prefixed = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    options |= {"return_prefix_tokens": True} if prefixed and getattr(model, "num_prefix_tokens", 0) else {}

    def encode(images: Tensor) -> Features:
        (out,) = model.forward_intermediates(images, **options)
        maps, prefix = out if isinstance(out, tuple) else (out, None)  # (n, e, gh, gw), (n, class and registers, e)
        token = prefix is not None and model.global_pool == "token"
        return Features(prefix[:, 0] if token else maps.mean((2, 3)), maps.permute(0, 2, 3, 1))

    settings = model.pretrained_cfg
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    return Backbone(name, stages[at]["reduction"], encode, mean=mean, std=std, device=device)
