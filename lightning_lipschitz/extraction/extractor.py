"""Extractor: trace a model once, read its weights as often as wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lightning_lipschitz.errors import ExtractionError
from lightning_lipschitz.extraction.check import check
from lightning_lipschitz.extraction.execution import execute
from lightning_lipschitz.extraction.function import torch_function
from lightning_lipschitz.extraction.interpret import interpret
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.part import Input, Output, part
from lightning_lipschitz.extraction.result import Extraction
from lightning_lipschitz.extraction.trace import Graph, example, probe, require_values, trace
from lightning_lipschitz.extraction.undisturbed import READING, clean, name_of, tensors_of, undisturbed, unwrapped
from lightning_lipschitz.network import Network


class Extractor:
    """nn.Module -> Network.

    Tracing takes a fraction of a second (more the first time in a process, when PyTorch loads its compiler);
    ``network()`` then reads the parameters and buffers as they are at that moment, for some milliseconds and a float64
    copy of the weights. A model that no longer computes what was traced (another number, layer or activation) is traced
    again. It is left as it was found: flags, buffers, gradients, random state, what its forward keeps.

    Args:
        model: any module whose forward takes floating-point tensors and returns some, the batch in the first
            dimension. Compiled modules are unwrapped.
        example_input: only its shape counts; a batch of one will do. Several inputs: a tuple or a mapping of names.
        name: dotted name of the model inside a larger one; it stands before the names of its submodules in messages and
            in the names of the layers.
        input: position or name of the input that is the network's; the others are held at the values of the example's
            first sample. Needed when there are several.
        output: position or name of the output, "all" for all as one vector, or a function of the outputs.
        at_once: read it in the constructor, so that what cannot be read is refused there.

    Attributes:
        traces: how often it was traced.

    Raises:
        ExtractionError, UnsupportedModuleError: it cannot be read as affine maps and activations with bounded slopes.
        NonFiniteError: a weight is NaN or infinite.
        ArgumentError: the example input.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> Extractor(model, torch.zeros(1, 2)).network().sizes
        (2, 3)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        example_input: Any,
        *,
        name: str = "",
        input: Input = None,
        output: Output = None,
        at_once: bool = True,
    ) -> None:
        with READING:  # while another thread reads the model, it has other tensors
            self._model, example_input = part(unwrapped(model), example_input, input, output)
            require_values(self._model)
            given = example(self._model, example_input)
        self._example = torch.zeros((), dtype=given.dtype).expand(given.shape)  # one number: only the shape is of use
        self._name = name
        self._graph: Graph | None = None
        self.traces = 0
        if at_once:
            self.network()

    def network(self, weights: Mapping[str, torch.Tensor] | None = None) -> Network:
        """The network with the weights of this moment, checked against the model on random inputs.

        Args:
            weights: tensors to use in place of the model's own, named as in its ``state_dict``; for instance averaged
                weights.

        Raises:
            As the constructor.
        """
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(weights, rewritten)
            graph, extraction = self._renewed(tensors)
            if extraction is None:
                extraction = self._extract(graph, tensors)
                self._check(graph, tensors, extraction, wide=False)
        return extraction.network

    def function(self, device: torch.device | str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a float64 function of (batch, input_size), with the weights of this moment."""
        return torch_function(self.extract(), device)

    def extract(self, weights: Mapping[str, torch.Tensor] | None = None) -> Extraction:
        """The network together with its activation functions; checked only if the model had to be traced."""
        return self._read(weights)[1]

    def _read(self, weights: Mapping[str, torch.Tensor] | None) -> tuple[Graph, Extraction]:
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(weights, rewritten)
            graph, extraction = self._renewed(tensors)
            return graph, self._extract(graph, tensors) if extraction is None else extraction

    def linearised(self, weights: Mapping[str, torch.Tensor] | None = None) -> Linearised:
        """The matrices as differentiable functions of the parameters; ``weights`` as in :meth:`network`.

        Raises:
            NotLinearisedError: an activation of several values.
        """
        graph = self._read(weights)[0] if self._graph is None else self._graph
        return Linearised(graph, {**self._attributes(graph), **self._tensors(weights)}, self._name)

    def refresh(self) -> None:
        """Trace again if the model no longer computes what was traced; ``traces`` tells.

        Raises:
            As the constructor.
        """
        with undisturbed(self._model) as rewritten:
            self._renewed(self._tensors(None, rewritten))

    def _renewed(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Graph, Extraction | None]:
        """Trace, if that was not done or the model no longer does what it did then, and check the reading widely.

        Returns:
            The trace; and what was read and checked, None where the trace that there was still holds.
        """
        if self._graph is not None:
            x = probe(example(self._model, self._example))
            with contextlib.suppress(Exception):  # a model that no longer runs has changed
                if execute(self._model, tensors, x).digest == self._graph.execution.digest:
                    return self._graph, None
        self._graph = None  # of another model, also where this one is refused
        graph = self._graph = trace(self._model, self._example, tensors)
        try:
            extraction = self._extract(graph, tensors)
            self._check(graph, tensors, extraction, wide=True)
        except Exception:
            self._graph = None
            raise
        self.traces += 1
        return graph, extraction

    def _check(self, graph: Graph, tensors: Mapping[str, torch.Tensor], extraction: Extraction, *, wide: bool) -> None:
        check(self._model, tensors, extraction, tuple(self._example.shape[1:]), graph, wide=wide)

    def _extract(self, graph: Graph, tensors: Mapping[str, torch.Tensor]) -> Extraction:
        return interpret(graph, {**self._attributes(graph), **tensors}, self._name)

    def _attributes(self, graph: Graph) -> dict[str, torch.Tensor]:
        """Tensors that are plain attributes of a module, as they are now."""
        found = {}
        for name in set(graph.tensors.values()):
            path, _, attribute = name.rpartition(".")
            with contextlib.suppress(AttributeError):
                value = getattr(self._model.get_submodule(path), attribute, None)
                if isinstance(value, torch.Tensor):
                    found[name] = value
        return found

    def _tensors(self, weights: Mapping[str, torch.Tensor] | None, rewritten: bool = False) -> dict[str, torch.Tensor]:
        """Parameters and buffers by their name in the model, tied ones under every name.

        They are looked up afresh: moving a model to another device replaces its buffers.
        """
        tensors = tensors_of(self._model)
        given = {clean(name): tensor for name, tensor in (weights or {}).items()}
        for name in tensors:
            tensors[name] = given.pop(clean(name), tensors[name])
        if weights and rewritten:
            raise ExtractionError(
                self._name or name_of(self._model),
                "its `eval()` changes its weights, so it cannot be read with those of a file or of an average.",
                "Load them into the model and certify that.",
            )
        if given:
            raise ExtractionError(
                self._name or name_of(self._model),
                f"it has no parameter or buffer named `{next(iter(given))}`.",
                "Names are those of its state_dict.",
            )
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graph": None}


def extract(model: torch.nn.Module, example_input: Any) -> Network:
    """The network of a model, once. See ``Extractor``.

    Example:
        >>> extract(torch.nn.Linear(2, 1), torch.zeros(1, 2)).layers
        ()
    """
    return Extractor(model, example_input).network()
