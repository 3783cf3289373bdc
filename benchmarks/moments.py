"""Spectrum, RankMe, participation ratio and coding rate of features, against the singular values alone.

    python benchmarks/moments.py [--n 200000] [--d 1024]

One thread, CPU time (best of the repetitions), every row relative to `torch.linalg.svdvals` in the same run, which
is what most implementations of RankMe call. The targets are for large n: the decomposition of the (d, d) matrix costs
the same at any n. Memory: peak resident set above that before the call (Linux).
"""

import argparse
import ctypes
import os
import time

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch

from analysis.moments import Moments
from analysis.rates import coding_rate_of_spectrum
from analysis.spectra import effective_rank, eigenvalues, participation_ratio, rankme

TARGETS = {"fast": "<= 0.35", "exact": "<= 0.80"}


def features(sigma, n):
    """float32 rows whose population spectrum is sigma², in a basis turned by two reflections."""
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


def cost(function, *args, repeat):
    """Best CPU seconds, and peak extra memory in MiB."""
    best, start = float("inf"), resident("VmRSS", reset=True)
    for _ in range(repeat):
        begin = time.process_time()
        function(*args)
        best = min(best, time.process_time() - begin)
    return best, resident("VmHWM") - start


def resident(field, *, reset=False):
    try:
        if reset:
            ctypes.CDLL(None).malloc_trim(0)  # what an earlier call has freed must not hide what this one takes
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))
    except (OSError, AttributeError, StopIteration):
        return float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20000)
    parser.add_argument("--d", type=int, default=1024)
    args = parser.parse_args()
    repeat = 3 if args.n <= 50000 else 1

    z = features(spectra(args.d)["lambda = 1/j"], args.n)
    for precision in TARGETS:
        measures(z[: 2 * args.d], precision)  # warm up
    torch.linalg.svdvals(z[: 2 * args.d])
    print(f"n = {args.n}, d = {args.d}, torch {torch.__version__}, one thread")
    print(f"{'spectrum and three measures':32s} {'CPU s':>8s} {'/svdvals':>9s} {'target':>8s} {'extra MiB':>10s}")
    rows = {name: cost(measures, z, name, repeat=repeat) for name in TARGETS}
    seconds, memory = cost(torch.linalg.svdvals, z, repeat=1 + (repeat > 1))
    for name, (s, m) in rows.items():
        print(f"Moments, precision={name:13s} {s:8.3f} {s / seconds:9.2f} {TARGETS[name]:>8s} {m:10.0f}")
    print(f"{'torch.linalg.svdvals alone':32s} {seconds:8.3f} {1:9.2f} {'':8s} {memory:10.0f}")

    z = features(spectra(2 * args.d)["lambda = 1/j"], args.d // 2)
    (ours, _), (peer, _) = cost(measures, z, "exact", repeat=5), cost(torch.linalg.svdvals, z, repeat=3)
    print(f"\nn < d, {tuple(z.shape)}: {ours:.4f} s, {peer / ours:.1f} times faster than svdvals (target >= 5)")

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
