"""Fits under a bound in two processes; run by test_constrained_ddp.py as `python -m ... FOLDER SCENARIO ...`.

Every rank writes what it saw to FOLDER/SCENARIO/rank<k>.json.
"""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lightning_lipschitz.callbacks import (
    LipschitzADMM,
    LipschitzBarrier,
    LipschitzMargin,
    LipschitzScale,
    _certified_weights,
    admm,
)
from tests.modules import Classifier, Uncertifiable, loader

BOUND = 0.4


class Witness(Callback):
    def __init__(self, folder, callback):
        self.folder, self.callback, self.steps = folder, callback, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(self.checksum(pl_module))

    def on_fit_end(self, trainer, pl_module):
        history = [{k: v for k, v in record.items() if k != "seconds"} for record in self.callback.history]
        self.write(trainer, history=history, steps=self.steps, checksum=self.checksum(pl_module))

    def on_exception(self, trainer, pl_module, exception):
        self.write(trainer, error=f"{type(exception).__name__}: {exception}")

    def checksum(self, pl_module):
        return sum(p.double().sum().item() for p in pl_module.parameters())

    def write(self, trainer, **facts):
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(facts))


def no_round():
    def advance(*_):
        raise RuntimeError("no round on rank 0")

    admm.advance = advance


def no_certificate():
    def certify(*_, **__):
        raise RuntimeError("no solver on rank 0")

    _certified_weights.api = type("api", (), {"certify": certify})


SCENARIOS = {
    "admm": (Classifier, lambda: LipschitzADMM(BOUND, every_n_steps=2), None, {}),
    "barrier": (Classifier, lambda: LipschitzBarrier(BOUND), None, {}),
    "scale": (Classifier, lambda: LipschitzScale(BOUND), None, {}),
    "average": (Classifier, lambda: LipschitzADMM(BOUND, every_n_steps=2), None, {"average": True}),
    "accumulate": (Classifier, lambda: LipschitzBarrier(BOUND), None, {"accumulate_grad_batches": 2}),
    "no round": (Classifier, lambda: LipschitzADMM(BOUND, every_n_steps=2), no_round, {}),
    "margin": (Classifier, lambda: LipschitzMargin(0.3), None, {}),
    "margin, product": (
        Classifier,
        lambda: LipschitzMargin(0.3, bound="product"),
        None,
        {"accumulate_grad_batches": 2},
    ),
    "uncertifiable": (Uncertifiable, lambda: LipschitzADMM(BOUND), None, {}),
    "no certificate": (Classifier, lambda: LipschitzADMM(BOUND, every_n_steps=2), no_certificate, {}),
}


def main(folder, scenario):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    make, method, patch, options = SCENARIOS[scenario]
    if patch is not None:
        patch()
    callback = method()
    average = [EMAWeightAveraging(decay=0.5)] if options.pop("average", False) else []
    saver = ModelCheckpoint(dirpath=folder, save_top_k=-1, every_n_train_steps=2, filename="{step}")
    trainer = Trainer(
        strategy=DDPStrategy(start_method="fork", timeout=timedelta(seconds=60), process_group_backend="gloo"),
        accelerator="cpu",
        devices=2,
        max_epochs=2,
        callbacks=[callback, *average, Witness(folder, callback), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    data = loader(16).dataset
    module = make()
    trainer.fit(module, DataLoader(data, 2), DataLoader(data, 4))
    torch.save(module.state_dict(), folder / "shipped.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[2:]:
        main(Path(sys.argv[1], name), name)
