"""Convolutional parts, one frequency at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_lipschitz.bounds import channels, parts
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import operators, prove_composition
from lightning_lipschitz.certificate.encoding import decode, encode
from lightning_lipschitz.certificate.explicit import explicit
from lightning_lipschitz.certificate.matrices import convolution_matrix
from lightning_lipschitz.certificate.proofs import Channels, Composition
from lightning_lipschitz.certificate.spectrum import prove_channels, spectrum
from lightning_lipschitz.extraction import GraphExtractor
from lightning_lipschitz.graph import Elementwise, Graph, Input, Sum
from tests.graph.models import Residual, seq
from tests.graph.test_convolution_norm import conv
from tests.models import of


def block(activation=nn.ReLU, stride=1, padding=1):
    skip = (lambda: nn.Conv2d(2, 2, 1, stride, bias=False)) if stride > 1 else nn.Identity
    return of(
        lambda m, x: m.skip(x) + m.b(m.act(m.a(x))),
        (2, 5, 5),
        a=lambda: nn.Conv2d(2, 4, 3, stride, padding),
        act=activation,
        b=lambda: nn.Conv2d(4, 2, 3, padding=1),
        skip=skip,
    )


def unit():
    return nn.Conv1d(2, 2, 3, padding=1)


PARTS = {
    "residual": block(),
    "residual, tanh": block(nn.Tanh),
    "residual, slopes above zero": block(lambda: nn.LeakyReLU(0.3)),
    "residual, slopes below zero": block(nn.SiLU),
    "residual, strided": block(stride=2),
    "chain": (lambda: seq(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)), (2, 5, 5)),
    "valid": (lambda: seq(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2)), (2, 5, 5)),
    "dilated": (lambda: seq(nn.Conv1d(2, 3, 3, dilation=2, padding=2), nn.ReLU(), nn.Conv1d(3, 2, 3)), (2, 9)),
    "3d": (lambda: seq(nn.Conv3d(1, 2, 2, 2), nn.Tanh(), nn.Conv3d(2, 1, 1)), (1, 4, 4, 4)),
    "three layers": (lambda: seq(*[make() for make in (unit, nn.ReLU) * 3], unit()), (2, 8)),
}


def read(name):
    factory, shape = PARTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory().eval()
    return GraphExtractor(model, torch.zeros(1, *shape)).extract()


def sampled(extraction):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(200, extraction.network.input_size))
    d = rng.normal(size=u.shape) * 10.0 ** rng.uniform(-3, 0, size=(200, 1))
    return float((np.linalg.norm(extraction(u + d) - extraction(u), axis=1) / np.linalg.norm(d, axis=1)).max())


@pytest.mark.parametrize("name", PARTS)
def test_between_the_explicit_bound_and_the_product(name, monkeypatch):
    extraction = read(name)
    graph = extraction.network
    end = len(graph.nodes) - 1
    proposal = channels.propose(graph, 0, end)
    bound = prove_channels(spectrum(graph, 0, end), proposal, margin=2.0)
    explicitly = certify_network(explicit(graph, 0, end), Settings()).upper_bound
    assert sampled(extraction) <= explicitly * (1 + 1e-9)
    assert explicitly <= bound * (1 + 1e-6)
    monkeypatch.setattr(operators, "EXPLICIT_SIDE", 0)  # norms on the torus too
    assert bound <= 1.02 * certify_graph(graph, Settings(method="norm-product")).upper_bound


@pytest.mark.parametrize("name", PARTS)
def test_a_proof_that_claims_too_much_proves_nothing(name):
    graph = read(name).network
    end = len(graph.nodes) - 1
    part, proposal = spectrum(graph, 0, end), channels.propose(graph, 0, end)
    assert prove_channels(part, replace(proposal, rho=proposal.rho * (1 - 1e-4))) is None
    assert prove_channels(part, replace(proposal, values=proposal.values[1:])) is None
    assert prove_channels(part, replace(proposal, values=tuple(v[:-1] for v in proposal.values))) is None
    assert prove_channels(part, replace(proposal, values=tuple(-v for v in proposal.values))) is None
    assert prove_channels(part, replace(proposal, values=tuple(0 * v for v in proposal.values))) is None


def test_symbols_have_the_singular_values_of_the_torus():
    """Two strided convolutions whose taps must be aligned; 8 positions are what an image of 7 needs."""
    made = {n: (conv(3, 2, 3, (n,), 2, 1, circular=n == 8), conv(3, 2, 1, (n,), 2, circular=n == 8)) for n in (7, 8)}
    graph = Graph((Input(size=14), *made[7], Sum(sources=(1, 2), size=12)))
    part = spectrum(graph, 0, 3)
    assert part.periods == (4,)
    exact = sum(convolution_matrix(node).toarray() for node in made[8])
    found = [
        np.linalg.svd(network.output.terms[0].matrix, compute_uv=False)
        for network in part.networks(np.arange(4)[:, None])
    ]
    values = np.sort(np.concatenate(found))[::-2][::-1]  # each twice in the real form
    np.testing.assert_allclose(values, np.sort(np.linalg.svd(exact, compute_uv=False)), atol=1e-12)


def test_what_is_not_of_the_kind():
    def units(source, size):
        return Elementwise(sources=(source,), size=size, alpha=np.array(0.0), beta=np.array(1.0))

    plain = conv(2, 2, 3, (6,), padding=1)
    for first in (
        conv(2, 2, 3, (6,), padding=1, circular=True),
        conv(2, 2, 3, (6,), padding=1, groups=2),
        conv(2, 2, 3, (6,), padding=1, transposed=True),
    ):
        assert spectrum(Graph((Input(size=12), first, units(1, 12), replace(plain, sources=(2,)))), 0, 3) is None
    # A convolution of a convolution: between them the image is cut, and no unit does it.
    assert spectrum(Graph((Input(size=12), plain, replace(plain, sources=(1,)))), 0, 2) is None
    # Slopes that differ within a channel.
    uneven = Elementwise(sources=(1,), size=12, alpha=np.zeros(12), beta=np.ones(12))
    assert spectrum(Graph((Input(size=12), plain, uneven, replace(plain, sources=(2,)))), 0, 3) is None
    # Strided: units that read the input itself are on another grid.
    strided, valid = conv(2, 2, 1, (6,), 2), replace(conv(2, 2, 4, (6,)), sources=(2,))
    graph = Graph((Input(size=12), strided, units(0, 12), valid, Sum(sources=(1, 3), size=6)))
    assert spectrum(graph, 0, 4) is None


def two_blocks():
    torch.manual_seed(0)
    model = seq(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), Residual(3, 3), Residual(3, 4, 2)).eval()
    return GraphExtractor(model, torch.zeros(1, 1, 12, 12)).extract()


def test_parts_of_a_model_are_certified_and_saved(monkeypatch):
    monkeypatch.setattr(parts, "LARGEST_ROWS", 0)
    extraction = two_blocks()
    graph = extraction.network
    certificate = certify_graph(graph, Settings(method="composed"))
    assert any(isinstance(part, Channels) for _, _, part in certificate.proof.blocks)
    product = certify_graph(graph, Settings(method="norm-product")).upper_bound
    assert sampled(extraction) <= certificate.upper_bound < 0.9 * product
    assert prove_composition(graph, decode(*encode(certificate.proof))) == certificate.upper_bound
    for k, (start, end, part) in enumerate(certificate.proof.blocks):
        others = certificate.proof.blocks[:k] + certificate.proof.blocks[k + 1 :]
        lower = (start, end, replace(part, rho=part.rho * 0.999))
        assert prove_composition(graph, Composition(certificate.proof.norms, (*others, lower))) is None


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_random_residual_blocks(data):
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    stride, size = data.draw(st.integers(1, 2)), data.draw(st.integers(3, 4))
    columns, rows = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    model = Residual(columns, rows, stride).eval()
    extraction = GraphExtractor(model, torch.zeros(1, columns, size, size)).extract()
    graph = extraction.network
    end = max(number for number, node in enumerate(graph.nodes) if isinstance(node, Sum))
    proposal = channels.propose(graph, 0, end)
    bound = prove_channels(spectrum(graph, 0, end), proposal)
    assert sampled(extraction) <= bound * (1 + 1e-9)
    closed = certify_network(explicit(graph, 0, end), Settings(rtol=1e-4)).upper_bound
    assert closed <= bound * (1 + 1e-4)
