"""One training run, top to bottom: `simdino train RECIPE[@field=value,...]`.

On several devices: `torchrun --nproc-per-node 8 -m simdino train RECIPE`. A batch, its views and its masks are the same
on any number of ranks. All randomness of a step follows from the seed and the step, so a resumed run continues exactly
(on a CPU, to the bit).
"""

import argparse
import ctypes
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from filelock import FileLock, SoftFileLock
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from simdino.augment import make_views, moved
from simdino.checkpoint import clear, cut_log, resume, save_checkpoint
from simdino.config import DINO, Config, DINOv2, SimDINO, SimDINOv2, derived_seed, fields_table
from simdino.data import load
from simdino.image_files import batches
from simdino.interruption import Interrupted, stop_requests
from simdino.losses import dino_loss, dinov2_loss, simdino_loss, simdinov2_loss
from simdino.optim import clip_gradients, parameter_groups, schedules
from simdino.ranks import join_ranks, largest_over_ranks, of_first_rank, ranks, sharing_ranks
from simdino.recipes import NOTES, PROFILES, RECIPES, recipe
from simdino.record import probe_images, record_snapshot, record_weights, snapshot_steps
from simdino.runs import CHECKOUT, Run, environment
from simdino.step_inputs import Hidden, batch_indices, step_inputs
from simdino.step_log import StepLog
from simdino.vit import Network, usable_device
from simdino.whole_files import write_json, write_tensors, write_text

RUNS = CHECKOUT / "runs" if (CHECKOUT / "pyproject.toml").is_file() else Path("runs")


# What ends a command with one sentence: bad input, a damaged file, an absent package, a loss that is not finite.
REFUSALS = (ValueError, OSError, ImportError, FloatingPointError, torch.OutOfMemoryError)


