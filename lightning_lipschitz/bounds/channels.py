r"""Multipliers for convolutional parts: one number a layer, searched for at a few frequencies.

For given multipliers the least rho at a frequency is the largest eigenvalue of the Schur complement of M's block of the
units, found by Lanczos iterations with products only. All of it is a proposal: what
:mod:`lightning_lipschitz.certificate.spectrum` proves is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse.linalg import LinearOperator, eigsh

from lightning_lipschitz.bounds import cost
from lightning_lipschitz.bounds.parts import Span, along_chains
from lightning_lipschitz.certificate.proofs import Channels
from lightning_lipschitz.certificate.spectrum import Spectrum, spectrum
from lightning_lipschitz.graph import Elementwise, Graph
from lightning_lipschitz.graph.network import Affine, Network
from lightning_lipschitz.graph.parts import inside

Complex = npt.NDArray[np.complex128]

LARGEST_WORK = 2e11  # operations of the proof, all frequencies: some ten seconds
MOST_LAYERS = 3  # of units in a part
FAILURES = 3  # beginnings in a row that will not do, after which a part is as long as it gets
SEARCHED = 5  # frequencies
FACTORS = (1.0, 1.25, 1.6, 2.0)  # of the multipliers that give the product of the norms
SEARCH = 4.0  # times the proof's time that a proposal takes
ATTEMPTS = 5  # to make the block of the units definite at all frequencies
ROOM = 1e-6  # relative, above the largest rho found


def propose(graph: Graph, start: int, end: int) -> Channels | None:
    """Multipliers of the part from ``start`` to ``end``, or None where it is not convolutional or too large."""
    part = spectrum(graph, start, end)
    if part is None or not part.layers or work(part) > LARGEST_WORK:
        return None
    every = part.frequencies
    chosen = every[np.unique(np.linspace(0, len(every) - 1, SEARCHED).astype(int))]
    points = [_AtFrequency(network) for network in part.networks(chosen) if network is not None]
    values = _search(points, _start(points))
    for _ in range(ATTEMPTS):
        rho = max(_AtFrequency(network).rho(values, 1e-8) for network in part.networks(every) if network is not None)
        if math.isfinite(rho):
            break
        values = [1.3 * value for value in values]  # the norm is larger at a frequency that was left out
    if not (math.isfinite(rho) and rho > 0):
        return None
    spread = zip(values, part.channels[1:], strict=True)
    return Channels(rho * (1.0 + ROOM), tuple(np.full(channels, value) for value, channels in spread))


def cut(graph: Graph, written: Sequence[Span]) -> tuple[Span, ...]:
    """Convolutional parts outside of those that are written out anyway."""

    def uncovered(piece: Sequence[int]) -> bool:
        return not any(inside(graph, piece, *part) for part in written)

    return along_chains(graph, partial(_farthest, graph), uncovered, written)


def _farthest(graph: Graph, points: Sequence[int], last: int) -> int:
    """Where a part that ends at ``points[last]`` can begin; ``last`` itself if nowhere."""
    first, failures = last, 0
    if isinstance(graph.nodes[points[last]], Elementwise):
        return last  # it has a constant of its own, and would only be one more multiplier
    for candidate in range(last - 1, -1, -1):
        part = spectrum(graph, points[candidate], points[last])
        failures = failures + 1 if part is None else 0
        if failures == FAILURES or (part is not None and (len(part.layers) > MOST_LAYERS or work(part) > LARGEST_WORK)):
            break
        if part is not None and part.layers:
            first = candidate
    return first


def work(part: Spectrum) -> float:
    """Operations of the proof: forming and factoring the real form of M at every frequency."""
    inputs, units = 2.0 * part.channels[0], 2.0 * sum(part.channels[1:])
    each = 2.0 * part.rows * 2.0 * (inputs + units) ** 2 / 2.0 + (inputs + units) ** 3 / 3.0 + 2e7
    return float(0.5 * math.prod(part.periods) * each)


def proof(graph: Graph, start: int, end: int) -> cost.Work:
    """Work to prove a part; none where there is nothing to prove."""
    part = spectrum(graph, start, end)
    return cost.Work(factor=0.0 if part is None else work(part))


def _search(points: Sequence[_AtFrequency], start: Sequence[float]) -> list[float]:
    """Common factors first, then one layer after the other, then finer steps."""

    def worst(values: Sequence[float]) -> float:
        return max(point.rho(values, 1e-3) for point in points)

    tried = ([factor * value for value in start] for factor in FACTORS)
    best, least = min(((values, worst(values)) for values in tried), key=lambda pair: pair[1])
    for step in (1.15, 1.06):
        for k in range(len(start)):
            for factor in (step, 1.0 / step):
                values = [value * (factor if j == k else 1.0) for j, value in enumerate(best)]
                if (rho := worst(values)) < least:
                    best, least = values, rho
                    break
    return best


def _start(points: Sequence[_AtFrequency]) -> list[float]:
    """What makes rho the product of the norms in a chain: from the output back, sums over all that read a layer."""
    count = len(points[0].layers)
    values = [0.0] * count
    for k in range(count, 0, -1):
        total = max(point.norm(point.output, k) ** 2 for point in points)
        for j in range(k + 1, count + 1):
            alpha, beta, _ = points[0].layers[j - 1]
            steepest = max(abs(alpha), beta)
            total += values[j - 1] * steepest**2 * max(point.norm(point.layers[j - 1][2], k) ** 2 for point in points)
        values[k - 1] = total
    return values


class _AtFrequency:
    """The part at one frequency, its matrices complex again."""

    def __init__(self, network: Network) -> None:
        self.sizes = [size // 2 for size in network.sizes]
        self.output = _complex(network.output)
        self.layers = [(float(each.alpha[0]), float(each.beta[0]), _complex(each.affine)) for each in network.layers]

    def norm(self, terms: dict[int, Complex], source: int) -> float:
        return float(np.linalg.norm(terms[source], 2)) if source in terms else 0.0

    def rho(self, values: Sequence[float], tolerance: float) -> float:
        """The least rho for these multipliers, to working accuracy; infinite where the block of the units fails."""
        inputs, units = self.sizes[0], sum(self.sizes[1:])
        block, coupling = np.zeros((units, units), dtype=np.complex128), np.zeros((units, inputs), dtype=np.complex128)
        squares: list[tuple[float, Complex]] = []
        self._square(block, coupling, squares, self.output, -1.0)
        place = 0
        for value, size, (alpha, beta, terms) in zip(values, self.sizes[1:], self.layers, strict=True):
            rows = slice(place, place + size)
            block[rows, rows] += 2.0 * value * np.eye(size)
            seen, direct = self._split(terms, size)
            block[rows] -= (alpha + beta) * value * seen
            block[:, rows] -= (alpha + beta) * value * seen.conj().T
            coupling[rows] -= (alpha + beta) * value * direct
            if alpha * beta:
                self._square(block, coupling, squares, terms, 2.0 * alpha * beta * value)
            place += size
        try:
            factor = cholesky(block, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return math.inf
        reduced = solve_triangular(factor, coupling, lower=True, check_finite=False)
        return _largest([(-1.0, reduced), *squares], tolerance)

    def _split(self, terms: dict[int, Complex], rows: int) -> tuple[Complex, Complex]:
        """What is read of the units, and of the input."""
        parts = [terms.get(j, np.zeros((rows, size))) for j, size in enumerate(self.sizes)]
        return np.concatenate(parts[1:], axis=1), np.asarray(parts[0], dtype=complex)

    def _square(
        self,
        block: Complex,
        coupling: Complex,
        squares: list[tuple[float, Complex]],
        terms: dict[int, Complex],
        weight: float,
    ) -> None:
        """``weight`` times the square of some rows."""
        seen, direct = self._split(terms, len(next(iter(terms.values()))))
        block += weight * (seen.conj().T @ seen)
        if np.any(direct):
            coupling += weight * (seen.conj().T @ direct)
            squares.append((weight, direct))


def _complex(affine: Affine) -> dict[int, Complex]:
    found = {}
    for term in affine.terms:
        rows, columns = (length // 2 for length in term.matrix.shape)
        found[term.source] = term.matrix[:rows, :columns] + 1j * term.matrix[rows:, :columns]
    return found


def _largest(squares: Sequence[tuple[float, Complex]], tolerance: float) -> float:
    """The largest eigenvalue of the negative sum of weighted squares."""
    size = squares[0][1].shape[1]
    pairs = [(-weight, rows, np.ascontiguousarray(rows.conj().T)) for weight, rows in squares]

    def product(x: Complex) -> Complex:
        total = np.zeros_like(x)
        for weight, rows, adjoint in pairs:
            total += weight * (adjoint @ (rows @ x))
        return total

    if size < 12:
        return float(np.linalg.eigvalsh(product(np.eye(size, dtype=complex)))[-1])
    operator = LinearOperator((size, size), matvec=product, dtype=np.complex128)
    first = np.random.default_rng(0).normal(size=(size, 2)) @ np.array([1.0, 1.0j])
    return float(eigsh(operator, k=1, which="LA", tol=tolerance, v0=first, return_eigenvectors=False)[0])
