"""One training run, top to bottom: `simdino train RECIPE[@field=value,...]`.

On several devices: `torchrun --nproc-per-node 8 -m simdino train RECIPE`. A batch, its views and its masks are the same
on any number of ranks. All randomness of a step follows from the seed and the step, so a resumed run continues exactly
(on a CPU, to the bit).
"""

import argparse
import functools
import json
import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from filelock import FileLock, SoftFileLock
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from simdino.augment import block_masks, multi_crop
from simdino.checkpoint import clear, cut_log, resume, save_checkpoint
from simdino.config import DINO, Config, DINOv2, SimDINO, SimDINOv2, derived_seed, fields_table
from simdino.data import load
from simdino.image_files import batches
from simdino.losses import coding_rate, dino_loss, dinov2_loss, gather_rows, simdino_loss, simdinov2_loss
from simdino.optim import clip_gradients, parameter_groups, schedules, teacher_temperature
from simdino.recipes import NOTES, PROFILES, RECIPES, recipe
from simdino.record import probe_images, record_snapshot, snapshot_steps
from simdino.runs import CHECKOUT, SOURCE, Run, environment, write_json, write_tensors, write_text
from simdino.vit import Network, usable_device

RUNS = CHECKOUT / "runs" if (CHECKOUT / "pyproject.toml").is_file() else Path("runs")


# What ends a command with one sentence: bad input, a damaged file, an absent package, a loss that is not finite.
REFUSALS = (ValueError, OSError, ImportError, FloatingPointError, torch.OutOfMemoryError)


