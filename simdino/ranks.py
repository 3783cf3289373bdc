"""The processes that train one run together, one on each device."""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from simdino.vit import usable_device

PATIENCE = timedelta(minutes=10)  # for which ranks wait for one that neither answers nor has died


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
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)


def of_first_rank(value: bool, device: str) -> bool:
    """Give all ranks the first one's value, for which they wait."""
    if ranks().world == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    dist.broadcast(flag, 0)
    return bool(flag)


def largest_over_ranks(value: int, device: str) -> int:
    """Give all ranks the largest of their values, for which they wait."""
    if ranks().world == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average numbers over the ranks, which all call this."""
    if ranks().world > 1:
        dist.all_reduce(values)
    return values / ranks().world


def sharing_ranks(groups: int) -> "dist.ProcessGroup | None":
    """Return the ranks that have rows of this one's group of images; None where the group is on this rank alone.

    Args:
        groups: into how many groups all ranks together divide a batch, the ranks in order.
    """
    rank, world = ranks()
    if world <= groups:
        return None
    each = world // groups
    teams = [dist.new_group(list(range(k * each, (k + 1) * each))) for k in range(groups)]  # all ranks make all of them
    return teams[rank // each]


def gathered(z: Tensor, team: "dist.ProcessGroup | None") -> Tensor:
    """Gather the rows of features (v, n, d) from the ranks of a team, without gradient."""
    if team is None:
        return z
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size(team))]
    dist.all_gather(parts, z.contiguous(), group=team)
    return torch.cat(parts, -2)
