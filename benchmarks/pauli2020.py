"""Training under a Lipschitz bound: experiments of Pauli et al. (L-CSS 2021; CDC 2022), with the callbacks' defaults.

    python benchmarks/pauli2020.py --data-dir DATA          # MNIST from DATA/mnist
    python benchmarks/pauli2020.py --digits                 # scikit-learn's digits, no data needed

Every run is a Lightning `Trainer` on batches that sit in memory; time is that of `fit`, beside the nominal run of the
same seed. `--case` picks experiments, `--write` puts tables and the plot under results/.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pytorch_lightning as pl
import torch
from common import RESULTS, accuracy, markdown, parser, publish, quiet_trainer
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, one_hot

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier
from lightning_lipschitz.demo.data import Digits, load_digits

NOISE = 0.3  # standard deviation of the pixel noise; grey values are in [0, 1]
CURVE = (1.0, 2.0, 4.0, 8.74, 15.0, 30.0)


@dataclass(frozen=True)
class Case:
    """One experiment."""

    name: str
    data: Digits
    hidden: tuple[int, ...]
    bound: float
    epochs: int
    activation: type[nn.Module] = nn.ReLU
    batch_size: int = 100
    rate: float = 1e-2  # as in the 2021 paper
    weight: float = 1e-3  # of L squared, in ADMM's regularize mode

    @property
    def sizes(self) -> list[int]:
        return [self.data.train[0].shape[1], *self.hidden, int(self.data.train[1].max()) + 1]


@dataclass(frozen=True)
class Result:
    """Of one run."""

    accuracy: float
    noisy: float
    bound: float
    seconds: float
    cpu_seconds: float


class Classifier(pl.LightningModule):
    """A multilayer perceptron; the learning rate decays to zero along a cosine."""

    def __init__(self, case: Case, steps: int, decay: float = 0.0, margin: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(case.sizes):
            layers += [nn.Linear(before, after), case.activation()]
        self.net = nn.Sequential(*layers[:-1])
        self.case, self.steps, self.decay, self.margin = case, steps, decay, margin

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.net(x)
        if self.margin:  # Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018
            norms = [torch.linalg.matrix_norm(m.weight, 2) for m in self.net if isinstance(m, nn.Linear)]
            others = 1.0 - one_hot(y, logits.shape[1])
            logits = logits + self.margin * 2.0**0.5 * torch.stack(norms).prod() * others
        return cross_entropy(logits, y)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.Adam(self.parameters(), self.case.rate, weight_decay=self.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


Callbacks = Callable[[Case], list[pl.Callback]]
METHODS: dict[str, tuple[dict[str, float], Callbacks]] = {
    "nominal": ({}, lambda case: []),
    "L2": ({"decay": 5e-4}, lambda case: []),
    "Lipschitz margin": ({"margin": 0.1}, lambda case: []),
    "ADMM regularize": ({}, lambda case: [LipschitzADMM(mode="regularize", weight=case.weight)]),
    "ADMM enforce": ({}, lambda case: [LipschitzADMM(case.bound)]),
    "barrier": ({}, lambda case: [LipschitzBarrier(case.bound)]),
}


def run(case: Case, method: str, seed: int) -> Result:
    options, callbacks = METHODS[method]
    pl.seed_everything(seed, verbose=False)
    train, _ = case.data.loaders(case.batch_size)
    model = Classifier(case, len(train) * case.epochs, **options)
    trainer = quiet_trainer(case.epochs, *callbacks(case))
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(model, train)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    bound = ll.certify(model.net, torch.zeros(2, case.sizes[0])).upper_bound
    x, y = case.data.test
    noisy = x + NOISE * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return Result(accuracy(model, x, y), accuracy(model, noisy, y), bound, wall, cpu)


def table(case: Case, methods: Sequence[str], seeds: int) -> str:
    """All methods, seed by seed, so that each stands beside the nominal run of the same minute."""
    results: dict[str, list[Result]] = {method: [] for method in methods}
    for seed in range(seeds):
        for method in methods:
            results[method].append(run(case, method, seed))
            print(f"  {case.name}, seed {seed}, {method}: {results[method][-1]}", flush=True)
    header = [
        "method",
        "test accuracy %",
        f"with noise {NOISE} %",
        "certified L",
        "seconds",
        "x nominal",
        "x nominal, CPU time",
    ]
    note = (
        f"{seeds} seed(s), mean (least to largest); {case.epochs} epochs, batch {case.batch_size}, "
        f"Adam {case.rate:g} to zero; bound {case.bound:g}; defaults of the callbacks."
    )
    rows = [_row(method, results[method], results[methods[0]]) for method in methods]
    return markdown(f"{case.name}: {'-'.join(map(str, case.sizes))} {case.activation.__name__}", header, rows, note)


def _row(method: str, results: list[Result], nominal: list[Result]) -> list[str]:
    def spread(values: list[float], digits: int = 2) -> str:
        low, mean, high = min(values), statistics.fmean(values), max(values)
        return f"{mean:.{digits}f}" if low == high else f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    wall = statistics.median(r.seconds / n.seconds for r, n in zip(results, nominal, strict=True))
    cpu = statistics.median(r.cpu_seconds / n.cpu_seconds for r, n in zip(results, nominal, strict=True))
    return [
        method,
        spread([r.accuracy for r in results]),
        spread([r.noisy for r in results]),
        spread([r.bound for r in results], 3),
        f"{statistics.median(r.seconds for r in results):.1f}",
        f"{wall:.2f}",
        f"{cpu:.2f}",
    ]


def curve(case: Case, bounds: Sequence[float], write: bool) -> str:
    """Accuracy against L, one seed."""
    rows, points = [], []
    for bound in bounds:
        results = [run(replace(case, bound=bound), method, 0) for method in ("ADMM enforce", "barrier")]
        points.append((bound, *(r.accuracy for r in results)))
        cells = [cell for r in results for cell in (f"{r.accuracy:.2f}", f"{r.noisy:.2f}", f"{r.bound:.3f}")]
        rows.append([f"{bound:g}", *cells])
        print(f"  L <= {bound:g}: {rows[-1]}", flush=True)
    nominal = run(case, "nominal", 0)
    if write:
        _plot(case, points, nominal)
    header = [
        "L <=",
        *(f"{m} {what}" for m in ("ADMM", "barrier") for what in ("accuracy %", "with noise %", "certified L")),
    ]
    note = (
        f"Unconstrained: {nominal.accuracy:.2f} %, with noise {nominal.noisy:.2f} %, certified L {nominal.bound:.2f}."
        f" One seed, {case.epochs} epochs."
    )
    return markdown(f"Accuracy against the bound, {case.name}", header, rows, note)


def _plot(case: Case, points: Sequence[tuple[float, ...]], nominal: Result) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    bounds, *series = zip(*points, strict=True)
    for name, values in zip(("ADMM", "barrier"), series, strict=True):
        axes.semilogx(bounds, values, "o-", label=name)
    axes.axhline(nominal.accuracy, color="grey", linestyle="--", label=f"unconstrained (L = {nominal.bound:.0f})")
    axes.set(xlabel="certified Lipschitz bound", ylabel="test accuracy, %", title=case.name)
    axes.legend()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "pauli2020_curve.png", dpi=130)


def rings(samples: int, seed: int = 0) -> Digits:
    """Points of the unit square in three classes: a disc of radius 0.2, a ring to 0.4, the rest. An epoch passes over
    them twenty times."""

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, 2, generator=generator)
        radius = (x - 0.5).norm(dim=1)
        return x, torch.where(radius < 0.2, 2, torch.where(radius < 0.4, 1, 0))

    generator = torch.Generator().manual_seed(seed)
    x, y = draw(samples, generator)
    return Digits("rings", (x.repeat(20, 1), y.repeat(20)), draw(10_000, generator))


def pooled(data: Digits) -> Digits:
    """2 x 2 average pooling."""

    def pool(x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        return avg_pool2d(x.view(-1, 1, side, side), 2).flatten(1)

    return Digits(f"{data.name}, 2x2 pooled", (pool(data.train[0]), data.train[1]), (pool(data.test[0]), data.test[1]))


def cases(data_dir: str | None, digits: bool, epochs: int | None) -> dict[str, Case]:
    made = {"rings": Case("Rings in the plane", rings(50), (10, 10), 10.0, 100, batch_size=50)}
    if digits or data_dir is None:
        made["digits"] = Case("scikit-learn digits", load_digits(), (50,), 5.0, 20)
    else:
        mnist = load_digits(data_dir)
        small = pooled(mnist)
        made["14x14"] = Case("MNIST 14x14", small, (50,), 8.74, 20)
        made["tanh"] = Case("MNIST 14x14, tanh", small, (100, 30), 20.0, 20, activation=nn.Tanh)
        made["28x28"] = Case("MNIST 28x28", mnist, (50, 50), 10.0, 10)
    return {name: replace(case, epochs=epochs or case.epochs) for name, case in made.items()}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--digits", action="store_true", help="scikit-learn's digits in place of MNIST")
    arguments.add_argument("--case", action="append", help="14x14, tanh, 28x28, rings, digits, curve; repeatable")
    arguments.add_argument("--method", action="append", help="nominal first; by default all")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--epochs", type=int, help="in place of each experiment's own")
    arguments.add_argument("--threads", type=int, default=1, help="of torch; these networks are small")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    epochs = chosen.epochs or (2 if chosen.quick else None)
    available = cases(chosen.data_dir, chosen.digits, epochs)
    main_case = available.get("14x14") or available["digits"]
    methods = chosen.method or list(METHODS)
    for name in chosen.case or [*available, "curve"]:
        if name == "curve":
            text = curve(main_case, CURVE[2:4] if chosen.quick else CURVE, chosen.write)
        else:
            text = table(available[name], methods, 1 if chosen.quick else chosen.seeds)
        publish(f"pauli2020_{name}", text, chosen.write)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
