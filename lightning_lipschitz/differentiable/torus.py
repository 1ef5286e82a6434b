"""TorusForm: the swept bound of a convolutional network in a loss, without explicit matrices of its convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from lightning_lipschitz.bounds.inequality import (
    Structure,
    Swept,
    WarmEigenvalues,
    WarmFrequencies,
    sweep_frequencies,
    sweep_on,
)
from lightning_lipschitz.bounds.inequality.sweep import SLACK
from lightning_lipschitz.bounds.swept import SweptMultipliers, mean_log_pairs, pair_bounds
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.differentiable.calls import DEVICE, DTYPE, Values
from lightning_lipschitz.differentiable.cuts import Cut, cut
from lightning_lipschitz.differentiable.live import Live
from lightning_lipschitz.differentiable.periodic import Torus
from lightning_lipschitz.differentiable.pieces import Piece
from lightning_lipschitz.differentiable.swept import LARGEST_SHARE, RATE
from lightning_lipschitz.differentiable.translations import translated
from lightning_lipschitz.differentiable.unit_bounds import UnitBounds
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.extraction import GraphExtractor
from lightning_lipschitz.extraction.extractor import LARGEST_ENTRIES, WIDEST_LAYER
from lightning_lipschitz.extraction.undisturbed import unwrapped
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.extraction.walk import Walk
from lightning_lipschitz.graph import Elementwise

WIDEST = 1024  # units of a layer behind the convolutions: each step takes a factorisation of that size


class NotOnTorusError(Exception):
    """The model is no chain of convolutions and matrices whose units have slopes [0, beta]. It says why."""


@dataclass(frozen=True, eq=False)
class _Chain:
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


class TorusForm:
    """Swept multipliers, one a channel of the convolutions and one a unit behind them, that follow the weights.

    As :class:`.SweptForm`, for chains of convolutions, each followed by units, and then matrices: the convolutions are
    swept in the frequency domain, on a torus that their images are parts of, so that the size of an image counts only
    in the number of frequencies. What is between two activations (convolution, batch norm with its running statistics,
    average pooling, zero padding) is one map, and nothing is cut where the last image is read as a vector.

    Args:
        model: of one input and one output.
        example_input: only its shape counts.

    Attributes:
        work: operations of an evaluation, very roughly.

    Raises:
        NotOnTorusError: the model is none of these.
        LipschitzError: as the extraction.
    """

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        self._model = unwrapped(model)
        self._example = example_input.new_zeros(()).expand(example_input.shape)
        self._warm, self._frequencies = WarmEigenvalues(), WarmFrequencies()
        self._built: _Chain | None = None
        self.work = self._chain().torus.work
        self._multipliers = self._made(torch.device("cpu"))

    def whole(self) -> Tensor:
        with self._graph():
            swept = self._sweep()
            value = self._warm(0, swept.covariance)
            self._aim(0.5 * value.log())
            return value.sqrt()

    def pairs(self) -> Tensor:
        with self._graph():
            swept = self._sweep()
            self._aim(mean_log_pairs(swept.covariance))
            return pair_bounds(swept.covariance)

    def step(self) -> None:
        self._multipliers.step()

    def multipliers(self) -> Multipliers | None:
        """One a unit: that of its channel; None where the model's explicit matrices would not fit."""
        chain = self._chain()
        if not chain.fits:
            return None
        with self._graph(), torch.no_grad():
            swept = self._sweep()
            rho = float(torch.linalg.eigvalsh(swept.covariance)[-1]) * (1.0 + SLACK)
        each = zip(swept.multipliers, chain.sizes[1:-1], strict=True)
        return Multipliers(rho, tuple(rho * np.repeat(lam.cpu().numpy(), size // len(lam)) for lam, size in each))

    def close(self) -> None:
        """Nothing listens."""

    def state_dict(self) -> dict[str, Any]:
        vectors, frequencies = self._warm.state_dict(), self._frequencies.state_dict()
        return {"multipliers": self._multipliers.state_dict(), "eigenvectors": vectors, "frequencies": frequencies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "frequencies" in state:  # of a form of explicit matrices, nothing is taken
            self._multipliers.load_state_dict(state["multipliers"])
            self._warm.load_state_dict(state["eigenvectors"])
            self._frequencies.load_state_dict(state["frequencies"])

    def __getstate__(self) -> dict[str, Any]:
        """Without the trace; a copy makes its own when it is used."""
        return self.__dict__ | {"_built": None}

    def _chain(self) -> _Chain:
        if self._built is None:
            self._built = _chain_of(self._model, self._example)
        return self._built

    @contextmanager
    def _graph(self) -> Iterator[None]:
        """Out of inference mode; with a graph where the caller wants one."""
        graph = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            yield

    def _made(self, device: torch.device) -> SweptMultipliers:
        return SweptMultipliers(self._chain().structure(device), rate=RATE, largest_share=LARGEST_SHARE)

    def _sweep(self) -> Swept:
        chain = self._chain()
        values = chain.live.values({})
        device = _with_double(values[DEVICE])
        if device != self._multipliers.device:  # the model has moved
            state, self._multipliers = self._multipliers.state_dict(), self._made(device)
            self._multipliers.load_state_dict(state)
        swept = self._swept(chain, values)
        if swept is None or not bool(swept.covariance.isfinite().all()):
            raise SolverError("no multipliers were found for these weights: they are zero, or beyond float64's range.")
        return swept

    def _swept(self, chain: _Chain, values: Values) -> Swept | None:
        like, first = torch.empty(0, dtype=values[DTYPE], device=values[DEVICE]), len(chain.torus.pieces) + 1
        device = _with_double(like.device)
        structure, (log_weights, shares) = self._multipliers.structure, self._multipliers.values()
        heights = [*structure.sizes[first:], chain.outputs]
        rows = [
            piece.rows(values, like, n, one=one)[0].to(device, torch.float64)
            for piece, n, one in zip(chain.dense, heights, chain.one, strict=True)
        ]
        columns = chain.torus.columns(values, rows[0])
        body = sweep_frequencies(structure, columns, log_weights, shares, self._frequencies)
        if body is None:
            return None
        multipliers, covariance = body
        blocks = {(first + k, first + k - 1): each for k, each in enumerate(rows) if k}
        head = sweep_on(first, {(first, first): covariance}, structure, blocks, log_weights, shares, self._warm)
        return None if head is None else Swept([*multipliers, *head.multipliers], head.covariance)

    def _aim(self, objective: Tensor) -> None:
        if objective.requires_grad and torch.is_grad_enabled():
            self._multipliers.aim(objective, retain_graph=True)


def _with_double(device: torch.device) -> torch.device:
    """Where the sweep of a model on a device is made: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _doubled(values: Values) -> Values:
    """The values of the known nodes in float64, without graphs."""
    device = _with_double(values[DEVICE])
    found = {
        key: each.detach().to(device, torch.float64 if each.is_floating_point() else each.dtype)
        if isinstance(each, Tensor)
        else each
        for key, each in values.items()
    }
    return found | {DTYPE: torch.float64, DEVICE: device}


def _chain_of(model: nn.Module, example: Tensor) -> _Chain:
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
    return _Chain(Torus(tuple(body)), dense, (*sizes, made.outputs), betas, made.outputs, one, live)


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
