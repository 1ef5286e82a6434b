"""Multipliers, rounding and the joint search: what comes out is signed, near, and what the parameters can hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime

from lightning_lipschitz.api import certify
from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import solve_multipliers, squared
from lightning_lipschitz.training.spectral_ball import nearest, scaled
from lightning_lipschitz.training.spectral_ball.descent import MultiplierDescent
from lightning_lipschitz.training.spectral_ball.layer_factors import shrinkages
from lightning_lipschitz.weights.maps import with_weights
from tests.helpers import NETWORKS, chain
from tests.training.convex import CHAINS, matrices, some_multipliers

TABLE = CHAINS | {
    name: NETWORKS[name] for name in ("leaky", "per-unit slopes", "tiny", "huge", "unread units", "two by two")
}


@pytest.fixture(params=TABLE)
def case(request):
    """A network with float32 weights, the weights, and its bound."""
    network = TABLE[request.param]()
    weights = [torch.tensor(matrix, dtype=torch.float32) for matrix in matrices(network)]
    network = with_weights(network, weights)
    return network, weights, certify(network).upper_bound


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_the_result_is_certified_in_float32_and_nearer_than_scaling(case, share):
    network, weights, bound = case
    target = share * bound
    found = nearest(weights, network, target)
    assert found.certificate.certified
    assert found.certificate.upper_bound <= target
    assert [w.dtype for w in found.weights] == [torch.float32] * len(weights)
    there = with_weights(network, found.weights)
    assert found.certificate.network_digest == there.digest
    assert prove(there, found.certificate.proof) == found.certificate.upper_bound
    # intervals without zero are widened, at some cost; the search crawls where units are cut off
    if all((layer.alpha <= 0).all() and layer.affine.terms[0].matrix.any(axis=1).all() for layer in network.layers):
        assert certify(there).upper_bound >= (1 - 2e-2) * target
    assert found.distance <= scaled(weights, network, target).distance * (1 + 1e-5)


def test_weights_that_meet_the_bound_are_not_touched(case):
    network, weights, bound = case
    for move in (nearest, scaled):
        found = move(weights, network, 1.01 * bound)
        assert all(torch.equal(a, b) for a, b in zip(found.weights, weights, strict=True))
        assert found.distance == 0.0
        assert found.certificate.upper_bound <= 1.01 * bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_of_weights_is_signed(dtype):
    network = chain((6, 8, 5, 3), gain=1.5)
    weights = [torch.tensor(matrix).to(dtype) for matrix in matrices(network)]
    found = nearest(weights, network, 0.5)
    assert all(w.dtype == dtype for w in found.weights)
    assert found.certificate.upper_bound <= 0.5
    assert certify(with_weights(network, found.weights)).upper_bound > 0.4


@pytest.mark.parametrize("target", [1e-3, 1e-10, 1e-30, 1e-100, 1e-139])
def test_bounds_that_leave_next_to_nothing_give_finite_weights(target):
    network = chain((6, 8, 5, 3), gain=1.5)
    for dtype in (torch.float32, torch.float64):
        weights = [torch.tensor(matrix, dtype=dtype) for matrix in matrices(network)]
        for found in (nearest(weights, network, target), scaled(weights, network, target)):
            assert all(bool(w.isfinite().all()) for w in found.weights)
            assert found.certificate.upper_bound <= target


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf, 1e-200, 1e200, "10", None, True])
def test_bounds_that_make_no_sense_are_refused(target):
    network = chain((2, 3, 1))
    with pytest.raises(ArgumentError, match="max_lipschitz"):
        nearest([torch.tensor(matrix) for matrix in matrices(network)], network, target)


def test_the_square_of_the_bound_never_exceeds_it():
    rng = np.random.default_rng(0)
    for bound in np.exp(rng.uniform(-300, 300, size=200)):
        rho = squared(float(bound))
        assert rho == pytest.approx(bound**2, rel=1e-15)
        single = Network.from_weights([[[0.5 * bound]]])
        assert prove(single, Multipliers(rho, ())) <= bound


def test_the_multipliers_fit_the_scaled_weights(case):
    network, weights, bound = case
    solved = solve_multipliers(network, 0.3 * bound)
    assert solved.bound >= bound * (1 - 1e-6)
    found = scaled(weights, network, 0.3 * bound)
    factors = [
        float((a.double() * b).sum() / b.double().square().sum()) for a, b in zip(found.weights, weights, strict=True)
    ]
    assert factors == pytest.approx([solved.scale] * len(weights), rel=1e-5)


@pytest.mark.parametrize("name", ["relu", "swish-like", "groups"])
def test_the_gradient_of_the_distance_is_that_of_finite_differences(name):
    network = CHAINS[name]()
    weights = [2 * torch.tensor(matrix) for matrix in matrices(network)]
    proof = some_multipliers(network)
    groups = [np.unique(np.asarray(layer.group), return_index=True)[1] for layer in network.layers]
    q = np.concatenate([np.log(v[first]) for v, first in zip(proof.values, groups, strict=True)])

    def value(q, gradient=False):
        descent = MultiplierDescent(weights, proof.rho, network, rtol=1e-8)
        descent._unit = 1.0
        return descent(q)[int(gradient)]

    assert value(q, True) == pytest.approx(approx_fprime(q, value, 1e-5), rel=2e-2, abs=1e-3 * value(q))


def test_a_later_call_starts_where_an_earlier_one_ended():
    network = chain((20, 15, 10, 4), gain=1.5)
    weights = [torch.tensor(matrix) for matrix in matrices(network)]
    first = nearest(weights, network, 1.0, rtol=1e-4)
    moved = [1.001 * w for w in weights]
    again = nearest(moved, network, 1.0, start=first.multipliers, state=first.state, max_rounds=1)
    fresh = nearest(moved, network, 1.0, rtol=1e-4)
    assert again.rounds == 1
    assert again.distance == pytest.approx(fresh.distance, rel=5e-3)


@pytest.mark.parametrize("norms", [(3.0,), (3.0, 1.0), (1.0, 1.0), (5.0, 1.0, 2.0)])
@pytest.mark.parametrize("reduction", [1.0, 0.9, 0.5, 0.1, 1e-3])
def test_no_other_factors_of_the_layers_are_cheaper(norms, reduction):
    def cost(factors):
        return sum(((1 - t) * norm) ** 2 for t, norm in zip(factors, norms, strict=True))

    found = shrinkages(norms, reduction)
    assert math.prod(found) == pytest.approx(reduction, rel=1e-9)
    rng = np.random.default_rng(0)
    for shares in rng.dirichlet(np.full(len(norms), 0.5), size=2000):
        assert cost(found) <= cost(reduction**shares) * (1 + 1e-9) + 1e-15
