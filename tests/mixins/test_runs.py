"""CLIPMixin in runs that are short, unusual or of the other package: what they do without it they do with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.plugins import MixedPrecision

import lightning_lipschitz as ll
from tests.loops import OnlyBatchOneIsSkipped, adam, distance, scaler
from tests.modules import Classifier, loader

ROOT = Path(__file__).parents[2]


class Net(ll.CLIPMixin, Classifier, clip_weight=0.3):
    pass


def seeded(kind=Net):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"limit_train_batches": 1}, 2),
        ({"limit_train_batches": 0}, 0),
        ({"max_epochs": 0}, 0),
        ({"max_steps": 3}, 3),
        ({"limit_val_batches": 0}, 8),
        ({"barebones": True}, 8),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*barebones")
@pytest.mark.filterwarnings("ignore:.*limit_train_batches")
def test_short_runs(options, steps, trainer):
    """The penalty is in every step that there is."""
    defaults = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    options = {**(defaults if "barebones" in options else {}), **options}
    module, plain = seeded(), seeded(Classifier)
    made = trainer(**options)
    made.fit(module, loader(), loader(8))
    trainer(**options).fit(plain, loader(), loader(8))
    assert made.global_step == steps
    assert (distance(module, plain) > 1e-3) == (steps > 0)
    logged = "clip/lower_bound" in made.callback_metrics
    assert logged == (steps > 0 and "barebones" not in options)


def test_only_fits_are_touched(trainer):
    module = seeded()
    before = [p.detach().clone() for p in module.parameters()]
    made = trainer()
    made.validate(module, loader(8), verbose=False)
    made.test(module, loader(8), verbose=False)
    made.predict(module, loader(8))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert module._clip is None


class Overflowing(Net):
    """Its second batch has gradients that are not finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (float("inf") if batch_idx == 1 else 1.0)

    def configure_optimizers(self):
        return adam(self.parameters())


def test_steps_that_overflow_move_nothing(fit):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    fit(Overflowing(), OnlyBatchOneIsSkipped(), val=False, plugins=[plugin])


class PartlyFrozen(Net):
    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)
        self.unused = torch.nn.Linear(2, 2)


def test_frozen_and_unused_parameters_stay(fit):
    module, start = seeded(PartlyFrozen), seeded(PartlyFrozen)
    fit(module, val=False)
    for part in (lambda m: m.net[0]), (lambda m: m.unused):
        assert distance(part(module), part(start)) == 0.0
    assert distance(module.net[2], start.net[2]) > 0.0


class LineSearch(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.01, max_iter=3)


def test_every_closure_of_lbfgs_has_the_term(fit):
    counted = []

    class Counted(LineSearch):
        def clip_inputs(self, batch):
            counted.append(len(batch))
            return super().clip_inputs(batch)

    module, plain = seeded(Counted), seeded(Classifier)
    plain.configure_optimizers = lambda: torch.optim.LBFGS(plain.parameters(), 0.01, max_iter=3)
    made = fit(module, val=False, max_epochs=1)
    fit(plain, val=False, max_epochs=1)
    assert len(counted) > made.global_step
    assert distance(module, plain) > 1e-4


class Saving(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.save(pl_module, self.path)


def test_the_whole_module_is_saved_in_the_middle_of_a_fit(fit, tmp_path):
    saving = Saving()
    saving.path = tmp_path / "module.pt"
    module = seeded()
    fit(module, saving, val=False, max_epochs=1)
    again = torch.load(saving.path, weights_only=False)
    assert distance(module, again) == 0.0


OTHER = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning.pytorch as pl, torch
import lightning_lipschitz as ll
from torch.utils.data import DataLoader, TensorDataset

class Net(ll.CLIPMixin, pl.LightningModule, clip_weight=0.1):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = TensorDataset(torch.randn(16, 4), torch.randint(3, (16,)))
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Net(), DataLoader(data, 4))
print("RESULT", "pytorch_lightning" in sys.modules, sorted(trainer.callback_metrics))
"""


def test_in_the_other_package():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", OTHER]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert "RESULT False ['clip/lower_bound', 'clip/penalty', 'clip/weight']" in done.stdout, done.stderr
