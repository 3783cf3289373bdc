"""Measures of all pairs of rows, in memory that does not grow with n, against the explicit pairs.

    python benchmarks/pairwise.py [--n 100000] [--d 256] [--peer-n 8192]

One thread, CPU time (best of the repetitions). The peer is the common two-liner, `torch.pdist` and a mean, at a size
where it fits; it is also the truth there. Memory: peak resident set above that before the call (Linux).
"""

import argparse

from moments import cost  # sets one thread before torch is imported

import torch  # isort: skip

from analysis.measures.alignment_uniformity import hyperspherical_energy, uniformity
from analysis.measures.frames import coherence, frame_potential

MEASURES = {
    "uniformity": (uniformity, lambda z: torch.pdist(z).square().mul(-2).exp().mean().log()),
    "frame potential, order 4": (
        lambda z: frame_potential(z, order=4),
        lambda z: (z @ z.T)[torch.ones(len(z), len(z), dtype=torch.bool).triu(1)].pow(4).mean(),
    ),
    "coherence": (coherence, lambda z: (z @ z.T).fill_diagonal_(0).abs().max()),
    "hyperspherical energy": (hyperspherical_energy, lambda z: torch.pdist(z.double()).log().mean().neg()),
}


def sphere(n, d):
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100000)
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--peer-n", type=int, default=8192)
    args = parser.parse_args()

    small = sphere(args.peer_n, args.d)
    print(f"n = {args.peer_n}, d = {args.d}, torch {torch.__version__}, one thread")
    print(f"{'':26s} {'CPU s':>8s} {'peer':>8s} {'ratio':>7s} {'extra MiB':>10s} {'peer':>8s} {'difference':>11s}")
    for name, (ours, peer) in MEASURES.items():
        (s, m), (peer_s, peer_m) = cost(ours, small, repeat=3), cost(peer, small, repeat=2)
        gap = abs(ours(small) - peer(small)).item()
        print(f"{name:26s} {s:8.3f} {peer_s:8.3f} {s / peer_s:7.2f} {m:10.0f} {peer_m:8.0f} {gap:11.1e}")

    z = sphere(args.n, args.d)
    s, m = cost(uniformity, z, repeat=1)
    print(f"\nuniformity of {args.n} rows: {s:.0f} CPU s, {m:.0f} MiB more (target <= 256)")


if __name__ == "__main__":
    main()
