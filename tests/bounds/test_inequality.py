"""The log-determinant and its derivatives are those of the dense matrix; the multipliers of a sweep are inside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lipschitz.bounds import interior_point
from lightning_lipschitz.bounds.inequality import Inequality, Structure, blocks_of, sweep
from lightning_lipschitz.bounds.lipsdp import reduce
from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.graph.network import Network
from tests.helpers import NETWORKS, chain, residual
from tests.training.convex import CHAINS, dense_lmi, some_multipliers

TABLE = {name: make for name, make in (NETWORKS | CHAINS).items() if name not in ("tiny", "huge")}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.fixture(params=TABLE)
def case(request):
    """A network whose weights are well inside for multipliers of no merit."""
    network, proof = TABLE[request.param](), some_multipliers(TABLE[request.param]())
    while np.linalg.eigvalsh(dense_lmi(network, proof))[0] < 0.02 * min(1.0, proof.rho):
        network = scaled(network, 0.9)
    return network, proof


def scaled(network: Network, factor: float) -> Network:
    return network.with_matrices({key: factor * block.numpy() for key, block in blocks_of(network).items()})


def barrier(structure, blocks, logs, rho):
    return Inequality(structure, logs.exp(), rho).at(blocks).barrier


def test_the_value_is_that_of_the_dense_matrix(case):
    network, proof = case
    structure = Structure.of(network)
    point = Inequality(structure, structure.shared(proof.values), proof.rho).at(blocks_of(network))
    sign, expected = np.linalg.slogdet(dense_lmi(network, proof))
    scale = network.input_size * math.log(proof.rho) + sum(np.log(2 * values).sum() for values in proof.values)
    assert sign > 0
    assert -point.barrier == pytest.approx(expected - scale, rel=1e-9, abs=1e-9)


def test_the_derivatives_are_those_of_finite_differences(case):
    network, proof = case
    structure, blocks, step = Structure.of(network), blocks_of(network), 1e-5
    logs, log_rho = structure.shared(proof.values).log(), math.log(proof.rho)
    point = Inequality(structure, logs.exp(), proof.rho).at(blocks)
    gradient, (of_logs, of_log_rho) = point.gradient(), point.slopes_of_logarithms()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        move = {key: torch.randn(b.shape, generator=generator, dtype=b.dtype) for key, b in blocks.items()}
        ends = [{key: b + t * move[key] for key, b in blocks.items()} for t in (step, -step)]
        up, down = (barrier(structure, there, logs, proof.rho) for there in ends)
        slope = sum(float((gradient[key] * move[key]).sum()) for key in blocks)
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-6)
    for k in range(len(logs)):
        move = torch.zeros_like(logs)
        move[k] = step
        up, down = (barrier(structure, blocks, there, proof.rho) for there in (logs + move, logs - move))
        assert float(of_logs[k]) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-6)
    up, down = (barrier(structure, blocks, logs, math.exp(log_rho + t)) for t in (step, -step))
    assert of_log_rho == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-6)


def test_newton_steps_stay_inside_and_go_to_the_centre(case):
    network, proof = case
    structure, blocks = Structure.of(network), blocks_of(network)
    if not structure.count:
        return
    lam = structure.shared(proof.values)
    first = Inequality(structure, lam, proof.rho).at(blocks)
    for _ in range(60):
        here = Inequality(structure, lam, proof.rho)
        before, lam = here.at(blocks).barrier, here.centred(blocks)
        assert Inequality(structure, lam, proof.rho).at(blocks).barrier <= before + 1e-9
    last = Inequality(structure, lam, proof.rho).at(blocks)
    assert last.slopes_of_logarithms()[0].abs().max() < 0.7 * first.slopes_of_logarithms()[0].abs().max()


def test_inside_is_where_the_dense_matrix_is_positive_definite(case):
    network, proof = case
    structure, generator, seen = Structure.of(network), torch.Generator().manual_seed(0), set()
    inequality = Inequality(structure, structure.shared(proof.values), proof.rho)
    for size in (0.0, 0.1, 0.3, 1.0, 3.0, 30.0):
        blocks = {
            key: b + size * torch.randn(b.shape, generator=generator, dtype=b.dtype)
            for key, b in blocks_of(network).items()
        }
        there = network.with_matrices({key: b.numpy() for key, b in blocks.items()})
        inside = bool(np.linalg.eigvalsh(dense_lmi(there, proof))[0] > 0)
        assert (inequality.at(blocks) is not None) == inside
        seen.add(inside)
    assert seen == {True, False}


def test_weights_that_are_not_finite_are_not_inside():
    network = chain((3, 4, 2))
    structure, blocks = Structure.of(network), blocks_of(network)
    blocks[1, 0][0, 0] = math.nan
    assert Inequality(structure, torch.ones(4, dtype=torch.float64), 1.0).at(blocks) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_value_is_the_same(case):
    network, proof = case
    values = []
    for device in ("cpu", "cuda"):
        structure = Structure.of(network, device)
        inequality = Inequality(structure, structure.shared(proof.values), proof.rho)
        values.append(inequality.at(blocks_of(network, device)).barrier)
    assert values[1] == pytest.approx(values[0], rel=1e-9)


# The sweep


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 5), min_size=3, max_size=5),
    st.sampled_from([(0.0, 1.0), (0.1, 1.0), (-0.13, 1.13), (-1.0, 1.0), (-1.0, 0.0)]),
)
def test_every_value_of_the_free_parameters_proves_a_bound(seed, widths, slopes):
    network = reduce(residual(tuple(widths), seed, 1.0, slopes)).network
    structure, generator = Structure.of(network), torch.Generator().manual_seed(seed)
    logs = [torch.randn(n, generator=generator, dtype=torch.float64) for n in network.sizes[1:]]
    shares = [torch.rand((), generator=generator, dtype=torch.float64).clamp(0.01, 0.99) for _ in logs]
    swept = sweep(structure, blocks_of(network), logs, shares)
    rho = float(torch.linalg.eigvalsh(swept.covariance)[-1]) * (1 + 1e-6)
    assert prove(network, Multipliers(rho, tuple(rho * lam.numpy() for lam in swept.multipliers))) is not None


@pytest.mark.parametrize("name", ["residual", "leaky", "relu", "symmetric"])
def test_the_sweep_is_differentiable(name):
    network = residual() if name == "residual" else (NETWORKS | CHAINS)[name]()
    structure, blocks = Structure.of(network), blocks_of(network)
    sizes = network.sizes[1:]
    logs = [torch.linspace(-0.3, 0.3, n, dtype=torch.float64) for n in sizes]
    shares = [torch.tensor(0.4, dtype=torch.float64)] * len(sizes)
    inputs = [t.requires_grad_() for t in (*blocks.values(), *logs)]

    def rho(*inputs):
        there = dict(zip(blocks, inputs, strict=False))
        return torch.linalg.eigvalsh(sweep(structure, there, inputs[len(blocks) :], shares).covariance)[-1]

    assert torch.autograd.gradcheck(rho, inputs)


def test_free_parameters_come_to_the_optimum_of_lipsdp():
    """Descent on rho alone, from the closed form: an unconstrained problem with the optimum of the program."""
    network = reduce(chain((4, 6, 5, 2), gain=1.5)).network
    structure, blocks = Structure.of(network), blocks_of(network)
    logs = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in network.sizes[1:]]
    shares = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in logs]
    optimizer = torch.optim.Adam([*logs, *shares], lr=0.03)
    for _ in range(400):
        rho = torch.linalg.eigvalsh(sweep(structure, blocks, logs, [s.sigmoid() for s in shares]).covariance)[-1]
        optimizer.zero_grad()
        rho.backward()
        optimizer.step()
    assert rho.item() == pytest.approx(interior_point.propose(network).multipliers.rho, rel=5e-3)
