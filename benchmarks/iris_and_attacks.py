"""Experiments after LipSDP (Fazlyab et al., NeurIPS 2019): Iris, random networks, adversarial training, radii.

    python benchmarks/iris_and_attacks.py --data-dir DATA --write     # MNIST, the first images of it
    python benchmarks/iris_and_attacks.py                             # scikit-learn's digits in its place

Two things are counted that must be 0: bounds out of order (sampled <= neuron <= layer <= product of norms), and images
with a certified radius within which projected gradient changes the class.
"""

from __future__ import annotations

import logging
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from attacks import projected_gradient as changes_class
from clip2021 import projected_gradient as attacked
from common import RESULTS, digits, markdown, parser, publish, quiet_trainer, random_weights
from iris_and_attacks_plot import plot
from methods import METHODS
from ordered import Count, bounds_of, medians
from torch import Tensor, nn

import lightning_lipschitz as ll
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.demo.data import Digits
from lightning_lipschitz.demo.model import Classifier
from lightning_lipschitz.functional import certified_radius

FAST = ("native", "native, layer", "eclipse-nn", "eclipse-nn fast", "closed form", "norm product")
WIDTHS, DEPTHS, DEEP_WIDTH = (10, 20, 40, 80, 160), (1, 2, 4, 8, 16), 20
IRIS = ((16,), (16, 16), (16, 16, 16))
HIDDEN, EPOCHS, TRAINED_ON, TESTED_ON = (64, 32), 10, 10_000, 1000
RADII = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
EPSILON, STEPS = 1.0, 7  # of adversarial training, l2


# Iris


def iris() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Features in units of their standard deviation, a third held out."""
    from sklearn.datasets import load_iris
    from sklearn.model_selection import train_test_split

    features, labels = load_iris(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    parts = train_test_split(features, labels, test_size=1 / 3, random_state=0, stratify=labels)
    x, x_test, y, y_test = (torch.from_numpy(part) for part in parts)
    return (x.float(), y), (x_test.float(), y_test)


def iris_table(seeds: int, count: Count) -> str:
    rows = []
    train, test = iris()
    data = Digits("Iris", train, test)
    for hidden in IRIS:
        found = []
        for seed in range(seeds):
            model = fitted(Classifier, (4, *hidden, 3), data, seed, epochs=60, batch_size=20)
            right = 100 * float((model(test[0].double()).argmax(1) == test[1]).double().mean())
            found.append({"test %": right, **count.add(bounds_of(weights_of(model), list(METHODS), model))})
        middle = medians(found)
        rows.append(["-".join(map(str, (4, *hidden, 3))), *(f"{value:.3f}" for value in middle.values())])
    header = ["network", *middle]
    note = f"ReLU, Adam, standardised features; medians of {seeds} seed(s)."
    return markdown("LipSDP's experiments: classifiers of Iris", header, rows, note)


# Random networks


def random_series(seeds: int, quick: bool, count: Count) -> dict[str, dict[int, dict[str, float]]]:
    """Bounds over that of LipSDP-Neuron: against the width of one hidden layer, and against depth."""
    some = slice(3 if quick else None)
    shapes = {
        "width": {width: (10, width, 5) for width in WIDTHS[some]},
        "depth": {depth: (10, *[DEEP_WIDTH] * depth, 5) for depth in DEPTHS[some]},
    }
    series: dict[str, dict[int, dict[str, float]]] = {}
    for axis, sizes in shapes.items():
        series[axis] = {}
        for value, shape in sizes.items():
            found = [count.add(bounds_of(random_weights(shape, seed), FAST)) for seed in range(seeds)]
            ratios = [{name: each[name] / each["native"] for name in each} for each in found]
            middle = statistics.median(each["native"] for each in found)
            series[axis][value] = {**medians(ratios), "native": middle}
            print(f"  {axis} {value}: {series[axis][value]}", flush=True)
    return series


def random_table(series: dict[str, dict[int, dict[str, float]]], seeds: int) -> str:
    rows = [
        [axis, value, f"{ratios['native']:.3f}", *(f"{r:.3f}" for name, r in ratios.items() if name != "native")]
        for axis, points in series.items()
        for value, ratios in points.items()
    ]
    others = [name for name in next(iter(series["width"].values())) if name != "native"]
    header = ["axis", "value", "LipSDP-Neuron", *(f"{name} / neuron" for name in others)]
    note = (
        f"ReLU, weights N(0, 1 / fan-in), 10 inputs, 5 outputs; width: one hidden layer; depth: hidden layers of"
        f" {DEEP_WIDTH} units. Medians of {seeds} seed(s)."
    )
    return markdown("LipSDP's experiments: random networks", header, rows, note)


# Adversarial training, and what can be proved of its result


class Adversarial(Classifier):
    """Each batch is replaced by what projected gradient makes of it (Madry et al., ICLR 2018), in l2."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return super().training_step((attacked(self.net, x, y, EPSILON, STEPS).detach(), y), batch_idx)


