"""Training under a bound at any size: MNIST at 28 x 28, plain training beside `LipschitzScale` and `LipschitzMargin`.

    python benchmarks/scale.py --data-dir DATA --write

The first 20,000 images, 5 epochs, batches of 100, Adam at 0.002; convolutional networks with and without batch norm,
and a small residual one. "plain, scaled" is the same plain training with its last layer multiplied to the bound
afterwards, which changes no decision: test accuracy at a bound says nothing of a classifier. What does is the cross
entropy at that bound, the certified accuracy and the accuracy under noise. All weights are those of a file, certified
again; radii are those of the certified bound of the map to all logits. Seconds are the processor's, of the training
batches.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from common import markdown, parser, publish, quiet_trainer
from margin import c2f2
from torch import Tensor, nn

import lightning_lipschitz as ll
from lightning_lipschitz.demo.data import Digits, load_digits
from lightning_lipschitz.functional import certified_radius

TRAINED_ON, EPOCHS, BATCH, RATE = 20_000, 5, 100, 2e-3
RADII, NOISE = (0.1, 0.3, 0.5), 0.3
CERTIFY = 60.0  # seconds, for each certificate
HEADER = (
    *("model", "L", "training", "test %", "cross entropy", *(f"certified {radius}" for radius in RADII)),
    *(f"noise {NOISE}", "certified L", "processor s", "x plain"),
)


def normed() -> nn.Module:
    """The same convolutions with batch norm, and one linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 10)),
    )


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def residual() -> nn.Module:
    """Two blocks of 16 channels at 7 x 7."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU()),
        *(Block(16), Block(16), nn.Flatten(), nn.Linear(784, 10)),
    )


MODELS = {"2C2F": c2f2, "CNN with batch norm": normed, "residual": residual}


class Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.example_input_array = net, torch.zeros(2, 784)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), RATE)


class Steps(pl.Callback):
    """Processor time of the training batches alone."""

    seconds = 0.0

    def on_train_batch_start(self, *_: object) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, *_: object) -> None:
        self.seconds += time.process_time() - self._start


def fitted(name: str, data: Digits, *callbacks: pl.Callback) -> tuple[nn.Module, float]:
    """What the file of the end of the fit holds, and the processor seconds of its steps."""
    torch.manual_seed(0)
    module, steps = Classifier(MODELS[name]()), Steps()
    with TemporaryDirectory() as folder:
        trainer = quiet_trainer(EPOCHS, *callbacks, steps)
        trainer.fit(module, data.loaders(BATCH)[0])
        trainer.save_checkpoint(Path(folder, "last.ckpt"))
        state = torch.load(Path(folder, "last.ckpt"), weights_only=False)["state_dict"]
    again = Classifier(MODELS[name]())
    again.load_state_dict(state)
    return again.net.eval(), steps.seconds


def measured(net: nn.Module, data: Digits) -> list[str]:
    certificate = ll.certify(net, torch.zeros(1, 784), time_limit=CERTIFY)
    (x, y), net = data.test, copy.deepcopy(net).double()
    noise = NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, noisy = net(x.double()), net((x + noise).double())
    radii = certified_radius(logits, certificate.upper_bound, y, logit_error=1e-9)
    right = 100.0 * float((logits.argmax(1) == y).double().mean())
    share = [100.0 * float((radii > radius).double().mean()) for radius in RADII]
    loss = float(nn.functional.cross_entropy(logits, y))
    under = 100.0 * float((noisy.argmax(1) == y).double().mean())
    return [
        f"{right:.2f}",
        f"{loss:.3f}",
        *(f"{value:.1f}" for value in share),
        f"{under:.1f}",
        f"{certificate.upper_bound:.4g}",
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", default="", help="models whose name holds this text")
    arguments.add_argument("--bounds", type=float, nargs="*", default=[2.0, 5.0, 10.0])
    chosen = arguments.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    given = load_digits(Path(chosen.data_dir) / "mnist")
    data = Digits(given.name, tuple(part[:TRAINED_ON] for part in given.train), given.test)  # type: ignore[arg-type]
    rows = []

    def add(*row: object) -> None:
        rows.append(row)
        print(" | ".join(map(str, row)), flush=True)

    for name in (name for name in MODELS if chosen.only in name):
        free, plain = fitted(name, data)
        for bound in chosen.bounds:
            scaled = copy.deepcopy(free)
            ll.project(scaled, bound, torch.zeros(1, 784), keep="decisions", time_limit=2 * CERTIFY)
            add(name, f"{bound:g}", "plain, scaled", *measured(scaled, data), f"{plain:.1f}", "1.00")
            net, seconds = fitted(name, data, ll.LipschitzScale(bound))
            ratio = f"{seconds / plain:.2f}"
            add(name, f"{bound:g}", "LipschitzScale", *measured(net, data), f"{seconds:.1f}", ratio)
    publish("scale", markdown("Training under a bound at 28 x 28", HEADER, rows), chosen.write)


if __name__ == "__main__":
    main()
