"""LipschitzBarrier: the bound holds after every optimizer step, from any start, in every precision."""

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier
from lightning_lipschitz.extraction import Extractor
from tests.modules import CLASSES, INPUTS, Classifier, Manual, body, loader

BOUND = 0.4

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*optimizer steps would have broken"),
    pytest.mark.filterwarnings("ignore:.*the weights were outside"),
]

READER = Extractor(body(), torch.zeros(2, INPUTS))


def bound(module, reader=READER):
    return ll.certify(reader.network(dict(module.net.state_dict())), rtol=1e-8).upper_bound


class EveryStep(Callback):
    """The live weights' bound, after each batch and during validation."""

    def __init__(self):
        self.bounds, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.bounds.append(bound(pl_module))
        self.weights.append(pl_module.net[0].weight.detach().clone())


def adam(module):
    return torch.optim.Adam(module.parameters(), 0.05)


class Chosen(Classifier):
    optimizer = None

    def configure_optimizers(self):
        return adam(self) if self.optimizer == "adam" else torch.optim.SGD(self.parameters(), 2.0, momentum=0.9)


@pytest.mark.parametrize("start", [1.0, 30.0], ids=["inside", "outside"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true", "bf16-mixed"])
def test_bound_holds_after_every_step(precision, optimizer, start, fit):
    torch.manual_seed(0)
    module = Chosen()
    module.optimizer = optimizer
    with torch.no_grad():
        for layer in (module.net[0], module.net[2]):
            layer.weight.mul_(start)
    seen = EveryStep()
    fit(module, LipschitzBarrier(BOUND), seen, precision=precision, max_epochs=3)
    assert len(seen.bounds) == 12
    assert max(seen.bounds) <= BOUND
    assert max(seen.bounds) > 0.5 * BOUND
    assert not torch.equal(seen.weights[0], seen.weights[-1])


def test_steps_that_would_leave_are_shortened(fit):
    torch.manual_seed(0)
    module, callback, seen = Classifier(lr=20.0), LipschitzBarrier(BOUND), EveryStep()
    fit(module, callback, seen)
    assert max(seen.bounds) <= BOUND
    assert max(record["rejected"] for record in callback.history) > 0


def test_a_weak_barrier_comes_closer_to_the_bound(fit):
    bounds = []
    for strength in (1.0, 1e-5):
        torch.manual_seed(0)
        module = Classifier(lr=0.1)
        fit(module, LipschitzBarrier(BOUND, strength=strength), max_epochs=10)
        bounds.append(bound(module))
    assert bounds[0] < 0.8 * bounds[1] <= 0.8 * BOUND


class Decaying(Classifier):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def test_strength_follows_the_learning_rate(fit):
    callback = LipschitzBarrier(BOUND, strength=1e-2)
    trainer = fit(Decaying(), callback, max_epochs=3)
    strengths = [record["strength"] for record in callback.history]
    assert strengths[:3] == pytest.approx([1e-2, 5e-3, 2.5e-3])
    keys = {key for key in trainer.callback_metrics if key.startswith("barrier/")}
    assert keys == {"barrier/upper_bound", "barrier/strength", "barrier/rejected"}


def test_manual_optimization(fit):
    torch.manual_seed(0)
    seen = EveryStep()
    fit(Manual(), LipschitzBarrier(BOUND), seen, val=False)
    assert max(seen.bounds) <= BOUND


class Poisoned(Classifier):
    """The third batch gives gradients that are NaN."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (float("nan") if batch_idx == 2 else 1.0)


def test_a_step_to_nan_is_not_made(trainer):
    """The weights stay where they were; the biases, which no bound is about, are named as what is not finite."""
    torch.manual_seed(0)
    module = Poisoned()
    with pytest.raises(ll.errors.NonFiniteError, match="bias"):
        trainer(LipschitzBarrier(BOUND), max_epochs=1).fit(module, loader())
    assert all(layer.weight.isfinite().all() for layer in (module.net[0], module.net[2]))


class Deep(Classifier):
    """Three hidden layers; an activation whose slopes are negative somewhere."""

    def __init__(self, activation=nn.Tanh):
        super().__init__()
        layers = [nn.Linear(INPUTS, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, CLASSES)]
        self.net = nn.Sequential(*(part for layer in layers for part in (layer, activation())))[:-1]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.LeakyReLU])
@pytest.mark.filterwarnings("ignore:Attribute 'activation'")
def test_chains_of_any_depth_and_slopes(activation, fit):
    torch.manual_seed(0)
    module = Deep(activation)
    reader = Extractor(module.net, torch.zeros(2, INPUTS))
    fit(module, LipschitzBarrier(BOUND), max_epochs=3)
    assert bound(module, reader) <= BOUND


def test_hooks_leave_the_optimizer_with_the_fit(fit):
    trainer = fit(Classifier(), LipschitzBarrier(BOUND))
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


class Meddler(Callback):
    """Moves the weights far outside, once."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            with torch.no_grad():
                pl_module.net[0].weight.mul_(1000)


def test_weights_that_others_move_out_are_brought_back(trainer):
    torch.manual_seed(0)
    module, seen = Classifier(), EveryStep()
    with pytest.warns(UserWarning, match="the weights were outside"):
        trainer(LipschitzBarrier(BOUND), Meddler(), seen).fit(module, loader())
    assert max(seen.bounds) <= BOUND


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [LipschitzBarrier, LipschitzADMM])
def test_weights_stay_on_the_device(method, fit):
    torch.manual_seed(0)
    module, callback = Classifier(), method(BOUND)
    fit(module, callback, accelerator="gpu")
    network = READER.network({name: value.cpu() for name, value in module.net.state_dict().items()})
    assert ll.certify(network, rtol=1e-8).upper_bound <= BOUND * (1 + 1e-6)


def test_two_fits_of_one_callback(trainer):
    torch.manual_seed(0)
    callback, module = LipschitzBarrier(BOUND), Classifier()
    for _ in range(2):
        trainer(callback).fit(module, loader(), loader(8))
        assert bound(module) <= BOUND


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_lipschitz": 0}, "max_lipschitz"),
        ({"max_lipschitz": None}, "max_lipschitz"),
        ({"max_lipschitz": 1.0, "strength": 0.0}, "strength"),
        ({"max_lipschitz": 1.0, "module": 3}, "module"),
        ({"max_lipschitz": 1.0, "prog_bar": None}, "prog_bar"),
    ],
    ids=str,
)
def test_arguments(options, name):
    with pytest.raises(MisconfigurationException, match=f"`{name}` must be"):
        LipschitzBarrier(**options)
