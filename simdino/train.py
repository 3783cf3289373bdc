"""One training run, top to bottom: `python -m simdino.train <recipe> [--profile cpu] [--optim.lr 0.002 ...]`.

All randomness of a step follows from (seed, step), so a resumed run continues exactly (on a CPU, to the bit).
"""

import argparse
import fcntl
import functools
import json
import math
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from simdino.augment import block_masks, multi_crop
from simdino.config import DINO, PROFILES, RECIPES, Config, DINOv2, Optim, SimDINO, SimDINOv2, recipe, stream
from simdino.data import load
from simdino.losses import coding_rate, dino_loss, dinov2_loss, simdino_loss, simdinov2_loss
from simdino.record import probe_images, record, snapshot_steps
from simdino.runs import (
    SOURCE,
    Run,
    environment,
    read_metadata,
    read_rows,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from simdino.vit import Network

CHECKOUT = Path(__file__).parents[1]
RUNS = CHECKOUT / "runs" if (CHECKOUT / "pyproject.toml").is_file() else Path("runs")


def get_run(config: Config, root: str | Path | None = None, *, device: str | None = None, progress: bool = True) -> Run:
    """The run of a configuration: read if it is on disk, resumed if it was cut short, trained if it is absent.

    root: the directory of the runs; None is runs/ of the checkout, whatever folder a notebook runs in.
    Two processes that ask for one run train it once. A cut-short run is resumed only under the source that began
    it, else it starts anew; a complete one of another source is returned with a warning.
    """
    path = Path(root or RUNS) / config.run_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel however this process ends
        if not (path / "DONE").is_file():
            with torch.random.fork_rng():  # the caller's random numbers are not ours to move
                _train(config, path, device=device, progress=progress)
    run = Run.load(path)
    if run.environment["source"] != SOURCE:
        warnings.warn(f"{path} was trained by another version of simdino/; delete it to train it anew", stacklevel=2)
    return run


def _train(config: Config, path: Path, *, device: str | None, progress: bool) -> None:
    """Train a configuration into its run directory, from a checkpoint if there is a usable one."""
    device, o = usable(device), config.optim
    images = load(config.data.name, root=config.data.root, size=config.data.size, device=device)
    if o.batch_size > len(images.train):
        raise ValueError(f"batch_size {o.batch_size} is larger than the {len(images.train)} training images")
    torch.manual_seed(stream("weights", config.seed))
    shape = {"size": config.crops.global_size, "channels": images.train.shape[1]}
    teacher = student = Network(config.model, **shape).to(device)
    if not o.teacher.startswith("student"):  # a network of its own, all of whose blocks take part
        teacher = Network(replace(config.model, drop_path=0.0), **shape).to(device).requires_grad_(False)
        teacher.load_state_dict(student.state_dict())
    branches = {"student": student} | ({"teacher": teacher} if teacher is not student else {})
    optimizer = torch.optim.AdamW(parameter_groups(student), lr=o.lr, fused=True)
    names = ["center", "patch_center"][: isinstance(config.objective, DINO) * (1 + config.patches)]
    centers = {name: torch.zeros(config.model.prototypes, device=device) for name in names}
    start, spent, recording = resume(path, branches, optimizer, centers)
    probe, references = probe_images(images, config), rate_references(config, device)
    if start == 0:
        path.mkdir()
        write_json(path / "config.json", config)
        write_json(path / "environment.json", environment(device))
        write_tensors(path / "probe.safetensors", {k: v for k, v in probe.items() if k != "views"})
    snapshots = snapshot_steps(o.steps, config.record.snapshots)
    full_gradient = o.teacher == "student-with-gradient"
    began = time.perf_counter() - spent
    bar = tqdm(range(start, o.steps), initial=start, total=o.steps, desc=path.name, disable=not progress)
    with open(path / "metrics.jsonl", "a") as log:
        for step in bar:
            if step in snapshots:
                recording += record(path, step, config, probe, branches)
            rate, weight_decay, momentum = schedules(o, step)
            for group in optimizer.param_groups:
                group.update(lr=rate, weight_decay=weight_decay * group["decay"])

            generator = torch.Generator().manual_seed(stream("crops", config.seed, step))
            torch.manual_seed(stream("depth", config.seed, step))  # stochastic depth draws from the global generator
            batch = images.train[batch_indices(len(images.train), o.batch_size, config.seed, step)]  # (n, c, h, w)
            crops = [c.flatten(0, 1) for c in multi_crop(batch, config.crops, generator) if len(c)]  # (g·n or l·n, …)
            masks = patch_masks(config, len(crops[0]), generator).to(device) if config.patches else None  # (g·n, p)
            with torch.autocast(device, torch.bfloat16, enabled=o.precision == "bf16"):
                outs, taps = zip(*map(student, crops, (masks, None)), strict=True)
                with torch.set_grad_enabled(full_gradient):
                    seen = teacher is student and masks is None  # then the student has just made the targets
                    target, target_taps = (outs[0], taps[0]) if seen else teacher(crops[0])
                    target_patches = masked_patches(teacher, target_taps, masks)
                patches = masked_patches(student, taps[0], masks), target_patches, patch_weights(masks)
            target = target if full_gradient else target.detach()
            s, t = (x.unflatten(0, (-1, len(batch))) for x in (torch.cat(outs), target))  # (g + l, n, d), (g, n, d)
            match config.objective:
                case SimDINOv2():
                    loss, parts = simdinov2_loss(s, t, *patches, **vars(config.objective))
                case SimDINO():
                    loss, parts = simdino_loss(s, t, **vars(config.objective))
                case DINOv2():
                    features = taps[0]["backbone"].unflatten(0, (-1, len(batch)))  # (g, n, d)
                    loss, parts = dinov2_loss(s, t, *patches, features, **centers, **vars(config.objective))
                case DINO():
                    loss, parts = dino_loss(s, t, **centers, **vars(config.objective))
            centers = {name: parts.pop(name) for name in centers}

            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), o.clip or math.inf)
            optimizer.step()
            if o.teacher == "ema":
                torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

            logged = step % config.record.log_every == 0 or step + 1 == o.steps
            kept = (step + 1) % config.record.checkpoint_every == 0 or step + 1 == o.steps
            if (logged or kept) and not math.isfinite(loss.item() + norm.item()):
                raise FloatingPointError(f"{path.name}: loss or gradient is not finite at step {step}")
            if logged:
                row = {"step": step, "loss": loss.item(), **{f"loss_{k}": v.item() for k, v in parts.items()}}
                row |= feature_monitors(taps[0]["head"].detach().unflatten(0, (-1, len(batch))), references)
                row |= {"lr": rate, "weight_decay": weight_decay, "ema": momentum, "gradient_norm": norm.item()}
                log.write(json.dumps(row | {"seconds": time.perf_counter() - began}) + "\n")
                log.flush()
                shown = "alignment {alignment:.3f}, rate / isotropic / ceiling {rate:.1f} / {rate_isotropic:.1f} / "
                bar.set_postfix_str((shown + "{rate_ceiling:.1f}").format_map(row))
            if kept:
                seconds = {"seconds": time.perf_counter() - began, "recording_seconds": recording}
                save_checkpoint(path, step + 1, seconds, branches, optimizer, centers)
    recording += record(path, o.steps, config, probe, branches)
    seconds = {"seconds": time.perf_counter() - began, "recording_seconds": recording}
    write_text(path / "DONE", json.dumps(seconds) + "\n")


