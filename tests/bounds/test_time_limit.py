"""A time limit is a limit: nothing is begun that costs more than what is left, and a bound is proved all the same."""

import functools
import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz import api
from lightning_lipschitz.bounds import channels, closed_form, composed, cost, interior_point, parts, search
from lightning_lipschitz.bounds.clock import GRACE, Clock
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.lower import steepest_pair
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.callbacks._measurement import measure
from lightning_lipschitz.certificate import Norms, Status, prove, prove_composition
from lightning_lipschitz.certificate.operators import cheap_node_norm, node_norm, node_norm_holds
from lightning_lipschitz.certificate.spectral import cheap_norm_upper_bound, norm_holds
from lightning_lipschitz.errors import ArgumentError, TimeLimitError
from lightning_lipschitz.extraction import GraphExtractor, RoutedExtractor
from lightning_lipschitz.graph import Convolution
from tests.helpers import NETWORKS, chain
from tests.models import make, randomized_norm

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
    graph = GraphExtractor(model.eval(), torch.zeros(2, 4, 8, 8)).network()
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
    graph = GraphExtractor(convolutional(8), torch.zeros(2, 3, 16, 16)).network()
    found = certify_graph(graph, Settings(method="composed"), over())
    assert found.certified
    assert found.status is ll.Status.TIME_LIMIT
    assert not found.proof.blocks
    assert found.upper_bound == prove_composition(graph, found.proof)
    assert found.upper_bound >= certify_graph(graph, Settings(method="norm-product")).upper_bound


# Parts of a composition: written out, and convolutional. The node before each is one that no part goes past.


