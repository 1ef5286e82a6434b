"""Extraction: a network that can be run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_lipschitz.extraction.registry import Units
from lightning_lipschitz.network import Affine, Array, Network


@dataclass(frozen=True, eq=False)
class Extraction:
    """A network and what its units compute, so that it can be run.

    Args:
        network: the answer.
        units: one a layer.
        resolution: relative rounding of the coarsest arithmetic that the model itself uses in making its weights; zero
            when they were only read.
    """

    network: Network
    units: tuple[Units, ...]
    resolution: float

    def __call__(self, inputs: Array, noise: float = 0.0) -> Array:
        """The network's outputs, shape (batch, outputs), for inputs of shape (batch, input_size).

        With ``noise``, the factors and the result of every product, and every bias, are off by a random relative amount
        up to it: what rounding does, but visible (Monte Carlo arithmetic).
        """
        rng = np.random.default_rng(0)

        def blur(values: Array) -> Array:
            return values * (1.0 + noise * rng.uniform(-1.0, 1.0, size=values.shape)) if noise else values

        def evaluate(affine: Affine) -> Array:
            total = np.broadcast_to(blur(affine.bias), (len(inputs), affine.size))
            for term in affine.terms:
                total = total + blur(blur(sources[term.source]) @ term.matrix.T)
            return total

        sources = [inputs]
        for layer, units in zip(self.network.layers, self.units, strict=True):
            sources.append(units(evaluate(layer.affine)))
        return evaluate(self.network.output)
