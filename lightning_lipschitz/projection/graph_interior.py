"""Training strictly inside the certified set of any graph; see :mod:`.interior` for the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.barrier import START_INSIDE, Start
from lightning_lipschitz.projection.dense import Point, centred, evaluate
from lightning_lipschitz.projection.graph_descent import Place, centre
from lightning_lipschitz.projection.graph_map import GraphMap, form_of
from lightning_lipschitz.projection.graph_nearest import nearest
from lightning_lipschitz.projection.graph_start import scaled_inside
from lightning_lipschitz.projection.interior import MARGIN, Weights, halved
from lightning_lipschitz.projection.multipliers import squared, widened
from lightning_lipschitz.projection.stored import Store

_STEPS = 8  # of Newton's method at the start


class GraphInterior:
    """Multipliers that keep the weights of a graph strictly inside the certified set.

    Args:
        map: weights -> rows.
        multipliers: lambda, float64, shape (n_k,) a layer; with the weights of the start strictly inside.
        max_lipschitz: L.
        network: with slopes that contain zero; its matrices are not used.
    """

    def __init__(self, map: GraphMap, multipliers: Sequence[Tensor], max_lipschitz: float, network: Network) -> None:
        self._map, self._form = map, form_of(network, multipliers or [torch.zeros(0)])
        self._rho = (max_lipschitz * (1.0 - MARGIN)) ** 2
        self._logs = self._form.shared([lam.cpu().numpy() for lam in multipliers]).log()
        self._last: _Seen | None = None

    @property
    def multipliers(self) -> list[Tensor]:
        """lambda, one tensor a layer."""
        return list(self._form.unshared(self._logs.exp()))

    def gradient(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Of -b in the weights, in their dtype. The weights must be inside."""
        doubles = [weight.detach().double().requires_grad_() for weight in weights]
        with torch.enable_grad():
            rows = self._map(doubles)
        point = evaluate(self._form, rows[0].detach(), rows[1].detach(), self._logs, self._rho)
        if point is None:
            raise RuntimeError("the weights are not inside")
        found = point.gradients()
        used = [(each, seed) for each, seed in zip(rows, (found.rows, found.output), strict=True) if each.requires_grad]
        outputs, seeds = [each for each, _ in used], [seed for _, seed in used]
        gradients = torch.autograd.grad(outputs, doubles, seeds, allow_unused=True)
        pairs = zip(gradients, weights, strict=True)
        return [torch.zeros_like(w) if g is None else -g.to(w.dtype) for g, w in pairs]

    def contains(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights are strictly inside, in floating point."""
        return self._seen(weights).point is not None

    def largest_step(self, weights: Weights) -> float:
        """The largest t of 1/2, 1/4, ... with ``weights(t)`` strictly inside; 0 where none is."""
        return halved(lambda t: self.contains(weights(t)))

    def centre(self, weights: Sequence[Tensor]) -> None:
        """One damped Newton step of the multipliers up b."""
        if len(self._logs):
            with torch.no_grad():
                rows = self._map([weight.detach().double() for weight in weights])
            moved = centred(self._form, *rows, self._logs, self._rho)
            if moved is not None:
                self._logs, self._last = moved, None

    @torch.no_grad()
    def _seen(self, weights: Sequence[Tensor]) -> _Seen:
        """The factorisation at these weights; the next question is often about the same."""
        if self._last is None or not self._last.is_of(weights):
            doubles = [weight.detach().double() for weight in weights]
            finite = all(bool(each.isfinite().all()) for each in doubles)
            point = evaluate(self._form, *self._map(doubles), self._logs, self._rho) if finite else None
            self._last = _Seen([weight.detach().clone() for weight in weights], point)
        return self._last


@dataclass(frozen=True, eq=False)
class _Seen:
    given: list[Tensor]
    point: Point | None

    def is_of(self, weights: Sequence[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.given, weights, strict=True))


def start_inside(
    map: GraphMap, weights: Sequence[Tensor], network: Network, max_lipschitz: float, store: Store
) -> Start:
    """The weights, or the nearest found with a bound of 95 per cent of ``max_lipschitz``, and multipliers with room.

    Raises:
        ProjectionError, SolverError: as :func:`.graph_nearest.nearest`.
    """
    wide, moved = widened(network), 0.0
    inside = [weight.detach().clone() for weight in weights]
    goal = START_INSIDE * max_lipschitz
    certificate = certify_network(map.network(wide, [w.double() for w in inside]), Settings(rtol=1e-4))
    if certificate.upper_bound > goal:
        found = nearest(map, weights, network, goal, store)
        inside = [w.to(like) for w, like in zip(found.weights, weights, strict=True)]
        moved = found.distance
        place = _place(map, wide, inside, found.multipliers, max_lipschitz)
    elif isinstance(certificate.proof, Multipliers) and min(float(v.min()) for v in certificate.proof.values) > 0:
        place = _place(map, wide, inside, certificate.proof, max_lipschitz)
    else:
        place = scaled_inside(map, wide, [w.double() for w in inside], max_lipschitz)
    form = form_of(wide, inside)
    return Start(inside, [lam.log() for lam in form.unshared(place.logs.exp())], moved)


def _place(map: GraphMap, wide: Network, weights: Sequence[Tensor], known: Multipliers, max_lipschitz: float) -> Place:
    form = form_of(wide, weights)
    doubles = [weight.double() for weight in weights]
    place = Place(doubles, form.shared(known.values).log(), squared(max_lipschitz))
    return centre(map, form, place, _STEPS) or scaled_inside(map, wide, doubles, max_lipschitz)
