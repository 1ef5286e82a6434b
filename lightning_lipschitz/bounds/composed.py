"""Large models: bound every node, write out and optimise the parts that are small enough, compose.

What is proposed here (which parts, which numbers) is proved by
:func:`lightning_lipschitz.certificate.prove_composition`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

from lightning_lipschitz.bounds import channels, cost
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.parts import Span, cut
from lightning_lipschitz.bounds.search import NOTHING_PROVED, certify_network, searching
from lightning_lipschitz.bounds.settings import Method, Settings
from lightning_lipschitz.bounds.splitting import worst
from lightning_lipschitz.certificate import SIGNING_MARGIN, Certificate, Composition, Proof, Proposal, Status, sign
from lightning_lipschitz.certificate.composition import claimed, propagate
from lightning_lipschitz.certificate.explicit import explicit
from lightning_lipschitz.certificate.operators import cheap_node_norm, node_norm, norm_work
from lightning_lipschitz.certificate.proofs import Channels
from lightning_lipschitz.errors import ArgumentError, SolverError
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.parts import measure, members

Block: TypeAlias = tuple[int, int, Proof | Channels]
NodeNorms: TypeAlias = dict[int, float]  # of the nodes that :func:`claimed` lists
METHODS = ("auto", "composed", "norm-product")


def certify_graph(graph: Graph, settings: Settings, clock: Clock | None = None) -> Certificate:
    """The bound of a graph; with "norm-product", without writing out any part of it.

    Raises:
        ArgumentError: a method that works on explicit matrices.
        SolverError: nothing could be proved (a bound beyond the range of float64).
    """
    if settings.method not in METHODS:
        raise ArgumentError("method", settings.method, f"one of {', '.join(METHODS)} for a model of this size")
    clock = Clock(settings.time_limit) if clock is None else clock
    for proposal in propose(graph, settings, searching(settings, clock)):
        if (signed := sign(graph, proposal, SIGNING_MARGIN)) is not None:
            return replace(signed, seconds=clock.seconds)
    raise SolverError(NOTHING_PROVED)


def propose(graph: Graph, settings: Settings, clock: Clock) -> tuple[Proposal, ...]:
    """All that was found, then the norms alone, in case that the kernel does not accept some part."""
    plain, reserve = settings.method == "norm-product", _Reserve(clock)
    norms = _norms(graph, reserve)
    parts = () if plain else cut(graph)
    written = _written(graph, norms, parts, settings, reserve)
    blocks: list[Block] = [(*part, certificate.proof) for part, certificate in written]  # type: ignore[misc]
    blocks += [] if plain else _convolutional(graph, norms, parts, reserve)
    proposal = Proposal(
        proof=_composition(graph, norms, blocks),
        method="norm-product" if plain else "composed",
        solver=next((c.solver for _, c in written if c.relative_gap is not None), "eigenvalues"),
        status=worst([Status.SOLVED if reserve.kept else Status.TIME_LIMIT, *(c.status for _, c in written)]),
    )
    return (proposal, replace(proposal, proof=_composition(graph, norms, ()))) if blocks else (proposal,)


class _Reserve:
    """The clock of a search, less the seconds that its proofs will take at the end."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.promised = clock, 0.0
        self.kept = True  # whether there was time for all that was asked for

    def fits(self, seconds: float) -> bool:
        """Whether there is time for so much work."""
        fits = self.clock.fits(seconds + self.promised)
        self.kept = self.kept and fits
        return fits


def _composition(graph: Graph, norms: NodeNorms, blocks: Sequence[Block]) -> Composition:
    """What is inside of a block has its bound from there: no norm is claimed for it."""
    inside = {number for start, end, _ in blocks for number in (members(graph, start, end) or ())[1:]}
    claims = [math.inf if number in inside else norm for number, norm in norms.items()]
    return Composition(claims, tuple(blocks))  # type: ignore[arg-type]


def _norms(graph: Graph, reserve: _Reserve) -> NodeNorms:
    """Norms of all nodes: close to the least that can be proved where there is time for them and for proving them at
    the end, the cheapest first; else coarser ones, as many as there is time for; of the other nodes, from one look at
    their entries."""
    numbers, clock = claimed(graph), reserve.clock
    if clock.limit is None:
        return {number: node_norm(graph.nodes[number], SIGNING_MARGIN) for number in numbers}
    start = clock.seconds
    norms = {number: cheap_node_norm(graph.nodes[number]) for number in numbers}
    reserve.promised = 2.0 * (clock.seconds - start)  # the proof and the digest look at every entry again
    needed = {n: [work / cost.rates().factor for work in norm_work(graph.nodes[n])] for n in numbers}
    at_once = clock.fits(reserve.promised + 2.0 * sum(each[-1] for each in needed.values()))
    levels = {n: [len(each) - 1] if at_once else range(len(each)) for n, each in needed.items()}
    for seconds, number, level in sorted((needed[n][level], n, level) for n in numbers for level in levels[n]):
        if reserve.fits(2.0 * seconds):
            start = clock.seconds
            norms[number] = min(norms[number], node_norm(graph.nodes[number], SIGNING_MARGIN, level))
            reserve.promised += clock.seconds - start
    return norms


def _written(
    graph: Graph, norms: NodeNorms, parts: Sequence[Span], settings: Settings, reserve: _Reserve
) -> list[tuple[Span, Certificate]]:
    """The parts that are written out and whose own bound is below that of their nodes, with its certificate."""
    bounds, found = propagate(graph, norms, {}), []
    for done, part in enumerate(parts):
        size = measure(graph, *part)
        if size is None or not reserve.fits(reserve.clock.needs(cost.writing(size.entries))):
            continue
        network = explicit(graph, *part)
        if network is None:
            continue
        again = reserve.clock.needs(cost.proof(network))
        best: Method = "auto" if network.layers else "norm-product"
        inner = replace(settings, method=best, time_limit=None, warm_start=None, workers=1)
        try:
            share = reserve.clock.share(len(parts) - done, less=reserve.promised + again)
            certificate = certify_network(network, inner, share)
        except SolverError:
            continue
        before, after = bounds[part.start], bounds[part.end]
        through = Fraction(certificate.upper_bound) * Fraction(before) if math.isfinite(before) else None
        if through is not None and (not math.isfinite(after) or through < Fraction(after)):
            found.append((part, certificate))
            reserve.promised += again
    return found


def _convolutional(graph: Graph, norms: NodeNorms, written: Sequence[Span], reserve: _Reserve) -> list[Block]:
    """The parts that are bounded one frequency at a time, with a bound below that of their nodes."""
    bounds, found = propagate(graph, norms, {}), list[Block]()
    for part in channels.cut(graph, written):
        needed = reserve.clock.needs(channels.proof(graph, *part))
        if not reserve.fits((channels.SEARCH + 1.0) * needed):
            continue
        proof = channels.propose(graph, *part)
        if proof is not None and math.sqrt(proof.rho) * bounds[part.start] < bounds[part.end]:
            found.append((*part, proof))
            reserve.promised += needed
    return found
