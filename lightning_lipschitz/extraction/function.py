"""The extracted network as a differentiable torch function, for searches that need gradients in the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lipschitz.extraction.result import Extraction
from lightning_lipschitz.network import Affine, Array

Map = Callable[[list[Tensor]], Tensor]


def torch_function(extraction: Extraction, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Maps (batch, input_size) to (batch, outputs) in float64 on ``device``; holds copies of the weights."""
    layers = [
        (_affine(layer.affine, device), units, [_tensor(each, device) for each in units.parameters])
        for layer, units in zip(extraction.network.layers, extraction.units, strict=True)
    ]
    output = _affine(extraction.network.output, device)

    def function(x: Tensor) -> Tensor:
        sources = [x.flatten(1)]
        for affine, units, parameters in layers:
            sources.append(units.function(affine(sources), *parameters))
        return output(sources)

    return function


def _affine(affine: Affine, device: torch.device | str) -> Map:
    bias = _tensor(affine.bias, device)
    terms = [(term.source, _tensor(term.matrix, device)) for term in affine.terms]

    def apply(sources: list[Tensor]) -> Tensor:
        start = bias.expand(len(sources[0]), -1)
        return sum((sources[source] @ matrix.mT for source, matrix in terms), start=start)

    return apply


def _tensor(values: Array, device: torch.device | str) -> Tensor:
    return torch.tensor(values, device=device)
