"""Expression: the output of a node as a function of sources.

value = sum_j W_j s_j + b,      s_0 an input, s_k the units of layer k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_lipschitz.certificate.coefficients import Coefficients, Matrix, dense, identity, stacked, zeros
from lightning_lipschitz.errors import NonFiniteError
from lightning_lipschitz.graph.arrays import Array, Indices
from lightning_lipschitz.graph.network import Affine, Term


@dataclass(frozen=True, eq=False)
class Expression:
    """``sum_j terms[j] @ s_j + bias``. The bias is carried in plain float64, without a rounding bound: no global
    Lipschitz bound depends on it."""

    terms: Mapping[int, Coefficients]
    bias: Array

    @classmethod
    def source(cls, number: int, size: int) -> Expression:
        """The source itself."""
        return cls({number: Coefficients(identity(size))}, np.zeros(size))

    @property
    def size(self) -> int:
        return len(self.bias)

    def select(self, indices: Indices) -> Expression:
        """The entries of these numbers, in this order; -1 stands for zero."""
        if len(indices) == self.size and np.array_equal(indices, np.arange(self.size)):
            return self
        terms = {j: term.rows(indices) for j, term in self.terms.items()}
        bias = np.append(self.bias, 0.0)[indices]
        return Expression({j: term for j, term in terms.items() if not term.empty}, bias)

    def scale(self, factors: Array, relative: float = 0.0) -> Expression:
        """Entrywise product with factors that are exact to a ``relative`` error."""
        return Expression({j: t.scaled(factors, relative) for j, t in self.terms.items()}, self.bias * factors)

    def shift(self, offsets: Array) -> Expression:
        """Entrywise sum with known offsets."""
        return Expression(self.terms, self.bias + offsets)

    def apply(self, weight: Matrix, rounding: float = 0.0) -> Expression:
        """``weight @ self``, the weight within a Frobenius distance of ``rounding``."""
        terms = {j: term.premultiplied(weight, rounding) for j, term in self.terms.items()}
        return Expression(terms, weight @ self.bias)

    def plus(self, other: Expression) -> Expression:
        """Entrywise sum; both may share sources."""
        terms = dict(self.terms)
        for j, term in other.terms.items():
            terms[j] = terms[j].plus(term) if j in terms else term
        return Expression(terms, self.bias + other.bias)

    def to_affine(self, input_size: int, number: Mapping[int, int], name: str) -> Affine:
        """The dense map, with sources renamed by ``number``; an expression without a source gets a zero term.

        Raises:
            NonFiniteError: composing finite weights overflowed.
        """
        terms = self.terms or {0: zeros(self.size, input_size)}
        for term in terms.values():
            if not np.isfinite(term.rounding):
                raise NonFiniteError(f"the product of the weights that lead to `{name}`", term.shape[0], term.shape[0])
        return Affine(tuple(Term(number[j], dense(t.matrix), t.rounding) for j, t in sorted(terms.items())), self.bias)


def concatenate(parts: Sequence[Expression]) -> Expression:
    """The parts one after the other."""
    if len(parts) == 1:
        return parts[0]
    widths = {j: term.shape[1] for part in parts for j, term in part.terms.items()}
    terms = {
        j: stacked([part.terms[j] if j in part.terms else zeros(part.size, width) for part in parts])
        for j, width in widths.items()
    }
    return Expression(terms, np.concatenate([part.bias for part in parts]))
