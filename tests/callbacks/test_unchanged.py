"""A run with the callback is the run without it."""

import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.lightning_tools.saving import SaveGate
from tests.modules import Classifier, Noisy, Pair, loader

OURS = ("epoch", "step")


class Witness(Callback):
    """What a user could see of a run."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        streams = torch.random.get_rng_state().sum().item(), np.random.get_state()[2], random.getstate()[1][-1]
        self.seen.append((outputs["loss"].item(), batch[0].sum().item(), *streams))

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append([module.training for module in pl_module.modules()])
        self.seen.append([None if p.grad is None else p.grad.norm().item() for p in pl_module.parameters()])


def run(fit, tmp_path, *callbacks, make=Noisy, **options):
    seed_everything(3)
    witness, module, logger = Witness(), make(), CSVLogger(tmp_path)
    trainer = fit(module, *callbacks, witness, logger=logger, log_every_n_steps=1, max_epochs=3, **options)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items() if not key.startswith("lipschitz")}
    return witness.seen, module.state_dict(), metrics, torch.rand(1), np.random.rand(), random.random()


def same(one, other):
    seen, weights, *rest = one
    other_seen, other_weights, *other_rest = other
    assert seen == other_seen
    assert list(weights) == list(other_weights)
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    assert rest == other_rest


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize(
    "options",
    [{}, {"val": False}, {"val_check_interval": 0.5}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}],
    ids=str,
)
@pytest.mark.parametrize("others", [(), (lambda: EMAWeightAveraging(decay=0.5),)], ids=["plain", "average"])
def test_attaching_changes_nothing(options, others, fit, tmp_path):
    without = run(fit, tmp_path, *(other() for other in others), **options)
    same(without, run(fit, tmp_path, LipschitzCallback(), *(other() for other in others), **options))


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize("others", [(), (lambda: EMAWeightAveraging(decay=0.5),)], ids=["plain", "average"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resume_is_exact(every, others, fit, tmp_path):
    """Weights and history of an interrupted run are those of one in a piece; the file has no other state_dict keys."""

    def go(folder, epochs, ckpt_path=None, callback=None):
        torch.manual_seed(5)
        module, saver = Classifier(), ModelCheckpoint(dirpath=tmp_path / folder)
        fit(module, *(o() for o in others), callback, saver, max_epochs=epochs, ckpt_path=ckpt_path)
        return module, saver.best_model_path

    def fresh():
        return LipschitzCallback(every, method="closed-form")

    whole, first, second = fresh(), fresh(), fresh()
    expected, _ = go("whole", 4, callback=whole)
    _, path = go("first", 2, callback=first)
    resumed, last = go("second", 4, ckpt_path=path, callback=second)
    checkpoint = torch.load(last, weights_only=True)
    assert list(checkpoint["state_dict"]) == list(expected.state_dict())
    assert all(torch.equal(resumed.state_dict()[key], value) for key, value in expected.state_dict().items())
    bounds = {r["global_step"]: (r["upper_bound"], r["lower_bound"]) for r in whole.history}
    assert {r["global_step"]: (r["upper_bound"], r["lower_bound"]) for r in second.history}.items() >= bounds.items()


def test_state_is_plain(fit, tmp_path):
    """Also for two instances, and with the solver's multipliers in it."""
    one, two = LipschitzCallback(), LipschitzCallback(module="encoder")
    saver = ModelCheckpoint(dirpath=tmp_path)
    fit(Pair(), one, two, saver)
    states = torch.load(saver.best_model_path, weights_only=True)["callbacks"]
    for callback in (one, two):
        restored = LipschitzCallback(module=callback.module)
        restored.load_state_dict(states[callback.state_key])
        assert restored.history == callback.history
        assert restored.certificate.network_digest == callback.certificate.network_digest
        for mine, theirs in zip(restored.certificate.proof.values, callback.certificate.proof.values, strict=True):
            assert np.array_equal(mine, theirs)


