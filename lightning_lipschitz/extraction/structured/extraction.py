"""StructuredExtraction: a graph that can be run, with its own kernels, matrices and indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_lipschitz.network import Array
from lightning_lipschitz.structured import (
    Along,
    Bounded,
    Concatenation,
    Convolution,
    Elementwise,
    Gather,
    Graph,
    Input,
    Node,
    Scaling,
    Sum,
)

Run = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class StructuredExtraction:
    """A graph and what it takes to compute its outputs.

    Args:
        network: the answer; what is run is made from its nodes, so that agreement with a model says something of it.
        biases: by node, added to its output.
        functions: by node, what units and bounded blocks compute.
        resolution: relative rounding of the coarsest arithmetic that the model itself uses in making its weights.
    """

    network: Graph
    biases: Mapping[int, Array]
    functions: Mapping[int, Run]
    resolution: float

    def __call__(self, inputs: Array, noise: float = 0.0) -> Array:
        """The outputs, shape (batch, outputs), for inputs of shape (batch, input_size), float64.

        With ``noise``, what linear nodes take and give, and every bias, is off by a random relative amount up to it.
        """
        rng = np.random.default_rng(0)

        def blur(values: Tensor) -> Tensor:
            shifts = torch.from_numpy(rng.uniform(-1.0, 1.0, size=tuple(values.shape)))
            return values * (1.0 + noise * shifts) if noise else values

        with torch.no_grad():
            return self._run(torch.from_numpy(np.ascontiguousarray(inputs)), "cpu", blur).numpy()

    def function(self, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """The same as a differentiable torch function of (batch, input_size)."""
        return lambda x: self._run(x.flatten(1), device, lambda values: values)

    def _run(self, x: Tensor, device: torch.device | str, blur: Callable[[Tensor], Tensor]) -> Tensor:
        last = {source: number for number, node in enumerate(self.network.nodes) for source in node.sources}
        values: dict[int, Tensor] = {}
        for number, node in enumerate(self.network.nodes):
            given = [values[source] for source in node.sources]
            for source in set(node.sources):
                if last[source] == number:
                    del values[source]
            values[number] = x if isinstance(node, Input) else self._value(number, node, given, blur)
        return values[len(self.network.nodes) - 1]

    def _value(self, number: int, node: Node, given: list[Tensor], blur: Callable[[Tensor], Tensor]) -> Tensor:
        if isinstance(node, (Elementwise, Bounded)):
            return self.functions[number](*given)
        rounds = isinstance(node, (Convolution, Along, Scaling))
        made = _RUNS[type(node)](node, *(map(blur, given) if rounds else given))
        made = blur(made) if rounds else made
        if number in self.biases:
            made = made + blur(torch.as_tensor(self.biases[number], device=made.device))
        return made


def _known(values: Array, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)


def _along(node: Along, x: Tensor) -> Tensor:
    parts = x.reshape(len(x) * node.before, node.matrix.shape[1], node.after)
    return (_known(node.matrix, x) @ parts).reshape(len(x), -1)


def _gather(node: Gather, x: Tensor) -> Tensor:
    extended = torch.cat([x, x.new_zeros(len(x), 1)], dim=1)
    indices = torch.tensor(np.where(node.indices < 0, x.shape[1], node.indices), device=x.device)
    return extended[:, indices]


def _convolution(node: Convolution, x: Tensor) -> Tensor:
    kernel = _known(node.kernel, x)
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
    Scaling: lambda node, x: x * _known(node.factors, x),
    Sum: lambda node, *given: sum(given[1:], start=given[0]),
    Concatenation: lambda node, *given: torch.cat(given, dim=1),
}
