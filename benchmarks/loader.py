"""Decode throughput of training's loader for every number of worker processes, beside what a GPU wants.

    python benchmarks/loader.py [--images 512] [--wanted 1000]

JPEGs of 500x375, as large as ImageNet's, are made on the spot: smooth noise of about ImageNet's 110 KB a file. A worker
reads, decodes and resizes to 384, as for the recipes of ImageNet. The wanted rate is the batch size over the seconds of
a step, of all GPUs of a host together. By default it is 1,000 images/s: one GPU that gets 116 TFLOP/s out of a ViT-S/16
with 2 + 10 views, whose step takes 116 GFLOP an image. images/s: the whole loader, batches of 64 through to the
training process, once its workers run; wall time, so that a busy machine counts. share: of what as many times one
worker would do (target: 0.8).
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from simdino.image_files import Files, batches, workers_needed

BATCH, SIDE = 64, 384


def pictures(root, count):
    """Write JPEGs of smooth noise at several scales, sixteen of them different."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        if i < 16:
            x = torch.zeros(1, 3, 375, 500)
            for scale in (4, 16, 64, 400):
                noise = torch.randn(1, 3, scale * 3 // 4, scale, generator=generator)
                x += torch.nn.functional.interpolate(noise, (375, 500), mode="bicubic") * (22 + 100 / scale)
            image = Image.fromarray((x[0] + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy())
            image.save(root / f"{i}.jpg", quality=90)
        else:
            (root / f"{i}.jpg").write_bytes((root / f"{i % 16}.jpg").read_bytes())
    return [root / f"{i}.jpg" for i in range(count)]


def throughput(files, workers):
    """Measure images/s from the first batch on, while the workers stay busy."""
    order = (torch.arange(8 * BATCH * (workers + 1)) % len(files)).split(BATCH)
    loader = batches(files, order, workers=workers, device="cpu")
    for _ in range(2 * workers):  # those are being decoded while the workers start
        next(loader)
    start = time.perf_counter()
    return sum(len(batch) for batch in loader) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--wanted", type=float, default=1000, help="images/s that the host's GPUs take")
    args = parser.parse_args()
    torch.set_num_threads(1)

    with TemporaryDirectory() as root:
        paths = pictures(Path(root), args.images)
        files, cores = Files(paths, SIDE), len(os.sched_getaffinity(0))
        size = sum(path.stat().st_size for path in paths) / len(paths)
        print(f"{len(paths)} JPEGs of 500x375, {size / 1000:.0f} KB each, to {SIDE}x{SIDE}; {cores} cores")
        print(f"{'workers':>8s} {'images/s':>9s} {'share':>6s} {'of the wanted':>14s}")
        counts = sorted({2**i for i in range(cores.bit_length())} | {cores})
        one = None
        for workers in counts:
            rate = throughput(files, workers)
            one = one or rate
            print(f"{workers:8d} {rate:9.0f} {rate / workers / one:6.2f} {rate / args.wanted:14.2f}")
        start = time.perf_counter()
        needed = workers_needed(files, args.wanted)
        seconds = time.perf_counter() - start
        print(f"\nworkers_needed: {needed} for {args.wanted:.0f} images/s (measured in {seconds:.2f} s)")


if __name__ == "__main__":
    main()
