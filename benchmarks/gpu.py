"""What a GPU does: one table, in at most eight minutes, that needs nothing but the package.

    make gpu                          on the first CUDA device; build/gpu/gpu.json and gpu.md
    make gpu DEVICE=cpu TINY=1        the same lines at a size for a CPU, in a minute: a rehearsal

In order: every measure of features on the device against the CPU; two steps of each method in which nothing may wait;
a training step of ViT-S/16 and ViT-B/16 at 224 pixels with 2 + 10 crops; `Moments` of a million features against
`svdvals`; the recipe simdino in bfloat16 against float32. What the time does not suffice for is listed as left out.
The share of the peak is the matrix products of one step, forward and backward, counted once, over those that a large
bfloat16 product reaches in the same time.
"""

import argparse
import functools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure_calls import CALLS, called, parts
from simdino import analysis
from simdino.augment import make_views, moved
from simdino.config import DINO, Config, Data, Record, override
from simdino.optim import parameter_groups
from simdino.recipes import recipe
from simdino.runs import environment
from simdino.step_inputs import Inputs, step_inputs
from simdino.train import get_run, group_loss, networks

METHODS = ("simdino", "simdinov2", "dino", "dinov2")
QUIET = Record(log_every=50, checkpoint_seconds=1e9, snapshots=1, probe=1024, bank=1024, views=16, patches=1)


