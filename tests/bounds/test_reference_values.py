"""Published and twice-measured figures."""

from itertools import pairwise

import numpy as np
import pytest

from lightning_lipschitz import Status, certify, verify
from lightning_lipschitz.bounds import closed_form, conic
from lightning_lipschitz.bounds.signing import sign_nearby
from lightning_lipschitz.certificate import Multipliers, Proposal, prove, strengthen
from lightning_lipschitz.graph.network import Network
from tests.helpers import ABSOLUTE, COUNTEREXAMPLE, TWO_BY_TWO, lipsdp_weights


def random_weights():
    return lipsdp_weights("random")


def mnist_weights():
    return lipsdp_weights("mnist")


ROWS = [
    pytest.param(random_weights, "norm-product", 43.30557, id="LipSDP random, product"),
    pytest.param(random_weights, "lipsdp-layer", 39.83862, id="LipSDP random, layer"),
    pytest.param(random_weights, "lipsdp-neuron", 36.48223, id="LipSDP random, neuron"),
    pytest.param(mnist_weights, "norm-product", 31.50351, id="LipSDP MNIST, product"),
    pytest.param(mnist_weights, "lipsdp-layer", 26.25597, id="LipSDP MNIST, layer"),
    pytest.param(mnist_weights, "lipsdp-neuron", 24.36635, id="LipSDP MNIST, neuron"),
    pytest.param(lambda: TWO_BY_TWO, "norm-product", 4.0, id="2 x 2, product"),
    pytest.param(lambda: TWO_BY_TWO, "lipsdp-layer", 2.3094011, id="2 x 2, layer"),
    pytest.param(lambda: TWO_BY_TWO, "lipsdp-neuron", 2.3094011, id="2 x 2, neuron"),
    pytest.param(lambda: [[[-1.0], [-1.0]], [[-1.0, 1.0]]], "norm-product", 2.0, id="tanh pair, product"),
    pytest.param(lambda: [[[-1.0], [-1.0]], [[-1.0, 1.0]]], "lipsdp-neuron", 1.0, id="tanh pair, neuron"),
    pytest.param(lambda: COUNTEREXAMPLE, "norm-product", 2.0, id="relu(x+1) - relu(x-1), product"),
    pytest.param(lambda: COUNTEREXAMPLE, "lipsdp-neuron", 1.0, id="relu(x+1) - relu(x-1), neuron"),
    pytest.param(lambda: ABSOLUTE, "norm-product", 2.0, id="relu(x) - relu(-x), product"),
    pytest.param(lambda: ABSOLUTE, "lipsdp-neuron", 2.0, id="relu(x) - relu(-x), neuron"),
]


@pytest.mark.parametrize(("weights", "method", "value"), ROWS)
def test_native(weights, method, value):
    certificate = certify(weights(), method=method, rtol=1e-7)
    assert certificate.certified
    assert certificate.status is Status.SOLVED
    assert certificate.upper_bound == pytest.approx(value, rel=2e-6)
    assert verify(certificate, weights()) == certificate.upper_bound


CONIC = [row for row in ROWS if row.values[0] is not mnist_weights and row.values[1].startswith("lipsdp")]


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
@pytest.mark.parametrize(("weights", "method", "value"), CONIC)
def test_conic_solvers(weights, method, value, solver):
    certificate = certify(weights(), method=method, solver=solver)
    assert certificate.certified
    assert certificate.upper_bound == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lipsdp-layer", "lipsdp-neuron"])
def test_clarabel_on_mnist(method):
    value = {"lipsdp-layer": 26.25597, "lipsdp-neuron": 24.36635}[method]
    assert certify(mnist_weights(), method=method, solver="clarabel").upper_bound == pytest.approx(value, rel=1e-6)


def test_closed_form_sweeps():
    """ECLipsE-Fast's published recursion is the forward sweep; the backward one is lower here."""
    network = Network.from_weights(TWO_BY_TWO)
    forward, backward = (strengthen(network, sweep(network)) for sweep in (closed_form.forward, closed_form.backward))
    assert forward.rho**0.5 == pytest.approx(3.02372, rel=1e-5)
    assert backward.rho**0.5 == pytest.approx(8**0.5, rel=1e-7)
    assert certify(TWO_BY_TWO, method="closed-form").upper_bound == pytest.approx(8**0.5, rel=1e-7)


def test_closed_form_lies_between_layer_and_product():
    for weights in (lipsdp_weights("random"), lipsdp_weights("mnist")):
        bounds = [
            certify(weights, method=m).upper_bound
            for m in ("lipsdp-neuron", "lipsdp-layer", "closed-form", "norm-product")
        ]
        assert all(low <= high * (1 + 1e-6) for low, high in pairwise(bounds))


def test_a_solver_that_calls_an_infeasible_point_optimal_is_caught():
    """SCS on the problem as published, at cvxpy's default tolerance, claims 36.23; the constant is 36.48223 exactly."""
    network = Network.from_weights(lipsdp_weights("random"))
    problem, rho, per_layer = conic._problem(network, "neuron")
    problem.solve(solver="SCS")
    assert problem.status == "optimal"
    assert rho.value**0.5 < 36.4
    claimed = Multipliers(rho.value, tuple(np.maximum(part.value, 0) for part in per_layer))
    signed = sign_nearby(
        network, Proposal(claimed, "lipsdp-neuron", "scs"), closed_form.propose(network)[0].multipliers
    )
    assert prove(network, claimed) is None
    assert signed.upper_bound >= 36.48223
    assert signed.verification_loss > 1e-3
