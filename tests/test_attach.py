"""Every model of the zoo in a real fit, unchanged: the certificate, and CLIP, by attaching and inheriting."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from tests.models import ZOO, make
from tests.modules import UNAVOIDABLE

pytestmark = [pytest.mark.filterwarnings(message) for message in UNAVOIDABLE]


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


@pytest.mark.parametrize("name", ZOO)
def test_the_callback_and_the_mixin_attach(name):
    model, shape = make(name)
    keys = list(model.state_dict())
    dtype = next(p.dtype for p in model.parameters())
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    watch = ll.LipschitzCallback(method="closed-form" if name == "ResNet-18 body" else "auto")
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[watch],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regularised(model.train()), DataLoader(TensorDataset(x), batch_size=4))
    found = trainer.callback_metrics
    assert watch.certificate is not None
    assert watch.certificate.certified
    assert 0 < found["clip/lower_bound"] < math.inf
    assert found["lipschitz/lower_bound"] <= found["lipschitz/upper_bound"] < math.inf
    assert list(model.state_dict()) == keys
