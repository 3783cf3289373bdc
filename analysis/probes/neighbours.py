"""Nearest neighbours by inner product: exact, on the device, in tiles, never an (n, m) matrix."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE = 65536  # training rows that are compared with the queries at a time


def nearest(queries: Float[Tensor, "c d"], bank: Float[Tensor, "m d"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest inner products of each query and their rows in the bank, (c, k) both, nearest first."""
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(bank), TILE):
            tile = queries @ bank[start : start + TILE].T  # (c, tile)
            values, columns = _largest(tile, min(k, tile.shape[1]))
            values, order = torch.cat((best, values), 1).topk(min(k, best.shape[1] + values.shape[1]))
            index = torch.cat((index, columns + start), 1).gather(1, order)
            best = values
    return best, index


def _largest(x: Float[Tensor, "c t"], k: int) -> tuple[Float[Tensor, "c k"], Int[Tensor, "c k"]]:
    """`x.topk(k)` in about one pass: the k largest lie in the k groups of columns with the largest maxima."""
    t = x.shape[1]
    g = math.isqrt(t // (4 * k))  # columns a group: t/g maxima and g·k members are left to search
    if g < 2:
        return x.topk(k)
    groups = t // g
    grouped = x[:, : g * groups].unflatten(1, (g, groups))  # column j is in group j % groups
    chosen = grouped.amax(1).topk(k, sorted=False).indices  # (c, k)
    members = grouped.gather(2, chosen[:, None].expand(-1, g, -1)).flatten(1)  # (c, g·k)
    values, order = torch.cat((members, x[:, g * groups :]), 1).topk(k)  # and the columns that are in no group
    inside = order < g * k
    column = chosen.gather(1, order % k) + groups * (order // k)
    return values, torch.where(inside, column, order - g * k + g * groups)
