"""StructuredExtractor: trace a model once, read it as a structured graph as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from lightning_lipschitz.extraction.check import check
from lightning_lipschitz.extraction.extractor import Extractor
from lightning_lipschitz.extraction.structured.extraction import StructuredExtraction
from lightning_lipschitz.extraction.structured.walk import walk
from lightning_lipschitz.extraction.trace import trace
from lightning_lipschitz.structured import Graph


class StructuredExtractor(Extractor):
    """nn.Module -> structured Graph: no matrix larger than the model's own weights is formed.

    Arguments and errors are those of :class:`~lightning_lipschitz.extraction.Extractor`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> [type(node).__name__ for node in StructuredExtractor(model, torch.zeros(1, 3, 64, 64)).network().nodes]
        ['Input', 'Convolution', 'Elementwise']
    """

    def network(self, weights: Mapping[str, torch.Tensor] | None = None) -> Graph:  # type: ignore[override]
        """The graph with the weights of this moment, checked against the model on random inputs."""
        tensors = self._tensors(weights)
        extraction = self._extract(tensors)
        check(self._model, tensors, cast(Any, extraction), tuple(self._example.shape[1:]))
        return extraction.network

    def function(self, device: torch.device | str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a float64 function of (batch, input_size), with the weights of this moment."""
        return self.extract().function(device)

    def extract(self, weights: Mapping[str, torch.Tensor] | None = None) -> StructuredExtraction:  # type: ignore[override]
        """The graph together with what it takes to run it, not checked."""
        return self._extract(self._tensors(weights))

    def _extract(self, tensors: Mapping[str, torch.Tensor], *, folded: bool = True) -> StructuredExtraction:  # type: ignore[override]
        if self._graph is None:
            self._graph = trace(self._model, self._example)
        return walk(self._graph, {**self._attributes(self._graph), **tensors}, self._name, folded=folded)