class Decayed(Classifier):
    """l2 regularisation of all parameters."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"], weight_decay=1e-3)


TRAININGS: dict[str, tuple[type[Classifier], Callable[[], list[pl.Callback]]]] = {
    "plain": (Classifier, list),
    "l2 regularisation": (Decayed, list),
    "adversarial": (Adversarial, list),
    "LipschitzADMM(5)": (Classifier, lambda: [ll.LipschitzADMM(max_lipschitz=5.0)]),
    "LipschitzMargin(0.3)": (Classifier, lambda: [ll.LipschitzMargin(radius=0.3)]),
}


def fitted(
    kind: type[Classifier],
    sizes: tuple[int, ...],
    data: Digits,
    seed: int,
    epochs: int,
    batch_size: int = 100,
    callbacks: Sequence[pl.Callback] = (),
) -> nn.Sequential:
    """Its network, float64."""
    pl.seed_everything(seed, verbose=False)
    model = kind(sizes)
    quiet_trainer(epochs, *callbacks).fit(model, data.loaders(batch_size)[0])
    return model.net.eval().double()


def weights_of(model: nn.Sequential) -> list[np.ndarray]:
    return [layer.weight.detach().numpy() for layer in model if isinstance(layer, nn.Linear)]


@dataclass(frozen=True, eq=False)
class Robust:
    """Bounds, and for each of RADII the share (%) that is certified and that projected gradient leaves right."""

    bounds: dict[str, float]
    certified: list[float]
    left: list[float]
    violations: int


def robustness(model: nn.Sequential, x: Tensor, y: Tensor, offered: Sequence[Multipliers | None]) -> Robust:
    with torch.no_grad():
        logits = model(x)
    matrix = torch.tensor(ll.pairwise_bounds(model, x[:2], refine=False, warm_start=offered).matrix)
    radii, right = certified_radius(logits, matrix, y), logits.argmax(1) == y
    certified, left, violations = [], [], 0
    for radius in RADII:
        stays = right & ~changes_class(model, x, torch.full((len(x),), radius, dtype=torch.float64))
        proved = radii > radius
        violations += int((proved & ~stays).sum())
        certified.append(100 * float(proved.double().mean()))
        left.append(100 * float(stays.double().mean()))
    bounds = bounds_of(weights_of(model), ("native", "native, layer", "closed form", "norm product"), model)
    return Robust(bounds, certified, left, violations)


def trainings(data: Digits, seeds: int, epochs: int, count: Count) -> dict[str, list[Robust]]:
    sizes = (data.train[0].shape[1], *HIDDEN, 10)
    x, y = data.test[0].double(), data.test[1]
    found: dict[str, list[Robust]] = {}
    for name, (kind, make) in TRAININGS.items():
        found[name] = []
        for seed in range(seeds):
            callbacks = make()
            model = fitted(kind, sizes, data, seed, epochs, callbacks=callbacks)
            offered = [each.multipliers for each in callbacks if isinstance(each, ll.LipschitzMargin)]
            found[name].append(robustness(model, x, y, offered))
        for each in found[name]:
            count.add(each.bounds)
        print(f"  {name}: {found[name][0]}", flush=True)
    return found


def adversarial_table(found: dict[str, list[Robust]], settings: str) -> str:
    rows = []
    for name, results in found.items():
        middle = medians([each.bounds for each in results])
        accuracy = statistics.median(each.left[0] for each in results)
        rows.append([name, f"{accuracy:.1f}", *(f"{value:.2f}" for value in middle.values())])
    header = ["training", "test %", *middle]
    note = f"{settings} Adversarial: projected gradient, l2, radius {EPSILON:g}, {STEPS} steps, images in [0, 1]."
    return markdown("LipSDP's experiments: bounds after adversarial training", header, rows, note)


def curves_of(found: dict[str, list[Robust]]) -> dict[str, dict[str, list[float]]]:
    """Medians over the seeds, one number a radius."""
    return {
        name: {
            field: [statistics.median(column) for column in zip(*(getattr(r, field) for r in results), strict=True)]
            for field in ("certified", "left")
        }
        for name, results in found.items()
    }


def robustness_table(found: dict[str, list[Robust]], settings: str) -> str:
    labels = {"certified": "certified", "left": "left by projected gradient"}
    rows = [
        [f"{name}, {labels[field]}", *(f"{value:.1f}" for value in middle)]
        for name, shares in curves_of(found).items()
        for field, middle in shares.items()
    ]
    note = (
        f"{settings} Share of test images (%) that are right within each l2 distance: proved by"
        " `pairwise_bounds(refine=False)`, to which `LipschitzMargin` offers its multipliers, and left right by 20"
        " steps of projected gradient, not kept in [0, 1]."
        f" Images attacked with success within a certified radius, all seeds and radii: **{violations_of(found)}**."
    )
    header = ["training", *(f"{radius:g}" for radius in RADII)]
    return markdown("LipSDP's experiments: certified accuracy against the radius", header, rows, note)


def violations_of(found: dict[str, list[Robust]]) -> int:
    return sum(each.violations for results in found.values() for each in results)


# All of it


def first(data: Digits, quick: bool) -> Digits:
    """MNIST's files are in random order; the digits are all taken."""
    images = 2000 if quick else TRAINED_ON
    (x, y), (x_test, y_test) = data.train, data.test
    return Digits(data.name, (x[:images], y[:images]), (x_test[:TESTED_ON], y_test[:TESTED_ON]))


