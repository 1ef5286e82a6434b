"""Composed bounds: sound, and on small models between nothing better than LipSDP and nothing worse than the product."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.api import lower_bound
from lightning_lipschitz.bounds import parts
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Composition, prove_composition
from lightning_lipschitz.certificate.explicit import explicit
from lightning_lipschitz.errors import ArgumentError, ShapeError, SolverError
from lightning_lipschitz.extraction import Extractor, GraphExtractor
from lightning_lipschitz.graph import (
    Along,
    Elementwise,
    Extremum,
    Gather,
    Graph,
    Input,
    Scaling,
    Sum,
    VectorUnits,
)
from lightning_lipschitz.graph.parts import chains, measure
from tests.graph.models import MODELS, make
from tests.models import Lambda, randomized_norm

RTOL = 1e-6


@functools.cache
def read(name):
    model, shape = make(name)
    extractor = GraphExtractor(model, torch.zeros(1, *shape))
    return extractor.extract(), extractor.network()


@functools.cache
def composed(name):
    return certify_graph(read(name)[1], Settings(method="composed"))


def sampled(extraction, seed=0):
    """The largest quotient of random pairs, far and near."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(200, extraction.network.input_size)) * 10.0 ** rng.uniform(-1, 1, size=(200, 1))
    d = rng.normal(size=u.shape) * 10.0 ** rng.uniform(-3, 0, size=(200, 1))
    rise = np.linalg.norm(extraction(u + d) - extraction(u), axis=1)
    return float((rise / np.linalg.norm(d, axis=1)).max())


@pytest.mark.parametrize("name", MODELS)
def test_sampled_below_composed_below_product(name):
    extraction, graph = read(name)
    bound = composed(name).upper_bound
    assert sampled(extraction) <= bound * (1 + 1e-9)
    assert bound <= certify_graph(graph, Settings(method="norm-product")).upper_bound * (1 + 1e-12)
    assert prove_composition(graph, composed(name).proof) == bound


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_out_computes_the_same(name):
    """The explicit network of the whole graph, run with the graph's own units."""
    extraction, graph = read(name)
    lowered = extraction.lowered()
    if "constant" not in name:  # units that nothing of the input reaches are no layer
        units = [node.name for node in graph.nodes if isinstance(node, (Elementwise, Extremum, VectorUnits))]
        assert [layer.name for layer in lowered.network.layers] == units
    x = np.random.default_rng(0).normal(size=(5, graph.input_size))
    out = extraction(x)
    np.testing.assert_allclose(lowered(x), out, atol=1e-12 * max(1.0, np.abs(out).max()))


@pytest.mark.parametrize(
    "name", ["small_resnet", "lenet", "all_convolutional", "autoencoder", "conv_3d", "linear_norm"]
)
def test_explicit_below_composed_by_norms(name):
    """A composition is at least the explicit bound, and that is at least what is sampled."""
    extraction = read(name)[0]
    model, shape = make(name)
    network = Extractor(model, torch.zeros(1, *shape)).network()
    explicitly = certify_network(network, Settings(rtol=RTOL)).upper_bound
    assert sampled(extraction) <= explicitly <= composed(name).upper_bound * (1 + 10 * RTOL)


def test_parts_between_passages_are_written_out(monkeypatch):
    _, graph = read("small_resnet")
    monkeypatch.setattr(parts, "LARGEST_ROWS", 300)
    cuts = parts.cut(graph)
    assert len(cuts) > 1
    certificate = certify_graph(graph, Settings(method="composed"))
    assert certificate.proof.blocks
    product = certify_graph(graph, Settings(method="norm-product")).upper_bound
    assert composed("small_resnet").upper_bound <= certificate.upper_bound <= product


