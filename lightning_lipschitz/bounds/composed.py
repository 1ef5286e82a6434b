"""Large models: bound every node, write out and optimise the parts that are small enough, compose.

What is proposed here (which parts, which numbers) is proved by
:func:`lightning_lipschitz.certificate.prove_composition`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

from lightning_lipschitz.bounds import channels, cost
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.parts import Part, cut
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Method, Settings
from lightning_lipschitz.certificate import Certificate, Composition, Status, prove_composition
from lightning_lipschitz.certificate.composition import claimed, propagate
from lightning_lipschitz.certificate.explicit import explicit
from lightning_lipschitz.certificate.operators import cheap_node_norm, node_norm, norm_work
from lightning_lipschitz.certificate.proofs import Channels, Proof
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.errors import ArgumentError, SolverError
from lightning_lipschitz.structured import Graph
from lightning_lipschitz.structured.parts import measure, members

Block: TypeAlias = tuple[int, int, Proof | Channels]
METHODS = ("auto", "composed", "norm-product")
_WORST_FIRST = (Status.FALLBACK, Status.TIME_LIMIT, Status.ALMOST_SOLVED, Status.SOLVED)


def certify_graph(graph: Graph, settings: Settings, clock: Clock | None = None) -> Certificate:
    """The bound of a structured graph; with "norm-product", without writing out any part of it.

    Raises:
        ArgumentError: a method that works on explicit matrices.
        SolverError: nothing could be proved (a bound beyond the range of float64).
    """
    if settings.method not in METHODS:
        raise ArgumentError("method", settings.method, f"one of {', '.join(METHODS)} for a model of this size")
    clock = Clock(settings.time_limit) if clock is None else clock
    norms, promised, complete = _norms(graph, clock)
    parts = () if settings.method == "norm-product" else cut(graph)
    blocks, owed, all_written = _blocks(graph, norms, parts, settings, clock, promised)
    complete = complete and all_written
    proofs: list[Block] = [(part.start, part.end, c.proof) for part, c in blocks]  # type: ignore[misc]
    if settings.method != "norm-product":
        found, all_tried = _convolutional(graph, norms, parts, clock, promised + owed)
        proofs += found
        complete = complete and all_tried
    proof, bound = _proved(graph, norms, proofs)
    if bound is None or not math.isfinite(bound):
        raise SolverError(
            "no method gave a bound that could be verified; the bound may lie beyond the range of float64."
        )
    return Certificate(
        upper_bound=bound,
        certified=True,
        status=min(
            [Status.SOLVED if complete else Status.TIME_LIMIT, *(c.status for _, c in blocks)], key=_WORST_FIRST.index
        ),
        method="norm-product" if settings.method == "norm-product" else "composed",
        solver=next((c.solver for _, c in blocks if c.relative_gap is not None), "eigenvalues"),
        relative_gap=None,
        verification_loss=0.0,
        network_digest=graph.digest,  # a look at every number, which takes time
        seconds=clock.seconds,
        proof=proof,
    )


def _proved(graph: Graph, norms: dict[int, float], blocks: list[Block]) -> tuple[Composition, float | None]:
    """What the kernel accepts: all of it, or the norms alone."""
    for used in (blocks, list[Block]()):
        inside = {number for start, end, _ in used for number in (members(graph, start, end) or ())[1:]}
        claims = [math.inf if number in inside else norm for number, norm in norms.items()]
        proof = Composition(claims, tuple(used))  # type: ignore[arg-type]
        bound = prove_composition(graph, proof, SIGNING_MARGIN)
        if bound is not None and math.isfinite(bound):
            return proof, bound
    return proof, None


def _norms(graph: Graph, clock: Clock) -> tuple[dict[int, float], float, bool]:
    """Norms of all nodes, the cheapest first as long as there is time for them and for proving them at the end.

    Returns:
        The norms, of the other nodes from one look at their entries; seconds that the proofs will take; whether there
        was time for all.
    """
    numbers, promised, complete = claimed(graph), 0.0, True
    if clock.limit is None:
        return {number: node_norm(graph.nodes[number], SIGNING_MARGIN) for number in numbers}, 0.0, True
    start = clock.seconds
    norms = {number: cheap_node_norm(graph.nodes[number]) for number in numbers}
    promised = 2.0 * (clock.seconds - start)  # the proof and the digest look at every entry again
    needed = {number: norm_work(graph.nodes[number]) / cost.rates().factor for number in numbers}
    for number in sorted(numbers, key=lambda number: needed[number]):
        if not clock.fits(2.0 * needed[number] + promised):
            complete = False
            continue
        start = clock.seconds
        norms[number] = min(norms[number], node_norm(graph.nodes[number], SIGNING_MARGIN))
        promised += clock.seconds - start
    return norms, promised, complete


def _convolutional(
    graph: Graph, norms: dict[int, float], written: tuple[Part, ...], clock: Clock, promised: float
) -> tuple[list[Block], bool]:
    """The same for parts that are bounded one frequency at a time, and whether there was time for all."""
    bounds, found, complete = propagate(graph, norms, {}), list[Block](), True
    for part in channels.cut(graph, written):
        needed = 0.0 if clock.limit is None else channels.seconds(graph, part.start, part.end)
        if not clock.fits(channels.SEARCH * needed + needed + promised):
            complete = False
            continue
        proposal = channels.propose(graph, part.start, part.end)
        if proposal is not None and math.sqrt(proposal.rho) * bounds[part.start] < bounds[part.end]:
            found.append((part.start, part.end, proposal))
            promised += needed
    return found, complete


def _blocks(
    graph: Graph, norms: dict[int, float], parts: tuple[Part, ...], settings: Settings, clock: Clock, promised: float
) -> tuple[list[tuple[Part, Certificate]], float, bool]:
    """The parts whose own bound is below that of their nodes, with its certificate; seconds to prove them again; and
    whether there was time for all."""
    bounds, found, owed, complete = propagate(graph, norms, {}), [], 0.0, True
    for done, part in enumerate(parts):
        if not clock.fits(_writing(graph, part, clock) + promised + owed):
            complete = False
            continue
        network = explicit(graph, part.start, part.end)
        if network is None:
            continue
        again = 0.0 if clock.limit is None else cost.proof(network).seconds
        best: Method = "auto" if network.layers else "norm-product"
        inner = replace(settings, method=best, time_limit=None, warm_start=None, workers=1)
        try:
            certificate = certify_network(network, inner, clock.share(len(parts) - done, less=promised + owed + again))
        except SolverError:
            continue
        before, after = bounds[part.start], bounds[part.end]
        through = Fraction(certificate.upper_bound) * Fraction(before) if math.isfinite(before) else None
        if through is not None and (not math.isfinite(after) or through < Fraction(after)):
            found.append((part, certificate))
            owed += again
    return found, owed, complete


def _writing(graph: Graph, part: Part, clock: Clock) -> float:
    size = None if clock.limit is None else measure(graph, part.start, part.end)
    return 0.0 if size is None else cost.writing(size.entries).seconds
