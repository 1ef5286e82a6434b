"""A time limit is a limit: nothing is begun that costs more than what is left, and a bound is proved all the same."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.bounds import closed_form, cost, search
from lightning_lipschitz.bounds.clock import GRACE, Clock
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.lower import steepest_pair
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Norms, Status, prove, prove_composition
from lightning_lipschitz.certificate.operators import cheap_node_norm, node_norm, node_norm_holds
from lightning_lipschitz.certificate.spectral import cheap_norm_upper_bound, norm_holds
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.extraction.structured import StructuredExtractor
from lightning_lipschitz.structured import Convolution
from tests.helpers import NETWORKS, chain

METHODS = ("auto", "norm-product", "closed-form", "lipsdp-layer", "lipsdp-neuron")


class Stopped:
    """A clock that shows the same time for ever."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def over() -> Clock:
    """A clock on which nothing is left, not even the grace."""
    now = Stopped()
    clock = Clock(1.0, now)
    now.time = 2.0
    return clock


def test_clock():
    now = Stopped()
    clock = Clock(2.0, now)
    now.time = 1.5
    assert (clock.seconds, clock.left, clock.fits(0.5 + GRACE), clock.fits(0.51 + GRACE)) == (1.5, 0.5, True, False)
    assert clock.share(2, less=0.1).left == pytest.approx(0.2)
    now.time = 3.0
    assert clock.left == 0.0
    assert clock.share(3).left == 0.0
    assert Clock(None).fits(math.inf)
    assert Clock(None).share(4).left is None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_left_still_proves_a_bound(name, method, monkeypatch):
    """No factorisation is begun: what one look at the entries shows is returned, and it is no less than the norms."""
    network = NETWORKS[name]()
    monkeypatch.setattr(closed_form, "propose", lambda network: pytest.fail("a sweep was begun"))
    found = certify_network(network, Settings(method), over())
    assert found.certified
    assert prove(network, found.proof) is not None
    assert found.upper_bound >= certify_network(network, Settings("norm-product")).upper_bound * (1 - 1e-9)
    assert isinstance(found.proof, Norms)


def test_costs_decide(monkeypatch):
    """The closed form is begun exactly where it fits; what is left out is said."""
    network, begun = chain((30, 40, 40, 10)), []
    real = closed_form.propose
    monkeypatch.setattr(closed_form, "propose", lambda network: begun.append(network) or real(network))
    monkeypatch.setattr(cost, "rates", lambda: cost.Rates(1e9, 1e9, 1e9))
    needed = (cost.sweep(network).times(2.0) + cost.proof(network)).seconds
    for limit, expected in ((0.5 * needed - GRACE, 0), (2.0 * needed, 1)):
        now = Stopped()
        found = certify_network(network, Settings("closed-form"), Clock(limit, now))
        assert len(begun) == expected
        assert found.method == ("closed-form" if expected else "norm-product")
        assert found.status is (ll.Status.SOLVED if expected else ll.Status.TIME_LIMIT)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3), (25, 25)])
@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e150])
def test_cheap_norms_are_bounds_and_proofs(shape, scale):
    matrix = np.random.default_rng(0).standard_normal(shape) * scale
    for rounding in (0.0, 0.01 * scale):
        bound = cheap_norm_upper_bound(matrix, rounding)
        assert bound >= np.linalg.norm(matrix / scale, 2) * scale * (1 - 1e-12) + rounding
        assert bound <= np.linalg.norm(matrix / scale) * scale * (1 + 1e-9) + rounding * (1 + 1e-9)
        assert norm_holds(matrix, bound, rounding)
        assert not norm_holds(matrix, 0.9 * np.linalg.norm(matrix / scale, 2) * scale, rounding)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}])
