"""One real fit with the option, and the checkpoint that it leaves, for all tests of the page."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

import lightning_lipschitz as ll
from lightning_lipschitz.demo.data import load_digits
from lightning_lipschitz.demo.model import Classifier
from tests.modules import UNAVOIDABLE


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for message in UNAVOIDABLE:
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture
def undrawn(monkeypatch):
    """A page without pictures, for tests of its words: drawing takes most of the time."""
    monkeypatch.setattr("lightning_lipschitz.report.page.draw_all", lambda *_: ())


@dataclass
class Run:
    folder: Path
    callback: ll.LipschitzCallback
    model: Classifier
    trainer: pl.Trainer

    @property
    def page(self):
        return self.folder / "out" / "report.html"

    @property
    def checkpoint(self):
        return self.folder / "last.ckpt"


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    pl.seed_everything(0, verbose=False)
    model = Classifier((64, 16, 10))
    callback = ll.LipschitzCallback(report=folder / "out" / "report.html")
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[callback],
        logger=TensorBoardLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
    )
    trainer.fit(model, *data.loaders(100))
    trainer.save_checkpoint(folder / "last.ckpt")
    return Run(folder, callback, model, trainer)
