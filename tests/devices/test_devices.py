"""Every callback, the mixin and the functions on weights that live on another device, against the same on the CPU.

The device is the pretend one, or the one named by LIGHTNING_LIPSCHITZ_DEVICE (`cuda`), where traffic is not counted.
"""

from __future__ import annotations

import contextlib
import os

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.functional import certified_radius
from tests.report.page import Page

NAME = os.environ.get("LIGHTNING_LIPSCHITZ_DEVICE", "")
if not NAME:  # the pretend device is registered for the whole process, so other tests are kept apart from it
    pytest.skip("set LIGHTNING_LIPSCHITZ_DEVICE to pretend or cuda", allow_module_level=True)
if NAME == "pretend":
    pytest.importorskip("torch.utils.backend_registration")
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("the pretend device needs torch 2.9", allow_module_level=True)
    from tests import pretend_device as pretend

    DEVICE, elsewhere = pretend.DEVICE, pretend.accelerator
else:
    DEVICE, elsewhere = torch.device(NAME, 0), contextlib.nullcontext

# Lightning asks torch of 2.13 in its old words when a model runs inside a dispatch mode.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*:FutureWarning",
    "ignore:.*(num_workers|does not have many workers|val_dataloader|log_every_n_steps|exists and is not empty)",
    "ignore:.*(outside of `max_lipschitz|come to meet|were shortened|weights_only)",
)


def trainer_arguments():
    return pretend.trainer_arguments() if NAME == "pretend" else {"accelerator": NAME, "devices": 1}


class Net(pl.LightningModule):
    def __init__(self, body):
        super().__init__()
        self.body, self.example_input_array = body, torch.zeros(2, 6)

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Clipped(ll.CLIPMixin, Net):
    pass


class Measured(Net):
    """With the metrics as submodules, which Lightning moves."""

    def __init__(self, body):
        super().__init__(body)
        self.accuracy, self.radius = ll.CertifiedAccuracy(0.05, 2.0), ll.CertifiedRadius("mean", 2.0)
        self.steepest = ll.LipschitzLowerBound()

    def validation_step(self, batch, _):
        logits = self(batch[0])
        for metric, data in ((self.accuracy, batch[1]), (self.radius, batch[1])):
            metric(logits, data)
        self.steepest(batch[0], logits)
        self.log_dict({"accuracy": self.accuracy, "radius": self.radius, "steepest": self.steepest})


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x - 0.25 * self.outer(torch.tanh(self.inner(x))))


BODIES = {
    "chain": lambda: nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)),
    "residual": Residual,
    "CNN": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3, 2)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
    ),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)),
}
CALLS = {
    "certify": lambda model, x: ll.certify(model, x).upper_bound,
    "composed": lambda model, x: ll.certify(model, x, method="composed").upper_bound,
    "lower_bound": lambda model, x: ll.lower_bound(model, x).value,
    "pairwise_bounds": lambda model, x: float(ll.pairwise_bounds(model, x).matrix.max()),
    "project": lambda model, x: ll.project(model, 0.3, x).upper_bound,
}
FITS = {
    "monitor and radii": (Net, lambda: [ll.LipschitzCallback(certified_radii=[0.1])], {}),
    "ADMM": (Net, lambda: [ll.LipschitzADMM(max_lipschitz=0.5, every_n_steps=2)], {}),
    "ADMM, soft": (Net, lambda: [ll.LipschitzADMM(mode="regularize", weight=1e-3, every_n_steps=2)], {}),
    "barrier": (Net, lambda: [ll.LipschitzBarrier(max_lipschitz=0.5)], {}),
    "scale": (Net, lambda: [ll.LipschitzScale(max_lipschitz=0.5)], {}),
    "CLIP": (Clipped, lambda: [], {}),
    "margin": (Net, lambda: [ll.LipschitzMargin(0.3), ll.LipschitzCallback(certified_radii=[0.1])], {}),
    "margin, product": (Net, lambda: [ll.LipschitzMargin(0.3, bound="product")], {}),
    "metrics": (Measured, lambda: [], {}),
    "average": (Net, lambda: [EMAWeightAveraging(decay=0.5), ll.LipschitzADMM(0.5, every_n_steps=2)], {}),
    "autocast": (Net, lambda: [ll.LipschitzCallback()], {"precision": "bf16-mixed"}),
}


def made(kind, body):
    torch.manual_seed(3)
    model = BODIES[body]()
    return model if kind is None else kind(model)


def loader():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()), 16)


def called(body, call, device):
    model = made(None, body).eval().to(device)
    torch.manual_seed(5)
    value = CALLS[call](model, torch.randn(4, 6).to(device))
    assert {p.device.type for p in model.parameters()} == {torch.device(device).type}
    assert all(p.requires_grad for p in model.parameters())
    return float(value), [p.detach().cpu().double() for p in model.parameters()]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", BODIES)
