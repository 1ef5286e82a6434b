"""Fits with CLIPMixin in two processes; run by test_ddp.py as `python -m ... FOLDER SCENARIO ...`.

Every rank writes what it saw to FOLDER/SCENARIO/rank<k>.json.
"""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

import lightning_lipschitz as ll
from tests.modules import Classifier, Manual, Noisy, body, loader

WEIGHT = 0.3
EPOCHS, BATCH = 2, 2


class Net(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_climbing=None):
    pass


class InManual(ll.CLIPMixin, Manual, clip_weight=WEIGHT, clip_climbing=None):
    pass


class WithBuffers(ll.CLIPMixin, Noisy, clip_weight=WEIGHT):
    """Batch statistics, dropout, a frozen part."""


class PenaltyOnly(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_module="spare"):
    """The loss alone does not reach `spare`."""

    def __init__(self):
        super().__init__()
        self.spare = body()


class NowAndThen(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_module="spare", clip_every_n_steps=2):
    """In every other step nothing reaches `spare`."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Sequential(body(), nn.Tanh())


class Scheduled(Net, clip_metric="accuracy", clip_target=0.5, clip_factor=2.0):
    """Its metric is logged by each process for itself, and they are on different sides of the target."""

    def training_step(self, batch, batch_idx):
        self.log("accuracy", 0.9 if self.global_rank == 0 else 0.3, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


SCENARIOS = {
    "plain": (Net, {}, {}),
    "accumulate": (Net, {}, {"accumulate_grad_batches": 2}),
    "find unused": (Net, {"find_unused_parameters": True}, {}),
    "static graph": (Net, {"static_graph": True}, {}),
    "manual": (InManual, {}, {}),
    "buffers": (WithBuffers, {}, {}),
    "penalty only": (PenaltyOnly, {}, {}),
    "now and then": (NowAndThen, {"find_unused_parameters": True}, {}),
    "scheduled": (Scheduled, {}, {}),
}


class Witness(Callback):
    def __init__(self, folder):
        self.folder, self.steps = folder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(sum(p.double().sum().item() for p in pl_module.parameters()))

    def on_fit_end(self, trainer, pl_module):
        facts = {
            "steps": self.steps,
            "weight": pl_module._clip.weight,
            "logged": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("clip/")},
            "lower_bound": pl_module._clip.lower_bound(pl_module),
            "pairs": pl_module._clip._pairs.u.tolist(),
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(facts))


def fitted(module, folder, strategy, *, epochs=EPOCHS, ckpt_path=None, **options):
    trainer = Trainer(
        strategy=DDPStrategy(
            start_method="fork", timeout=timedelta(seconds=60), process_group_backend="gloo", **strategy
        ),
        accelerator="cpu",
        devices=2,
        max_epochs=epochs,
        callbacks=[Witness(folder), ModelCheckpoint(dirpath=folder, filename="last")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    data = loader(16).dataset
    trainer.fit(module, DataLoader(data, BATCH), DataLoader(data, 4), ckpt_path=ckpt_path)
    torch.save(module.state_dict(), folder / "shipped.pt")


def main(folder, scenario):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    make, strategy, options = SCENARIOS[scenario]
    fitted(make(), folder, strategy, **options)


def resume(folder):
    """The plain run goes on for two more epochs."""
    folder.mkdir(exist_ok=True)
    fitted(Net(), folder, {}, epochs=2 * EPOCHS, ckpt_path=folder.parent / "plain" / "last.ckpt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[2:]:
        if name == "resume":
            resume(Path(sys.argv[1], name))
        else:
            main(Path(sys.argv[1], name), name)
