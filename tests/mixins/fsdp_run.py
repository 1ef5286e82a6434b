"""Fits with CLIPMixin and sharded weights in two processes; run by test_fsdp.py as `python -m ... FOLDER`."""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

import lightning_lipschitz as ll
from tests.mixins.ddp_run import BATCH, EPOCHS, WEIGHT
from tests.modules import Classifier, loader


class Clipped(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_climbing=None):
    def configure_model(self):
        """The first layer by itself, the other with the root, which gathers it when it is called."""
        for part in self.net[0], self:
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


class Witness(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        whole = {name: value.full_tensor() for name, value in pl_module.state_dict().items()}  # on all ranks
        rank = trainer.global_rank
        torch.save(whole, self.folder / f"rank{rank}.pt")
        kinds = sorted({type(p).__name__ for p in pl_module.parameters()})
        facts = {"kinds": kinds, "logged": {k: float(v) for k, v in trainer.callback_metrics.items()}}
        (self.folder / f"rank{rank}.json").write_text(json.dumps(facts))


def main(folder):
    torch.manual_seed(1)
    module = Clipped()
    trainer = Trainer(
        strategy=ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            timeout=timedelta(seconds=60),
        ),
        accelerator="cpu",
        devices=2,
        max_epochs=EPOCHS,
        callbacks=[Witness(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = loader(16).dataset
    trainer.fit(module, DataLoader(data, BATCH), DataLoader(data, 4))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
