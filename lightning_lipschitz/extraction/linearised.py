"""Linearised: the matrices of a model's network as differentiable functions of its parameters.

The traced graph itself is run, in float64 and under autograd, with the output of every activation replaced by a fresh
input. What is left is affine in (x, z_1, ..., z_K), so the images of zero and of the unit vectors are all columns of
all W_kj at once: convolutions, batch norm, weight norm and shared weights need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.extraction.interpret import numbering
from lightning_lipschitz.extraction.location import display_name, path
from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.places import NotLinearisedError, RecordedWalk
from lightning_lipschitz.extraction.trace import Graph
from lightning_lipschitz.extraction.traced import Traced

_DIGITS, _LONGEST = 20, 480  # binary, of the length of unit vectors: beyond that of the largest bias, and at most
_CHUNK = 512  # pairs of samples run at once


class Linearised:
    """Tensors by name -> (A, C): the rows of all pre-activations and of the output over the sources (x, z_1 ... z_K).

    Args:
        graph: of the model.
        weights: every tensor that the graph names, as they are now; they decide which units are affine.
        prefix: dotted name of the model inside a larger one.

    Raises:
        NotLinearisedError: a function of two tensors, or one whose units are no copies of entries.
        LipschitzError: as the extraction.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], prefix: str = "") -> None:
        walk = RecordedWalk(graph, weights, prefix)
        number = numbering(walk.affine(), walk.layers)
        self._graph, self._weights = graph, {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.sizes = [int(np.prod(graph.shape)), *(walk.layers[k - 1].units.alpha.size for k in number if k)]
        self._places = {node: walk.place(node, number) for node in walk.created}
        self._reads = {node: _sources(value, number) for node, value in walk.values.items()}

    @property
    def width(self) -> int:
        """Entries of (x, z_1, ..., z_K)."""
        return sum(self.sizes)

    def __call__(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows for these tensors, float64, differentiable.

        Args:
            tensors: by name; those that are missing are as they were.
        """
        device = next(iter(tensors.values())).device
        known = {name: _double(tensor, device) for name, tensor in {**self._weights, **tensors}.items()}
        zeros = [torch.zeros(self._graph.batch, n, dtype=torch.float64, device=device) for n in self.sizes]
        values: dict[torch.fx.Node, Any] = {}
        origin = self._run(known, zeros, values)
        columns = [self._columns(k, known, zeros, values, origin) for k in range(len(zeros))]
        stack = [torch.cat([block[j] for block in columns], dim=1) for j in range(1, len(zeros) + 1)]
        return torch.cat([zeros[0].new_zeros(0, self.width), *stack[:-1]]), stack[-1]

    def _columns(
        self,
        k: int,
        tensors: Mapping[str, Tensor],
        zeros: Sequence[Tensor],
        values: Mapping[torch.fx.Node, Any],
        origin: Mapping[int, Tensor],
    ) -> dict[int, Tensor]:
        """W_jk for every layer j, and for the output as the last: images of unit vectors less that of zero.

        Both samples of a batch carry unit vectors of their own. What does not read source k is not run again. The unit
        vectors are long: beside large biases the images of short ones would lose their digits.
        """
        batch, n = zeros[k].shape
        pairs = -(-n // batch)
        basis = torch.eye(pairs * batch, n, dtype=torch.float64, device=zeros[k].device).reshape(pairs, batch, n)

        def run(block: Tensor) -> dict[int, Tensor]:
            return self._run(tensors, [*zeros[:k], block, *zeros[k + 1 :]], dict(values), k)

        length = _length(origin.values())
        images = torch.func.vmap(run, chunk_size=_CHUNK)(length * basis)
        blocks = {j: zeros[0].new_zeros(image.shape[1], n) for j, image in origin.items()}
        return blocks | {j: (image.flatten(0, 1)[:n] - origin[j][0]).mT / length for j, image in images.items()}

    def _run(
        self,
        tensors: Mapping[str, Tensor],
        sources: Sequence[Tensor],
        values: dict[torch.fx.Node, Any],
        only: int | None = None,
    ) -> dict[int, Tensor]:
        """Pre-activations by layer, and the output as the last, shape (batch, ...), with these values of the sources.

        Args:
            tensors: by name.
            sources: shape (batch, n_k) each.
            values: of the nodes; filled.
            only: the source that is not zero; nodes that do not read it have their values.
        """
        found: dict[int, Tensor] = {}
        for node in self._graph.nodes:
            if node.op == "output":
                if only is None or only in self._reads[node.args[0]]:  # type: ignore[index]
                    found[len(sources)] = values[node.args[0]].reshape(len(sources[0]), -1)  # type: ignore[index]
                return found
            place = self._places.get(node)
            if place and place.number and (only is None or only in self._reads[place.before]):
                found[place.number] = place.read(values[place.before])
            if only is not None and only not in self._reads[node]:
                continue
            values[node] = self._value(node, tensors, sources, values)
        raise RuntimeError("a graph without an output")

    def _value(
        self,
        node: torch.fx.Node,
        tensors: Mapping[str, Tensor],
        sources: Sequence[Tensor],
        values: Mapping[torch.fx.Node, Any],
    ) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node, tensors, sources[0])
        device = sources[0].device
        args, kwargs = tree_map(lambda each: _resolved(each, values, device), (node.args, node.kwargs))
        place = self._places.get(node)
        if place is None:
            return _call(node, args, kwargs)
        return place.result(sources[place.number], partial(_call, node, args, kwargs))

    def _placeholder(self, node: torch.fx.Node, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if node.name == self._graph.inputs:
            return x.reshape(len(x), *self._graph.shape)
        name = self._graph.tensors.get(node.name, node.name)
        return tensors[name] if name in tensors else _double(self._graph.constants[node.name], x.device)


def _length(offsets: Iterable[Tensor]) -> Tensor:
    """A power of two far above all offsets, found where they are."""
    largest = torch.stack([each.detach().abs().amax() for each in offsets if each.numel()]).amax()
    exponent = torch.frexp(largest).exponent.clamp(max=_LONGEST) + _DIGITS
    return torch.where(largest.isfinite(), torch.ldexp(torch.ones_like(largest), exponent), 1.0)


def _sources(value: Any, number: Mapping[int, int]) -> frozenset[int]:
    """Which sources of the network a value depends on."""
    parts = [each for each in tree_leaves(value) if isinstance(each, Traced)]
    return frozenset(number[k] for part in parts for k in part.expression.terms if k in number)


def _resolved(value: Any, values: Mapping[torch.fx.Node, Any], device: torch.device) -> Any:
    if isinstance(value, torch.fx.Node):
        return values[value]
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    return device if isinstance(value, torch.device) else value


def _call(node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
    """The operator; a view of a tensor laid out otherwise than in the trace has to copy."""
    name = operator_name(node.target)
    if name in ("view", "_unsafe_view"):
        return args[0].reshape(args[1])
    if name == "sym_size":
        return args[0].shape[args[1]]
    if name == "_native_batch_norm_legit_no_training":  # has no rule for batches of batches
        x, weight, bias, mean, variance, _, eps = args
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), None, None
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError, TypeError) as error:
        raise NotLinearisedError(path(node), display_name(node)) from error


def _double(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float64) if tensor.is_floating_point() else tensor.to(device)
