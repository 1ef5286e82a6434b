"""Training for certified accuracy: MNIST and Fashion-MNIST, plain training beside `LipschitzMargin` with its defaults.

    python benchmarks/margin.py --data-dir DATA --case mlp --epochs 15 --seeds 3 --write

The data sit in memory, a batch is one index; Adam, one cycle. 55,000 images are trained on; the last 5,000 of the
training set ("val") are those on which settings were chosen, the 10,000 test images stand beside them. Every entry is
proved: pairs by the kernel, from the loss's own multipliers, in float64. Seconds are the processor's, of the fit.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from common import markdown, parser, publish, quiet_trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import lightning_lipschitz as ll
from lightning_lipschitz.demo.data import Digits, load_digits
from lightning_lipschitz.functional import certified_radius

RADII = (0.3, 0.5, 1.0, 1.58)
BATCH, TRAINED_ON = 250, 55_000
LOGIT_ERROR = 1e-9  # of float64, far more than rounding does to logits of such networks
HEADER = (
    "data",
    "model",
    "training",
    "epochs",
    "seed",
    "clean",
    *map(str, RADII),
    "0.3 (val)",
    "L",
    "processor s",
    "x plain",
)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def c2f2() -> nn.Module:
    """Two convolutions, two dense layers; the architecture of the GloRo paper's tables."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


MODELS = {"mlp": mlp, "c2f2": c2f2}


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module, rate: float, steps: int) -> None:
        super().__init__()
        self.net, self.rate, self.steps = net, rate, steps
        self.example_input_array = torch.zeros(2, 784)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        schedule = OneCycleLR(optimizer, self.rate, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Case:
    """One training; ``radius`` None is plain."""

    data: Digits
    model: str
    epochs: int
    seed: int
    rate: float
    radius: float | None
    options: dict[str, str]


def fitted(case: Case) -> tuple[nn.Module, ll.LipschitzMargin | None, float]:
    """The trained network, what it was trained with, and processor seconds of the fit."""
    torch.manual_seed(case.seed)
    train = tuple(part[:TRAINED_ON] for part in case.data.train)
    data = Digits(case.data.name, train, case.data.test)  # type: ignore[arg-type]
    loader = data.loaders(BATCH)[0]
    module = Classifier(MODELS[case.model](), case.rate, case.epochs * len(loader))
    margin = None if case.radius is None else ll.LipschitzMargin(case.radius, **case.options)  # type: ignore[arg-type]
    trainer = quiet_trainer(case.epochs, *([] if margin is None else [margin]))
    start = time.process_time()
    trainer.fit(module, loader)
    return module.net.eval(), margin, time.process_time() - start


def measured(case: Case, net: nn.Module, margin: ll.LipschitzMargin | None) -> list[str]:
    """Clean and certified accuracy in percent, on test images and, at 0.3, on those held out for choices."""
    multipliers = None if margin is None else margin.multipliers
    net.double()
    bounds = ll.pairwise_bounds(net, torch.zeros(1, 784), refine=False, warm_start=multipliers)
    matrix = torch.from_numpy(bounds.matrix.copy())
    held_out = tuple(part[TRAINED_ON:] for part in case.data.train)

    def radii(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = net(x.double())
        return certified_radius(logits, matrix, y, logit_error=LOGIT_ERROR), logits.argmax(1) == y

    test, right = radii(*case.data.test)
    share = [100.0 * float((test > radius).double().mean()) for radius in RADII]
    chosen = 100.0 * float((radii(*held_out)[0] > RADII[0]).double().mean())
    clean = 100.0 * float(right.double().mean())
    return [*(f"{value:.2f}" for value in (clean, *share, chosen)), f"{bounds.whole.upper_bound:.2f}"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--case", choices=MODELS, default="mlp")
    arguments.add_argument("--fashion", action="store_true", help="Fashion-MNIST in place of MNIST")
    arguments.add_argument("--epochs", type=int, default=15)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--radius", type=float, default=0.3)
    arguments.add_argument("--rate", type=float, default=2e-2)
    arguments.add_argument("--schedule", default="auto")
    arguments.add_argument("--bound", default="auto")
    arguments.add_argument("--no-plain", action="store_true")
    chosen = arguments.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    folder = Path(chosen.data_dir) / ("fashion_mnist" if chosen.fashion else "mnist")
    data, name = load_digits(folder), "Fashion-MNIST" if chosen.fashion else "MNIST"
    options = {"schedule": chosen.schedule, "bound": chosen.bound}
    rows, columns = [], []
    for seed in range(chosen.seeds):
        plain = None
        for radius in [None] * (not chosen.no_plain) + [chosen.radius]:
            case = Case(data, chosen.case, chosen.epochs, seed, chosen.rate, radius, options)
            net, margin, seconds = fitted(case)
            plain = seconds if radius is None else plain
            numbers = measured(case, net, margin)
            training = "plain" if radius is None else f"LipschitzMargin({radius:g}), {chosen.bound}, {chosen.schedule}"
            ratio = "" if plain is None else f"{seconds / plain:.2f}"
            rows.append([name, chosen.case, training, chosen.epochs, seed, *numbers, f"{seconds:.0f}", ratio])
            print(" | ".join(map(str, rows[-1])), flush=True)
            columns += [numbers[:6]] if radius is not None else []
    means = [f"{statistics.mean(float(row[k]) for row in columns):.2f}" for k in range(6)]
    labels = ["clean", *map(str, RADII), "0.3 (val)"]
    note = f"Mean of LipschitzMargin: {', '.join(f'{k} {v}' for k, v in zip(labels, means, strict=True))}."
    stem = f"margin_{chosen.case}_{'fashion_' * chosen.fashion}{chosen.epochs}_{chosen.radius:g}"
    publish(stem, markdown(f"Training for certified accuracy: {name}", HEADER, rows, note), chosen.write)


if __name__ == "__main__":
    main()
