"""Before a run: the range of its expansion term and whether collapse is stable, from the configuration alone.

    python -m analysis.preflight --d 256 --batch 64 --eps 0.05 --official --ranks 8

A command only: the function is `analysis.rates.preflight`.
"""

import argparse
import sys

from analysis.rates import preflight
from simdino.losses import official_scaling


def main(arguments: list[str] | None = None) -> None:
    """Command line: print what the expansion term γ·R can be, and what to change if collapse is stable."""
    parser = argparse.ArgumentParser(prog="python -m analysis.preflight", description=main.__doc__.splitlines()[0])
    parser.add_argument("--d", type=int, required=True, help="dimension of the features")
    parser.add_argument("--batch", type=int, required=True, help="images on one rank")
    parser.add_argument(
        "--eps", type=float, required=True, help="the paper's ε; with --official, the code's (its square)"
    )
    parser.add_argument("--ranks", type=int, default=1, help="ranks (default: 1)")
    parser.add_argument("--gathered", action="store_true", help="covariances are summed over ranks (reduce_cov 1)")
    parser.add_argument("--official", action="store_true", help="eps and γ as in the official code")
    parser.add_argument("--gamma", type=float, help="weight of the expansion (default: the official code's rule)")
    parser.add_argument("--no-stop-gradient", action="store_true", help="the targets carry gradients")
    parser.add_argument(
        "--rate-of",
        choices=("student", "mean"),
        help="whose rate (default: the student's; with --official of the mean)",
    )
    parser.add_argument("--measured", type=float, help="a logged expansion term to judge")
    given = parser.parse_args(arguments)
    try:
        for name in ("d", "batch", "ranks", "eps"):
            if not getattr(given, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(given, name)}")
        eps, gamma = official_scaling(given.d, given.batch, given.eps, world_size=given.ranks, gathered=given.gathered)
        print(
            preflight(
                n=given.batch,
                d=given.d,
                eps=eps if given.official else given.eps,
                gamma=gamma if given.gamma is None else given.gamma,
                world_size=given.ranks,
                gathered=given.gathered,
                stop_gradient=not given.no_stop_gradient,
                rate_of=given.rate_of or ("mean" if given.official else "student"),
                measured=given.measured,
            )
        )
    except ValueError as error:
        sys.exit(f"preflight: {error}")


if __name__ == "__main__":
    main()
