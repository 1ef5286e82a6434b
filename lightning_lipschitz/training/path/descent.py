r"""The nearest weights of any graph, by a barrier: a path through the interior of the certified set.

    minimise over (W, lambda):   |W - V|^2 / 2  -  mu b(W, lambda),      mu -> 0,

b the log-determinant of :mod:`lightning_lipschitz.bounds.inequality`. It keeps M positive definite, so that every
iterate is certified by its own multipliers. (Boyd, Vandenberghe, "Convex Optimization", 2004, chapter 11; in W and
lambda together the problem is not convex: a local minimum.) With the bound free, ``price * rho`` is added and rho is a
variable too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality import Inequality, Point
from lightning_lipschitz.training.path.constraint import Constraint, Place
from lightning_lipschitz.training.path.quasi_newton import Evaluation, minimise
from lightning_lipschitz.weights.maps import Pullback

_PROMISE = 0.1  # of mu: steps that promise less end a stage


@dataclass(frozen=True, eq=False)
class PathDescent:
    """Descent from place to place along the path of the log-determinant barrier.

    Attributes:
        constraint: what the weights and the multipliers meet.
        target: V, float64.
        price: of rho, where that is free.
    """

    constraint: Constraint
    target: list[Tensor]
    price: float | None = None

    def run(self, place: Place, strengths: Sequence[float], iterations: int, deadline: float = math.inf) -> list[Place]:
        """The places at the ends of the stages, one for each strength mu that there was time for; the start first."""
        places = [place]
        for strength in strengths:
            if time.perf_counter() > deadline or strength <= 0.0:
                break
            places.append(self._stage(places[-1], strength, iterations))
        return places

    def strength(self, place: Place, share: float) -> float:
        """mu at which the barrier's gap is about ``share`` of the squared distance over two."""
        return share * 0.5 * place.distance(self.target) ** 2 / self.constraint.width

    def _stage(self, place: Place, strength: float, iterations: int) -> Place:
        units = _Units.of(place, strength, self.price)

        def function(z: Tensor) -> Evaluation | None:
            weights, (logs, rho) = units.weights(z), units.rest(z)
            blocks, pullback = self.constraint.map.with_pullback(weights)
            point = Inequality(self.constraint.structure, logs.exp(), rho).at(blocks)
            if point is None:
                return None
            away = [w - v for w, v in zip(weights, self.target, strict=True)]
            half = 0.5 * sum(float(a.square().sum()) for a in away)
            value = half + (self.price or 0.0) * rho + strength * point.barrier
            return Evaluation(value, lambda: self._gradient(units, away, point, pullback, rho, strength))

        z, _ = minimise(function, units.start(place), iterations=iterations, tolerance=_PROMISE * strength)
        logs, rho = units.rest(z)
        return Place(units.weights(z), logs, rho)

    def _gradient(
        self, units: _Units, away: list[Tensor], point: Point, pullback: Pullback, rho: float, strength: float
    ) -> Tensor:
        of_logs, of_log_rho = point.slopes_of_logarithms()
        pulled = pullback(point.gradient())
        parts = [(a + strength * g).flatten() for a, g in zip(away, pulled, strict=True)]
        parts.append(strength / units.of_logs * of_logs)
        if self.price is not None:
            parts.append(of_logs.new_tensor([(self.price * rho + strength * of_log_rho) / units.of_rho]))
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class _Units:
    """Variables in units in which the second derivatives are near one."""

    shapes: list[torch.Size]
    count: int
    groups: int
    of_logs: float
    of_rho: float
    rho: float | None

    @classmethod
    def of(cls, place: Place, strength: float, price: float | None) -> _Units:
        shapes = [weight.shape for weight in place.weights]
        of_rho = 1.0 if price is None else math.sqrt(price * place.rho)
        fixed = place.rho if price is None else None
        count = sum(weight.numel() for weight in place.weights)
        return cls(shapes, count, len(place.logs), math.sqrt(strength), of_rho, fixed)

    def start(self, place: Place) -> Tensor:
        parts = [*(weight.flatten() for weight in place.weights), place.logs * self.of_logs]
        if self.rho is None:
            parts.append(place.logs.new_tensor([math.log(place.rho) * self.of_rho]))
        return torch.cat(parts)

    def weights(self, z: Tensor) -> list[Tensor]:
        parts = torch.split(z[: self.count], [shape.numel() for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def rest(self, z: Tensor) -> tuple[Tensor, float]:
        """Logarithms of the multipliers, and rho."""
        logs = z[self.count : self.count + self.groups] / self.of_logs
        return logs, math.exp(float(z[-1]) / self.of_rho) if self.rho is None else self.rho
