"""Every way to save, beside everything that moves weights: no file is above the bound.

``python -m tests.callbacks.matrix`` tries all of it and prints how many files were written, and which are above.
"""

from __future__ import annotations

import collections
import itertools
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Checkpoint,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.nn.utils import prune

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzCallback, stamped_certificates
from lightning_lipschitz.extraction import Extractor
from tests.callbacks.files import ALLOWED, METHODS, Failing
from tests.models import Lambda
from tests.modules import INPUTS, Classifier, body, loader
from tests.training.graphs import UnitRows

# Models


class Grows(Classifier):
    """From weights far outside, with a learning rate that leaves the set again."""

    make = staticmethod(body)
    pruned = False

    def __init__(self):
        super().__init__(lr=1.0)
        self.batch_size = 4
        torch.manual_seed(1)
        self.net = self.make()
        self.scale = nn.Parameter(torch.ones(()))  # something is trained whatever is frozen
        for parameter in self.net.parameters():
            parameter.data.mul_(4.0)
        if self.pruned:
            prune.l1_unstructured(self.last, "weight", 0.5)

    @property
    def last(self):
        return [each for each in self.net.modules() if hasattr(each, "weight")][-1]

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]) * self.scale, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], self.hparams.lr, momentum=0.5)

    def train_dataloader(self):
        return loader(16, self.batch_size)

    def val_dataloader(self):
        return loader(8, self.batch_size)


class Residual(Grows):
    @staticmethod
    def make():
        def forward(m, x):
            h = torch.relu(m.first(x))
            return m.last(h + torch.tanh(m.second(h)))

        return Lambda(forward, first=nn.Linear(INPUTS, 6), second=nn.Linear(6, 6), last=nn.Linear(6, 3))


class Images(Grows):
    @staticmethod
    def make():
        parts = nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(3, 3, 2)
        return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), *parts, nn.Flatten(1))


class Divided(Grows):
    """A layer that is divided by a norm of its weights."""

    make = staticmethod(lambda: nn.Sequential(UnitRows(INPUTS, 6), nn.ReLU(), nn.Linear(6, 3)))


class Twice(Grows):
    """A layer that is used twice."""

    @staticmethod
    def make():
        layer = nn.Linear(INPUTS, INPUTS)
        return nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh(), nn.Linear(INPUTS, 3))


MODELS = {"chain": Grows, "residual": Residual, "convolutions": Images, "divided": Divided, "used twice": Twice}


# What else moves weights


class Thaws(BaseFinetuning):
    """A layer is frozen first and trained later."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.last)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.last, optimizer, lr=1.0)


class Jumps(Callback):
    """Writes weights far outside, behind the back of every optimizer."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            with torch.no_grad():
                pl_module.last.weight.mul_(9.0)


class Nested(Callback):
    """Another Trainer tests the module in the middle of the fit."""

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            quiet(accelerator="cpu").predict(pl_module, loader(8))


BESIDE = {  # callbacks, and options of the Trainer
    "nothing": (list, {}),
    "monitor": (lambda: [LipschitzCallback(method="closed-form", lower_bound=False, module="net")], {}),
    "EMA": (lambda: [EMAWeightAveraging(decay=0.5)], {}),
    "mean": (lambda: [WeightAveraging()], {}),
    "SWA": (lambda: [StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1)], {}),
    "learning rate finder": (lambda: [LearningRateFinder(num_training_steps=5)], {}),
    "batch size finder": (lambda: [BatchSizeFinder(max_trials=2, steps_per_trial=1)], {}),
    "fine-tuning": (lambda: [Thaws()], {}),
    "pruned before": (list, {}),
    "resumed": (list, {}),
    "fitted twice": (list, {}),
    "error": (lambda: [Failing(RuntimeError("a mistake"))], {}),
    "interrupt": (lambda: [Failing(KeyboardInterrupt())], {}),
    "jumps": (lambda: [Jumps()], {}),
    "nested": (lambda: [Nested()], {}),
    "accumulation": (list, {"accumulate_grad_batches": 3}),
    "clipping": (list, {"gradient_clip_val": 0.5}),
    "double": (list, {"precision": "64-true"}),
    "half": (list, {"precision": "bf16-true"}),
    "mixed": (list, {"precision": "bf16-mixed"}),
}


def is_out_of_reach(model, method, beside):
    """Refused: beside rows of norm 1, a frozen layer alone is above the bound; and what is frozen is not multiplied."""
    return beside == "fine-tuning" and (method == "scale" or model == "divided")


