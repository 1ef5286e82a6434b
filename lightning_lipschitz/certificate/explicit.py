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

from lightning_lipschitz.certificate.floating_point import TINY, UNIT_ROUNDOFF, frobenius, gamma, product_up, sum_up
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
        a, b = frobenius(left.matrix.data), frobenius(self.matrix.data)
        longest = int(np.max(np.diff(left.matrix.indptr), initial=0))
        exact = _is_selection(left.matrix) or _is_selection(self.matrix)
        lost = longest * TINY * math.sqrt(math.prod(product.shape))
        made = 0.0 if exact else sum_up(product_up(gamma(longest + 1), a, b), lost)
        carried = product_up(a, self.rounding), product_up(left.rounding, b), product_up(left.rounding, self.rounding)
        return Rounded(product, sum_up(made, *carried))

    def plus(self, other: Rounded) -> Rounded:
        total = sparse.csr_array(self.matrix + other.matrix)
        made = product_up(UNIT_ROUNDOFF, frobenius(total.data))
        return Rounded(total, sum_up(made, self.rounding, other.rounding))

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return math.isfinite(self.rounding) and bool(np.all(np.isfinite(self.matrix.data)))


def explicit(graph: Graph, start: int, end: int) -> Network | None:
    """The map from the output of node ``start`` to that of node ``end``, without biases.

    None where there is no such map (a path avoids ``start``), where it holds nodes that are neither linear nor units
    with slopes, or where products of its matrices overflow.
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
        return all(term.finite for term in self.terms[number].values())

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
        return Rounded(made, product_up(node.relative, frobenius(made.data)))
    if isinstance(node, Along):  # the matrix is repeated before * after times
        return Rounded(made, product_up(1.001, math.sqrt(node.before * node.after), node.rounding))
    if isinstance(node, Convolution):  # every entry of the kernel occurs at most once an output position
        return Rounded(made, product_up(1.001, math.sqrt(math.prod(node.result[1:])), node.rounding))
    return Rounded(made) if isinstance(node, Gather) else None


def _identity(size: int) -> Matrix:
    return sparse.csr_array(sparse.identity(size, format="csr"))


def _is_selection(values: Matrix) -> bool:
    """Whether at most one entry a row and a column is not zero, and these are ones: products with it are exact."""
    ones = bool(np.all(values.data == 1.0))
    rows = bool(np.max(np.diff(values.indptr), initial=0) <= 1)
    return ones and rows and len(np.unique(values.indices)) == len(values.indices)
