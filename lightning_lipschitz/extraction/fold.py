"""Scalings that follow a convolution or a matrix become part of it, so that a normalisation costs no factor of its own;
what is gathered of a gather is gathered of its source."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF, frobenius, product_up, sum_up
from lightning_lipschitz.extraction.builder import Builder
from lightning_lipschitz.graph import Along, Convolution, Gather, Node, Scaling
from lightning_lipschitz.graph.arrays import Array


def fold(builder: Builder, output: int) -> None:
    """In place. The scaling takes the place of both; the node before it, read by nobody else, goes away later."""
    readers = Counter(source for node in builder.nodes for source in node.sources)
    readers[output] += 1
    for number, node in enumerate(builder.nodes):
        if isinstance(node, Gather):
            _gather_at_once(builder, number, node)
        if not isinstance(node, Scaling) or readers[node.sources[0]] > 1:
            continue
        before = builder.nodes[node.sources[0]]
        made = _folded(before, node)
        if made is None:
            continue
        shift = builder.biases.get(node.sources[0])
        if shift is not None:
            builder.biases[number] = builder.biases.get(number, 0.0) + shift * node.factors
        builder.nodes[number] = made


def _gather_at_once(builder: Builder, number: int, node: Gather) -> None:
    before = builder.nodes[node.sources[0]]
    if isinstance(before, Gather):
        kept, shift = node.indices >= 0, builder.biases.get(node.sources[0])
        if shift is not None:
            builder.biases[number] = builder.biases.get(number, 0.0) + np.where(kept, shift[node.indices], 0.0)
        indices = np.where(kept, before.indices[node.indices], -1)
        builder.nodes[number] = replace(node, sources=before.sources, indices=indices)


def _folded(before: Node, scaling: Scaling) -> Node | None:
    """The two as one node, where the factors are the same for all that one kernel or one row makes."""
    if isinstance(before, Convolution):
        channels = before.image[0] if before.transposed else before.result[0]
        factors = _one_each(scaling.factors.reshape(channels, -1))
        if factors is None:
            return None
        kernel = before.kernel * _towards(before, factors)
        return replace(before, kernel=kernel, rounding=_rounding(kernel, before.rounding, factors, scaling.relative))
    if isinstance(before, Along):
        factors = _one_each(
            scaling.factors.reshape(before.before, -1, before.after).swapaxes(0, 1).reshape(len(before.matrix), -1)
        )
        if factors is None:
            return None
        matrix = before.matrix * factors[:, None]
        return replace(before, matrix=matrix, rounding=_rounding(matrix, before.rounding, factors, scaling.relative))
    return None


def _one_each(factors: Array) -> Array | None:
    return factors[:, 0] if np.all(factors == factors[:, :1]) else None


def _towards(before: Convolution, factors: Array) -> Array:
    """Factors in the shape of the kernel: for its rows, or for its columns group by group."""
    kernel = before.kernel
    if not before.transposed:
        return factors.reshape(-1, *[1] * (kernel.ndim - 1))
    grouped = np.repeat(factors.reshape(before.groups, kernel.shape[1]), len(kernel) // before.groups, axis=0)
    return grouped.reshape(*kernel.shape[:2], *[1] * (kernel.ndim - 2))


def _rounding(values: Array, before: float, factors: Array, relative: float) -> float:
    """Frobenius distance of the product: one rounding each, the factors' own error, and what was there."""
    made = sum_up(product_up(sum_up(UNIT_ROUNDOFF, relative), 1.01, frobenius(values)), values.size * 2.0**-1074)
    return sum_up(made, product_up(before, float(np.max(np.abs(factors))), sum_up(1.0, relative)))
