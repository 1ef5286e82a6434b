"""Fits in two processes; run by test_ddp.py as `python -m tests.callbacks.ddp_run STRATEGY FOLDER SCENARIO ...`.

Every rank writes what it saw to FOLDER/SCENARIO/rank<k>.json.
"""

import json
import os
import sys
import time
import warnings
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_lipschitz import api
from lightning_lipschitz.bounds import interior_point
from lightning_lipschitz.callbacks import LipschitzCallback
from tests.modules import INPUTS, Bypassed, Classifier, Noisy, Uncertifiable, loader

KEY = "lipschitz/upper_bound"
REAL = api.certify


class Witness(Callback):
    def __init__(self, folder, callback):
        self.folder, self.callback = folder, callback

    def on_fit_end(self, trainer, pl_module):
        logged = trainer.callback_metrics[KEY].item()
        checksum = sum(p.double().sum().item() for p in pl_module.parameters())
        self.write(trainer, history=self.callback.history, logged=logged, checksum=checksum)

    def on_exception(self, trainer, pl_module, exception):
        self.write(trainer, error=f"{type(exception).__name__}: {exception}")

    def write(self, trainer, **facts):
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(facts))


def slow(real):
    def certify(*args, **options):
        time.sleep(4.0)
        return real(*args, **options)

    return certify


def raising(real):
    def certify(*args, method, **options):
        if method != "norm-product":
            raise RuntimeError("no solver on rank 0")
        return real(*args, method=method, **options)

    return certify


def splitting(real):
    def certify(*args, **options):
        return real(*args, **{**options, "method": "lipsdp-neuron", "split_size": 2})

    return certify


def counting(folder):
    """Write down the process of every solve."""
    solve = interior_point.propose

    def propose(*args, **options):
        with (folder / "solves.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return solve(*args, **options)

    interior_point.propose = propose
    return solve


class Deep(Classifier):
    def __init__(self):
        super().__init__()
        sizes = (INPUTS, 6, 6, 6, 3)
        self.net = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)))


SCENARIOS = {
    "shared": (Deep, {}, splitting, 60),
    "plain": (Classifier, {}, None, 60),
    "statistics": (Noisy, {"accumulate_grad_batches": 2, "val_check_interval": 0.5}, None, 60),
    "bypassed": (Bypassed, {}, None, 60),
    "raising": (Classifier, {}, raising, 60),
    "slow": (Classifier, {"max_epochs": 1}, slow, 3),
    "uncertifiable": (Uncertifiable, {}, None, 60),
}


def main(strategy, folder, scenario):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    make, options, patch, timeout = SCENARIOS[scenario]
    api.certify = REAL if patch is None else patch(REAL)
    start_method = {"ddp": "popen", "ddp_fork": "fork", "ddp_spawn": "spawn"}[strategy]
    timeout = timedelta(seconds=timeout)
    solve = counting(folder)
    report = folder / "report.html" if scenario == "plain" else None
    callback = LipschitzCallback(method="closed-form", report=report)
    saver = ModelCheckpoint(dirpath=folder, monitor=KEY, save_top_k=-1, filename="{step}")
    trainer = Trainer(
        strategy=DDPStrategy(start_method=start_method, timeout=timeout, process_group_backend="gloo"),
        accelerator="cpu",
        devices=2,
        callbacks=[callback, Witness(folder, callback), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 2, **options},
    )
    data = loader(16).dataset
    trainer.fit(make(), DataLoader(data, 4), DataLoader(data, 4))
    if trainer.is_global_zero:
        (folder / "main.json").write_text(json.dumps(trainer.callback_metrics[KEY].item()))
    interior_point.propose = solve


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[3:]:
        main(sys.argv[1], Path(sys.argv[2], name), name)
