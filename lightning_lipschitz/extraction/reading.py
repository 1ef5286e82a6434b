"""What is read of a model: a graph or a network, and what it takes to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_lipschitz.certificate.explicit import Origin, lower
from lightning_lipschitz.graph import (
    Along,
    Concatenation,
    Convolution,
    Elementwise,
    Extremum,
    Gather,
    Graph,
    Input,
    Node,
    Scaling,
    Sum,
    VectorUnits,
)
from lightning_lipschitz.graph.arrays import Array
from lightning_lipschitz.graph.network import Affine, Network

Run = Callable[..., Tensor]
Known = Callable[[npt.NDArray[Any]], Tensor]

LIMIT = 2**30  # bytes, of all matrices of a network together; reading and proving hold a few copies


def on_device(device: torch.device | str) -> Known:
    """Arrays -> tensors on a device, each copied once.

    Arrays are told apart by identity, so they are held as long as the function: another one could get the number of one
    that is gone.

    Example:
        >>> known = on_device("cpu")
        >>> [known(np.array([k])).item() for k in range(5)]
        [0, 1, 2, 3, 4]
    """
    copies: dict[int, tuple[npt.NDArray[Any], Tensor]] = {}

    def known(values: npt.NDArray[Any]) -> Tensor:
        if id(values) not in copies:
            copies[id(values)] = values, torch.tensor(values, device=device)
        return copies[id(values)][1]

    return known


Subject = TypeVar("Subject", bound=Network | Graph, covariant=True)


class Runnable(Generic[Subject]):
    """What was read of a model, and can be run in its place.

    Attributes:
        network: what a certificate speaks about.
        resolution: relative rounding of the coarsest arithmetic that the model itself uses in making its weights; zero
            when they were only read.
    """

    network: Subject
    resolution: float

    def _run(self, x: Tensor, known: Known, blur: Run) -> Tensor:
        raise NotImplementedError

    def __call__(self, inputs: Array, noise: float = 0.0) -> Array:
        """The outputs, shape (batch, outputs), for inputs of shape (batch, input_size), float64.

        With ``noise``, the factors and the result of every product, and every bias, are off by a random relative amount
        up to it: what rounding does, but visible (Monte Carlo arithmetic).
        """
        rng = np.random.default_rng(0)

        def blur(values: Tensor) -> Tensor:
            if not noise:
                return values
            return values * (1.0 + noise * torch.from_numpy(rng.uniform(-1.0, 1.0, size=tuple(values.shape))))

        with torch.no_grad():
            return self._run(torch.from_numpy(np.ascontiguousarray(inputs)), self._copies, blur).numpy()

    @cached_property
    def _copies(self) -> Known:
        return on_device("cpu")

    def function(self, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """A differentiable torch function of (batch, ...) to (batch, outputs), in float64 on a device."""
        known = on_device(device)
        return lambda x: self._run(x.to(device).flatten(1), known, lambda values: values)


@dataclass(frozen=True, eq=False)
class ReadNetwork(Runnable[Network]):
    """A network and what its units compute.

    Args:
        network: the answer.
        units: one a layer: pre-activations, shape (batch, units), to what the units give.
        resolution: see :class:`Runnable`.
    """

    network: Network
    units: tuple[Run, ...]
    resolution: float

    def _run(self, x: Tensor, known: Known, blur: Run) -> Tensor:
        sources = [x]
        for layer, units in zip(self.network.layers, self.units, strict=True):
            sources.append(units(_affine(layer.affine, sources, known, blur)))
        return _affine(self.network.output, sources, known, blur)


@dataclass(frozen=True, eq=False)
class ReadGraph(Runnable[Graph]):
    """A graph and what it takes to compute its outputs.

    Args:
        network: the answer; what is run is made from its nodes, so that agreement with a model says something of it.
        biases: by node, added to its output.
        functions: by node, what units compute.
        resolution: see :class:`Runnable`.
    """

    network: Graph
    biases: Mapping[int, Array]
    functions: Mapping[int, Run]
    resolution: float

    def lowered(self) -> ReadNetwork:
        """The explicit matrices.

        Raises:
            ModelSizeError: they would not fit.
            NonFiniteError: products of the weights overflow.
        """

        def evaluate(number: int, y: Array) -> Array:
            every = Origin(number, np.arange(len(y)))
            return self.units(every)(torch.from_numpy(y)[None])[0].numpy()

        with np.errstate(over="ignore", invalid="ignore"):
            made = lower(self.network, biases=self.biases, evaluate=evaluate, limit=LIMIT)
        return ReadNetwork(made.network, tuple(map(self.units, made.origins)), self.resolution)

    def units(self, origin: Origin) -> Run:
        """What the units of a layer compute of their own pre-activations."""
        node = self.network.nodes[origin.node]
        if isinstance(node, Extremum):
            return torch.relu
        function = self.functions[origin.node]
        if isinstance(node, VectorUnits):
            return lambda y: _spread(node, function(y))
        if len(origin.entries) == node.size:
            return function
        entries = torch.from_numpy(origin.entries)

        def some(y: Tensor) -> Tensor:
            every = y.new_zeros(len(y), node.size).index_copy(1, entries.to(y.device), y)
            return function(every)[:, entries.to(y.device)]

        return some

    def _run(self, x: Tensor, known: Known, blur: Run) -> Tensor:
        last = {source: number for number, node in enumerate(self.network.nodes) for source in node.sources}
        values: dict[int, Tensor] = {}
        for number, node in enumerate(self.network.nodes):
            given = [values[source] for source in node.sources]
            for source in set(node.sources):
                if last[source] == number:
                    del values[source]
            values[number] = x if isinstance(node, Input) else self._value(number, node, given, known, blur)
        return values[len(self.network.nodes) - 1]

    def _value(self, number: int, node: Node, given: list[Tensor], known: Known, blur: Run) -> Tensor:
        if isinstance(node, (Elementwise, VectorUnits)):
            return self.functions[number](*given)
        rounds = isinstance(node, (Convolution, Along, Scaling))
        made = run_node(node, known, *(map(blur, given) if rounds else given))
        made = blur(made) if rounds else made
        if number in self.biases:
            made = made + blur(known(self.biases[number]))
        return made


def _affine(affine: Affine, sources: list[Tensor], known: Known, blur: Run) -> Tensor:
    total = blur(known(affine.bias)).expand(len(sources[0]), affine.size)
    for term in affine.terms:
        total = total + blur(blur(sources[term.source]) @ known(term.matrix).mT)
    return total


def _spread(node: VectorUnits, z: Tensor) -> Tensor:
    """The results with the zeros behind them that are not given on."""
    return F.pad(z[..., None], (0, node.width - 1)).flatten(-2) if node.scalar else z


def _along(node: Along, known: Known, x: Tensor) -> Tensor:
    parts = x.reshape(len(x) * node.before, node.matrix.shape[1], node.after)
    return (known(node.matrix) @ parts).reshape(len(x), -1)


def _gather(node: Gather, known: Known, x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(len(x), 1)], dim=1)[:, known(node.indices)]  # number -1 is the last one, zero


def _convolution(node: Convolution, known: Known, x: Tensor) -> Tensor:
    kernel = known(node.kernel)
    if node.transposed:
        return _transposed(node, kernel, x)
    images = x.reshape(len(x), *node.image)
    pads = [side for pair in reversed(node.padding) for side in pair]
    images = F.pad(images, pads, mode="circular" if node.circular else "constant") if any(pads) else images
    run: Run = (F.conv1d, F.conv2d, F.conv3d)[node.dims - 1]
    return run(images, kernel, None, node.stride, 0, node.dilation, node.groups).flatten(1)


def _transposed(node: Convolution, kernel: Tensor, x: Tensor) -> Tensor:
    run: Run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[node.dims - 1]
    geometry = zip(node.lengths, node.result[1:], node.stride, node.padding, node.dilation, node.taps, strict=True)
    extra = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, (p, _), d, k in geometry]
    pads = [before for before, _ in node.padding]
    images = x.reshape(len(x), *node.result)
    return run(images, kernel, None, node.stride, pads, extra, node.groups, node.dilation).flatten(1)


_RUNS: dict[type[Node], Run] = {
    Along: _along,
    Gather: _gather,
    Convolution: _convolution,
    Scaling: lambda node, known, x: x * known(node.factors),
    Sum: lambda node, known, *given: sum(given[1:], start=given[0]),
    Extremum: lambda node, known, x, y: torch.minimum(x, y) if node.smallest else torch.maximum(x, y),
    Concatenation: lambda node, known, *given: torch.cat(given, dim=1),
}


def run_node(node: Node, known: Known, *given: Tensor) -> Tensor:
    """What a node that needs no function makes of its sources, shape (batch, n) each, without a bias."""
    return _RUNS[type(node)](node, known, *given)
