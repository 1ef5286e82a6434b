"""The sweeps: their rho is the least for their multipliers, on any graph, and never above the product of the norms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_lipschitz as ll
from lightning_lipschitz.bounds import closed_form
from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term
from tests.helpers import NETWORKS, residual
from tests.models import ZOO
from tests.training.convex import dense_lmi

SWEEPS = {"forward": closed_form.forward, "backward": closed_form.backward}


def least_eigenvalue(network, point, share, together):
    """Of M at a multiple of rho (together with the multipliers, or alone), in units of M's diagonal."""
    values = tuple(share * value for value in point.values) if together else point.values
    M = dense_lmi(network, Multipliers(share * point.rho, values))
    scale = 1 / np.sqrt(np.maximum(np.diagonal(M), 1e-300))
    return float(np.linalg.eigvalsh(scale[:, None] * M * scale)[0])


def assert_least(network, sweep):
    """The forward sweep scales rho to one, and finds the least rho for the ratios of its multipliers to it."""
    point, together = sweep(network), sweep is closed_form.forward
    assert least_eigenvalue(network, point, 1 + 1e-6, together) > -1e-12
    assert least_eigenvalue(network, point, 1 - 1e-3, together) < 0
    return point


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("tiny", "huge", "unread units")])
def test_rho_is_the_least_for_its_multipliers(name, sweep):
    network = NETWORKS[name]()
    if network.layers:
        assert_least(network, SWEEPS[sweep])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 6), min_size=3, max_size=6),
    st.sampled_from([(0.0, 1.0), (0.1, 1.0), (-0.13, 1.13), (-1.0, 1.0), (-1.0, 0.0)]),
    st.sampled_from([0.3, 1.0, 3.0]),
)
def test_drawn_graphs(seed, widths, slopes, gain):
    network = residual(tuple(widths), seed, gain, slopes)
    for sweep in SWEEPS.values():
        point = assert_least(network, sweep)
        raised = Multipliers(point.rho * (1 + 1e-6), point.values)
        assert prove(network, raised) is not None


def with_absolute_value():
    """x + |x|, of constant 2."""
    layer = Layer(Affine((Term(0, np.eye(1)),), np.zeros(1)), np.full(1, -1.0), np.ones(1))
    return Network(1, (layer,), Affine((Term(0, np.eye(1)), Term(1, np.eye(1))), np.zeros(1)))


def test_what_is_read_twice_leaves_room_for_both():
    assert math.sqrt(closed_form.forward(with_absolute_value()).rho) == pytest.approx(2.0, rel=1e-6)


RESIDUAL = ["ResNet block", "ResNet-18 body", "residual MLP", "MaxMin network"]


@pytest.mark.parametrize("name", [name for name, made in ZOO.items() if isinstance(made, tuple)])
def test_on_the_zoo_it_is_never_looser_than_the_product(name):
    make, shape = ZOO[name]
    torch.manual_seed(0)
    network = Extractor(make(), torch.zeros(2, *shape)).network()
    if sum(network.sizes) > 1200:
        pytest.skip("takes long")
    closed, product = (ll.certify(network, method=method).upper_bound for method in ("closed-form", "norm-product"))
    assert closed <= product
    if name in RESIDUAL:
        assert closed < 0.8 * product
        points = {name: sweep(network) for name, sweep in SWEEPS.items()}
        assert points["forward"].rho < 0.9 * points["backward"].rho