def test_cheap_norms_of_convolutions(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=2 if "dilation" in options else 1, **options), nn.BatchNorm2d(6))
    graph = StructuredExtractor(model.eval(), torch.zeros(2, 4, 8, 8)).network()
    nodes = [node for node in graph.nodes if isinstance(node, Convolution)]
    assert nodes
    for node in nodes:
        cheap = cheap_node_norm(node)
        assert node_norm(node) <= cheap * (1 + 1e-12)
        assert node_norm_holds(node, cheap)


def convolutional(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers, before = [], 3
    for _ in range(4):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10)).eval()


def test_composed_with_nothing_left():
    graph = StructuredExtractor(convolutional(8), torch.zeros(2, 3, 16, 16)).network()
    found = certify_graph(graph, Settings(method="composed"), over())
    assert found.certified
    assert found.status is ll.Status.TIME_LIMIT
    assert not found.proof.blocks
    assert found.upper_bound == prove_composition(graph, found.proof)
    assert found.upper_bound >= certify_graph(graph, Settings(method="norm-product")).upper_bound


def perceptron(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "limit", "options"),
    [
        *((perceptron(784, 400, 400, 10), (784,), limit, {"method": m}) for limit in (0.5, 1.0) for m in METHODS),
        (perceptron(50, 50, 50, 10), (50,), 0.5, {"method": "lipsdp-neuron", "solver": "scs"}),
        (perceptron(50, 50, 50, 10), (50,), 0.5, {"method": "lipsdp-neuron", "solver": "clarabel"}),
        (perceptron(2, *[60] * 20, 2), (2,), 1.0, {"workers": 2}),
        (convolutional(64), (3, 32, 32), 1.0, {"method": "composed"}),
        (perceptron(784, 4000, 4000, 10), (784,), 3.0, {}),
    ],
)
def test_wall_clock(model, shape, limit, options):
    example = torch.zeros(2, *shape)
    ll.certify(perceptron(3, 4, 2), torch.zeros(2, 3))  # PyTorch loads its compiler
    start = time.perf_counter()
    found = ll.certify(model, example, time_limit=limit, throw=False, **options)
    assert time.perf_counter() - start <= 2.0 * (1.2 * limit + 0.5)  # twice: machines that run tests are busy
    assert found.certified
    assert found.seconds <= 2.0 * (1.2 * limit + 0.5)


def test_the_lower_bound_spends_what_it_has():
    """Every evaluation of a pair takes a second: the search ends in time, with the slope of a pair, if only of one."""
    spent, now = [], Stopped()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).double().requires_grad_(False)

    inputs = torch.randn(9, 4)

    def slow(x):
        now.time += len(x) / 2
        spent.append(len(x) // 2)
        return model(x)

    def search(clock):
        generator = torch.Generator().manual_seed(0)
        return steepest_pair(slow, inputs, steps=40, pairs=8, sampled=64, generator=generator, clock=clock)

    whole = search(None).value
    for limit in (0.1, 30.0, 200.0, 5000.0):
        spent.clear()
        found = search(Clock(limit, now))
        assert sum(spent) <= limit * 1.2 + 3
        slope = torch.linalg.vector_norm(model(found.u) - model(found.v)) / torch.linalg.vector_norm(found.u - found.v)
        assert found.value == pytest.approx(float(slope))
    assert found.value == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("limit", [-1.0, 0.0, math.inf])
def test_the_lower_bound_refuses_what_is_no_limit(limit):
    with pytest.raises(ArgumentError, match="time_limit"):
        ll.lower_bound(nn.Linear(2, 1), torch.zeros(2, 2), time_limit=limit)


def test_auto_without_a_limit_optimises_for_a_minute_at_most(monkeypatch):
    """Here for no time at all; a method that is named has no limit but the one asked for."""
    network = chain((20, 60, 60, 5))
    closed = ll.certify(network, method="closed-form").upper_bound
    monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
    auto, named = ll.certify(network), ll.certify(network, method="lipsdp-neuron")
    assert (auto.upper_bound, auto.status) == (closed, Status.TIME_LIMIT)
    assert (named.upper_bound < closed, named.status) == (True, Status.SOLVED)
