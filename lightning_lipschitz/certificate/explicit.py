"""A part of a structured graph as a :class:`~lightning_lipschitz.network.Network`, so that the matrix inequality can
bound it.

The matrices of successive linear nodes are multiplied; what that rounds is bounded (Higham, "Accuracy and Stability of
Numerical Algorithms", 2nd ed., section 3.5) and carried in the terms of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from lightning_lipschitz.certificate.floating_point import TINY, UNIT_ROUNDOFF, Array, gamma
from lightning_lipschitz.certificate.matrices import Matrix, matrix
from lightning_lipschitz.network import Affine, Layer, Network, Term
from lightning_lipschitz.structured import (
    Along,
    Concatenation,
    Convolution,
    Elementwise,
    Gather,
    Graph,
    Node,
    Scaling,
    Sum,
)
from lightning_lipschitz.structured.parts import members


@dataclass(frozen=True, eq=False)
class Rounded:
    """A sparse matrix and the Frobenius distance within which the real-arithmetic one lies."""

    matrix: Matrix
    rounding: float = 0.0

    def before(self, left: Rounded) -> Rounded:
        """``left @ self``."""
        product = sparse.csr_array(left.matrix @ self.matrix)
        a, b = _frobenius(left.matrix), _frobenius(self.matrix)
        longest = int(np.max(np.diff(left.matrix.indptr), initial=0))
        exact = _is_selection(left.matrix) or _is_selection(self.matrix)
        made = 0.0 if exact else gamma(longest + 1) * a * b + longest * TINY * math.sqrt(math.prod(product.shape))
        carried = a * self.rounding + left.rounding * b + left.rounding * self.rounding
        return Rounded(product, 1.001 * (made + carried))

    def plus(self, other: Rounded) -> Rounded:
        total = sparse.csr_array(self.matrix + other.matrix)
        made = UNIT_ROUNDOFF * _frobenius(total)
        return Rounded(total, 1.001 * (made + self.rounding + other.rounding))


def explicit(graph: Graph, start: int, end: int) -> Network | None:
    """The map from the output of node ``start`` to that of node ``end``, without biases.

    None where there is no such map (a path avoids ``start``) or it holds nodes that are neither linear nor units with
    slopes.
    """
    inside = members(graph, start, end)
    if inside is None:
        return None
    walk = _Walk(graph, start)
    for number in inside[1:]:
        if not walk.visit(number):
            return None
    return walk.network(end)


class _Walk:
    """Every node's output as a sum of matrices times sources: 0 is ``start``, k the units of layer k."""

    def __init__(self, graph: Graph, start: int) -> None:
        self.graph, self.layers = graph, list[Layer]()
        self.width = graph.nodes[start].size
        self.terms: dict[int, dict[int, Rounded]] = {start: {0: Rounded(_identity(self.width))}}

    def visit(self, number: int) -> bool:
        node = self.graph.nodes[number]
        given = [self.terms[source] for source in node.sources]
        widths = [self.graph.nodes[source].size for source in node.sources]
        if isinstance(node, Elementwise) and bool(np.all(node.alpha < node.beta)):
            self.layers.append(Layer(self.affine(given[0], node.size), node.alpha, node.beta, name=node.name))
            self.terms[number] = {len(self.layers): Rounded(_identity(node.size))}
        elif isinstance(node, Sum):
            self.terms[number] = _added(given)
        elif isinstance(node, Concatenation):
            self.terms[number] = _added(_placed(given, widths, node.size))
        else:
            left = _left(node, widths[0])
            if left is None:
                return False
            self.terms[number] = {j: term.before(left) for j, term in given[0].items()}
        return True

    def affine(self, terms: Mapping[int, Rounded], size: int) -> Affine:
        made = (Term(j, term.matrix.toarray(), term.rounding) for j, term in sorted(terms.items()))
        return Affine(tuple(made), np.zeros(size))

    def network(self, end: int) -> Network:
        output = self.affine(self.terms[end], self.graph.nodes[end].size)
        return Network(self.width, tuple(self.layers), output)


def _added(parts: Sequence[Mapping[int, Rounded]]) -> dict[int, Rounded]:
    total: dict[int, Rounded] = {}
    for part in parts:
        for j, term in part.items():
            total[j] = total[j].plus(term) if j in total else term
    return total


def _placed(parts: Sequence[Mapping[int, Rounded]], widths: Sequence[int], size: int) -> list[dict[int, Rounded]]:
    """Every part at its own place of a longer vector."""
    placed, start = [], 0
    for part, width in zip(parts, widths, strict=True):
        rows = np.arange(width)
        left = Rounded(sparse.csr_array((np.ones(width), (rows + start, rows)), shape=(size, width)))
        placed.append({j: term.before(left) for j, term in part.items()})
        start += width
    return placed


def _left(node: Node, width: int) -> Rounded | None:
    made = matrix(node, width)
    if made is None:
        return None
    if isinstance(node, Scaling):
        return Rounded(made, 1.001 * node.relative * _frobenius(made))
    if isinstance(node, Along):  # the matrix is repeated before * after times
        return Rounded(made, 1.001 * math.sqrt(node.before * node.after) * node.rounding)
    if isinstance(node, Convolution):  # every entry of the kernel occurs at most once an output position
        return Rounded(made, 1.001 * math.sqrt(math.prod(node.result[1:])) * node.rounding)
    return Rounded(made) if isinstance(node, Gather) else None


def _identity(size: int) -> Matrix:
    return sparse.csr_array(sparse.identity(size, format="csr"))


def _is_selection(values: Matrix) -> bool:
    """Whether at most one entry a row and a column is not zero, and these are ones: products with it are exact."""
    ones = bool(np.all(values.data == 1.0))
    rows = bool(np.max(np.diff(values.indptr), initial=0) <= 1)
    return ones and rows and len(np.unique(values.indices)) == len(values.indices)


def _frobenius(values: Matrix) -> float:
    entries: Array = values.data
    return (math.sqrt(float(entries @ entries)) + math.sqrt(entries.size) * 2.0**-510) * (1.0 + entries.size * 2.0**-52)
