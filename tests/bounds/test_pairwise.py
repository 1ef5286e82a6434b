"""pairwise_bounds: above every sampled slope, proved, never above the routes it is meant to beat."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.bounds.pairwise import difference, pairs, shared_proposals
from lightning_lipschitz.certificate import prove
from lightning_lipschitz.errors import ArgumentError, CertificateError
from lightning_lipschitz.graph.network import Network
from tests.helpers import chain, grouped, per_unit_slopes, residual, unread_units

NETWORKS = {
    "one layer": lambda: chain((4, 3)),
    "chain": lambda: chain((5, 8, 6, 4)),
    "more outputs than units": lambda: chain((3, 4, 7)),
    "slopes [-0.2, 1]": lambda: chain((4, 6, 5, 3), slopes=(-0.2, 1.0)),
    "residual": lambda: residual((3, 4, 4, 3)),
    "slopes a unit": per_unit_slopes,
    "groups": grouped,
    "unread units": unread_units,
}


def entries(bounds):
    return {pair: bounds.matrix[pair] for pair in bounds.proofs}


@pytest.mark.parametrize("refine", [False, True], ids=["shared", "refined"])
@pytest.mark.parametrize("name", NETWORKS)
def test_proved_and_never_worse(name, refine):
    network = NETWORKS[name]()
    if network.output.size < 2:
        pytest.skip("one output")
    bounds = ll.pairwise_bounds(network, refine=refine)
    assert np.array_equal(bounds.matrix, bounds.matrix.T)
    assert not np.any(np.diagonal(bounds.matrix))
    assert np.array_equal(bounds.verify(network), bounds.matrix)
    for pair, bound in entries(bounds).items():
        assert bound <= math.nextafter(math.sqrt(2) * bounds.whole.upper_bound, math.inf) * (1 + 1e-15)
        for method in ("norm-product", "closed-form"):
            own = ll.certify(difference(network, pair), method=method, throw=False).upper_bound
            assert bound <= own * (1 + 1e-6)


def test_refined_is_lipsdp_of_the_difference():
    network = chain((5, 8, 6, 4))
    bounds = ll.pairwise_bounds(network, rtol=1e-5)
    for pair, bound in entries(bounds).items():
        assert bound == pytest.approx(ll.certify(difference(network, pair)).upper_bound, rel=1e-4)
    assert bounds.refined == 6


def test_shared_multipliers_gain_something():
    """The ray through the multipliers of the whole already beats sqrt(2) L for most pairs."""
    network = chain((20, 30, 20, 8))
    whole = ll.certify(network)
    proposals = shared_proposals(network, whole.proof)
    assert set(proposals) == set(pairs(8))
    proved = [prove(difference(network, pair), point.proof) for pair, point in proposals.items()]
    assert np.mean([bound / (math.sqrt(2) * whole.upper_bound) for bound in proved if bound]) < 0.97


def test_above_sampled_slopes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    x = torch.randn(512, 6, dtype=torch.float64)
    bounds = ll.pairwise_bounds(model, x[:2])
    for i, j in bounds.proofs:
        x.requires_grad_()
        out = model(x)
        (gradient,) = torch.autograd.grad((out[:, i] - out[:, j]).sum(), x)
        steepest = float(gradient.norm(dim=1).max())
        assert 0.3 * bounds.matrix[i, j] < steepest <= bounds.matrix[i, j]
    with pytest.raises(CertificateError, match="another network"):
        bounds.verify(nn.Sequential(nn.Linear(6, 4)).double(), x[:2].detach())


def test_rounding_of_rows_is_accounted_for():
    """1 - 2^-60 is not a float64: the bound has to be that of the real difference."""
    network = Network.from_weights([[[1.0], [-(2.0**-60)]]])
    assert ll.pairwise_bounds(network).matrix[0, 1] > 1.0
    assert ll.pairwise_bounds(Network.from_weights([[[1.0], [1.0]]])).matrix[0, 1] == 0.0


def test_equal_outputs_and_pickling():
    network = Network.from_weights([np.eye(3), np.ones((2, 3))])
    bounds = pickle.loads(pickle.dumps(ll.pairwise_bounds(network)))
    assert bounds.matrix[0, 1] == 0.0
    assert not bounds.matrix.flags.writeable
    bounds.verify(network)


def test_damage_is_found():
    network = chain((5, 8, 6, 4))
    bounds = ll.pairwise_bounds(network)
    matrix = bounds.matrix * 0.99
    bounds.__dict__["matrix"] = matrix
    with pytest.raises(CertificateError, match="does not hold"):
        bounds.verify(network)


def test_time_limit():
    bounds = ll.pairwise_bounds(chain((30, 40, 40, 10)), time_limit=1e-2)
    assert bounds.refined < 45
    bounds.verify(chain((30, 40, 40, 10)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"method": "lipsdp-network"}, "method"),
        ({"solver": "mosek"}, "solver"),
        ({"rtol": 0.0}, "rtol"),
        ({"time_limit": -1.0}, "time_limit"),
    ],
)
def test_bad_arguments(options, name):
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        ll.pairwise_bounds(chain((4, 3)), **options)


def test_one_output():
    with pytest.raises(ArgumentError, match="two or more"):
        ll.pairwise_bounds(chain((4, 3, 1)))
