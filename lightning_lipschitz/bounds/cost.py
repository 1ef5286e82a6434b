"""What a method costs before it runs, so that ``auto`` can choose.

The native interior point holds some ten dense matrices of n rows, n = reduced inputs + units, and spends some ten
dense products of that size on each of 15 to 60 iterations (see ``benchmarks/notes/interior_point.md``).
"""

from __future__ import annotations

import math

from lightning_lipschitz.certificate.pieces import possible_cuts
from lightning_lipschitz.network import Network

PRODUCTS = 400  # dense n x n products a solve, with a margin
FLOPS = 3e10  # a second, of dense float64 products on two cores
MATRICES = 14
LARGEST_UNITS = 5_000
PIECE_UNITS = 600  # of a sub-network
DEEPEST = 24  # layers that are solved as one: of 40 random ones the whole stalls where three pieces give a sixteenth


def seconds(network: Network) -> float:
    """Expected time of the native solver on the whole network, on a small CPU machine."""
    return PRODUCTS * 2.0 * float(_rows(network)) ** 3 / FLOPS


def memory(network: Network) -> float:
    """Expected peak of the native solver, bytes."""
    return MATRICES * 8.0 * float(_rows(network)) ** 2


def cuts(network: Network, time_limit: float | None) -> tuple[int, ...]:
    """Where ``auto`` splits; empty where the whole is affordable or nothing can be cut."""
    depth = len(network.layers)
    fits = time_limit is None or seconds(network) <= time_limit
    most_units = math.inf if fits and network.num_units <= LARGEST_UNITS else PIECE_UNITS
    most_layers = math.ceil(depth / math.ceil(depth / DEEPEST)) if depth else 0
    chosen: list[int] = []
    for k in possible_cuts(network):
        start = chosen[-1] if chosen else 0
        # of the piece that would end at the next possible cut
        units, layers = sum(network.sizes[start + 1 : k + 2]), min(k + 1, depth) - start
        if units > most_units or layers > most_layers:
            chosen.append(k)
    return tuple(chosen)


def _rows(network: Network) -> int:
    read = sum(affine.size for affine in network.affines if any(term.source == 0 for term in affine.terms))
    return network.num_units + min(network.input_size, read)
