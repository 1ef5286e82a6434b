"""Projection: `project` against scaling all layers alike, and the step for fixed multipliers against cvxpy + SCS.

    python benchmarks/projection.py [--data-dir DATA] [--repeats 5]

DATA (or LIGHTNING_LIPSCHITZ_DATA) may hold lipsdp/mnist_weights.mat, the trained 784-50-10 network of the LipSDP
repository; without it, random weights only. Times are wall seconds, the median of the repeats, and the processor's
seconds beside them; small problems run on one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from itertools import pairwise
from pathlib import Path

import cvxpy as cp
import numpy as np
import scipy.io
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import project
from lightning_lipschitz.training.multipliers import solve_multipliers
from lightning_lipschitz.training.spectral_ball import CertifiedSet, scaled


def random_weights(sizes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [2.0 * rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairwise(sizes)]


def model_of(weights: list[np.ndarray]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight in weights:
        layers += [nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU()]
        with torch.no_grad():
            layers[-2].weight.copy_(torch.tensor(weight))
    return nn.Sequential(*layers[:-1])


def timed(action, repeats: int):
    """(answer, median wall seconds, median processor seconds)."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        answer = action()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return answer, statistics.median(walls), statistics.median(processors)


def distance(model: nn.Sequential, weights: list[np.ndarray]) -> float:
    pairs = zip((m for m in model if isinstance(m, nn.Linear)), weights, strict=True)
    return float(sum((m.weight.detach().double() - torch.tensor(w)).square().sum() for m, w in pairs) ** 0.5)


def whole(name: str, weights: list[np.ndarray], share: float, repeats: int) -> None:
    """`project` on a model, everything included: tracing, the first certificate, the search, the proof."""
    example = torch.zeros(2, weights[0].shape[1])
    bound = ll.certify(model_of(weights), example).upper_bound
    project(model_of(weights), share * bound, example)
    models = [model_of(weights) for _ in range(repeats)]
    queue = iter(models)
    certificate, wall, processor = timed(lambda: project(next(queue), share * bound, example), repeats)
    ll.verify(certificate, models[-1], example)
    network = Network.from_weights(weights)
    alike = scaled([torch.tensor(w) for w in weights], network, share * bound).distance
    moved = distance(models[-1], weights)
    print(
        f"{name:24s} L {bound:9.4f} -> {certificate.upper_bound:9.4f}   distance {moved:8.4f}   "
        f"all layers alike {alike:8.4f}   {wall:7.3f} s ({processor:.3f} s of processor)"
    )


def by_scs(weights: list[np.ndarray], ball: CertifiedSet) -> float:
    """The same step as a semidefinite program of M itself, at SCS's own tolerances: the distance."""
    rho, values = ball.multipliers.rho, ball.multipliers.values
    W = [cp.Variable(w.shape) for w in weights]
    first, hidden = -np.diag(values[0]) @ W[0], np.diag(2 * values[0])
    n, p = weights[0].shape[1], len(weights[1])
    blocks = [
        [rho * np.eye(n), first.T, np.zeros((n, p))],
        [first, hidden, W[1].T],
        [np.zeros((p, n)), W[1], np.eye(p)],
    ]
    cost = sum(cp.sum_squares(w - v) for w, v in zip(W, weights, strict=True))
    problem = cp.Problem(cp.Minimize(cost / 2), [cp.bmat(blocks) >> 0])
    problem.solve(solver="SCS")
    return float(np.sqrt(2 * problem.value))


def step(repeats: int) -> None:
    """The projection for fixed multipliers, 64-32-10, half the bound."""
    weights = random_weights((64, 32, 10))
    network, tensors = Network.from_weights(weights), [torch.tensor(w) for w in weights]
    ball = CertifiedSet.of(network, solve_multipliers(network, 0.5 * ll.certify(weights).upper_bound).multipliers)
    ball.project(tensors)
    found, wall, processor = timed(lambda: ball.project(tensors), 10 * repeats)
    moved, seconds, other = timed(lambda: by_scs(weights, ball), repeats)
    print(f"\n64-32-10, multipliers fixed:  here {found.distance:.6f} in {wall:.4f} s ({processor:.4f} s of processor)")
    ratio = f"{seconds / wall:.0f} times as long"
    print(f"                        cvxpy + SCS {moved:.6f} in {seconds:.4f} s ({other:.4f} s of processor): {ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("LIGHTNING_LIPSCHITZ_DATA", ".")))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    path = options.data_dir / "lipsdp" / "mnist_weights.mat"
    if path.exists():
        trained = [np.asarray(w, dtype=np.float64) for w in scipy.io.loadmat(path)["weights"].ravel()]
        for share in (0.9, 0.5, 0.1):
            whole(f"784-50-10 trained, {share}", trained, share, options.repeats)
    for sizes in ((784, 50, 10), (784, 128, 64, 10)):
        whole("-".join(map(str, sizes)) + " random, 0.5", random_weights(sizes), 0.5, options.repeats)
    step(options.repeats)


if __name__ == "__main__":
    main()
