from pathlib import Path

import pytest
import pytorch_lightning as pl

from tests.modules import UNAVOIDABLE, loader


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for message in UNAVOIDABLE:
                item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture
def trainer(tmp_path):
    """Makes a quiet Trainer on the CPU; keyword arguments as of Trainer."""

    def make(*callbacks, package=pl, **options):
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(type(c).__name__ == "ModelCheckpoint" for c in callbacks),
            "default_root_dir": tmp_path,
        }
        return package.Trainer(callbacks=list(callbacks), **{**quiet, **options})

    return make


@pytest.fixture
def fit(trainer):
    """Fits a module to the tiny data and returns the Trainer."""

    def run(module, *callbacks, val=True, ckpt_path=None, **options):
        made = trainer(*callbacks, **options)
        validation = loader(8) if val is True else val or None
        made.fit(module, loader(), validation, ckpt_path=ckpt_path)
        return made

    return run
