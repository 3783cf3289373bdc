"""Spectrum, RankMe, participation ratio and coding rate of features, against the singular values alone.

    python benchmarks/moments.py [--n 200000] [--d 1024]

One thread, CPU time, every row relative to `torch.linalg.svdvals`, which is what most implementations of RankMe call;
all are called in turn, several rounds, and the ratio is the median of the rounds' ratios, between the smallest and the
largest. The targets are for large n: the decomposition of the (d, d) matrix costs the same at any n. Memory: peak
resident set above that before the call, the largest of the rounds (Linux).
"""

import argparse
import ctypes
import os
import time

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch

from analysis.measures.moments import Moments
from analysis.measures.rates import coding_rate_of_spectrum
from analysis.measures.spectra import effective_rank, eigenvalues, participation_ratio, rankme

TARGETS = {"fast": "<= 0.35", "exact": "<= 0.80"}
ROUNDS = 3


def features(sigma, n):
    """Draw float32 rows whose population spectrum is sigma², in a basis turned by two reflections."""
    d, generator = len(sigma), torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator).mul_(sigma.float())
    for _ in range(2):
        v = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
        z.addr_(z @ v, v, alpha=-2)
    return z


def spectra(d):
    half = torch.full((d,), 1e-4)
    half[: d // 2] = 1
    return {
        "lambda = 1/j": torch.arange(1, d + 1).pow(-0.5),
        "sigma 1 to 1e-7": torch.logspace(0, -7, d, dtype=torch.float64),
        "half rank + 1e-4": half,
    }


def measures(z, precision):
    lam = eigenvalues(z if len(z) < z.shape[1] else Moments.of(z, precision=precision))
    return rankme(lam), participation_ratio(lam), coding_rate_of_spectrum(lam, eps=0.5, d=z.shape[1])


def in_batches(z, rows):
    moments = Moments(z.shape[1])
    for batch in z.split(rows):
        moments.update(batch)
    return moments.scatter


def cost(function, *args, repeat):
    """Measure the best CPU seconds, and the peak of extra memory in MiB."""
    best, start = float("inf"), resident("VmRSS", reset=True)
    for _ in range(repeat):
        begin = time.process_time()
        function(*args)
        best = min(best, time.process_time() - begin)
    return best, resident("VmHWM") - start


def in_turn(calls, rounds):
    """Call each function once in every round; list each round's seconds and MiB by name."""
    return [{name: cost(*call, repeat=1) for name, call in calls.items()} for _ in range(rounds)]


def summary(rounds, name, over="svdvals"):
    """Summarize rounds: median seconds, median ratio with its range, largest memory."""
    ratios = sorted(r[name][0] / r[over][0] for r in rounds)
    seconds = sorted(r[name][0] for r in rounds)[len(rounds) // 2]
    ratio = f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return seconds, ratio, max(r[name][1] for r in rounds)


def resident(field, *, reset=False):
    try:
        if reset:
            ctypes.CDLL(None).malloc_trim(0)  # what an earlier call has freed must not hide what this one takes
            with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
                file.write("5")
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))
    except (OSError, AttributeError, StopIteration):
        return float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20000)
    parser.add_argument("--d", type=int, default=1024)
    args = parser.parse_args()

    z = features(spectra(args.d)["lambda = 1/j"], args.n)
    for precision in TARGETS:
        measures(z[: 2 * args.d], precision)  # warm up
    torch.linalg.svdvals(z[: 2 * args.d])
    print(f"n = {args.n}, d = {args.d}, torch {torch.__version__}, one thread, {ROUNDS} rounds")
    print(
        f"{'spectrum and three measures':32s} {'CPU s':>8s} {'/svdvals':>22s} {'target':>8s} {'MiB':>6s} {'target':>8s}"
    )
    calls = {name: (measures, z, name) for name in TARGETS} | {"svdvals": (torch.linalg.svdvals, z)}
    rounds = in_turn(calls, ROUNDS)
    for name, target in TARGETS.items():
        seconds, ratio, memory = summary(rounds, name)
        print(f"Moments, precision={name:13s} {seconds:8.3f} {ratio:>22s} {target:>8s} {memory:6.0f} {'< 64':>8s}")
    seconds, _, memory = summary(rounds, "svdvals")
    print(f"{'torch.linalg.svdvals alone':32s} {seconds:8.3f} {1:22.2f} {'':8s} {memory:6.0f}")

    z = features(spectra(2 * args.d)["lambda = 1/j"], args.d // 2)
    calls = {"svdvals": (torch.linalg.svdvals, z), "ours": (measures, z, "exact")}
    rounds = in_turn(calls, 4 * ROUNDS)
    seconds, ratio, _ = summary(rounds, "svdvals", over="ours")
    print(f"\nn < d, {tuple(z.shape)}: svdvals {seconds:.4f} s, {ratio} times ours (target >= 5)")

    z = features(spectra(2 * args.d)["lambda = 1/j"], 2 * args.d)
    calls = {"small": (in_batches, z, 64), "one": (in_batches, z, len(z))}
    seconds, ratio, memory = summary(in_turn(calls, ROUNDS), "small", over="one")
    print(f"updates of 64 rows, {tuple(z.shape)}: {seconds:.4f} s, {ratio} times one update (target <= 1.5), ", end="")
    print(f"{memory:.0f} MiB")

    print(
        "\nrelative error at n = 4d, worst of the three measures, against float64 singular values (target 1e-6, exact)"
    )
    print(f"{'':20s} {'exact':>9s} {'fast':>9s} {'svdvals, float32':>17s}")
    for name, sigma in spectra(args.d).items():
        z = features(sigma, 4 * args.d)
        lam = {
            dtype: torch.linalg.svdvals(z.to(dtype)).double().square() / len(z) for dtype in (torch.float64, z.dtype)
        }
        truth, peer = (
            torch.stack([effective_rank(x, preset="garrido2023"), participation_ratio(x), rate(x, args.d)])
            for x in lam.values()
        )
        found = [torch.stack(measures(z, precision)) for precision in ("exact", "fast")]
        print(f"{name:20s} " + " ".join(f"{(x / truth - 1).abs().max().item():9.1e}" for x in [*found, peer]))


def rate(lam, d):
    return coding_rate_of_spectrum(lam, eps=0.5, d=d)


if __name__ == "__main__":
    main()
