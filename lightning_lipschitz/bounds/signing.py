"""From multipliers that may be slightly infeasible to ones that the kernel signs: as given, with rho raised, or moved
towards a point known to be feasible."""

from __future__ import annotations

from dataclasses import replace

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.certificate import Certificate, Multipliers, Proposal, sign, strengthen
from lightning_lipschitz.graph.network import Network

ACCEPTED_RAISE = 1e-7  # relative raise of rho above which moving inwards is tried as well
MIXTURES = tuple(10.0**-k for k in range(10, 0, -1))


def sign_nearby(
    network: Network, proposal: Proposal, interior: Multipliers | None = None, clock: Clock | None = None
) -> Certificate | None:
    """The certificate of the least bound found near a proposal of multipliers that the kernel proves, or None.

    Feasible points form a convex set: ``(1 - t) proposal + t interior`` becomes feasible as t grows, at a cost of
    about t in rho.

    Args:
        network: the network as given.
        proposal: multipliers that may be slightly infeasible.
        interior: a strictly feasible point, such as a closed-form one with rho increased.
        clock: as long as one more attempt fits, as judged by the first; by default all are made.
    """
    clock, given = Clock(None) if clock is None else clock, proposal.multipliers
    start = clock.seconds
    best = strengthen(network, given)
    attempt = 2.0 * (clock.seconds - start)  # and the proof at the end
    if interior is not None and (best is None or best.rho > given.rho * (1.0 + ACCEPTED_RAISE)):
        moved = _moved_inwards(network, given, interior, clock, attempt)
        best = min((point for point in (best, moved) if point is not None), key=lambda point: point.rho, default=None)
    if best is None:
        return None
    return sign(network, replace(proposal, proof=best, loss=max(0.0, (best.rho / given.rho) ** 0.5 - 1.0)))


def _moved_inwards(
    network: Network, given: Multipliers, interior: Multipliers, clock: Clock, attempt: float
) -> Multipliers | None:
    for t in MIXTURES:
        if not clock.fits(attempt):
            return None
        mixed = mixture(given, interior, t)
        found = strengthen(network, mixed)
        if found is not None and found.rho < mixed.rho * (1.0 + max(t, ACCEPTED_RAISE)):
            return found
    return None


def mixture(a: Multipliers, b: Multipliers, t: float) -> Multipliers:
    """``(1 - t) a + t b``."""
    values = tuple((1.0 - t) * left + t * right for left, right in zip(a.values, b.values, strict=True))
    return Multipliers((1.0 - t) * a.rho + t * b.rho, values)
