"""LightningModules and data for the tests of callbacks: tiny, deterministic, one class a habit of users."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll

# Lightning's own advice, which a test cannot follow.
UNAVOIDABLE = (
    r"ignore:The '\w+' does not have many workers which may be a bottleneck",
    r"ignore:The number of training batches \(\d+\) is smaller than the logging interval",
    r"ignore:You defined a `validation_step` but have no `val_dataloader`",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated",
)

INPUTS, CLASSES = 4, 3


def body(hidden: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def loader(samples: int = 16, batch_size: int = 4, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, INPUTS, generator=generator)
    y = torch.randint(CLASSES, (samples,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=shuffle)


class Classifier(pl.LightningModule):
    """The usual one: a `forward`, and steps that call it."""

    def __init__(self, hidden: int = 8, lr: float = 0.5):
        super().__init__()
        self.save_hyperparameters()
        self.net = body(hidden)

    def forward(self, x):
        return self.net(x)

    def _loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def training_step(self, batch, batch_idx):
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self._loss(batch))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)


class Noisy(Classifier):
    """Uses every random stream and every kind of state that a callback could disturb."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(INPUTS, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
        self.frozen = nn.BatchNorm1d(INPUTS)

    def forward(self, x):
        return self.net(self.frozen(x))

    def on_train_start(self):
        self.frozen.eval()

    def training_step(self, batch, batch_idx):
        import random

        import numpy as np

        x, y = batch
        x = x + 0.1 * torch.randn_like(x) + 0.1 * np.random.rand() + 0.1 * random.random()
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        self.log("frozen", float(self.frozen.training))
        return loss


class NoForward(Classifier):
    """No `forward`; the steps call the only child."""

    forward = pl.LightningModule.forward

    def _loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)


class Bypassed(NoForward):
    """A `forward` that the steps never call."""

    def forward(self, x):
        return self.net(x)


class DictBatches(Bypassed):
    """As above, with batches from which no input can be guessed."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {"x": batch[0], "y": batch[1]}

    def _loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])


class Pair(Classifier):
    """Two submodules worth certifying."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(INPUTS, 6), nn.Tanh(), nn.Linear(6, INPUTS))

    def forward(self, x):
        return self.net(input=self.encoder(x))


class Idle(Classifier):
    """A submodule that is never called."""

    def __init__(self):
        super().__init__()
        self.spare = body()


class Uncertifiable(Classifier):
    """No finite Lipschitz constant."""

    def forward(self, x):
        return self.net(x).square()


class WithExample(Classifier):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, INPUTS)


class UncertifiableWithExample(Uncertifiable):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, INPUTS)


class Diverging(Classifier):
    """Its weights become NaN in the second epoch."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            with torch.no_grad():
                self.net[0].weight.fill_(float("nan"))


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self._loss(batch))
        optimizer.step()


class Fitted(pl.LightningModule):
    """Any model, with a loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).float().square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


class Regularised(ll.CLIPMixin, Fitted):
    """The same, and nothing else."""