def without_machine(text: str) -> str:
    """The first table names it for all."""
    return "\n".join(line for line in text.split("\n") if not line.startswith(("Machine: ", "Command: ")))


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seeds, epochs = (1, 2) if chosen.quick else (chosen.seeds, EPOCHS)
    data = first(digits(chosen.data_dir), chosen.quick)
    settings = (
        f"{data.name}, {len(data.train[0])} training and {len(data.test[0])} test images,"
        f" {'-'.join(map(str, (data.train[0].shape[1], *HIDDEN, 10)))} ReLU, {epochs} epochs of Adam 0.003, batch 100;"
        f" medians of {seeds} seed(s)."
    )
    count = Count()
    iris = iris_table(seeds, count)
    series = random_series(seeds, chosen.quick, count)
    found = trainings(data, seeds, epochs, count)
    tables = random_table(series, seeds), adversarial_table(found, settings), robustness_table(found, settings)
    verdict = f"Bounds out of order in all {count.networks} networks of these tables: **{count.wrong}**.\n"
    text = "\n".join([iris, *map(without_machine, tables), verdict])
    publish("iris_and_attacks", text, chosen.write)
    if chosen.write:
        plot(series, curves_of(found), RADII, data.name, RESULTS / "iris_and_attacks.png")
    if count.wrong or violations_of(found):
        raise SystemExit("a bound is wrong: see the counts above")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