def usable(device: str | None) -> str:
    """The device that was asked for, or cuda where there is one; a ValueError if it cannot be used."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices, none for biases and normalisation, as in DINO."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "decay": 1.0},
        {"params": [p for p in parameters if p.ndim <= 1], "decay": 0.0},
    ]


def schedules(o: Optim, step: int) -> tuple[float, float, float]:
    """Learning rate (linear warm-up, then cosine), weight decay and teacher momentum (cosines) at a step."""

    def cosine(first: float, last: float, done: float) -> float:
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    warmup, done = round(o.warmup * o.steps), step / o.steps
    if step < warmup:
        rate = o.lr * (step + 1) / (warmup + 1)
    else:
        rate = cosine(o.lr, o.lr_end, (step - warmup) / (o.steps - warmup))
    return rate, cosine(o.weight_decay, o.weight_decay_end, done), cosine(o.ema, o.ema_end, done)


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The images of one step: a fresh permutation every epoch, its incomplete last batch left out."""
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, stream("order", seed, epoch))[batch * batch_size : (batch + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def patch_masks(config: Config, n: int, generator: torch.Generator) -> Tensor:
    """Masked patches `(n, p)` of n global crops."""
    side, c = config.crops.global_size // config.model.patch, config.crops
    return block_masks(n, (side, side), ratio=c.mask_ratio, p=c.mask_p, generator=generator).flatten(1)


def masked_patches(network: Network, taps: dict[str, Tensor], masks: Tensor | None) -> Tensor | None:
    """The masked patches of all crops, packed `(m, d)`, through their head; None without masks."""
    return None if masks is None else (network.patch_head or network.head)(taps["patches"][masks])[0]


def patch_weights(masks: Tensor | None) -> Tensor | None:
    """1/(masked patches of the crop)/(crops, masked or not) of each packed patch `(m,)`."""
    return None if masks is None else (masks / masks.sum(1, keepdim=True).clamp(min=1))[masks] / len(masks)


def rate_references(config: Config, device: str) -> dict[str, float]:
    """What the logged rate is read against, for this batch size: isotropic random features, and the ceiling."""
    eps = config.objective.eps if isinstance(config.objective, SimDINO) else SimDINO.eps
    n, d = config.optim.batch_size, config.model.out
    draw = torch.randn(64, n, d, generator=torch.Generator().manual_seed(stream("isotropic"))).to(device)
    isotropic = coding_rate(F.normalize(draw, dim=-1), eps=eps).mean().item()
    r = min(n, d)
    return {"eps": eps, "rate_isotropic": isotropic, "rate_ceiling": r / 2 * math.log1p(d / eps**2 / r)}


def feature_monitors(z: Tensor, references: dict[str, float]) -> dict[str, float]:
    """Alignment and rate of the student's global views `(g, n, d)`, measured alike for every objective."""
    alignment = (z[0] - z[1]).square().sum(-1).mean() / 2
    rate = coding_rate(z, eps=references["eps"]).mean()
    return {"alignment": alignment.item(), "rate": rate.item(), **references}


def save_checkpoint(path: Path, step: int, seconds: dict, branches: dict, optimizer, centers: dict) -> None:
    """Everything that the next step depends on, in one file."""
    tensors = {f"{b}.{k}": v for b, network in branches.items() for k, v in network.state_dict().items()}
    for name, p in branches["student"].named_parameters():
        tensors |= {f"optimizer.{name}/{k}": v for k, v in optimizer.state[p].items()}
    metadata = {"step": str(step), **{k: str(v) for k, v in seconds.items()}, **_origin(branches)}
    write_tensors(path / "checkpoint.safetensors", tensors | centers, metadata)


def _origin(branches: dict) -> dict[str, str]:
    """What must be the same for a run to be continued exactly."""
    device = next(branches["student"].parameters()).device
    return {"source": SOURCE, "torch": torch.__version__, "device": device.type}


def resume(path: Path, branches: dict, optimizer, centers: dict) -> tuple[int, float, float]:
    """Restore a checkpoint in place and cut the log back to it; (step to go on from, seconds spent, recording).

    A run that another source, torch or kind of device began, or that never reached a checkpoint, is removed: it
    cannot be continued exactly. Anything else in its place is left alone, and a ValueError.
    """
    checkpoint = path / "checkpoint.safetensors"
    metadata = read_metadata(checkpoint) if checkpoint.is_file() else {}
    if not _origin(branches).items() <= metadata.items():
        if path.exists():
            if any(path.iterdir()) and not (path / "config.json").is_file():
                raise ValueError(f"{path} is in the way: it is not a run")
            shutil.rmtree(path)
        return 0, 0.0, 0.0
    tensors, step = read_tensors(checkpoint), int(metadata["step"])
    device = next(branches["student"].parameters()).device

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    for branch, network in branches.items():
        network.load_state_dict(under(f"{branch}."))
    for name, p in branches["student"].named_parameters():
        optimizer.state[p] = under(f"optimizer.{name}/")
    for name, center in centers.items():
        center.copy_(tensors[name])
    rows = read_rows(path / "metrics.jsonl", whole=False)
    kept = [json.dumps(row) + "\n" for row in rows if row["step"] < step]
    write_text(path / "metrics.jsonl", "".join(kept))
    return step, float(metadata["seconds"]), float(metadata["recording_seconds"])


def main(arguments: list[str] | None = None) -> None:
    """The command line; a mistake is one sentence and an exit status that is not 0."""
    parser = argparse.ArgumentParser(
        prog="python -m simdino.train",
        description="Train a recipe. Every field of its configuration is an option: <recipe> --help-all lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help=", ".join(RECIPES))
    parser.add_argument("--profile", default="cpu", help=", ".join(PROFILES))
    parser.add_argument("--root", default="runs", help="directory of the runs")
    parser.add_argument("--device", help="cpu or cuda; the default is cuda where there is one")
    known, rest = parser.parse_known_args(arguments)
    rest = ["--help" if a == "--help-all" else a for a in rest]
    try:
        import tyro  # only the command line needs it

        default = recipe(known.recipe, known.profile)
        prog = f"{parser.prog} {known.recipe}"
        config = tyro.cli(tyro.conf.AvoidSubcommands[Config], default=default, args=rest, prog=prog)
        run = get_run(config, known.root, device=known.device)
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except ImportError as error:
        parser.exit(1, f"{parser.prog}: {error}: pip install -e '.[train]' has what training needs\n")
    print(f"{run.path}: {run.steps[-1]} steps; read it with python -m analysis.report {run.path}")


if __name__ == "__main__":
    main()
