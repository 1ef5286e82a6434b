"""Where a measurement goes: into ``self.log`` while the Trainer allows it, to the loggers later, and into warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from lightning_lipschitz._lightning import LightningModule, Trainer, rank_zero_warn
from lightning_lipschitz.callbacks._measure import Measurement, Record


@contextmanager
def attached(pl_module: LightningModule, trainer: Trainer) -> Iterator[None]:
    """``self.log`` asks the Trainer that the module met last: another one, if one has run on it in a hook."""
    last, pl_module._trainer = pl_module._trainer, trainer
    try:
        yield
    finally:
        pl_module._trainer = last


class Measured(Protocol):
    """Anything with numbers to log."""

    def metrics(self) -> dict[str, float]:
        """What is logged, by the last part of its key."""


@dataclass(frozen=True)
class Values:
    """Numbers to log."""

    values: dict[str, float]

    def metrics(self) -> dict[str, float]:
        return self.values


class Report:
    """Reports of one fit.

    Args:
        prefix: of the keys.
        prog_bar: whether the bound is shown in the progress bar.
        max_lipschitz: an upper bound above it is warned of, once.
        shown: the last part of the key of what is shown.
    """

    def __init__(
        self, prefix: str, prog_bar: bool, max_lipschitz: float | None = None, shown: str = "upper_bound"
    ) -> None:
        self.prefix = prefix
        self._prog_bar, self._shown = prog_bar, shown
        self._max_lipschitz = max_lipschitz
        self._warned: set[str] = set()

    def log(self, trainer: Trainer, pl_module: LightningModule, record: Measured) -> None:
        """Through ``self.log``, so that checkpoints, early stopping and loggers find it beside ``val_loss``."""
        if trainer.barebones:
            return
        device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device  # MPS has no float64
        with attached(pl_module, trainer):
            for name, value in record.metrics().items():
                pl_module.log(
                    f"{self.prefix}/{name}",
                    # a Python float would be rounded to float32, possibly to below the certificate
                    torch.tensor(value, dtype=torch.float64, device=device),
                    prog_bar=self._prog_bar and name == self._shown,
                    on_step=False,
                    on_epoch=True,
                    reduce_fx="max",
                    sync_dist=True,
                    add_dataloader_idx=False,
                    batch_size=1,
                )

    def write(self, trainer: Trainer, record: Measured) -> None:
        """After the last epoch, where ``self.log`` is forbidden: at the step of what the last epoch logged."""
        metrics = {f"{self.prefix}/{name}": value for name, value in record.metrics().items()}
        step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
            logger.save()
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in metrics.items()}
        trainer.callback_metrics.update(tensors)

    def warn(self, result: Measurement) -> None:
        """Of what went wrong, and of a bound above the one that was asked for; each once."""
        record, limit = result.record, self._max_lipschitz
        if result.trouble is not None:
            self._once("trouble", f"{result.trouble} The upper bound logged is {record.upper_bound:.6g}.", record)
        if limit is not None and record.upper_bound > limit:
            known = "" if record.lower_bound is None else f", the constant at least {record.lower_bound:.6g}"
            self._once(
                "limit", f"the upper bound is {record.upper_bound:.6g}{known}: above `max_lipschitz={limit:g}`.", record
            )

    def _once(self, subject: str, sentence: str, record: Record) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            rank_zero_warn(f"`LipschitzCallback` in epoch {record.epoch}, step {record.global_step}: {sentence}")
