"""The number in a file's name is the bound of the weights in the file."""

import warnings
from functools import cache

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from pytorch_lightning.callbacks.stochastic_weight_avg import StochasticWeightAveraging

from lightning_lipschitz import api
from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.checkpoint_files import from_plain
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.lightning_tools.saving import SaveGate
from tests.modules import INPUTS, Classifier, Manual, Noisy, loader

KEY = "lipschitz/upper_bound"
EXAMPLE = torch.zeros(2, INPUTS)


def labelled(**options):
    options = {"monitor": KEY, "save_top_k": -1, **options}
    return ModelCheckpoint(filename="{epoch}-{step}-L={" + KEY + ":.17g}", auto_insert_metric_name=False, **options)


def ema(**options):
    return EMAWeightAveraging(decay=0.5, **options)


class PerEpochAverage(WeightAveraging):
    def should_update(self, step_idx=None, epoch_idx=None):
        return epoch_idx is not None


@cache
def reader(make):
    return Extractor(make(), EXAMPLE)


def read(path, make=Classifier):
    """The network of the weights in the file, and the file."""
    checkpoint = torch.load(path, weights_only=True)
    return reader(make).network(checkpoint["state_dict"]), checkpoint


def check_file(path, make=Classifier):
    network, checkpoint = read(path, make)
    label = float(path.stem.rpartition("L=")[2])
    stamp = from_plain(checkpoint["lipschitz"])
    assert label == stamp.upper_bound == api.certify(network, method="closed-form").upper_bound
    assert api.verify(stamp, network) == label
    assert stamp.global_step == checkpoint["global_step"]


CONFIGURATIONS = {
    "default": ({}, {}, []),
    "no validation": ({"val": False}, {}, []),
    "at validation end": ({}, {"save_on_train_epoch_end": False}, []),
    "twice an epoch": ({"val_check_interval": 0.5}, {}, []),
    "every second epoch": ({"check_val_every_n_epoch": 2, "max_epochs": 4}, {}, []),
    "every second epoch, forced": (
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
        {"save_on_train_epoch_end": True},
        [],
    ),
    "across epochs": ({"check_val_every_n_epoch": None, "val_check_interval": 3}, {}, []),
    "two validation loaders": ({"val": [loader(8), loader(4)]}, {}, []),
    "max_steps": ({"max_epochs": -1, "max_steps": 6}, {}, []),
    "max_steps, no validation": ({"max_epochs": -1, "max_steps": 6, "val": False}, {}, []),
    "accumulation": ({"accumulate_grad_batches": 3}, {}, []),
    "accumulation, validation between": ({"accumulate_grad_batches": 4, "val_check_interval": 1}, {}, []),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {}, []),
    "bf16-true": ({"precision": "bf16-true"}, {}, []),
    "64-true": ({"precision": "64-true"}, {}, []),
    "no sanity check": ({"num_sanity_val_steps": 0}, {}, []),
    "one batch": ({"limit_train_batches": 1}, {}, []),
    "weights only": ({}, {"save_weights_only": True}, []),
    "every second epoch, aligned": ({"max_epochs": 5}, {"every_n_epochs": 2}, []),
    "average before": ({}, {}, [ema]),
    "average after": ({}, {}, [None, ema]),
    "average before, at validation end": ({}, {"save_on_train_epoch_end": False}, [ema]),
    "average after, at validation end": ({}, {"save_on_train_epoch_end": False}, [None, ema]),
    "average after, no validation": ({"val": False}, {}, [None, ema]),
    "average once an epoch, before": ({"max_epochs": 3}, {}, [PerEpochAverage]),
    "stochastic weight averaging": ({"max_epochs": 4}, {}, [lambda: StochasticWeightAveraging(0.1, swa_epoch_start=1)]),
}


# Running statistics move without an optimizer step.
WITH_STATISTICS = ("default", "accumulation, validation between", "average before", "average after, at validation end")
ROWS = [(name, Classifier) for name in CONFIGURATIONS] + [(name, Noisy) for name in WITH_STATISTICS]


@pytest.mark.parametrize(("name", "make"), ROWS, ids=lambda value: getattr(value, "__name__", value))
def test_label_is_the_bound_of_the_file(name, make, fit, tmp_path):
    fit_options, checkpoint_options, others = CONFIGURATIONS[name]
    torch.manual_seed(0)
    callback = LipschitzCallback(method="closed-form", lower_bound=False)
    made = [callback if other is None else other() for other in others]
    made = made if callback in made else [*made, callback]
    fit(make(), *made, labelled(dirpath=tmp_path, **checkpoint_options), **fit_options)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) >= 2
    for path in files:
        check_file(path, make)


def test_every_second_epoch_with_aligned_files(fit, tmp_path):
    with pytest.warns(UserWarning, match="renewed in the first epoch and then in every 2th"):
        fit(
            Classifier(),
            LipschitzCallback(every_n_epochs=2, method="closed-form"),
            labelled(dirpath=tmp_path, every_n_epochs=2),
            max_epochs=5,
        )
    files = sorted(tmp_path.glob("*.ckpt"))
    assert [path.stem.split("-")[0] for path in files] == ["1", "3"]
    for path in files:
        check_file(path)


def test_a_file_between_two_measurements_has_no_certificate(fit, tmp_path):
    with pytest.warns(UserWarning, match="older weights"):
        fit(Classifier(), LipschitzCallback(every_n_epochs=3), labelled(dirpath=tmp_path), max_epochs=3)
    steps = {}
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        steps[checkpoint["global_step"]] = checkpoint.get("lipschitz", {}).get("global_step")
    assert steps == {4: 4, 8: None, 12: 12}


