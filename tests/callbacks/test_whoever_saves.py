"""Whoever saves, and when: after the fit, another Trainer, a finder, on the way of an exception."""

import copy
import pickle
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.tuner import Tuner

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzCallback
from tests.callbacks.files import ALLOWED, MESSAGES, METHODS, above, bound_of
from tests.modules import INPUTS, Classifier, DictBatches, Pair, loader

pytestmark = [
    *(pytest.mark.filterwarnings(message) for message in MESSAGES),
    pytest.mark.filterwarnings("ignore:.*not those that the fit left"),
]
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def steep(factor=30.0):
    torch.manual_seed(1)
    module = Classifier()
    with torch.no_grad():
        module.net[0].weight.mul_(factor)
    return module


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# After the fit

AVERAGES = {
    "every step": lambda: EMAWeightAveraging(decay=0.5),
    "mean": WeightAveraging,
    "stochastic": lambda: StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1),
}


@BOTH
@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("weights_only", [False, True], ids=["whole", "weights"])
def test_averaged_weights_saved_after_the_fit(weights_only, average, method, fit, tmp_path):
    trainer = fit(steep(), method(), average(), max_epochs=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=weights_only)
    assert not [each for each in told if "not those that the fit left" in str(each.message)]
    assert bound_of(tmp_path / "after.ckpt") <= ALLOWED


class Renews(Callback):
    """Other parameter objects, as a model gets them that is moved from some kinds of devices."""

    def __init__(self, hook):
        setattr(self, hook, self._renew)

    def _renew(self, trainer, pl_module, *_):
        for layer in (pl_module.net[0], pl_module.net[2]):
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


@BOTH
def test_parameters_that_are_other_objects_when_the_fit_ends(method, fit, tmp_path):
    module = steep()
    trainer = fit(module, method(), Renews("on_train_end"))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert bound_of(tmp_path / "after.ckpt") <= ALLOWED
    assert ll.certify(module, torch.zeros(2, INPUTS)).upper_bound <= ALLOWED


def loaded_by_test(trainer, module, raw):
    trainer.test(module, loader(), ckpt_path=raw, verbose=False)


def loaded_by_predict(trainer, module, raw):
    trainer.predict(module, loader(), ckpt_path=raw)


def another_module(trainer, module, raw):
    trainer.validate(steep(), loader(), verbose=False)


def written_by_hand(trainer, module, raw):
    module.load_state_dict(steep().state_dict())


def by_another_trainer(trainer, module, raw):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    pl.Trainer(accelerator="cpu", devices=1, **quiet).test(module, loader(), ckpt_path=raw, verbose=False)


OTHERS = [loaded_by_test, loaded_by_predict, another_module, written_by_hand, by_another_trainer]


@BOTH
@pytest.mark.parametrize("bring", OTHERS)
def test_other_weights_saved_after_the_fit(bring, method, fit, trainer, tmp_path):
    """The file meets the bound and its certificate is of what is in it; the module is left as it is."""
    fit(steep(), max_epochs=1).save_checkpoint(raw := tmp_path / "raw.pt")
    monitor = LipschitzCallback(method="closed-form", lower_bound=False)
    mine, module = trainer(method(), monitor, max_epochs=1), steep()
    mine.fit(module, loader())
    bring(mine, module, raw)
    before = copied(mine.lightning_module)
    with pytest.warns(UserWarning, match="not those that the fit left"):
        mine.save_checkpoint(tmp_path / "after.ckpt")
    assert same(before, copied(mine.lightning_module))
    assert bound_of(tmp_path / "after.ckpt") <= ALLOWED
    assert "lipschitz" not in torch.load(tmp_path / "after.ckpt", weights_only=True)


def test_other_weights_after_the_fit_have_no_certificate_of_the_monitor(fit, tmp_path):
    trainer = fit(module := Classifier(), LipschitzCallback(method="closed-form", lower_bound=False))
    trainer.save_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    with torch.no_grad():
        module.net[0].weight.mul_(2.0)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    assert bound_of(tmp_path / "own.ckpt") > 0
    assert "lipschitz" not in torch.load(tmp_path / "other.ckpt", weights_only=True)


@BOTH
def test_another_trainer_saves_what_it_has_once_the_fit_is_over(method, fit, tmp_path):
    """Training without the bound is training without the bound."""
    fit(module := steep(), method(), max_epochs=1)
    fit(module, max_epochs=1).save_checkpoint(tmp_path / "plain.pt")
    assert same(torch.load(tmp_path / "plain.pt", weights_only=True)["state_dict"], copied(module))


@BOTH
def test_two_fits_of_one_trainer(method, trainer, tmp_path):
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    mine = trainer(method(), saver, max_epochs=1)
    for _ in range(2):
        mine.fit(module := steep(), loader())
        mine.fit_loop.max_epochs += 1
        mine.save_checkpoint(tmp_path / f"after-{mine.global_step}.ckpt")
    bad, count = above(tmp_path)
    assert (bad, count) == ([], 4)
    assert "on_save_checkpoint" not in module.__dict__


