"""The part of CLIPMixin that lives in the Trainer: logs, the weight's schedule, state in the checkpoint."""

from __future__ import annotations

from typing import Any, cast

import torch

from lightning_lipschitz._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from lightning_lipschitz.lightning_tools.log import MetricLog, validates_training
from lightning_lipschitz.mixins._regulariser import Regulariser


class ClipSchedule(Callback):
    """Returned by ``configure_callbacks``: a hook of the module itself would be shadowed by the user's own.

    Example:
        >>> ClipSchedule().state_key
        'CLIPMixin'
    """

    def __init__(self) -> None:
        self._regulariser: Regulariser | None = None
        self._restored: dict[str, Any] | None = None
        self._logged = -1

    @property
    def state_key(self) -> str:
        return "CLIPMixin"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._regulariser = cast(Any, pl_module)._start_clip(trainer.global_rank)  # it is a CLIPMixin
            self._logged = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None and self._regulariser is not None:
            self._regulariser.load(self._restored)
        self._restored = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if validates_training(trainer):
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)
        if self._regulariser is not None:
            adapt(self._regulariser, trainer)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once for these weights, where ``val_loss`` is logged as well; every rank alike."""
        regulariser = self._regulariser
        if regulariser is None or trainer.barebones or self._logged == trainer.global_step:
            return
        bound = regulariser.lower_bound(pl_module)
        if bound is None:
            return
        self._logged = trainer.global_step
        values = {"lower_bound": bound, "weight": regulariser.weight, "penalty": regulariser.last_penalty}
        MetricLog("clip", regulariser.config.prog_bar, shown="lower_bound").log(trainer, pl_module, values)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._regulariser is None else self._regulariser.plain()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        """The attributes without what Lightning hangs on to callbacks."""
        return {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}


def adapt(regulariser: Regulariser, trainer: Trainer) -> None:
    """The discrepancy principle: a heavier penalty while the metric is better than its target, a lighter one below.

    Every process comes to the same weight, whether or not the metric was logged with ``sync_dist``.

    Raises:
        MisconfigurationException: the metric was not logged, by every process, in the epoch that ends.
    """
    config = regulariser.config
    if config.metric is None or config.target is None or trainer.current_epoch + 1 < config.warmup_epochs:
        return
    value = _mean_over_ranks(trainer, config.metric)
    if value is None:
        logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        raise MisconfigurationException(
            f"`CLIPMixin(clip_metric={config.metric!r})` was not logged; there is {logged}. Log it with"
            " `self.log(..., on_epoch=True)`, in every process."
        )
    if regulariser.cooldown > 0:
        regulariser.cooldown -= 1
        return
    better = value > config.target if config.mode == "max" else value < config.target
    regulariser.weight *= config.factor if better else 1.0 / config.factor
    regulariser.cooldown = config.cooldown_epochs


def _mean_over_ranks(trainer: Trainer, metric: str) -> float | None:
    """The metric's mean; None where any process lacks it, so that no process raises alone and leaves others waiting."""
    value = trainer.callback_metrics.get(metric)
    here = torch.tensor(
        [0.0 if value is None else float(value), float(value is None)], device=trainer.strategy.root_device
    )
    mean, missing = torch.as_tensor(trainer.strategy.reduce(here, reduce_op="mean")).tolist()
    return None if missing else mean
