"""A training step against the plain forward and backward of its network, bf16 against float32, and recording's share.

    python benchmarks/train.py [--device cuda] [--threads 1]

rate: floating point operations of the network's matrix products, counted by torch, per second. A step has all of it:
batch, views, teacher, student, loss, gradient, AdamW, EMA, log; it is timed as the difference between a long and a
short run. peak: a large matrix product in the same precision. CPU time on a CPU (a busy machine does not count), wall
time on a GPU; medians of interleaved rounds.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch.utils.flop_counter import FlopCounterMode

from simdino.config import Config, Model, Record
from simdino.data import load
from simdino.recipes import recipe
from simdino.record import probe_images, record_snapshot, snapshot_steps
from simdino.train import get_run
from simdino.vit import Network

LARGE = Model(stem="patch", patch=4, dim=192, depth=6, heads=3, hidden=512, out=64, pool="cls")
VIEWS = replace(recipe("simdino").crops, local_crops=4)
GPU = {size: recipe(f"simdino-vit{size}16-imagenet") for size in "sb"}
QUIET = Record(log_every=10, checkpoint_seconds=1e9, snapshots=1, probe=16, bank=16, views=4, patches=1)


def cases(device: str) -> dict[str, tuple[Config, int]]:
    """Each case's configuration, and how many steps are timed."""
    small = recipe("simdino")
    out = {
        "simdino, default recipe": (small, 40),
        "ViT d=192, depth 6, 2 + 4 views": (replace(small, model=LARGE, crops=VIEWS), 3),
    }
    if device == "cuda":  # the published recipes on random pixels
        for size, config in GPU.items():
            optim = replace(config.optim, batch_size=64, groups=1)
            out[f"ViT-{size.upper()}/16, 2 + 10 views"] = (replace(config, data=small.data, optim=optim), 10)
    return out


def network_and_views(config: Config, device: str) -> tuple[Network, list[torch.Tensor]]:
    c, n = config.crops, config.optim.batch_size
    network = Network(config.model, size=c.global_size, channels=1).to(device)
    views = [torch.randn(n * c.global_crops, 1, c.global_size, c.global_size, device=device)]
    views += [torch.randn(n * c.local_crops, 1, c.local_size, c.local_size, device=device)] * (c.local_crops > 0)
    return network, views


def work(config: Config) -> float:
    """Count the operations of one step: student forward and backward on all views, teacher forward on the global."""
    network, views = network_and_views(config, "cpu")
    with FlopCounterMode(display=False) as student:
        sum(network(x)[0].sum() for x in views).backward()
    with FlopCounterMode(display=False) as teacher, torch.no_grad():
        network(views[0])
    return student.get_total_flops() + teacher.get_total_flops()


def seconds_of(function, device: str) -> float:
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def plain(config: Config, device: str):
    """Return the network's forward and backward on the views of a batch as a function, and their operations."""
    torch.manual_seed(0)
    network, views = network_and_views(config, device)

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=config.optim.precision == "bf16"):
            outputs = [network(x)[0] for x in views]
        sum(z.sum() for z in outputs).backward()

    with FlopCounterMode(display=False) as counted:
        run()
    return run, counted.get_total_flops()


def product(precision: str, device: str) -> tuple:
    """Return a matrix product as a function, and its operations."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return lambda: a @ b, 2 * n**3


def steps(config: Config, count: int, device: str):
    """Return two runs as functions, the first of `count` steps more: the difference of their times is the steps'."""

    def run(total: int) -> None:
        short = replace(config, optim=replace(config.optim, steps=total), record=QUIET)
        with TemporaryDirectory() as root:
            get_run(short, root, device=device, progress=False)

    return lambda: run(2 + count), lambda: run(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = given.device
    where = torch.cuda.get_device_name() if device == "cuda" else f"{given.threads} thread(s)"
    print(f"torch {torch.__version__}, {where}; 10⁹ operations a second, medians of {given.rounds} interleaved rounds")
    header = ("", "precision", "step", "plain", "step/plain", "step/peak", "images/s")
    print("{:32s} {:>14s} {:>8s} {:>8s} {:>11s} {:>10s} {:>9s}".format(*header))
    for name, (config, count) in cases(device).items():
        seconds = {}
        for precision in ("fp32", "bf16", *["bf16 compiled"] * (device == "cuda")):
            mode = "default" if "compiled" in precision else "no"
            optim = replace(config.optim, precision=precision[:4], compile=mode)
            c = replace(config, optim=optim)
            (forward_backward, operations), (multiply, size) = plain(c, device), product(precision[:4], device)
            jobs = (*steps(c, count, device), forward_backward, multiply)
            rounds = [[seconds_of(job, device) for job in jobs] for _ in range(given.rounds + 1)]
            del rounds[0]  # it warms up
            step = seconds[precision] = median((long - short) / count for long, short, *_ in rounds)
            rate, bare, peak = (
                work(c) / step,
                operations / median(r[2] for r in rounds),
                size / median(r[3] for r in rounds),
            )
            row = (rate / 1e9, bare / 1e9, rate / bare, rate / peak, c.optim.batch_size / step)
            print("{:32s} {:>14s} {:8.0f} {:8.0f} {:11.2f} {:10.2f} {:9.0f}".format(name, precision, *row))
        print(f"{'':32s} bf16 is {seconds['fp32'] / seconds['bf16']:.2f} times as fast as fp32 (target on a CPU: 1.7)")
    for profile, kept in (("defaults", Record()), ("the cpu profile", recipe("simdino").record)):
        config = replace(recipe("simdino"), record=kept)
        print(f"recording, {profile}: {recording(config, device):.1%} of training (target at the defaults: 2 %)")


def recording(config: Config, device: str) -> float:
    """Measure what all snapshots of a run cost, as a share of its training."""
    count = len(snapshot_steps(config.optim.steps, config.record.snapshots))
    images = load(config.data.name, size=config.data.size, device=device)
    probe, network = probe_images(images, config), Network(config.model, size=32, channels=1).to(device)
    with TemporaryDirectory() as root:
        branches = {"student": network, "teacher": network}
        each = median(
            seconds_of(lambda: record_snapshot(Path(root), 0, config, probe, branches), device) for _ in range(5)
        )
    long, short = steps(config, 40, device)
    return count * each / (config.optim.steps * (seconds_of(long, device) - seconds_of(short, device)) / 40)


if __name__ == "__main__":
    main()
