"""Linearised: the matrices of a model's network as differentiable functions of its parameters.

The traced graph itself is run, in float64 and under autograd, with the output of every activation replaced by a fresh
input. What is left is affine in (x, z_1, ..., z_K), so the images of zero and of the unit vectors are all columns of
all W_kj at once: convolutions, batch norm, weight norm and shared weights need no rule of their own. Of the operators
that bring units, the nodes that their rules made are run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.certificate.explicit import lower
from lightning_lipschitz.extraction.location import display_name, path
from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.reading import LIMIT
from lightning_lipschitz.extraction.trace import Trace
from lightning_lipschitz.extraction.units import NotLinearisedError, UnitOperator, has_units
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.extraction.walk import walked
from lightning_lipschitz.graph import Graph

_DIGITS, _LONGEST = 20, 480  # binary, of the length of unit vectors: beyond that of the largest bias, and at most
_CHUNK = 512  # pairs of samples run at once


class Linearised:
    """Tensors by name -> (A, C): the rows of all pre-activations and of the output over the sources (x, z_1 ... z_K).

    Args:
        trace: of the model.
        weights: every tensor that the trace names, as they are now; they decide which units are affine.
        prefix: dotted name of the model inside a larger one.

    Raises:
        NotLinearisedError: a weight scales, within one operator, what its units give.
        LipschitzError: as the extraction.
    """

    def __init__(self, trace: Trace, weights: Mapping[str, Tensor], prefix: str = "") -> None:
        steps, output = walked(trace, weights, prefix)
        lowered = lower(Graph(tuple(steps.builder.nodes)), 0, output, limit=LIMIT)
        self._trace, self._weights = trace, {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.sizes = list(lowered.network.sizes)
        self._operators = {node: UnitOperator(steps, node, lowered) for node in steps.made if has_units(steps, node)}
        self._reads = {node: lowered.depends(_nodes(value)) for node, value in steps.values.items()}

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
        zeros = [torch.zeros(self._trace.batch, n, dtype=torch.float64, device=device) for n in self.sizes]
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
        for node in self._trace.nodes:
            if node.op == "output":
                if only is None or only in self._reads[node.args[0]]:  # type: ignore[index]
                    found[len(sources)] = values[node.args[0]].reshape(len(sources[0]), -1)  # type: ignore[index]
                return found
            operator = self._operators.get(node)
            if operator is not None and (only is None or only in operator.reads):
                values[node] = operator(values, sources, found, only)
            elif operator is None and (only is None or only in self._reads[node]):
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
        return _call(node, args, kwargs)

    def _placeholder(self, node: torch.fx.Node, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if node.name == self._trace.inputs:
            return x.reshape(len(x), *self._trace.shape)
        name = self._trace.tensors.get(node.name, node.name)
        return tensors[name] if name in tensors else _double(self._trace.constants[node.name], x.device)


def _length(offsets: Iterable[Tensor]) -> Tensor:
    """A power of two far above all offsets, found where they are."""
    largest = torch.stack([each.detach().abs().amax() for each in offsets if each.numel()]).amax()
    exponent = torch.frexp(largest).exponent.clamp(max=_LONGEST) + _DIGITS
    return torch.where(largest.isfinite(), torch.ldexp(torch.ones_like(largest), exponent), 1.0)


def _nodes(value: Any) -> list[int]:
    """The nodes of the graph that a value shows."""
    return [each.node for each in tree_leaves(value) if isinstance(each, Value)]


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
