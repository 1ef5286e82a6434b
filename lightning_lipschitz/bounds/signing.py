"""From a proposal to something the kernel signs: as given, with rho raised, or moved towards a point known to be
feasible."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.certificate.proofs import Multipliers, Proof
from lightning_lipschitz.certificate.verify import prove, strengthen
from lightning_lipschitz.network import Network

ACCEPTED_RAISE = 1e-7  # relative raise of rho above which moving inwards is tried as well
MIXTURES = tuple(10.0**-k for k in range(10, 0, -1))


@dataclass(frozen=True, eq=False)
class Signed:
    """A proved bound.

    Attributes:
        upper_bound: the l2 Lipschitz bound.
        proof: what proves it.
        loss: relative increase over the proposal's own value.
        method, solver: for the certificate.
    """

    upper_bound: float
    proof: Proof
    loss: float
    method: str
    solver: str


def sign(
    network: Network,
    proposal: Multipliers,
    interior: Multipliers | None,
    method: str,
    solver: str,
    clock: Clock | None = None,
) -> Signed | None:
    """The least bound found that the kernel proves, or None.

    Feasible points form a convex set: ``(1 - t) proposal + t interior`` becomes feasible as t grows, at a cost of
        about t in rho.

    Args:
        network: the network as given.
        proposal: may be slightly infeasible.
        interior: a strictly feasible point, such as a closed-form one with rho increased.
        method, solver: names to report.
        clock: as long as one more attempt fits, as judged by the first; by default all are made.
    """
    clock = Clock(None) if clock is None else clock
    start = clock.seconds
    best = strengthen(network, proposal)
    attempt = 2.0 * (clock.seconds - start)  # and the proof at the end
    if best is None or best.rho > proposal.rho * (1.0 + ACCEPTED_RAISE):
        best = _lower(best, _moved_inwards(network, proposal, interior, clock, attempt))
    if best is None or (bound := prove(network, best)) is None:
        return None
    return Signed(bound, best, max(0.0, (best.rho / proposal.rho) ** 0.5 - 1.0), method, solver)


def _moved_inwards(
    network: Network, proposal: Multipliers, interior: Multipliers | None, clock: Clock, attempt: float
) -> Multipliers | None:
    if interior is None:
        return None
    for t in MIXTURES:
        if not clock.fits(attempt):
            return None
        mixed = mixture(proposal, interior, t)
        if (signed := strengthen(network, mixed)) is not None and signed.rho < mixed.rho * (
            1.0 + max(t, ACCEPTED_RAISE)
        ):
            return signed
    return None


def mixture(a: Multipliers, b: Multipliers, t: float) -> Multipliers:
    """``(1 - t) a + t b``."""
    values = tuple((1.0 - t) * left + t * right for left, right in zip(a.values, b.values, strict=True))
    return Multipliers((1.0 - t) * a.rho + t * b.rho, values)


def _lower(a: Multipliers | None, b: Multipliers | None) -> Multipliers | None:
    if a is None or b is None:
        return a if b is None else b
    return min(a, b, key=lambda point: point.rho)
