"""Training under a bound beyond chains: a residual network and a small CNN on scikit-learn's digits.

    python benchmarks/bounded_graphs.py [--seeds 2] [--epochs 20] [--bound 5] [--write]

Free training, the same weights projected afterwards, LipschitzADMM and LipschitzBarrier with their defaults but for the
rounds of ADMM, which are every twenty steps. Seconds are the processor's, of the fit with all its certificates.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

import lightning_lipschitz as ll
from benchmarks.common import accuracy, digits, markdown, parser, publish, quiet_trainer

BATCH = 64


class Residual(nn.Module):
    """64-48, two blocks h + relu(W h), 10."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 48), nn.Linear(48, 10)
        self.blocks = nn.ModuleList([nn.Linear(48, 48), nn.Linear(48, 48)])

    def forward(self, x):
        h = torch.relu(self.first(x))
        for block in self.blocks:
            h = h + torch.relu(block(h))
        return self.last(h)


def cnn() -> nn.Module:
    """Two convolutions of stride two, 8 and 16 channels, and a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


MODELS = {"residual MLP": Residual, "CNN": cnn}


class Module(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.example_input_array = net, torch.zeros(2, 64)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 1e-2, total_steps=steps), "interval": "step"}]


def fit(make, seed: int, epochs: int, *callbacks: pl.Callback) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    module = Module(make())
    start = time.process_time()
    quiet_trainer(epochs, *callbacks).fit(module, digits(None).loaders(BATCH)[0])
    return module.net.eval(), time.process_time() - start


def measure(net: nn.Module, seconds: float) -> tuple[float, float, float]:
    return accuracy(net, *digits(None).test), ll.certify(net, torch.zeros(2, 64), rtol=1e-3).upper_bound, seconds


def run(make, seed: int, epochs: int, bound: float) -> dict[str, tuple[float, float, float]]:
    """One seed, every training."""
    net, seconds = fit(make, seed, epochs)
    rows = {"free": measure(net, seconds)}
    start = time.process_time()
    ll.project(net, bound, torch.zeros(2, 64))
    rows["free, then `project`"] = measure(net, seconds + time.process_time() - start)
    rows["`LipschitzADMM`"] = measure(*fit(make, seed, epochs, ll.LipschitzADMM(bound, every_n_steps=20)))
    rows["`LipschitzBarrier`"] = measure(*fit(make, seed, epochs, ll.LipschitzBarrier(bound)))
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=2)
    made.add_argument("--epochs", type=int, default=20)
    made.add_argument("--bound", type=float, default=5.0)
    arguments = made.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows = []
    for name, make in MODELS.items():
        runs = [run(make, seed, arguments.epochs, arguments.bound) for seed in range(arguments.seeds)]
        for training in runs[0]:
            numbers = [statistics.fmean(each[training][k] for each in runs) for k in range(3)]
            rows.append([name, training, *(f"{number:.{d}f}" for number, d in zip(numbers, (1, 3, 1), strict=True))])
            print(rows[-1], flush=True)
    header = ("model", "training", "test %", "certified upper bound", "processor seconds")
    note = (
        f"Mean of {arguments.seeds} seed(s); {arguments.epochs} epochs of Adam with a one-cycle rate up to 0.01, batch"
        f" {BATCH}; bound asked for: {arguments.bound:g}. The upper bound is certified anew from the weights."
    )
    publish("bounded_graphs", markdown("Bounded training beyond chains", header, rows, note), arguments.write)


if __name__ == "__main__":
    main()