# Ways to save


class ByHand(Callback):
    """``trainer.save_checkpoint`` from many hooks, whole and weights alone."""

    def __init__(self, folder):
        self.folder, self.count = folder, itertools.count()

    def _save(self, trainer, *_):
        number = next(self.count)
        trainer.save_checkpoint(self.folder / f"hand-{number}.ckpt", weights_only=number % 2 == 1)

    on_train_start = on_train_batch_end = on_validation_end = on_train_epoch_end = on_train_end = _save


def every_step(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


SAVES = {
    "every step": lambda folder: [every_step(folder)],
    "best, last, weights only": lambda folder: [
        ModelCheckpoint(folder, monitor="val_loss", save_top_k=2, save_last=True, save_weights_only=True)
    ],
    "time": lambda folder: [ModelCheckpoint(folder, train_time_interval=timedelta(microseconds=1), save_top_k=-1)],
    "validation": lambda folder: [ModelCheckpoint(folder, save_on_train_epoch_end=False, save_top_k=-1)],
    "by hand": lambda folder: [ByHand(folder)],
    "on an exception": lambda folder: [OnExceptionCheckpoint(folder)],
    "after": lambda folder: [],
}


def quiet(*callbacks, **options):
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    saving = any(isinstance(each, Checkpoint) for each in callbacks)
    return pl.Trainer(callbacks=list(callbacks), enable_checkpointing=saving, **plain, **options)


def written(model, method, beside, save, folder):
    """Fit and save; the files lie in the folder.

    Returns:
        The kind of module that they are of.
    """
    make, options = BESIDE[beside]
    kind = type("Pruned", (MODELS[model],), {"pruned": True}) if beside == "pruned before" else MODELS[model]

    def trainer(epochs):
        callbacks = [METHODS[method](module="net"), *make(), *SAVES[save](folder)]
        return quiet(*callbacks, accelerator="cpu", max_epochs=epochs, default_root_dir=folder, **options)

    module, first = kind(), None
    if beside == "resumed":
        trainer(1).fit(module, *loaders())
        first = folder / "first.ckpt"
        module.trainer.save_checkpoint(first)
        module = kind()
    mine = trainer(2)
    given = () if "finder" in beside else loaders()
    try:
        mine.fit(module, *given, ckpt_path=first)
        if beside == "fitted twice":
            mine.fit_loop.max_epochs += 1
            mine.fit(module, *given)
    except (RuntimeError, SystemExit):
        assert beside in ("error", "interrupt")
    except ll.errors.ProjectionError:
        assert is_out_of_reach(model, method, beside)
        return kind
    if save == "by hand" and beside not in ("error", "interrupt"):
        mine.validate(module, loader(8), verbose=False)
    for weights_only in (False, True):
        mine.save_checkpoint(folder / f"after-{weights_only}.ckpt", weights_only=weights_only)
    return kind


def loaders():
    return loader(), loader(8)


def above(kind, folder):
    """The files whose weights break the bound or whose certificate is of other weights, and the number of all."""
    reader, bad = Extractor(kind().net.eval(), torch.zeros(2, INPUTS)), []
    files = sorted(folder.rglob("*.ckpt"))
    for path in files:
        file = torch.load(path, weights_only=True)
        state = {name.removeprefix("net."): each for name, each in file["state_dict"].items() if "net." in name}
        network, stamps = reader.network(state), stamped_certificates(file)
        try:
            proved = [ll.verify(stamp, network) for name, stamp in stamps.items() if name != "lipschitz"]
        except ll.errors.CertificateError:
            proved = []
        if not proved or min(ll.certify(network, rtol=1e-8).upper_bound, *proved) > ALLOWED:
            bad.append(path.name)
    return bad, len(files)


def tried(model, method, beside, save, folder):
    """:func:`above` for one cell of the matrix."""
    return above(written(model, method, beside, save, folder), folder)


def main():
    """All cells."""
    warnings.simplefilter("ignore")
    counts, bad = collections.Counter(), []
    for cell in itertools.product(MODELS, METHODS, BESIDE, SAVES):
        with tempfile.TemporaryDirectory() as folder:
            wrong, count = tried(*cell, Path(folder))
        counts["cells"] += 1
        counts["files"] += count
        bad += [(*cell, name) for name in wrong]
        for name in cell:
            counts[name] += count
    print(dict(counts))
    print(f"{counts['files']} files of {counts['cells']} runs; above the bound: {bad or 0}")


if __name__ == "__main__":
    main()
