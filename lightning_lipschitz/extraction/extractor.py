"""Extractors: trace a model once, read its weights as often as wanted, as a network, as a graph, or as what fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Generic

import torch

from lightning_lipschitz.errors import ExtractionError, ModelSizeError
from lightning_lipschitz.extraction.check import check
from lightning_lipschitz.extraction.execution import execute
from lightning_lipschitz.extraction.linearised import Linearised
from lightning_lipschitz.extraction.part import Input, Output, part
from lightning_lipschitz.extraction.reading import ReadGraph, ReadNetwork, Runnable, Subject
from lightning_lipschitz.extraction.trace import Trace, example, probe, require_values, trace
from lightning_lipschitz.extraction.undisturbed import READING, clean, name_of, tensors_of, undisturbed, unwrapped
from lightning_lipschitz.extraction.walk import Walk, walk, walked
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.graph.parts import measure

LARGEST_ENTRIES = 40_000_000  # of all explicit matrices: 320 MB
WIDEST_LAYER = 4096  # a dense eigenvalue problem of this size takes minutes


class Reader(Generic[Subject]):
    """nn.Module -> what a certificate speaks about; :class:`Extractor` and its siblings say in which form.

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
        self._trace: Trace | None = None
        self.traces = 0
        if at_once:
            self.network()

    def _form(self, read: ReadGraph) -> Runnable[Subject]:
        """The graph that was read in the form of this class."""
        raise NotImplementedError

    def network(self, weights: Mapping[str, torch.Tensor] | None = None) -> Subject:
        """The network, or the graph, with the weights of this moment, checked against the model on random inputs.

        Args:
            weights: tensors to use in place of the model's own, named as in its ``state_dict``; for instance averaged
                weights.

        Raises:
            As the constructor.
        """
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(weights, rewritten)
            traced, extraction = self._renewed(tensors)
            if extraction is None:
                extraction = self._extract(traced, tensors)
                self._check(traced, tensors, extraction, wide=False)
        return extraction.network

    def function(self, device: torch.device | str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a float64 function of (batch, input_size), with the weights of this moment."""
        return self.extract().function(device)

    def extract(self, weights: Mapping[str, torch.Tensor] | None = None) -> Runnable[Subject]:
        """The network together with its activation functions; checked only if the model had to be traced."""
        return self._read(weights)[1]

    def _read(self, weights: Mapping[str, torch.Tensor] | None) -> tuple[Trace, Runnable[Subject]]:
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(weights, rewritten)
            traced, extraction = self._renewed(tensors)
            return traced, self._extract(traced, tensors) if extraction is None else extraction

    def linearised(self, weights: Mapping[str, torch.Tensor] | None = None) -> Linearised:
        """The explicit matrices as differentiable functions of the parameters; ``weights`` as in :meth:`network`.

        Raises:
            NotLinearisedError: a weight scales what units give within one operator.
        """
        traced = self._read(weights)[0] if self._trace is None else self._trace
        return Linearised(traced, {**self._attributes(traced), **self._tensors(weights)}, self._name)

    def walked(self) -> Walk:
        """The walk over the trace with the weights of this moment: what every operator brought.

        It holds the weights in float64, and is not to be kept.

        Raises:
            As the constructor.
        """
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(None, rewritten)
            traced, _ = self._renewed(tensors)
            return walked(traced, {**self._attributes(traced), **tensors}, self._name)[0]

    def refresh(self) -> None:
        """Trace again if the model no longer computes what was traced; ``traces`` tells.

        Raises:
            As the constructor.
        """
        with undisturbed(self._model) as rewritten:
            self._renewed(self._tensors(None, rewritten))

    def _renewed(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Trace, Runnable[Subject] | None]:
        """Trace, if that was not done or the model no longer does what it did then, and check the reading widely.

        Returns:
            The trace; and what was read and checked, None where the trace that there was still holds.
        """
        if self._trace is not None:
            x = probe(example(self._model, self._example))
            with contextlib.suppress(Exception):  # a model that no longer runs has changed
                if execute(self._model, tensors, x).digest == self._trace.execution.digest:
                    return self._trace, None
        self._trace = None  # of another model, also where this one is refused
        traced = trace(self._model, self._example, tensors)
        extraction = self._extract(traced, tensors)
        self._check(traced, tensors, extraction, wide=True)
        self._trace = traced
        self.traces += 1
        return traced, extraction

    def _check(
        self, traced: Trace, tensors: Mapping[str, torch.Tensor], extraction: Runnable[Subject], *, wide: bool
    ) -> None:
        check(self._model, tensors, extraction, tuple(self._example.shape[1:]), traced, wide=wide)

    def _extract(self, traced: Trace, tensors: Mapping[str, torch.Tensor]) -> Runnable[Subject]:
        return self._form(walk(traced, {**self._attributes(traced), **tensors}, self._name))

    def _attributes(self, traced: Trace) -> dict[str, torch.Tensor]:
        """Tensors that are plain attributes of a module, as they are now."""
        found = {}
        for name in set(traced.tensors.values()):
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
        return self.__dict__ | {"_trace": None}


class Extractor(Reader[Network]):
    """nn.Module -> Network: explicit matrices. See :class:`Reader` for the arguments.

    Raises:
        ModelSizeError: they would not fit.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> Extractor(model, torch.zeros(1, 2)).network().sizes
        (2, 3)
    """

    def _form(self, read: ReadGraph) -> ReadNetwork:
        return read.lowered()


class GraphExtractor(Reader[Graph]):
    """nn.Module -> Graph: no matrix larger than the model's own weights is formed. Arguments as for :class:`Reader`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> [type(node).__name__ for node in GraphExtractor(model, torch.zeros(1, 3, 64, 64)).network().nodes]
        ['Input', 'Convolution', 'Elementwise']
    """

    def _form(self, read: ReadGraph) -> ReadGraph:
        return read

    def unfolded(self) -> Graph:
        """The graph with normalisations as nodes of their own, not checked: to see what folding them gains."""
        with undisturbed(self._model) as rewritten:
            tensors = self._tensors(None, rewritten)
            traced, _ = self._renewed(tensors)
            return walk(traced, {**self._attributes(traced), **tensors}, self._name, folded=False).network


class RoutedExtractor(Reader[Network | Graph]):
    """nn.Module -> Network where its explicit matrices fit, else Graph. Arguments as for :class:`Reader`.

    Example:
        >>> small, large = torch.nn.Linear(2, 3), torch.nn.Conv2d(3, 64, 3)
        >>> type(RoutedExtractor(small, torch.zeros(1, 2)).network()).__name__
        'Network'
        >>> type(RoutedExtractor(large, torch.zeros(1, 3, 32, 32)).network()).__name__
        'Graph'
    """

    def _form(self, read: ReadGraph) -> Runnable[Network | Graph]:
        if not fits(read.network):
            return read
        try:
            return read.lowered()
        except ModelSizeError:
            return read


def reader_for(method: str) -> type[Reader[Network | Graph]]:
    """The class that reads a model in the form that a method bounds."""
    forms: dict[str, type[Reader[Network | Graph]]] = {"auto": RoutedExtractor, "composed": GraphExtractor}
    return forms.get(method, Extractor)


def fits(graph: Graph) -> bool:
    """Whether the explicit matrices of a model are small enough to be formed, and its layers to be optimised over."""
    size = measure(graph)
    return size is None or (size.entries <= LARGEST_ENTRIES and max(size.widths, default=0) <= WIDEST_LAYER)


def extract(model: torch.nn.Module, example_input: Any) -> Network:
    """The network of a model, once. See :class:`Extractor`.

    Example:
        >>> extract(torch.nn.Linear(2, 1), torch.zeros(1, 2)).layers
        ()
    """
    return Extractor(model, example_input).network()
