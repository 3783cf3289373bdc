"""Maximising the coding rate from many starts: all of them in one call against one call after another.

    python benchmarks/landscape.py [--restarts 1000] [--n 64] [--d 16] [--device cpu]

One thread. The calls one after another are timed on a sample, before and after the batched call, and scaled up; both
run the same optimiser to the same gradient norm, 1e-12. The target is 20 times faster.
"""

import argparse
import math
import os
import time

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch

from analysis.energies import coding_rate_energy
from analysis.landscape import minimise


def seconds(function, device):
    """Wall time of a call: CPU time where the CPU does the work, so that a busy machine does not count."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = function()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--d", type=int, default=16)
    parser.add_argument("--sample", type=int, default=20, help="how many of the single calls are timed")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    energy = coding_rate_energy(math.sqrt(0.05))
    block = a.restarts if a.device != "cpu" else 128

    def one_by_one():
        return [minimise(energy, a.n, a.d, seed=seed, device=a.device) for seed in range(a.sample)]

    def together():
        return minimise(energy, a.n, a.d, restarts=a.restarts, block=block, device=a.device)

    minimise(energy, a.n, a.d, restarts=2, device=a.device)  # warm up
    before, _ = seconds(one_by_one, a.device)
    batched, found = seconds(together, a.device)
    after, _ = seconds(one_by_one, a.device)
    single = (before + after) / (2 * a.sample) * a.restarts
    print(f"{a.restarts} restarts of (n, d) = ({a.n}, {a.d}) on {a.device}; CPU seconds on the CPU, wall on a GPU")
    print(f"one after another (from {2 * a.sample})  {single:8.2f} s")
    print(f"in one call                   {batched:8.2f} s   {single / batched:5.1f} times faster")
    print(f"largest gradient norm {found.gradient_norms.max():.1e}, most iterations {found.iterations.max()}")


if __name__ == "__main__":
    main()
