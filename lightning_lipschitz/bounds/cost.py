"""What a method costs before it runs, so that nothing is begun that does not fit.

Costs are counted in floating-point operations of three kinds, products, factorisations and eigenvalues, at the rates of
this machine, which are measured once a process. The native interior point holds some ten dense matrices of n rows, n =
reduced inputs + units, and spends some ten dense products of that size on each of 15 to 60 iterations (see
``benchmarks/notes/interior_point.md``).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import cholesky, eigvalsh

from lightning_lipschitz.certificate.pieces import possible_cuts
from lightning_lipschitz.graph.network import Network

PRODUCTS = 400  # dense n x n products a solve, with a margin
STEP_PRODUCTS = 14  # the same of one iteration
MATRICES = 14
LARGEST_UNITS = 5_000
PIECE_UNITS = 600  # of a sub-network
DEEPEST = 24  # layers that are solved as one: of 40 random ones the whole stalls where three pieces give a sixteenth
IMPORT = 2.5  # seconds, of cvxpy
WRITING = 5_000  # operations that take the time of one entry of a matrix: its memory is what counts
TRIES = 9  # factorisations of the last block of a proof: rho is raised until it holds

_SAMPLE = 400  # rows of the matrices that rates are measured with


@dataclass(frozen=True)
class Rates:
    """Operations a second in dense float64 arithmetic: products, factorisations, reductions for eigenvalues."""

    product: float
    factor: float
    eigen: float


@lru_cache(maxsize=1)
def rates() -> Rates:
    """Rates of this machine under its load, measured in some 30 ms, the first time."""
    generator, n = np.random.default_rng(0), float(_SAMPLE)
    left = generator.standard_normal((_SAMPLE, _SAMPLE))
    gram = left @ left.T + np.eye(_SAMPLE)
    return Rates(
        2.0 * n**3 / _timed(lambda: left @ gram),
        n**3 / 3.0 / _timed(lambda: cholesky(gram, lower=True, check_finite=False)),
        4.0 / 3.0 * n**3 / _timed(lambda: eigvalsh(gram, subset_by_index=(_SAMPLE - 1, _SAMPLE - 1))),
    )


def _timed(work: Callable[[], object]) -> float:
    """The shorter of two runs: the first one may load a library."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-9)


@dataclass(frozen=True)
class Work:
    """Operations of the three kinds."""

    product: float = 0.0
    factor: float = 0.0
    eigen: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.product + other.product, self.factor + other.factor, self.eigen + other.eigen)

    def times(self, count: float) -> Work:
        return Work(count * self.product, count * self.factor, count * self.eigen)

    @property
    def seconds(self) -> float:
        speed = rates()
        return self.product / speed.product + self.factor / speed.factor + self.eigen / speed.eigen


def norm_proof(shape: tuple[int, ...]) -> Work:
    """Work to prove a spectral norm: a Gram matrix and its Cholesky factorisation."""
    small, large = float(min(shape)), float(max(shape))
    return Work(product=2.0 * small**2 * large, factor=small**3 / 3.0)


def norm(shape: tuple[int, ...]) -> Work:
    """Work to find and prove a spectral norm."""
    return norm_proof(shape).times(2.0) + Work(eigen=4.0 / 3.0 * float(min(shape)) ** 3)


def writing(entries: int) -> Work:
    """Work to write out so many entries of a model's matrices, look at them for a norm and in its proof."""
    return Work(product=WRITING * float(entries))


def elimination(network: Network, sizes: tuple[int, ...]) -> Work:
    """Work to form M and eliminate its blocks, those of the units from the last one down; ``sizes`` of the sources."""
    widths = [float(size) for size in sizes]
    squared = [layer.affine for layer in network.layers if np.any(layer.alpha * layer.beta)] + [network.output]
    pairs = [(a.source, b.source, float(affine.size)) for affine in squared for a in affine.terms for b in affine.terms]
    product = sum(2.0 * rows * widths[i] * widths[j] for i, j, rows in pairs)
    factor = 0.0
    blocks = {(i, j) for i, j, _ in pairs if i < j}
    blocks |= {(term.source, k) for k, layer in enumerate(network.layers, 1) for term in layer.affine.terms}
    for k in range(len(network.layers), 0, -1):
        panels = sorted(i for i, j in blocks if j == k)
        factor += widths[k] ** 3 / 3.0 + sum(widths[i] * widths[k] ** 2 for i in panels)
        product += sum(2.0 * widths[i] * widths[j] * widths[k] for i in panels for j in panels if i <= j)
        blocks |= {(i, j) for i in panels for j in panels if i < j}
    return Work(product, factor)