def random_cnn(data):
    """A few convolutions, units, norms, pools and residual additions on a small image."""
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    channels, layers = data.draw(st.integers(1, 2)), []
    for _ in range(data.draw(st.integers(1, 3))):
        rows, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        groups = channels if data.draw(st.booleans()) else 1
        mode = data.draw(st.sampled_from(["zeros", "circular"]))
        layers.append(nn.Conv2d(channels, rows * groups, 3, stride, 1, groups=groups, padding_mode=mode))
        channels = rows * groups
        if data.draw(st.booleans()):
            layers.append(randomized_norm(nn.BatchNorm2d, channels))
        layers.append(data.draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.2), nn.SiLU()])))
        if data.draw(st.booleans()):
            layers.append(Skip(channels))
    return nn.Sequential(*layers, nn.Flatten()).eval(), (layers[0].in_channels, 7, 6)


class Skip(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_networks(data):
    model, shape = random_cnn(data)
    extraction = GraphExtractor(model, torch.zeros(1, *shape)).extract()
    certificate = certify_graph(extraction.network, Settings(method="norm-product"))
    assert sampled(extraction) <= certificate.upper_bound * (1 + 1e-9)
    steepest = lower_bound(model, torch.randn(8, *shape), steps=10, pairs=4).value
    assert steepest <= certificate.upper_bound * (1 + 1e-9)
    network = explicit(extraction.network, 0, len(extraction.network.nodes) - 1)
    explicitly = certify_network(network, Settings(method="closed-form"))
    assert explicitly.certified
    if all(len(node.sources) < 2 for node in extraction.network.nodes):
        best = certify_network(network, Settings(rtol=1e-3, time_limit=2.0)).upper_bound
        assert best <= certificate.upper_bound * (1 + 1e-9)


def tampered(proof):
    yield Composition(proof.norms * (1 - 1e-6), proof.blocks)
    yield Composition(np.where(np.arange(len(proof.norms)) == 0, np.nan, proof.norms), proof.blocks)
    yield Composition(np.where(np.arange(len(proof.norms)) == 0, -np.inf, proof.norms), proof.blocks)
    yield Composition(np.where(np.arange(len(proof.norms)) == 0, -1.0, proof.norms), proof.blocks)
    yield Composition(proof.norms[1:], proof.blocks)
    for start, end, part in proof.blocks:
        yield Composition(proof.norms, ((start, end, replace(part, rho=part.rho * (1 - 1e-4))),))
        yield Composition(proof.norms, ((start + 1, end, part),))
        yield Composition(proof.norms, ((end, start, part),))
        yield Composition(proof.norms, ((start, end + 10**6, part),))


def test_a_proof_that_claims_too_much_proves_nothing():
    _, graph = read("lenet")
    proof = composed("lenet").proof
    assert proof.blocks
    norms = certify_graph(graph, Settings(method="norm-product")).proof.norms
    for wrong in tampered(Composition(norms, proof.blocks)):
        assert prove_composition(graph, wrong) is None
    assert prove_composition(graph, Composition(np.full_like(norms, np.inf))) == np.inf


def test_a_block_must_see_all_that_leads_to_its_end():
    """x -> 2x -> 2x + x: the sum is not bounded by what node 1 alone does to it."""
    double = Along(sources=(0,), matrix=[[2.0]])
    graph = Graph((Input(size=1), double, Sum(sources=(0, 1), size=1)))
    assert chains(graph) == ((0, 2), (0, 1))
    assert explicit(graph, 1, 2) is None
    assert certify_graph(graph, Settings()).upper_bound == pytest.approx(3.0)


def test_constants_of_each_kind():
    x = Input(size=4)
    cases = {
        2.0: Gather(sources=(0,), indices=[0, 1, 0, 0, 0, -1]),
        3.0: Scaling(sources=(0,), factors=[1.0, -3.0, 0.0, 2.0]),
        0.25: Elementwise(sources=(0,), size=4, alpha=np.array(0.0), beta=np.array(0.25)),
        1.5: Elementwise(sources=(0,), size=4, alpha=-np.array([0.0, 1.5, 0, 0]), beta=np.ones(4)),
        7.0: VectorUnits(sources=(0,), size=2, alpha=-7.0, beta=3.0, width=2, scalar=True),
        0.5: VectorUnits(sources=(0,), size=4, alpha=0.0, beta=0.5, width=2),
        2.0**0.5: Extremum(sources=(0, 0), size=4),
        4.0: Sum(sources=(0, 0, 0, 0), size=4),
    }
    for value, node in cases.items():
        assert certify_graph(Graph((x, node)), Settings(method="norm-product")).upper_bound == value
    linear = Along(sources=(0,), matrix=[[3.0, 4.0]], before=2)
    assert certify_graph(Graph((x, linear)), Settings()).upper_bound == pytest.approx(5.0, rel=1e-9)


def test_sizes_are_those_of_the_network():
    _, graph = read("small_resnet")
    network = explicit(graph, 0, len(graph.nodes) - 1)
    size = measure(graph)
    assert size.widths == network.sizes[1:]
    assert size.entries == sum(term.matrix.size for affine in network.affines for term in affine.terms)


def test_graphs_that_do_not_fit_together():
    with pytest.raises(ShapeError):
        Graph((Input(size=3), Along(sources=(0,), matrix=[[1.0, 2.0]])))
    with pytest.raises(ShapeError):
        Graph((Input(size=3), Gather(sources=(0,), indices=[3])))
    with pytest.raises(ArgumentError, match="earlier"):
        Graph((Input(size=3), Scaling(sources=(1,), factors=np.ones(3))))
    with pytest.raises(ArgumentError, match="input"):
        Graph((Scaling(sources=(), factors=np.ones(3)),))


def test_the_digest_sees_what_a_bound_depends_on():
    def digest(**changes):
        arguments = {"sources": (0,), "matrix": [[1.0, 2.0]], "name": "a"} | changes
        return Graph((Input(size=2), Along(**arguments))).digest

    assert digest() == digest(name="b")
    assert len({digest(), digest(matrix=[[2.0, 1.0]]), digest(rounding=1e-9)}) == 3


def test_weights_beyond_float64():
    nodes = [Input(size=1), *(Scaling(sources=(k,), factors=[1e30]) for k in range(12))]
    with pytest.raises(SolverError, match="range of float64"):
        certify_graph(Graph(tuple(nodes)), Settings())


def deep(seed, layers=5):
    """More units than one convolutional part holds."""
    torch.manual_seed(seed)
    return nn.Sequential(*[each for _ in range(layers) for each in (nn.Conv1d(2, 2, 3, padding=1), nn.ReLU())][:-1])


BRANCHES = {  # of branches g and h, and the bound that those of g and h give
    "difference": (lambda m, x: x - m.g(x), lambda g, h: 1 + g),
    "two branches": (lambda m, x: m.g(x) + 0.5 * m.h(x), lambda g, h: g + 0.5 * h),
    "concatenated": (lambda m, x: torch.cat([m.g(x), m.h(x), x], 1), lambda g, h: math.hypot(g, h, 1)),
    "nested": (lambda m, x: x + m.g(x - m.h(x)), lambda g, h: 1 + g * (1 + h)),
    "behind a trunk": (lambda m, x: (y := m.h(x)) + m.g(y), lambda g, h: h * (1 + g)),
    "thrice": (lambda m, x: (y := x + m.g(x)) - m.g(y), lambda g, h: (1 + g) ** 2),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_the_whole_is_no_worse_than_its_branches(name, monkeypatch):
    monkeypatch.setattr(parts, "LARGEST_ROWS", 0)
    forward, together = BRANCHES[name]
    branches = {"g": deep(0), "h": deep(1)}
    example = torch.zeros(1, 2, 8)
    g, h = (ll.certify(branch, example, method="composed").upper_bound for branch in branches.values())
    product = ll.certify(branches["g"], example, method="norm-product").upper_bound
    whole = ll.certify(Lambda(forward, **branches), example, method="composed").upper_bound
    assert g < 0.999 * product
    assert whole <= together(g, h) * (1 + 1e-9)
