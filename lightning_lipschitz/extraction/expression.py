"""Expression: what one sample of a traced tensor is, as a function of the sources.

    value = sum_j W_j s_j + b,      s_0 the network input, s_k the output of layer k

flattened to a vector. Everything affine in a model is arithmetic on expressions; nothing here knows about torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_lipschitz.errors import NonFiniteError
from lightning_lipschitz.extraction.coefficients import Coefficients, Indices, Matrix, dense, identity, stacked, zeros
from lightning_lipschitz.network import Affine, Array, Term


@dataclass(frozen=True, eq=False)
class Expression:
    """``sum_j terms[j] @ s_j + bias``.

    The bias is carried in plain float64, without a rounding bound: no global Lipschitz bound depends on it.
    """

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
        """The entries of these numbers, in this order."""
        if len(indices) == self.size and np.array_equal(indices, np.arange(self.size)):
            return self
        terms = {j: term.rows(indices) for j, term in self.terms.items()}
        return Expression({j: term for j, term in terms.items() if not term.empty}, self.bias[indices])

    def scale(self, factors: Array, relative: float = 0.0) -> Expression:
        """Entrywise product with known factors, themselves exact to a ``relative`` error."""
        return Expression({j: t.scaled(factors, relative) for j, t in self.terms.items()}, self.bias * factors)

    def shift(self, offsets: Array) -> Expression:
        """Entrywise sum with known offsets."""
        return Expression(self.terms, self.bias + offsets)

    def apply(self, weight: Matrix, relative: float = 0.0) -> Expression:
        """``weight @ self``, the entries of weight exact to a ``relative`` error."""
        return Expression(
            {j: term.premultiplied(weight, relative) for j, term in self.terms.items()}, weight @ self.bias
        )

    def plus(self, other: Expression) -> Expression:
        """Entrywise sum of two expressions, which may share sources."""
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