def get_run(config: Config, root: str | Path | None = None, *, device: str | None = None, progress: bool = True) -> Run:
    """Return the run of a configuration: read where it is on disk, resumed where it was cut short, else trained.

    Two processes that ask for one run train it once: the second waits. A run that was cut short is resumed only under
    the code that began it, and otherwise starts anew. A complete one is returned whatever code trained it: whether
    today's gives the same is what the test of the golden steps says.
    On SIGINT (Ctrl-C) or SIGTERM a run finishes its step and keeps it, to go on there; of several ranks, the next step
    at which the costlier numbers are logged.

    Args:
        config: what to train, say from `simdino.recipes.recipe`.
        root: the directory of the runs; None is runs/ of the checkout, whatever folder a notebook runs in.
        device: "cpu" or "cuda"; None is cuda where there is one.
        progress: whether a bar shows how far training is.

    Raises:
        ValueError: images, network or ranks that do not fit the configuration; something else in the run's place.
        OSError: a folder that cannot be written or locked.
        FloatingPointError: a loss or a gradient that is not finite.
        KeyboardInterrupt: a signal has stopped the run.
    """
    path, device = Path(root or RUNS).expanduser() / config.run_name, usable_device(device)
    done = path / "DONE"
    with _locked(path) if ranks().rank == 0 and not done.is_file() else nullcontext():
        if not of_first_rank(done.is_file(), device):
            with torch.random.fork_rng():  # the caller's random numbers are not ours to move
                _train(config, path, device=device, progress=progress)
        of_first_rank(True, device)  # which has written the end of it
    return Run.load(path)


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
    refuse_slow_precision(o.precision, device)
    keep_freed_memory()
    data, lazy = config.data, config.data.workers > 0
    images = load(data.name, root=data.root, size=data.size, device=device, lazy=lazy)
    if rank == 0 and progress and images.read:
        print(images.read, flush=True)
    if o.batch_size > len(images.train):
        raise ValueError(f"batch_size {o.batch_size} is larger than the {len(images.train)} training images")
    parts = max(o.groups, world)  # of a batch: each is on one rank
    if parts % min(o.groups, world) or o.batch_size % parts:
        raise ValueError(f"{world} ranks cannot share a batch of {o.batch_size} in {o.groups} groups evenly")
    share, team = parts // world, sharing_ranks(o.groups)
    branches = networks(config, images.train.shape[1], device)
    student, teacher = branches["student"], list(branches.values())[-1]
    anchored = isinstance(config.objective, SimDINOv2) and config.objective.gram_weight > 0
    anchor = untrained(config, images.train.shape[1], device, target=True) if anchored else None
    frozen = [p for name, p in student.named_parameters() if "last_layer" in name]  # in the first steps
    optimizer = torch.optim.AdamW(parameter_groups(student, o), lr=o.lr, fused=True)
    centers = {}
    if isinstance(config.objective, DINO):
        names = ["center"] + ["patch_center"] * config.patches
        centers = {name: torch.zeros(config.model.prototypes, device=device) for name in names}
    if rank == 0:
        clear(path, branches)
    of_first_rank(True, device)
    start, spent, recording = resume(path, branches, optimizer, centers)
    probe = probe_images(images, config) if rank == 0 else {}
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
    loss_of = group_loss
    if o.compile != "no":
        loss_of = torch.compile(group_loss, fullgraph=world == 1, mode=o.compile)
    order = (batch_indices(len(images.train), o.batch_size, config.seed, s) for s in range(start, o.steps))
    mine = (batch.chunk(world)[rank] for batch in order)
    decoded = batches(images.train, mine, workers=data.workers, device=device) if lazy else None
    decoding = closing(decoded) if lazy else nullcontext()  # or its processes would outlive what goes wrong
    began = time.perf_counter() - spent
    saved, saved_at = start, time.perf_counter()
    bar = tqdm(range(start, o.steps), initial=start, total=o.steps, desc=path.name, disable=not progress or rank > 0)
    log_path = path / "metrics.jsonl" if rank == 0 else os.devnull
    with open(log_path, "a", encoding="utf-8") as file, decoding, stop_requests() as request:
        log = StepLog(config, file, team)
        for step in bar:
            if step in snapshots:
                recording += record_snapshot(path, step, config, probe, recorded)
            if rank == 0 and step in config.record.weights:
                record_weights(path, step, branches)
            rate, weight_decay, momentum = schedules(o, step)
            for group in optimizer.param_groups:
                group.update(lr=rate * group["factor"], weight_decay=weight_decay * group["decay"])
            costly = step % config.record.log_every == 0 or step + 1 == o.steps

            optimizer.zero_grad()
            inputs = moved(step_inputs(config, images.train.shape, step, device=device, rank=rank, world=world), device)
            files = next(decoded).chunk(share) if lazy else None
            measured, centers_of = [], []
            for k, drawn in enumerate(inputs):
                torch.manual_seed(derived_seed("depth", config.seed, step, rank * share + k))  # for stochastic depth
                some = files[k] if lazy else images.train.index_select(0, drawn.images)
                crops = make_views(some, config.crops, drawn.views)  # (g, n, …), (l, n, …)
                with nullcontext() if world == 1 or k + 1 == share else network.no_sync():
                    loss = loss_of(
                        config, network, teacher, crops, drawn.hidden, centers, drawn.teacher_temp, team, anchor
                    )
                    centers_of.append({name: loss.terms.pop(name) for name in centers})
                    measured.append(log.measure(loss, drawn.hidden, costly=costly))
                    (loss.loss / share).backward()
            centers = mean_centers(centers_of, [drawn.hidden for drawn in inputs])
            norm = clip_gradients(student, o)
            if step < round(o.freeze_prototypes * o.steps):
                for p in frozen:
                    p.grad = None
            optimizer.step()
            if o.teacher == "ema":
                torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

            now = time.perf_counter()
            host = {"lr": rate, "weight_decay": weight_decay, "ema": momentum, "seconds": now - began}
            log.add({"step": step} | host, measured, norm)
            last = step + 1 == o.steps
            stopping = largest_over_ranks(request.number, device) if costly or world == 1 else 0
            if costly or stopping:
                try:
                    row = log.flush()
                except FloatingPointError as error:
                    raise FloatingPointError(f"{path.name}: {error}; its last checkpoint is of step {saved}") from None
                shown = "alignment {alignment:.3f}, rate {rate:.1f} of attainable {rate_isotropic:.1f} "
                bar.set_postfix_str((shown + "(R* {rate_ceiling:.1f})").format_map(row))
            due = last or stopping or (costly and now - saved_at > config.record.checkpoint_seconds)
            if due and rank == 0:
                seconds = {"seconds": time.perf_counter() - began, "recording_seconds": recording}
                save_checkpoint(path, step + 1, seconds, branches, None if last else optimizer, centers)
                saved, saved_at = step + 1, time.perf_counter()
            if stopping:
                of_first_rank(True, device)  # which has saved
                kept = f"stopped {path.name} at step {step + 1} of {o.steps}; the same command goes on there"
                raise Interrupted(stopping, kept)
    if rank == 0:
        recording += record_snapshot(path, o.steps, config, probe, recorded)
        if config.record.weights:
            record_weights(path, o.steps, branches)
        seconds = {"seconds": time.perf_counter() - began, "recording_seconds": recording}
        write_text(path / "DONE", json.dumps(seconds) + "\n")