def synchronized(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measures(device: str) -> Iterator[dict]:
    """Compare every function of features on the device with the CPU."""
    for name, wanted in CALLS.items():
        row = {"measure": name}
        try:
            pairs = zip(numbers(called(wanted, "cpu")), numbers(called(wanted, device)), strict=True)
            row["difference"] = max(abs(a - b) / (abs(a) + 1e-6) for a, b in pairs)
        except (RuntimeError, TypeError, ValueError) as error:
            row["error"] = str(error).splitlines()[0]
        yield row


def numbers(result: object) -> list[float]:
    """All numbers of a result."""
    return [x for part in parts(result) for x in torch.as_tensor(part).double().flatten().tolist()]


class Step:
    """A training step of one group of images, without log and schedules."""

    def __init__(self, config: Config, device: str, mode: str):
        self.config, self.device = config, device
        c, o = config.crops, config.optim
        shape = (o.batch_size, 3, c.global_size, c.global_size)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(
            device
        )
        self.branches = networks(config, 3, device)
        self.student = self.branches["student"]
        groups = parameter_groups(self.student, o)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        names = ["center"] + ["patch_center"] * config.patches
        dino = isinstance(config.objective, DINO)
        self.centers = {k: torch.zeros(config.model.prototypes, device=device) for k in names if dino}
        how = {"mode": None if mode == "compiled" else mode} if device.startswith("cuda") else {"backend": "aot_eager"}
        self.loss = group_loss if mode == "eager" else torch.compile(group_loss, fullgraph=True, **how)

    def __call__(self, step: int) -> None:
        drawn, crops = self.draw(step)
        self.optimizer.zero_grad()
        self.backward(drawn, crops)
        self.optimizer.step()
        teacher, student = (list(network.parameters()) for network in (self.branches["teacher"], self.student))
        torch._foreach_lerp_(teacher, student, 0.01)

    def draw(self, step: int) -> tuple[Inputs, tuple]:
        (drawn,) = moved(step_inputs(self.config, self.images.shape, step, device=self.device), self.device)
        return drawn, make_views(self.images.index_select(0, drawn.images), self.config.crops, drawn.views)

    def backward(self, drawn: Inputs, crops: tuple) -> None:
        networks = self.student, self.branches["teacher"]
        loss = self.loss(self.config, *networks, crops, drawn.hidden, self.centers, drawn.teacher_temp)
        loss.loss.backward()
        self.centers = {name: loss.terms[name].clone() for name in self.centers}


@contextmanager
def nothing_waits(device: str):
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def large(method: str, size: str, tiny: bool) -> Config:
    """A published recipe, one group of 64 images; tiny: a network for a CPU."""
    config = recipe(f"{method}-vit{size}16-imagenet")
    changes: dict = {"optim.batch_size": 64, "optim.groups": 1, "data": Data("photos")}
    if tiny:
        changes |= {"optim.batch_size": 4, "crops.global_size": 32, "crops.local_size": 16, "crops.local_crops": 2}
        changes |= {"model.dim": 24, "model.depth": 1, "model.heads": 2, "model.hidden": 32, "optim.precision": "fp32"}
        changes |= {"model.prototypes": min(config.model.prototypes, 64), "model.patch": 8}
    return override(replace(config, data=changes.pop("data")), changes)


@functools.cache
def operations(config: Config, device: str) -> int:
    """Count the operations of the matrix products of one step, forward and backward."""
    step = Step(config, device, "eager")
    with FlopCounterMode(display=False) as counter:
        step.backward(*step.draw(0))
    return counter.get_total_flops()


def peak(device: str, tiny: bool) -> float:
    """Operations a second of a large product in bfloat16 (float32 on a CPU)."""
    n, dtype = (512, torch.float32) if tiny else (8192, torch.bfloat16)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        began = synchronized(device)
        a @ b
        seconds.append(synchronized(device) - began)
    return 2 * n**3 / median(seconds)


def speed(method: str, size: str, mode: str, device: str, tiny: bool, top: float) -> dict:
    config, count = large(method, size, tiny), 2 if tiny else 8
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    step = Step(config, device, mode)
    began = synchronized(device)
    for i in range(1 if tiny else 3):  # compiles, warms up
        step(i)
    first = synchronized(device) - began
    began = synchronized(device)
    for i in range(count):
        step(10 + i)
    seconds = (synchronized(device) - began) / count
    row = {"method": method, "network": f"ViT-{size.upper()}/16", "mode": mode, "first steps, s": round(first, 1)}
    row |= {"images/s": round(config.optim.batch_size / seconds, 1)}
    row |= {"share of peak": round(operations(config, device) / seconds / top, 3)}
    if device.startswith("cuda"):
        row["memory, GiB"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 1)
    return row


def moments(device: str, tiny: bool) -> dict:
    n, d = (2000, 64) if tiny else (10**6, 1024)
    z = F.normalize(torch.randn(n, d, device=device), dim=1)
    found = {}
    for name, function in {
        "Moments": lambda: analysis.effective_rank(analysis.Moments(d, device=device).update(z)),
        "svdvals": lambda: torch.linalg.svdvals(z),
    }.items():
        function()
        began = synchronized(device)
        function()
        found[name] = synchronized(device) - began
    return {"rows": n, "d": d, **{f"{k}, s": round(v, 4) for k, v in found.items()}}


def precisions(device: str, tiny: bool) -> Iterator[dict]:
    for precision in ("fp32", "bf16"):
        steps = 3 if tiny else 1000
        config = recipe(f"simdino@optim.precision={precision},optim.steps={steps}")
        with TemporaryDirectory() as root:
            began = time.perf_counter()
            try:
                run = get_run(replace(config, record=QUIET), root, device=device, progress=False)
            except ValueError as error:  # a CPU without bfloat16
                yield {"precision": precision, "refused": str(error)}
                continue
            log, end = run.metrics.iloc[-1], run.snapshot(steps)
            rank = analysis.effective_rank(end["teacher/head/test"]).item()
            row = {"precision": precision, "seconds": round(time.perf_counter() - began, 1)}
            yield row | {"loss": round(float(log["loss"]), 4), "effective rank": round(rank, 2)}


def table(rows: list[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--seconds", type=float, default=480, help="after which nothing new begins (default: 480)")
    given = parser.parse_args()
    device, tiny, began = given.device, given.tiny, time.perf_counter()
    result: dict = {"environment": environment(device) | {"device": device, "tiny": tiny}, "left out": []}

    def late(what: str) -> bool:
        if gone := time.perf_counter() - began > given.seconds:
            result["left out"].append(what)
        return gone

    def keep(name: str, row: dict) -> None:
        """Write after every row: what a time limit cuts off is the end."""
        result.setdefault(name, []).append(row)
        print(name, row, flush=True)
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        parts = [f"## {k}\n\n{table(v)}\n" for k, v in result.items() if k not in ("environment", "left out")]
        head = ", ".join(f"{k} {v}" for k, v in result["environment"].items())
        (given.out / "gpu.md").write_text(
            "\n".join([head, "", *parts, f"Left out: {result['left out'] or 'nothing'}", ""]), encoding="utf-8"
        )

    compared = list(measures(device))
    for row in compared:
        if "error" in row or row["difference"] > 1e-3:
            keep("measures that differ", row)
    keep("measures", {"compared": len(compared)})
    for method in METHODS:
        step = Step(large(method, "s", tiny), device, "eager")
        step(0)
        try:
            with nothing_waits(device):
                step(1)
                step(2)
            keep("waits", {"method": method, "waits": "none" if device.startswith("cuda") else "not looked for"})
        except RuntimeError as error:
            keep("waits", {"method": method, "waits": str(error).splitlines()[0]})
    top = peak(device, tiny)
    keep("peak", {"10¹² operations a second": round(top / 1e12, 3)})
    rows = [(m, s, "eager") for s in "sb" for m in METHODS]
    rows += [(m, "s", mode) for mode in ("compiled", "reduce-overhead") for m in METHODS]
    rows += [("simdino", "b", mode) for mode in ("compiled", "reduce-overhead")]
    keep("moments", moments(device, tiny))
    for row in precisions(device, tiny):
        keep("precision", row)
    for method, size, mode in [*rows[:4], *rows[8:16]] if tiny else rows:
        if not late(f"{method} ViT-{size.upper()}/16 {mode}"):
            keep("speed", speed(method, size, mode, device, tiny, top))


if __name__ == "__main__":
    main()
