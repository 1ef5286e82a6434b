"""Large models: bound every node, write out and optimise the parts that are small enough, compose.

What is proposed here (which parts, which numbers) is proved by
:func:`lightning_lipschitz.certificate.prove_composition`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

from lightning_lipschitz.bounds import channels
from lightning_lipschitz.bounds.outcome import Clock
from lightning_lipschitz.bounds.parts import Part, cut
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Method, Settings
from lightning_lipschitz.certificate import Certificate, Composition, Status, prove_composition
from lightning_lipschitz.certificate.composition import claimed, propagate
from lightning_lipschitz.certificate.explicit import explicit
from lightning_lipschitz.certificate.operators import node_norm
from lightning_lipschitz.certificate.proofs import Channels, Proof
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.errors import ArgumentError, SolverError
from lightning_lipschitz.structured import Graph
from lightning_lipschitz.structured.parts import members

Block: TypeAlias = tuple[int, int, Proof | Channels]
METHODS = ("auto", "composed", "norm-product")
_WORST_FIRST = (Status.FALLBACK, Status.TIME_LIMIT, Status.ALMOST_SOLVED, Status.SOLVED)


def certify_graph(graph: Graph, settings: Settings) -> Certificate:
    """The bound of a structured graph; with "norm-product", without writing out any part of it.

    Raises:
        ArgumentError: a method that works on explicit matrices.
        SolverError: nothing could be proved (a bound beyond the range of float64).
    """
    if settings.method not in METHODS:
        raise ArgumentError("method", settings.method, f"one of {', '.join(METHODS)} for a model of this size")
    clock = Clock(settings.time_limit)
    norms = {number: node_norm(graph.nodes[number], SIGNING_MARGIN) for number in claimed(graph)}
    parts = () if settings.method == "norm-product" else cut(graph)
    blocks = _blocks(graph, norms, parts, settings, clock)
    proofs: list[Block] = [(part.start, part.end, c.proof) for part, c in blocks]  # type: ignore[misc]
    if settings.method != "norm-product":
        proofs += _convolutional(graph, norms, parts, clock)
    proof, bound = _proved(graph, norms, proofs)
    if bound is None or not math.isfinite(bound):
        raise SolverError(
            "no method gave a bound that could be verified; the bound may lie beyond the range of float64."
        )
    return Certificate(
        upper_bound=bound,
        certified=True,
        status=min((c.status for _, c in blocks), key=_WORST_FIRST.index, default=Status.SOLVED),
        method="norm-product" if settings.method == "norm-product" else "composed",
        solver=next((c.solver for _, c in blocks if c.relative_gap is not None), "eigenvalues"),
        relative_gap=None,
        verification_loss=0.0,
        seconds=clock.seconds,
        network_digest=graph.digest,
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


def _convolutional(graph: Graph, norms: dict[int, float], written: tuple[Part, ...], clock: Clock) -> list[Block]:
    """The same for parts that are bounded one frequency at a time."""
    bounds, found = propagate(graph, norms, {}), list[Block]()
    for part in channels.cut(graph, written):
        if clock.left == 0.0:
            break
        proposal = channels.propose(graph, part.start, part.end)
        if proposal is not None and math.sqrt(proposal.rho) * bounds[part.start] < bounds[part.end]:
            found.append((part.start, part.end, proposal))
    return found


def _blocks(
    graph: Graph, norms: dict[int, float], parts: tuple[Part, ...], settings: Settings, clock: Clock
) -> list[tuple[Part, Certificate]]:
    """The parts whose own bound is below that of their nodes, with its certificate."""
    bounds, found = propagate(graph, norms, {}), []
    for left, part in enumerate(parts):
        limit = None if clock.left is None else max(clock.left / (len(parts) - left), 1e-3)
        network = explicit(graph, part.start, part.end)
        if network is None:
            continue
        best: Method = "auto" if network.layers else "norm-product"
        inner = replace(settings, method=best, time_limit=limit, warm_start=None, workers=1)
        try:
            certificate = certify_network(network, inner)
        except SolverError:
            continue
        before, after = bounds[part.start], bounds[part.end]
        through = Fraction(certificate.upper_bound) * Fraction(before) if math.isfinite(before) else None
        if through is not None and (not math.isfinite(after) or through < Fraction(after)):
            found.append((part, certificate))
    return found
