"""Where the units of every layer stand in the traced graph: what they read of a tensor, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.extraction.expression import Expression
from lightning_lipschitz.extraction.interpret import Walk
from lightning_lipschitz.extraction.location import display_name, path
from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.registry import Activated, find_rule
from lightning_lipschitz.extraction.trace import Graph
from lightning_lipschitz.extraction.traced import Traced

_OTHER = 0.625  # a factor by which weights are made others


class NotLinearisedError(Exception):
    """A layer whose units are no copies of entries of one tensor. The projection names it to the user."""

    def __init__(self, path: str, operator: str) -> None:
        super().__init__(f"{path}: {operator}")
        self.path, self.operator = path, operator


class Place(Protocol):
    """Of one layer."""

    @property
    def number(self) -> int:
        """Of the layer in the network, from 1; 0 where no one reads it."""

    @property
    def before(self) -> torch.fx.Node:
        """What the operator is applied to."""

    def read(self, value: Tensor) -> Tensor:
        """The pre-activations, shape (batch, n_k), in the value of ``before``."""

    def result(self, source: Tensor, own: Callable[[], Any]) -> Any:
        """The operator's output with the units replaced by ``source``, shape (batch, n_k); ``own`` computes it."""


class RecordedWalk(Walk):
    """A walk that remembers which node brought which layer.

    Attributes:
        created: node -> the layer, numbered from 1 as it was met, and the node that it was applied to.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], prefix: str) -> None:
        super().__init__(graph, weights, prefix)
        self.created: dict[torch.fx.Node, tuple[int, torch.fx.Node]] = {}

    def call(self, node: torch.fx.Node) -> Any:
        """As the walk does; a node may bring one layer, of one tensor."""
        before = len(self.layers)
        result = super().call(node)
        if len(self.layers) > before:
            traced = [each for each in node.all_input_nodes if isinstance(self.values[each], Traced)]
            if len(self.layers) > before + 1 or len(traced) != 1:
                raise self.refusal(node)
            self.created[node] = len(self.layers), traced[0]
        return result

    def refusal(self, node: torch.fx.Node) -> NotLinearisedError:
        """Of the operator that stands there."""
        return NotLinearisedError(self.full(path(node)), display_name(node))

    def place(self, node: torch.fx.Node, number: Mapping[int, int]) -> Place:
        """Of the layer that this node brought; ``number`` is that of the network for each layer met.

        Raises:
            NotLinearisedError: its units are no copies of single entries.
        """
        layer = self.created[node][0]
        found = _elementwise(self, node, number.get(layer, 0)) or _gathered(self, node, number.get(layer, 0))
        if found is None:
            raise self.refusal(node)
        return found


# Elementwise operators: every unit stands where its pre-activation does


@dataclass(frozen=True, eq=False)
class _Elementwise:
    """Units of equal slopes are affine and stay what they are.

    Attributes:
        shape: of the activation's output.
        columns: of the activation's output, flattened: which unit it is; units that are affine have none, -1.
        sample: of the same, which sample of the batch.
        rows: shape (batch, n_k), flat positions of the units, sample by sample.
        several: whether the operator returns more than the tensor.
    """

    number: int
    before: torch.fx.Node
    shape: torch.Size
    columns: Tensor
    sample: Tensor
    rows: Tensor
    several: bool

    def read(self, value: Tensor) -> Tensor:
        return value.expand(self.shape).reshape(-1)[self.rows]

    def result(self, source: Tensor, own: Callable[[], Any]) -> Any:
        held = self.columns >= 0
        if self.number:
            fresh = source[self.sample, self.columns.clamp(min=0)].reshape(self.shape)
        else:
            fresh = source.new_zeros(self.shape)
        if not bool(held.all()):
            fresh = torch.where(held.reshape(self.shape), fresh, own())
        return (fresh, None) if self.several else fresh


def _elementwise(walk: RecordedWalk, node: torch.fx.Node, number: int) -> _Elementwise | None:
    """Read off the value of the node: entry i of the expression is a unit of the layer where its row has a one."""
    (layer, before), result = walk.created[node], walk.values[node]
    given = walk.values[before].index.shape
    several = isinstance(result, tuple)
    traced: Traced = result[0] if several else result
    selection = traced.expression.terms.get(layer)
    if selection is None or not _fits(given, traced.index.shape) or _is_scaled(walk, node):
        return None
    matrix = _dense(selection.matrix)
    unit = torch.from_numpy(np.where(matrix.any(axis=1), matrix.argmax(axis=1), -1))
    sample, entry = traced.index.flatten() // traced.expression.size, traced.index.flatten() % traced.expression.size
    rows = torch.full((traced.batch, matrix.shape[1]), -1)
    held = unit[entry] >= 0
    rows[sample[held], unit[entry][held]] = torch.arange(len(entry))[held]
    if (rows < 0).any():
        return None
    columns = torch.where(held, unit[entry], -1)
    return _Elementwise(number, before, traced.index.shape, columns, sample, rows, several)


def _is_scaled(walk: RecordedWalk, node: torch.fx.Node) -> bool:
    """Whether a weight multiplies the units, as in a layer norm: they are not the operator's output then."""
    probed = _probed(walk, node) if _weights(walk, node) else None
    term = probed and probed[1].expression.terms.get(1)
    return term is not None and not np.isin(_dense(term.matrix), (0.0, 1.0)).all()