class GroupLoss(NamedTuple):
    """The loss of one group of images, and what it is of."""

    loss: Tensor
    terms: dict[str, Tensor]  # its named parts
    outputs: Tensor  # the student's, of all views (g + l, n, d)
    targets: Tensor  # the teacher's, of the global views (g, n, d)
    features: Tensor  # the head's, of the student's global views (g, n, d)
    patches: Tensor | None  # the student's outputs for the hidden patches (m, d), if the objective has patches


def group_loss(
    config: Config,
    student: torch.nn.Module,
    teacher: Network,
    crops: tuple[Tensor, Tensor],
    hidden: Hidden | None,
    centers: dict[str, Tensor],
    teacher_temp: Tensor,
    team: "dist.ProcessGroup | None" = None,
    anchor: Network | None = None,
) -> GroupLoss:
    """Compute the loss of one group of images: their crops through both networks, and the objective of the outputs.

    The targets are the teacher's outputs of the global views, nothing of which is hidden from it.

    Args:
        config: the run's.
        student: a network, perhaps wrapped to run on several ranks.
        teacher: the network that makes the targets.
        crops: global views (g, n, c, s, s) and local views (l, n, c, t, t).
        hidden: the hidden patches of the global views, or None for an objective without patches.
        centers: DINO's, by name (k,); empty for SimDINO.
        teacher_temp: DINO's τ_t at this step, 0-d.
        team: the ranks that have the other rows of this group, or None.
        anchor: the network whose patches' similarities are kept to, if the objective has a `gram_weight`.
    """
    o, n = config.optim, crops[0].shape[1]
    full_gradient = o.teacher == "student-with-gradient"
    views = [c.flatten(0, 1) for c in crops if len(c)]  # (g·n, …), (l·n, …)
    masks, select = (None, None) if hidden is None else hidden[:2]
    with torch.autocast(views[0].device.type, torch.bfloat16, enabled=o.precision == "bf16"):
        outs, taps = zip(*(student(x, *of) for x, of in zip(views, ((masks, select), ()), strict=False)), strict=True)
        with torch.set_grad_enabled(full_gradient):
            alone = o.teacher.startswith("student") and masks is None  # then the student has just made the targets
            target, target_taps = (outs[0], taps[0]) if alone else teacher(views[0], None, select)
        with torch.no_grad():
            anchored = () if anchor is None else (anchor(views[0], None, select)[1]["selected"],)
    target = target if full_gradient else target.detach()
    s, t = (x.unflatten(0, (-1, n)) for x in (torch.cat(outs), target))  # (g + l, n, d), (g, n, d)
    z = taps[0]["head"].unflatten(0, (-1, n)).detach()  # (g, n, d)
    patches = () if hidden is None else (taps[0]["selected"], target_taps["selected"], hidden.weights)
    options = vars(config.objective) | centers
    if isinstance(config.objective, DINO):
        options["teacher_temp"] = teacher_temp
    else:
        options["group"] = team
    if isinstance(config.objective, SimDINOv2):
        loss, terms = simdinov2_loss(s, t, *patches, *anchored, most_patches=masks.shape[1], **options)
    elif isinstance(config.objective, SimDINO):
        loss, terms = simdino_loss(s, t, **options)
    elif isinstance(config.objective, DINOv2):
        loss, terms = dinov2_loss(s, t, *patches, taps[0]["backbone"].unflatten(0, (-1, n)), **options)
    else:
        loss, terms = dino_loss(s, t, **options)
    return GroupLoss(loss, terms, s, t, z, taps[0].get("selected"))


