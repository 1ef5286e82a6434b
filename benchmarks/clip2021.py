"""CLIP (Bungert et al., SSVM 2021): accuracy, noise and attacks of their table, and what it lacks: certified bounds.

    python benchmarks/clip2021.py --data-dir DATA           # MNIST from DATA/mnist, and DATA/fashion-mnist
    python benchmarks/clip2021.py                           # scikit-learn's digits, no data needed
    python benchmarks/clip2021.py --case cost               # seconds of a training step with and without

Every run is a Lightning `Trainer` with batches in memory. "CLIP to 95" is the discrepancy principle with a target of
95 % of training accuracy; "CLIP" alone is the mixin without any setting.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytorch_lightning as pl
import torch
from common import accuracy, markdown, parser, publish, quiet_trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_lipschitz as ll
from lightning_lipschitz.demo.data import Digits, load_digits


@dataclass(frozen=True)
class Case:
    """One data set and architecture, sigmoid units; grey values are in [0, 1].

    Attributes:
        noise: standard deviation; 1 in the paper, whose l2 attack has radius 2 and 100 steps.
        factor: of the weight's schedule, an epoch.
        attacked: test images that are attacked, the first ones; None for all.
    """

    name: str
    data: Digits
    hidden: tuple[int, ...]
    epochs: int
    rate: float
    factor: float = 1.2
    noise: float = 1.0
    radius: float = 2.0
    steps: int = 100
    attacked: int | None = None
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
    return {"metric": "train_acc", "target": target}


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
    for name, value in {"factor": case.factor, **(settings or {})}.items():
        setattr(model, f"clip_{name}", value)
    train, _ = case.data.loaders(case.batch_size)
    trainer = quiet_trainer(case.epochs)
    seconds = time.perf_counter()
    trainer.fit(model, train)
    seconds = time.perf_counter() - seconds
    model.eval()
    x, y = case.data.test
    noisy = x + case.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    some = slice(case.attacked)
    attacked = projected_gradient(model.net, x[some], y[some], case.radius, case.steps)
    return Result(
        accuracy(model, *case.data.train),
        accuracy(model, x, y),
        accuracy(model, noisy, y),
        accuracy(model, attacked, y[some]),
        ll.lower_bound(model.net, x[:256], steps=100, pairs=64).value,
        ll.certify(model.net, torch.zeros(2, case.sizes[0]), rtol=1e-4).upper_bound,
        seconds,
    )


def projected_gradient(model: nn.Module, x: Tensor, y: Tensor, radius: float, steps: int) -> Tensor:
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
        f"noise {case.noise:g} %",
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
    title = f"{case.name}: {'-'.join(map(str, case.sizes))}"
    return markdown(title, header, rows, settings_of(case, seeds))


PAPER = """
The paper's table (MNIST, 784-64-64-10; train / test / noise / PGD, %): standard 95.6 / 89.8 / 71.8 / 25.3; weight
regularisation 89.8 / 89.7 / 71.9 / 24.8; CLIP to 95: 95.3 / 90.7 / 70.3 / 24.4, to 90: 91.8 / 91.6 / 78.0 / 36.2, to
85: 87.6 / 87.2 / 74.5 / 37.7. Its standard network reaches less than ours, whose optimizer, epochs and number of
images are our own choice, so its test accuracies and ours do not compare."""


def settings_of(case: Case, seeds: int) -> str:
    attacked, images = len(case.data.test[0][: case.attacked]), len(case.data.test[0])
    text = (
        f"Mean of {seeds} seed(s); {len(case.data.train[0])} training images, {case.epochs} epochs of Adam"
        f" {case.rate:g}, batch {case.batch_size}, sigmoid units. Noise is normal; the attack has {case.steps} steps"
        f' and meets {attacked} of {images} test images. "CLIP to" starts from the default weight, which changes by'
        f" a factor of {case.factor:g} an epoch. Unlike the paper: the penalty is the quotient, not its square, its"
        " weight changes by a factor, not a step, and weight decay is fixed. The lower bound is sampled."
    )
    return text + "\n" + PAPER if case.name.startswith("MNIST") else text


def cost(repeats: int, epochs: int = 3) -> str:
    """Seconds of an epoch of 784-200-80-10 on random images, batch 128, one thread: medians of alternating runs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(128 * 100, 784, generator=generator), torch.randint(10, (128 * 100,), generator=generator)
    case = Case("cost", Digits("random", images, images), (200, 80), epochs, 1e-3)
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


def few(data: Digits, images: int) -> Digits:
    """Every class alike in the mean: the files are in random order."""
    x, y = data.train
    return Digits(data.name, (x[:images], y[:images]), data.test)


def cases(data_dir: str | None) -> dict[str, Case]:
    """Those whose files are there."""
    made = {"digits": Case("scikit-learn digits", load_digits(), (64, 64, 64), 40, 5e-3, noise=0.3, radius=1.0)}
    for name, folder in ("mnist", "mnist"), ("fashion", "fashion-mnist"):
        if data_dir is None or not (Path(data_dir) / folder).is_dir():
            continue
        data, title = load_digits(Path(data_dir) / folder), {"mnist": "MNIST", "fashion": "Fashion-MNIST"}[name]
        made[name] = Case(title, data, (64, 64), 12, 2e-3, 1.4, attacked=1000, batch_size=512)
        made[f"{name}200"] = Case(title, data, (200, 80), 12, 2e-3, 1.4, attacked=1000, batch_size=512)
        made[f"{name}_few"] = Case(f"{title}, 2,000 images", few(data, 2000), (64, 64), 60, 2e-3, attacked=1000)
    return made


def chosen_case(case: Case, options: argparse.Namespace) -> Case:
    """With what the command line asks for."""
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    return replace(case, **given)


OPTIONS: dict[str, tuple[type, str]] = {
    "noise": (float, "standard deviation of the pixel noise"),
    "radius": (float, "of the attack, l2"),
    "steps": (int, "of the attack"),
    "attacked": (int, "test images that are attacked"),
    "epochs": (int, "of training"),
}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--case", action="append", help="digits, cost, and mnist, mnist200, mnist_few or fashion..., repeatable"
    )
    arguments.add_argument("--method", action="append", help="standard first; by default all")
    arguments.add_argument("--seeds", type=int, default=3)
    for name, (kind, meaning) in OPTIONS.items():
        arguments.add_argument(f"--{name}", type=kind, help=f"{meaning}, in place of the case's own")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seeds = 1 if chosen.quick else chosen.seeds
    available = cases(chosen.data_dir)
    wanted = chosen.case or [*available, "cost"]
    for name in wanted:
        if name != "cost" and name not in available:
            arguments.error(f"--case {name}: there are cost, {', '.join(available)}; others need their files in DATA")
    for name in wanted:
        if name == "cost":
            text = cost(seeds)
        else:
            text = table(chosen_case(available[name], chosen), chosen.method or list(METHODS), seeds)
        publish(f"clip2021_{name}", text, chosen.write)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
