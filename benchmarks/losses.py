"""The expansion term, forward and backward, against `torch.logdet` of the (d, d) matrix and against its own products.

    python benchmarks/losses.py

One thread, CPU time, float32; all alternate in one process, and each has its best of the rounds. `products` are the two
that the term cannot do without, the Gram matrix of the smaller side and the gradient's z·(I + c·zᵀz)⁻¹, and nothing
else. Targets: twice as fast as logdet at (512, 1024) and (64, 256); 1.5 times the products everywhere.

The second target is reached at (512, 1024), 1.44 to 1.50, and within the noise at (2048, 256), 1.20 to 1.53. It is
missed at (512, 256), 1.8 to 2.1, at (64, 256) and (256, 64), 6 to 9, and at (64, 64), 17 to 21 (AMD EPYC of the Zen 4
kind, torch 2.13 with MKL). What stands in the way is printed as `factor`, the Cholesky factorization and the inverse
from it and nothing else. With r = min(n, d) they are r³ operations beside the products' 4ndr, but LAPACK runs at a
quarter of the products' speed: they take 0.5 of the products' time at (512, 256), 0.9 at (64, 256), 2.7 at (64, 64).
The rest is the fixed cost of some twenty calls and of autograd, about 0.2 ms, next to products of 0.02 to 0.05 ms at
r = 64. Nothing else in torch is faster: `linalg.inv`, triangular solves and `cholesky_solve` take two to six times as
long as `cholesky_inverse`, and there is no symmetric product.
"""

import os
import time

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import torch
import torch.nn.functional as F

from simdino.losses import coding_rate

EPS = 0.05**0.5
SHAPES = {(512, 1024): ">= 2", (64, 256): ">= 2", (512, 256): "", (2048, 256): "", (64, 64): "", (256, 64): ""}
ROUNDS, SECONDS = 12, 0.03  # of each at each shape; of one round of one of them


def logdet_rate(z):
    n, d = z.shape
    return torch.logdet(torch.eye(d) + d / (n * EPS**2) * z.T @ z) / 2


def trained(rate, z):
    def call():
        z.grad = None
        rate(z).backward()

    return call


def own_products(z):
    """The bare products, and what is done with the Gram matrix between them, as two calls."""
    (n, d), z = z.shape, z.detach()
    gram = z @ z.mT if n < d else z.mT @ z
    a = torch.eye(min(n, d)) + d / (n * EPS**2) * gram
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(a))
    products = (lambda: (z @ z.mT, inverse @ z)) if n < d else (lambda: (z.mT @ z, z @ inverse))
    return products, lambda: torch.cholesky_inverse(torch.linalg.cholesky_ex(a)[0])


def best_times(functions):
    """CPU seconds of one call of each, their best of some rounds in turns."""
    calls, best = {}, dict.fromkeys(functions, float("inf"))
    for name, function in functions.items():
        function()
        begin = time.process_time()
        function()
        calls[name] = max(1, int(SECONDS / max(time.process_time() - begin, 1e-5)))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            begin = time.process_time()
            for _ in range(calls[name]):
                function()
            best[name] = min(best[name], (time.process_time() - begin) / calls[name])
    return best


def main():
    print(f"torch {torch.__version__}, one thread, float32, forward and backward, ms of CPU time")
    names = ("coding_rate", "logdet", "products", "factor")
    heads = (*names, "logdet/ours", "target", "ours/products", "gradients differ by")
    print(f"{'(n, d)':>14s} " + " ".join(f"{head:>13s}" for head in heads))
    for (n, d), target in SHAPES.items():
        draw = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
        z = F.normalize(draw, dim=-1).requires_grad_()
        rates = {"coding_rate": lambda z: coding_rate(z, eps=EPS), "logdet": logdet_rate}
        products, factor = own_products(z)
        calls = {name: trained(rate, z) for name, rate in rates.items()} | {"products": products, "factor": factor}
        best = best_times(calls)
        ours, peer = (torch.autograd.grad(rate(z), z)[0] for rate in rates.values())
        difference = ((ours - peer).norm() / peer.norm()).item()
        ratios = f"{best['logdet'] / best['coding_rate']:13.1f} {target:>13s}"
        ratios += f" {best['coding_rate'] / best['products']:13.2f} {difference:19.1e}"
        print(f"{f'({n}, {d})':>14s} " + " ".join(f"{1e3 * best[name]:13.3f}" for name in names) + " " + ratios)


if __name__ == "__main__":
    main()
