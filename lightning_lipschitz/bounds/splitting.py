"""LipSDP on sub-networks: certify the pieces, multiply (Fazlyab et al. 2019, section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from lightning_lipschitz.certificate import Certificate, Composition, Proposal, Split, Status
from lightning_lipschitz.certificate.pieces import possible_cuts, steepest
from lightning_lipschitz.graph.network import Network


def every(network: Network, size: int) -> tuple[int, ...]:
    """Cuts that leave ``size`` affine maps a piece, or more where the network cannot be cut there.

    Example:
        >>> every(Network.from_weights([[[1.0]]] * 5), 2)
        (2, 4)
    """
    cuts: list[int] = []
    for k in possible_cuts(network):
        if k - (cuts[-1] if cuts else 0) >= size:
            cuts.append(k)
    return tuple(cuts)


def combine(network: Network, cuts: Sequence[int], parts: Sequence[Certificate]) -> Proposal:
    """The proposal for the whole from the certificates of its pieces; the lower bound is the product of theirs."""
    slopes = math.prod((steepest(network.layers[k - 1]) for k in cuts), start=Fraction(1))
    method = next((part.method for part in parts if part.method.startswith("lipsdp")), parts[0].method)
    proofs = (part.proof for part in parts)
    lower = [part.upper_bound * (1.0 - part.relative_gap) for part in parts if part.relative_gap is not None]
    return Proposal(
        proof=Split(tuple(cuts), tuple(p for p in proofs if p is not None and not isinstance(p, Composition))),
        method=f"{method}, {len(parts)} sub-networks",
        solver=parts[0].solver,
        status=worst(part.status for part in parts),
        lower_bound=float(slopes) * math.prod(lower) if len(lower) == len(parts) else None,
        loss=math.prod(1.0 + part.verification_loss for part in parts) - 1.0,
    )


def worst(statuses: Iterable[Status]) -> Status:
    """The worst ending of several searches; they are defined in that order."""
    return max(statuses, key=list(Status).index)
