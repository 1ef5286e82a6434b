r"""Training inside the certified set: the log-determinant barrier's gradient, multipliers, steps that stay inside.

With ``b(W, lambda) = log det M(L^2, lambda; W) - sum_i log lambda_i``, training minimises ``loss(W) - mu b(W, lambda)``
over the weights, by whatever optimizer, while lambda maximises b (after Pauli, Funcke, Gramlich, Msalmi, Allgöwer,
"Neural network training under semidefinite constraints", CDC 2022). A step that leaves the set is halved until it does
not. What differs from there:

1. The sum over log lambda: b is then the log-determinant of M scaled to the diagonal of ``W = 0``, and bounded above.
   Without it, a unit whose weights are near zero gains without limit as they vanish and its lambda grows.
2. One optimizer moves both there. Newton steps do for lambda in one what gradient steps do in hundreds; see
   :meth:`.Inequality.centred`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.inequality import Inequality, Point, Structure
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import path, spectral_ball
from lightning_lipschitz.training.multipliers import solve_multipliers, squared
from lightning_lipschitz.weights import Store, StoredWeights
from lightning_lipschitz.weights.maps import Pullback, WeightMap, with_weights

MARGIN = 1e-7  # of the bound: kept for the kernel, which proves more than a Cholesky factorisation that runs through
START_INSIDE = 0.95  # of the bound, where training starts
_SMALLEST_STEP = 2.0**-20
_NEWTON_STEPS = 8  # at the start


class Interior:
    """Multipliers that keep weights strictly inside the certified set.

    Args:
        map: weights -> matrices.
        multipliers: lambda, float64, shape (n_k,) a layer; with the weights of the start strictly inside.
        max_lipschitz: L.
        network: with slopes that contain zero; its matrices are not used.

    Example:
        >>> from lightning_lipschitz.weights.maps import chain_map
        >>> network = Network.from_weights([[[1.0]], [[1.0]]])
        >>> interior = Interior(chain_map, [torch.ones(1, dtype=torch.float64)], 2.0, network)
        >>> weights = [torch.ones(1, 1), torch.ones(1, 1)]
        >>> [round(g.item(), 3) for g in interior.gradient(weights)]  # of -log det [[4, -1], [-1, 1]]
        [0.667, 2.667]
    """

    def __init__(self, map: WeightMap, multipliers: Sequence[Tensor], max_lipschitz: float, network: Network) -> None:
        device = multipliers[0].device if multipliers else "cpu"
        structure = Structure.of(network, device)
        shared = structure.shared([lam.cpu().numpy() for lam in multipliers])
        self._map, self._inequality = map, Inequality(structure, shared, (max_lipschitz * (1.0 - MARGIN)) ** 2)
        self._last: _Seen | None = None

    @property
    def multipliers(self) -> list[Tensor]:
        """lambda, one tensor a layer."""
        return list(self._inequality.structure.unshared(self._inequality.multipliers))

    def gradient(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradient of -b with respect to the weights, in their dtype. The weights must be inside."""
        seen = self._at(weights)
        if seen.point is None:
            raise RuntimeError("the weights are not inside")
        pulled = seen.pullback(seen.point.gradient())
        return [slope.to(weight.dtype) for slope, weight in zip(pulled, weights, strict=True)]

    def contains(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights are strictly inside, in floating point."""
        return self._at(weights).point is not None

    def largest_step(self, weights: Callable[[float], Sequence[Tensor]]) -> float:
        """The largest t of 1/2, 1/4, ... with ``weights(t)`` strictly inside; 0 where none is."""
        t = 0.5
        while t >= _SMALLEST_STEP:
            if self.contains(weights(t)):
                return t
            t /= 2
        return 0.0

    def centre(self, weights: Sequence[Tensor]) -> None:
        """Move the multipliers up b, by one damped Newton step."""
        before = self._inequality
        moved = before.centred(self._map(weights)) if len(before.multipliers) else None
        if moved is not None:
            self._inequality, self._last = Inequality(before.structure, moved, before.rho), None

    def _at(self, weights: Sequence[Tensor]) -> _Seen:
        """The factorisation at these weights: a step is checked with it, and the next gradient starts from it."""
        if self._last is None or not self._last.is_of(weights):
            blocks, pullback = self._map.with_pullback(weights)
            given = [weight.detach().clone() for weight in weights]
            self._last = _Seen(given, self._inequality.at(blocks), pullback)
        return self._last


@dataclass(frozen=True, eq=False)
class _Seen:
    given: list[Tensor]
    point: Point | None
    pullback: Pullback

    def is_of(self, weights: Sequence[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.given, weights, strict=True))


@dataclass(frozen=True, eq=False)
class Start:
    """A strictly feasible start.

    Attributes:
        weights: in the dtype and on the device of those given.
        log_multipliers: logarithms of lambda, float64, on the same device, shape (n_k,) a layer.
        moved: Frobenius distance from the weights given; 0 where they were inside.
    """

    weights: list[Tensor]
    log_multipliers: list[Tensor]
    moved: float


def start_inside(stored: StoredWeights, weights: Sequence[Tensor], network: Network, max_lipschitz: float) -> Start:
    """The weights, or the nearest found with a bound of 95 per cent of ``max_lipschitz``, and multipliers with room.

    Args:
        stored: where the weights are.
        weights: as training left them.
        network: its slopes and groups are used, not its matrices.
        max_lipschitz: the bound that training is to keep.

    Raises:
        ProjectionError: no weights meet the bound; batch norm with running statistics.
        ArgumentError, ShapeError, SolverError: as :func:`.project`.
    """
    if stored.is_chain:
        return _start_of_chain(weights, network, max_lipschitz)
    _refuse_running_statistics(stored.model)
    return _start_of_graph(stored, weights, network, max_lipschitz)


def _start_of_chain(weights: Sequence[Tensor], network: Network, max_lipschitz: float) -> Start:
    inside, moved = [weight.detach().clone() for weight in weights], 0.0
    solved = solve_multipliers(with_weights(network, inside), max_lipschitz)
    if solved.bound > START_INSIDE * max_lipschitz:
        found = spectral_ball.nearest(weights, network, START_INSIDE * max_lipschitz)
        inside, moved = found.weights, found.distance
        solved = solve_multipliers(with_weights(network, inside), max_lipschitz)
    values = solved.multipliers.values
    device = inside[0].device
    return Start(inside, [torch.as_tensor(value.copy(), device=device).log() for value in values], moved)


def _start_of_graph(stored: StoredWeights, weights: Sequence[Tensor], network: Network, max_lipschitz: float) -> Start:
    inside, moved = [weight.detach().clone() for weight in weights], 0.0
    constraint = path.Constraint.of(stored.map(network), network, inside)
    goal = START_INSIDE * max_lipschitz
    certificate = certify_network(constraint.network(inside), Settings(rtol=1e-4))
    known = certificate.proof if isinstance(certificate.proof, Multipliers) else None
    if certificate.upper_bound > goal:
        found = path.nearest(constraint, weights, network, goal, Store(stored))
        inside = [w.to(like) for w, like in zip(found.weights, weights, strict=True)]
        moved, known = found.distance, found.multipliers
    doubles = [weight.double() for weight in inside]
    place = None
    if known is not None and min(float(value.min()) for value in known.values) > 0:
        there = path.Place(doubles, constraint.logs(known.values), squared(max_lipschitz))
        place = constraint.centred(there, _NEWTON_STEPS)
    place = place or path.scaled_inside(constraint, doubles, max_lipschitz)
    return Start(inside, [lam.log() for lam in constraint.structure.unshared(place.logs.exp())], moved)


def _refuse_running_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            reason = "its running statistics move the bound between the steps of training, not yet held strictly."
            advice = "Use `LipschitzADMM`, which certifies what is written."
            raise ProjectionError(name, type(module).__name__, reason, advice)
