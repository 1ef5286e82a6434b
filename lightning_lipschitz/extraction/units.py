"""Operators that bring units, run with what their units give replaced by the values of sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.certificate.explicit import Lowered
from lightning_lipschitz.extraction.location import display_name, path
from lightning_lipschitz.extraction.reading import Known, on_device, run_node
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.extraction.walk import Walk
from lightning_lipschitz.graph import Along, Convolution, Elementwise, Extremum, Graph, Node, Scaling, VectorUnits

_UNITS = (Elementwise, VectorUnits, Extremum)
_NONE = np.zeros(0, dtype=np.int64)


class NotLinearisedError(Exception):
    """An operator whose matrices depend on a weight in its own way. The projection names it to the user."""

    def __init__(self, path: str, operator: str) -> None:
        super().__init__(f"{path}: {operator}")
        self.path, self.operator = path, operator


def has_units(steps: Walk, node: torch.fx.Node) -> bool:
    """Whether the rule of an operator made units."""
    return any(isinstance(steps.builder.nodes[number], _UNITS) for number in steps.made[node])


class UnitOperator:
    """The nodes that the rule of one operator made, to be run from the tensors that the operator reads.

    Args:
        steps: the walk.
        node: of the trace.
        graph: that the walk made.
        lowered: the graph as a network, whose layers are the sources.

    Attributes:
        reads: the sources that the operator's arguments or results depend on.

    Raises:
        NotLinearisedError: a weight of the operator became part of these nodes.
    """

    def __init__(self, steps: Walk, node: torch.fx.Node, graph: Graph, lowered: Lowered) -> None:
        self._nodes = {number: graph.nodes[number] for number in steps.made[node]}
        self._biases = {
            number: steps.builder.biases[number] for number in self._nodes if number in steps.builder.biases
        }
        weights = [each for each in tree_leaves(steps.arguments(node)) if isinstance(each, Tensor)]
        scaled = [each for each in self._nodes.values() if isinstance(each, (Scaling, Along, Convolution))]
        if any(each.is_floating_point() for each in weights) and (scaled or self._biases):
            raise NotLinearisedError(steps.full(path(node)), display_name(node))
        given = [each for each in node.all_input_nodes if isinstance(steps.values[each], Value)]
        self._inputs = [(each, steps.values[each].node, *_places(steps.values[each])) for each in given]
        self._result = steps.values[node]
        self._layers = {origin.node: (k, origin.entries) for k, origin in enumerate(lowered.origins, 1)}
        self._affine = {
            number: _affine(each, steps.builder.functions[number])
            for number, each in self._nodes.items()
            if isinstance(each, Elementwise) and bool(np.any(each.alpha == each.beta))
        }
        self._depends = lowered.reads
        ends = [number for _, number, *_ in self._inputs]
        ends += [each.node for each in tree_leaves(self._result) if isinstance(each, Value)]
        self.reads = frozenset[int]().union(*(lowered.reads.get(number, frozenset()) for number in ends))
        self._known: dict[torch.device, Known] = {}

    def __call__(
        self,
        tensors: Mapping[torch.fx.Node, Any],
        sources: Sequence[Tensor],
        found: dict[int, Tensor],
        only: int | None = None,
    ) -> Any:
        """The operator's result; the pre-activations of its layers are put into ``found``.

        Args:
            tensors: values of the trace's nodes.
            sources: shape (batch, n_k) each.
            found: by layer, shape (batch, n_k); those alone that depend on the source ``only``, if it is given.
            only: number of a source.
        """
        known = self._known.setdefault(sources[0].device, on_device(sources[0].device))
        values: dict[int, Tensor] = {}
        for node, number, positions, shown in self._inputs:
            entries = tensors[node].reshape(-1)[known(positions)]
            before = values.get(number)
            values[number] = torch.where(known(shown), entries, torch.zeros_like(entries) if before is None else before)
        for number, each in self._nodes.items():
            given = [values[source] for source in each.sources]
            if isinstance(each, _UNITS):
                pre = self._pre(each, given)
                depends = frozenset[int]().union(*(self._depends.get(s, frozenset()) for s in each.sources))
                k, entries = self._layers.get(number, (0, _NONE))
                if k and (only is None or only in depends):
                    found[k] = pre if len(entries) == pre.shape[1] else pre[:, known(entries)]
                fresh = sources[k] if k else None
                values[number] = self._units(number, each, given, pre, fresh, known)
            else:
                made = run_node(each, known, *given)
                values[number] = made + known(self._biases[number]) if number in self._biases else made
        return tree_map(lambda each: _shown(each, values, known), self._result)

    @staticmethod
    def _pre(node: Node, given: Sequence[Tensor]) -> Tensor:
        if isinstance(node, Extremum):
            return given[0] - given[1] if node.smallest else given[1] - given[0]
        return given[0]

    def _units(
        self, number: int, node: Node, given: Sequence[Tensor], pre: Tensor, fresh: Tensor | None, known: Known
    ) -> Tensor:
        """What the node gives if its units give ``fresh``; None stands for zeros."""
        if number in self._affine:
            slopes, offsets, place = self._affine[number]
            rest = pre * known(slopes) + known(offsets)
            zero = torch.zeros_like(pre)
            return torch.where(known(place) < 0, rest, zero if fresh is None else fresh[:, known(place)])
        fresh = torch.zeros_like(pre) if fresh is None else fresh
        if isinstance(node, Extremum):
            return given[0] - fresh if node.smallest else given[0] + fresh
        return fresh[:, :: node.width] if isinstance(node, VectorUnits) and node.scalar else fresh


def _places(value: Value) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Shape (batch, size): a position in the flattened tensor of every entry of the node, and whether there is one."""
    flat = np.full(value.batch * value.size, -1)
    flat[value.index.reshape(-1).numpy()] = np.arange(value.index.numel())
    positions = flat.reshape(value.batch, value.size)
    return np.maximum(positions, 0), positions >= 0


def _affine(node: Elementwise, function: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Slopes and offsets of the affine units, and of the others the number among themselves, -1 for the affine ones."""
    alpha, beta = (np.broadcast_to(each, node.size) for each in (node.alpha, node.beta))
    place = np.where(alpha == beta, -1, np.cumsum(alpha != beta) - 1)
    offsets = function(torch.zeros(1, node.size, dtype=torch.float64))[0].numpy()
    return np.where(alpha == beta, alpha, 0.0), np.where(alpha == beta, offsets, 0.0), place


def _shown(each: Any, values: Mapping[int, Tensor], known: Known) -> Any:
    if not isinstance(each, Value):
        return each
    return values[each.node].reshape(-1)[known(each.index.numpy())]
