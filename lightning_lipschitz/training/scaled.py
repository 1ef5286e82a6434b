"""All weights scaled alike until a simple method proves the bound: what is left where there is no time to project."""

from __future__ import annotations

from torch import Tensor

from lightning_lipschitz.bounds import cost
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.weights import Store, StoredWeights

_TRIALS = 60
_ROOM = 0.999  # of the bound: the next trial is to be the last
_SOLVES_OF_CHAIN, _SOLVES_OF_GRAPH = 1.5, 12.0  # of LipSDP, that a projection takes the time of
_MARGIN = 3.0  # by which the cost of a solve is judged too high


def fits(weights: StoredWeights, network: Network, clock: Clock) -> bool:
    """Whether a projection is expected to end in time."""
    solves = _SOLVES_OF_CHAIN if weights.is_chain else _SOLVES_OF_GRAPH
    return clock.limit is None or clock.fits(solves * cost.seconds(network) / _MARGIN)


def scaled(weights: StoredWeights, max_lipschitz: float, clock: Clock) -> tuple[list[Tensor], Certificate]:
    """Float64 weights in proportion to those of the model, with a certified bound of at most ``max_lipschitz``.

    Raises:
        SolverError: what skip connections leave is above the bound, or looks so to the simple methods.
    """
    given, store, factor = [weight.detach().double() for weight in weights.read()], Store(weights), 1.0
    for _ in range(_TRIALS):
        intended = [factor * weight for weight in given]
        store(intended)
        found = certify_network(store.network(), Settings("closed-form"), clock.share(3))
        if found.upper_bound <= max_lipschitz:
            return intended, found
        factor *= (_ROOM * max_lipschitz / found.upper_bound) ** (1.0 / len(given))
    raise SolverError("no weights were found in time that meet the bound; allow more time, or a larger bound.")
