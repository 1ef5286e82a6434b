"""What a callback says of a fit: numbers to ``self.log`` and the loggers, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from lightning_lipschitz._lightning import LightningModule, Trainer, rank_zero_warn


@contextmanager
def attached(pl_module: LightningModule, trainer: Trainer) -> Iterator[None]:
    """``self.log`` asks the Trainer that the module met last: another one, if one has run on it in a hook."""
    last, pl_module._trainer = pl_module._trainer, trainer
    try:
        yield
    finally:
        pl_module._trainer = last


def validates_training(trainer: Trainer) -> bool:
    """Whether the validation that begins is one of a fit, and not the sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


class MetricLog:
    """Metrics of one callback in one fit.

    Args:
        prefix: first part of the keys.
        prog_bar: whether one of them is shown in the progress bar.
        shown: the last part of its key.
    """

    def __init__(self, prefix: str, prog_bar: bool, shown: str = "upper_bound") -> None:
        self.prefix = prefix
        self._prog_bar, self._shown = prog_bar, shown

    def log(self, trainer: Trainer, pl_module: LightningModule, values: Mapping[str, float]) -> None:
        """Log through ``self.log``, so that checkpoints, early stopping and loggers find it beside ``val_loss``.

        Args:
            values: numbers by the last part of their keys.
        """
        if trainer.barebones:
            return
        device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device  # MPS has no float64
        with attached(pl_module, trainer):
            for name, value in values.items():
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

    def log_at_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Log after the last epoch, where ``self.log`` is forbidden, at the step of what that epoch logged."""
        metrics = {f"{self.prefix}/{name}": value for name, value in values.items()}
        step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
            logger.save()
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in metrics.items()}
        trainer.callback_metrics.update(tensors)


class OneWarningEach:
    """Warnings of one callback in one fit, one a subject."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, subject: str, sentence: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            rank_zero_warn(sentence)
