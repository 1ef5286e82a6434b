"""The composed route through the public functions, files and callbacks."""

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz.certificate import Composition
from lightning_lipschitz.errors import ArgumentError, CertificateError, UnsupportedModuleError
from tests.graph.models import Residual, make
from tests.modules import UNAVOIDABLE

pytestmark = [pytest.mark.filterwarnings(message) for message in UNAVOIDABLE]


@pytest.fixture(scope="module")
def lenet():
    model, shape = make("lenet")
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    return model, x, ll.certify(model, x, method="composed")


def test_named_in_the_certificate(lenet):
    model, x, certificate = lenet
    assert certificate.certified
    assert certificate.method == "composed"
    assert "composed" in certificate.sentence()
    assert ll.lower_bound(model, x, steps=5, pairs=8).value <= certificate.upper_bound
    assert ll.certify(model, x).method != "composed"


def test_proved_again_from_the_model_and_from_a_file(lenet, tmp_path):
    model, x, certificate = lenet
    assert ll.verify(certificate, model, x) == certificate.upper_bound
    certificate.save(tmp_path / "certificate.npz")
    loaded = ll.Certificate.load(tmp_path / "certificate.npz")
    assert loaded.summary() == certificate.summary()
    assert [block[:2] for block in loaded.proof.blocks] == [block[:2] for block in certificate.proof.blocks]
    assert certificate.proof.blocks
    np.testing.assert_array_equal(loaded.proof.norms, certificate.proof.norms)
    assert ll.verify(loaded, model, x) == certificate.upper_bound


def test_of_another_model_or_damaged(lenet):
    from dataclasses import replace

    model, x, certificate = lenet
    other, _ = make("lenet")
    other[0].weight.data *= 0.5
    with pytest.raises(CertificateError, match="another network"):
        ll.verify(certificate, other, x)
    lower = replace(certificate, proof=Composition(certificate.proof.norms * 0.9, ()))
    with pytest.raises(CertificateError, match="does not hold"):
        ll.verify(lower, model, x)
    less = replace(certificate, upper_bound=certificate.upper_bound * 0.99)
    with pytest.raises(CertificateError, match="does not hold"):
        ll.verify(less, model, x)


def test_files_that_are_not_proofs(lenet):
    from lightning_lipschitz.certificate.encoding import decode, encode

    description, arrays = encode(lenet[2].proof)
    with pytest.raises(ValueError, match="fewer"):
        decode(description, [])
    with pytest.raises(ValueError, match="more"):
        decode(description, [*arrays, arrays[0]])


def test_it_reads_modules_only():
    with pytest.raises(ArgumentError, match="composed"):
        ll.certify([[[1.0]]], method="composed")
    with pytest.raises(UnsupportedModuleError):
        ll.certify(nn.GLU(), torch.zeros(1, 4), method="composed")


class Classifier(LightningModule):
    """Its explicit first matrix would have 16384 rows and 3072 columns."""

    def __init__(self):
        super().__init__()
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Residual(16, 16, 2), *head)
        self.example_input_array = torch.zeros(1, 3, 32, 32)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(tmp_path, *callbacks):
    torch.manual_seed(0)
    model, data = Classifier(), TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=4))
    return model, trainer


def test_attached_to_a_fit_it_chooses_by_size_and_changes_nothing(tmp_path):
    callback = ll.LipschitzCallback()
    model, trainer = fit(tmp_path, callback)
    (record,) = callback.history
    assert record["method"] == "composed"
    assert record["solver_ok"]
    assert 0 < record["lower_bound"] <= record["upper_bound"] < float("inf")
    assert trainer.callback_metrics["lipschitz/upper_bound"] == record["upper_bound"]
    assert ll.verify(callback.certificate, model) == record["upper_bound"]
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    assert torch.load(tmp_path / "with.ckpt", weights_only=True)["lipschitz"]["method"] == "composed"
    alone, _ = fit(tmp_path)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
