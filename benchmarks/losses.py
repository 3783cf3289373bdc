"""The expansion term, forward and backward, against `torch.logdet` of the (d, d) matrix, as it is usually written.

    python benchmarks/losses.py

One thread, CPU time, float32; the two alternate in one process, and each has its best of the rounds. Target: twice as
fast at (512, 1024) and (64, 256).
"""

import os
import time

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch
import torch.nn.functional as F

from simdino.losses import coding_rate

EPS = 0.05**0.5
SHAPES = {(512, 1024): ">= 2", (64, 256): ">= 2", (512, 256): "", (2048, 256): ""}


def logdet_rate(z):
    n, d = z.shape
    return torch.logdet(torch.eye(d) + d / (n * EPS**2) * z.T @ z) / 2


def cost(function, z, calls):
    begin = time.process_time()
    for _ in range(calls):
        z.grad = None
        function(z).backward()
    return (time.process_time() - begin) / calls


def main():
    print(f"torch {torch.__version__}, one thread, float32, forward and backward, ms of CPU time")
    print(
        f"{'(n, d)':>14s} {'coding_rate':>12s} {'logdet':>9s} {'ratio':>6s} {'target':>7s} {'gradients differ by':>20s}"
    )
    for (n, d), target in SHAPES.items():
        draw = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        z, calls, best = F.normalize(draw, dim=-1).requires_grad_(), max(1, 2048 // d), {}
        functions = {"ours": lambda z: coding_rate(z, eps=EPS), "logdet": logdet_rate}
        for _ in range(8):
            for name, function in functions.items():
                best[name] = min(best.get(name, float("inf")), cost(function, z, calls))
        ours, peer = (torch.autograd.grad(function(z), z)[0] for function in functions.values())
        difference = ((ours - peer).norm() / peer.norm()).item()
        ratio = best["logdet"] / best["ours"]
        print(
            f"{f'({n}, {d})':>14s} {1e3 * best['ours']:12.2f} {1e3 * best['logdet']:9.2f} {ratio:6.1f} {target:>7s} "
            f"{difference:20.1e}"
        )


if __name__ == "__main__":
    main()
