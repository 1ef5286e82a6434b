"""What is measured, when, and what becomes of it."""

import math
import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_lipschitz import Status, api
from lightning_lipschitz.bounds import search
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.callbacks import LipschitzCallback, _measurement
from lightning_lipschitz.callbacks._submodule import Submodule
from tests.helpers import chain
from tests.models import Lambda
from tests.modules import INPUTS, Bypassed, Classifier, Diverging, NoForward, Noisy, Pair, WithExample, loader

KEYS = ("upper_bound", "lower_bound", "relative_gap", "seconds", "solver_ok")
EXAMPLE = torch.zeros(2, INPUTS)


def fast(**options):
    return LipschitzCallback(method="closed-form", lower_bound=False, **options)


def test_keys_history_and_certificate(fit):
    callback, module = LipschitzCallback(), Classifier()
    trainer = fit(module, callback)
    assert {f"lipschitz/{name}" for name in KEYS} <= set(trainer.callback_metrics)
    assert [record["epoch"] for record in callback.history] == [0, 1]
    assert [record["global_step"] for record in callback.history] == [4, 8]
    last = callback.history[-1]
    assert set(last) == {"epoch", "global_step", "method", *KEYS}
    assert all(type(value) in (int, float, bool, str) for value in last.values())
    assert 0 < last["lower_bound"] <= last["upper_bound"]
    assert last["solver_ok"] is True
    assert 0 <= last["relative_gap"] < 1e-3
    certificate = callback.certificate
    assert (certificate.upper_bound, certificate.epoch, certificate.global_step) == (last["upper_bound"], 1, 8)
    assert api.verify(certificate, module, EXAMPLE) == last["upper_bound"]


def test_logged_value_is_not_rounded(fit):
    """float32 would fall below the certificate for about every other value."""
    callback = fast()
    trainer = fit(Classifier(), callback, max_epochs=24, limit_train_batches=1)
    logged = trainer.callback_metrics["lipschitz/upper_bound"]
    assert logged.dtype == torch.float64
    assert logged.item() == callback.certificate.upper_bound
    assert any(float(np.float32(record["upper_bound"])) < record["upper_bound"] for record in callback.history)


@pytest.mark.parametrize("make", [Classifier, WithExample, NoForward, Bypassed, Noisy], ids=lambda make: make.__name__)
def test_where_the_example_input_comes_from(make, fit):
    callback, module = fast(), make()
    fit(module, callback, max_epochs=1)
    target = module.net if make is NoForward else module
    assert api.verify(callback.certificate, target, EXAMPLE)


def test_submodule(fit):
    callback, module = LipschitzCallback(module="encoder"), Pair()
    trainer = fit(module, callback, max_epochs=1)
    assert (
        api.verify(callback.certificate, module.encoder, EXAMPLE) == trainer.callback_metrics["lipschitz/upper_bound"]
    )


@pytest.mark.parametrize(
    ("modules", "prefixes"),
    [
        (("", "encoder"), ("lipschitz", "lipschitz/encoder")),
        (("encoder", ""), ("lipschitz/encoder", "lipschitz")),
        (("net", "encoder", "net.0"), ("lipschitz", "lipschitz/encoder", "lipschitz/net.0")),
    ],
)
def test_several_instances(modules, prefixes, fit, tmp_path):
    callbacks = [fast(module=name) for name in modules]
    trainer = fit(Pair(), *callbacks, ModelCheckpoint(dirpath=tmp_path), max_epochs=1)
    (path,) = tmp_path.glob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    for callback, prefix in zip(callbacks, prefixes, strict=True):
        bound = callback.certificate.upper_bound
        assert trainer.callback_metrics[f"{prefix}/upper_bound"] == checkpoint[prefix]["upper_bound"] == bound
    assert len({callback.certificate.network_digest for callback in callbacks}) == len(callbacks)


WHEN = {
    "every epoch": ({"max_epochs": 3}, {}, [4, 8, 12]),
    "no validation": ({"max_epochs": 3, "val": False}, {}, [4, 8, 12]),
    "every third epoch, first and last": ({"max_epochs": 5}, {"every_n_epochs": 3}, [4, 12, 20]),
    "twice an epoch": ({"val_check_interval": 0.5}, {}, [2, 4, 6, 8]),
    "first epoch only in full": ({"val_check_interval": 0.5, "max_epochs": 3}, {"every_n_epochs": 9}, [2, 4, 12]),
    "sanity check": ({"num_sanity_val_steps": -1, "max_epochs": 1}, {}, [4]),
    "fast_dev_run": ({"fast_dev_run": True}, {}, [1]),
    "no batch": ({"limit_train_batches": 0}, {}, []),
    "no epoch": ({"max_epochs": 0}, {}, []),
    "one batch": ({"limit_train_batches": 1}, {}, [1, 2]),
    "max_steps": ({"max_epochs": -1, "max_steps": 6}, {}, [4, 6]),
    "max_steps, not due": ({"max_epochs": -1, "max_steps": 10}, {"every_n_epochs": 7}, [4, 10]),
    "barebones": (
        {
            "barebones": True,
            "enable_checkpointing": None,
            "logger": None,
            "enable_progress_bar": None,
            "enable_model_summary": None,
        },
        {},
        [4, 8],
    ),
}