def networks(config: Config, channels: int, device: str) -> dict[str, Network]:
    """Build the student and, unless the student is its own teacher, the teacher: equal weights, no stochastic depth.

    Args:
        config: the run's; its seed decides the weights.
        channels: of the images.
        device: where the networks are.

    Returns:
        The networks by name, "student" first.
    """
    branches = {"student": untrained(config, channels, device)}
    branches["student"].backbone.checkpointing = config.optim.checkpointing
    if not config.optim.teacher.startswith("student"):
        branches["teacher"] = untrained(config, channels, device, target=True)
    return branches


def untrained(config: Config, channels: int, device: str, *, target: bool = False) -> Network:
    """Build a network of a run as it is at step 0.

    Args:
        config: the run's; its seed decides the weights.
        channels: of the images.
        device: where the network is.
        target: whether it is one that is not trained itself: without gradients or stochastic depth.
    """
    torch.manual_seed(derived_seed("weights", config.seed))
    model = replace(config.model, drop_path=0.0) if target else config.model
    network = Network(model, size=config.crops.global_size, channels=channels).to(device)
    return network.requires_grad_(False) if target else network


def mean_centers(centers: list[dict[str, Tensor]], hidden: list[Hidden | None]) -> dict[str, Tensor]:
    """Average the centers that a step's groups led to, each weighted by the rows that it saw.

    Args:
        centers: each group's after the step, by name (k,).
        hidden: each group's hidden patches.

    Returns:
        The centers for the next step, by name (k,).
    """
    means = {}
    for name in centers[0]:
        weights = [h.share if name == "patch_center" else 1 / len(centers) for h in hidden]
        means[name] = sum(some[name] * weight for some, weight in zip(centers, weights, strict=True))
    return means


def keep_freed_memory() -> None:
    """Let the process keep what it frees, where the C library is glibc: else a step has hundreds of page faults."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)  # the most that it allows


def refuse_slow_precision(precision: str, device: str) -> None:
    """Refuse bfloat16 on a CPU that lacks it, where it is 8 to 75 times slower than float32; measured, in 10 ms."""
    if precision == "fp32" or device != "cpu":
        return
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        a @ a
        began = time.perf_counter()
        for _ in range(8):
            a @ a
        seconds[dtype] = time.perf_counter() - began
    if seconds[torch.bfloat16] > 3 * seconds[torch.float32]:
        raise ValueError(
            "optim.precision bf16 is slower than fp32 on this CPU, which lacks it: leave optim.precision out"
        )


_USAGE = "simdino train RECIPE[@field=value,...] [--profile P] [--seed N] [--root DIR] [--device D] [--fields]"
_VARIANTS = """
A variant of a recipe changes fields of its configuration, which --fields lists:

  simdino train simdino@optim.lr=0.002,optim.steps=400
  simdino train simdino@crops.global_scale=0.2,1.0
  simdino train dino@data.name=folder,data.root=my_images,data.size=32   # my_images/*.png, or in folders of classes

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