def _fits(given: torch.Size, result: torch.Size) -> bool:
    """Whether one broadcasts to the other."""
    sides = zip(given[::-1], result[::-1], strict=False)
    return len(given) <= len(result) and all(a in (1, b) for a, b in sides)


# Functions of several entries: units are copies of entries, the output consists of some of the units


@dataclass(frozen=True, eq=False)
class _Gathered:
    """Max pooling, maxima, sorting: one group of units a window.

    Attributes:
        rows, row_factors: shape (n_k,): the entry of a sample that each unit is, times zero where it is none.
        units, unit_factors: the unit that each entry of the output's expression is, times zero where it is none.
        index: of the output, as of ``Traced``.
        several: whether the operator returns more than the tensor.
    """

    number: int
    before: torch.fx.Node
    rows: Tensor
    row_factors: Tensor
    units: Tensor
    unit_factors: Tensor
    index: Tensor
    several: bool

    def read(self, value: Tensor) -> Tensor:
        return value.reshape(len(value), -1)[:, self.rows] * self.row_factors.to(value)

    def result(self, source: Tensor, own: Callable[[], Any]) -> Any:
        if self.number:
            entries = source[:, self.units] * self.unit_factors.to(source)
            fresh = entries.reshape(-1)[self.index]
        else:
            fresh = source.new_zeros(self.index.shape)
        return (fresh, None) if self.several else fresh


def _gathered(walk: RecordedWalk, node: torch.fx.Node, number: int) -> _Gathered | None:
    """See what the operator's rule makes of entries. A weight among its arguments would become a constant."""
    layer, before = walk.created[node]
    probed = None if _weights(walk, node) else _probed(walk, node)
    if probed is None:
        return None
    layers, after, several = probed
    reads = _single(layers[0].before, 0)
    gives = _single(after.expression, 1)
    if reads is None or gives is None or len(reads[0]) != walk.layers[layer - 1].before.size:
        return None
    return _Gathered(number, before, *reads, *gives, after.index, several)


def _weights(walk: RecordedWalk, node: torch.fx.Node) -> list[Tensor]:
    """The tensors among the operator's arguments, beside the one that it is applied to."""
    return [each for each in tree_leaves(tree_map(walk.resolve, (node.args, node.kwargs))) if isinstance(each, Tensor)]


def _probed(walk: RecordedWalk, node: torch.fx.Node) -> tuple[list[Activated], Traced, bool] | None:
    """The operator's rule applied to a tensor whose entries are sources, with other weights than its own: the layer,
    the output, and whether there are more."""
    before = walk.created[node][1]
    shape, batch = walk.values[before].index.shape, walk.graph.batch
    rule = find_rule(operator_name(node.target))
    if rule is None or not shape or shape[0] != batch:
        return None
    probe = Traced.of_shape(Expression.source(0, int(np.prod(shape[1:]))), batch, shape[1:])

    def given(each: Any) -> Any:
        if each is before:
            return probe
        value = walk.resolve(each)
        return _OTHER * value if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = tree_map(given, (node.args, node.kwargs))
    context = replace(walk.context(node), layers=[])
    result = rule(context, *args, **kwargs)
    several = isinstance(result, tuple)
    return (context.layers, result[0] if several else result, several) if len(context.layers) == 1 else None


def _single(expression: Expression, source: int) -> tuple[Tensor, Tensor] | None:
    """For rows with one entry or none, of this source: where it is, and what; None for other rows."""
    if set(expression.terms) != {source}:
        return None
    matrix = _dense(expression.terms[source].matrix)
    if ((matrix != 0).sum(axis=1) > 1).any():
        return None
    where = np.abs(matrix).argmax(axis=1)
    return torch.from_numpy(where), torch.from_numpy(matrix[np.arange(len(matrix)), where])


def _dense(matrix: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