def get_run(config: Config, root: str | Path | None = None, *, device: str | None = None, progress: bool = True) -> Run:
    """Return the run of a configuration: read where it is on disk, resumed where it was cut short, else trained.

    Two processes that ask for one run train it once: the second waits. A run that was cut short is resumed only under
    the source that began it, and otherwise starts anew; a complete one of another source is returned with a warning.

    Args:
        config: what to train, say from `simdino.recipes.recipe`.
        root: the directory of the runs; None is runs/ of the checkout, whatever folder a notebook runs in.
        device: "cpu" or "cuda"; None is cuda where there is one.
        progress: whether a bar shows how far training is.

    Raises:
        ValueError: images, network or ranks that do not fit the configuration; something else in the run's place.
        OSError: a folder that cannot be written or locked.
        FloatingPointError: a loss or a gradient that is not finite.
    """
    path, device = Path(root or RUNS) / config.run_name, usable_device(device)
    done = path / "DONE"
    with _locked(path) if ranks().rank == 0 and not done.is_file() else nullcontext():
        if not _of_first_rank(done.is_file(), device):
            with torch.random.fork_rng():  # the caller's random numbers are not ours to move
                _train(config, path, device=device, progress=progress)
        _of_first_rank(True, device)  # which has written the end of it
    run = Run.load(path)
    if run.environment["source"] != SOURCE:
        warnings.warn(f"{path} was trained by another version of simdino/; delete it to train it anew", stacklevel=2)
    return run


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from training a run meanwhile; the lock ends with the process, however that ends."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(action="ignore"):
            lock.acquire()
        if isinstance(lock, SoftFileLock):  # what filelock falls back to outlives a process that is killed
            lock.release()
            raise NotImplementedError("the file system has no locks")
    except (OSError, NotImplementedError) as error:
        raise OSError(
            f"runs need a folder that can be written and locked, and {path.parent} is none: {error}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _train(config: Config, path: Path, *, device: str, progress: bool) -> None:
    """Train a configuration into its run directory, from a checkpoint if there is a usable one."""
    o, (rank, world) = config.optim, ranks()
    data, lazy = config.data, config.data.workers > 0
    images = load(data.name, root=data.root, size=data.size, device=device, lazy=lazy)
    if o.batch_size > len(images.train):
        raise ValueError(f"batch_size {o.batch_size} is larger than the {len(images.train)} training images")
    parts = max(o.groups, world)  # of a batch: each is on one rank at a time
    if parts % world or (world > o.groups > 1) or o.batch_size % parts:
        raise ValueError(f"{world} ranks cannot share a batch of {o.batch_size} in {o.groups} groups evenly")
    share, rows = parts // world, o.batch_size // parts
    branches = networks(config, images.train.shape[1], device)
    student, teacher = branches["student"], list(branches.values())[-1]
    optimizer = torch.optim.AdamW(parameter_groups(student, o), lr=o.lr, fused=True)
    centers = {}
    if isinstance(config.objective, DINO):
        names = ["center"] + ["patch_center"] * config.patches
        centers = {name: torch.zeros(config.model.prototypes, device=device) for name in names}
    if rank == 0:
        clear(path, branches)
    _of_first_rank(True, device)
    start, spent, recording = resume(path, branches, optimizer, centers)
    probe, references = probe_images(images, config, device), rate_references(config, device)
    if rank == 0 and start == 0:
        path.mkdir()
        write_json(path / "config.json", config)
        write_json(path / "environment.json", environment(device) | {"ranks": world})
        write_tensors(path / "probe.safetensors", {k: v for k, v in probe.items() if k != "views"})
    elif rank == 0:
        cut_log(path / "metrics.jsonl", start)
    snapshots = snapshot_steps(o.steps, config.record.snapshots) if rank == 0 else set()
    recorded = branches if o.teacher == "ema" else {"student": student}  # a frozen one is a target, and no result
    network = student if world == 1 else DistributedDataParallel(student, broadcast_buffers=False)
    order = (batch_indices(len(images.train), o.batch_size, config.seed, s) for s in range(start, o.steps))
    loader = batches(images.train, (b.chunk(world)[rank] for b in order), workers=data.workers, device=device)
    began = time.perf_counter() - spent
    show = progress and rank == 0
    bar = tqdm(range(start, o.steps), initial=start, total=o.steps, desc=path.name, disable=not show)
    with open(path / "metrics.jsonl" if rank == 0 else os.devnull, "a") as log:
        for step, batch in zip(bar, loader, strict=True):  # (rows of this rank, c, h, w)
            if step in snapshots:
                recording += record_snapshot(path, step, config, probe, recorded)
            rate, weight_decay, momentum = schedules(o, step)
            for group in optimizer.param_groups:
                group.update(lr=rate * group["factor"], weight_decay=weight_decay * group["decay"])
            logged = step % config.record.log_every == 0 or step + 1 == o.steps
            kept = (step + 1) % config.record.checkpoint_every == 0 or step + 1 == o.steps

            optimizer.zero_grad()
            masks, rows_logged, moved = patch_masks(config, step), [], []  # (g, n, p) of the whole batch
            for k, some in enumerate(batch.split(rows)):
                part = rank * share + k
                generator = torch.Generator().manual_seed(derived_seed("crops", config.seed, step))
                torch.manual_seed(derived_seed("depth", config.seed, step, part))  # for stochastic depth
                crops = multi_crop(some, config.crops, generator, part=(part, parts))  # (g, n, …), (l, n, …)
                mask = None if masks is None else masks[:, part * rows : (part + 1) * rows].to(device)
                with nullcontext() if world == 1 or k + 1 == share else network.no_sync():
                    loss, terms, s, z = group_loss(config, network, teacher, crops, mask, centers, step)
                    moved.append({name: terms.pop(name) for name in centers})
                    if logged:
                        row = {"loss": loss, **{f"loss_{name}": term for name, term in terms.items()}}
                        row |= feature_monitors(z, references["eps"]) | gradient_monitors(s, terms, config)
                        rows_logged.append(row)
                    (loss / share).backward()
            centers = mean_centers(moved, masks, world)
            norm = clip_gradients(student, o)
            if step < round(o.freeze_prototypes * o.steps):
                for p in (p for name, p in student.named_parameters() if "last_layer" in name):
                    p.grad = None
            optimizer.step()
            if o.teacher == "ema":
                torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

            if (logged or kept) and not math.isfinite(_mean_over_ranks({"": loss + norm})[""]):
                raise FloatingPointError(f"{path.name}: loss or gradient is not finite at step {step}")
            if logged:
                row = {"step": step} | _mean_over_ranks({k: sum(r[k] for r in rows_logged) / share for k in row})
                row |= references | {"lr": rate, "weight_decay": weight_decay, "ema": momentum}
                row |= {"gradient_norm": norm.item(), "seconds": time.perf_counter() - began}
                log.write(json.dumps(row) + "\n")
                log.flush()
                shown = "alignment {alignment:.3f}, rate / isotropic / ceiling {rate:.1f} / {rate_isotropic:.1f} / "
                bar.set_postfix_str((shown + "{rate_ceiling:.1f}").format_map(row))
            if kept and rank == 0:
                seconds = {"seconds": time.perf_counter() - began, "recording_seconds": recording}
                save_checkpoint(path, step + 1, seconds, branches, optimizer, centers)
    if rank == 0:
        recording += record_snapshot(path, o.steps, config, probe, recorded)
        seconds = {"seconds": time.perf_counter() - began, "recording_seconds": recording}
        write_text(path / "DONE", json.dumps(seconds) + "\n")


class GroupLoss(NamedTuple):
    """The loss of one group of images, and what it is of."""

    loss: Tensor
    terms: dict[str, Tensor]  # its named parts
    outputs: Tensor  # the student's, of all views (g + l, n, d)
    features: Tensor  # the head's, of the student's global views (g, n, d)


def group_loss(
    config: Config,
    student: torch.nn.Module,
    teacher: Network,
    crops: tuple[Tensor, Tensor],
    masks: Tensor | None,
    centers: dict[str, Tensor],
    step: int,
) -> GroupLoss:
    """Compute the loss of one group of images: their crops through both networks, and the objective of the outputs.

    The targets are the teacher's outputs of the global views, nothing of which is hidden from it.

    Args:
        config: the run's.
        student: a network, perhaps wrapped to run on several ranks.
        teacher: the network that makes the targets.
        crops: global views (g, n, c, s, s) and local views (l, n, c, t, t).
        masks: the hidden patches of the global views (g, n, p), or None for an objective without patches.
        centers: DINO's, by name (k,); empty for SimDINO.
        step: which one it is, for the teacher's temperature.
    """
    o, n = config.optim, crops[0].shape[1]
    full_gradient = o.teacher == "student-with-gradient"
    views = [c.flatten(0, 1) for c in crops if len(c)]  # (g·n, …), (l·n, …)
    masks = None if masks is None else masks.flatten(0, 1)  # (g·n, p)
    with torch.autocast(views[0].device.type, torch.bfloat16, enabled=o.precision == "bf16"):
        outs, taps = zip(*(student(x, m, m) for x, m in zip(views, (masks, None), strict=False)), strict=True)
        with torch.set_grad_enabled(full_gradient):
            alone = o.teacher.startswith("student") and masks is None  # then the student has just made the targets
            target, target_taps = (outs[0], taps[0]) if alone else teacher(views[0], None, masks)
    target = target if full_gradient else target.detach()
    s, t = (x.unflatten(0, (-1, n)) for x in (torch.cat(outs), target))  # (g + l, n, d), (g, n, d)
    z = taps[0]["head"].unflatten(0, (-1, n)).detach()  # (g, n, d)
    patches = () if masks is None else (taps[0]["selected"], target_taps["selected"], patch_weights(masks))
    if ranks().world > o.groups:  # the ranks share one group: its rate is that of all its rows
        z = gather_rows(z)
        if isinstance(config.objective, SimDINO):  # a mean of cross-entropies needs no more than the mean of gradients
            s, t, *patches = map(gather_rows, (s, t, *patches))
    temp = {"teacher_temp": teacher_temperature(o, config.objective.teacher_temp, step)} if centers else {}
    options = vars(config.objective) | centers | temp
    match config.objective:
        case SimDINOv2():
            loss, terms = simdinov2_loss(s, t, *patches[:2], patches[2] * n / s.shape[1], **options)
        case SimDINO():
            loss, terms = simdino_loss(s, t, **options)
        case DINOv2():
            features = taps[0]["backbone"].unflatten(0, (-1, n))  # (g, n, d)
            loss, terms = dinov2_loss(s, t, *patches, features, **options)
        case DINO():
            loss, terms = dino_loss(s, t, **options)
    return GroupLoss(loss, terms, s, z)


def networks(config: Config, channels: int, device: str) -> dict[str, Network]:
    """Build the student and, unless the student is its own teacher, the teacher: equal weights, no stochastic depth.

    Args:
        config: the run's; its seed decides the weights.
        channels: of the images.
        device: where the networks are.

    Returns:
        The networks by name, "student" first.
    """
    o, shape = config.optim, {"size": config.crops.global_size, "channels": channels}
    torch.manual_seed(derived_seed("weights", config.seed))
    branches = {"student": Network(config.model, **shape).to(device)}
    if not o.teacher.startswith("student"):
        teacher = Network(replace(config.model, drop_path=0.0), **shape).to(device).requires_grad_(False)
        teacher.load_state_dict(branches["student"].state_dict())
        branches["teacher"] = teacher
    for block in (block for network in branches.values() for block in network.backbone.blocks if o.compile):
        block.compile()
    return branches


def mean_centers(moved: list[dict[str, Tensor]], masks: Tensor | None, world: int) -> dict[str, Tensor]:
    """Average the centers that a step's groups led to, each weighted by the rows that it saw.

    Args:
        moved: each group's centers after the step, by name (k,).
        masks: hidden patches of the whole batch (g, n, p), or None.
        world: how many ranks share the batch, in equal parts one after another.

    Returns:
        The centers for the next step, by name (k,).
    """
    counts = {"center": torch.ones(len(moved))}
    if masks is not None:  # of each of a rank's groups, the patches that are masked on all ranks
        counts["patch_center"] = masks.unflatten(1, (world, len(moved), -1)).sum((0, 1, 3, 4)) + 1e-9
    means = {}
    for name in moved[0]:
        centers = torch.stack([m[name] for m in moved], -1)  # (k, groups)
        means[name] = centers @ (counts[name] / counts[name].sum()).to(centers)
    return means


def feature_monitors(z: Tensor, eps: float) -> dict[str, Tensor]:
    """Measure alignment and rate of the student's features, alike for every objective.

    Args:
        z: the head's features of the global views (g, n, d).
        eps: the paper's ε, for the rate.
    """
    return {"alignment": (z[0] - z[1]).square().sum(-1).mean() / 2, "rate": coding_rate(z, eps=eps).mean()}


def gradient_monitors(s: Tensor, terms: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Measure how hard SimDINO's two terms pull at the features of the global views.

    gradient_alignment = ‖g·∂alignment/∂s‖_F ≤ 2/√n,  gradient_rate = ‖g·γ·∂rate/∂s‖_F ≤ γ·½·√(αr/n)

    with α = d/ε² and r = min(n, d): norms of one view's gradient, root mean square over the g global views.

    Args:
        s: the student's outputs (v, n, d).
        terms: the loss' parts, "alignment" and "rate" among them.
        config: the run's; of DINO there is nothing to measure, and the result is empty.
    """
    if not isinstance(config.objective, SimDINO):
        return {}
    g, weights = config.crops.global_crops, {"alignment": 1.0, "rate": config.objective.gamma}
    pulls = {name: torch.autograd.grad(terms[name], s, retain_graph=True)[0][:g] for name in weights}
    return {f"gradient_{name}": weights[name] * math.sqrt(g) * pull.norm() for name, pull in pulls.items()}


class Ranks(NamedTuple):
    """Which of several processes this one is."""

    rank: int
    world: int  # how many there are


def ranks() -> Ranks:
    """Return this process' rank and how many there are: 0 of 1 where it is alone."""
    running = dist.is_available() and dist.is_initialized()
    return Ranks(dist.get_rank(), dist.get_world_size()) if running else Ranks(0, 1)


def join_ranks(device: str | None = None) -> None:
    """Join the other processes that torchrun started, each with a GPU of its own; without torchrun, do nothing."""
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        if on_gpu := usable_device(device).startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")


def _of_first_rank(value: bool, device: str) -> bool:
    """Give all ranks the first one's value, for which they wait."""
    flag = torch.tensor(float(value), device=device)
    if ranks().world > 1:
        dist.broadcast(flag, 0)
    return bool(flag)


def _mean_over_ranks(row: dict[str, Tensor]) -> dict[str, float]:
    """Average numbers over the ranks, which all call this."""
    values = torch.stack([v.detach().double() for v in row.values()])
    if ranks().world > 1:
        dist.all_reduce(values)
    return dict(zip(row, (values / ranks().world).tolist(), strict=True))


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Return the images of one step, of a fresh permutation every epoch; an incomplete last batch is left out.

    Args:
        n: how many images there are.
        batch_size: images in each step.
        seed: the run's.
        step: which one, over all epochs.

    >>> torch.cat([batch_indices(6, 2, seed=0, step=i) for i in range(3)]).sort().values.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    epoch, batch = divmod(step, n // batch_size)
    return _permutation(n, derived_seed("order", seed, epoch))[batch * batch_size : (batch + 1) * batch_size]


@functools.lru_cache(maxsize=1)
def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def patch_masks(config: Config, step: int) -> Tensor | None:
    """Draw which patches of a step's global views are hidden, (g, n, p); None for an objective without patches."""
    if not config.patches:
        return None
    side, c, n = config.crops.global_size // config.model.patch, config.crops, config.optim.batch_size
    generator = torch.Generator().manual_seed(derived_seed("masks", config.seed, step))
    masks = block_masks(c.global_crops * n, (side, side), ratio=c.mask_ratio, p=c.mask_p, generator=generator)
    return masks.flatten(1).unflatten(0, (c.global_crops, n))


def patch_weights(masks: Tensor) -> Tensor:
    """Weigh the masked patches so that each masked crop counts alike: 1/(masked patches of the crop)/(all crops).

    Args:
        masks: the hidden patches, crop by crop (n, p).

    Returns:
        A weight for each hidden patch (m,), crop after crop; those of a masked crop sum to 1/n.

    >>> patch_weights(torch.tensor([[True, True, False], [False, False, False]])).tolist()
    [0.25, 0.25]
    """
    return (masks / masks.sum(1, keepdim=True).clamp(min=1))[masks] / len(masks)


def rate_references(config: Config, device: str) -> dict[str, float]:
    """Compute what the logged rate is read against, for as many images as a group has.

    Args:
        config: the run's.
        device: where the isotropic features are drawn.

    Returns:
        `eps`, the paper's ε; `rate_isotropic`, the mean rate of random unit features; `rate_ceiling`, the largest
        rate there is, r/2·log(1 + d/(ε²r)) with r = min(n, d). Rates are in nats.
    """
    eps = config.objective.eps if isinstance(config.objective, SimDINO) else SimDINO.eps
    n, d = config.optim.batch_size // config.optim.groups, config.model.out
    draw = torch.randn(64, n, d, generator=torch.Generator().manual_seed(derived_seed("isotropic"))).to(device)
    isotropic = coding_rate(F.normalize(draw, dim=-1), eps=eps).mean().item()
    r = min(n, d)
    return {"eps": eps, "rate_isotropic": isotropic, "rate_ceiling": r / 2 * math.log1p(d / eps**2 / r)}


_USAGE = "simdino train RECIPE[@field=value,...] [--profile P] [--seed N] [--root DIR] [--device D] [--fields]"
_VARIANTS = """
A variant of a recipe changes fields of its configuration, which --fields lists:

  simdino train simdino@optim.lr=0.002,optim.steps=400
  simdino train simdino@crops.global_scale=0.2,1.0
  simdino train dino@data.name=folder,data.root=my_images,data.size=32   # my_images/<class>/*.png

On several devices: torchrun --nproc-per-node 8 -m simdino train RECIPE

recipes:
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a mistake is one sentence and an exit status that is not 0."""
    parser = argparse.ArgumentParser(
        prog="simdino train",
        usage=_USAGE,
        description="Train a recipe into a run directory: a run that is there is left, one cut short goes on.",
        epilog=_VARIANTS + "\n".join(f"  {name:30s} {note}" for name, note in NOTES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a recipe, or a variant of one: both below")
    parser.add_argument("--profile", default="cpu", help=f"{', '.join(PROFILES)} (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of all the randomness of the run (default: 0)")
    parser.add_argument("--root", default="runs", help="directory of the runs (default: runs)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--fields", action="store_true", help="print every field with its value and type; train nothing"
    )
    given, rest = parser.parse_known_args(arguments)
    try:
        if rest:
            raise ValueError(_remedy(given.recipe, rest))
        config = recipe(given.recipe, given.profile, given.seed)
        if given.fields:
            print(fields_table(config))
            if (share := PROFILES[given.profile].steps) != 1:
                print(f"Profile {given.profile} trains {share:g} of the optim.steps that a recipe or variant says.")
            return
        join_ranks(given.device)
        run = get_run(config, given.root, device=given.device)
    except REFUSALS as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if ranks().rank == 0:
        print(f"{run.path}: {run.steps[-1]} steps; read it with simdino report {run.path}")
    if dist.is_initialized():
        dist.destroy_process_group()


def _remedy(name: str, rest: list[str]) -> str:
    """Say how what is no option is written: --optim.lr 0.002 as simdino@optim.lr=0.002."""
    options = [re.split("[ =]", option, maxsplit=1) for option in f" {' '.join(rest)}".split(" --")[1:]]
    changes = {field.replace("-", "_"): ",".join(words).replace(" ", ",") for field, *words in options if "." in field}
    if not changes:
        return f"there is no option {' '.join(rest)}; --help lists them"
    if name.partition("@")[0] not in RECIPES:  # the recipe came last, and an option's value was taken for it
        name, changes = "RECIPE", dict.fromkeys(changes, "...")
    written = ",".join(f"{field}={value}" for field, value in changes.items())
    return f"--{options[0][0]} is no option: write {name}{',' if '@' in name else '@'}{written}"
