"""What stands in a report is true: bounds of parts, factors, curves, rounded numbers."""

import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.bounds.composed import certify_graph
from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Composition
from lightning_lipschitz.certificate.pieces import steepest
from lightning_lipschitz.errors import CertificateError, NotABoundWarning
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.report import PredictionLog, Predictions, Subject, gather, numbers
from lightning_lipschitz.report import predictions as predictions_module
from lightning_lipschitz.report.predictions import accuracy_curve
from lightning_lipschitz.report.tightness import layer_bounds, prefix
from tests.graph.models import make
from tests.helpers import NETWORKS, TWO_BY_TWO

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(FINITE)
def test_rounding_keeps_what_a_bound_says(value):
    assert Decimal(numbers.lower(value)) <= Decimal(value) <= Decimal(numbers.upper(value))
    assert abs(Decimal(numbers.upper(value)) - Decimal(value)) <= abs(Decimal(value)) / 5000


@given(st.floats(0.0, 1.0))
def test_shares_are_rounded_down(share):
    assert 0 <= Decimal(share) * 100 - Decimal(numbers.percent(share).removesuffix(" %")) < Decimal("0.1")


@pytest.mark.parametrize("value", [None, math.nan])
def test_no_number_is_a_dash(value):
    assert {numbers.upper(value), numbers.lower(value), numbers.near(value)} == {"–"}
    assert numbers.percent(None) == "–"


# Layers


@pytest.mark.parametrize("name", NETWORKS)
def test_every_line_is_a_bound_and_the_last_is_that_of_the_whole(name):
    network = NETWORKS[name]()
    certificate = certify_network(network, Settings(rtol=1e-4))
    lines = layer_bounds(certificate, network)
    assert [line.width for line in lines] == [affine.size for affine in network.affines]
    assert lines[-1].bound == certificate.upper_bound
    for k, line in enumerate(lines):
        part = prefix(network, k).network
        again = certify_network(part, Settings(rtol=1e-4)).upper_bound
        assert line.bound == pytest.approx(again, rel=2e-3)
        assert line.bound <= line.product * (1 + 1e-12)
    factors = [line.factor for line in lines]
    assert all(factor is not None for factor in factors) == network.is_chain
    if network.is_chain:
        assert math.prod(factors) == pytest.approx(certificate.upper_bound, rel=1e-12)
        for layer, line in zip((None, *network.layers), lines, strict=True):
            slope = 1.0 if layer is None else float(steepest(layer))
            assert line.factor <= line.norm * slope * (1 + 2e-3)


@pytest.mark.parametrize("method", ["norm-product", "closed-form", "lipsdp-layer"])
def test_parts_are_bounded_by_the_method_of_the_whole(method):
    network = NETWORKS["chain"]()
    lines = layer_bounds(certify_network(network, Settings(method)), network)
    for k, line in enumerate(lines):
        expected = certify_network(prefix(network, k).network, Settings(method, rtol=1e-3)).upper_bound
        assert line.bound == pytest.approx(expected, rel=2e-3)


