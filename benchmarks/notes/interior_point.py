"""Time and memory of the interior-point method, beside a dense 1800 x 1800 float64 product on the same machine.

OMP_NUM_THREADS=1 python benchmarks/notes/interior_point.py --threads 1 --repeats 3 16-50-50-4 784-600-400-200-10
python benchmarks/notes/interior_point.py --slopes 0 0.25 --weights trained.npz

A file holds one matrix an array, first layer first.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from itertools import pairwise

import numpy as np
import torch

from lightning_lipschitz.bounds import conic, interior_point
from lightning_lipschitz.graph.network import Network


def random_network(shape: str, slopes: tuple[float, float]) -> Network:
    """Entries N(0, 1 / fan-in) from seed 0; "a-bxk-c" stands for k layers of width b."""
    sizes: list[int] = []
    for part in shape.split("-"):
        width, _, count = part.partition("x")
        sizes += [int(width)] * int(count or 1)
    rng = np.random.default_rng(0)
    return Network.from_weights([rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(sizes)], slopes=slopes)


def timed(function) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def product_seconds() -> tuple[float, float]:
    """Wall and processor time of one dense 1800 x 1800 product, median of five."""
    a, out = torch.randn(1800, 1800, dtype=torch.float64), torch.empty(1800, 1800, dtype=torch.float64)
    torch.mm(a, a, out=out)
    runs = [timed(lambda: torch.mm(a, a, out=out))[:2] for _ in range(5)]
    return statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)


def report(name: str, network: Network, args: argparse.Namespace) -> None:
    before = product_seconds()
    runs = [
        timed(lambda: interior_point.solve(network, rtol=args.rtol, sharing=args.sharing)) for _ in range(args.repeats)
    ]
    after = product_seconds()
    wall, cpu = statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)
    found = runs[-1][2]
    ratio = [2 * t / (b + a) for t, b, a in zip((wall, cpu), before, after, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}: L {found.rho**0.5:.8g}, gap {found.relative_gap:.1e}, {found.iterations} iterations, {found.ending}, "
        f"wall {wall:.3f} s = {ratio[0]:.1f} products, processor {cpu:.3f} s = {ratio[1]:.1f} products, "
        f"peak {peak:.2f} GiB",
        flush=True,
    )
    for solver in args.against:
        wall, cpu, other = timed(
            lambda s=solver: conic.propose(network, sharing=args.sharing, solver=s, rtol=args.rtol)
        )
        print(f"    {solver}: L {other.multipliers.rho**0.5:.8g}, wall {wall:.2f} s, processor {cpu:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--weights", nargs="*", default=[], help=".npz files")
    parser.add_argument("--slopes", nargs=2, type=float, default=(0.0, 1.0))
    parser.add_argument("--sharing", default="neuron", choices=["neuron", "layer"])
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--against", nargs="*", default=[], choices=["clarabel", "scs"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    interior_point.solve(random_network("4-5-3", (0.0, 1.0)))  # imports and first calls
    for shape in args.shapes:
        report(shape, random_network(shape, tuple(args.slopes)), args)
    for path in args.weights:
        with np.load(path) as file:
            report(path, Network.from_weights(list(file.values()), slopes=tuple(args.slopes)), args)


if __name__ == "__main__":
    main()