def test_files_within_an_epoch_have_no_certificate(fit, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2, save_top_k=-1)
    fit(Classifier(), LipschitzCallback(), saver)
    stamps = {}
    for path in tmp_path.glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        stamps[checkpoint["global_step"]] = checkpoint.get("lipschitz", {}).get("global_step")
    assert stamps == {2: None, 4: None, 6: None, 8: None}


def test_lipsdp_label(fit, tmp_path):
    fit(Classifier(), LipschitzCallback(rtol=1e-6), labelled(dirpath=tmp_path))
    for path in tmp_path.glob("*.ckpt"):
        network, _ = read(path)
        label = float(path.stem.rpartition("L=")[2])
        assert api.certify(network, rtol=1e-6).upper_bound == pytest.approx(label, rel=5e-6)


def test_manual_optimization(fit, tmp_path):
    fit(Manual(), LipschitzCallback(method="closed-form", lower_bound=False), labelled(dirpath=tmp_path))
    for path in tmp_path.glob("*.ckpt"):
        check_file(path, Manual)


def test_weights_only_files_under_averaging_are_not_stamped(fit, tmp_path):
    """Lightning writes the live weights into these; the bound is of the averaged ones."""
    with pytest.warns(UserWarning, match=r"save_weights_only=True.*live weights"):
        fit(Classifier(), ema(), LipschitzCallback(), labelled(dirpath=tmp_path, save_weights_only=True))
    for path in tmp_path.glob("*.ckpt"):
        assert "lipschitz" not in torch.load(path, weights_only=True)


def test_average_once_an_epoch_after_us_is_warned_of(fit):
    with pytest.warns(
        UserWarning, match="`PerEpochAverage` updates its average at the end of an epoch and comes after"
    ):
        fit(Classifier(), LipschitzCallback(), PerEpochAverage())


@pytest.mark.parametrize("order", ["before", "after"])
def test_final_weights_of_stochastic_averaging_are_measured(order, fit):
    swa, callback = (
        StochasticWeightAveraging(0.1, swa_epoch_start=1),
        LipschitzCallback(method="closed-form", lower_bound=False),
    )
    module = Classifier()
    fit(module, *([swa, callback] if order == "before" else [callback, swa]), max_epochs=4)
    assert callback.history[-1]["upper_bound"] == api.verify(
        callback.certificate, reader(Classifier).network(module.state_dict())
    )


def test_a_save_after_the_fit_is_stamped(fit, tmp_path):
    module, callback = Classifier(), LipschitzCallback()
    fit(module, callback).save_checkpoint(tmp_path / "after.ckpt")
    network, checkpoint = read(tmp_path / "after.ckpt")
    assert api.verify(from_plain(checkpoint["lipschitz"]), network) == callback.certificate.upper_bound
    assert "on_save_checkpoint" not in module.__dict__


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_a_save_on_exception_is_stamped(exception, fit, tmp_path):
    class Broken(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                raise exception("stop")

    saver = ModelCheckpoint(dirpath=tmp_path, save_on_exception=True, every_n_epochs=5, filename="exception")
    with pytest.raises((exception, SystemExit)):
        fit(Broken(), LipschitzCallback(), saver, max_epochs=3)
    checkpoint = torch.load(tmp_path / "exception.ckpt", weights_only=True)
    assert checkpoint["lipschitz"]["global_step"] == checkpoint["global_step"] == 4


@pytest.mark.parametrize(
    ("monitor", "every", "warned"),
    [(KEY, 2, True), ("lipschitz/seconds", 3, True), (KEY, 1, False), ("val_loss", 2, False)],
)
@pytest.mark.parametrize("watcher", [ModelCheckpoint, EarlyStopping])
def test_warning_of_stale_labels(monitor, every, warned, watcher, fit, tmp_path):
    options = {"dirpath": tmp_path} if watcher is ModelCheckpoint else {"patience": 9}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Classifier(), LipschitzCallback(every, method="norm-product"), watcher(monitor=monitor, **options))
    assert any("belongs to older weights" in str(w.message) for w in caught) is warned


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_a_file_with_other_weights_is_not_stamped(order, weights_only, fit, tmp_path):
    """Another callback writes what it likes; in either order the certificate stays out of its files."""

    class Rewriter(Callback):
        def setup(self, trainer, pl_module, stage):
            self.gate = SaveGate(pl_module, self.rewrite)
            self.gate.install()

        def rewrite(self, pl_module, checkpoint):
            checkpoint["state_dict"] = {key: 2.0 * value for key, value in checkpoint["state_dict"].items()}

        def teardown(self, trainer, pl_module, stage):
            self.gate.remove()

    module, ours = Classifier(), LipschitzCallback(method="norm-product", lower_bound=False)
    saver = labelled(dirpath=tmp_path, save_weights_only=weights_only)
    fit(module, *[ours, Rewriter()][::order], saver)
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == 2
    assert not any("lipschitz" in torch.load(path, weights_only=True) for path in files)
    assert "on_save_checkpoint" not in module.__dict__


def test_the_file_that_is_saved_when_training_ends(fit, tmp_path):
    """Its weights were due for no measurement; it is stamped with their bound all the same."""
    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True, every_n_epochs=9)
    fit(Classifier(), LipschitzCallback(4, method="closed-form", lower_bound=False), saver)
    network, checkpoint = read(tmp_path / "last.ckpt")
    assert checkpoint["lipschitz"]["global_step"] == checkpoint["global_step"] == 8
    assert api.verify(from_plain(checkpoint["lipschitz"]), network)
