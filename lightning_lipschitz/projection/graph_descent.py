r"""The nearest weights of any graph, by a barrier: a path through the interior of the certified set.

    minimise over (W, lambda):   |W - V|^2 / 2  -  mu b(W, lambda),      mu -> 0,

b the log-determinant of :mod:`.dense`. It keeps M positive definite, so that every iterate is certified by its own
multipliers. (Boyd, Vandenberghe, "Convex Optimization", 2004, chapter 11; in W and lambda together the problem is not
convex: a local minimum.) With the bound free, ``price * rho`` is added and rho is a variable too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lipschitz.projection.dense import Form, Point, centred, evaluate
from lightning_lipschitz.projection.graph_map import GraphMap
from lightning_lipschitz.projection.quasi_newton import Value, minimise

_PROMISE = 0.1  # of mu: steps that promise less end a stage


@dataclass(frozen=True, eq=False)
class Place:
    """Strictly inside the certified set.

    Attributes:
        weights: float64.
        logs: logarithms of the multipliers, one a group.
        rho: the squared bound that they prove.
    """

    weights: list[Tensor]
    logs: Tensor
    rho: float

    def distance(self, weights: Sequence[Tensor]) -> float:
        """l2, all weights together."""
        pairs = zip(self.weights, weights, strict=True)
        return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))

    def towards(self, other: Place, share: float) -> Place:
        """On the segment to another one."""
        weights = [torch.lerp(a, b, share) for a, b in zip(self.weights, other.weights, strict=True)]
        return replace(self, weights=weights, logs=torch.lerp(self.logs, other.logs, share))


@dataclass(frozen=True, eq=False)
class Descent:
    """The problem.

    Attributes:
        map: weights -> rows.
        form: slopes and groups.
        target: V, float64.
        price: of rho, where that is free.
    """

    map: GraphMap
    form: Form
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
        return share * 0.5 * place.distance(self.target) ** 2 / self.map.width

    def _stage(self, place: Place, strength: float, iterations: int) -> Place:
        units = _Units.of(place, strength, self.price)

        def function(z: Tensor) -> Value | None:
            flat, logs, rho = z[: units.count].requires_grad_(), *units.rest(z)
            with torch.enable_grad():  # what is written is looked for where gradients are off
                weights = units.weights(flat)
                rows = self.map(weights)
            point = evaluate(self.form, rows[0].detach(), rows[1].detach(), logs, rho)
            if point is None:
                return None
            far = sum(float((w - v).detach().square().sum()) for w, v in zip(weights, self.target, strict=True))
            value = 0.5 * far + (self.price or 0.0) * rho - strength * point.value
            return Value(value, lambda: self._gradient(units, flat, rows, point, rho, strength))

        z, _ = minimise(function, units.start(place), iterations=iterations, tolerance=_PROMISE * strength)
        logs, rho = units.rest(z)
        return Place(units.weights(z[: units.count]), logs, rho)

    def _gradient(
        self, units: _Units, flat: Tensor, rows: tuple[Tensor, Tensor], point: Point, rho: float, strength: float
    ) -> Tensor:
        found = point.gradients()
        used = [(each, seed) for each, seed in zip(rows, (found.rows, found.output), strict=True) if each.requires_grad]
        (pulled,) = torch.autograd.grad([each for each, _ in used], [flat], [seed for _, seed in used])
        away = flat.detach() - torch.cat([v.flatten() for v in self.target])
        parts = [away - strength * pulled, -strength / units.of_logs * found.logs]
        if self.price is not None:
            slope = self.price * rho - strength * found.log_rho
            parts.append(found.logs.new_tensor([slope / units.of_rho]))
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

    def weights(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [shape.numel() for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def rest(self, z: Tensor) -> tuple[Tensor, float]:
        """Logarithms of the multipliers, and rho."""
        logs = z[self.count : self.count + self.groups].detach() / self.of_logs
        return logs, math.exp(float(z[-1]) / self.of_rho) if self.rho is None else self.rho


def centre(map: GraphMap, form: Form, place: Place, steps: int) -> Place | None:
    """The same weights with multipliers further inside, by Newton steps; None where the start is not inside."""
    with torch.no_grad():
        rows = map(place.weights)
    if evaluate(form, *rows, place.logs, place.rho) is None:
        return None
    logs = place.logs
    for _ in range(steps if len(logs) else 0):
        moved = centred(form, *rows, logs, place.rho)
        if moved is None:
            break
        logs = moved
    return replace(place, logs=logs)
