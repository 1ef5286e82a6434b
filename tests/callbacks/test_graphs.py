"""Training under a bound beyond chains of nn.Linear: real fits of a residual network and of a small CNN."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier, LipschitzScale
from lightning_lipschitz.errors import ProjectionError
from tests.models import Lambda
from tests.training.graphs import UnitRows

BOUND = 1.0
SHAPE = (1, 4, 4)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the training weights did not come to meet"),
    pytest.mark.filterwarnings("ignore:.*optimizer steps would have broken"),
    pytest.mark.filterwarnings("ignore:.*the weights were outside"),
    pytest.mark.filterwarnings("ignore:.*a round failed"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def residual():
    def forward(m, x):
        h = torch.relu(m.first(x.flatten(1)))
        return m.last(h + torch.relu(m.second(h)))

    return Lambda(forward, first=nn.Linear(16, 6), second=nn.Linear(6, 6), last=nn.Linear(6, 3))


def cnn(norm=nn.Identity):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2), norm(), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.Tanh(), nn.Flatten(1)
    )


def divided():
    """A layer that does not exist at zero weights."""
    return nn.Sequential(nn.Flatten(1), UnitRows(16, 6), nn.ReLU(), nn.Linear(6, 3))


def batch_normed():
    return cnn(lambda: nn.BatchNorm2d(3))


MODELS = {"residual": residual, "cnn": cnn, "rows of norm 1": divided}


class Module(pl.LightningModule):
    """Its weights grow: a large learning rate, and labels that only a steep function separates."""

    def __init__(self, make=residual):
        super().__init__()
        self.net = make()
        self.example_input_array = torch.zeros(2, *SHAPE)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


def batches():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(16, *SHAPE, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(3, (16,), generator=generator)), 4)


def admm(**options):
    return LipschitzADMM(BOUND, **{"every_n_steps": 3, "penalty": 0.1, **options})


def barrier():
    return LipschitzBarrier(BOUND, strength=1e-3)


def scale():
    return LipschitzScale(BOUND)


METHODS = pytest.mark.parametrize("method", [admm, barrier, scale])


def run(trainer, module, callback, folder, **options):
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True)
    trainer(callback, saver, **options).fit(module, batches(), batches())


def certified(file, make):
    """The bound of a file, certified anew from nothing but its weights."""
    module = Module(make)
    module.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    return ll.certify(module.net, module.example_input_array, rtol=1e-8).upper_bound


@METHODS
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_every_file_meets_the_bound(precision, name, method, trainer, tmp_path):
    torch.manual_seed(0)
    module = Module(MODELS[name])
    if method is scale and name == "cnn":  # it ends in a tanh
        with pytest.raises(ProjectionError, match="last affine layer"):
            run(trainer, module, method(), tmp_path, precision=precision)
        return
    run(trainer, module, method(), tmp_path, precision=precision)
    files = sorted(Path(tmp_path).rglob("*.ckpt"))
    assert len(files) >= 4
    for file in files:
        bound = certified(file, MODELS[name])
        assert bound <= BOUND * (1 + 1e-6)
    assert bound >= 0.3 * BOUND  # and not because there is nothing left
    here = ll.certify(module.net.double(), module.example_input_array, rtol=1e-8).upper_bound
    assert here <= BOUND * (1 + 1e-6)


def test_without_a_callback_it_would_break_the_bound(trainer, tmp_path):
    torch.manual_seed(0)
    module = Module()
    trainer(max_epochs=2).fit(module, batches())
    assert ll.certify(module.net, module.example_input_array).upper_bound > 1.5 * BOUND


@METHODS
def test_resume_is_exact(method, trainer, tmp_path):
    def go(folder, epochs, ckpt_path=None):
        torch.manual_seed(5)
        module = Module()
        saver = ModelCheckpoint(dirpath=tmp_path / folder, filename="{epoch}")
        trainer(method(), saver, max_epochs=epochs).fit(module, batches(), batches(), ckpt_path=ckpt_path)
        return module.state_dict(), torch.load(saver.best_model_path, weights_only=True)

    whole, one = go("whole", 3)
    go("half", 2)
    rest, other = go("rest", 3, tmp_path / "half" / "epoch=1.ckpt")
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in whole)


def test_the_live_weights_stay_inside(trainer):
    bounds = []

    class Witness(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            copied = copy.deepcopy(pl_module.net).double()
            bounds.append(ll.certify(copied, torch.zeros(2, *SHAPE)).upper_bound)

    torch.manual_seed(0)
    trainer(barrier(), Witness(), max_epochs=2).fit(Module(cnn), batches())
    assert max(bounds) <= BOUND * (1 + 1e-6)
    assert len(bounds) == 8


def test_running_statistics_are_certified_as_they_are_saved(trainer, tmp_path):
    torch.manual_seed(0)
    run(trainer, Module(batch_normed), admm(), tmp_path)
    files = sorted(Path(tmp_path).rglob("*.ckpt"))
    assert len(files) >= 4
    assert all(certified(file, batch_normed) <= BOUND * (1 + 1e-6) for file in files)


def test_the_barrier_refuses_running_statistics(trainer):
    with pytest.raises(ProjectionError, match=r"`net.1` \(BatchNorm2d\).*running statistics"):
        trainer(barrier()).fit(Module(batch_normed), batches())


def test_a_free_bound_falls_with_its_price(trainer):
    bounds = []
    for weight in (1e-4, 1.0):
        torch.manual_seed(0)
        callback = LipschitzADMM(mode="regularize", weight=weight, every_n_steps=2, penalty=0.1)
        module = Module()
        trainer(callback, max_epochs=3).fit(module, batches())
        bounds.append(callback.certificate.upper_bound)
    assert bounds[1] < 0.7 * bounds[0]


@pytest.mark.parametrize("method", [admm, barrier])
def test_a_bound_below_that_of_the_skip_connection(method, trainer):
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return 3.0 * x.flatten(1) + torch.relu(self.layer(x.flatten(1)))

    mine = trainer(method(), max_epochs=1)
    with pytest.raises(ProjectionError, match="skip connections"):
        mine.fit(Module(Skip), batches())