def proof(network: Network) -> Work:
    """Work to take multipliers to the kernel: rho is raised until the proof holds, and the proof is repeated."""
    last = float(network.sizes[1] if network.is_chain and len(network.sizes) > 1 else network.input_size)
    return elimination(network, network.sizes).times(2.0) + Work(factor=TRIES * last**3 / 3.0)


def sweep(network: Network) -> Work:
    """Work of one closed form: an elimination of the reduced network and an eigenvalue a block."""
    sizes = _reduced(network)
    small = elimination(network, sizes) + Work(eigen=4.0 / 3.0 * sum(float(size) ** 3 for size in sizes))
    return small.times(2.0) + reduction(network)  # forwards, blocks are inverted


def swept_step(network: Network) -> Work:
    """Work of one step of swept multipliers: the sweep forwards, and its derivative."""
    sizes = _reduced(network)
    return elimination(network, sizes).times(4.0) + Work(eigen=9.0 * sum(float(size) ** 3 for size in sizes[1:]))


def reduction(network: Network) -> Work:
    """Work to make the problem smaller: the input's QR factorisation."""
    inputs, rows = float(network.input_size), float(_reduced(network)[0])
    return Work(factor=4.0 * inputs * rows**2 if rows < inputs else 0.0)


def step(network: Network) -> Work:
    """Work of one iteration of the native solver."""
    return Work(product=STEP_PRODUCTS * 2.0 * float(sum(_reduced(network))) ** 3)


def first_step(network: Network) -> Work:
    """Work to reduce the problem, find a point inside, and make one iteration of the native solver."""
    sizes = _reduced(network)
    start = Work(product=4.0 * float(sum(sizes)) ** 3, eigen=4.0 / 3.0 * sum(float(size) ** 3 for size in sizes))
    return reduction(network) + start + step(network)


def conic(network: Network, solver: str) -> float:
    """Seconds before a conic solver looks at its clock for the first time: import, set-up, and one iteration.

    The matrix has d = n (n + 1) / 2 entries to solve for. cvxpy's set-up takes some 2000 operations for every entry and
    row; Clarabel factors a matrix of d rows before each iteration, SCS finds the eigenvalues of one of n rows.
    """
    n = float(sum(_reduced(network)))
    first = Work(product=2000.0 * n**3)
    first += Work(factor=(n * (n + 1.0) / 2.0) ** 3 / 3.0) if solver == "clarabel" else Work(eigen=25.0 * 9.0 * n**3)
    return first.seconds + (0.0 if "cvxpy" in sys.modules else IMPORT)


def seconds(network: Network) -> float:
    """Expected time of the native solver on the whole network."""
    return Work(product=PRODUCTS * 2.0 * float(sum(_reduced(network))) ** 3).seconds


def memory(network: Network, matrices: float = MATRICES) -> float:
    """Expected peak of the native solver, or of what holds so many matrices, bytes."""
    return matrices * 8.0 * float(sum(_reduced(network))) ** 2


def room(meminfo: str = "/proc/meminfo") -> float:
    """Bytes of memory that can be had now; infinite where the system does not say.

    Linux keeps files in memory that is free for whoever asks: what it calls available counts, not what it calls free.
    """
    try:
        with open(meminfo, encoding="ascii") as lines:
            found = dict(line.split(":", 1) for line in lines if ":" in line)
        return 1024.0 * float(found["MemAvailable"].removesuffix("kB\n"))
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # not POSIX, or no such name
        return math.inf


def cuts(network: Network, time_limit: float | None) -> tuple[int, ...]:
    """Where ``auto`` splits; empty where the whole is affordable or nothing can be cut."""
    depth = len(network.layers)
    fits = time_limit is None or seconds(network) <= time_limit
    most_units = math.inf if fits and network.num_units <= LARGEST_UNITS else PIECE_UNITS
    most_layers = math.ceil(depth / math.ceil(depth / DEEPEST)) if depth else 0
    chosen: list[int] = []
    for k in possible_cuts(network):
        start = chosen[-1] if chosen else 0
        # of the piece that would end at the next possible cut
        units, layers = sum(network.sizes[start + 1 : k + 2]), min(k + 1, depth) - start
        if units > most_units or layers > most_layers:
            chosen.append(k)
    return tuple(chosen)


def _reduced(network: Network) -> tuple[int, ...]:
    """Sizes of the sources after the input has been reduced to the rows that read it."""
    read = sum(affine.size for affine in network.affines if any(term.source == 0 for term in affine.terms))
    return (min(network.input_size, read), *network.sizes[1:])
