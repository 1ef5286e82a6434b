"""TorusForm: the swept bound of a convolutional network in a loss, without explicit matrices of its convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.inequality import (
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
from lightning_lipschitz.differentiable.chain import ConvolutionChain, NotOnTorusError, chain_of, with_double
from lightning_lipschitz.differentiable.swept import LARGEST_SHARE, RATE
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.extraction.undisturbed import unwrapped


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
        self._built: ConvolutionChain | None = None
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

    def _chain(self) -> ConvolutionChain:
        if self._built is None:
            self._built = chain_of(self._model, self._example)
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
        device = with_double(values[DEVICE])
        if device != self._multipliers.device:  # the model has moved
            state, self._multipliers = self._multipliers.state_dict(), self._made(device)
            self._multipliers.load_state_dict(state)
        swept = self._swept(chain, values)
        if swept is None or not bool(swept.covariance.isfinite().all()):
            raise SolverError("no multipliers were found for these weights: they are zero, or beyond float64's range.")
        return swept

    def _swept(self, chain: ConvolutionChain, values: Values) -> Swept | None:
        like, first = torch.empty(0, dtype=values[DTYPE], device=values[DEVICE]), len(chain.torus.pieces) + 1
        device = with_double(like.device)
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


__all__ = ["NotOnTorusError", "TorusForm"]