def test_a_part_is_what_the_layer_reads():
    """Sources that a layer does not depend on are left out; values are those of the whole."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

        def forward(self, x):
            return self.c(torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], dim=1))

    torch.manual_seed(0)
    model = Branches()
    whole = Extractor(model, torch.zeros(1, 3)).extract()
    assert prefix(whole.network, 1).layers == ()
    assert prefix(whole.network, 2).network.digest == whole.network.digest
    x = torch.randn(6, 3)
    for k, linear in enumerate((model.a, model.b)):
        (term,) = prefix(whole.network, k).network.output.terms
        values = x.double().numpy() @ term.matrix.T + whole.network.affines[k].bias
        assert np.allclose(values, linear(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("method", ["norm-product", "composed"])
@pytest.mark.parametrize("name", ["small_resnet", "lenet", "u_net"])
def test_bounds_along_a_graph_are_those_of_its_proof(name, method):
    model, shape = make(name)
    graph = ll.api.read(model, torch.zeros(1, *shape), method="composed")
    certificate = certify_graph(graph, Settings(method, rtol=1e-3))
    lines = layer_bounds(certificate, graph)
    assert lines[-1].bound == certificate.upper_bound
    assert all(math.isfinite(line.bound) and line.factor is None for line in lines)
    if method == "norm-product":
        assert len(lines) > 2
        assert all(line.norm is not None for line in lines[:-1])
        whole = ll.lower_bound(model, torch.rand(8, *shape), steps=5).value
        assert whole <= lines[-1].bound


def test_a_proof_that_does_not_hold_gives_no_lines():
    model, shape = make("lenet")
    graph = ll.api.read(model, torch.zeros(1, *shape), method="composed")
    certificate = certify_graph(graph, Settings("norm-product"))
    forged = replace(certificate, proof=Composition(0.9 * certificate.proof.norms))
    with pytest.raises(CertificateError, match="does not hold"):
        layer_bounds(forged, graph)


def classifier(inputs=6, classes=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, classes))
    return model, torch.randn(300, inputs)


def subject(model, x, **options):
    extraction = Extractor(model, x).extract()
    options = {"extraction": extraction, "inputs": x, **options}
    return Subject(ll.certify(model, x), extraction.network, **options)


def test_slopes_of_parts_are_below_their_bounds():
    model, x = classifier()
    content = gather(subject(model, x))
    assert all(0 < line.lower <= line.bound for line in content.layers)
    first = ll.certify(model[0], x).upper_bound
    assert content.layers[0].lower == pytest.approx(first, rel=1e-3)
    assert content.lower_bound == content.layers[-1].lower


def test_the_lower_bound_is_the_best_of_these_weights():
    model, x = classifier()
    certificate = ll.certify(model, x)
    old = {"epoch": 0, "global_step": 1, "upper_bound": 1e3, "lower_bound": 1e2}
    last = {"epoch": 1, "global_step": 2, "upper_bound": certificate.upper_bound, "lower_bound": 1e-3}
    options = {"extraction": None, "inputs": None}
    assert gather(subject(model, x, history=[old, last], **options)).lower_bound == 1e-3
    assert gather(subject(model, x, history=[old], **options)).lower_bound is None
    assert gather(subject(model, x, history=[old, last])).lower_bound > 1e-2


# Certified accuracy


def test_curve_agrees_with_the_metric_and_pairs_are_above_one_constant():
    model, x = classifier()
    logits, y = model(x).detach(), torch.randint(4, (300,))
    content = gather(subject(model, x, predictions=Predictions(logits, y)))
    curve, bound = content.curve, content.subject.certificate
    for k in (0, 20, 100, 200):
        for constant, share in ((bound, curve.accuracy[k]), (content.pairs, curve.pairs[k])):
            metric = ll.CertifiedAccuracy(float(curve.radii[k]), constant)
            metric.update(logits, y)
            assert metric.compute().item() == pytest.approx(share, abs=1e-6)
    assert (curve.pairs >= curve.accuracy).all()
    assert curve.clean == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert curve.accuracy[0] <= curve.clean
    metric = ll.CertifiedRadius("median", bound)
    metric.update(logits, y)
    assert curve.median[0] == metric.compute().item()


def test_binary_classifiers_and_perfect_constants():
    curve = accuracy_curve(Predictions(torch.tensor([2.0, -1.0, 3.0]), torch.tensor([1, 1, 1])), 1.0)
    assert curve.clean == pytest.approx(2 / 3)
    assert curve.median[0] == pytest.approx(2.0)
    flat = accuracy_curve(Predictions(torch.tensor([[1.0, 0.0]]), torch.tensor([0])), 0.0)
    assert flat.accuracy[-1] == 1.0


def test_the_log_stops_where_it_would_grow_too_large(monkeypatch):
    monkeypatch.setattr(predictions_module, "LARGEST", 10)
    log = PredictionLog()
    assert log.predictions() is None
    for _ in range(4):
        log.add(torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.long))
    found = log.predictions("validation inputs")
    assert (len(found.target), found.classes, found.whose) == (4, 2, "the first 4 validation inputs")


# What is left out, and why


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no labelled data"),
        ({"pairs": False}, "not asked for"),
        ({"pairs": True}, None),
    ],
)
def test_when_pairs_are_bounded(options, says):
    model, x = classifier()
    content = gather(subject(model, x, **options))
    assert (content.pairs is None) == (says is not None)
    if says:
        assert says in content.why_not["pairs"]
    else:
        assert content.pairs.refined == 6


def test_what_is_no_classifier_costs_a_sentence():
    model, x = classifier(classes=1)
    content = gather(subject(model, x, predictions=Predictions(model(x).detach(), torch.randn(300))))
    assert content.curve is None
    assert "class numbers" in content.why_not["curve"]
    assert "one output" in content.why_not["pairs"]
    assert content.layers


def test_only_what_is_proved_is_reported():
    model, x = classifier()
    other = Extractor(nn.Linear(2, 2), torch.zeros(1, 2)).network()
    with pytest.raises(CertificateError, match="another network"):
        gather(Subject(ll.certify(model, x), other))
    with pytest.warns(NotABoundWarning):
        guess = ll.certify(TWO_BY_TWO, method="lipsdp-network")
    with pytest.raises(CertificateError, match="no bound to report"):
        gather(Subject(guess, ll.api.read(TWO_BY_TWO)))
