import pytest
import pytorch_lightning as pl

from tests.modules import loader

# Lightning's own advice, which a test cannot follow.
UNAVOIDABLE = (
    r"ignore:The '\w+' does not have many workers which may be a bottleneck",
    r"ignore:The number of training batches \(\d+\) is smaller than the logging interval",
    r"ignore:You defined a `validation_step` but have no `val_dataloader`",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "callbacks" in item.path.parts or item.path.name == "test_lightning_cli.py":
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
