"""Which method to run, within which time; and the certificate that comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from lightning_lipschitz.bounds import closed_form, cost, interior_point, norm_product, swept
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.lipsdp import Sharing
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.bounds.signing import sign_nearby
from lightning_lipschitz.bounds.splitting import combine, every
from lightning_lipschitz.bounds.workers import mapping
from lightning_lipschitz.certificate import Certificate, Multipliers, Proposal, Status, sign
from lightning_lipschitz.certificate.pieces import pieces
from lightning_lipschitz.errors import SolverError, TimeLimitError
from lightning_lipschitz.graph.network import Network

SEARCH_SECONDS = 60.0  # a default that a user can wait for
FEWEST_STEPS = 60  # of swept multipliers, that are worth it
INTERIOR_RHO = 1.1  # the closed-form point with rho raised by this factor is well inside the feasible set

NOTHING_PROVED = "no method gave a bound that could be verified; the bound may lie beyond the range of float64."

Found = tuple[list[Certificate], Proposal]  # what the kernel signed, and the proposal that says how the search ended


def certify_network(network: Network, settings: Settings, clock: Clock | None = None) -> Certificate:
    """The lowest bound that the kernel signs, of the methods that fit in the time that is left.

    "norm-product" is that method's own number, "closed-form" never more, and the LipSDP methods never more than those
    two. "lipsdp-network" returns a number that is no bound.

    Args:
        network: as given.
        settings: what to do.
        clock: that runs already; by default one of ``settings.time_limit`` that starts here.

    Raises:
        SolverError: nothing could be signed (a bound beyond the range of float64).
    """
    clock = Clock(settings.time_limit) if clock is None else clock
    if settings.method == "lipsdp-network":
        return _not_a_bound(network, settings, clock)
    signed, asked = _search(network, settings, clock)
    if not signed:
        raise SolverError(NOTHING_PROVED)
    best = min(signed, key=lambda each: each.upper_bound)
    gap = asked.gap(best.upper_bound)
    return replace(best, status=asked.status, relative_gap=gap, seconds=clock.seconds, state=asked.state)


def _search(network: Network, settings: Settings, clock: Clock) -> Found:
    product = norm_product.propose(network, clock)
    signed = _signed(sign(network, product))
    if settings.method == "norm-product" or (signed and signed[0].upper_bound == 0.0):
        return signed, product
    if not _affordable(network, clock):
        return signed, replace(product, status=Status.TIME_LIMIT)
    sweeps = closed_form.propose(network)
    signed = _closed_form(network, sweeps) + signed
    simple = replace(product, status=Status.SOLVED)
    if settings.method == "closed-form" or not network.layers or not sweeps:
        return signed, simple
    cuts = _cuts(network, settings, clock)
    clock = searching(settings, clock)
    try:
        start = sweeps[0].multipliers
        whole = not cuts or _prefers_sweep(network, settings, clock)
        better, asked = _lipsdp(network, start, settings, clock) if whole else _split(network, cuts, settings, clock)
    except TimeLimitError:
        return signed, replace(simple, status=Status.TIME_LIMIT)
    except SolverError:
        return signed, replace(simple, status=Status.FALLBACK)
    return better + signed, asked


def searching(settings: Settings, clock: Clock) -> Clock:
    """The clock of the optimisation: "auto" without a limit ends it, with what it has, after a minute."""
    return Clock(SEARCH_SECONDS) if settings.method == "auto" and clock.limit is None else clock


def _affordable(network: Network, clock: Clock) -> bool:
    """Whether the closed forms and their proofs end in time."""
    if clock.limit is None:
        return True
    sweeps = cost.sweep(network).times(2.0)
    return clock.fits((sweeps + cost.proof(network)).seconds) and cost.memory(network, matrices=6) < cost.room()


def _cuts(network: Network, settings: Settings, clock: Clock) -> tuple[int, ...]:
    """Where to split: as asked for, or where the whole would take too long or too much memory."""
    if settings.split_size is not None:
        return every(network, settings.split_size)
    if settings.method == "auto" and settings.solver in ("auto", "native"):
        return cost.cuts(network, clock.left)
    return ()


def _signed(certificate: Certificate | None) -> list[Certificate]:
    return [] if certificate is None else [certificate]


def _closed_form(network: Network, proposals: Sequence[Proposal]) -> list[Certificate]:
    """The first one, from the lowest rho on, that can be signed."""
    signed = (sign_nearby(network, proposal) for proposal in proposals)
    return _signed(next((found for found in signed if found is not None), None))


def _lipsdp(network: Network, start: Multipliers, settings: Settings, clock: Clock) -> Found:
    proof = clock.needs(cost.proof(network))
    if not clock.fits(proof):
        raise TimeLimitError
    proposal = _optimise(network, settings, clock.share(1, less=proof))
    signed = sign_nearby(network, proposal, replace(start, rho=start.rho * INTERIOR_RHO), clock)
    return _signed(signed), replace(proposal, status=_status(proposal, signed, settings.rtol))


def _prefers_sweep(network: Network, settings: Settings, clock: Clock) -> bool:
    """Whether "auto" has the time for swept multipliers of a whole that is too large for an interior point."""
    if settings.method != "auto" or settings.split_size is not None or settings.solver not in ("auto", "native"):
        return False
    steps = cost.swept_step(network).times(FEWEST_STEPS)
    return clock.fits(clock.needs(steps)) and cost.memory(network, matrices=6) < cost.room()


def _optimise(network: Network, settings: Settings, clock: Clock) -> Proposal:
    if settings.method == "sweep":
        return swept.propose(network, clock)
    sharing: Sharing = "layer" if settings.method == "lipsdp-layer" else "neuron"
    if settings.solver == "clarabel" or settings.solver == "scs":
        if clock.limit is not None and not clock.fits(cost.conic(network, settings.solver)):
            raise TimeLimitError
        from lightning_lipschitz.bounds import conic  # cvxpy takes seconds to import

        return conic.propose(
            network, sharing=sharing, solver=settings.solver, rtol=settings.rtol, time_limit=clock.left
        )
    if clock.limit is not None and not (
        clock.fits(cost.first_step(network).seconds) and cost.memory(network) < cost.room()
    ):
        if _prefers_sweep(network, settings, clock):
            return swept.propose(network, clock)
        raise TimeLimitError
    return interior_point.propose(
        network,
        sharing=sharing,
        rtol=settings.rtol,
        time_limit=clock.left,
        device=settings.device,
        warm_start=settings.warm_start,
    )


def _status(proposal: Proposal, signed: Certificate | None, rtol: float) -> Status:
    """How the search ended, after the proof: what that cost is part of the tolerance."""
    if proposal.status is Status.TIME_LIMIT:
        return proposal.status
    if signed is None:
        return Status.FALLBACK
    return proposal.status if signed.verification_loss <= max(rtol, 1e-7) else Status.ALMOST_SOLVED


def _split(network: Network, cuts: tuple[int, ...], settings: Settings, clock: Clock) -> Found:
    """Certify the pieces one by one or at once; each has its share of the time, but for proving all of them again."""
    parts = pieces(network, cuts)
    if parts is None:
        raise SolverError(f"the network cannot be cut at {cuts}")
    again = sum(clock.needs(cost.proof(part)) for part in parts)
    whole = len(network.layers) + 1
    inner = replace(settings, split_size=whole, workers=1, time_limit=None, warm_start=None)
    if settings.workers == 1:
        shares = (clock.share(len(parts) - k, less=again) for k in range(len(parts)))
        certified = [certify_network(part, inner, share) for part, share in zip(parts, shares, strict=True)]
    else:
        rounds = math.ceil(len(parts) / settings.workers) if isinstance(settings.workers, int) else len(parts)
        piece = partial(_certify_piece, settings=inner, limit=clock.share(rounds, less=again).left)
        certified = mapping(settings.workers, clock.left)(piece, parts)
    proposal = combine(network, cuts, certified)
    return _signed(sign(network, proposal)), proposal


def _certify_piece(network: Network, settings: Settings, limit: float | None) -> Certificate:
    """In a process whose clock starts now."""
    return certify_network(network, settings, Clock(limit))


def _not_a_bound(network: Network, settings: Settings, clock: Clock) -> Certificate:
    from lightning_lipschitz.bounds import coupled  # cvxpy takes seconds to import

    value = coupled.solve(network, settings.couplings, rtol=settings.rtol, time_limit=clock.left)
    return Certificate(
        upper_bound=value,
        certified=False,
        status=Status.NOT_A_BOUND,
        method="lipsdp-network",
        solver="clarabel",
        relative_gap=None,
        verification_loss=0.0,
        seconds=clock.seconds,
        network_digest=network.digest,
        proof=None,
    )
