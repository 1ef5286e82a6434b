"""A certificate from multipliers that training has at hand, without a search for better ones."""

from __future__ import annotations

import time
from dataclasses import replace

from lightning_lipschitz.certificate import Certificate, Multipliers, prove
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.network import Network
from lightning_lipschitz.projection.multipliers import narrowed
from lightning_lipschitz.projection.nearest import signed

_HALVINGS = 7  # of the squared bound


def certificate_by(network: Network, multipliers: Multipliers) -> Certificate | None:
    """The least bound, to half a per cent, that these multipliers prove of the weights as they are, if any.

    Args:
        network: with these weights.
        multipliers: of the network with slopes widened to contain zero.
    """
    start = time.perf_counter()
    proof = narrowed(network, multipliers)
    bound = prove(network, proof, SIGNING_MARGIN)
    if bound is None:
        return None
    low, high = 0.0, proof.rho
    for _ in range(_HALVINGS):
        middle = replace(proof, rho=0.5 * (low + high))
        lower = prove(network, middle, SIGNING_MARGIN)
        if lower is None:
            low = middle.rho
        else:
            high, bound, proof = middle.rho, lower, middle
    return signed(network, proof, bound, time.perf_counter() - start)
