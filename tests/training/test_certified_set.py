"""The certified set is the one of the matrix inequality, and the projection is the nearest point of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.training.multipliers import narrowed, widened
from lightning_lipschitz.training.spectral_ball import CertifiedSet, regularized
from lightning_lipschitz.weights.maps import with_weights
from tests.helpers import chain, residual
from tests.training.convex import CHAINS, dense_lmi, matrices, nearest_by_conic_solver, some_multipliers

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.fixture(params=CHAINS)
def case(request):
    """A network, and multipliers for which its weights are twice too large."""
    network = CHAINS[request.param]()
    ball = CertifiedSet.of(network, some_multipliers(network))
    return network, ball, [torch.tensor(2.0 / ball.norm(tensors(network)) * w) for w in matrices(network)]


def tensors(network):
    return [torch.tensor(matrix) for matrix in matrices(network)]


def squared_distance(a, b):
    return sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_the_norm_decides_as_the_matrix_inequality_does(case, factor):
    network, ball, weights = case
    there = with_weights(network, [factor / 2 * w for w in weights])
    least = np.linalg.eigvalsh(dense_lmi(there, ball.multipliers))[0]
    assert (least > 0) == (factor < 1)


def test_inside_nothing_moves(case):
    _, ball, weights = case
    inside = [0.49 * w for w in weights]
    found = ball.project(inside)
    assert found.distance == 0.0
    assert found.iterations == 0
    assert all(torch.equal(a, b) for a, b in zip(found.weights, inside, strict=True))


def test_at_the_boundary_little_moves(case):
    _, ball, weights = case
    for excess in (1e-12, 1e-9, 1e-6):
        outside = [0.5 * (1 + excess) * w for w in weights]
        found = ball.project(outside)
        assert found.distance <= 1.01 * (excess + 1e-15) * math.sqrt(
            squared_distance(outside, [0 * w for w in outside])
        )
        assert ball.norm(found.weights) <= 1 + 1e-13


@pytest.mark.parametrize("device", DEVICES)
def test_no_point_of_the_set_is_nearer(case, device):
    """The obtuse angle that characterises a projection on a convex set, tested with random members."""
    _, ball, weights = case
    weights = [w.to(device) for w in weights]
    found = ball.project(weights, rtol=1e-9, max_iterations=20_000)
    assert found.converged
    assert ball.norm(found.weights) <= 1 + 1e-13
    generator = torch.Generator().manual_seed(0)
    for step in (1e-3, 1e-1, 10.0):
        for _ in range(20):
            other = [
                w + step * torch.randn(w.shape, generator=generator, dtype=w.dtype).to(device) for w in found.weights
            ]
            other = [w / max(1.0, ball.norm(other)) for w in other]
            angle = sum(float(((v - w) * (o - w)).sum()) for v, w, o in zip(weights, found.weights, other, strict=True))
            assert angle <= 1e-4 * found.distance * math.sqrt(squared_distance(other, found.weights))


def test_the_distance_is_the_conic_solvers(case):
    network, ball, weights = case
    problem, _, _ = nearest_by_conic_solver(with_weights(network, weights), ball.multipliers)
    found = ball.project(weights, rtol=1e-7, max_iterations=20_000)
    assert 0.5 * found.distance**2 == pytest.approx(problem.value, rel=1e-5)
    assert found.gap <= 1e-7 * 0.5 * found.distance**2


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_scales(case, scale):
    """All weights times s, with the multipliers that go with it, move s times as far."""
    _, ball, weights = case
    count = len(weights)
    values = [v * scale ** (2 * (count - k)) for k, v in enumerate(ball.multipliers.values, start=1)]
    other = CertifiedSet(Multipliers(ball.multipliers.rho * scale ** (2 * count), tuple(values)), ball._slopes)
    here, there = ball.project(weights, rtol=1e-6), other.project([scale * w for w in weights], rtol=1e-6)
    assert there.converged
    assert there.distance == pytest.approx(scale * here.distance, rel=1e-5)


def test_a_warm_start_changes_the_work_and_not_the_answer():
    network = chain((30, 20, 20, 5), gain=1.5)
    ball = CertifiedSet.of(network, some_multipliers(network))
    weights = [2.0 / ball.norm(tensors(network)) * w for w in tensors(network)]
    first = ball.project(weights, rtol=1e-4)
    assert ball.project(weights, first.state, rtol=1e-4).iterations == 1
    values = tuple(v * (1 + 1e-3 * np.sin(np.arange(len(v)))) for v in ball.multipliers.values)
    near = CertifiedSet(Multipliers(ball.multipliers.rho * 1.001, values))
    warm, cold = (near.project([1.0001 * w for w in weights], state, rtol=1e-4) for state in (first.state, None))
    assert warm.distance == pytest.approx(cold.distance, rel=1e-4)
    assert warm.iterations <= 0.5 * cold.iterations


def test_whatever_the_iterations_the_point_is_inside(case):
    _, ball, weights = case
    for iterations in (1, 2, 3):
        found = ball.project(weights, rtol=1e-12, max_iterations=iterations)
        assert ball.norm(found.weights) <= 1 + 1e-13


@pytest.mark.parametrize("mu", [1e-3, 1e-1, 10.0])
def test_a_free_bound_is_weighed_against_the_distance(case, mu):
    network, ball, weights = case
    found = regularized(ball, weights, weight=mu, penalty=1.0, rtol=1e-4)
    problem, _, _ = nearest_by_conic_solver(with_weights(network, weights), ball.multipliers, mu=mu)
    assert found.objective == pytest.approx(problem.value, rel=1e-4)
    assert ball.with_rho(found.rho).norm(found.weights) <= 1 + 1e-13


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.9), st.booleans())
def test_multipliers_of_the_widened_network_prove_the_bound_of_the_network(seed, alpha, mirrored):
    network = chain((3, 4, 3, 2), seed=seed, slopes=(-1.0, -alpha) if mirrored else (alpha, 1.0))
    wide = widened(network)
    ball = CertifiedSet.of(wide, some_multipliers(wide, seed))
    factor = (1 - 1e-9) / ball.norm(tensors(network))
    smaller = with_weights(network, [factor * w for w in tensors(network)])
    assert prove(smaller, narrowed(network, ball.multipliers)) == pytest.approx(
        math.sqrt(ball.multipliers.rho), rel=1e-12
    )


def test_a_set_that_is_not_convex_is_refused():
    network = chain((3, 4, 2), slopes=(0.1, 1.0))
    with pytest.raises(ArgumentError, match="slopes of layer 1"):
        CertifiedSet.of(network, some_multipliers(network))
    CertifiedSet.of(widened(network), some_multipliers(network))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_multipliers_that_are_not_positive_are_refused(value):
    network = chain((3, 4, 2))
    proof = some_multipliers(network)
    with pytest.raises(ArgumentError, match="multipliers of layer 1"):
        CertifiedSet.of(network, replace(proof, values=(np.array([1.0, value, 1.0, 1.0]),)))
    with pytest.raises(ArgumentError, match="rho"):
        CertifiedSet.of(network, replace(proof, rho=value))


def test_other_shapes_and_graphs_are_refused():
    network = chain((3, 4, 2))
    with pytest.raises(ShapeError, match="list of weights"):
        CertifiedSet.of(network, some_multipliers(network)).project([torch.ones(4, 3), torch.ones(2, 5)])
    with pytest.raises(ArgumentError, match="chain"):
        CertifiedSet.of(residual(), some_multipliers(residual()))