@pytest.mark.parametrize("name", WHEN)
@pytest.mark.filterwarnings(r"ignore:You are trying to `self.log\(\)` but `Trainer\(barebones=True\)`")
@pytest.mark.filterwarnings("ignore:You are running in `Trainer")
@pytest.mark.filterwarnings("ignore:.*max_epochs=0.*")
def test_when(name, fit, recwarn):
    fit_options, options, steps = WHEN[name]
    callback = fast(**options)
    trainer = fit(Classifier(), callback, **fit_options)
    assert [record["global_step"] for record in callback.history] == steps
    if steps and name != "barebones":
        assert trainer.callback_metrics["lipschitz/upper_bound"] == callback.history[-1]["upper_bound"]
    assert not any("lipschitz" in str(warning.message) for warning in recwarn)


def test_running_statistics_move_without_a_step(fit):
    """Validation after every batch, one optimizer step an epoch: every validation has a bound of its own."""
    callback = fast()
    fit(Noisy(), callback, accumulate_grad_batches=4, val_check_interval=1, max_epochs=1)
    assert [record["global_step"] for record in callback.history] == [0, 0, 0, 1]
    assert len({record["upper_bound"] for record in callback.history}) == 4


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_measure_nothing(stage, trainer):
    callback, module = LipschitzCallback(), Classifier()
    getattr(trainer(callback), stage)(module, loader(8), **({} if stage == "predict" else {"verbose": False}))
    assert callback.history == []
    assert callback.certificate is None


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_stages_in_a_row(trainer, tmp_path):
    """validate, fit, test from the file, fit again: with the same objects."""
    callback, module, saver = fast(), Classifier(), ModelCheckpoint(dirpath=tmp_path)
    made = trainer(callback, saver)
    made.validate(module, loader(8), verbose=False)
    made.fit(module, loader(), loader(8))
    made.test(module, loader(8), ckpt_path=saver.best_model_path, verbose=False)
    made.predict(module, loader(8))
    made.fit_loop.max_epochs = 3
    made.fit(module, loader(), loader(8))
    assert [record["global_step"] for record in callback.history] == [4, 8, 12]
    assert "on_save_checkpoint" not in module.__dict__
    assert not any(m._forward_pre_hooks for m in module.modules())


def failing(*_, method, **__):
    raise RuntimeError(f"no {method} today")


def failing_method(real):
    def certify(network, **options):
        return real(network, **options) if options["method"] == "norm-product" else failing(**options)

    return certify


def test_failed_solves_fall_back_and_training_goes_on(fit, monkeypatch, tmp_path):
    monkeypatch.setattr(api, "certify", failing_method(api.certify))
    callback, stopper = LipschitzCallback(), EarlyStopping("lipschitz/upper_bound", patience=9, check_finite=True)
    with pytest.warns(UserWarning, match="RuntimeError: no auto today The upper bound logged is") as caught:
        trainer = fit(Classifier(), callback, stopper, max_epochs=3)
    assert len([w for w in caught if "no auto today" in str(w.message)]) == 1
    assert trainer.current_epoch == 3
    assert trainer.callback_metrics["lipschitz/solver_ok"] == 0
    for record in callback.history:
        assert (record["solver_ok"], record["method"]) == (False, "norm-product")
        assert record["lower_bound"] <= record["upper_bound"] < math.inf


def test_time_limit_gives_a_verified_bound(fit):
    """A net whose solve takes longer than the microsecond it is given."""
    callback, module = LipschitzCallback(time_limit=1e-6), Classifier(hidden=40)
    with pytest.warns(UserWarning, match="The upper bound logged is"):
        fit(module, callback, max_epochs=1)
    assert callback.history[-1]["solver_ok"] is False
    assert api.verify(callback.certificate, module, EXAMPLE) == callback.history[-1]["upper_bound"] < math.inf


def spread(*layers):
    """Layers for images of 8 x 8 pixels, after one that makes such an image of the inputs."""
    return nn.Sequential(nn.Linear(INPUTS, 64), nn.Unflatten(1, (1, 8, 8)), *layers, nn.Flatten(), nn.Linear(16, 3))


def convolution(columns, rows, kind=nn.Conv2d, norm=nn.BatchNorm2d, **options):
    return kind(columns, rows, 3, padding=1, **options), norm(rows), nn.ReLU()


