"""What `from simdino.analysis import effective_rank` and its first call cost, beside `import torch` alone.

    python benchmarks/imports.py [--rounds 7]

Each in a process of its own, in turn; the table shows the median and the ratio of the medians.
"""

import argparse
import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "import torch": "import torch",
    "and effective_rank": "import torch; from simdino.analysis import effective_rank; effective_rank(torch.eye(64))",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(parser.parse_args().rounds):
        for name, program in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            seconds[name].append(time.perf_counter() - start)
    torch, both = (statistics.median(times) for times in seconds.values())
    for name, times in seconds.items():
        print(f"{name:20s} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")
    print(f"ratio {both / torch:.2f}")


if __name__ == "__main__":
    main()
