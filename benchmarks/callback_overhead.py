"""What LipschitzCallback adds to an epoch: the ratio of epoch times with and without it.

    python benchmarks/callback_overhead.py [--data-dir DIR] [--epochs 4] [--repeats 3] [--method auto]

MNIST, 784-128-64-10 ReLU, Adam, batch size 128, if DIR (or LIGHTNING_LIPSCHITZ_DATA) or its folder `mnist` holds the
four IDX files; else the digits of scikit-learn, 64-128-64-10. Runs alternate between with and without; the first epoch
of a run, which traces the model and warms caches, is listed apart; medians are taken.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import platform
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lipschitz._lightning import Callback, LightningModule, Trainer
from lightning_lipschitz.callbacks import LipschitzCallback


class Net(LightningModule):
    def __init__(self, inputs):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


class EpochTimes(Callback):
    """Wall time from the start of an epoch to the start of the next."""

    def __init__(self):
        self.marks = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.marks.append(time.perf_counter())

    def on_train_end(self, trainer, pl_module):
        self.marks.append(time.perf_counter())


def read_idx(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        header = file.read(4)
        shape = [int.from_bytes(file.read(4), "big") for _ in range(header[3])]
        return np.frombuffer(file.read(), dtype=np.uint8).reshape(shape)


def find(folder, stem):
    for base in (folder, folder / "mnist"):
        for path in sorted(base.glob(f"{stem}*")):
            return path
    raise FileNotFoundError(f"{folder} holds no file {stem}*")


def mnist(folder):
    pairs = [("train-images", "train-labels"), ("t10k-images", "t10k-labels")]
    return [(read_idx(find(folder, x)).reshape(-1, 784) / 255.0, read_idx(find(folder, y))) for x, y in pairs]


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return [(x[:1500] / 16.0, y[:1500]), (x[1500:] / 16.0, y[1500:])]


def loaders(data):
    for k, (x, y) in enumerate(data):
        tensors = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y.astype(np.int64)))
        yield DataLoader(tensors, 128 if k == 0 else 1000, shuffle=k == 0)


def run(data, epochs, *callbacks):
    torch.manual_seed(0)
    times = EpochTimes()
    trainer = Trainer(
        callbacks=[*callbacks, times],
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train, test = loaders(data)
    trainer.fit(Net(data[0][0].shape[1]), train, test)
    return np.diff(times.marks), trainer.callback_metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LIGHTNING_LIPSCHITZ_DATA"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", default="auto")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = mnist(Path(arguments.data_dir)) if arguments.data_dir else digits()
    name = "MNIST" if arguments.data_dir else "scikit-learn digits"
    plain, watched, first, seconds = [], [], [], []
    for _ in range(arguments.repeats):
        plain += run(data, arguments.epochs)[0][1:].tolist()
        callback = LipschitzCallback(method=arguments.method)
        epochs, metrics = run(data, arguments.epochs, callback)
        first.append(epochs[0])
        watched += epochs[1:].tolist()
        seconds += [record["seconds"] for record in callback.history[1:]]
    threads = torch.get_num_threads()
    print(f"{name}, {platform.machine()}, {threads} threads, torch {torch.__version__}, {arguments.method}")
    for title, values in (
        ("epoch without", plain),
        ("epoch with", watched),
        ("first epoch with", first),
        ("one measurement", seconds),
    ):
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{title:18s}{median(values):8.3f} s   (median of {len(values)}, {spread})")
    print(f"{'ratio':18s}{median(watched) / median(plain):8.3f}")
    print(f"last bounds: {metrics['lipschitz/lower_bound']:.4f} (sampled) <= {metrics['lipschitz/upper_bound']:.4f}")
    print(f"validation accuracy: {metrics['val_acc']:.4f}")


if __name__ == "__main__":
    main()
