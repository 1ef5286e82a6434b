"""What leaves a fit under a bound meets it: files of every kind, validation metrics, the module."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier, LipschitzCallback, LipschitzScale
from lightning_lipschitz.checkpoint_files import from_plain
from lightning_lipschitz.extraction import Extractor
from tests.callbacks.files import Failing
from tests.modules import INPUTS, Classifier, Pair, body, loader

BOUND = 0.4
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the training weights did not come to meet"),
    pytest.mark.filterwarnings("ignore:.*optimizer steps would have broken"),
    pytest.mark.filterwarnings("ignore:.*the weights were outside"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging"),
]


def admm():
    return LipschitzADMM(BOUND, every_n_steps=3)


def barrier():
    return LipschitzBarrier(BOUND)


def scale():
    return LipschitzScale(BOUND)


METHODS = pytest.mark.parametrize("method", [admm, barrier, scale])


READER = Extractor(body(), torch.zeros(2, INPUTS))


def opened(path):
    """The network of the file's weights, its certificate, and all of it."""
    file = torch.load(path, weights_only=True)
    assert file["state_dict"].keys() == Classifier().state_dict().keys()
    network = READER.network({name.removeprefix("net."): value for name, value in file["state_dict"].items()})
    return network, from_plain(next(file[key] for key in ("admm", "barrier", "scale") if key in file)), file


def bad_files(folder):
    """Of all files in the folder, those that break the bound or whose certificate does not hold; how many there are."""
    files, bad = sorted(Path(folder).rglob("*.ckpt")), []
    for path in files:
        network, certificate, _ = opened(path)
        if not (ll.verify(certificate, network) <= BOUND and meets(network)):
            bad.append(path.name)
    return bad, len(files)


def meets(network):
    """Certified anew, from nothing but the weights; a search stops a little above what some multipliers prove."""
    return ll.certify(network, rtol=1e-8).upper_bound <= BOUND * (1 + 1e-6)


def holds(module):
    return meets(READER.network({name: value.double() for name, value in module.net.state_dict().items()}))


def has_left_the_set(folder):
    """Whether any file had to be projected: the test would prove nothing otherwise."""
    return any(opened(path)[2]["admm"].get("training_weights") for path in Path(folder).rglob("*.ckpt"))


MODES = {
    "epoch and last": ({"save_last": True, "save_top_k": -1}, {}, 3),
    "validation end": ({"save_on_train_epoch_end": False, "save_top_k": -1}, {"val_check_interval": 0.5}, 4),
    "every step": ({"every_n_train_steps": 1, "save_top_k": -1}, {}, 8),
    "time": ({"train_time_interval": timedelta(microseconds=1), "save_top_k": -1}, {}, 8),
    "weights only": ({"save_weights_only": True, "save_top_k": -1}, {}, 2),
    "no validation": ({"save_top_k": -1}, {"val": False}, 2),
    "accumulation": ({"every_n_train_steps": 1, "save_top_k": -1}, {"accumulate_grad_batches": 3}, 4),
    "half precision": ({"save_top_k": -1}, {"precision": "bf16-true"}, 2),
    "double precision": ({"save_top_k": -1}, {"precision": "64-true"}, 2),
    "mixed precision": ({"save_top_k": -1}, {"precision": "bf16-mixed"}, 2),
}


@METHODS
@pytest.mark.parametrize("mode", MODES)
def test_every_file_meets_the_bound(mode, method, fit, tmp_path):
    saving, options, least = MODES[mode]
    torch.manual_seed(1)
    module = Classifier()
    fit(module, method(), ModelCheckpoint(dirpath=tmp_path, filename="{step}", **saving), **options)
    bad, count = bad_files(tmp_path)
    assert not bad
    assert count >= least
    assert holds(module)
    if method is admm and mode != "weights only":
        assert has_left_the_set(tmp_path)


AVERAGES = {
    "before": lambda mine: [EMAWeightAveraging(decay=0.5), mine],
    "after": lambda mine: [mine, EMAWeightAveraging(decay=0.5)],
    "SWA": lambda mine: [mine, StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)],
}


