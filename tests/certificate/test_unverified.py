"""What was read from somewhere is a claim: nothing is built on it until somebody has proved it."""

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import stamped_certificates
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.certificate.encoding import encode
from lightning_lipschitz.checkpoint_files import from_plain, prove_checkpoint, to_plain
from lightning_lipschitz.errors import CertificateError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.report import Subject, gather

MATRICES = [[[1.0, 0.5, -2.0], [0.25, 3.0, 1.0]], [[2.0, 1.0], [-1.0, 0.5]]]
TRUE = ll.certify(MATRICES)
FORGED = replace(TRUE, upper_bound=1e-3)


def from_file(certificate, folder):
    certificate.save(folder / "c.npz")
    return ll.Certificate.load(folder / "c.npz")


def from_record(certificate, folder):
    description, arrays = encode(certificate.proof)
    return Certificate.from_record(certificate.summary() | {"proof": description}, arrays)


def from_checkpoint(certificate, folder):
    torch.save({"state_dict": {}, "admm": to_plain(certificate)}, folder / "last.ckpt")
    return stamped_certificates(torch.load(folder / "last.ckpt", weights_only=True))["admm"]


def from_callback(certificate, folder):
    callback = ll.LipschitzCallback()
    callback.load_state_dict({"history": [], "certificate": to_plain(certificate)})
    return callback.certificate


LOADED = {
    "a file": from_file,
    "a record": from_record,
    "plain values": lambda certificate, folder: from_plain(to_plain(certificate)),
    "a checkpoint": from_checkpoint,
    "the state of a callback": from_callback,
    "a file, and dated": lambda certificate, folder: from_file(certificate, folder).at(3, 7),
    "a file, and another bound": lambda certificate, folder: replace(from_file(certificate, folder), seconds=0.0),
    "a file, and pickled": lambda certificate, folder: pickle.loads(pickle.dumps(from_file(certificate, folder))),
    "a file, and copied": lambda certificate, folder: copy.deepcopy(copy.copy(from_file(certificate, folder))),
}


def assigned(certificate):
    metric = ll.CertifiedAccuracy(0.5)
    metric.lipschitz = certificate


USES = {
    "CertifiedAccuracy": lambda certificate: ll.CertifiedAccuracy(0.5, certificate),
    "CertifiedAccuracy, set later": assigned,
    "CertifiedRadius": lambda certificate: ll.CertifiedRadius("median", certificate),
    "pairs that start from it": lambda certificate: ll.CertifiedRadius(
        lipschitz=replace(ll.pairwise_bounds(MATRICES), whole=certificate)
    ),
    "a report": lambda certificate: gather(Subject(certificate, Network.from_weights(MATRICES)), time_limit=1.0),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("way", LOADED)
def test_nothing_comes_from_a_claim_and_all_of_it_from_what_was_proved(tmp_path, way, use):
    forged, found = LOADED[way](FORGED, tmp_path), LOADED[way](TRUE, tmp_path)
    for certificate in (forged, found):
        assert certificate.unverified
        assert "NOT proved" in repr(certificate)
        with pytest.raises(CertificateError, match="nobody has proved it"):
            USES[use](certificate)
    with pytest.raises(CertificateError, match="does not hold"):
        ll.verify(forged, MATRICES)
    with pytest.raises(CertificateError, match="another network"):
        ll.verify(found, MATRICES[:1])
    for certificate in (forged, found):
        assert certificate.unverified
    assert ll.verify(found, MATRICES) == TRUE.upper_bound
    assert not found.unverified
    assert "NOT" not in repr(found)
    USES[use](found)
    USES[use](pickle.loads(pickle.dumps(copy.copy(found.at(1, 2)))))


def test_the_mark_is_nowhere_in_what_is_written():
    loaded = from_plain(to_plain(TRUE))
    assert loaded.summary() == TRUE.summary()
    assert "unverified" not in to_plain(loaded)
    with pytest.raises(CertificateError, match="nobody"):
        ll.CertifiedRadius(lipschitz=from_plain(to_plain(TRUE) | {"unverified": False}))


def test_pairs_that_are_proved_again_count_again():
    bounds = ll.pairwise_bounds(MATRICES)
    claimed = replace(bounds, whole=from_plain(to_plain(bounds.whole)))
    with pytest.raises(CertificateError, match="nobody"):
        ll.CertifiedAccuracy(0.5, claimed)
    claimed.verify(MATRICES)
    ll.CertifiedAccuracy(0.5, claimed)


def test_the_command_line_proves_what_it_speaks_of(tmp_path):
    state = {f"{k}.weight": torch.tensor(matrix) for k, matrix in enumerate(MATRICES)}
    torch.save({"state_dict": state, "lipschitz": to_plain(TRUE)}, tmp_path / "true.ckpt")
    torch.save({"state_dict": state, "lipschitz": to_plain(FORGED)}, tmp_path / "forged.ckpt")
    (proved,) = prove_checkpoint(tmp_path / "true.ckpt")
    ll.CertifiedAccuracy(0.1, proved.certificate)
    with pytest.raises(CertificateError, match="does not hold"):
        prove_checkpoint(tmp_path / "forged.ckpt")


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("forge", [False, True])
def test_a_run_that_was_over_when_it_was_resumed_proves_what_it_found(tmp_path, forge):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(16, 4), torch.randint(3, (16,))), batch_size=8)
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(**options, callbacks=[ll.LipschitzCallback()], default_root_dir=tmp_path)
    trainer.fit(Net(), data)
    trainer.save_checkpoint(tmp_path / "over.ckpt")
    file = torch.load(tmp_path / "over.ckpt", weights_only=True)
    (state,) = [value for key, value in file["callbacks"].items() if key.startswith("LipschitzCallback")]
    truth = state["certificate"]["upper_bound"]
    if forge:
        state["certificate"]["upper_bound"] = 1e-6
        buffer = io.BytesIO()
        torch.save(file, buffer)
        (tmp_path / "over.ckpt").write_bytes(buffer.getvalue())
    callback, model = ll.LipschitzCallback(), Net()
    Trainer(**options, callbacks=[callback], default_root_dir=tmp_path).fit(
        model, data, ckpt_path=tmp_path / "over.ckpt"
    )
    ll.CertifiedAccuracy(0.1, callback.certificate)
    assert callback.certificate.upper_bound == pytest.approx(truth, rel=1e-3)
    assert ll.verify(callback.certificate, model, torch.zeros(2, 4)) > 0.1