def test_functions_say_the_same_there(body, call):
    here, weights = called(body, call, "cpu")
    with elsewhere():
        there, moved = called(body, call, DEVICE)
    assert there == pytest.approx(here, rel=1e-9 if NAME == "pretend" else 1e-4)
    for one, other in zip(weights, moved, strict=True):
        assert torch.allclose(one, other, rtol=1e-6 if NAME == "pretend" else 1e-2, atol=1e-6)


def fitted(tmp_path, body, fit, arguments, ckpt_path=None, epochs=1):
    kind, callbacks, more = FITS[fit]
    model = made(kind, body)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=callbacks(), default_root_dir=tmp_path, **quiet, **more, **arguments
    )
    torch.manual_seed(7)
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt_path)
    saved = tmp_path / f"{epochs}.ckpt"
    trainer.save_checkpoint(saved)
    return saved, {k: float(v) for k, v in trainer.callback_metrics.items() if "seconds" not in k}, model


CASES = [
    (body, fit)
    for body in BODIES
    for fit in FITS
    if fit != "autocast" or NAME != "pretend"  # it has no kernels for autocast, and Lightning would leave that off
    if not ((body == "batch norm" and fit == "barrier") or (body in ("residual", "CNN") and fit == "autocast"))
]


@pytest.mark.parametrize(("body", "fit"), CASES)
def test_fits_say_the_same_there(tmp_path, body, fit):
    _, here, _ = fitted(tmp_path / "here", body, fit, {"accelerator": "cpu"})
    with elsewhere():
        _, there, model = fitted(tmp_path / "there", body, fit, trainer_arguments())
    assert here.keys() == there.keys()
    close = 1e-6 if NAME == "pretend" and fit != "autocast" else 5e-2  # devices autocast different operators
    assert there == pytest.approx(here, rel=close, abs=1e-6)
    assert all(p.requires_grad for p in model.parameters())
    if fit in ("barrier", "ADMM", "average"):
        model = model.cpu().eval()
        assert ll.certify(model, torch.zeros(2, 6)).upper_bound <= 0.5


@pytest.mark.parametrize("fit", ["monitor and radii", "barrier", "ADMM", "margin", "margin, product"])
def test_a_fit_there_goes_on_from_its_checkpoint(tmp_path, fit):
    with elsewhere():
        saved, _, _ = fitted(tmp_path, "chain", fit, trainer_arguments())
        again, _, model = fitted(tmp_path, "chain", fit, trainer_arguments(), saved, epochs=2)
    stored = torch.load(again, weights_only=False, map_location="cpu")
    assert stored["epoch"] == 2 or stored["global_step"] == 4
    assert model.trainer.global_step == 4


def test_a_wrong_target_there_is_named():
    with elsewhere():
        logits, target = torch.zeros(4, 3).to(DEVICE), torch.tensor([0, 1, 2, 7]).to(DEVICE)
        with pytest.raises(ll.errors.ArgumentError, match="7"):
            certified_radius(logits, 1.0, target)


@pytest.mark.filterwarnings("ignore:.*")  # of the libraries that draw
def test_a_report_of_a_fit_there(tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    with elsewhere():
        model = made(Net, "residual")
        callback = ll.LipschitzCallback(certified_radii=[0.1], report=page)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        pl.Trainer(max_epochs=1, callbacks=[callback], default_root_dir=tmp_path, **quiet, **trainer_arguments()).fit(
            model, loader(), loader()
        )
    found = Page(page)
    assert not found.missing & {"headline", "training", "layers", "curve", "certificate"}
    assert callback.certificate.network_digest[:12] in page.read_text()


@pytest.mark.skipif(NAME != "pretend", reason="only the pretend device counts")
def test_a_reading_brings_every_weight_over_once():
    with elsewhere():
        model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)).to(DEVICE)
        size = sum(t.numel() * t.element_size() for t in model.parameters())
        extractor = Extractor(model, torch.zeros(2, 784).to(DEVICE))
        first = pretend.BYTES["to the host"]
        pretend.TRIPS.clear()
        pretend.BYTES.clear()
        extractor.network()
        outputs = 10 * 8 * 4  # of four samples, in double precision
        assert first <= 1.05 * size  # and the outputs of the wide check
        assert pretend.BYTES["to the host"] == size + outputs
        assert pretend.TRIPS["to the host"] == 4 + 2  # tensors, and the outputs of two calls


@pytest.mark.skipif(NAME != "pretend", reason="only the pretend device counts")
@pytest.mark.parametrize("callback", [lambda: ll.LipschitzADMM(5.0), lambda: ll.LipschitzCallback(lower_bound=False)])
def test_a_step_of_training_brings_no_weights_over(tmp_path, callback):
    """Of the same epoch, in steps half as large and twice as many."""

    def brought(batch, *callbacks):
        x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
        data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(
            max_epochs=1, callbacks=list(callbacks), enable_checkpointing=False, **quiet, **trainer_arguments()
        )
        model = made(Net, "chain")
        pretend.TRIPS.clear()
        trainer.fit(model, data)
        return pretend.TRIPS["to the host"]

    with elsewhere():
        plain = brought(4) - brought(8)
        assert brought(4, callback()) - brought(8, callback()) == plain