def test_a_copy_of_the_trainer_saves_for_itself(fit):
    trainer = fit(Classifier(), LipschitzADMM(1.0), max_epochs=1)
    twin = copy.deepcopy(trainer)
    assert twin.save_checkpoint.__self__ is twin
    assert pickle.loads(pickle.dumps(trainer)).save_checkpoint.__func__ is pl.Trainer.save_checkpoint


# Another Trainer inside a hook


class Nested(Callback):
    """Runs a Trainer of its own on the module, and saves by it."""

    def __init__(self, run, folder=None):
        self.run, self.folder = run, folder

    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        other = pl.Trainer(accelerator="cpu", devices=1, **quiet)
        options = {} if self.run == "predict" else {"verbose": False}
        getattr(other, self.run)(pl_module, loader(), **options)
        if self.folder is not None:
            other.save_checkpoint(self.folder / f"other-{trainer.global_step}.ckpt")


class Unlogged(Classifier):
    """Logs nothing itself: its ``log`` asks the other Trainer."""

    def log(self, *args, **kwargs):
        if args[0].startswith(("admm/", "barrier/", "lipschitz/")):
            super().log(*args, **kwargs)


@BOTH
@pytest.mark.parametrize("run", ["test", "validate", "predict"])
def test_another_trainer_in_a_hook(run, method, fit, tmp_path):
    seen = []
    for nested in ([], [Nested(run, tmp_path)]):
        torch.manual_seed(1)
        module, mine = Unlogged(), method()
        saver = ModelCheckpoint(tmp_path, filename=f"{len(nested)}-{{step}}", every_n_train_steps=2, save_top_k=-1)
        monitor = LipschitzCallback(method="closed-form", lower_bound=False)
        trainer = fit(module, *nested, mine, monitor, saver)
        assert trainer.callback_metrics[f"{mine.base}/upper_bound"] == mine.history[-1]["upper_bound"]
        seen.append(([record["upper_bound"] for record in mine.history], copied(module)))
    assert seen[0][0] == seen[1][0]
    assert same(seen[0][1], seen[1][1])
    bad, count = above(tmp_path)
    assert (bad, count) == ([], 2 * 4 + 2)


class LoadsOwnFile(Callback):
    """Another Trainer loads a file of this one in the middle of the fit: what it tests is the file."""

    def __init__(self, folder):
        self.folder, self.losses = folder, []

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(path := self.folder / "own.ckpt")
            quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
            other = pl.Trainer(accelerator="cpu", devices=1, **quiet)
            other.test(pl_module, loader(), ckpt_path=path, verbose=False)
            fresh = Classifier()
            fresh.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
            self.losses.append(same(copied(pl_module), copied(fresh)))


def test_another_trainer_loads_what_the_file_holds(fit, tmp_path):
    own = LoadsOwnFile(tmp_path)
    fit(Unlogged(), own, METHODS["admm"]())
    assert own.losses == [True, True]


# Exceptions


class Broken(Classifier):
    """Fails in the middle, with weights that have left the set."""

    def training_step(self, batch, batch_idx):
        if self.global_step == 6:
            raise RuntimeError("a mistake of the user's")
        return super().training_step(batch, batch_idx)


@BOTH
def test_an_exception_leaves_nothing_behind(method, trainer, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3)
    module, mine = Broken(), trainer(method(), saver)
    with pytest.raises(RuntimeError, match="a mistake"):
        mine.fit(module, loader())
    assert not {"on_save_checkpoint", "on_load_checkpoint"} & module.__dict__.keys()
    mine.save_checkpoint(tmp_path / "by-hand.ckpt")
    bad, count = above(tmp_path, Broken)
    assert (bad, count) == ([], 2)
    mine.test(module, loader(), ckpt_path=saver.best_model_path, verbose=False)
    assert same(copied(module), torch.load(saver.best_model_path, weights_only=True)["state_dict"])


class BrokenAtOnce(Classifier):
    error: BaseException = ValueError("a mistake of the user's")

    def training_step(self, batch, batch_idx):
        raise self.error


class Interrupted(BrokenAtOnce):
    error = KeyboardInterrupt()


class Diverged(Classifier):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.net[0].weight.fill_(float("nan"))
        raise ValueError("a mistake of the user's")


SAVERS = {
    "on exception": lambda folder: OnExceptionCheckpoint(folder),
    "checkpoint": lambda folder: ModelCheckpoint(folder, save_on_exception=True, save_last=True),
}


@BOTH
@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
@pytest.mark.parametrize(
    ("make", "saver"),
    [*((make, "on exception") for make in (BrokenAtOnce, Interrupted, Diverged)), (Diverged, "checkpoint")],
)
def test_an_error_of_the_user_stays_what_it_is(make, saver, method, trainer, tmp_path):
    """What cannot be certified is not saved, with a warning; the error that caused it is the one that is raised."""
    mine = trainer(method(), SAVERS[saver](tmp_path), enable_checkpointing=True)
    with (
        pytest.warns(UserWarning, match="is not written: .*(example_input_array|NaN)"),
        pytest.raises((ValueError, SystemExit)) as raised,
    ):
        mine.fit(make(), loader())
    assert type(raised.value) is (SystemExit if make is Interrupted else ValueError)
    assert make is Interrupted or "a mistake" in str(raised.value)
    assert not list(tmp_path.rglob("*.ckpt"))
    with pytest.raises(ll.errors.LipschitzError):  # no exception is on its way: this one counts
        mine.save_checkpoint(tmp_path / "by-hand.ckpt")


