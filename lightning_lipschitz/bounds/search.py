"""Which method to run, within which time; and the certificate that comes out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_lipschitz.bounds import closed_form, conic, interior_point, norm_product
from lightning_lipschitz.bounds.proposal import Proposal, Sharing
from lightning_lipschitz.bounds.signing import Signed, sign
from lightning_lipschitz.certificate import Certificate, Multipliers, Status, prove
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.network import Network

Method = Literal["auto", "norm-product", "closed-form", "lipsdp-layer", "lipsdp-neuron", "lipsdp-network"]
Solver = Literal["auto", "native", "clarabel", "scs"]

INTERIOR_RHO = 1.1  # the closed-form point with rho raised by this factor is well inside the feasible set


@dataclass(frozen=True)
class Settings:
    """How to search; the arguments of :func:`lightning_lipschitz.certify` of the same names."""

    method: Method = "auto"
    solver: Solver = "auto"
    rtol: float = 1e-6
    time_limit: float | None = None
    device: str = "auto"
    warm_start: Any = None


@dataclass(frozen=True)
class Search:
    """What was found: the signed bounds, and how the optimising method ended (None where none was asked for)."""

    signed: tuple[Signed, ...]
    proposal: Proposal | None = None
    failure: SolverError | None = None


class _Clock:
    """Seconds since the start, and seconds left."""

    def __init__(self, limit: float | None) -> None:
        self.limit, self.start = limit, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def left(self) -> float | None:
        return None if self.limit is None else max(self.limit - self.seconds, 0.0)


def certify_network(network: Network, settings: Settings) -> Certificate:
    """The lowest bound that the kernel signs.

    An explicit "norm-product" or "closed-form" is that method's own number. The LipSDP methods never return more than
    those two.

    Raises:
        SolverError: nothing could be signed (a bound beyond the range of float64).
    """
    clock = _Clock(settings.time_limit)
    found = _search(network, settings, clock)
    if not found.signed:
        raise SolverError(
            "no method gave a bound that could be verified; the bound may lie beyond the range of float64."
        )
    best = min(found.signed, key=lambda signed: signed.upper_bound)
    lower = found.proposal.lower_bound if found.proposal else None
    return Certificate(
        upper_bound=best.upper_bound,
        certified=True,
        status=_status(found, best, settings.rtol),
        method=best.method,
        solver=best.solver,
        relative_gap=None if lower is None else _gap(best.upper_bound, lower),
        verification_loss=best.loss,
        seconds=clock.seconds,
        network_digest=network.digest,
        proof=best.proof,
        state=found.proposal.state if found.proposal else None,
    )


def _search(network: Network, settings: Settings, clock: _Clock) -> Search:
    product = _norm_product(network)
    if settings.method == "norm-product" or (product and product.upper_bound == 0.0):
        return Search((product,) if product else ())
    points = closed_form.propose(network)
    closed = _closed_form(network, points)
    if settings.method == "closed-form":
        return Search((closed,) if closed else ())
    simple = tuple(signed for signed in (closed, product) if signed)
    if not network.layers or not points:
        return Search(simple)
    method = "lipsdp-neuron" if settings.method == "auto" else settings.method
    try:
        proposal = _optimise(network, method, settings, clock)
    except SolverError as failure:
        return Search(simple, failure=failure)
    interior = replace(points[0], rho=points[0].rho * INTERIOR_RHO)
    best = sign(network, proposal.multipliers, interior, method, proposal.solver)
    return Search((best, *simple) if best else simple, proposal)


def _norm_product(network: Network) -> Signed | None:
    proof = norm_product.propose(network)
    bound = prove(network, proof)
    return None if bound is None or bound == float("inf") else Signed(bound, proof, 0.0, "norm-product", "eigenvalues")


def _closed_form(network: Network, points: tuple[Multipliers, ...]) -> Signed | None:
    return next((s for point in points if (s := sign(network, point, None, "closed-form", "closed-form"))), None)


def _optimise(network: Network, method: str, settings: Settings, clock: _Clock) -> Proposal:
    sharing: Sharing = "layer" if method == "lipsdp-layer" else "neuron"
    if settings.solver == "clarabel" or settings.solver == "scs":
        return conic.solve(network, sharing=sharing, solver=settings.solver, rtol=settings.rtol, time_limit=clock.left)
    return interior_point.propose(
        network,
        sharing=sharing,
        rtol=settings.rtol,
        time_limit=clock.left,
        device=settings.device,
        warm_start=settings.warm_start,
    )


def _status(found: Search, best: Signed, rtol: float) -> Status:
    if found.failure is not None:
        return Status.FALLBACK
    if found.proposal is None:
        return Status.SOLVED
    if found.proposal.timed_out:
        return Status.TIME_LIMIT
    if best.loss > max(rtol, 1e-7) or not found.proposal.converged:
        return Status.ALMOST_SOLVED
    return Status.SOLVED


def _gap(upper: float, lower: float) -> float:
    return max(0.0, 1.0 - lower / upper)
