"""The nearest weights of any graph with a certified bound, as the parameters can hold them, signed by the kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import narrowed, squared
from lightning_lipschitz.training.path.constraint import Constraint, Place
from lightning_lipschitz.training.path.descent import PathDescent
from lightning_lipschitz.training.path.start import scaled_inside
from lightning_lipschitz.training.result import Nearest, signed
from lightning_lipschitz.weights import Store

_SHARES = (1.0, 0.1, 0.01, 1e-3)  # gaps at the ends of the stages, as shares of the squared distance over two
_ITERATIONS = 40  # a stage
_AGAIN = (0.1, 0.01)  # where multipliers are known
_FACTORS = (0.9999, 0.999, 0.99, 0.97, 0.94, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # may bring weights inside
_MARGINS = (0.0, *(10.0**-k for k in range(9, 0, -1)), 0.3, 1.0)  # of the way back inside, for rounding
_LESS = 0.9  # of the weights, where the way back inside is not known
_RECENTRE = 1e-3  # from that share of the way on, other multipliers are looked for


def nearest(
    constraint: Constraint,
    weights: Sequence[Tensor],
    network: Network,
    max_lipschitz: float,
    store: Store,
    *,
    rtol: float = 3e-3,
    max_rounds: int = 30,
    time_limit: float | None = None,
    device: str = "auto",
) -> Nearest:
    r""":math:`\arg\min |\bar W - W|^2` such that some multipliers prove a bound of at most ``max_lipschitz``.

    A local minimum, found from the weights all scaled alike, along the path of :mod:`.path.descent`.

    Args:
        constraint: the inequality of the model.
        weights: outside of the certified set.
        network: its slopes and groups are used, not its matrices.
        max_lipschitz: the l2 bound that the result must meet.
        store: writes float64 weights as the parameters hold them.
        rtol: of the squared distance, where the path ends.
        max_rounds: at most so many stages of the path.
        time_limit: seconds after which no stage begins.
        device: where LipSDP computes; the path stays where the weights are.

    Raises:
        ProjectionError: no weights meet the bound, because of skip connections.
        SolverError: nothing could be signed.
    """
    clock = time.perf_counter()
    given = [weight.detach().double() for weight in weights]
    start, descent = scaled_inside(constraint, given, max_lipschitz, device), PathDescent(constraint, given)
    shares = [share for share in _SHARES if share >= rtol or share == 1.0] + [rtol]
    strengths = [descent.strength(start, share) for share in shares[:max_rounds]]
    deadline = math.inf if time_limit is None else clock + time_limit
    places = descent.run(start, strengths, _ITERATIONS, deadline)
    if places[-1].distance(given) > start.distance(given):  # never further away than where it began
        places = places[:1]
    return _rounded(descent, places, network, store, clock)


def nearby(
    constraint: Constraint, weights: Sequence[Tensor], network: Network, multipliers: Multipliers, store: Store
) -> Nearest | None:
    """The nearest weights found from known multipliers, those of weights that were certified before, for their bound.

    None where they prove it of no multiple of these weights, or nothing can be signed. Arguments as of :func:`nearest`.
    """
    clock = time.perf_counter()
    given = [weight.detach().double() for weight in weights]
    logs, rho = constraint.logs(multipliers.values), squared(math.sqrt(multipliers.rho))
    tried = (Place([factor * weight for weight in given], logs, rho) for factor in _FACTORS)
    start = next(filter(None, (constraint.centred(place, 2) for place in tried)), None)
    if start is None:
        return None
    descent = PathDescent(constraint, given)
    strengths = [descent.strength(start, share) for share in _AGAIN]
    try:
        return _rounded(descent, descent.run(start, strengths, _ITERATIONS), network, store, clock)
    except SolverError:
        return None


def _rounded(descent: PathDescent, places: Sequence[Place], network: Network, store: Store, clock: float) -> Nearest:
    """The last place as the parameters hold it, moved back towards the first by as little as the kernel needs."""
    anchor = places[1] if len(places) > 1 else replace(places[0], weights=[_LESS * w for w in places[0].weights])
    for margin in _MARGINS:
        place = places[-1].towards(anchor, margin)
        held = store(place.weights)
        stored = replace(place, weights=[w.to(like) for w, like in zip(held, descent.target, strict=True)])
        there, centred = store.network(), descent.constraint.centred(stored, 3) if margin >= _RECENTRE else None
        multipliers = descent.constraint.multipliers(centred or stored)
        certificate = signed(there, narrowed(network, multipliers))
        if certificate is not None:
            certificate = replace(certificate, seconds=time.perf_counter() - clock)
            distance = stored.distance(descent.target)
            return Nearest(held, place.weights, certificate, multipliers, distance, rounds=len(places) - 1)
    raise SolverError("the projected weights could not be certified; the parameters may hold too few digits for it.")
