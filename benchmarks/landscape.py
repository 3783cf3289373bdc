"""Maximizing the coding rate from many starts: all of them in one call against one call after another.

    python benchmarks/landscape.py [--restarts 1000] [--n 64] [--d 16] [--device cpu]

One thread; the same optimizer, stopped at the same gradient norm, 1e-12. In each round a sample of the calls one after
another is timed, scaled up, and compared with the batched call right after it; the ratio is the median of the rounds.
Target: 20 times faster. A busy machine shrinks the ratio, as the batched call needs the cache and the others do not.
"""

import argparse
import math
import os
import statistics
import time

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch

from analysis.experiments.energies import coding_rate_energy
from analysis.experiments.landscape import minimize


def seconds(function, device):
    """Time a call, and return its result too: CPU time where the CPU does the work, so that waiting does not count."""
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
    parser.add_argument("--sample", type=int, default=20, help="how many of the single calls a round times")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    energy, single, batched = coding_rate_energy(math.sqrt(0.05)), [], []
    minimize(energy, a.n, a.d, restarts=2, device=a.device)  # warm up
    for k in range(a.rounds):
        seeds = range(k * a.sample, (k + 1) * a.sample)
        took, _ = seconds(
            lambda seeds=seeds: [minimize(energy, a.n, a.d, seed=s, device=a.device) for s in seeds], a.device
        )
        single.append(took / a.sample * a.restarts)
        took, found = seconds(
            lambda k=k: minimize(energy, a.n, a.d, restarts=a.restarts, seed=k, device=a.device), a.device
        )
        batched.append(took)
    ratios = [one / all_ for one, all_ in zip(single, batched, strict=True)]
    print(
        f"{a.restarts} restarts of (n, d) = ({a.n}, {a.d}) on {a.device}, torch {torch.__version__}, {a.rounds} rounds"
    )
    print(f"{'':24s}{'median':>8s} {'best':>8s}   seconds, of the CPU or on the wall of a GPU")
    for label, times in (("one after another", single), ("in one call", batched)):
        print(f"{label:24s}{statistics.median(times):8.2f} {min(times):8.2f}")
    print(f"{'times faster':24s}{statistics.median(ratios):8.1f} {max(ratios):8.1f}")
    print(f"largest gradient norm {found.gradient_norms.max():.1e}, most iterations {found.iterations.max()}")


if __name__ == "__main__":
    main()