def convolutions(columns: int, rows: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(columns, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, rows, 3, padding=1)


def layers(columns: int, rows: int) -> tuple[nn.Module, ...]:
    return nn.Linear(columns, 6), nn.Tanh(), nn.Linear(6, rows)


PARTS = {
    "one of each": lambda: (*convolutions(1, 2), nn.MaxPool2d(2), nn.Flatten(), *layers(32, 3)),
    "written": lambda: (nn.Flatten(), *layers(64, 5), nn.Softmax(1), *layers(5, 3)),
    "convolutional": lambda: (*convolutions(1, 2), nn.MaxPool2d(2), *convolutions(2, 2)),
    "two of each": lambda: (
        *(*convolutions(1, 2), nn.MaxPool2d(2), *convolutions(2, 1), nn.MaxPool2d(2), nn.Flatten()),
        *(*layers(4, 5), nn.Softmax(1), *layers(5, 3)),
    ),
}
# model -> seconds left after the norms, seconds that a part takes when it is begun -> the parts that are begun
BEGUN = [
    ("one of each", 0.0, 0.0, []),
    ("one of each", 0.0009, 0.0, []),  # the written part needs 0.00105 s on a machine of 10^9 operations a second,
    ("one of each", 0.5, 0.0, [(5, 8)]),
    ("one of each", 3.9, 0.0, [(5, 8)]),  # the convolutional one 4.05
    ("one of each", 5.0, 0.0, [(5, 8), (0, 3)]),
    ("one of each", 5.0, 1.5, [(5, 8)]),
    ("written", 0.0, 0.0, []),
    ("written", 0.001, 0.0, [(4, 7)]),  # the first one needs 0.00207
    ("written", 5.0, 0.0, [(0, 3), (4, 7)]),
    ("written", 5.0, 5.5, [(0, 3)]),
    ("convolutional", 1.0, 0.0, []),
    ("convolutional", 2.0, 0.0, [(5, 8)]),  # which needs 1.25
    ("convolutional", 6.0, 0.0, [(0, 3), (5, 8)]),
    ("convolutional", 5.0, 4.5, [(0, 3)]),
    ("two of each", 0.0002, 0.0, []),
    ("two of each", 0.1, 0.0, [(10, 13), (14, 17)]),
    ("two of each", 2.0, 0.0, [(10, 13), (14, 17), (5, 8)]),
    ("two of each", 2.0, 0.6, [(10, 13), (14, 17)]),
    ("two of each", 8.0, 0.0, [(10, 13), (14, 17), (0, 3), (5, 8)]),
    ("two of each", 8.0, 5.0, [(10, 13), (14, 17)]),
]


@pytest.mark.parametrize(("name", "left", "each", "begun"), BEGUN)
def test_parts_that_do_not_fit_are_not_begun(name, left, each, begun, monkeypatch):
    """What is left out is said, and what is there is a proof."""
    monkeypatch.setattr(cost, "rates", lambda: cost.Rates(1e9, 1e9, 1e9))
    monkeypatch.setattr(parts, "LARGEST_ROWS", 40)  # small images are convolutional, and not written out
    torch.manual_seed(0)
    graph = GraphExtractor(nn.Sequential(*PARTS[name]()).eval(), torch.zeros(2, 1, 8, 8)).network()
    every = [(part.start, part.end) for part in parts.cut(graph)]
    every += [(part.start, part.end) for part in channels.cut(graph, parts.cut(graph))]
    now, found, norms = Stopped(), [], composed._norms

    def then(graph, reserve):
        result = norms(graph, reserve)
        now.time = reserve.clock.limit + GRACE - left
        return result

    def taking_time(work):
        def worked(graph, start, end):
            found.append((start, end))
            now.time += each
            return work(graph, start, end)

        return worked

    monkeypatch.setattr(composed, "_norms", then)
    monkeypatch.setattr(composed, "explicit", taking_time(composed.explicit))
    monkeypatch.setattr(channels, "propose", taking_time(channels.propose))
    certificate = certify_graph(graph, Settings(method="composed"), Clock(1000.0, now))
    assert found == begun
    assert set(begun) <= set(every)
    assert certificate.certified
    if set(begun) != set(every) or each:
        assert certificate.status is Status.TIME_LIMIT
    else:
        assert certificate.status is Status.SOLVED
    assert {block[:2] for block in certificate.proof.blocks} <= set(begun)
    assert certificate.upper_bound == prove_composition(graph, certificate.proof)
    monkeypatch.undo()
    simple = certify_graph(graph, Settings(method="norm-product")).upper_bound
    assert certificate.upper_bound <= simple * (1 + 1e-9)
    assert certificate.proof.blocks or certificate.upper_bound >= simple * (1 - 1e-9)


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


def pooled(*tail: nn.Module) -> nn.Module:
    """Batch norm and max pooling, as in a small classifier of digits."""
    torch.manual_seed(0)
    norms = [randomized_norm(nn.BatchNorm2d, width) for width in (3, 4)]
    first = (nn.Conv2d(1, 3, 3, stride=2, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(3, 4, 3, padding=1), norms[1], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*first, *second, nn.Linear(16, 3), *tail).eval()


TRIED = {
    "batch norm and max pooling": lambda: (pooled(), (1, 16, 16)),
    "an activation at the end": lambda: (pooled(nn.Tanh()), (1, 16, 16)),
    "residual MLP": lambda: make("residual MLP"),
    "audio CNN": lambda: make("audio CNN"),
    "policy": lambda: make("control policy"),
}


@pytest.mark.parametrize("name", TRIED)
def test_auto_ends_without_a_limit(name, monkeypatch):
    """Where a search would be tried, what comes before it is proved, of the whole and of all pairs of outputs."""
    monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
    model, shape = TRIED[name]()
    x = torch.zeros(2, *shape)
    found = ll.certify(model, x)
    simple = [ll.certify(model, x, method=method).upper_bound for method in ("norm-product", "closed-form")]
    assert (found.status, found.certified) == (Status.TIME_LIMIT, True)
    assert ll.verify(found, model, x) == found.upper_bound <= min(simple) * (1 + 1e-9)
    outputs = model(x).flatten(1).shape[1]
    if outputs > 1:
        pairs = ll.pairwise_bounds(model, x)
        assert pairs.whole.status is Status.TIME_LIMIT
        assert np.array_equal(pairs.verify(model, x), pairs.matrix)
        assert (pairs.matrix + np.eye(outputs) > 0).all()
        assert pairs.matrix.max() <= math.sqrt(2.0) * pairs.whole.upper_bound * (1 + 1e-12)


def measured(method):
    return measure(lambda: chain((6, 9, 9, 3)), None, Settings(method, rtol=1e-4), None, (0, 0))


SEARCHES = {
    "whole": lambda method: ll.certify(chain((6, 9, 9, 3)), method=method),
    "split": lambda method: ll.certify(chain((6, 9, 9, 9, 9, 3)), method=method, split_size=2),
    "pairs": lambda method: ll.pairwise_bounds(chain((6, 9, 9, 3)), method=method),
    "measured": measured,
    "composed": lambda method: ll.certify(perceptron(6, 9, 9, 3), torch.zeros(2, 6), method="composed"),
}


def told(run, monkeypatch):
    """The limits of the searches that ``run`` would begin; each takes no time and gives nothing."""
    limits = []

    def propose(network, *, time_limit, **_):
        limits.append(time_limit)
        raise TimeLimitError

    monkeypatch.setattr(interior_point, "propose", propose)
    run()
    assert limits
    return limits


@pytest.mark.parametrize("name", SEARCHES)
def test_the_solver_is_told_when_to_end(name, monkeypatch):
    """Of "auto", and of all parts of a composition, always; of a method that is named, where a limit was asked for."""
    limits = told(lambda: SEARCHES[name]("auto"), monkeypatch)
    assert all(limit is not None and limit <= search.SEARCH_SECONDS for limit in limits)
    for method in ("lipsdp-neuron", "lipsdp-layer") if name != "composed" else ():
        assert set(told(lambda method=method: SEARCHES[name](method), monkeypatch)) == {None}


def test_all_pairs_together_end_in_minutes(monkeypatch):
    limits = told(lambda: ll.pairwise_bounds(chain((6, 9, 9, 10))), monkeypatch)
    assert sum(limits) <= 5 * search.SEARCH_SECONDS


# Lower bounds of networks from images to images, whole and in part


class Conditioned(nn.Module):
    """An image and a second one that says where; the restored image, and what was taken from it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 4, 3, padding=1), randomized_norm(nn.BatchNorm2d, 4), nn.ReLU())
        self.net = nn.Sequential(*layers, nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, image, mask):
        taken = self.net(torch.cat([image, mask], 1))
        return {"restored": image - taken, "taken": taken}


IMAGES = torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LOOKED_AT = {
    "a submodule": (IMAGES.mean(0).repeat(1, 2, 1, 1), {"module": "net"}),
    "its first layer": (IMAGES.mean(0).repeat(1, 2, 1, 1), {"module": "net.0"}),
    "the first input": (tuple(IMAGES), {"input": 0, "output": "restored"}),
    "the second input": (tuple(IMAGES), {"input": 1, "output": "taken"}),
    "an input by name": (dict(zip(("image", "mask"), IMAGES, strict=True)), {"input": "image", "output": "taken"}),
    "both outputs": (dict(zip(("image", "mask"), IMAGES, strict=True)), {"input": "mask", "output": "all"}),
}


@pytest.mark.parametrize("name", LOOKED_AT)
def test_the_lower_bound_of_a_part_of_an_image_network_in_time(name, monkeypatch):
    """Every evaluation of a pair takes a second. A limit that is over at once still gives a slope."""
    now, whole = Stopped(), RoutedExtractor.function
    inputs, chosen = LOOKED_AT[name]
    model = Conditioned().eval()

    def slow(self, device="cpu"):
        function = whole(self, device)

        def evaluate(x):
            now.time += len(x) / 2
            return function(x)

        return evaluate

    above = ll.certify(model, inputs, method="composed", **chosen).upper_bound
    monkeypatch.setattr(api, "Clock", functools.partial(Clock, now=now))
    monkeypatch.setattr(RoutedExtractor, "function", slow)
    values = []
    for limit in (1e-9, 30.0, 300.0):
        now.time = 0.0
        found = ll.lower_bound(model, inputs, time_limit=limit, **chosen)
        assert now.time <= limit * 1.2 + 3
        assert found.u.shape == found.v.shape == (inputs.numel() // 3 if "module" in chosen else 256,)
        values.append(found.value)
    assert 0 < values[0] < values[2]
    assert max(values) <= above


def test_the_lower_bound_is_the_slope_of_the_pair_with_the_other_input_fixed():
    model = Conditioned().eval().double().requires_grad_(False)
    for limit in (1e-9, 0.05):
        found = ll.lower_bound(model, tuple(IMAGES.double()), input=0, output="taken", time_limit=limit)
        ends = [model(end.view(1, 1, 16, 16), IMAGES[1, :1].double())["taken"] for end in (found.u, found.v)]
        slope = torch.linalg.vector_norm(ends[0] - ends[1]) / torch.linalg.vector_norm(found.u - found.v)
        assert found.value == pytest.approx(float(slope), rel=1e-9)


MEMINFO = {
    "MemTotal:  1000 kB\nMemFree:   10 kB\nMemAvailable:   600 kB\nBuffers: 1 kB\n": 600 * 1024.0,
    "MemTotal:  1000 kB\nMemFree:   10 kB\n": None,  # an old kernel
    "MemAvailable: much\n": None,
    "no such thing": None,
}


@pytest.mark.parametrize("told", MEMINFO)
def test_memory_that_holds_files_is_available(told, tmp_path, monkeypatch):
    monkeypatch.setattr(cost.os, "sysconf", lambda name: 7 if name == "SC_PAGE_SIZE" else 3)
    (file := tmp_path / "meminfo").write_text(told)
    assert cost.room(str(file)) == (MEMINFO[told] or 21.0)
    assert cost.room(str(tmp_path / "missing")) == 21.0


def test_what_explicit_matrices_leave_unfinished_is_bounded_node_by_node():
    """Closed forms of this network would take longer than the limit, and the product of its norms is far above."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    x = torch.zeros(1, 1, 28, 28)
    found = ll.certify(net, x, time_limit=15.0)
    assert found.method == "composed"
    assert found.upper_bound < 0.95 * ll.certify(net, x, method="norm-product").upper_bound
    assert ll.verify(found, net, x) == found.upper_bound
