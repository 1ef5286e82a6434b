"""The swept bound of explicit matrices in a loss: from above at every moment, without a solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lipschitz.bounds.inequality import Structure, Swept, WarmEigenvalues
from lightning_lipschitz.bounds.inequality.sweep import SLACK
from lightning_lipschitz.bounds.swept import SweptMultipliers, mean_log_pairs, pair_bounds
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.differentiable.matrices import matrices_of
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.extraction import Extractor

RATE = 1e-2  # of Adam on the multipliers, a step for each of the optimizer's
LARGEST_SHARE = 0.9  # room for eigenvalues that lag behind the weights


class FollowingMultipliers:
    """Swept multipliers that follow the weights: what the forms have in common, however a model is swept.

    The multipliers are moved by the gradient of the mean of log K_ij, which has no data in it: every process moves them
    alike, and no scaling, clipping or accumulation of the loss's gradients touches them.
    """

    _multipliers: SweptMultipliers
    _warm: WarmEigenvalues

    def _made(self, device: torch.device) -> SweptMultipliers:
        """New multipliers on a device."""
        raise NotImplementedError

    def _swept(self) -> Swept | None:
        """The point of the weights of this moment, of multipliers that :meth:`_move_to` has brought to them."""
        raise NotImplementedError

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

    def close(self) -> None:
        """Nothing listens."""

    def _proved_at(self) -> tuple[float, list[Tensor]]:
        """(rho, lambda / rho): a proposal, of what was swept."""
        with self._graph(), torch.no_grad():
            swept = self._sweep()
            rho = float(torch.linalg.eigvalsh(swept.covariance)[-1]) * (1.0 + SLACK)
        return rho, swept.multipliers

    @contextmanager
    def _graph(self) -> Iterator[None]:
        """Out of inference mode; with a graph where the caller wants one."""
        graph = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graph):
            yield

    def _sweep(self) -> Swept:
        swept = self._swept()
        if swept is None or not bool(swept.covariance.isfinite().all()):
            raise SolverError("no multipliers were found for these weights: they are zero, or beyond float64's range.")
        return swept

    def _move_to(self, device: torch.device) -> None:
        """To where the model is by now."""
        if device != self._multipliers.device:
            state, self._multipliers = self._multipliers.state_dict(), self._made(device)
            self._multipliers.load_state_dict(state)

    def _aim(self, objective: Tensor) -> None:
        if objective.requires_grad and torch.is_grad_enabled():
            self._multipliers.aim(objective, retain_graph=True)


class SweptForm(FollowingMultipliers):
    """Swept multipliers of explicit matrices. What they give is above the constant but for rounding in float64.

    Args:
        model: of one input and one output, small enough for explicit matrices.
        example_input: of it.

    Attributes:
        size: inputs and units whose matrices are formed anew for each number; 0 for a chain of linear layers.

    Raises:
        ModelSizeError: the matrices would not fit.
        NotLinearisedError, LipschitzError: as :func:`.matrices_of`.
    """

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        extractor = Extractor(model, example_input)
        self._network = extractor.network()
        self._matrices, chain = matrices_of(model, example_input, extractor)
        self.size = 0 if chain else sum(self._network.sizes)
        self._warm = WarmEigenvalues()
        self._multipliers = self._made(torch.device("cpu"))

    def multipliers(self) -> Multipliers | None:
        rho, values = self._proved_at()
        return Multipliers(rho, tuple(rho * lam.cpu().numpy() for lam in values))

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": self._multipliers.state_dict(), "eigenvectors": self._warm.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._multipliers.load_state_dict(state["multipliers"])
        self._warm.load_state_dict(state["eigenvectors"])

    def _made(self, device: torch.device) -> SweptMultipliers:
        structure = Structure.of(self._network, device)
        return SweptMultipliers(structure, rate=RATE, largest_share=LARGEST_SHARE, largest=self._warm)

    def _swept(self) -> Swept | None:
        blocks = self._matrices()
        self._move_to(next(iter(blocks.values())).device)
        return self._multipliers.at(blocks)
