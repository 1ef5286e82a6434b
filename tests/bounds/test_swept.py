"""Swept multipliers: proved at their value, above LipSDP-Neuron and soon near it, best for what they are aimed at."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_lipschitz as ll
from lightning_lipschitz.bounds import closed_form, swept
from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.bounds.inequality import Structure, WarmEigenvalues, blocks_of
from lightning_lipschitz.bounds.pairwise import difference, pairs, shared_proposals
from lightning_lipschitz.certificate import Status, prove
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network
from tests.helpers import NETWORKS, chain, residual

WITH_LAYERS = [name for name, make in NETWORKS.items() if make().layers]


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_the_kernel_proves_what_was_found_and_no_less_than_lipsdp(name):
    network = NETWORKS[name]()
    found = swept.propose(network)
    bound = math.sqrt(found.multipliers.rho)
    assert prove(network, found.proof) <= bound * (1 + 1e-7)
    best = ll.certify(network, method="lipsdp-neuron", rtol=1e-8).upper_bound
    assert bound >= best * (1 - 1e-6)
    assert bound <= 1.015 * best


@pytest.mark.parametrize("name", WITH_LAYERS)
def test_certify_is_never_above_the_closed_form(name):
    network = NETWORKS[name]()
    found = ll.certify(network, method="sweep")
    assert found.certified
    assert found.upper_bound <= ll.certify(network, method="closed-form").upper_bound * (1 + 1e-12)
    assert ll.verify(found, network) == found.upper_bound


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["chain", "deep", "leaky", "residual", "swish-like"]), st.integers(0, 1000))
def test_every_point_is_proved_at_its_value(name, seed):
    """Whatever theta and t are, also with eigenvalues that lag behind."""
    network, generator = NETWORKS[name](), torch.Generator().manual_seed(seed)
    for largest in (WarmEigenvalues(), None):
        made = swept.SweptMultipliers(Structure.of(network), **({} if largest is None else {"largest": largest}))
        for _ in range(3):
            with torch.no_grad():
                for parameter in made.parameters:
                    parameter.copy_(2.0 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
                point = made.at(blocks_of(network))
                rho = float(torch.linalg.eigvalsh(point.covariance)[-1]) * (1 + 1e-7)
            proof = ll.certificate.Multipliers(rho, tuple(rho * lam.numpy() for lam in point.multipliers))
            assert prove(network, proof) <= math.sqrt(rho) * (1 + 1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_does_not_ask_whether_gradients_are_wanted(mode):
    network = chain((3, 5, 4, 2))
    with mode():
        found = ll.certify(network, method="sweep").upper_bound
    assert found == ll.certify(network, method="sweep").upper_bound


def test_where_nothing_depends_on_the_input_there_is_a_typed_error():
    network = Network.from_weights([np.zeros((3, 2)), np.ones((1, 3))])
    with pytest.raises(SolverError, match="does not depend on the input"):
        swept.propose(network)
    assert ll.certify(network, method="sweep", throw=False).upper_bound == 0.0


def test_a_time_limit_ends_it_with_what_it_has():
    network = chain((40, 60, 60, 5), gain=1.5)
    reads = iter(np.arange(0.0, 1e6, 0.01))
    found = swept.propose(network, Clock(1.0, now=lambda: float(next(reads))))
    assert found.status is Status.TIME_LIMIT
    start = closed_form.forward(network)
    assert math.sqrt(start.rho) * 0.5 < prove(network, found.proof) < math.sqrt(start.rho)


def test_pairs_gain_from_multipliers_made_for_them():
    network = residual((6, 10, 10, 5), gain=1.5)
    whole = swept.propose(network).multipliers
    made = swept.propose(network, objective=swept.mean_log_pairs).multipliers

    def mean_log(point):
        found = shared_proposals(network, point, (1.0,))
        proved = [prove(difference(network, pair), found[pair].proof) for pair in pairs(5)]
        return np.log(proved).mean()

    assert mean_log(made) < mean_log(whole) - 0.01


@pytest.mark.parametrize("outputs", [3, 12], ids=["few outputs", "more outputs than units"])
def test_pair_bounds_are_those_of_the_differences(outputs):
    network = chain((4, 6, 5, outputs))
    made = swept.SweptMultipliers(Structure.of(network))
    with torch.no_grad():
        point = made.at(blocks_of(network))
        K = swept.pair_bounds(point.covariance)
    for i, j in pairs(outputs)[:6]:
        rho = float(K[i, j]) ** 2 * (1 + 1e-8)
        proof = ll.certificate.Multipliers(rho, tuple(rho * lam.numpy() for lam in point.multipliers))
        assert prove(difference(network, (i, j)), proof) == pytest.approx(float(K[i, j]), rel=1e-6)


def test_outputs_that_are_alike_have_no_slope_and_do_no_harm():
    weights = [np.random.default_rng(0).normal(size=(5, 3)), np.ones((3, 5))]
    weights[1][2, 0] = 2.0
    blocks = {key: block.requires_grad_() for key, block in blocks_of(Network.from_weights(weights)).items()}
    made = swept.SweptMultipliers(Structure.of(Network.from_weights(weights)))
    K = swept.pair_bounds(made.at(blocks).covariance)
    assert K[0, 1] == 0.0
    assert K[0, 2] > 0.0
    K.sum().backward()
    assert all(block.grad.isfinite().all() for block in blocks.values())


def test_the_state_goes_on_where_it_was():
    network = chain((4, 6, 5, 3))
    blocks, one, other = blocks_of(network), *(swept.SweptMultipliers(Structure.of(network)) for _ in range(2))

    def moved(made, steps):
        for _ in range(steps):
            made.aim(swept.mean_log_pairs(made.at(blocks).covariance))
            made.step()
        return made.parameters[0].detach().clone()

    moved(one, 3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(moved(one, 3), moved(other, 3))


def test_a_loss_that_reads_the_multipliers_does_not_move_them():
    network = chain((4, 6, 5, 3))
    made = swept.SweptMultipliers(Structure.of(network))
    before = [each.detach().clone() for each in made.parameters]
    made.at(blocks_of(network)).covariance.sum().backward()
    made.step()
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters, strict=True))


def test_warm_eigenvalues_follow_a_matrix():
    generator, find = torch.Generator().manual_seed(0), WarmEigenvalues()
    matrix = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    matrix, scale = matrix @ matrix.T, torch.rand(20, generator=generator, dtype=torch.float64) + 0.5
    move = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    for _ in range(30):
        matrix = matrix + 0.01 * (move + move.T)
        exact = torch.linalg.eigvalsh(matrix * torch.outer(scale, scale))[-1]
        assert 0.95 * exact <= find(1, matrix, scale) <= 1.14 * exact
