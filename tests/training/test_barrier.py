"""Training inside the certified set: its start, its steps and its multipliers are signed by the kernel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.barrier import MARGIN, Interior, start_inside
from lightning_lipschitz.training.multipliers import narrowed, squared, widened
from lightning_lipschitz.weights import graph_weights
from lightning_lipschitz.weights.maps import chain_map, with_weights
from tests.helpers import NETWORKS
from tests.training.convex import CHAINS, matrices
from tests.training.graphs import build

TABLE = CHAINS | {name: NETWORKS[name] for name in ("leaky", "per-unit slopes")}


class Stored:
    """Weights of a chain without a model."""

    is_chain = True


def proved(weights, multipliers, network, bound):
    """The bound that the kernel signs for these weights as they are stored, or None."""
    values = tuple(lam.numpy() for lam in multipliers)
    proof = narrowed(network, Multipliers(squared(bound), values))
    return prove(with_weights(network, weights), proof, SIGNING_MARGIN)


@pytest.mark.parametrize("share", [0.3, 3.0])
@pytest.mark.parametrize("name", TABLE)
def test_training_can_start_from_any_weights(name, share):
    network = TABLE[name]()
    weights = [torch.tensor(m, dtype=torch.float32) for m in matrices(network)]
    norm = np.linalg.norm(np.linalg.multi_dot(matrices(network)[::-1]), 2) if len(weights) > 1 else 1.0
    bound, wide = share * float(norm), widened(network)
    start = start_inside(Stored, weights, wide, bound)
    multipliers = [q.exp() for q in start.log_multipliers]
    assert all(w.dtype == torch.float32 for w in start.weights)
    assert proved(start.weights, multipliers, network, bound) <= bound
    assert Interior(chain_map, multipliers, bound, wide).contains(start.weights)
    if start.moved == 0.0:
        assert all(torch.equal(a, b) for a, b in zip(start.weights, weights, strict=True))


def test_descent_of_the_barrier_stays_certified_in_float32():
    """A loss that pulls out of the set, Adam, halved steps: every iterate is signed by the kernel."""
    network = CHAINS["relu"]()
    torch.manual_seed(0)
    start = start_inside(Stored, [torch.tensor(m, dtype=torch.float32) for m in matrices(network)], network, 1.0)
    weights = [nn.Parameter(w) for w in start.weights]
    interior = Interior(chain_map, [q.exp() for q in start.log_multipliers], 1.0, network)
    optimizer = torch.optim.Adam(weights, lr=0.02)
    x, y, losses = torch.randn(32, 4), 5 * torch.randn(32, 2), []
    for k in range(30):
        optimizer.zero_grad()
        loss = (weights[2] @ (weights[1] @ (weights[0] @ x.T).relu()).relu() - y.T).square().mean()
        loss.backward()
        for weight, pull in zip(weights, interior.gradient(weights), strict=True):
            weight.grad.add_(pull, alpha=1e-2)
        before = [w.detach().clone() for w in weights]
        optimizer.step()
        if not interior.contains(weights):
            after = [w.detach().clone() for w in weights]
            pairs = list(zip(before, after, strict=True))
            step = interior.largest_step(lambda t, pairs=pairs: [torch.lerp(a, b, t) for a, b in pairs])
            with torch.no_grad():
                for weight, a, b in zip(weights, before, after, strict=True):
                    weight.copy_(torch.lerp(a, b, step))
        if k % 5 == 4:
            interior.centre(weights)
        losses.append(loss.item())
        assert interior.contains(weights)
        assert proved(weights, interior.multipliers, network, 1.0) <= 1.0
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["residual", "cnn", "weight norm", "softmax", "tied"])
def test_the_gradient_in_the_weights_of_a_graph_is_that_of_finite_differences(name):
    model, x = build(name)
    model = model.double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            pytest.skip("its running statistics are refused")
    stored = graph_weights(model, x.double())
    network = widened(stored.network())
    start = start_inside(stored, stored.read(), network, 5.0)
    interior = Interior(stored.map(network), [q.exp() for q in start.log_multipliers], 5.0, network)
    gradient, generator = interior.gradient(start.weights), torch.Generator().manual_seed(0)
    move = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in start.weights]
    step = 1e-6
    ends = [interior._at([w + t * m for w, m in zip(start.weights, move, strict=True)]) for t in (step, -step)]
    slope = (ends[0].point.barrier - ends[1].point.barrier) / (2 * step)
    assert sum(float((g * m).sum()) for g, m in zip(gradient, move, strict=True)) == pytest.approx(slope, rel=1e-5)


def test_multipliers_are_kept_to_the_bit():
    """What a checkpoint holds of them is what training goes on with."""
    network = CHAINS["groups"]()
    start = start_inside(Stored, [torch.tensor(m) for m in matrices(network)], widened(network), 1.0)
    given = [q.exp() for q in start.log_multipliers]
    first = Interior(chain_map, given, 1.0, widened(network))
    again = Interior(chain_map, first.multipliers, 1.0, widened(network))
    assert all(torch.equal(a, b) for a, b in zip(first.multipliers, again.multipliers, strict=True))


WIDTHS = [(3, 1, 2), (4, 3, 2), (5, 7, 4, 3), (9, 5, 6, 4, 2)]


def chain(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [0.4 * draw(after, before) / before**0.5 for before, after in pairwise(sizes)]
    return weights, [0.5 + torch.rand(n, generator=generator, dtype=torch.float64) for n in sizes[1:-1]]


def interior_of(weights, multipliers):
    network = Network.from_weights([w.numpy() for w in weights])
    return Interior(chain_map, multipliers, 3.0, network)


def value(weights, logs):
    """b, from the definition, for slopes [0, 1]: log det M(9, exp(logs)) - sum of logs."""
    *hidden, output = weights
    sizes = [hidden[0].shape[1], *map(len, hidden)]
    blocks = [[torch.zeros(n, m, dtype=torch.float64) for m in sizes] for n in sizes]
    blocks[0][0] = (3.0 * (1.0 - MARGIN)) ** 2 * torch.eye(sizes[0], dtype=torch.float64)
    for k, (w, q) in enumerate(zip(hidden, logs, strict=True), 1):
        blocks[k][k] = torch.diag(2.0 * q.exp())
        blocks[k][k - 1] = -q.exp()[:, None] * w
        blocks[k - 1][k] = blocks[k][k - 1].T
    blocks[-1][-1] = blocks[-1][-1] - output.T @ output
    M = torch.cat([torch.cat(row, 1) for row in blocks])
    return torch.logdet(M) - sum(q.sum() for q in logs)


@pytest.mark.parametrize("sizes", WIDTHS)
def test_gradient_by_hand_is_the_automatic_one(sizes):
    weights, multipliers = chain(sizes)
    interior, leaves = interior_of(weights, multipliers), [w.clone().requires_grad_() for w in weights]
    automatic = torch.autograd.grad(-value(leaves, [lam.log() for lam in multipliers]), leaves)
    for mine, theirs in zip(interior.gradient(weights), automatic, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", WIDTHS)
def test_centring_climbs_to_where_the_gradient_vanishes(sizes):
    weights, multipliers = chain(sizes)
    interior = interior_of(weights, multipliers)
    values = [value(weights, [lam.log() for lam in interior.multipliers]).item()]
    for _ in range(200):
        interior.centre(weights)
        values.append(value(weights, [lam.log() for lam in interior.multipliers]).item())
    assert all(b >= a - 1e-9 for a, b in pairwise(values))
    logs = [lam.log().requires_grad_() for lam in interior.multipliers]
    gradients = torch.autograd.grad(value(weights, logs), logs)
    assert max(g.abs().max().item() for g in gradients) < 1e-3


def test_a_unit_without_weights_does_not_run_away():
    weights, multipliers = chain((4, 3, 2))
    weights[0][1], weights[1][:, 1] = 1e-9, 1e-9
    interior = interior_of(weights, multipliers)
    for _ in range(100):
        interior.centre(weights)
    assert interior.multipliers[0].max() < 1e3


def test_outside_is_outside():
    weights, multipliers = chain((4, 3, 2))
    interior = interior_of(weights, multipliers)
    assert interior.contains(weights)
    assert not interior.contains([100 * w for w in weights])
    assert not interior.contains([w * float("nan") for w in weights])
    step = interior.largest_step(lambda t: [(1 + 20 * t) * w for w in weights])
    assert 0 < step < 0.5
    assert interior.contains([(1 + 20 * step) * w for w in weights])
    assert not interior.contains([(1 + 40 * step) * w for w in weights])
