"""Training under a bound by what is added to gradients: all weights are pulled, and all move in what is written."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import LBFGS, Optimizer

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer
from lightning_lipschitz.callbacks._bounded_training import BoundedTraining
from lightning_lipschitz.callbacks._bounded_weights import BoundedWeights
from lightning_lipschitz.callbacks._certified_weights import Certifier, Projector
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.lightning_tools.submodule import Choice


class PulledTraining(BoundedTraining[BoundedWeights]):
    """Base of the callbacks that add to gradients. Subclasses say what, and when."""

    def _written(self, many: bool) -> tuple[BoundedWeights, Certifier]:
        weights = BoundedWeights(Choice.of(self), type(self).__name__, self.max_lipschitz, many)
        return weights, Projector(weights, self.max_lipschitz, self._hint(weights))

    def _hint(self, weights: BoundedWeights) -> Callable[[], Multipliers | None]:
        """Source of multipliers that training has at hand, in the fit and after it; see :class:`.Projector`."""
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            for optimizer in trainer.optimizers:
                _refuse_closures(optimizer, type(self).__name__)
        super().on_fit_start(trainer, pl_module)


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Factor of gradients at ``on_before_optimizer_step``: fused optimizers undo the loss scaling themselves, later."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def _refuse_closures(optimizer: Optimizer, owner: str) -> None:
    if isinstance(optimizer, LBFGS):
        raise MisconfigurationException(
            f"`{owner}` does not support `{type(optimizer).__name__}`: it evaluates the loss several times a step, and"
            " the loss that it sees lacks what is added to the gradient. Use an optimizer that takes one gradient a"
            " step, such as `torch.optim.Adam`."
        )
