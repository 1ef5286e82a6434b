"""The four trainings of the demo, and what is measured of each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_lipschitz import api
from lightning_lipschitz._lightning import Callback, LightningModule, Trainer, pl
from lightning_lipschitz.callbacks import LipschitzCallback, LipschitzMargin, LipschitzScale
from lightning_lipschitz.certificate import Certificate, Multipliers
from lightning_lipschitz.demo.data import Digits
from lightning_lipschitz.demo.model import Classifier, ClippedClassifier
from lightning_lipschitz.functional import certified_radius
from lightning_lipschitz.pairwise import pairwise_bounds

MAX_LIPSCHITZ = 5.0  # of LipschitzScale
RADIUS = 0.3  # of LipschitzMargin
RADII = (0.1, 0.3)
HIDDEN = {"scikit-learn digits": (64, 32), "MNIST": (128, 64)}
BATCH_SIZE = {"scikit-learn digits": 50, "MNIST": 100}

Watch: TypeAlias = LipschitzCallback | LipschitzScale

_LOGIT_ERROR = 1e-9  # far more than rounding does to logits of such networks in float64


@dataclass(frozen=True)
class Epoch:
    """An epoch of plain training: accuracy in [0, 1], and three bounds of the l2 Lipschitz constant."""

    epoch: int
    accuracy: float
    lower: float
    certified: float
    product: float


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out of one training.

    Attributes:
        accuracy: share of the test images that are right, in [0, 1].
        lower: slope of the steepest pair found.
        certificate: certificate of the trained weights.
        radii: certified l2 radius of each test image, 0 where it is classified wrong.
        seconds: time of training; without that of certifying each epoch where that changes nothing, as under a bound.
        history: the certified bound of each epoch.
    """

    name: str
    model: Classifier
    accuracy: float
    lower: float
    certificate: Certificate
    radii: Tensor
    seconds: float
    history: tuple[float, ...]

    def certified_accuracy(self, radius: float) -> float:
        """The share of test images that are classified right, and so is every input within ``radius``."""
        return float((self.radii > radius).double().mean())


class EpochCollector(Callback):
    """Collects a row an epoch; the product of norms is certified here, beside the callback's own bound."""

    def __init__(self, monitor: LipschitzCallback) -> None:
        self.monitor = monitor
        self.rows: list[Epoch] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        last = self.monitor.history[-1]
        product = api.certify(pl_module, method="norm-product").upper_bound
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        self.rows.append(Epoch(last["epoch"], accuracy, last["lower_bound"], last["upper_bound"], product))


def train_plain(data: Digits, epochs: int, output: Path) -> tuple[Trained, list[Epoch]]:
    """No word of Lipschitz constants in the training; certified every epoch."""
    watch = LipschitzCallback()
    rows = EpochCollector(watch)
    outcome = _train("plain", Classifier, data, epochs, output, watch, rows)
    return outcome, rows.rows


def train_clip(data: Digits, epochs: int, output: Path) -> Trained:
    """``CLIPMixin`` as it is, certified every epoch."""
    return _train("CLIP", ClippedClassifier, data, epochs, output, LipschitzCallback())


def train_margin(data: Digits, epochs: int, output: Path) -> Trained:
    """``LipschitzMargin`` as it is, certified every epoch."""
    return _train("margin", Classifier, data, epochs, output, LipschitzCallback(), LipschitzMargin(RADIUS))


def train_scale(data: Digits, epochs: int, output: Path) -> Trained:
    """``LipschitzScale`` as it is: every epoch's weights meet the bound."""
    return _train("scale", Classifier, data, epochs, output, LipschitzScale(max_lipschitz=MAX_LIPSCHITZ))


def _train(
    name: str, kind: type[Classifier], data: Digits, epochs: int, output: Path, watch: Watch, *more: Callback
) -> Trained:
    pl.seed_everything(0, verbose=False)
    model = kind((data.train[0].shape[1], *HIDDEN[data.name], 10))
    logger = pl.loggers.TensorBoardLogger(output / "tensorboard", name=name)
    seconds = _fit(model, data, epochs, [watch, *more], logger)
    history = {record["epoch"]: record["upper_bound"] for record in watch.history if record["epoch"] < epochs}
    if isinstance(watch, LipschitzCallback):
        seconds -= sum(record["seconds"] for record in watch.history)
    multipliers = [each.multipliers for each in more if isinstance(each, LipschitzMargin)]
    return _measured(name, model, data, seconds, tuple(history.values()), multipliers)


def _fit(model: Classifier, data: Digits, epochs: int, callbacks: list[Callback], logger: pl.loggers.Logger) -> float:
    """Wall time in seconds."""
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=logger,
        accelerator="cpu",
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The '\\w+_dataloader' does not have many workers")  # one index a batch
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # inside Lightning
        trainer.fit(model, *data.loaders(BATCH_SIZE[data.name]))
    return time.perf_counter() - start


def _measured(
    name: str,
    model: Classifier,
    data: Digits,
    seconds: float,
    history: tuple[float, ...],
    multipliers: Sequence[Multipliers | None],
) -> Trained:
    """What is measured of a training; in float64, so that radii are those of the weights and not of rounding."""
    x, y = data.test[0].double(), data.test[1]
    model.eval().double()
    pairs = pairwise_bounds(model, refine=False, warm_start=multipliers)
    with torch.no_grad():
        logits = model(x)
    accuracy = float((logits.argmax(1) == y).double().mean())
    radii = certified_radius(logits, torch.from_numpy(pairs.matrix.copy()), y, logit_error=_LOGIT_ERROR)
    lower = api.lower_bound(model, x[:256]).value
    return Trained(name, model, accuracy, lower, api.certify(model), radii, seconds, history)
