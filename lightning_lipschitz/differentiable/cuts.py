"""A traced model cut at the operators that bring units, and where an affine value goes on to several pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lightning_lipschitz.differentiable.calls import Call, plain, without_constants
from lightning_lipschitz.differentiable.pieces import Piece, Source
from lightning_lipschitz.differentiable.unit_bounds import UnitBounds, unit_bounds
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.extraction.units import has_units
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.extraction.walk import Walk


@dataclass(frozen=True, eq=False)
class Cut:
    """What a traced model is made of.

    Args:
        inputs: the node of the model's input.
        output: the node of its output.
        outputs: how many numbers it has.
        stages: pieces and operators with units, in order of execution.
        known: placeholders of parameters and the like, and the operators on them, in order.
        shaped: values that depend on the shape of the input alone.
    """

    inputs: Node
    output: Node
    outputs: int
    stages: tuple[Piece | UnitBounds, ...]
    known: tuple[Node | Call, ...]
    shaped: Mapping[Node, Any]


def cut(steps: Walk) -> Cut:
    """The model of a walk that has arrived, cut.

    Raises:
        ArgumentError: the output does not depend on the input.
        UnsupportedModuleError: as :func:`~.unit_bounds.unit_bounds`.
    """
    return _Cutter(steps).cut()


class _Cutter:
    """Holds what is known of the nodes of a trace while it is cut.

    Args:
        steps: the walk.
    """

    def __init__(self, steps: Walk) -> None:
        self._steps, self._nodes = steps, [node for node in steps.trace.nodes if node.op != "output"]
        self._dependent = {node for node in self._nodes if _is_dependent(steps.values[node])}
        self._units = {node for node in self._dependent if node in steps.made and has_units(steps, node)}
        self._inputs = next(node for node in self._nodes if node.name == steps.trace.inputs)
        self._output: Any = next(node for node in steps.trace.nodes if node.op == "output").args[0]
        self._sources = {self._inputs, *self._results()}
        self._shapes = {node: _shape(steps.values[node]) for node in self._nodes if node in self._dependent}

    def cut(self) -> Cut:
        if self._output not in self._dependent:
            raise ArgumentError("model", "one that is constant", "a model whose output depends on its input")
        ends = self._ends()
        stages: list[Piece | UnitBounds] = []
        for node in self._nodes:
            if node in self._units:
                stages.append(unit_bounds(self._steps, node, self._results_of(node)))
            elif node in ends and node not in self._sources:
                stages.append(self._piece(node))
                if ends[node]:
                    self._sources.add(node)
        needed = {known for each in stages if isinstance(each, Piece) for known in each.knowns}
        needed |= {each.weight for each in stages if isinstance(each, UnitBounds) and each.weight is not None}
        shaped = self._shaped()
        known = self._known(needed, shaped)
        size = len(tree_leaves(self._steps.values[self._output])[0].index[0].reshape(-1))
        return Cut(self._inputs, self._output, size, tuple(stages), tuple(known), shaped)

    def _results(self) -> Iterable[Node]:
        """The nodes that hold what units give."""
        for node in self._units:
            yield from self._results_of(node)

    def _results_of(self, node: Node) -> list[Node]:
        if isinstance(self._steps.values[node], Value):
            return [node]
        return [each for each in node.users if each in self._dependent]

    def _ends(self) -> dict[Node, bool]:
        """The nodes where pieces end, and whether another piece reads them there.

        From the output backwards every affine node belongs to the pieces that its readers belong to. Where these are
        several, or units are among the readers, it is an end itself.
        """
        ends: dict[Node, bool] = {}
        pieces: dict[Node, set[Node]] = {}
        for node in reversed(self._nodes):
            if node not in self._dependent or node in self._units:
                continue
            own: set[Node] = {node} if node is self._output else set()
            for reader in node.users:
                if reader in self._units:
                    own.add(node)
                elif reader in self._dependent:
                    own |= pieces[reader]
            several = len(own) > 1
            if isinstance(self._steps.values[node], Value) and (node in own or several):
                ends[node], own = several, {node}  # several tensors are no end, so that what they are made of is one
            pieces[node] = own
        return ends

    def _piece(self, end: Node) -> Piece:
        sources: dict[Node, None] = {}  # in order, each once
        inside, queue = {end}, [end]
        while queue:
            for each in queue.pop().all_input_nodes:
                if each in self._sources:
                    sources[each] = None
                elif each in self._dependent and each not in inside:
                    inside.add(each)
                    queue.append(each)
        calls = tuple(without_constants(node, self._shapes) for node in self._nodes if node in inside)
        knowns = {each for call in calls for each in call.reads} - inside - sources.keys()
        return Piece(end, tuple(self._source(each) for each in sources), calls, tuple(knowns))

    def _source(self, node: Node) -> Source:
        value = self._steps.values[node]
        return Source(node, tuple(value.shape), value.index < value.size)

    def _shaped(self) -> dict[Node, Any]:
        """Sizes, zeros in the shape of a value, and what is computed from these alone or with constants."""
        shaped: dict[Node, Any] = {}
        for node in self._nodes:
            beside = node not in self._dependent and any(
                each in self._dependent or each in shaped for each in node.all_input_nodes
            )
            if beside:
                shaped[node] = self._steps.values[node]
        return shaped

    def _known(self, needed: set[Node], shaped: Mapping[Node, Any]) -> list[Node | Call]:
        """What has to be there before the pieces run."""
        for node in reversed(self._nodes):
            if node in needed and node not in shaped:
                needed.update(node.all_input_nodes)
        known = [node for node in self._nodes if node in needed and node not in shaped]
        return [node if node.op == "placeholder" else plain(node) for node in known]


def _is_dependent(value: Any) -> bool:
    return any(isinstance(each, Value) for each in tree_leaves(value))


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Value) else None
