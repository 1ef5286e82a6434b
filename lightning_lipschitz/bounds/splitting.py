"""LipSDP on sub-networks: certify the pieces, multiply (Fazlyab et al. 2019, section 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from lightning_lipschitz.bounds.outcome import Outcome
from lightning_lipschitz.bounds.signing import Signed
from lightning_lipschitz.certificate import Certificate, Composition, Split, Status
from lightning_lipschitz.certificate.floating_point import round_up
from lightning_lipschitz.certificate.pieces import possible_cuts, steepest
from lightning_lipschitz.network import Network

_WORST_FIRST = (Status.FALLBACK, Status.TIME_LIMIT, Status.ALMOST_SOLVED, Status.SOLVED)


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


def combine(network: Network, cuts: Sequence[int], parts: Sequence[Certificate]) -> Outcome:
    """The certificate of the whole from those of its pieces; the gap is that of the product."""
    total = Fraction(1)
    for k in cuts:
        total *= steepest(network.layers[k - 1])
    slopes = float(total)
    for part in parts:
        total *= Fraction(part.upper_bound)
    proofs = (part.proof for part in parts)
    proof = Split(tuple(cuts), tuple(p for p in proofs if p is not None and not isinstance(p, Composition)))
    loss = math.prod(1.0 + part.verification_loss for part in parts) - 1.0
    method = next((part.method for part in parts if part.method.startswith("lipsdp")), parts[0].method)
    lower = [part.upper_bound * (1.0 - part.relative_gap) for part in parts if part.relative_gap is not None]
    return Outcome(
        (Signed(round_up(total), proof, loss, f"{method}, {len(parts)} sub-networks", parts[0].solver),),
        min((part.status for part in parts), key=_WORST_FIRST.index),
        slopes * math.prod(lower) if len(lower) == len(parts) else None,
    )
