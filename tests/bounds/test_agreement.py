"""The native optimum is Clarabel's, on many networks."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_lipschitz import certify
from lightning_lipschitz.graph.network import Network
from tests.helpers import chain, per_unit_slopes, residual

SLOPES = [(0.0, 1.0), (0.0, 1.0), (0.1, 1.0), (0.0, 0.25), (-0.13, 1.13)]
RTOL = 1e-6


def random_network(seed, largest):
    """Up to four hidden layers with ``largest`` units between them."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 5))
    widths = rng.integers(2, max(3, largest // depth + 1), size=depth).tolist()
    sizes = [int(rng.integers(1, 20)), *widths, int(rng.integers(1, 12))]
    kind = seed % 8
    if kind == 6:
        return residual([min(size, 8) for size in sizes], seed)
    if kind == 7:
        return per_unit_slopes(seed)
    return chain(sizes, seed, gain=10.0 ** rng.uniform(-1, 1), slopes=SLOPES[seed % len(SLOPES)])


def trained_network(seed, hidden=(24, 12), steps=150):
    """A digits classifier after some full-batch steps."""
    torch.manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    activation = [nn.ReLU, nn.Tanh][seed % 2]
    model = nn.Sequential(
        nn.Linear(64, hidden[0]), activation(), nn.Linear(hidden[0], hidden[1]), activation(), nn.Linear(hidden[1], 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Network.from_weights([model[k].weight.detach().double().numpy() for k in (0, 2, 4)])


def assert_same_optimum(network):
    native = certify(network, method="lipsdp-neuron", rtol=1e-7)
    clarabel = certify(network, method="lipsdp-neuron", solver="clarabel", rtol=1e-8)
    assert native.relative_gap <= RTOL
    assert native.upper_bound == pytest.approx(clarabel.upper_bound, rel=RTOL)


@pytest.mark.parametrize("seed", range(12))
def test_small_random_networks(seed):
    assert_same_optimum(random_network(seed, 12))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(160))
def test_random_networks(seed):
    assert_same_optimum(random_network(1000 + seed, 100 if seed % 20 == 0 else 30))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_trained_networks(seed):
    assert_same_optimum(trained_network(seed, (32, 16) if seed % 20 == 0 else (24, 12)))
