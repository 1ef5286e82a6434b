"""A model that is another one after some epochs: what is logged and written is of the one that runs."""

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll

BOUND = 1.0


def loader():
    inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=8)


class Net(LightningModule):
    """Changes in epoch 1 of 3, by ``change``."""

    def __init__(self, change):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        self.scale, self.change = 1.0, change

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.change(self)

    def forward(self, x):
        return self.scale * self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def rescale(m):
    m.scale = 12.0


def append(m):
    m.net.append(nn.Linear(2, 2))
    m.net[3].weight.data.fill_(30.0)


def exchange_the_activation(m):
    m.net[1] = nn.PReLU(init=9.0)


def exchange_the_network(m):
    m.net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    m.net[0].weight.data.mul_(50.0)


def hook_the_output(m):
    m.net.register_forward_hook(lambda module, args, output: 12.0 * output)


CHANGES = [rescale, append, exchange_the_activation, exchange_the_network, hook_the_output]


def fresh(change):
    model = Net(change)
    change(model)
    return model


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("callback", [ll.LipschitzADMM, ll.LipschitzBarrier])
@pytest.mark.filterwarnings("ignore:.*(model has changed|outside of `max_lipschitz|come to meet|were shortened)")
def test_every_file_keeps_the_bound(tmp_path, trainer, callback, change):
    torch.manual_seed(0)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    model = Net(change)
    trainer(callback(BOUND), saver, max_epochs=3, enable_checkpointing=True).fit(model, loader())
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) >= 4
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        read = fresh(change) if checkpoint["epoch"] >= 1 else Net(change)
        read.load_state_dict(checkpoint["state_dict"])
        assert ll.certify(read, torch.zeros(1, 3)).upper_bound <= BOUND * (1 + 1e-6)
    assert ll.certify(model, torch.zeros(1, 3)).upper_bound <= BOUND * (1 + 1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_logged_is_of_the_model_that_runs(trainer, change):
    callback, model = ll.LipschitzCallback(), Net(change)
    trainer(callback, max_epochs=3).fit(model, loader())
    assert callback.history[-1]["upper_bound"] == pytest.approx(
        ll.certify(model, torch.zeros(1, 3)).upper_bound, rel=1e-4
    )
    assert callback.history[-1]["upper_bound"] > 3 * callback.history[0]["upper_bound"]
