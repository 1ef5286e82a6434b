"""Which method to run, within which time; and the certificate that comes out."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from lightning_lipschitz.bounds import closed_form, cost, interior_point, norm_product
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.outcome import Outcome
from lightning_lipschitz.bounds.proposal import Proposal, Sharing
from lightning_lipschitz.bounds.settings import Method, Settings, Solver
from lightning_lipschitz.bounds.signing import Signed, sign
from lightning_lipschitz.bounds.splitting import combine, every
from lightning_lipschitz.bounds.workers import mapping
from lightning_lipschitz.certificate import Certificate, Multipliers, Status, prove
from lightning_lipschitz.certificate.pieces import pieces
from lightning_lipschitz.errors import SolverError, TimeLimitError
from lightning_lipschitz.network import Network

SEARCH_SECONDS = 60.0  # a default that a user can wait for
INTERIOR_RHO = 1.1  # the closed-form point with rho raised by this factor is well inside the feasible set


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
    found = _search(network, settings, clock)
    if not found.signed:
        raise SolverError(
            "no method gave a bound that could be verified; the bound may lie beyond the range of float64."
        )
    best = min(found.signed, key=lambda signed: signed.upper_bound)
    return Certificate(
        upper_bound=best.upper_bound,
        certified=True,
        status=found.status,
        method=best.method,
        solver=best.solver,
        relative_gap=found.gap(best.upper_bound),
        verification_loss=best.loss,
        network_digest=network.digest,  # a look at every number, which takes time
        seconds=clock.seconds,
        proof=best.proof,
        state=found.state,
    )


def _search(network: Network, settings: Settings, clock: Clock) -> Outcome:
    product = _norm_product(network, clock)
    if settings.method == "norm-product" or (product.signed and product.signed[0].upper_bound == 0.0):
        return product
    if not _affordable(network, clock):
        return replace(product, status=Status.TIME_LIMIT)
    points = closed_form.propose(network)
    closed = _closed_form(network, points)
    simple = Outcome((*closed, *product.signed))
    if settings.method == "closed-form" or not network.layers or not points:
        return simple
    cuts = _cuts(network, settings, clock)
    clock = searching(settings, clock)
    try:
        better = _split(network, cuts, settings, clock) if cuts else _lipsdp(network, points[0], settings, clock)
    except TimeLimitError:
        return replace(simple, status=Status.TIME_LIMIT)
    except SolverError:
        return replace(simple, status=Status.FALLBACK)
    return replace(better, signed=better.signed + simple.signed)


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


def _norm_product(network: Network, clock: Clock) -> Outcome:
    proof, complete = norm_product.propose_within(network, clock)
    status = Status.SOLVED if complete else Status.TIME_LIMIT
    bound = prove(network, proof)
    if bound is None or not math.isfinite(bound):
        return Outcome((), status)
    return Outcome((Signed(bound, proof, 0.0, "norm-product", "eigenvalues"),), status)


def _closed_form(network: Network, points: tuple[Multipliers, ...]) -> tuple[Signed, ...]:
    """The first point, from the lowest rho on, that can be signed."""
    signed = (sign(network, point, None, "closed-form", "closed-form") for point in points)
    first = next((found for found in signed if found), None)
    return () if first is None else (first,)


def _lipsdp(network: Network, start: Multipliers, settings: Settings, clock: Clock) -> Outcome:
    method = "lipsdp-layer" if settings.method == "lipsdp-layer" else "lipsdp-neuron"
    proof = 0.0 if clock.limit is None else cost.proof(network).seconds
    if not clock.fits(proof):
        raise TimeLimitError
    proposal = _optimise(
        network, "layer" if method == "lipsdp-layer" else "neuron", settings, clock.share(1, less=proof)
    )
    interior = replace(start, rho=start.rho * INTERIOR_RHO)
    signed = sign(network, proposal.multipliers, interior, method, proposal.solver, clock)
    return Outcome(
        (signed,) if signed else (), _status(proposal, signed, settings.rtol), proposal.lower_bound, proposal.state
    )


def _optimise(network: Network, sharing: Sharing, settings: Settings, clock: Clock) -> Proposal:
    if settings.solver == "clarabel" or settings.solver == "scs":
        if clock.limit is not None and not clock.fits(cost.conic(network, settings.solver)):
            raise TimeLimitError
        from lightning_lipschitz.bounds import conic  # cvxpy takes seconds to import

        return conic.solve(network, sharing=sharing, solver=settings.solver, rtol=settings.rtol, time_limit=clock.left)
    if clock.limit is not None and not (
        clock.fits(cost.first_step(network).seconds) and cost.memory(network) < cost.room()
    ):
        raise TimeLimitError
    return interior_point.propose(
        network,
        sharing=sharing,
        rtol=settings.rtol,
        time_limit=clock.left,
        device=settings.device,
        warm_start=settings.warm_start,
    )


def _status(proposal: Proposal, signed: Signed | None, rtol: float) -> Status:
    if proposal.timed_out:
        return Status.TIME_LIMIT
    if signed is None:
        return Status.FALLBACK
    return Status.SOLVED if proposal.converged and signed.loss <= max(rtol, 1e-7) else Status.ALMOST_SOLVED


def _split(network: Network, cuts: tuple[int, ...], settings: Settings, clock: Clock) -> Outcome:
    """Certify the pieces one by one or at once; each has its share of the time."""
    parts = pieces(network, cuts)
    if parts is None:
        raise SolverError(f"the network cannot be cut at {cuts}")
    whole = len(network.layers) + 1
    inner = replace(settings, split_size=whole, workers=1, time_limit=None, warm_start=None)
    if settings.workers == 1:
        certified = [certify_network(part, inner, clock.share(len(parts) - k)) for k, part in enumerate(parts)]
    else:
        rounds = math.ceil(len(parts) / settings.workers) if isinstance(settings.workers, int) else len(parts)
        inner = replace(inner, time_limit=clock.share(rounds).left)
        certified = mapping(settings.workers, clock.left)(partial(certify_network, settings=inner), parts)
    return combine(network, cuts, certified)


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


__all__ = ["Method", "Settings", "Solver", "certify_network"]
