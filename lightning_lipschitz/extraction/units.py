"""Operators that bring units, run with what their units give replaced by the values of sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from lightning_lipschitz.graph import Along, Convolution, Elementwise, Extremum, Node, Scaling, VectorUnits

_UNITS = (Elementwise, VectorUnits, Extremum)


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
        lowered: the graph of the walk as a network, whose layers are the sources.

    Attributes:
        reads: the sources that the operator's arguments or results depend on.

    Raises:
        NotLinearisedError: a weight of the operator became part of these nodes.
    """

    def __init__(self, steps: Walk, node: torch.fx.Node, lowered: Lowered) -> None:
        builder = steps.builder
        self._nodes = {number: builder.nodes[number] for number in steps.made[node]}
        self._biases = {number: builder.biases[number] for number in self._nodes if number in builder.biases}
        weights = [each for each in tree_leaves(steps.arguments(node)) if isinstance(each, Tensor)]
        scaled = any(isinstance(each, (Scaling, Along, Convolution)) for each in self._nodes.values())
        if any(each.is_floating_point() for each in weights) and (scaled or self._biases):
            raise NotLinearisedError(steps.full(path(node)), display_name(node))
        given = [each for each in node.all_input_nodes if isinstance(steps.values[each], Value)]
        self._inputs = [(each, steps.values[each].node, *_places(steps.values[each])) for each in given]
        layers = {origin.node: (k, origin.entries) for k, origin in enumerate(lowered.origins, 1)}
        self._units = {}
        for number, each in self._nodes.items():
            if isinstance(each, _UNITS):
                layer, entries = layers.get(number, (0, None))
                reads = lowered.depends(each.sources)
                self._units[number] = _UnitNode(each, layer, entries, reads, _affine(steps, number))
        self._result = tree_map(_shown, steps.values[node])
        ends = [each.node for each in tree_leaves(steps.values[node]) if isinstance(each, Value)]
        self.reads = lowered.depends([*ends, *(number for _, number, *_ in self._inputs)])
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
        device = sources[0].device
        known = self._known[device] = self._known.get(device) or on_device(device)
        values: dict[int, Tensor] = {}
        for node, number, positions, shown in self._inputs:
            entries = tensors[node].reshape(-1)[known(positions)]
            before = values.get(number)
            values[number] = torch.where(known(shown), entries, torch.zeros_like(entries) if before is None else before)
        for number, each in self._nodes.items():
            given = [values[source] for source in each.sources]
            units = self._units.get(number)
            if units is not None:
                if units.layer and (only is None or only in units.reads):
                    found[units.layer] = units.chosen(given, known)
                values[number] = units.result(given, sources[units.layer] if units.layer else None, known)
            else:
                made = run_node(each, known, *given)
                values[number] = made + known(self._biases[number]) if number in self._biases else made
        return tree_map(lambda each: each.of(values, known) if isinstance(each, _Shown) else each, self._result)


@dataclass(frozen=True, eq=False)
class _EqualSlopes:
    """Units of equal slopes.

    Attributes:
        slopes, offsets: what they do; zero for the others.
        place: number of the others among themselves, -1 for the affine ones.
    """

    slopes: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.float64]
    place: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _UnitNode:
    """A node of units.

    Attributes:
        node: of the graph.
        layer: number of the layer in the network, from 1; 0 where no one reads it.
        entries: which of the node's units the layer has; None for none.
        reads: sources that the pre-activations depend on.
        affine: the units that are part of no layer, where there are such.
    """

    node: Node
    layer: int
    entries: npt.NDArray[np.int64] | None
    reads: frozenset[int]
    affine: _EqualSlopes | None

    def pre(self, given: Sequence[Tensor]) -> Tensor:
        """The pre-activations of all units."""
        if isinstance(self.node, Extremum):
            return given[0] - given[1] if self.node.smallest else given[1] - given[0]
        return given[0]

    def chosen(self, given: Sequence[Tensor], known: Known) -> Tensor:
        """The pre-activations of the layer."""
        pre = self.pre(given)
        return pre if self.entries is None or len(self.entries) == pre.shape[1] else pre[:, known(self.entries)]

    def result(self, given: Sequence[Tensor], fresh: Tensor | None, known: Known) -> Tensor:
        """What the node gives if its layer gives ``fresh``; None stands for zeros."""
        pre = self.pre(given)
        if self.affine is not None:
            rest, place = pre * known(self.affine.slopes) + known(self.affine.offsets), known(self.affine.place)
            return torch.where(place < 0, rest, torch.zeros_like(pre) if fresh is None else fresh[:, place])
        fresh = torch.zeros_like(pre) if fresh is None else fresh
        if isinstance(self.node, Extremum):
            return given[0] - fresh if self.node.smallest else given[0] + fresh
        return fresh[:, :: self.node.width] if isinstance(self.node, VectorUnits) and self.node.scalar else fresh


@dataclass(frozen=True, eq=False)
class _Shown:
    """A tensor of entries of a node."""

    node: int
    index: npt.NDArray[np.int64]

    def of(self, values: Mapping[int, Tensor], known: Known) -> Tensor:
        return values[self.node].reshape(-1)[known(self.index)]


def _shown(each: Any) -> Any:
    return _Shown(each.node, each.index.numpy()) if isinstance(each, Value) else each


def _places(value: Value) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Shape (batch, size): a position in the flattened tensor of every entry of the node, and whether there is one."""
    flat = np.full(value.batch * value.size, -1)
    flat[value.index.reshape(-1).numpy()] = np.arange(value.index.numel())
    positions = flat.reshape(value.batch, value.size)
    return np.maximum(positions, 0), positions >= 0


def _affine(steps: Walk, number: int) -> _EqualSlopes | None:
    node = steps.builder.nodes[number]
    if not isinstance(node, Elementwise) or not np.any(node.alpha == node.beta):
        return None
    alpha, beta = (np.broadcast_to(each, node.size) for each in (node.alpha, node.beta))
    equal = alpha == beta
    offsets = steps.builder.functions[number](torch.zeros(1, node.size, dtype=torch.float64))[0].numpy()
    place = np.where(equal, -1, np.cumsum(~equal) - 1)
    return _EqualSlopes(np.where(equal, alpha, 0.0), np.where(equal, offsets, 0.0), place)
