"""Multipliers for a target bound, of a network and of the same with slopes widened to contain zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from lightning_lipschitz.bounds import interior_point
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.certificate.floating_point import sqrt_up
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.graph.network import Layer, Network

SMALLEST_BOUND, LARGEST_BOUND = 1e-140, 1e140  # the square must be a normal float64, with room for the multipliers
SMALLEST_MULTIPLIER = 1e-30  # of the largest in the layer; units that nothing reads may have none


@dataclass(frozen=True, eq=False)
class Solved:
    """Multipliers that make room for the target.

    Attributes:
        multipliers: rho is the target's square (rounded so that its root does not exceed the target); of the widened
            network.
        scale: all weights multiplied by it are in the set of these multipliers, up to ``rtol``; above 1 where the
            bound is below the target.
        bound: the LipSDP bound of the (widened) network as given, to ``rtol``, not verified.
        warm_start: for the next, similar network.
    """

    multipliers: Multipliers
    scale: float
    bound: float
    warm_start: Any


def solve_multipliers(
    network: Network,
    max_lipschitz: float,
    *,
    rtol: float = 1e-4,
    time_limit: float | None = None,
    device: str = "auto",
    warm_start: Any = None,
) -> Solved:
    """LipSDP-Neuron on ``network``, carried to the bound ``max_lipschitz``.

    If (rho, lambda_k) belongs to the K + 1 weights W_k, then (t^2(K+1) rho, t^2(K+1-k) lambda_k) belongs to the
    weights t W_k: the same inequality up to a congruence. t is chosen so that rho becomes the square of the target.

    Args:
        network: a chain; intervals without zero are widened, see :func:`widened`.
        max_lipschitz: the target, l2.
        rtol: duality gap of LipSDP.
        time_limit: seconds.
        device: where LipSDP computes.
        warm_start: of an earlier answer.

    Raises:
        ArgumentError: the target is not positive, or its square is out of the range of float64.
        SolverError: the weights are beyond the range of float64.
    """
    rho = squared(max_lipschitz)
    wide = widened(network)
    found = interior_point.propose(wide, rtol=rtol, time_limit=time_limit, device=device, warm_start=warm_start)
    bound = math.sqrt(found.multipliers.rho)
    count = len(network.layers) + 1
    scale = (max_lipschitz / bound) ** (1.0 / count) if bound > 0 else 1.0
    values = [v * scale ** (2 * (count - k)) for k, v in enumerate(found.multipliers.values, start=1)]
    positive = tuple(np.maximum(v, SMALLEST_MULTIPLIER * v.max() or 1.0) for v in values)
    return Solved(Multipliers(rho, positive), scale, bound, found.state)


def squared(max_lipschitz: float) -> float:
    """The largest rho found whose root, rounded up, is not above the bound.

    Raises:
        ArgumentError: not a positive number whose square float64 can hold.
    """
    number = isinstance(max_lipschitz, (int, float)) and not isinstance(max_lipschitz, bool)
    if not number or not SMALLEST_BOUND <= max_lipschitz <= LARGEST_BOUND:
        raise ArgumentError(
            "max_lipschitz", max_lipschitz, f"a number > 0, between {SMALLEST_BOUND} and {LARGEST_BOUND}"
        )
    rho = float(max_lipschitz) ** 2
    while sqrt_up(Fraction(rho)) > max_lipschitz:
        rho = math.nextafter(rho, 0.0)
    return rho


def widened(network: Network) -> Network:
    """A network with every slope interval widened to contain zero: the certified weights of a chain are convex then.

    Every bound of the widened network is one of the network itself: slopes in [alpha, beta] are slopes in [0, beta].
    """
    layers = [
        replace(layer, alpha=np.minimum(layer.alpha, 0.0), beta=np.maximum(layer.beta, 0.0)) for layer in network.layers
    ]
    return replace(network, layers=tuple(layers))


def slopes_equal(a: Network, b: Network) -> bool:
    """Whether two networks of the same layers have the same slope intervals."""
    pairs = zip(a.layers, b.layers, strict=True)
    return all(np.array_equal(x.alpha, y.alpha) and np.array_equal(x.beta, y.beta) for x, y in pairs)


def narrowed(network: Network, multipliers: Multipliers) -> Multipliers:
    """Multipliers of :func:`widened` as multipliers of ``network``.

    For 0 < alpha < beta and ``c = beta / (beta - alpha)``, ``c (z - alpha y)(z - beta y) - z (z - beta y) = (c -
    1)(z - beta y)^2 >= 0``: c lambda proves of the network what lambda proves of the widened one. Intervals below
    zero are the mirror image.
    """
    values = [_narrowed(layer, value) for layer, value in zip(network.layers, multipliers.values, strict=True)]
    return Multipliers(multipliers.rho, tuple(values))


def _narrowed(layer: Layer, value: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    steep = np.maximum(np.abs(layer.alpha), np.abs(layer.beta))
    inside = (layer.alpha <= 0) & (layer.beta >= 0)
    return np.where(inside, value, value * (steep / (layer.beta - layer.alpha)))
