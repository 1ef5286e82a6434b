"""TorusForm: the swept bound of a convolutional network in a loss, without explicit matrices of its convolutions."""

from __future__ import annotations

from collections.abc import Mapping
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
from lightning_lipschitz.bounds.swept import SweptMultipliers
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.differentiable.calls import DEVICE, DTYPE
from lightning_lipschitz.differentiable.chain import ConvolutionChain, NotOnTorusError, chain_of, with_double
from lightning_lipschitz.differentiable.swept import LARGEST_SHARE, RATE, FollowingMultipliers
from lightning_lipschitz.extraction.undisturbed import unwrapped


class TorusForm(FollowingMultipliers):
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

    def multipliers(self) -> Multipliers | None:
        """One a unit: that of its channel; None where the model's explicit matrices would not fit."""
        chain = self._chain()
        if not chain.fits:
            return None
        rho, values = self._proved_at()
        each = zip(values, chain.sizes[1:-1], strict=True)
        return Multipliers(rho, tuple(rho * np.repeat(lam.cpu().numpy(), size // len(lam)) for lam, size in each))

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

    def _made(self, device: torch.device) -> SweptMultipliers:
        return SweptMultipliers(self._chain().structure(device), rate=RATE, largest_share=LARGEST_SHARE)

    def _swept(self) -> Swept | None:
        chain = self._chain()
        values = chain.live.values({})
        like, first = torch.empty(0, dtype=values[DTYPE], device=values[DEVICE]), len(chain.torus.pieces) + 1
        device = with_double(like.device)
        self._move_to(device)
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


__all__ = ["NotOnTorusError", "TorusForm"]