SLOW = {
    "CNN with batch norm and max pooling": lambda: spread(*convolution(1, 4, stride=2), nn.MaxPool2d(2)),
    "two blocks and an overlapping pool": lambda: spread(
        *convolution(1, 3, stride=2), *convolution(3, 4), nn.MaxPool2d(3, 2, 1)
    ),
    "residual MLP": lambda: Lambda(
        lambda m, x: m.c(m.a(x) + m.b(m.a(x).relu()).relu()),
        a=nn.Linear(INPUTS, 12),
        b=nn.Linear(12, 12),
        c=nn.Linear(12, 3),
    ),
    "signal CNN": lambda: nn.Sequential(
        nn.Unflatten(1, (1, INPUTS)), *convolution(1, 4, nn.Conv1d, nn.BatchNorm1d), nn.Flatten(), nn.Linear(16, 3)
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_without_a_limit_a_fit_does_not_wait_for_the_search(name, fit, monkeypatch):
    """Here the minute that "auto" optimises for is over at once."""
    monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(_measurement, "_LEAST_SAMPLING", 0.05)
    callback, module = LipschitzCallback(), Classifier(lr=0.05)
    module.net = SLOW[name]()
    with pytest.warns(UserWarning, match=r"The time limit was reached.*The upper bound logged is"):
        trainer = fit(module, callback)
    assert [record["solver_ok"] for record in callback.history] == [False, False]
    assert callback.certificate.status is Status.TIME_LIMIT
    bound = callback.history[-1]["upper_bound"]
    assert (
        bound == trainer.callback_metrics["lipschitz/upper_bound"] == api.verify(callback.certificate, module, EXAMPLE)
    )
    assert 0 < callback.history[-1]["lower_bound"] <= bound
    simple = [api.certify(module, EXAMPLE, method=method).upper_bound for method in ("norm-product", "closed-form")]
    assert bound <= min(simple) * (1 + 1e-9)


# limit, seconds that the certificate took -> seconds for the lower bound
SAMPLING = {
    "no limit, quick": ((None, 0.2), 1.0),
    "no limit, slow": ((None, 7.0), 7.0),
    "what is left": ((10.0, 3.0), 7.0),
    "nothing left": ((10.0, 12.0), 0.0),
    "less than a second": ((0.5, 0.2), 0.3),
}


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("wanted", [True, False])
def test_how_long_the_lower_bound_is_sampled(name, wanted, monkeypatch):
    (limit, took), expected = SAMPLING[name]
    now, given = [0.0], []
    monkeypatch.setattr(_measurement, "Clock", lambda limit: Clock(limit, lambda: now[0]))

    def read():
        now[0] += took
        return chain((4, 5, 3))

    def sample(seconds):
        given.append(seconds)
        now[0] += seconds
        return 0.1

    settings = Settings("closed-form", rtol=1e-4, time_limit=limit)
    record = _measurement.measure(read, sample if wanted else None, settings, None, (0, 0)).entry
    assert given == pytest.approx([expected] if wanted else [])
    assert record.lower_bound == (0.1 if wanted else None)
    assert record.seconds == pytest.approx(took + sum(given))


class Restoring(Classifier):
    """An image network: from two images of one pixel row to one, and a classifier of what it makes."""

    def __init__(self):
        super().__init__(lr=0.05)
        kinds = {"kind": nn.Conv1d, "norm": nn.BatchNorm1d}
        self.encoder = nn.Sequential(*convolution(1, 3, **kinds), nn.Conv1d(3, 1, 3, padding=1))
        self.example_input_array = (torch.zeros(2, 1, INPUTS), torch.ones(2, 1, INPUTS))

    def forward(self, image, mask):
        return image - self.encoder(image) * 0.5 + self.encoder(mask)

    def _loss(self, batch):
        x, y = batch
        image = self(x[:, None], torch.ones_like(x[:, None]))
        return nn.functional.cross_entropy(self.net(image.flatten(1)), y)


@pytest.mark.parametrize("chosen", [{"input": 0}, {"input": "mask"}, {"module": "encoder"}], ids=str)
@pytest.mark.parametrize("limit", [None, 1e-3])
def test_the_lower_bound_of_an_image_network_takes_as_long_as_it_may(chosen, limit, fit, monkeypatch):
    given, real = [], Submodule.lower_bound

    def sampled(self, root, seconds):
        given.append(seconds)
        return real(self, root, seconds)

    monkeypatch.setattr(Submodule, "lower_bound", sampled)
    monkeypatch.setattr(_measurement, "_LEAST_SAMPLING", 0.02)
    callback = LipschitzCallback(method="closed-form", time_limit=limit, **chosen)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*The upper bound logged is")  # where the limit is over at once
        fit(Restoring(), callback, max_epochs=2)
    assert len(given) == len(callback.history) == 2
    for seconds, record in zip(given, callback.history, strict=True):
        assert 0 < record["lower_bound"] <= record["upper_bound"] < math.inf
        assert (0.02 <= seconds <= max(0.02, record["seconds"])) if limit is None else (0 <= seconds < limit)


def test_weights_that_are_not_finite_have_no_finite_bound(fit):
    callback = fast()
    with pytest.warns(UserWarning, match="NonFiniteError.*The upper bound logged is inf"):
        trainer = fit(Diverging(), callback, max_epochs=3)
    assert trainer.current_epoch == 3
    assert [math.isfinite(record["upper_bound"]) for record in callback.history] == [True, False, False]
    assert callback.certificate is None


def test_a_lower_bound_that_fails_costs_only_itself(fit, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no pair")

    monkeypatch.setattr("lightning_lipschitz.callbacks._submodule.sampled_slope", broken)
    callback = LipschitzCallback(method="closed-form")
    with pytest.warns(UserWarning, match="no lower bound was sampled: RuntimeError: no pair"):
        trainer = fit(Classifier(), callback)
    assert callback.history[-1]["lower_bound"] is None
    assert callback.history[-1]["solver_ok"] is True
    assert "lipschitz/lower_bound" not in trainer.callback_metrics


@pytest.mark.parametrize(("limit", "times"), [(1e-3, 1), (1e6, 0)])
def test_max_lipschitz_warns_once(limit, times, fit, recwarn):
    fit(Classifier(), LipschitzCallback(max_lipschitz=limit, method="closed-form"), max_epochs=3)
    messages = [str(w.message) for w in recwarn if "max_lipschitz" in str(w.message)]
    assert len(messages) == times
    assert all("above `max_lipschitz=0.001`" in m and "in epoch 0" in m and "at least" in m for m in messages)


def test_early_stopping_and_learning_rate_can_follow_the_bound(fit):
    stopper = EarlyStopping("lipschitz/upper_bound", patience=1, mode="min", min_delta=100.0)
    trainer = fit(Classifier(), fast(), stopper, max_epochs=9)
    assert trainer.current_epoch == 2


def tensorboard(path, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.parametrize("val", [True, False])
def test_tensorboard_axis(val, fit, tmp_path):
    callback, logger = fast(every_n_epochs=2), TensorBoardLogger(tmp_path)
    fit(Classifier(), callback, logger=logger, val=val, max_epochs=5, log_every_n_steps=1)
    bounds = tensorboard(logger.log_dir, "lipschitz/upper_bound")
    assert list(bounds) == [3, 7, 15, 19]
    assert list(bounds.values()) == [np.float32(record["upper_bound"]) for record in callback.history]
    if val:
        assert set(bounds) <= set(tensorboard(logger.log_dir, "val_loss"))


def test_csv_logger_and_final_measurement(fit, tmp_path):
    callback, logger = fast(every_n_epochs=4), CSVLogger(tmp_path)
    trainer = fit(Classifier(), callback, logger=logger, max_epochs=2, log_every_n_steps=1)
    text = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()
    assert [record["global_step"] for record in callback.history] == [4, 8]
    assert str(callback.history[-1]["upper_bound"]) in text
    assert trainer.callback_metrics["lipschitz/upper_bound"] == callback.history[-1]["upper_bound"]


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bar(shown, fit, capsys):
    trainer = fit(Classifier(), fast(prog_bar=shown), TQDMProgressBar(), enable_progress_bar=True)
    assert ("lipschitz/upper_bound" in trainer.progress_bar_metrics) is shown
    assert ("lipschitz/upper_bound" in capsys.readouterr().out) is shown
    assert "lipschitz/seconds" not in trainer.progress_bar_metrics


def test_compiled_submodule(fit):
    class Compiled(Classifier):
        def __init__(self):
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

        def forward(self, x):
            return self.net(x)

    whole, part = fast(), fast(module="net")
    module = Compiled()
    fit(module, whole, part, max_epochs=1)
    assert whole.certificate.upper_bound == pytest.approx(part.certificate.upper_bound, rel=1e-12)
    assert api.verify(part.certificate, module.net._orig_mod, EXAMPLE)


def test_compiled_module(fit):
    """Hooks inside are silent, so the input is taken from the batch."""

    class Silent(Classifier):
        def training_step(self, batch, batch_idx):
            return self._loss(batch)

        def validation_step(self, batch, batch_idx):
            pass

    callback, module = fast(), Silent()
    fit(torch.compile(module, backend="eager"), callback, max_epochs=1)
    assert api.verify(callback.certificate, nn.Sequential(module.net), EXAMPLE)
