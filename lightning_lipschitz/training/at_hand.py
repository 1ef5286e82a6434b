"""A certificate from multipliers that training has at hand, without a search for better ones."""

from __future__ import annotations

import time
from dataclasses import replace

from lightning_lipschitz.certificate import Certificate, Multipliers
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import narrowed
from lightning_lipschitz.training.result import signed

_HALVINGS = 7  # of the squared bound


def certificate_by(network: Network, multipliers: Multipliers) -> Certificate | None:
    """The least bound, to half a per cent, that these multipliers prove of the weights as they are, if any.

    Args:
        network: with these weights.
        multipliers: of the network with slopes widened to contain zero.
    """
    start = time.perf_counter()
    proof = narrowed(network, multipliers)
    best = signed(network, proof)
    if best is None:
        return None
    low, high = 0.0, proof.rho
    for _ in range(_HALVINGS):
        middle = replace(proof, rho=0.5 * (low + high))
        lower = signed(network, middle)
        if lower is None:
            low = middle.rho
        else:
            high, best = middle.rho, lower
    return replace(best, seconds=time.perf_counter() - start)
