"""Affine pieces of a traced model, and their norms by one warm step of power iteration an evaluation.

A piece maps its sources v_1 ... v_m to y = sum of W_j v_j. With the bounds L_j of its sources, the unit vectors e_j are
what is kept from one evaluation to the next:

    r = sum of L_j W_j e_j,     value |r|,     u = r / |r|,     e_j <- W_j' u / |W_j' u|.

The value never decreases while nothing else changes, and never exceeds the sum of L_j |W_j|. By the envelope theorem
its gradient is that of sum of L_j <u, W_j e_j> with u and e_j held. The one backward pass that gives W_j' u gives the
gradient in the parameters too: it is kept, and a later backward pass has only to scale it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx import Node

from lightning_lipschitz.differentiable.calls import DEVICE, DTYPE, Call, Values


@dataclass(frozen=True, eq=False)
class Source:
    """A value that a piece reads.

    Args:
        node: of the trace.
        shape: of its tensor.
        mask: which entries belong to the first sample, in that shape, on the CPU.
    """

    node: Node
    shape: tuple[int, ...]
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """What one evaluation of a piece gives.

    Attributes:
        value: the bound of what the piece gives, with a graph to the parameters and to the bounds of the sources.
        vectors: the unit vectors for the next evaluation.
        lengths: of the vectors before they were divided by it; zero where one has died.
    """

    value: Tensor
    vectors: list[Tensor]
    lengths: list[Tensor]


@dataclass(frozen=True, eq=False)
class Piece:
    """Operators between cuts, in order.

    Args:
        end: the node of the trace that is the result.
        sources: what it reads.
        calls: without the constants that they add, as far as that is known.
        knowns: nodes that do not depend on the model's input and are read.
    """

    end: Node
    sources: tuple[Source, ...]
    calls: tuple[Call, ...]
    knowns: tuple[Node, ...]

    @property
    def linear(self) -> bool:
        """Whether zeros are known to give zero."""
        return all(call.linear for call in self.calls)

    def run(self, values: Mapping[Any, Any], sources: Sequence[Tensor]) -> Tensor:
        """The result for these values of the sources.

        Args:
            values: of the known nodes.
            sources: in the shapes of the sources.
        """
        local: Values = {key: values[key] for key in (*self.knowns, DTYPE, DEVICE)}
        local |= {source.node: tensor for source, tensor in zip(self.sources, sources, strict=True)}
        for call in self.calls:
            call(local)
        result: Tensor = local[self.end]
        return result

    def measure(
        self, values: Mapping[Any, Any], bounds: Sequence[Tensor], vectors: Sequence[Tensor], graph: bool
    ) -> Step:
        """One step from these unit vectors.

        Args:
            values: of the known nodes, with graphs to the parameters.
            bounds: of the sources.
            vectors: one a source.
            graph: whether the value is to have a graph.
        """
        held = {key: values[key] for key in (*self.knowns, DTYPE, DEVICE)}
        learnt = [node for node in self.knowns if isinstance(held[node], Tensor) and held[node].requires_grad]
        held |= {node: held[node].detach() for node in learnt}
        leaves = [held[node].requires_grad_() for node in learnt] if graph else []
        sources = [(L.detach() * e).requires_grad_() for L, e in zip(bounds, vectors, strict=True)]
        with torch.enable_grad():
            y = self.run(held, sources)
            y = y if self.linear else y - self.run(held, [torch.zeros_like(each) for each in sources])
        tiny, image = torch.finfo(y.dtype).tiny, y.detach()
        length = torch.linalg.vector_norm(image)
        found = torch.autograd.grad(
            y, [*sources, *leaves], image / length.clamp(min=tiny), allow_unused=True, materialize_grads=True
        )
        images, slopes = found[: len(sources)], found[len(sources) :]
        lengths = [torch.linalg.vector_norm(each) for each in images]
        turned = [each / norm for each, norm in zip(images, lengths, strict=True)]  # by zero: it has died
        moving = [k for k, each in enumerate(bounds) if graph and each.requires_grad]
        if leaves or moving:
            shares = [torch.dot(images[k].reshape(-1), vectors[k].reshape(-1)) for k in moving]
            inputs = [*(bounds[k] for k in moving), *(values[node] for node in learnt)]
            length = _Known.apply(length, (*shares, *slopes), *inputs)  # type: ignore[no-untyped-call]
        return Step(length, turned, lengths)

    def rows(self, values: Mapping[Any, Any], like: Tensor, outputs: int, *, one: bool = False) -> list[Tensor]:
        """The first sample's rows over every source, shape (outputs, entries), with a graph to the parameters.

        Args:
            values: of the known nodes, with graphs to the parameters.
            like: a tensor of the working dtype and device.
            outputs: how many there are.
            one: run the piece on one sample; it has to be known that it can be.
        """
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            shapes = [(1, *source.shape[1:]) if one else source.shape for source in self.sources]
            zeros = [like.new_zeros(shape, requires_grad=True) for shape in shapes]
            y = self.run(values, zeros)[0].reshape(-1)
        unit = torch.eye(outputs, dtype=y.dtype, device=y.device)
        found = torch.autograd.grad(
            y, zeros, unit, is_grads_batched=True, create_graph=graph, allow_unused=True, materialize_grads=True
        )
        return [_of_first(rows, source).reshape(outputs, -1) for rows, source in zip(found, self.sources, strict=True)]


def _of_first(rows: Tensor, source: Source) -> Tensor:
    """Rows without the zeros of the second sample, where the first dimension counts the samples."""
    leading = bool(source.mask[0].all()) and not bool(source.mask[1:].any())
    return rows[:, 0] if leading else rows


class _Known(torch.autograd.Function):
    """A number whose gradient is known: first the number and the gradient, then what it is a gradient in."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * slope for slope in ctx.slopes)