@METHODS
@pytest.mark.parametrize("order", AVERAGES)
@pytest.mark.parametrize("mode", ["epoch and last", "every step", "weights only"])
def test_every_file_meets_the_bound_under_averaging(mode, order, method, fit, tmp_path):
    saving, options, least = MODES[mode]
    torch.manual_seed(1)
    module = Classifier()
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", **saving)
    fit(module, *AVERAGES[order](method()), saver, max_epochs=3, **options)
    bad, count = bad_files(tmp_path)
    assert not bad
    assert count >= least
    assert holds(module)


@METHODS
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "keyboard"])
def test_files_of_a_run_that_breaks_off(error, method, trainer, tmp_path):
    torch.manual_seed(1)
    module, saver = Classifier(), ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_on_exception=True)
    mine = trainer(method(), Failing(error), saver)
    with pytest.raises((RuntimeError, SystemExit)):
        mine.fit(module, loader(), loader(8))
    mine.save_checkpoint(tmp_path / "manual.ckpt")
    bad, count = bad_files(tmp_path)
    assert not bad
    assert count >= 2


class Saver(Callback):
    """Saves by hand, wherever a hook allows it."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"validation-{trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"batch-{trainer.global_step}.ckpt", weights_only=True)

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "end.ckpt")


@METHODS
def test_files_saved_by_hand(method, fit, tmp_path):
    torch.manual_seed(1)
    mine = fit(Classifier(), method(), Saver(tmp_path))
    mine.save_checkpoint(tmp_path / "after.ckpt")
    bad, count = bad_files(tmp_path)
    assert not bad
    assert count == 2 + 8 + 1 + 1


@METHODS
@pytest.mark.parametrize("order", [None, "before", "after"])
def test_validation_is_that_of_the_file(order, method, fit, tmp_path):
    torch.manual_seed(1)
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", filename="{step}", save_top_k=-1)
    callbacks = AVERAGES[order](method()) if order else [method()]
    mine = fit(Classifier(), *callbacks, saver, max_epochs=3)
    assert len(saver.best_k_models) == 3
    for path, label in saver.best_k_models.items():
        module = Classifier.load_from_checkpoint(path)
        losses = [module._loss(batch).item() for batch in loader(8)]
        assert label.item() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    (tested,) = mine.test(Classifier(), loader(8), ckpt_path=saver.best_model_path, verbose=False)
    assert tested["test_loss"] == pytest.approx(saver.best_model_score.item(), rel=1e-6)


@METHODS
@pytest.mark.parametrize("order", [None, "before", "after"])
def test_resume_is_exact(order, method, fit, tmp_path):
    """Weights, multipliers and duals of an interrupted run are those of one in a piece."""

    def go(folder, epochs, ckpt_path=None):
        torch.manual_seed(5)
        module, callback = Classifier(), method()
        saver = ModelCheckpoint(dirpath=tmp_path / folder, filename="{epoch}")
        callbacks = AVERAGES[order](callback) if order else [callback]
        fit(module, *callbacks, saver, max_epochs=epochs, ckpt_path=ckpt_path)
        return torch.load(saver.best_model_path, weights_only=True), callback

    whole, one = go("whole", 4)
    half, _ = go("half", 2)
    rest, other = go("rest", 4, ckpt_path=tmp_path / "half" / "epoch=1.ckpt")
    assert half["global_step"] == 8
    _assert_equal(whole["state_dict"], rest["state_dict"])
    _assert_equal(whole["optimizer_states"], rest["optimizer_states"])
    _assert_equal(whole.get("current_model_state"), rest.get("current_model_state"))
    states = [next(s for key, s in file["callbacks"].items() if key.startswith("Lipschitz")) for file in (whole, rest)]
    for state in states:
        for record in state["history"]:
            record.pop("seconds")
    _assert_equal(*states)
    assert [r["global_step"] for r in one.history] == [r["global_step"] for r in other.history]


@METHODS
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_from_the_last_batch_of_an_epoch_is_exact(method, accumulate, fit, tmp_path):
    """Lightning does not come to the end of that epoch again; the round that belongs there is made all the same."""

    def go(folder, epochs, ckpt_path=None):
        torch.manual_seed(5)
        module, callback = Classifier(), LipschitzADMM(BOUND, every_n_steps=None) if method is admm else method()
        saver = ModelCheckpoint(dirpath=tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"accumulate_grad_batches": accumulate, "val": None}
        return fit(module, callback, saver, max_epochs=epochs, ckpt_path=ckpt_path, **options), module

    _, whole = go("whole", 3)
    for epoch in (1, 2):
        trainer, rest = go(f"rest{epoch}", 3, ckpt_path=tmp_path / "whole" / f"step={epoch * 4 // accumulate}.ckpt")
        assert trainer.global_step == 12 // accumulate
        _assert_equal(whole.state_dict(), rest.state_dict())


def _assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _assert_equal(left, right)
    else:
        assert one == other


def test_training_weights_come_back(fit, tmp_path):
    """They are under a key of their own, and resuming without the callback starts from the certified ones."""
    torch.manual_seed(1)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="one")
    fit(Classifier(), admm(), saver, max_epochs=1)
    file = torch.load(tmp_path / "one.ckpt", weights_only=True)
    raw = file["admm"]["training_weights"]
    assert set(raw) == {"net.0.weight", "net.2.weight"}
    seen = {}

    class Witness(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    fit(Classifier(), admm(), Witness(), ckpt_path=tmp_path / "one.ckpt")
    _assert_equal({name: seen[name] for name in raw}, raw)
    fit(Classifier(), Witness(), ckpt_path=tmp_path / "one.ckpt")
    _assert_equal(seen, dict(file["state_dict"]))


@METHODS
def test_gate_is_gone_after_the_fit(method, fit):
    module = Classifier()
    fit(module, method())
    assert "on_save_checkpoint" not in module.__dict__
    assert "on_load_checkpoint" not in module.__dict__


class Watcher(Callback):
    """The live weights around validation."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.inside = []

    def on_validation_start(self, trainer, pl_module):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_validation_end(self, trainer, pl_module):
        assert all(torch.equal(a, b) for a, b in zip(self.before, pl_module.parameters(), strict=True))


