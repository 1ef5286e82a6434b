"""What LipschitzCallback adds to an epoch: the ratio of epoch times with and without it, certifying every epoch.

    python benchmarks/callback_overhead.py [--data-dir DIR] [--epochs 4] [--repeats 3] [--write]

MNIST, 784-128-64-10 ReLU, Adam, batch size 128, if DIR (or LIGHTNING_LIPSCHITZ_DATA) holds mnist/; else the digits of
scikit-learn, 64-128-64-10. The images come in three ways:

* images: one by one through Pillow and a conversion to float, as torchvision's data set with `ToTensor` gives them;
* samples: one by one out of a `TensorDataset`;
* batches: sliced out of a tensor in memory, with no work left but the training step.

Runs alternate between with and without; the first epoch of a run, which traces the model and warms caches, is left out;
medians are taken.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from common import digits, markdown, parser, publish
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_lipschitz._lightning import Callback, LightningModule, Trainer
from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.demo.data import Digits

BATCH = 128


class Net(LightningModule):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Images(Dataset):
    """8-bit images, decoded when they are asked for."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        side = int(x.shape[1] ** 0.5)
        self.pixels, self.labels = (255.0 * x).round().to(torch.uint8).reshape(-1, side, side), y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[index].numpy())
        return torch.from_numpy(np.array(image, copy=True))[None].to(torch.float32).div(255.0), self.labels[index]


class EpochTimes(Callback):
    """Wall time from the start of an epoch to the start of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.marks.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.marks.append(time.perf_counter())


def loaders(data: Digits, way: str) -> Iterator[DataLoader]:
    if way == "batches":
        yield from data.loaders(BATCH)
        return
    dataset = Images if way == "images" else TensorDataset
    yield DataLoader(dataset(*data.train), BATCH, shuffle=True)
    yield DataLoader(dataset(*data.test), 10 * BATCH)


def run(data: Digits, way: str, epochs: int, *callbacks: Callback) -> tuple[np.ndarray, dict[str, Tensor]]:
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
    train, test = loaders(data, way)
    trainer.fit(Net(data.train[0].shape[1]), train, test)
    return np.diff(times.marks)[1:], trainer.callback_metrics


def row(data: Digits, way: str, epochs: int, repeats: int) -> list[str]:
    plain, watched, seconds = [], [], []
    for _ in range(repeats):
        plain += run(data, way, epochs)[0].tolist()
        callback = LipschitzCallback()
        watched += run(data, way, epochs, callback)[0].tolist()
        seconds += [record["seconds"] for record in callback.history[1:]]
    share = 100.0 * median(seconds) / median(plain)
    cells = [f"{median(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (plain, watched, seconds)]
    return [way, *cells, f"{median(watched) / median(plain):.3f}", f"{share:.1f} %"]


def main() -> None:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--repeats", type=int, default=3)
    options = made.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = digits(None if options.quick else options.data_dir)
    rows = [row(data, way, options.epochs, options.repeats) for way in ("images", "samples", "batches")]
    header = ["input", "epoch, s", "epoch with callback, s", "one measurement, s", "ratio", "measurement / epoch"]
    note = (
        f"{len(data.train[0])} training images, hidden layers of 128 and 64, batch {BATCH}, validation every epoch;"
        " medians, least to greatest in brackets. A measurement is the certificate (defaults) and the lower bound."
    )
    publish(
        "callback_overhead", markdown(f"LipschitzCallback every epoch, {data.name}", header, rows, note), options.write
    )


if __name__ == "__main__":
    main()
