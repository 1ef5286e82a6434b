"""Every certified bound is above every sampled quotient, on every network that can be drawn."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightning_lipschitz import certify
from lightning_lipschitz.graph.network import Layer
from tests.helpers import NETWORKS, chain, evaluate, grouped, per_unit_slopes, residual

METHODS = ("norm-product", "closed-form", "lipsdp-layer", "lipsdp-neuron", "auto")


def kinked(y: np.ndarray, layer: Layer) -> np.ndarray:
    """Slope beta above zero and alpha below: both ends of every interval are used."""
    return np.where(y > 0, layer.beta[:, None] * y, layer.alpha[:, None] * y)


def smooth(y: np.ndarray, layer: Layer) -> np.ndarray:
    """Slope running through the whole interval: mean + radius * cos."""
    mean, radius = (layer.beta + layer.alpha)[:, None] / 2, (layer.beta - layer.alpha)[:, None] / 2
    return mean * y + radius * np.sin(y)


def sorting(y: np.ndarray, layer: Layer) -> np.ndarray:
    """Sorts the members of every group (norm-bounded, not elementwise); elementwise units are kinked."""
    z = kinked(y, layer)
    for g in np.unique(layer.group):
        members = layer.group == g
        if members.sum() > 1:
            z[members] = layer.beta[members][:1, None] * np.sort(y[members], axis=0)
    return z


def steepest_sample(network, activation, seed, count=400):
    """The largest quotient over random pairs, far and near, at the scale where the units are busy.

    In extended precision: for near pairs beside a bias, float64 itself loses ten digits of the change, and a bound that
    is attained has no room for that.
    """
    rng = np.random.default_rng(seed)
    u = (rng.normal(size=(network.input_size, count)) * 10.0 ** rng.uniform(-2, 2, size=count)).astype(np.longdouble)
    v = u + rng.normal(size=u.shape) * np.abs(u).max(axis=0) * 10.0 ** rng.uniform(-3, 0.5, size=count)
    change = evaluate(network, u, activation) - evaluate(network, v, activation)
    return float(np.max(np.linalg.norm(change, axis=0) / np.linalg.norm(u - v, axis=0)))


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_stay_below_and_methods_keep_their_order(name):
    network = NETWORKS[name]()
    bound = {method: certify(network, method=method).upper_bound for method in METHODS}
    activations = [sorting] if name == "groups" else [kinked, smooth]
    sampled = max(steepest_sample(network, activation, seed) for activation in activations for seed in range(3))
    room = 1 + 2e-6
    assert sampled <= bound["lipsdp-neuron"] * (1 + 1e-10)
    assert bound["lipsdp-neuron"] <= bound["lipsdp-layer"] * room
    assert bound["lipsdp-layer"] <= min(bound["closed-form"], bound["norm-product"]) * room
    assert bound["auto"] <= bound["lipsdp-neuron"] * room


@st.composite
def networks(draw):
    seed = draw(st.integers(0, 10**6))
    gain = 10.0 ** draw(st.floats(-6, 6))
    slopes = draw(st.sampled_from([(0.0, 1.0), (0.1, 1.0), (0.0, 0.25), (-0.13, 1.13), (-1.0, 1.0), (0.5, 2.0)]))
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=7))
    kind = draw(st.sampled_from(["chain", "residual", "per-unit", "groups"]))
    if kind == "chain":
        return chain(widths, seed, gain, slopes)
    if kind == "residual":
        return residual(widths, seed, min(max(gain, 1e-3), 1e3), slopes)
    return per_unit_slopes(seed) if kind == "per-unit" else grouped(seed)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(chain([1, 1], 0, 1.0, (0.0, 1.0)), 1)  # the bound is the weight itself
@given(networks(), st.integers(0, 10**6))
def test_drawn_networks_are_sound(network, seed):
    grouped_units = not all(layer.elementwise for layer in network.layers)
    activations = [sorting] if grouped_units else [kinked, smooth]
    sampled = max(steepest_sample(network, activation, seed, 100) for activation in activations)
    for method in METHODS[:4]:
        certificate = certify(network, method=method, rtol=1e-4)
        assert certificate.certified
        assert sampled <= certificate.upper_bound * (1 + 1e-10), method
