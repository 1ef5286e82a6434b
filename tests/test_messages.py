"""What a user is told is true and can be followed; what is shown is short."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.cli import main
from lightning_lipschitz.errors import LipschitzError, MissingExtraError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def script():
    return torch.jit.script(model())


SAID = {
    "TorchScript": (lambda: ll.certify(script(), X), "TorchScript.*Give the nn.Module"),
    "TorchScript inside": (lambda: ll.certify(nn.Sequential(script()), X), "`0`.*TorchScript"),
    "an exported module": (
        lambda: ll.certify(torch.export.export(model(), (X,)).module(), X),
        "Guard failed.*give the nn.Module",
    ),
    "no example": (lambda: ll.certify(model()), "must be given, or be the model's `example_input_array`"),
    "one sample": (lambda: ll.certify(model(), X[0]), r"`example_input\[None\]` is a batch"),
    "NumPy": (lambda: ll.certify(model(), X.numpy()), "torch.from_numpy"),
    "a list": (lambda: ll.certify(model(), [[1.0] * 8]), "`example_input` must be a floating-point tensor"),
    "another shape": (lambda: ll.certify(model(), X[:, 1:]), r"does not run on an input of shape \(2, 7\)"),
    "several inputs": (lambda: ll.certify(nn.Bilinear(8, 8, 2), X), "missing 1 required.*a tuple.*`input=`"),
    "a state dict": (lambda: ll.certify(model().state_dict()), "load a state dict into its module"),
    "a file": (lambda: ll.certify("model.pt"), "the command line reads files"),
    "a class": (lambda: ll.certify(nn.Linear, X), "make an instance"),
    "one matrix": (lambda: ll.certify(torch.ones(2, 2)), "into a list"),
    "an array": (lambda: ll.certify(np.ones((2, 2))), "into a list"),
    "LSTM": (lambda: ll.certify(nn.LSTM(8, 4, batch_first=True), X[:, None]), "several outputs.*`output=`"),
    "LSTM with a projection": (
        lambda: ll.certify(nn.LSTM(8, 4, proj_size=2, batch_first=True), X[:, None], output=0),
        "`LSTM` is not supported yet.*proj_size",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", SAID)
def test_what_would_do_is_said(name):
    call, says = SAID[name]
    with pytest.raises(LipschitzError, match=says):
        call()


@pytest.mark.parametrize("name", ["one sample", "NumPy", "a state dict", "one matrix"])
def test_the_advice_can_be_followed(name):
    filled = model()
    followed = {
        "one sample": lambda: ll.certify(model(), X[0][None]),
        "NumPy": lambda: ll.certify(model(), torch.from_numpy(X.numpy())),
        "a state dict": lambda: filled.load_state_dict(model().state_dict()) and ll.certify(filled, X),
        "one matrix": lambda: ll.certify([torch.ones(2, 2)]),
    }
    assert followed[name]().certified


@pytest.mark.parametrize("method", ["auto", "lipsdp-neuron", "composed"])
def test_a_solver_that_is_missing(method, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "scs", None)
    weights = [np.eye(2), np.eye(2)]
    calls = [
        lambda: LipschitzCallback(solver="scs", method=method),
        lambda: ll.certify(weights, solver="scs", method=method),
    ]
    if method != "composed":
        calls.append(lambda: ll.pairwise_bounds(weights, solver="scs", method=method))
    for call in calls:
        with pytest.raises(MissingExtraError, match=r"needs scs: `pip install lightning-lipschitz\[scs\]`"):
            call()
    np.savez(tmp_path / "w.npz", *weights)
    assert main(["certify", str(tmp_path / "w.npz"), "--solver", "scs"]) == 2
    assert "needs scs" in capsys.readouterr().err
    assert ll.certify(weights, solver="scs", method="norm-product").certified  # which calls no solver


def test_what_is_shown_is_short():
    certificate, pairwise = ll.certify(model(), X), ll.pairwise_bounds(model(), X)
    assert len(repr(certificate)) < 250
    assert repr(certificate.upper_bound) in repr(certificate)
    assert len(repr(pairwise)) < 400
    assert repr(float(pairwise.matrix.max())) in repr(pairwise)


def test_completion_offers_every_name():
    assert set(ll.__all__) <= set(dir(ll))
    assert all(getattr(ll, name) is not None for name in dir(ll))
