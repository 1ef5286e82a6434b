"""StructuredExtractor: trace a model once, read it as a structured graph as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from lightning_lipschitz.errors import LipschitzError, ModelSizeError, UnsupportedModuleError
from lightning_lipschitz.extraction.extractor import Extractor
from lightning_lipschitz.extraction.function import torch_function
from lightning_lipschitz.extraction.interpret import interpret
from lightning_lipschitz.extraction.structured.extraction import StructuredExtraction
from lightning_lipschitz.extraction.structured.walk import walk
from lightning_lipschitz.extraction.trace import Graph as Trace
from lightning_lipschitz.extraction.undisturbed import undisturbed
from lightning_lipschitz.network import Network
from lightning_lipschitz.structured import Graph
from lightning_lipschitz.structured.parts import measure

LARGEST_ENTRIES = 40_000_000  # of all explicit matrices: 320 MB
WIDEST_LAYER = 4096  # a dense eigenvalue problem of this size takes minutes


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
        return cast(Graph, super().network(weights))

    def function(self, device: torch.device | str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a float64 function of (batch, input_size), with the weights of this moment."""
        return cast(StructuredExtraction, self.extract()).function(device)

    def _extract(self, graph: Trace, tensors: Mapping[str, torch.Tensor]) -> Any:
        return self._structured(graph, tensors)

    def _structured(
        self, graph: Trace, tensors: Mapping[str, torch.Tensor], *, folded: bool = True
    ) -> StructuredExtraction:
        return walk(graph, {**self._attributes(graph), **tensors}, self._name, folded=folded)

    def unfolded(self) -> Graph:
        """The graph with normalisations as nodes of their own, not checked: to see what folding them gains."""
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(None, rewritten)
            graph, _ = self._renewed(tensors)
            return self._structured(graph, tensors, folded=False).network


class RoutedExtractor(Extractor):
    """nn.Module -> Network where its explicit matrices fit, else structured Graph; decided once, by counting.

    Arguments and errors are those of :class:`~lightning_lipschitz.extraction.Extractor`.

    Example:
        >>> small, large = torch.nn.Linear(2, 3), torch.nn.Conv2d(3, 64, 3)
        >>> type(RoutedExtractor(small, torch.zeros(1, 2)).network()).__name__
        'Network'
        >>> type(RoutedExtractor(large, torch.zeros(1, 3, 32, 32)).network()).__name__
        'Graph'
    """

    _route: Callable[..., Any] | None = None
    _routed: Trace | None = None  # the trace that the route was chosen for

    def network(self, weights: Mapping[str, torch.Tensor] | None = None) -> Network | Graph:  # type: ignore[override]
        """The network or the graph with the weights of this moment, checked against the model on random inputs."""
        return super().network(weights)

    def function(self, device: torch.device | str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a float64 function of (batch, input_size), with the weights of this moment."""
        extraction: Any = self.extract()
        if isinstance(extraction, StructuredExtraction):
            return extraction.function(device)
        return torch_function(extraction, device)

    def _extract(self, graph: Trace, tensors: Mapping[str, torch.Tensor]) -> Any:
        everything = {**self._attributes(graph), **tensors}
        if self._route is not None and self._routed is graph:
            return self._route(graph, everything, self._name)
        extraction, self._route = _decide(graph, everything, self._name)
        self._routed = graph
        return extraction

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_route": None, "_routed": None}


def _decide(graph: Trace, tensors: Mapping[str, torch.Tensor], name: str) -> tuple[Any, Callable[..., Any]]:
    """The extraction, and the function that made it. What only the structured route knows is read by it."""
    try:
        structured = walk(graph, tensors, name)
    except LipschitzError as refusal:
        try:
            return interpret(graph, tensors, name), interpret
        except ModelSizeError:
            raise refusal from None  # why it is not read at any size
    if not fits(structured.network):
        return structured, walk
    try:
        return interpret(graph, tensors, name), interpret
    except (UnsupportedModuleError, ModelSizeError):
        return structured, walk


def fits(graph: Graph) -> bool:
    """Whether the explicit matrices of a model are small enough to be formed, and its layers to be optimised over."""
    size = measure(graph)
    return size is None or (size.entries <= LARGEST_ENTRIES and max(size.widths, default=0) <= WIDEST_LAYER)
