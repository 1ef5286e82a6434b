"""From the command line, and in the Trainer of either package."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningCLI

from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.bounds.settings import ProvedMethod
from lightning_lipschitz.callbacks import LipschitzCallback
from tests.modules import UNAVOIDABLE, Classifier, body, loader

# LightningCLI uses what jsonargparse has deprecated.
PARSER = r"ignore:\s+:DeprecationWarning"

pytestmark = [pytest.mark.filterwarnings(message) for message in (*UNAVOIDABLE, PARSER)]

ROOT = Path(__file__).parents[1]

CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_lipschitz.LipschitzCallback
      init_args:
        every_n_epochs: 1
        module: net
        input: null
        output: null
        method: lipsdp-layer
        solver: auto
        rtol: 0.001
        time_limit: null
        lower_bound: true
        max_lipschitz: 1000.0
        prog_bar: false
        certified_radii: [0.5]
        report: null
"""
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(8)


def run(*arguments):
    cli = LightningCLI(
        Classifier, Data, args=["fit", *arguments], save_config_callback=None, seed_everything_default=False
    )
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, LipschitzCallback))
    assert cli.trainer.callback_metrics["lipschitz/upper_bound"] == callback.certificate.upper_bound
    return callback


@pytest.fixture(autouse=True)
def no_arguments_of_pytest(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv[:1])


@pytest.fixture
def config(tmp_path):
    def write(old="", new=""):
        path = tmp_path / "config.yaml"
        path.write_text(CONFIG.replace(old, new) if old else CONFIG)
        return str(path)

    return write


def test_yaml_without_code(config):
    callback = run("--config", config())
    assert (callback.module, callback.method, callback.rtol) == ("net", "lipsdp-layer", 0.001)
    assert (callback.time_limit, callback.max_lipschitz, callback.prog_bar) == (None, 1000.0, False)
    assert len(callback.history) == 2


PARTS = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_lipschitz.LipschitzCallback
      init_args: {input: action, output: value}
    - class_path: lightning_lipschitz.LipschitzCallback
      init_args: {input: 0, output: all}
    - class_path: lightning_lipschitz.LipschitzADMM
      init_args: {max_lipschitz: 0.5, every_n_steps: 2, input: state, output: value}
"""


class Pair(Classifier):
    """Two inputs and two outputs, by name."""

    def forward(self, state, action):
        return {"value": self.net(state) + action[:, :1], "again": action}

    def training_step(self, batch, batch_idx):
        return self(batch[0], batch[0][:, :2])["value"].square().mean()

    validation_step = training_step


@pytest.mark.filterwarnings("ignore:.*the training weights did not come to meet")
def test_inputs_and_outputs_by_name_and_position(tmp_path):
    (tmp_path / "config.yaml").write_text(PARTS)
    given = ["fit", "--config", str(tmp_path / "config.yaml")]
    cli = LightningCLI(Pair, Data, args=given, save_config_callback=None, seed_everything_default=False)
    callbacks = [each for each in cli.trainer.callbacks if hasattr(each, "certificate")]
    chosen = [(each.input, each.output) for each in callbacks]
    assert chosen == [("action", "value"), (0, "all"), ("state", "value")]
    bounds = [each.certificate.upper_bound for each in callbacks]
    assert bounds[0] == pytest.approx(3**0.5)  # three outputs, each with the action's first entry
    assert 0.4 < bounds[1] <= bounds[2] * (1 + 1e-3) <= 0.5 * (1 + 1e-3)


def test_short_name(config):
    callback = run(*QUIET, "--trainer.callbacks+=LipschitzCallback", "--trainer.callbacks.method=closed-form")
    assert callback.method == "closed-form"


def test_every_method_that_the_callback_takes(config):
    for method in get_args(ProvedMethod):
        callback = run("--config", config("lipsdp-layer", method))
        assert callback.method == callback.history[-1]["method"] or method == "auto"


def test_printed_config_is_the_config(config, capsys):
    with pytest.raises(SystemExit):
        run("--config", config(), "--print_config")
    printed, given = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(CONFIG)
    assert printed["trainer"]["callbacks"] == given["trainer"]["callbacks"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lipsdp-layer", "lipsdp-network", "lipsdp-network"),
        ("solver: auto", "solver: mosek", "mosek"),
        ("prog_bar: false", "progress: false", "progress"),
    ],
)
def test_what_the_parser_refuses_is_named(old, new, message, config, capsys):
    with pytest.raises(SystemExit):
        run("--config", config(old, new))
    assert message in capsys.readouterr().err


def test_what_the_constructor_refuses_is_named(config):
    with pytest.raises(
        (MisconfigurationException, ValueError), match=r"`rtol` must be a number between 0 and 1, got 2\.0"
    ):
        run("--config", config("rtol: 0.001", "rtol: 2.0"))


OTHER_PACKAGE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self(batch).square().mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8, 3), 4)
    val_dataloader = train_dataloader

cli = LightningCLI(Net, Data, save_config_callback=None)
import lightning_lipschitz._lightning as chosen
callback = next(c for c in cli.trainer.callbacks if type(c).__name__ == "LipschitzCallback")
print("RESULT", chosen.pl.__name__, "pytorch_lightning" in sys.modules, isinstance(callback, chosen.pl.Callback),
      len(callback.history), cli.trainer.callback_metrics["lipschitz/upper_bound"] == callback.certificate.upper_bound)
"""


def test_other_package(config, tmp_path):
    """`lightning.pytorch` alone is imported, from its own command line."""
    (tmp_path / "program.py").write_text(OTHER_PACKAGE)
    done = subprocess.run(
        [sys.executable, "program.py", "fit", "--config", config()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "RESULT lightning.pytorch False True 2 tensor(True)" in done.stdout, done.stderr


def test_both_packages_in_one_process(tmp_path):
    """A callback made for one package in the Trainer of the other: it asks for methods, not for types."""
    import lightning.pytorch as other

    class Net(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = body()

        forward, _loss, training_step = Classifier.forward, Classifier._loss, Classifier.training_step
        validation_step = Classifier.validation_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.5)

    assert not issubclass(LipschitzCallback, other.Callback)
    callback = LipschitzCallback()
    saver = other.callbacks.ModelCheckpoint(dirpath=tmp_path, monitor="lipschitz/upper_bound")
    trainer = other.Trainer(
        callbacks=[callback, saver],
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), loader(), loader(8))
    stamp = torch.load(saver.best_model_path, weights_only=True)["lipschitz"]
    assert stamp["upper_bound"] == saver.best_model_score == min(r["upper_bound"] for r in callback.history)
