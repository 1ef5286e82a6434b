"""The best of a run so far: what is returned however it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from lightning_lipschitz.bounds.interior_point.iterate import Iterate
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.interior_point.result import Ending, Progress, Solution, WarmStart
from lightning_lipschitz.bounds.lipsdp import Reduced
from lightning_lipschitz.certificate.proofs import Multipliers
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.arrays import Array

# The points kept for a warm start: the first whose relative gap, of the bound, is below.
_WARM_GAPS = (0.5, 0.2, 0.1, 0.03, 0.01, 0.003)


class Record:
    """Best feasible multipliers, best lower bound, clock and patience."""

    def __init__(
        self,
        reduced: Reduced,
        rtol: float,
        time_limit: float | None,
        progress: Callable[[Progress], None] | None,
        start: float,
    ) -> None:
        self._reduced, self._rtol, self._limit, self._progress = reduced, rtol, time_limit, progress
        self._start = start
        self._best: Tensor | None = None
        self._path: dict[float, Tensor] = {}
        self._rho, self._lower = float("inf"), 0.0
        self._step, self._noted = 0.0, math.inf
        self.iterations, self.idle = -1, 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def late(self) -> bool:
        """Whether another iteration as long as the last one would end after the limit."""
        return self._limit is not None and self.seconds + self._step >= self._limit

    @property
    def gap(self) -> float:
        """``1 - sqrt(lower / rho)``; 1 before there is a primal point."""
        return max(1.0 - (self._lower / self._rho) ** 0.5, 0.0) if self._rho > 0 else 0.0

    @property
    def _closed(self) -> float:
        """lower / rho: while it is small it says more of the progress than the gap does."""
        return self._lower / self._rho if self._rho > 0 else 1.0

    @property
    def solved(self) -> bool:
        return self.gap <= self._rtol

    def add(self, point: Iterate, lower: float) -> None:
        """Take note of a strictly feasible point and of a lower bound on the optimum."""
        before, closed, now = self.gap, self._closed, self.seconds
        self._step, self._noted = max(now - self._noted, 0.0), now
        if point.rho < self._rho:
            self._rho, self._best = point.rho, point.y
        self._lower = max(self._lower, lower)
        self.iterations += 1
        idle = point.X is not None and self.gap >= 0.9 * before and self._closed <= 1.2 * closed
        self.idle = self.idle + 1 if idle else 0
        if point.X is not None:
            self._path.setdefault(min((g for g in _WARM_GAPS if g >= self.gap), default=1.0), point.y)
        if self._progress is not None:
            unit = self._reduced.unit
            self._progress(Progress(self.iterations, self._rho * unit, self._lower * unit, self.gap, self.seconds))

    def solution(self, problem: Problem, ending: Ending) -> Solution:
        """In the units of the network as given.

        Raises:
            SolverError: there is no such point in float64.
        """
        if self._best is None:
            raise SolverError("no strictly feasible multipliers were found; the weights may be beyond float64's range.")
        best, *path = (self._restore(problem, y) for y in (self._best, *self._path.values()))
        if not 0 < best.rho < float("inf"):
            raise SolverError("the squared bound is beyond the range of float64; rescale the weights.")
        lower = self._lower * self._reduced.unit
        return Solution(best, lower, self.gap, self.iterations, self.seconds, ending, WarmStart(tuple(path)))

    def affine(self, output: Sequence[Array]) -> Solution:
        """The answer where nothing but an affine map is left."""
        rho = float(np.linalg.norm(np.concatenate(output, axis=1), 2)) ** 2 if output else 0.0
        values = [np.zeros(layer.size) for layer in self._reduced.network.layers]
        point = self._reduced.restore(rho, values)
        return Solution(point, point.rho, 0.0, 0, self.seconds, "solved", WarmStart((point,)))

    def _restore(self, problem: Problem, y: Tensor) -> Multipliers:
        units = problem.spread(y[1:]).cpu().numpy()
        return self._reduced.restore(float(y[0]), [units[layer] for layer in problem.layers])
