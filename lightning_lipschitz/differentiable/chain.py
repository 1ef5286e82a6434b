"""A traced model as a chain: convolutions on a torus, each followed by elementwise units, and matrices behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_lipschitz.bounds.inequality import Structure
from lightning_lipschitz.differentiable.calls import DEVICE, DTYPE, Values
from lightning_lipschitz.differentiable.cuts import Cut, cut
from lightning_lipschitz.differentiable.live import Live
from lightning_lipschitz.differentiable.periodic import Torus
from lightning_lipschitz.differentiable.pieces import Piece
from lightning_lipschitz.differentiable.translations import translated
from lightning_lipschitz.differentiable.unit_bounds import UnitBounds
from lightning_lipschitz.extraction import GraphExtractor
from lightning_lipschitz.extraction.extractor import LARGEST_ENTRIES, WIDEST_LAYER
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.extraction.walk import Walk
from lightning_lipschitz.graph import Elementwise

WIDEST = 1024  # units of a layer behind the convolutions: each step takes a factorisation of that size


class NotOnTorusError(Exception):
    """The model is no chain of convolutions and matrices whose units have slopes [0, beta]. It says why."""


@dataclass(frozen=True, eq=False)
class ConvolutionChain:
    """The model cut.

    Attributes:
        torus: of the convolutions.
        dense: the pieces behind them; the last one gives the output.
        sizes: numbers in every source and in the output, of one sample.
        betas: upper slopes, a layer.
        outputs: of the model.
        one: whether each of the dense pieces runs on a single sample.
        live: its tensors.
    """

    torus: Torus
    dense: tuple[Piece, ...]
    sizes: tuple[int, ...]
    betas: tuple[float, ...]
    outputs: int
    one: tuple[bool, ...]
    live: Live

    def structure(self, device: torch.device) -> Structure:
        """That of the channels, and of the units behind them."""
        channels = [self.torus.pieces[0].channels[0], *(piece.channels[1] for piece in self.torus.pieces)]
        sizes = (*channels, *self.sizes[len(channels) : -1])
        betas = [
            torch.full((n,), beta, dtype=torch.float64, device=device)
            for n, beta in zip(sizes[1:], self.betas, strict=True)
        ]
        reads = tuple((k,) for k in range(len(sizes)))
        group = torch.arange(sum(sizes[1:]), device=device)
        return Structure(sizes, reads, tuple(torch.zeros_like(beta) for beta in betas), tuple(betas), group)

    @property
    def fits(self) -> bool:
        """Whether explicit matrices would."""
        entries = sum(n * m for n, m in pairwise(self.sizes))
        return entries <= LARGEST_ENTRIES and max(self.sizes[:-1]) <= WIDEST_LAYER


def with_double(device: torch.device) -> torch.device:
    """Where the sweep of a model on a device is made: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _doubled(values: Values) -> Values:
    """The values of the known nodes in float64, without graphs."""
    device = with_double(values[DEVICE])
    found = {
        key: each.detach().to(device, torch.float64 if each.is_floating_point() else each.dtype)
        if isinstance(each, Tensor)
        else each
        for key, each in values.items()
    }
    return found | {DTYPE: torch.float64, DEVICE: device}


def chain_of(model: nn.Module, example: Tensor) -> ConvolutionChain:
    """The model cut into convolutions on a torus, as many as there are, and matrices.

    Raises:
        NotOnTorusError: it is no such chain.
    """
    if not any(each.is_floating_point() for each in model.parameters()):
        raise NotOnTorusError("it has no parameters")
    steps = GraphExtractor(model, example, at_once=False).walked()
    made = cut(steps)
    pieces, betas = _in_order(made, steps)
    live = Live(model, steps.trace, made)
    values = _doubled(live.values({}))
    body = []
    for piece in pieces[:-1]:
        found = translated(piece, values)
        if found is None:
            break
        body.append(found)
    dense = tuple(pieces[len(body) :])
    sizes = tuple(int(piece.sources[0].mask.sum()) for piece in pieces)
    if not body or not all(_of_samples(piece.sources[0].mask) for piece in dense):
        raise NotOnTorusError("it does not begin with convolutions on an image")
    if max([*sizes[len(body) + 1 :], made.outputs]) > WIDEST:
        raise NotOnTorusError(f"it has more than {WIDEST} units in a layer behind the convolutions")
    one = tuple(_runs_on_one(piece, values) for piece in dense)
    return ConvolutionChain(Torus(tuple(body)), dense, (*sizes, made.outputs), betas, made.outputs, one, live)


def _runs_on_one(piece: Piece, values: Values) -> bool:
    """Whether a piece gives the first sample of two what it gives that sample alone; sizes may be written into it."""
    shape = piece.sources[0].shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(values[DEVICE])
    try:
        return torch.allclose(piece.run(values, [x[:1]]), piece.run(values, [x])[:1])
    except RuntimeError:
        return False


def _of_samples(mask: Tensor) -> bool:
    return bool(mask[0].all()) and not bool(mask[1:].any())


def _in_order(made: Cut, steps: Walk) -> tuple[list[Piece], tuple[float, ...]]:
    """The pieces of a chain, and the upper slopes of the units between them."""
    pieces, betas, at = [], [], made.inputs
    for number, stage in enumerate(made.stages):
        if isinstance(stage, Piece) != (number % 2 == 0):
            raise NotOnTorusError("maps and activations do not take turns")
        if isinstance(stage, Piece):
            if [source.node for source in stage.sources] != [at]:
                raise NotOnTorusError("a map reads several layers")
            pieces.append(stage)
            at = stage.end
        else:
            betas.append(_beta(stage, at, steps))
            at = stage.results[0]
    if not pieces or at is not made.output or len(pieces) != len(betas) + 1:
        raise NotOnTorusError("it does not end in a map")
    return pieces, tuple(betas)


def _beta(stage: UnitBounds, at: Node, steps: Walk) -> float:
    """The upper slope of elementwise units that have slopes [0, beta], in the order of their tensor."""
    found: Sequence[Any] = [steps.builder.nodes[number] for number in steps.made.get(stage.results[0], ())]
    value = steps.values[stage.results[0]]
    if stage.arguments != (at,) or len(found) != 1 or not isinstance(found[0], Elementwise) or stage.weight is not None:
        raise NotOnTorusError("activations that are not elementwise")
    in_order = isinstance(value, Value) and torch.equal(value.index[0].reshape(-1), torch.arange(value.size))
    beta = float(np.max(found[0].beta))
    if np.any(found[0].alpha != 0.0) or np.any(found[0].beta != beta) or not beta > 0.0 or not in_order:
        raise NotOnTorusError("slopes of activations other than one interval [0, beta]")
    return beta
