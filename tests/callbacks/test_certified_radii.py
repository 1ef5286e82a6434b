"""LipschitzCallback(certified_radii=...): certified accuracy beside the user's own validation metrics."""

import pytest
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.functional import certified_radius
from tests.modules import Bypassed, Classifier, DictBatches, Noisy, loader

RADII = (0.0, 0.05, 0.2)


def keys(*radii):
    return [f"lipschitz/certified_accuracy_{radius:g}" for radius in radii]


def watching(**options):
    return LipschitzCallback(lower_bound=False, certified_radii=RADII, **options)


def expected(module, bound):
    """From the model as it is after the fit, on the validation data of the `fit` fixture."""
    x, y = loader(8).dataset.tensors
    module.eval()
    with torch.no_grad():
        radii = certified_radius(module(x), bound, y)
    return [float((radii > radius).float().mean()) for radius in RADII]


@pytest.mark.parametrize("make", [Classifier, Bypassed, Noisy], ids=lambda make: make.__name__)
def test_logged_is_that_of_the_final_weights(make, fit, tmp_path):
    callback, module = watching(), make()
    trainer = fit(module, callback, logger=TensorBoardLogger(tmp_path))
    values = [trainer.callback_metrics[key].item() for key in keys(*RADII)]
    target = module.net if make is Bypassed else module
    assert values == pytest.approx(expected(target, callback.certificate.upper_bound))
    assert 0 < values[0] >= values[1] >= values[2]
    events = EventAccumulator(trainer.log_dir)
    events.Reload()
    for key, value in zip(keys(*RADII), values, strict=True):
        scalars = events.Scalars(key)
        assert len(scalars) == 2
        assert scalars[-1].value == pytest.approx(value)


def test_under_averaging_the_average_is_validated(fit):
    callback, module = watching(), Classifier()
    trainer = fit(module, EMAWeightAveraging(decay=0.5), callback)
    values = [trainer.callback_metrics[key].item() for key in keys(*RADII)]
    assert values == pytest.approx(expected(module, callback.certificate.upper_bound))


def test_only_after_a_measurement_of_the_same_weights(fit):
    """In between, no constant of the weights is known; the last value stands."""

    class Counting(Classifier):
        logged = 0

        def log(self, name, *args, **options):
            self.logged += name == keys(0.05)[0]
            super().log(name, *args, **options)

    module = Counting()
    fit(module, watching(every_n_epochs=3), max_epochs=5)
    assert module.logged == 2


def test_batches_that_cannot_be_read_cost_a_warning(fit):
    callback = LipschitzCallback(module="net", lower_bound=False, certified_radii=RADII)
    module = DictBatches()
    module.example_input_array = torch.zeros(2, 4)
    with pytest.warns(UserWarning, match=r"batches `\(x, y\)`.*a batch is a dict"):
        trainer = fit(module, callback)
    assert trainer.current_epoch == 2
    assert not set(keys(*RADII)) & set(trainer.callback_metrics)


@pytest.mark.parametrize("radii", [0.5, [-1.0], ["1"], [float("inf")], [0.5, 0.5]], ids=str)
def test_radii_that_cannot_be_used(radii):
    with pytest.raises(MisconfigurationException, match="certified_radii"):
        LipschitzCallback(certified_radii=radii)


def test_nothing_else_changes(fit):
    seen = []
    for radii in ((), RADII):
        seed_everything(0, verbose=False)
        module = Noisy()
        trainer = fit(module, LipschitzCallback(lower_bound=False, certified_radii=radii))
        seen.append((module.state_dict(), trainer.callback_metrics["val_loss"].item(), torch.rand(3)))
    (weights, *rest), (other, *others) = seen
    assert list(weights) == list(other)
    assert all(torch.equal(weights[key], other[key]) for key in weights)
    assert rest[0] == others[0]
    assert torch.equal(rest[1], others[1])
