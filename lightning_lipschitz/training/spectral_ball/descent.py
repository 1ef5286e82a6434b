r"""Multipliers for the nearest weights: descent on the distance itself.

Let v(q) be half the squared distance from W to the certified set of the multipliers ``lambda = exp(q)`` for a fixed
bound. Projection and LipSDP by turns stop at a point where neither helps alone; v goes on falling, often to half the
distance, because it moves both. Its gradient comes with the projection (envelope theorem): unit i of layer k scales
its row of W_k in G by exp(q_i / 2) and its column of W_{k+1} by exp(-q_i / 2), and the optimal W_bar has ``W - W_bar
= G*(Y)``, so that

    dv/dq_i = 1/2 sum_j (W_k - W_bar_k)_ij (W_bar_k)_ij - 1/2 sum_j (W_{k+1} - W_bar_{k+1})_ji (W_bar_{k+1})_ji.

Minimised by L-BFGS (Liu and Nocedal, 1989). v is not convex: a local minimum.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize
from torch import Tensor

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.result import State
from lightning_lipschitz.training.spectral_ball.certified_set import CertifiedSet, Projected, slopes_of

MEMORY = 20  # of L-BFGS
ACCURACY = 0.5  # of the projections, relative to the decrease that is worth going on
PATIENCE = 3  # projections that together have to bring that decrease
ITERATIONS = 300  # of a projection; where that is not enough, the multipliers are poor ones
RANGE = 40.0  # the search leaves no multiplier further than exp(+-40) from where it began


class _Enough(Exception):  # noqa: N818 - control flow: ends the search from within
    """Distance zero, no more projections, or no more time."""


class MultiplierDescent:
    """v and its gradient; the best projection so far.

    Args:
        weights: W, shape (n_k, n_{k-1}) a layer.
        rho: the squared bound.
        network: the chain; its slopes, which contain zero, and its groups are used.
        state: of an earlier projection of similar weights.
        rtol: relative decrease of the distance that is worth three more projections.
        most: projections.
        deadline: of ``time.perf_counter``.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        rho: float,
        network: Network,
        *,
        state: State | None = None,
        rtol: float = 1e-3,
        most: int = 30,
        deadline: float = float("inf"),
    ) -> None:
        self._weights = [weight.detach().double() for weight in weights]
        self._rho, self._slopes, self._state = rho, slopes_of(network), state
        self._rtol, self._most, self._deadline = rtol, most, deadline
        self._groups = [np.unique(np.asarray(layer.group), return_inverse=True)[1] for layer in network.layers]
        self._edges = np.cumsum([int(group.max()) + 1 for group in self._groups])[:-1]
        self._unit: float | None = None
        self._distances: list[float] = []  # the least so far, after every projection
        self.best: tuple[Projected, CertifiedSet] | None = None

    def run(self, start: Multipliers) -> tuple[Projected, CertifiedSet]:
        """The nearest weights found, and the set they are in.

        Args:
            start: multipliers of layers that are all there; rho is not looked at.
        """
        firsts = [np.unique(group, return_index=True)[1] for group in self._groups]
        q = np.log(np.concatenate([*(v[f] for v, f in zip(start.values, firsts, strict=True)), np.zeros(0)]))
        bounds = [(x - RANGE, x + RANGE) for x in q]
        with suppress(_Enough):
            if len(q):
                minimize(
                    self,
                    q,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=bounds,
                    options={"maxcor": MEMORY, "ftol": 0.0, "gtol": 0.0},
                )
            else:
                self(q)
        assert self.best is not None  # noqa: S101 - for the type checker
        return self.best

    def __call__(self, q: Array) -> tuple[float, Array]:
        """v(q) and its gradient, in units of the first v: L-BFGS-B compares decreases with one."""
        parts = np.split(np.exp(q), self._edges) if self._groups else []
        values = tuple(part[group] for part, group in zip(parts, self._groups, strict=True))
        ball = CertifiedSet(Multipliers(self._rho, values), self._slopes)
        found = ball.project(self._weights, self._state, rtol=ACCURACY * self._rtol, max_iterations=ITERATIONS)
        if self.best is None or found.distance < self.best[0].distance:
            self.best, self._state = (found, ball), found.state
        self._distances.append(self.best[0].distance)
        if self._done():
            raise _Enough
        value = 0.5 * found.distance**2
        self._unit = self._unit or value
        return value / self._unit, self._gradient(found.weights) / self._unit

    @property
    def projections(self) -> int:
        """Made so far."""
        return len(self._distances)

    def _done(self) -> bool:
        late = self.projections >= self._most or time.perf_counter() > self._deadline
        least, before = self._distances[-1], [float("inf"), *self._distances][-1 - PATIENCE :][0]
        return late or least == 0.0 or least > (1.0 - self._rtol) * before

    def _gradient(self, moved: Sequence[Tensor]) -> Array:
        pulls = [(w - m) * m for w, m in zip(self._weights, moved, strict=True)]
        units = [0.5 * (a.sum(dim=1) - b.sum(dim=0)).cpu().numpy() for a, b in pairwise(pulls)]
        sums = [np.bincount(group, unit) for group, unit in zip(self._groups, units, strict=True)]
        gradient: Array = np.concatenate([*sums, np.zeros(0)])
        return gradient
