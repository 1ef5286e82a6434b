"""Cutting a network where everything passes: the constants of the pieces multiply.

If every path from the input to the output goes through the units of layer k, f is ``g2 . phi_k . g1`` with g1 ending
in the affine map of layer k, so ``Lip(f) <= Lip(g2) * steepest(phi_k) * Lip(g1)`` (Fazlyab et al. 2019, section 5,
"LipSDP on sub-networks").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lightning_lipschitz.graph.network import Affine, Layer, Network


def possible_cuts(network: Network) -> tuple[int, ...]:
    """The layers (from 1) that every path goes through."""
    passed = []
    for k in range(1, len(network.layers) + 1):
        later = network.affines[k:]
        if all(term.source >= k for affine in later for term in affine.terms):
            passed.append(k)
    return tuple(passed)


def pieces(network: Network, cuts: Sequence[int]) -> tuple[Network, ...] | None:
    """The networks between the cuts, first one first; None where a cut is not possible or the cuts do not ascend."""
    if not set(cuts) <= set(possible_cuts(network)) or list(cuts) != sorted(set(cuts)):
        return None
    ends = [*cuts, len(network.layers) + 1]
    return tuple(_piece(network, start, end) for start, end in zip([0, *cuts], ends, strict=True))


def _piece(network: Network, start: int, end: int) -> Network:
    """From source ``start`` to the affine map number ``end`` (from 1; the output's is the last)."""
    layers = tuple(replace(layer, affine=_shifted(layer.affine, start)) for layer in network.layers[start : end - 1])
    return Network(network.sizes[start], layers, _shifted(network.affines[end - 1], start))


def _shifted(affine: Affine, start: int) -> Affine:
    return replace(affine, terms=tuple(replace(term, source=term.source - start) for term in affine.terms))


def steepest(layer: Layer) -> Fraction:
    """The Lipschitz constant that the slopes of a layer's units allow.

    max(|alpha|, |beta|) for units that stand alone; on groups, max |centre| + max radius of the intervals.
    """
    if layer.elementwise:
        return Fraction(float(np.max(np.maximum(np.abs(layer.alpha), np.abs(layer.beta)))))
    pairs = [(Fraction(a), Fraction(b)) for a, b in zip(layer.alpha.tolist(), layer.beta.tolist(), strict=True)]
    return max(abs(a + b) for a, b in pairs) / 2 + max(b - a for a, b in pairs) / 2
