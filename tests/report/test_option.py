"""LipschitzCallback(report=...): in every kind of fit a page or a warning, and nothing else changes."""

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz import report
from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.callbacks import _report_page
from tests.modules import Bypassed, Classifier, DictBatches, Noisy, Pair, loader
from tests.report.page import Page, check


@pytest.fixture
def fit(tmp_path):
    """Fits a module to the tiny data; ``report`` is the page's path."""

    def run(module, *callbacks, val=True, **options):
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "max_epochs": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
        }
        trainer = Trainer(callbacks=list(callbacks), **{**quiet, **options})
        trainer.fit(module, loader(), loader(8) if val else None)
        return trainer

    return run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.html"


def test_nothing_else_changes(fit, path, tmp_path):
    seen = []
    for number, chosen in enumerate((None, path)):
        seed_everything(0, verbose=False)
        module = Noisy()
        trainer = fit(module, ll.LipschitzCallback(report=chosen), logger=CSVLogger(tmp_path, version=number))
        logged = {key: value for key, value in trainer.callback_metrics.items() if "seconds" not in key}
        flags = [each.training for each in module.modules()]
        seen.append((module.state_dict(), logged, flags, torch.rand(3)))
    (weights, logged, flags, drawn), (other_weights, other_logged, other_flags, other_drawn) = seen
    assert path.exists()
    assert list(weights) == list(other_weights)
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    assert logged == other_logged
    assert flags == other_flags
    assert torch.equal(drawn, other_drawn)


def test_under_averaging_the_average_is_reported(fit, path):
    fit(Classifier(), EMAWeightAveraging(decay=0.5), ll.LipschitzCallback(report=path))
    page = Page(path)
    check(page)
    assert "8 validation inputs" in page.text["curve"]


def test_weights_that_change_when_training_ends(fit, path):
    """The certificate is of the new ones, the last validation was of others."""
    module, callback = Classifier(), ll.LipschitzCallback(report=path)
    fit(module, StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1), callback, max_epochs=3)
    page = Page(path)
    check(page, without=("curve", "pairs"))
    assert "No validation was run and certified with these weights" in page.text["curve"]
    assert ll.verify(callback.certificate, module, torch.zeros(1, 4)) > 0


def test_without_validation(fit, path):
    fit(Classifier(), ll.LipschitzCallback(report=path, lower_bound=False), val=False)
    check(Page(path), without=("curve", "pairs"))


def test_batches_that_cannot_be_read_cost_a_sentence(fit, path):
    module = DictBatches()
    module.example_input_array = torch.zeros(2, 4)
    with pytest.warns(UserWarning, match="logs no certified accuracy"):
        fit(module, ll.LipschitzCallback(module="net", certified_radii=[0.1], report=path))
    assert "a batch is a dict" in Page(path).text["curve"]


class Regression(Classifier):
    def _loss(self, batch):
        return nn.functional.mse_loss(self(batch[0]), batch[0][:, :3])

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch[0], batch[0][:, :3]


def test_a_regression_has_no_certified_accuracy(fit, path):
    fit(Regression(), ll.LipschitzCallback(report=path))
    page = Page(path)
    check(page, without=("curve", "pairs"))
    assert "no pairs (x, y) of a classification" in page.text["curve"]


@pytest.mark.usefixtures("undrawn")
def test_submodules_have_pages_of_their_own(fit, tmp_path):
    one, two = (ll.LipschitzCallback(module=name, report=tmp_path / f"{name}.html") for name in ("encoder", "net"))
    fit(Pair(), one, two)
    for callback in (one, two):
        page = Page(callback.report)
        assert callback.module in page.text["headline"]
        assert callback.certificate.network_digest in page.text["headline"]
        assert "is said by `certified_radii` only" in page.text["curve"]


def test_a_submodule_whose_inputs_are_the_batches(fit, path):
    fit(Bypassed(), ll.LipschitzCallback(module="net", certified_radii=[0.1], report=path))
    check(Page(path))


def test_two_instances_on_one_file(fit, path):
    with pytest.raises(MisconfigurationException, match=r"`LipschitzCallback\(report=.*another file for each"):
        fit(Pair(), *(ll.LipschitzCallback(module=name, report=path) for name in ("encoder", "net")))


@pytest.mark.parametrize("value", ["", 3, True])
def test_what_is_no_path(value):
    with pytest.raises(MisconfigurationException, match="`report` must be the path of an HTML file"):
        ll.LipschitzCallback(report=value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(MisconfigurationException, match="`report` must be the path of an HTML file"):
        ll.LipschitzCallback(report=tmp_path)


@pytest.mark.parametrize("error", [OSError("the disk is full"), RuntimeError("a bug")])
def test_a_report_that_fails_costs_a_warning(error, fit, path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(_report_page, "write_page", fail)
    module = Classifier()
    with pytest.warns(UserWarning, match=rf"could not finish its report: {type(error).__name__}: {error}"):
        trainer = fit(module, ll.LipschitzCallback(report=path))
    assert trainer.state.finished
    assert not path.exists()


def test_weights_that_are_not_finite_get_no_page(fit, path):
    class Diverging(Classifier):
        def on_train_end(self):
            with torch.no_grad():
                self.net[0].weight.fill_(float("nan"))

    with (
        pytest.warns(UserWarning, match="could not finish its report: LipschitzError: nothing could be certified"),
        pytest.warns(UserWarning, match="NonFiniteError"),
    ):
        fit(Diverging(), ll.LipschitzCallback(report=path, lower_bound=False))
    assert not path.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_shows_the_whole_history(fit, path, tmp_path):
    first = fit(Classifier(), ll.LipschitzCallback())
    first.save_checkpoint(tmp_path / "half.ckpt")
    callback = ll.LipschitzCallback(report=path)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Classifier(), loader(), loader(8), ckpt_path=tmp_path / "half.ckpt")
    rows = Page(path).text["training"].split("\n")
    assert [row[0] for row in rows if row[:1].isdigit()] == ["0", "1", "2", "3"]


def test_a_trial_run_writes_nothing(fit, path):
    fit(Classifier(), ll.LipschitzCallback(report=path), fast_dev_run=True)
    assert not path.exists()


@pytest.mark.usefixtures("undrawn")
def test_loggers_without_figures_get_none(fit, path, tmp_path):
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path)]
    added = []
    loggers[1].experiment.add_figure = lambda tag, figure, global_step: added.append(tag)
    fit(Classifier(), ll.LipschitzCallback(report=path), logger=loggers)
    assert added == [f"lipschitz/report/{name}" for name in ("training", "layers", "curve", "pairs")]


def test_a_composed_bound_is_reported_node_by_node(fit, path):
    class Convolutional(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
            )

    fit(Convolutional(), ll.LipschitzCallback(method="composed", report=path))
    page = Page(path)
    assert "explicit matrices" in page.text["pairs"]
    assert "8 validation inputs" in page.text["curve"]
    assert "layers" not in page.missing


def test_the_room_exports_what_the_callback_uses():
    assert all(hasattr(report, name) for name in report.__all__)
