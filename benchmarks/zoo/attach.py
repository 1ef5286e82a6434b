"""A published model in a LightningModule that knows nothing of it, trained with callback and mixin on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from common import quiet_trainer
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz.errors import LipschitzError
from zoo.entry import Entry, reason

EPOCHS, BATCHES, BATCH_SIZE = 2, 4, 4

HEADER = (
    "model",
    "upper bound, epoch 1",
    "upper bound, epoch 2",
    "lower bound",
    "CLIP's lower bound",
    "same keys",
    "same train flags",
    "seconds",
    "seconds without",
    "remark",
)


class Regression(pl.LightningModule):
    """What a user writes around a model that somebody else published."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Clipped(ll.CLIPMixin, Regression, clip_weight=0.01):
    """The same with the mixin in its class line."""


class Kept(Logger):
    """What a logger is given, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append(dict(metrics))

    def values(self, key: str) -> list[float]:
        return [line[key] for line in self.lines if key in line]


def fitted(entry: Entry, kind: type[Regression], *callbacks: pl.Callback) -> tuple[Regression, Kept, float]:
    """The module after two epochs on random targets, what was logged, and the seconds of the fit."""
    torch.manual_seed(0)
    model, example = entry.make()
    x = torch.rand(BATCHES * BATCH_SIZE, *example.shape[1:])
    with torch.no_grad():
        y = torch.randn_like(model.eval()(x))
    logger, module = Kept(), kind(model.train())
    trainer = quiet_trainer(EPOCHS, *callbacks, logger=logger)
    start = time.perf_counter()
    trainer.fit(module, DataLoader(TensorDataset(x, y), BATCH_SIZE))
    return module, logger, time.perf_counter() - start


def attached(entry: Entry) -> dict[str, Any]:
    """One line of the table."""
    plain, _, without = fitted(entry, Regression)
    start = time.perf_counter()
    try:
        module, logger, seconds = fitted(entry, Clipped, ll.LipschitzCallback(every_n_epochs=1, time_limit=10))
    except LipschitzError as error:
        return {"refusal": str(error), "seconds": time.perf_counter() - start}
    return {
        "upper": logger.values("lipschitz/upper_bound"),
        "lower": logger.values("lipschitz/lower_bound"),
        "clip": logger.values("clip/lower_bound"),
        "keys": list(plain.state_dict()) == list(module.state_dict()),
        "flags": [m.training for m in plain.modules()] == [m.training for m in module.modules()],
        "seconds": seconds,
        "without": without,
        "usable": finite_outputs(plain, entry),
    }


@torch.no_grad()
def finite_outputs(module: nn.Module, entry: Entry) -> bool:
    """Whether the model is of any use as its users run it, in eval mode: batch norms may have drifted too far."""
    _, example = entry.make()
    return bool(module.eval()(example).isfinite().all())


def row(entry: Entry, answer: dict[str, Any]) -> list[str]:
    name = f"{entry.package}: {entry.name}"
    if "upper" not in answer:
        return [name, *[""] * 6, f"{answer['seconds']:.1f}", "", reason(answer)]
    remark = "" if answer["usable"] else "trained without them too, its outputs in eval mode are not finite"
    upper = [f"{value:.4g}" for value in answer["upper"]]
    lower, clip = (f"{answer[key][-1]:.4g}" if answer[key] else "" for key in ("lower", "clip"))
    same = ["yes" if answer[key] else "no" for key in ("keys", "flags")]
    return [name, *(upper + [""] * EPOCHS)[:EPOCHS], lower, clip, *same, *_seconds(answer), remark]


def _seconds(answer: dict[str, Any]) -> list[str]:
    return [f"{answer[key]:.1f}" for key in ("seconds", "without")]


def summary(answers: Sequence[dict[str, Any]]) -> str:
    ended = [a for a in answers if "upper" in a]
    finite = sum(len(a["upper"]) == EPOCHS and all(value < float("inf") for value in a["upper"]) for a in ended)
    pairs = [pair for a in ended for key in ("lower", "clip") for pair in zip(a[key], a["upper"], strict=False)]
    above = sum(found > proved for found, proved in pairs)
    unchanged = sum(a["keys"] and a["flags"] for a in ended)
    return (
        f"{len(answers)} models, {EPOCHS} epochs of {BATCHES} batches of {BATCH_SIZE} with"
        f" `LipschitzCallback(every_n_epochs=1, time_limit=10)` and `CLIPMixin`: {len(ended)} fits ended;"
        f" {finite} logged a finite upper bound in every epoch;"
        f" {unchanged} kept their `state_dict` keys and train flags;"
        f" {above} lower bounds above the upper bound of the same weights. Lower bounds are those of the last epoch."
    )
