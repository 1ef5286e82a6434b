"""The demo itself."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lipschitz import api
from lightning_lipschitz._lightning import Callback, LightningModule, Trainer, pl
from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.demo.data import load_digits
from lightning_lipschitz.demo.figure import draw
from lightning_lipschitz.demo.model import Classifier
from lightning_lipschitz.errors import ArgumentError, MissingExtraError

try:
    import tensorboard  # noqa: F401
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise MissingExtraError("The demo", "rich and tensorboard", "demo") from error

HIDDEN = {"scikit-learn digits": (64, 32), "MNIST": (128, 64)}


@dataclass(frozen=True)
class Epoch:
    """A row of the table."""

    epoch: int
    accuracy: float
    lower: float
    certified: float
    product: float


class _Rows(Callback):
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


def run(data_dir: str | None = None, epochs: int = 20, output: str | os.PathLike[str] = "demo_output") -> list[Epoch]:
    """Train, certify every epoch, print the table, write the picture, the TensorBoard log and the certificate.

    Args:
        data_dir: folder of MNIST's IDX files; None for scikit-learn's digits.
        epochs: of training.
        output: folder for what is written.

    Returns:
        The rows of the table.
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ArgumentError("epochs", epochs, "an integer >= 1")
    data = load_digits(data_dir)
    pl.seed_everything(0)
    model = Classifier((data.train[0].shape[1], *HIDDEN[data.name], 10))
    monitor = LipschitzCallback()
    rows = _Rows(monitor)
    _fit(model, data.loaders(100), [monitor, rows], epochs, Path(output))
    picture = draw(rows.rows, data.name, Path(output) / "demo.png")
    if monitor.certificate is not None:
        _report(rows.rows, picture, model, monitor.certificate, Path(output))
    return rows.rows


def _fit(model: Classifier, loaders: tuple[Any, Any], callbacks: list[Callback], epochs: int, output: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The '\\w+_dataloader' does not have many workers")  # one index a batch
        warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # inside Lightning
        trainer = Trainer(
            max_epochs=epochs,
            callbacks=callbacks,
            logger=pl.loggers.TensorBoardLogger(output, name="tensorboard"),
            accelerator="cpu",
            log_every_n_steps=10,
            enable_model_summary=False,
        )
        trainer.fit(model, *loaders)


def _report(rows: list[Epoch], picture: Path, model: Classifier, certificate: Certificate, log: Path) -> None:
    table = Table(title="Lipschitz constant of the classifier (l2), epoch by epoch")
    for column in ("epoch", "accuracy", "lower bound (sampled)", "certified bound", "product of norms"):
        table.add_column(column, justify="right")
    for row in rows:
        bounds = (f"{value:.2f}" for value in (row.lower, row.certified, row.product))
        table.add_row(str(row.epoch), f"{row.accuracy:.1%}", *bounds)
    console = Console(file=sys.stdout)
    console.print(table)
    file = picture.with_name("certificate.npz")
    certificate.save(file)
    proved = api.verify(certificate, model)
    console.print(f"Proved again on the trained weights: |f(x) - f(y)| <= {proved!r} |x - y| for all x, y.")
    console.print(f"picture      {picture}\ncertificate  {file}\ntensorboard  --logdir {log}")
