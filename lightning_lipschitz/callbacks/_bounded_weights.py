"""Weights that are held to a bound all together, as explicit matrices: read, pulled and moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lipschitz._lightning import LightningModule
from lightning_lipschitz.callbacks._held_weights import HeldWeights, Tensors, trained_by
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training import require_reachable
from lightning_lipschitz.weights import StoredWeights, stored_weights


class BoundedWeights(HeldWeights):
    """The weights of the layers of one submodule, each of which is moved. Arguments as for :class:`.HeldWeights`.

    Raises, where it is traced:
        LipschitzError: the submodule holds layers that cannot be projected, or has no weights with the bound.
    """

    _stored: StoredWeights | None = None

    def _find(self, model: LightningModule, chosen: nn.Module, example: Any) -> Sequence[str]:
        stored = stored_weights(chosen, example, reader=lambda: cast(Extractor, self.submodule.reader(model)))
        if self._max_lipschitz is not None:
            require_reachable(stored, self._max_lipschitz)
        self._stored = stored
        return stored.parameter_names

    @property
    def stored(self) -> StoredWeights:
        """What reads and writes the weights of the layers.

        Raises:
            LipschitzError: nothing has been called yet, so nothing is known of the input.
        """
        self.reader  # noqa: B018 - raises then
        return cast(StoredWeights, self._stored)

    def rest(self) -> None:
        super().rest()
        self._stored = None

    def network(self, tensors: Tensors | None = None) -> Network:
        """The network with these tensors, or as it is in the live model."""
        return cast(Network, super().network(tensors))

    def matrices(self) -> list[Tensor]:
        """Weights of the live model, detached; not copies where they are parameters."""
        return [weight.detach() for weight in self.stored.differentiable(self._parameters)]

    # Moving

    def add_gradient(self, optimizer: Optimizer, directions: Sequence[Tensor], scale: float) -> None:
        """Add ``scale * directions``, one a matrix, to the gradients of the parameters that ``optimizer`` trains.

        Nothing happens where none of its parameters has a gradient: then no loss was computed, and no step is meant.
        """
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            return
        trained = trained_by(optimizer)
        for parameter, gradient in self._pulled_back(directions):
            if id(parameter) not in trained or not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = gradient * scale
            else:
                parameter.grad.add_(gradient, alpha=scale)

    def _pulled_back(self, directions: Sequence[Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
        """Directions of matrices as directions of parameters."""
        with torch.enable_grad():
            matrices = self.stored.differentiable(self._parameters)
        if all(isinstance(matrix, nn.Parameter) for matrix in matrices):
            return list(zip(matrices, directions, strict=True))  # type: ignore[arg-type]
        pairs = [(m, d) for m, d in zip(matrices, directions, strict=True) if m.requires_grad]
        parameters = list(dict.fromkeys(p for p in self._parameters.values() if p.requires_grad))  # shared ones once
        outputs, seeds = [m for m, _ in pairs], [d for _, d in pairs]
        gradients = torch.autograd.grad(outputs, parameters, seeds, allow_unused=True)
        return [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