class Copier(Callback):
    """Copies everything there is in the middle of a fit, in every hook where a user might."""

    def __init__(self):
        self.modules, self.callbacks = [], []

    def copy(self, trainer, pl_module):
        file = io.BytesIO()
        torch.save(pl_module, file)
        file.seek(0)
        self.modules += [copy.deepcopy(pl_module), torch.load(file, weights_only=False)]
        ours = next(c for c in trainer.callbacks if isinstance(c, LipschitzCallback))
        self.callbacks += [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]

    def on_train_start(self, trainer, pl_module):
        self.copy(trainer, pl_module)

    def on_train_epoch_start(self, trainer, pl_module):
        self.copy(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.copy(trainer, pl_module)

    def on_validation_end(self, trainer, pl_module):
        self.copy(trainer, pl_module)


class Saver(Classifier):
    """With a hook of its own on the way of the gate."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = id(self)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("sanity", [0, 2])
def test_copies_in_the_middle_of_a_fit(order, sanity, fit, trainer):
    copier, callback, module = Copier(), LipschitzCallback(), Saver()
    fit(module, *[copier, callback][::order], num_sanity_val_steps=sanity)
    assert len(copier.modules) >= 20
    for copied in copier.modules:
        checkpoint = {}
        copied.on_save_checkpoint(checkpoint)
        assert checkpoint == {"mine": id(copied)}
    last = copier.callbacks[-1]
    assert last.history == callback.history
    fit(copier.modules[-1].train(), last, max_epochs=1)
    assert len(last.history) == len(callback.history) + 1


def test_every_callback_of_the_trainer_can_be_pickled_after_a_fit(fit):
    callback = LipschitzCallback()
    fit(Classifier(), callback)
    restored = pickle.loads(pickle.dumps(callback))
    assert restored.history == callback.history
    assert "log" not in restored.__dict__


def test_the_module_is_not_kept_alive(fit):
    import gc
    import weakref

    module, callback = Classifier(), LipschitzCallback()
    trainer = fit(module, callback)
    reference = weakref.ref(module.net)
    trainer.strategy._lightning_module = trainer.strategy.model = None
    del trainer, module
    callback.__dict__.pop("log", None), callback.__dict__.pop("log_dict", None)
    gc.collect()
    assert reference() is None


def test_no_dataloader_is_asked_for_more(trainer):
    class Counting:
        drawn = 0

        def __iter__(self):
            for batch in loader():
                self.drawn += 1
                yield batch

        def __len__(self):
            return 4

    data = Counting()
    trainer(LipschitzCallback()).fit(Classifier(), data)
    assert data.drawn == 8


def test_a_solver_that_draws_random_numbers(fit, monkeypatch, tmp_path):
    """Whatever a solver does with the global streams, the run does not notice."""
    from lightning_lipschitz import api

    real = api.certify

    def drawing(*args, **options):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        return real(*args, **options)

    without = run(fit, tmp_path / "without")
    monkeypatch.setattr(api, "certify", drawing)
    same(without, run(fit, tmp_path / "with", LipschitzCallback()))


class OuterGate:
    """Another callback's wrapper, put on after ours and taken off before or after it."""

    def __init__(self, module):
        self.module, self.inner = module, module.on_save_checkpoint
        module.on_save_checkpoint = self

    def __call__(self, checkpoint):
        self.inner(checkpoint)
        checkpoint["outer"] = True

    def remove(self):
        self.module.on_save_checkpoint = self.inner


@pytest.mark.parametrize("order", ["outer first", "ours first"])
def test_gates_can_be_stacked(order):
    class Owner:
        def on_every_save(self, module, checkpoint):
            checkpoint["ours"] = True

    module, owner = Saver(), Owner()
    gate = SaveGate(module, owner.on_every_save)
    gate.install()
    outer = OuterGate(module)
    module.on_save_checkpoint(first := {})
    assert first == {"mine": id(module), "ours": True, "outer": True}
    for step in (outer.remove, gate.remove)[:: 1 if order == "outer first" else -1]:
        step()
    module.on_save_checkpoint(last := {})
    assert last == {"mine": id(module)}
