r"""Bounds of graphs: from the input to the output, node by node.

For every node v, :math:`|dv|_2 \le L_v\, |dx|_2` with :math:`L_x = 1` and

    a map with constant c:     L_v = c L_u                 a sum:             L_v = sum of the L_u
    a concatenation,
    or the larger of two:      L_v = sqrt(sum of L_u^2)    a proved block:    L_v = L_u Lip(u -> v)

and of two of these the smaller. A residual block x + g(x) is a sum: :math:`L_v = L_u (1 + \mathrm{Lip}(g))`. Where all
paths pass one node u, what follows sees nothing but u, so the constants of the parts multiply; a part between two such
nodes that is small enough is written out and bounded by the matrix inequality, and a convolutional one is bounded by it
one frequency at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from lightning_lipschitz.certificate.explicit import explicit
from lightning_lipschitz.certificate.floating_point import round_up, sqrt_up
from lightning_lipschitz.certificate.operators import needs_proof, node_norm_holds, read_off
from lightning_lipschitz.certificate.proofs import Channels, Composition, Proof
from lightning_lipschitz.certificate.spectrum import prove_channels, spectrum
from lightning_lipschitz.certificate.verify import prove
from lightning_lipschitz.graph import Concatenation, Extremum, Graph, Node, Sum


def claimed(graph: Graph) -> tuple[int, ...]:
    """The nodes whose norms a :class:`Composition` has to give, in order."""
    return tuple(number for number, node in enumerate(graph.nodes) if needs_proof(node))


def prove_composition(graph: Graph, proof: Composition, margin: float = 1.0) -> float | None:
    """The l2 Lipschitz bound that ``proof`` proves of ``graph``, or None where it proves nothing.

    Args:
        graph: as extracted.
        proof: norms of the linear nodes, infinite where none is claimed, and proofs of parts.
        margin: factor on the allowance for rounding, at least 1.
    """
    bounds = prove_nodes(graph, proof, margin)
    return None if bounds is None else bounds[-1]


def prove_nodes(graph: Graph, proof: Composition, margin: float = 1.0) -> tuple[float, ...] | None:
    """The l2 Lipschitz bounds that ``proof`` proves of the maps from the input to every node, infinite where it proves
    nothing of one; None where a claim in it does not hold."""
    numbers = claimed(graph)
    if proof.norms.shape != (len(numbers),):
        return None
    norms = dict(zip(numbers, proof.norms.tolist(), strict=True))
    given = {number: norm for number, norm in norms.items() if norm != np.inf}
    if not all(node_norm_holds(graph.nodes[number], norm, margin) for number, norm in given.items()):
        return None
    blocks: dict[int, list[tuple[int, Fraction]]] = {}
    for start, end, part in proof.blocks:
        bound = _part_bound(graph, start, end, part, margin) if 0 <= start < end < len(graph.nodes) else None
        if bound is None or not np.isfinite(bound):
            return None
        blocks.setdefault(end, []).append((start, Fraction(bound)))
    return propagate(graph, norms, blocks)


def _part_bound(graph: Graph, start: int, end: int, part: Proof | Channels, margin: float) -> float | None:
    if isinstance(part, Channels):
        convolutional = spectrum(graph, start, end)
        return None if convolutional is None else prove_channels(convolutional, part, margin)
    network = explicit(graph, start, end)
    return None if network is None else prove(network, part, margin)


def propagate(
    graph: Graph, norms: Mapping[int, float], blocks: Mapping[int, Sequence[tuple[int, Fraction]]]
) -> tuple[float, ...]:
    """The bound of every node, as in this module's docstring, each rounded up.

    Args:
        graph: whose nodes are bounded.
        norms: of the nodes that :func:`claimed` lists.
        blocks: by the node where they end: where they start, and their constant.
    """
    bounds: list[float] = []
    for number, node in enumerate(graph.nodes):
        exact = [Fraction(bounds[source]) if np.isfinite(bounds[source]) else None for source in node.sources]
        known = [bound for bound in exact if bound is not None]
        best = _bound(node, norms.get(number), known) if len(known) == len(exact) else np.inf
        through = (
            round_up(Fraction(bounds[start]) * constant)
            for start, constant in blocks.get(number, ())
            if np.isfinite(bounds[start])
        )
        bounds.append(min([best, *through]))
    return tuple(bounds)


def _bound(node: Node, norm: float | None, sources: Sequence[Fraction]) -> float:
    if not sources:
        return 1.0
    if isinstance(node, Sum):
        return round_up(sum(sources, start=Fraction(0)))
    if isinstance(node, (Concatenation, Extremum)):
        return sqrt_up(sum((bound**2 for bound in sources), start=Fraction(0)))
    if norm is not None and not np.isfinite(norm):
        return float("inf")
    return round_up(sources[0] * (read_off(node) if norm is None else Fraction(norm)))
