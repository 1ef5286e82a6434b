"""Certificates inside checkpoints, proved from the file alone, as `lightning-lipschitz verify CKPT` does."""

import pytest
import torch
from pytorch_lightning import Trainer

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import stamped_certificates
from lightning_lipschitz.cli import main
from tests.modules import UNAVOIDABLE, Classifier, Pair, loader

pytestmark = [pytest.mark.filterwarnings(message) for message in UNAVOIDABLE]


def trained(folder, model, *callbacks):
    path = folder / "last.ckpt"
    trainer = Trainer(
        max_epochs=2,
        callbacks=[*callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader())
    trainer.save_checkpoint(path)
    return str(path)


CALLBACKS = {
    "lipschitz": lambda: ll.LipschitzCallback(),
    "admm": lambda: ll.LipschitzADMM(20.0),
    "barrier": lambda: ll.LipschitzBarrier(20.0),
    "scale": lambda: ll.LipschitzScale(20.0),
}


@pytest.mark.parametrize("key", CALLBACKS)
def test_a_checkpoint_proves_itself(key, tmp_path, capsys):
    callback = CALLBACKS[key]()
    path = trained(tmp_path, Classifier(), callback)
    assert main(["verify", path]) == 0
    bound = stamped_certificates(torch.load(path, weights_only=True))[key].upper_bound
    assert capsys.readouterr().out.splitlines() == [
        f"{key}: proved: {bound!r} is an upper bound of the Lipschitz constant of the chain 4-8-3 of"
        " the matrices in the file, in this order, with slopes in [0, 1]"
    ]
    assert bound == callback.certificate.upper_bound


def test_submodules_are_found(tmp_path, capsys):
    path = trained(tmp_path, Pair(), ll.LipschitzCallback(module="encoder"), ll.LipschitzCallback(module="net"))
    assert main(["verify", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("the matrices in ")[2].partition(",")[0] for line in lines] == ["`encoder`", "`net`"]


def test_other_weights_are_refused(tmp_path, capsys):
    path = trained(tmp_path, Classifier(), ll.LipschitzCallback())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["net.0.weight"][0, 0] += 1e-3
    torch.save(checkpoint, path)
    assert main(["verify", path]) == 2
    assert "not of the matrices in this file" in capsys.readouterr().err


def test_a_smaller_claim_is_refused(tmp_path, capsys):
    path = trained(tmp_path, Classifier(), ll.LipschitzCallback())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lipschitz"]["upper_bound"] *= 0.9
    torch.save(checkpoint, path)
    assert main(["verify", path]) == 2
    assert "does not hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [({"state_dict": {}}, "no certificate"), ({"epoch": 1}, "not a checkpoint"), ([1, 2], "not a checkpoint")],
)
def test_files_without_a_certificate(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "other.ckpt")
    assert main(["verify", str(tmp_path / "other.ckpt")]) == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "text.ckpt").write_text("hello")
    assert main(["verify", str(tmp_path / "text.ckpt")]) == 2
    assert main(["verify", str(tmp_path / "missing.ckpt")]) == 2
    assert "cannot be read" in capsys.readouterr().err
