"""What the swept bound on the torus costs in a loss, and what it gives: 2C2F at 28 x 28. See torus.md."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import lightning_lipschitz as ll
from lightning_lipschitz.certificate import prove
from lightning_lipschitz.differentiable import DifferentiableBound
from lightning_lipschitz.extraction import extract

BATCH, ROUNDS, STEPS = 250, 15, 4


def made() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


def values(at: tuple[int, ...] = (0, 30, 100)) -> None:
    """The bound of fresh weights after some steps of the multipliers alone, and what the kernel proves of them."""
    net, x = made().eval(), torch.zeros(1, 1, 28, 28)
    started = time.process_time()
    bound = DifferentiableBound(net, x, method="sweep")
    print(f"made in {time.process_time() - started:.2f} s of processor time")
    started, network = time.process_time(), extract(net, x)
    print(f"explicit network read in {time.process_time() - started:.2f} s")
    spent = 0.0
    for step in range(max(at) + 1):
        started = time.process_time()
        value = float(bound().detach())
        spent += time.process_time() - started
        if step in at:
            started = time.process_time()
            proved = prove(network, bound.multipliers())
            took = time.process_time() - started
            print(f"{step:4d} steps, {spent:5.2f} s: {value:.5f}, proved {proved:.5f} in {took:.2f} s")
        started = time.process_time()
        bound.step()
        spent += time.process_time() - started


def cost() -> None:
    """Milliseconds of processor time a training step, the kinds of steps in turn."""
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    steps = {name: stepper(name, x, y) for name in ("plain", "sweep", "product")}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(STEPS):
                step()
            found[name].append((time.process_time() - started) / STEPS)
    plain = statistics.median(found["plain"])
    for name, each in found.items():
        print(f"{name}: {1e3 * statistics.median(each):.1f} ms, {statistics.median(each) / plain:.2f} of plain")


def stepper(name: str, x: Tensor, y: Tensor):  # type: ignore[no-untyped-def]
    net = made()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    bound = None if name == "plain" else DifferentiableBound(net, x[:1], method=name)  # type: ignore[arg-type]

    def step() -> None:
        logits = net(x)
        if bound is not None:
            logits = ll.functional.margin_logits(logits, y, bound.pairs(), 0.3)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
        if bound is not None:
            bound.step()

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["values", "cost"])
    torch.set_num_threads(1)
    {"values": values, "cost": cost}[parser.parse_args().what]()