# Before the first step


class Knowing(Classifier):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, INPUTS)


class KnowingPair(Pair):
    """The input of a submodule follows from that of the model."""

    def __init__(self):
        super().__init__()
        self.example_input_array = {"x": torch.zeros(2, INPUTS)}


NOTHING_DONE = [{"max_epochs": 0}, {"limit_train_batches": 0}, {"max_steps": 0, "max_epochs": 1}]


@BOTH
@pytest.mark.parametrize("options", NOTHING_DONE, ids=str)
@pytest.mark.filterwarnings("ignore:.*limit_train_batches")
@pytest.mark.filterwarnings("ignore:`Trainer.fit` stopped")
def test_no_step_was_made(options, method, fit, tmp_path):
    trainer = fit(steep(), method(), val=None, **options)
    with pytest.raises(ll.errors.LipschitzError, match="example_input_array"):
        trainer.save_checkpoint(tmp_path / "unknown.ckpt")
    assert not list(tmp_path.rglob("*.ckpt"))
    for make, module in ((Knowing, ""), (KnowingPair, "net")):
        known = make()
        with torch.no_grad():
            known.net[0].weight.mul_(30.0)
        fit(known, method(module=module), val=None, **options).save_checkpoint(tmp_path / "known.ckpt")
        assert bound_of(tmp_path / "known.ckpt", make, module) <= ALLOWED


class WrongExample(Classifier):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, INPUTS + 1)


def test_an_example_that_the_model_does_not_take_is_named(fit, tmp_path):
    trainer = fit(WrongExample(), METHODS["admm"](module="net"), max_epochs=0, val=None)
    with pytest.raises(ll.errors.LipschitzError, match="`example_input_array` of `WrongExample`"):
        trainer.save_checkpoint(tmp_path / "x.ckpt")


# Finders save and go back


class Sized(Classifier):
    def __init__(self):
        super().__init__(lr=0.1)
        self.batch_size, self.first = 4, None

    def train_dataloader(self):
        return loader(16, self.batch_size)

    def val_dataloader(self):
        return loader(8, self.batch_size)

    def on_train_batch_start(self, batch, batch_idx):
        self.first = copied(self) if self.trainer.lr_scheduler_configs == [] and self.first is None else self.first


class Again(LearningRateFinder):
    """Looks for a learning rate at an epoch in the middle, too."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            before = copied(pl_module)
            self.lr_find(trainer, pl_module)
            assert same(before, copied(pl_module))


FINDERS = {
    "learning rate": lambda: LearningRateFinder(num_training_steps=5),
    "learning rate again": lambda: Again(num_training_steps=5),
    "batch size": lambda: BatchSizeFinder(max_trials=2, steps_per_trial=1),
    "tuner": None,
}


@pytest.mark.parametrize("method", [*METHODS.values(), LipschitzCallback], ids=[*METHODS, "monitor"])
@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.filterwarnings("ignore:.*")
def test_finders_find_and_go_back(finder, method, trainer, tmp_path):
    torch.manual_seed(1)
    module = Sized()
    given = copied(module)
    callbacks = [method(), *([FINDERS[finder]()] if FINDERS[finder] else [])]
    mine = trainer(*callbacks, ModelCheckpoint(tmp_path, save_top_k=-1), enable_checkpointing=True, max_epochs=2)
    if FINDERS[finder] is None:
        Tuner(mine).lr_find(module, num_training=5)
        assert same(given, copied(module))
    mine.fit(module)
    assert same(given, module.first)
    mine.save_checkpoint(tmp_path / "after.ckpt")
    if method is not LipschitzCallback:
        bad, count = above(tmp_path, Sized)
        assert not bad
        assert count >= 3


# Another callback's wrapper


class Rewriter(Callback):
    """Puts a wrapper around the module's hook when training is under way, and writes what it likes."""

    def on_train_start(self, trainer, pl_module):
        inner = pl_module.on_save_checkpoint

        def rewrite(checkpoint):
            inner(checkpoint)
            checkpoint["state_dict"] = {key: 9.0 * value for key, value in checkpoint["state_dict"].items()}

        pl_module.on_save_checkpoint = rewrite


@BOTH
def test_what_another_wrapper_writes_meets_the_bound(method, fit, tmp_path):
    fit(steep(), method(), Rewriter(), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}"))
    bad, count = above(tmp_path)
    assert (bad, count) == ([], 2)


def test_an_input_that_is_never_seen(fit, tmp_path):
    """A forward that is never called, and batches that do not tell."""
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="example_input_array"):
        fit(DictBatches(), METHODS["admm"](), ModelCheckpoint(tmp_path), val=None)
    assert not list(tmp_path.rglob("*.ckpt"))
