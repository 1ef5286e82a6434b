"""CLIP (Bungert et al., SSVM 2021): accuracy, noise and attacks of their table, and what it lacks: certified bounds.

    python benchmarks/clip2021.py --data-dir DATA           # MNIST from DATA/mnist
    python benchmarks/clip2021.py                           # scikit-learn's digits, no data needed
    python benchmarks/clip2021.py --case cost               # seconds of a training step with and without

Every run is a Lightning `Trainer` with batches in memory. "CLIP to 95" is the discrepancy principle with a target of
95 % of training accuracy; "CLIP" alone is the mixin without any setting.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytorch_lightning as pl
import torch
from common import accuracy, markdown, parser, publish, quiet_trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_lipschitz as ll
from lightning_lipschitz.demo.data import Digits, load_digits

NOISE = 0.3  # standard deviation; grey values are in [0, 1]


@dataclass(frozen=True)
class Case:
    """One data set and architecture, sigmoid units."""

    name: str
    data: Digits
    hidden: tuple[int, ...]
    epochs: int
    rate: float
    radius: float  # of the attack, l2
    batch_size: int = 128

    @property
    def sizes(self) -> list[int]:
        return [self.data.train[0].shape[1], *self.hidden, 10]


class Classifier(pl.LightningModule):
    """A multilayer perceptron that logs its training accuracy."""

    def __init__(self, case: Case, decay: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(case.sizes):
            layers += [nn.Linear(before, after), nn.Sigmoid()]
        self.net = nn.Sequential(*layers[:-1])
        self.rate, self.decay = case.rate, decay

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.log("train_acc", (logits.argmax(1) == y).float().mean(), on_step=False, on_epoch=True)
        return cross_entropy(logits, y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.rate, weight_decay=self.decay)


class Clipped(ll.CLIPMixin, Classifier):
    """The same, and nothing else."""


def to(target: float) -> dict[str, object]:
    return {"metric": "train_acc", "target": target, "factor": 1.2}


METHODS: dict[str, tuple[float, dict[str, object] | None]] = {
    "standard": (0.0, None),
    "weight decay 1e-4": (1e-4, None),
    "CLIP": (0.0, {}),
    "CLIP to 95": (0.0, to(0.95)),
    "CLIP to 90": (0.0, to(0.90)),
    "CLIP to 85": (0.0, to(0.85)),
}


@dataclass(frozen=True)
class Result:
    train: float
    test: float
    noisy: float
    attacked: float
    lower: float
    upper: float
    seconds: float


def run(case: Case, method: str, seed: int) -> Result:
    decay, settings = METHODS[method]
    pl.seed_everything(seed, verbose=False)
    model = Classifier(case, decay) if settings is None else Clipped(case, decay)
    for name, value in (settings or {}).items():
        setattr(model, f"clip_{name}", value)
    train, _ = case.data.loaders(case.batch_size)
    trainer = quiet_trainer(case.epochs)
    seconds = time.perf_counter()
    trainer.fit(model, train)
    seconds = time.perf_counter() - seconds
    model.eval()
    x, y = case.data.test
    noisy = x + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    attacked = projected_gradient(model.net, x, y, case.radius)
    return Result(
        accuracy(model, *case.data.train),
        accuracy(model, x, y),
        accuracy(model, noisy, y),
        accuracy(model, attacked, y),
        ll.lower_bound(model.net, x[:256], steps=100, pairs=64).value,
        ll.certify(model.net, torch.zeros(2, case.sizes[0]), rtol=1e-4).upper_bound,
        seconds,
    )


def projected_gradient(model: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int = 40) -> Tensor:
    """Madry et al., ICLR 2018, in l2, from a random start, images kept in [0, 1]; every image its own steps.

    Written here because what the attack libraries add (model wrappers, their own devices and ranges) is longer than
    this and brings a dependency for one loop.
    """
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(x.shape, generator=generator)
    change = radius * change / change.norm(dim=1, keepdim=True)
    for _ in range(steps):
        change.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x + change), y, reduction="sum"), change)
        change = change.detach() + 2.5 * radius / steps * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
        change = change * (radius / change.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1.0)
        change = (x + change).clamp(0.0, 1.0) - x
    return x + change


def table(case: Case, methods: Sequence[str], seeds: int) -> str:
    results: dict[str, list[Result]] = {method: [] for method in methods}
    for seed in range(seeds):
        for method in methods:
            results[method].append(run(case, method, seed))
            print(f"  {case.name}, seed {seed}, {method}: {results[method][-1]}", flush=True)
    header = [
        "training",
        "train %",
        "test %",
        f"noise {NOISE} %",
        f"PGD l2 {case.radius:g} %",
        "lower bound",
        "certified upper bound",
        "x standard's bound",
        "seconds",
    ]
    standard = statistics.fmean(r.upper for r in results[methods[0]])
    rows = []
    for method, found in results.items():
        means = [statistics.fmean(getattr(r, name) for r in found) for name in Result.__dataclass_fields__]
        *percent, lower, upper, seconds = means
        cells = [f"{value:.1f}" for value in percent]
        rows.append([method, *cells, f"{lower:.2f}", f"{upper:.2f}", f"{upper / standard:.2f}", f"{seconds:.1f}"])
    note = (
        f"Mean of {seeds} seed(s); {case.epochs} epochs of Adam {case.rate:g}, batch {case.batch_size}, sigmoid units;"
        " attacks: 40 steps. Unlike the paper: the penalty is the quotient, not its square, and its weight changes by a"
        " factor, not a step."
    )
    return markdown(f"{case.name}: {'-'.join(map(str, case.sizes))}", header, rows, note)


def cost(repeats: int, epochs: int = 3) -> str:
    """Seconds of an epoch of 784-200-80-10 on random images, batch 128, one thread: medians of alternating runs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(128 * 100, 784, generator=generator), torch.randint(10, (128 * 100,), generator=generator)
    case = Case("cost", Digits("random", images, images), (200, 80), epochs, 1e-3, 1.0)
    kinds: dict[str, dict[str, object] | None] = {
        "plain": None,
        "CLIP": {},
        "CLIP, all pairs climb": {"climbing": None},
        "CLIP, every_n_steps=4": {"every_n_steps": 4},
        "CLIP, every_n_steps=10": {"every_n_steps": 10},
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, settings in kinds.items():
            pl.seed_everything(0, verbose=False)
            model = Classifier(case) if settings is None else Clipped(case)
            for key, value in (settings or {}).items():
                setattr(model, f"clip_{key}", value)
            train, _ = case.data.loaders(case.batch_size)
            start = time.process_time()
            quiet_trainer(epochs).fit(model, train)
            seconds[name].append((time.process_time() - start) / (100 * epochs))
    rows = []
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, seconds["plain"], strict=True))
        rows.append([name, f"{1e3 * statistics.median(found):.2f}", f"{ratio:.2f}"])
    note = f"784-200-80-10, batch 128, 64 pairs; CPU time, {repeats} repeats."
    return markdown("Cost of a training step", ["training", "ms a step", "x plain"], rows, note)


def cases(data_dir: str | None) -> dict[str, Case]:
    made = {"digits": Case("scikit-learn digits", load_digits(), (64, 64, 64), 40, 5e-3, 1.0)}
    if data_dir:
        mnist = load_digits(data_dir)
        made["mnist"] = Case("MNIST", mnist, (64, 64), 20, 2e-3, 2.0)
        made["mnist200"] = Case("MNIST", mnist, (200, 80), 20, 2e-3, 2.0)
    return made


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--case", action="append", help="digits, mnist, mnist200, cost; repeatable")
    arguments.add_argument("--method", action="append", help="standard first; by default all")
    arguments.add_argument("--seeds", type=int, default=3)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seeds = 1 if chosen.quick else chosen.seeds
    available = cases(chosen.data_dir)
    for name in chosen.case or [*available, "cost"]:
        text = cost(seeds) if name == "cost" else table(available[name], chosen.method or list(METHODS), seeds)
        publish(f"clip2021_{name}", text, chosen.write)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
