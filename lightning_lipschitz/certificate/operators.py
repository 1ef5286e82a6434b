"""Norms of single nodes, proved: what a node can do to a difference of its sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lightning_lipschitz.certificate.floating_point import TINY, gamma, product_up, round_up, sqrt_up
from lightning_lipschitz.certificate.matrices import convolution_matrix
from lightning_lipschitz.certificate.spectral import (
    LANCZOS,
    above,
    cheap_norm_upper_bound,
    norm_holds,
    norm_upper_bound,
)
from lightning_lipschitz.certificate.symbols import Symbols
from lightning_lipschitz.graph import Along, Convolution, Elementwise, Gather, Node, Scaling, VectorUnits
from lightning_lipschitz.graph.arrays import Array

EXPLICIT_ENTRIES = 2**22  # of a convolution's own matrix, which is exact; beyond it the symbol takes over
EXPLICIT_SIDE = 1100


def needs_proof(node: Node) -> bool:
    """Whether the norm of a node is a number that has to be proved; the others can be read off."""
    return isinstance(node, (Convolution, Along))


def node_norm(node: Node, margin: float = 1.0, level: int = -1) -> float:
    """An upper bound of the norm of a node for which :func:`needs_proof`.

    Args:
        node: convolution or matrix.
        margin: factor on the allowance for rounding.
        level: -1 for a bound close to the least that can be proved; from 0 on, coarser and faster ones: as many as
            :func:`norm_work` has.
    """
    test, best = _test(node, _levels(node)[level]), 0.0
    for block, slack in test.blocks:
        if not (best > 0 and norm_holds(block, best, slack, margin)):
            best = max(best, norm_upper_bound(block, slack, margin))
    best = max([best, *test.norms])
    return round_up(Fraction(best) * test.excess) if math.isfinite(best) else math.inf


def cheap_node_norm(node: Node) -> float:
    r"""A loose upper bound of the norm of a node for which :func:`needs_proof`, proved by one look at every number.

    A convolution is a sum over its taps of matrices K_t between channels times selections of positions, so its norm is
    at most :math:`\sum_t |K_t|_F`; and it is at most the root of its largest row sum times its largest column sum,
    where a row, or a column, holds no entry of the kernel twice.
    """
    if isinstance(node, Along):
        return cheap_norm_upper_bound(node.matrix, node.rounding)
    if not isinstance(node, Convolution):
        raise TypeError(f"{type(node).__name__} has no norm to prove")
    taps = math.prod(node.taps)
    parts = node.kernel.reshape(node.groups, -1, node.kernel.shape[1], taps)
    largest = float(np.max(np.abs(parts), initial=0.0))
    exponent = int(np.frexp(largest)[1])
    parts = np.abs(np.ldexp(parts, -exponent))
    count = parts[0].size
    lengths = np.sqrt(np.sum(parts**2, axis=(1, 2)).max(axis=0) + count * TINY)
    by_taps = above(float(np.sum(lengths)), count + taps + 4)
    rows, columns = (above(float(np.sum(parts, axis=(axis, 3)).max(initial=0.0)), count) for axis in (2, 1))
    norm = min(by_taps, Fraction(sqrt_up(rows * columns))) + Fraction(count * TINY)
    slack = Fraction(1.01 * math.sqrt(taps) * node.rounding)
    return round_up(norm * Fraction(2) ** exponent + slack)


def node_norm_holds(node: Node, bound: float, margin: float = 1.0) -> bool:
    """Whether it is proved that the norm of a node is at most ``bound``."""
    if not (math.isfinite(bound) and bound >= 0):
        return False
    if isinstance(node, Convolution) and cheap_node_norm(node) <= bound:
        return True
    return any(_passed(_test(node, symbols), bound, margin) for symbols in _levels(node))


def _passed(test: _Test, bound: float, margin: float) -> bool:
    limit = _below(bound, test.excess)
    return all(norm <= limit for norm in test.norms) and all(
        norm_holds(block, limit, slack, margin) for block, slack in test.blocks
    )


def _below(bound: float, excess: Fraction) -> float:
    """A float64 not above ``bound / excess``."""
    exact = Fraction(bound) / excess
    nearest = float(exact)
    return nearest if Fraction(nearest) <= exact else math.nextafter(nearest, -math.inf)


def _is_explicit(node: Convolution) -> bool:
    sizes = (math.prod(node.image), math.prod(node.result))
    return min(sizes) <= EXPLICIT_SIDE and sizes[0] * sizes[1] <= EXPLICIT_ENTRIES


@dataclass(frozen=True, eq=False)
class _Test:
    """The norm of a node is at most ``excess`` times the largest of ``norms`` and of the norms of ``blocks``, matrices
    with the spectral distance within which the exact ones lie."""

    excess: Fraction
    blocks: Iterable[tuple[Array, float]]
    norms: Sequence[float] = ()


def _levels(node: Node) -> Sequence[Symbols | None]:
    """Ways to prove the norm, the coarsest and fastest first; None for that of the matrix itself."""
    return Symbols.levels(node) if isinstance(node, Convolution) and not _is_explicit(node) else [None]


def _test(node: Node, symbols: Symbols | None) -> _Test:
    if isinstance(node, Along):
        return _Test(Fraction(1), [(node.matrix, node.rounding)])
    if not isinstance(node, Convolution):
        raise TypeError(f"{type(node).__name__} has no norm to prove")
    if symbols is None:
        slack = product_up(1.01, math.sqrt(math.prod(node.taps)), node.rounding)
        return _Test(Fraction(1), [(convolution_matrix(node).toarray(), slack)])
    if min(symbols.parts.shape[2:]) == 1:
        return _Test(symbols.excess, (), [_longest(symbols, group) for group in range(node.groups)])
    slacks = [symbols.slack(group) for group in range(node.groups)]
    blocks = ((block, slacks[group]) for group in range(node.groups) for block in symbols.embedded(group))
    return _Test(symbols.excess, blocks)


def norm_work(node: Node) -> list[float]:
    """Operations of :func:`node_norm` at each level, about; proving it again takes little more."""
    return [_matrix_work(node) if symbols is None else symbols.work for symbols in _levels(node)]


def _matrix_work(node: Node) -> float:
    shape = node.matrix.shape if isinstance(node, Along) else (math.prod(node.image), math.prod(node.result))  # type: ignore[attr-defined]
    small, large = float(min(shape)), float(max(shape))
    # A Gram matrix, at some three times the rate of a factorisation, and a few factorisations.
    return 0.4 * small**2 * large + (2.0 if small < LANCZOS else 1.0) * small**3


def _longest(symbols: Symbols, group: int) -> float:
    """The largest norm of a group whose matrices are vectors, as in a depthwise convolution: their length."""
    entries = math.prod(symbols.parts.shape[2:])
    parts = symbols.parts[group]
    exponent = int(np.frexp(np.max(np.abs(parts)))[1])  # near one before it is squared
    squared = max(
        float(np.max(np.sum(np.ldexp(real, -exponent) ** 2 + np.ldexp(imaginary, -exponent) ** 2, axis=(1, 2))))
        for real, imaginary in symbols.values(group)
    )
    slack = symbols.slack(group)
    if not (math.isfinite(squared) and math.isfinite(slack)):
        return math.inf
    length = sqrt_up(Fraction(squared) * (1 + Fraction(gamma(2 * entries + 2))) + 4 * entries * Fraction(TINY))
    return round_up(Fraction(length) * Fraction(2) ** exponent + Fraction(slack))


def _spread(values: Array) -> Fraction:
    return Fraction(float(np.max(np.abs(values), initial=0.0)))


_READ_OFF: dict[type[Node], Callable[..., Fraction]] = {
    Scaling: lambda node: _spread(node.factors) * (1 + Fraction(node.relative)),
    Elementwise: lambda node: max(_spread(node.alpha), _spread(node.beta)),
    VectorUnits: lambda node: max(abs(Fraction(node.alpha)), abs(Fraction(node.beta))),
    Gather: lambda node: Fraction(
        sqrt_up(Fraction(int(np.bincount(node.indices[node.indices >= 0], minlength=1).max())))
    ),
}


def read_off(node: Node) -> Fraction:
    """The constant of a node with one source that needs no proof.

    A gather that copies an entry m times, and no entry more often, has the norm sqrt(m).

    Example:
        >>> from lightning_lipschitz.graph import Gather
        >>> read_off(Gather(sources=(0,), indices=[0, 1, 0, 0, 0]))
        Fraction(2, 1)
    """
    return _READ_OFF[type(node)](node)
