"""What the product bound costs beside a plain training step: processor time of one thread, medians of rounds.

    python benchmarks/notes/product_bound.py

Plain, plain with the whole, plain with all pairs, and the batch statistics are taken in turn, so that what else runs on
the machine falls on all of them alike.
"""

import statistics
import time

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_lipschitz.differentiable import calls
from lightning_lipschitz.differentiable.product import ProductForm

BATCH, ROUNDS, STEPS = 100, 25, 6


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        pair = [
            each
            for _ in range(2)
            for each in (nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        ]
        self.body = nn.Sequential(*pair[:-1])

    def forward(self, x):
        return torch.relu(x + self.body(x))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1152, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def resnet():
    stem = [nn.Conv2d(1, 16, 4, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, Block(16), Block(16), nn.Flatten(), nn.Linear(784, 10))


def trained(model, bound):
    """A function that makes some steps; with `bound`, a number of the form is added to the loss."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (loss if bound is None else loss + 0.01 * bound()).backward()
            optimizer.step()

    return steps


def timed(steps):
    start = time.process_time()
    steps(STEPS)
    return (time.process_time() - start) / STEPS * 1e3


def operations(function):
    """Additions and multiplications of matrices; torch's counter fails at the kernel of small convolutions."""
    small, calls._SMALL = calls._SMALL, 0
    with FlopCounterMode(display=False) as counter:
        function()
    calls._SMALL = small
    return counter.get_total_flops()


def compared(name, make):
    made, functions = {}, {}
    for kind in ("plain", "whole", "pairs", "whole, running statistics"):
        torch.manual_seed(0)
        model = make()
        form = ProductForm(model, torch.zeros(1, 1, 28, 28), batch_statistics="running" not in kind)
        number = None if kind == "plain" else (form.whole if "whole" in kind else lambda f=form: f.pairs().mean())
        made[kind], functions[kind] = form, trained(model, number)
        functions[kind](3)
    times = {kind: [] for kind in functions}
    for _ in range(ROUNDS):
        for kind, steps in functions.items():
            times[kind].append(timed(steps))
    medians = {kind: statistics.median(each) for kind, each in times.items()}
    plain = operations(lambda: functions["plain"](1))
    for kind, milliseconds in medians.items():
        more = "" if kind == "plain" else f", {(milliseconds / medians['plain'] - 1):+.2f} of a plain step"
        print(f"{name}: {kind}: {milliseconds:.2f} ms a step{more}")
    alone = operations(lambda: made["whole"].whole().backward())
    print(f"{name}: operations: plain {plain / 1e6:.0f} M, an evaluation {alone / 1e6:.1f} M, {alone / plain:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    compared("2C2F", cnn)
    compared("ResNet", resnet)