@METHODS
def test_validation_leaves_training_alone(method, fit):
    fit(Classifier(), method(), Watcher())


class FailingValidation(Classifier):
    def validation_step(self, batch, batch_idx):
        if self.global_step:
            self.kept = [p.detach().clone() for p in self.parameters()]
            raise RuntimeError("in validation")


def test_exception_in_validation_gives_training_weights_back(trainer):
    torch.manual_seed(1)
    module = FailingValidation()
    with pytest.raises(RuntimeError, match="in validation"):
        trainer(admm()).fit(module, loader(), loader(8))
    assert not all(torch.equal(a, b) for a, b in zip(module.kept, module.parameters(), strict=True))


class Diverged(Classifier):
    def on_train_epoch_end(self):
        with torch.no_grad():
            self.net[0].weight.fill_(float("nan"))


@pytest.mark.filterwarnings("ignore:.*a round failed")
def test_nothing_is_written_of_weights_that_are_nan(trainer, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path)
    with pytest.raises(ll.errors.NonFiniteError, match="NaN"):
        trainer(admm(), saver).fit(Diverged(), loader())
    assert not list(tmp_path.glob("*.ckpt"))


def test_two_submodules(fit, tmp_path):
    torch.manual_seed(1)
    module = Pair()
    both = [LipschitzADMM(bound, module=name, every_n_steps=3) for name, bound in (("encoder", 0.5), ("net", 0.4))]
    mine = fit(module, *both, ModelCheckpoint(dirpath=tmp_path, filename="one"))
    assert {"admm/upper_bound", "admm/net/upper_bound"} <= mine.callback_metrics.keys()
    file = torch.load(tmp_path / "one.ckpt", weights_only=True)
    for name, key in (("encoder", "admm"), ("net", "admm/net")):
        plain = getattr(Pair.load_from_checkpoint(tmp_path / "one.ckpt"), name)
        assert ll.verify(from_plain(file[key]), plain, torch.zeros(2, INPUTS)) <= {"encoder": 0.5, "net": 0.4}[name]


