"""Rules for interpolation: nearest moves data, linear ones are a matrix along each dimension."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import torch

from lightning_lipschitz.certificate.floating_point import UNIT_ROUNDOFF
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.linear import along_axes
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.graph.arrays import Array


def _register(operator: str) -> None:
    @rule(operator)
    def nearest(context: Context, x: Value, *args: Any) -> Value:
        """Copies; the integers that say which entry lies where are exact in float64."""
        moved = getattr(torch.ops.aten, operator)(x.index.double(), *args)
        return x.moved(moved.long())


for _dims in (1, 2, 3):
    _register(f"upsample_nearest{_dims}d")
    _register(f"_upsample_nearest_exact{_dims}d")


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def linear(context: Context, x: Value, output_size: Any, align_corners: bool, scale_factors: Any = None) -> Value:
    """Separable: weights that are rational numbers, each rounded once to float64."""
    lengths = x.shape[2:]
    factors = [None] * len(lengths) if scale_factors is None else scale_factors
    sizes = output_size or [floor(n * factor) for n, factor in zip(lengths, factors, strict=True)]
    geometry = zip(lengths, sizes, factors, strict=True)
    return along_axes(context, x, [_matrix(n, m, align_corners, f) for n, m, f in geometry], UNIT_ROUNDOFF)


def _matrix(n: int, m: int, align_corners: bool, factor: float | None) -> Array:
    """Shape (m, n): output i lies at a place between two inputs and is weighted by how near they are."""
    matrix = np.zeros((m, n))
    for i, place in enumerate(_places(n, m, align_corners, factor)):
        low = min(floor(place), n - 1)
        above = place - low if low < n - 1 else Fraction(0)
        matrix[i, low] = float(1 - above)
        matrix[i, min(low + 1, n - 1)] += float(above)
    return matrix


def _places(n: int, m: int, align_corners: bool, factor: float | None) -> Sequence[Fraction]:
    if n == m:  # whatever the factor is
        return [Fraction(i) for i in range(n)]
    if align_corners:
        step = Fraction(n - 1, m - 1) if m > 1 else Fraction(0)
        return [i * step for i in range(m)]
    step = 1 / Fraction(factor) if factor else Fraction(n, m)
    half = Fraction(1, 2)
    return [max((i + half) * step - half, Fraction(0)) for i in range(m)]
