r"""Bounds of every difference of two outputs, from one point of the LMI.

With T(lambda) the part of ``M(rho, lambda) = rho E + T(lambda) - F'F`` that the multipliers make (E the input's block,
F the output map, see :mod:`lightning_lipschitz.certificate.lmi`) and ``c = F_i - F_j``, the difference ``f_i - f_j``
has the constant sqrt(rho) if ``rho E + T(s lambda) >= cc'`` for some s > 0. T is linear; put ``rho = s r``. Then the
condition is ``s >= c'(r E + T)^{-1} c`` and the best rho of all s is the least of

    r c'(r E + T)^{-1} c = r (G_ii + G_jj - 2 G_ij),      G(r) = F (r E + T)^{-1} F',

over r: one factorisation a value of r serves all pairs. At r = rho of the whole network, G <= I, so that no pair comes
out above sqrt(2) times the bound of the whole. Nothing here is believed: each pair is proved by the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

from lightning_lipschitz.bounds import cost
from lightning_lipschitz.certificate import Multipliers, Proposal
from lightning_lipschitz.certificate.floating_point import frobenius, product_up, sum_up
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Affine, Network, Term

Pair = tuple[int, int]

RATIOS = np.geomspace(1.0 / 16.0, 64.0, 81)  # of r to rho of the whole network; neighbours differ by 9 %
_INWARDS = 1e-9  # relative: proposals lie this much inside of the boundary
_ROUNDING = 1.0000001 * 2.0**-53


def pairs(classes: int) -> tuple[Pair, ...]:
    """(0, 1), (0, 2) ... (K - 2, K - 1)."""
    return tuple(combinations(range(classes), 2))


def difference(network: Network, pair: Pair) -> Network:
    """The network of ``f_i - f_j``, its rows rounded to float64 and the rounding accounted for.

    Subtraction has a relative error of 2^-53 an entry, and a matrix within a Frobenius distance d has rows whose
    difference lies within sqrt(2) d.

    Example:
        >>> difference(Network.from_weights([[[1.0, 2.0], [3.0, 5.0]]]), (1, 0)).output.terms[0].matrix
        array([[2., 3.]])
    """
    i, j = pair

    def row(term: Term) -> Term:
        matrix = term.matrix[i : i + 1] - term.matrix[j : j + 1]
        own = product_up(_ROUNDING, frobenius(matrix))
        return Term(term.source, matrix, sum_up(own, product_up(1.4142136, term.rounding)))

    terms = tuple(row(term) for term in network.output.terms)
    bias = network.output.bias[i : i + 1] - network.output.bias[j : j + 1]
    return replace(network, output=Affine(terms, bias))


def shared_proposals(
    network: Network, whole: Multipliers, ratios: Sequence[float] = tuple(RATIOS)
) -> dict[Pair, Proposal]:
    """For each pair the best point of the ray through ``whole``, on a grid of r; empty where no factorisation runs.

    Args:
        network: of all outputs.
        whole: a point of it.
        ratios: of r to rho of that point.
    """
    form = _InputEliminated(network, whole)
    best = dict.fromkeys(pairs(network.output.size), (np.inf, 0.0))  # rho, s
    for r in whole.rho * np.asarray(ratios):
        gram = form.gram(r)
        if gram is None:
            continue
        for (i, j), (least, _) in best.items():
            s = float(gram[i, i] + gram[j, j] - 2.0 * gram[i, j])
            if 0 < s * r < least:
                best[i, j] = (s * r, s)
    return {
        pair: Proposal(Multipliers(rho * (1.0 + _INWARDS), tuple(s * lam for lam in whole.values)), "shared", "shared")
        for pair, (rho, s) in best.items()
        if np.isfinite(rho)
    }


def shared_work(network: Network, ratios: int = len(RATIOS)) -> cost.Work:
    """What :func:`shared_proposals` costs: a factorisation for every ratio, after the input has been eliminated."""
    inputs, units = float(network.input_size), float(network.num_units)
    each = cost.Work(product=2.0 * inputs * units**2, factor=units**3 / 3.0)
    slopes = any(np.any(layer.alpha * layer.beta) for layer in network.layers)
    return each.times(ratios) + cost.Work(eigen=9.0 * inputs**3 if slopes else 0.0)


class _InputEliminated:
    """``r E + T(lambda)`` with the input eliminated: T's own block of the input is diagonalised once."""

    def __init__(self, network: Network, point: Multipliers) -> None:
        x, layers = network.input_size, network.layers
        lam = np.concatenate([*point.values, np.zeros(0)])
        alpha, beta = (np.concatenate([*(getattr(layer, name) for layer in layers), []]) for name in ("alpha", "beta"))
        rows = network.rows()[: network.num_units]
        output = network.wide(network.output)
        sums, products = (lam * (alpha + beta))[:, None], (2.0 * lam * alpha * beta)[:, None]
        inner, outer = rows[:, x:], rows[:, :x]
        self._zz = np.diag(2.0 * lam) - sums * inner - (sums * inner).T + inner.T @ (products * inner)
        self._zx, self._fx, self._fz = inner.T @ (products * outer) - sums * outer, output[:, :x], output[:, x:]
        self._eigenvalues = np.zeros(x)
        if np.any(products):
            self._eigenvalues, basis = eigh(outer.T @ (products * outer), driver="evd")  # "evr" fails on clusters
            self._zx, self._fx = self._zx @ basis, self._fx @ basis

    def gram(self, r: float) -> Array | None:
        """G(r), shape (classes, classes), or None where ``r E + T`` is not positive definite."""
        shifted = r + self._eigenvalues
        if not np.all(shifted > 0):
            return None
        weighted = self._zx / shifted
        across = self._fz - self._fx @ weighted.T
        try:
            factor = cho_factor(self._zz - weighted @ self._zx.T, lower=True, check_finite=False)
        except LinAlgError:
            return None
        gram: Array = (self._fx / shifted) @ self._fx.T + across @ cho_solve(factor, across.T, check_finite=False)
        return gram if np.all(np.isfinite(gram)) else None