def test_beside_the_monitor(fit, tmp_path):
    """A stamp of the monitor is of the weights in the file, or is not there."""
    torch.manual_seed(1)
    for k, callbacks in enumerate([(admm(), LipschitzCallback()), (LipschitzCallback(), admm())]):
        saver = ModelCheckpoint(dirpath=tmp_path / str(k), filename="{step}", every_n_train_steps=2)
        fit(Classifier(), *callbacks, saver)
    bad, count = bad_files(tmp_path)
    assert (bad, count) == ([], 2)
    for path in tmp_path.rglob("*.ckpt"):
        network, _, file = opened(path)
        if "lipschitz" in file:
            ll.verify(from_plain(file["lipschitz"]), network)


class Recording(Callback):
    """Losses of every batch."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


@METHODS
@pytest.mark.parametrize("val", [True, None], ids=["validated", "not validated"])
@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "averaged"])
def test_the_monitor_looks_at_what_is_written(fit, tmp_path, method, val, averaged):
    """In any order of the callbacks, and without a change to what is trained and written."""
    seen, files = [], []
    for k in range(3):
        monitor = LipschitzCallback(certified_radii=[0.05] if val else [], lower_bound=False)
        record, mine = Recording(), method()
        saver = ModelCheckpoint(dirpath=tmp_path / str(k), filename="{epoch}", save_top_k=-1)
        others = [[mine], [mine, monitor], [monitor, mine]][k]
        torch.manual_seed(1)
        module = Classifier()
        trainer = fit(module, *others, record, *[EMAWeightAveraging(decay=0.5)] * averaged, saver, val=val)
        accuracy = trainer.callback_metrics.get("lipschitz/certified_accuracy_0.05")
        seen.append((record.losses, [r["upper_bound"] for r in mine.history], None if not k else accuracy))
        files.append([opened(path) for path in sorted((tmp_path / str(k)).rglob("*.ckpt"))])
        if k:
            bounds = [entry["upper_bound"] for entry in monitor.history]
            assert len(bounds) >= 2
            assert max(bounds) <= BOUND
            assert (accuracy is not None) == bool(val)
            for network, _, file in files[-1]:
                ll.verify(from_plain(file["lipschitz"]), network)
            assert ll.verify(monitor.certificate, module.net, torch.zeros(2, INPUTS)) <= BOUND
    assert seen[0][:2] == seen[1][:2] == seen[2][:2]
    assert seen[1][2] == seen[2][2]
    digests = [[network.digest for network, _, _ in group] for group in files]
    assert len(digests[0]) == 2
    assert digests[0] == digests[1] == digests[2]


KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import shutil, torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from lightning_lipschitz.callbacks import LipschitzADMM
from lightning_lipschitz.extraction import Extractor
from tests.modules import Classifier, loader

saves, copy = 0, shutil.copyfileobj

def half(source, target, *rest):
    content = source.read()
    target.write(content[: len(content) // 2])
    target.flush()
    os.kill(os.getpid(), signal.SIGKILL)

class Hasty(ModelCheckpoint):
    def _save_checkpoint(self, trainer, path):
        global saves
        saves += 1
        if saves == 3:
            shutil.copyfileobj = half
            shutil._fastcopy_sendfile = lambda source, target: half(source, target)
        super()._save_checkpoint(trainer, path)

saver = Hasty(dirpath=sys.argv[1], filename="one", every_n_train_steps=1, enable_version_counter=False)
Trainer(max_epochs=1, callbacks=[LipschitzADMM(0.4, every_n_steps=2), saver], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False).fit(Classifier(), loader())
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system")
def test_killed_in_the_middle_of_a_save(tmp_path):
    """The folder for temporary files is on another file system, so that moving a file into place is copying it."""
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": "/dev/shm"}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert bad_files(tmp_path) == ([], 1)
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["global_step"] == 2


def test_module_can_be_copied_and_saved_in_a_fit(fit, tmp_path):
    class Copier(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            import copy
            import pickle

            copy.deepcopy(pl_module)
            torch.save(pl_module, tmp_path / "module.pt")
            for callback in trainer.callbacks:
                if type(callback).__name__.startswith("Lipschitz"):
                    pickle.loads(pickle.dumps(callback))

    for method in (admm, barrier, scale):
        fit(Classifier(), method(), Copier(), max_epochs=1)
        again = torch.load(tmp_path / "module.pt", weights_only=False)
        assert isinstance(again.net, nn.Sequential)
        assert len(again.net) == len(body())
