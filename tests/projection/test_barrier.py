"""The barrier is the log-determinant of the dense matrix, differentiable, and its helpers stay inside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.projection.barrier import (
    between,
    largest_feasible_step,
    log_det,
    multipliers,
    proved,
    start_inside,
    strictly_inside,
)
from lightning_lipschitz.projection.certified_set import slopes_of
from lightning_lipschitz.projection.multipliers import with_weights
from tests.helpers import NETWORKS
from tests.projection.convex import CHAINS, dense_lmi, matrices, some_multipliers

TABLE = CHAINS | {name: NETWORKS[name] for name in ("leaky", "per-unit slopes")}


@pytest.fixture(params=TABLE)
def case(request):
    """Weights and multipliers well inside: lambda of no merit, weights scaled until M > 0."""
    network = TABLE[request.param]()
    proof = some_multipliers(network)
    bound = math.sqrt(proof.rho)
    weights = [torch.tensor(matrix) for matrix in matrices(network)]
    q = [torch.tensor(np.log(values)) for values in proof.values]
    while np.linalg.eigvalsh(dense_lmi(with_weights(network, weights), Multipliers(bound**2, proof.values)))[0] < 0.02:
        weights = [0.9 * w for w in weights]
    return network, weights, q, bound


def dense(network, weights, q, bound):
    return dense_lmi(with_weights(network, weights), Multipliers(bound**2, tuple(x.exp().numpy() for x in q)))


def test_the_value_is_that_of_the_dense_matrix(case):
    network, weights, q, bound = case
    sign, expected = np.linalg.slogdet(dense(network, weights, q, bound))
    assert sign > 0
    assert float(log_det(weights, q, bound, slopes_of(network))) == pytest.approx(expected, rel=1e-10, abs=1e-9)


def test_the_gradient_is_that_of_finite_differences(case):
    network, weights, q, bound = case
    inputs = [x.clone().requires_grad_() for x in (*weights, *q)]

    def value(*inputs):
        return log_det(inputs[: len(weights)], inputs[len(weights) :], bound, slopes_of(network))

    assert torch.autograd.gradcheck(value, inputs)


def test_inside_is_where_the_dense_matrix_is_positive_definite(case):
    network, weights, q, bound = case
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for size in (0.0, 0.1, 0.3, 1.0, 3.0):
        moved = [w + size * torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
        inside = bool(np.linalg.eigvalsh(dense(network, moved, q, bound))[0] > 0)
        assert strictly_inside(moved, q, bound, slopes_of(network)) == inside
        assert math.isfinite(log_det(moved, q, bound, slopes_of(network))) == inside
        seen.add(inside)
    assert seen == {True, False}


def test_a_step_is_halved_until_it_stays_inside(case):
    network, weights, q, bound = case
    far = [w + 10 for w in weights]
    t = largest_feasible_step((weights, q), (far, q), bound, slopes_of(network))
    assert 0 < t < 1
    assert strictly_inside(between(weights, far, t), q, bound, slopes_of(network))
    assert not strictly_inside(between(weights, far, 2 * t), q, bound, slopes_of(network))
    near = [w.clone() for w in weights]
    assert largest_feasible_step((weights, q), (near, q), bound, slopes_of(network)) == 1.0
    assert between(weights, near, 1.0)[0] is near[0]


def test_from_outside_no_step_is_feasible():
    q = [torch.zeros(1, dtype=torch.float64)]
    outside = [torch.full((1, 1), 9.0), torch.ones(1, 1)]
    assert largest_feasible_step((outside, q), (outside, q), 1.0) == 0.0


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("share", [0.3, 3.0])
def test_training_can_start_from_any_weights(case, project, share):
    network, weights, _, _ = case
    weights = [w.float() for w in weights]
    norm = (
        float(np.linalg.norm(np.linalg.multi_dot([w.numpy() for w in weights[::-1]]), 2)) if len(weights) > 1 else 1.0
    )
    bound = share * norm
    start = start_inside(weights, network, bound, project=project)
    assert all(w.dtype == torch.float32 for w in start.weights)
    assert proved(start.weights, start.log_multipliers, network, bound) <= bound
    assert strictly_inside(start.weights, start.log_multipliers, bound, slopes_of(network))
    assert math.isfinite(log_det(start.weights, start.log_multipliers, bound, slopes_of(network)))
    if start.moved == 0.0:
        assert all(torch.equal(a, b) for a, b in zip(start.weights, weights, strict=True))


def test_descent_of_the_barrier_stays_certified_in_float32():
    """A loss that pulls out of the set, Adam, halved steps: every iterate is signed by the kernel."""
    network = CHAINS["relu"]()
    torch.manual_seed(0)
    start = start_inside([torch.tensor(m, dtype=torch.float32) for m in matrices(network)], network, 1.0)
    weights = [torch.nn.Parameter(w) for w in start.weights]
    q = [torch.nn.Parameter(x) for x in start.log_multipliers]
    optimizer = torch.optim.Adam([*weights, *q], lr=0.02)
    x, y = torch.randn(32, 4), 5 * torch.randn(32, 2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (weights[2] @ (weights[1] @ (weights[0] @ x.T).relu()).relu() - y.T).square().mean()
        (loss - 1e-2 * log_det(weights, q, 1.0)).backward()
        before = [w.detach().clone() for w in weights], [x.detach().clone() for x in q]
        optimizer.step()
        after = [w.detach().clone() for w in weights], [x.detach().clone() for x in q]
        t = largest_feasible_step(before, after, 1.0 - 1e-6)
        with torch.no_grad():
            for target, a, b in zip([*weights, *q], [*before[0], *before[1]], [*after[0], *after[1]], strict=True):
                target.copy_(between([a], [b], t)[0])
        losses.append(loss.item())
        assert proved(weights, q, network, 1.0) <= 1.0
    assert losses[-1] < losses[0]


def test_multipliers_are_those_of_the_kernel():
    proof = multipliers([torch.zeros(2), torch.ones(1)], 3.0)
    assert math.sqrt(proof.rho) <= 3.0
    assert [v.tolist() for v in proof.values] == [[1.0, 1.0], [math.e]]


def test_a_fraction_outside_of_zero_and_one_is_refused():
    network = CHAINS["relu"]()
    with pytest.raises(ArgumentError, match="fraction"):
        start_inside([torch.tensor(m) for m in matrices(network)], network, 1.0, fraction=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_value_is_the_same(case):
    network, weights, q, bound = case
    there = log_det([w.cuda() for w in weights], [x.cuda() for x in q], bound, slopes_of(network))
    assert there.is_cuda
    assert float(there) == pytest.approx(float(log_det(weights, q, bound, slopes_of(network))), rel=1e-9)
