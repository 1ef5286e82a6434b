"""Numbers over 1e+-300: what the kernel accepts there holds in rational arithmetic. Nothing is lost to underflow."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from lightning_lipschitz import certify
from lightning_lipschitz.bounds.pairwise import difference
from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.certificate.coefficients import Coefficients
from lightning_lipschitz.certificate.operators import node_norm
from lightning_lipschitz.certificate.spectral import norm_holds, norm_upper_bound
from lightning_lipschitz.graph import Along, Convolution, Elementwise, Graph, Input, Scaling
from lightning_lipschitz.graph.network import Network, Term
from tests.helpers import exact_lmi, exactly_positive_definite

DRAWS = 400  # of every family; ten thousand were run once


def scalar_chain(rng):
    """f = c b w x, of 1 / (b w c) near a power of ten; the multiplier is the best one, or any."""
    b, c = 10.0 ** rng.uniform(-150, 150, size=2)
    w = 10.0 ** (rng.uniform(-7, 7) - np.log10(b) - np.log10(c))
    slopes = [(0.0, b), (-b, b), (0.5 * b, b), (-1e-3 * b, b)][rng.integers(4)]
    network = Network.from_weights([[[w]], [[c]]], slopes=slopes)
    true = Fraction(abs(c)) * Fraction(b) * Fraction(abs(w))
    rho = float(min(true * true, 10**300)) * 10.0 ** rng.uniform(-14, 2)
    return network, Multipliers(rho, ([c * c * 10.0 ** rng.uniform(-1, 2)],)), true


def small_network(rng):
    """Two or three layers of one to three units, entries of their own size, rows and columns of their own scale."""
    sizes = rng.integers(1, 4, size=rng.integers(2, 5))
    scales = [10.0 ** rng.uniform(-60, 60, size=n) for n in sizes]
    weights = [rng.normal(size=(n, m)) for m, n in pairwise(sizes)]
    weights = [w * scales[k + 1][:, None] / scales[k] for k, w in enumerate(weights)]
    alpha = rng.choice([0.0, -0.1, 0.1])
    network = Network.from_weights(weights, slopes=(alpha, 1.0))
    values = []
    for scale in scales[1:-1]:
        values.append(10.0 ** rng.uniform(-1, 1) * np.max(scales[-1]) ** 2 / scale**2)
    rho = 10.0 ** rng.uniform(-2, 2) * np.max(scales[-1]) ** 2 * np.max(1 / scales[0]) ** 2
    return network, Multipliers(rho, tuple(values)), None


FAMILIES = {"scalars": scalar_chain, "small networks": small_network}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_accepted_holds_exactly(family):
    accepted = 0
    for seed in range(DRAWS):
        network, proof, true = FAMILIES[family](np.random.default_rng(seed))
        if not np.isfinite(proof.rho) or proof.rho <= 0:
            continue
        bound = prove(network, proof)
        if bound is None:
            continue
        accepted += 1
        assert true is None or Fraction(bound) >= true * (1 - Fraction(1, 10**12)), (seed, bound)
        assert exactly_positive_definite(exact_lmi(network, proof)), seed
    assert accepted > DRAWS / 50


@pytest.mark.parametrize("exponent", [-140, -75, 0, 75, 140])
def test_bounds_do_not_depend_on_the_scale(exponent):
    rng, scale = np.random.default_rng(0), 10.0**exponent
    first, last = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    plain = certify([first, last], method="closed-form")
    network = Network.from_weights([first / scale, last * scale])
    values = tuple(value * scale**2 for value in plain.proof.values)
    moved = Multipliers(plain.proof.rho * (1 + 1e-12), values)
    assert prove(network, moved) is not None
    assert prove(network, replace(moved, rho=moved.rho * 0.9)) is None


def test_an_underflow_is_no_proof():
    """lambda (alpha + beta) is below the least number: the coupling vanished, and any rho would do."""
    network = Network.from_weights([[[1e180]], [[1e-150]]], slopes=(0.0, 1e-30))
    assert prove(network, Multipliers(1e-12, ([2e-300],))) is None
    assert prove(network, Multipliers(1.1, ([1e-300],))) is not None


def test_rounding_of_tiny_and_huge_matrices_is_positive():
    values = np.array([[3e-200, 7e-200], [1e-200, 1e-250]])
    for made in (
        Coefficients(values).scaled(np.array([0.3, 0.7])),
        Coefficients(values).plus(Coefficients(values / 3)),
    ):
        assert made.rounding > 1e-217
    pair = difference(Network.from_weights([values]), (0, 1))
    assert pair.output.terms[0].rounding > 1e-217
    assert Coefficients(values * 1e300).premultiplied(np.eye(2) * 0.3).rounding < np.inf
    assert Coefficients(np.ones((1, 1)), 1e-200).scaled(np.array([1e-200])).rounding > 0


def test_the_rounding_of_a_term_survives_its_scale():
    network = Network.from_weights([[[1e-200]]])
    blurred = replace(network, output=replace(network.output, terms=(Term(0, [[1e-200]], 1e-200),)))
    assert prove(network, Multipliers(1.1e-300, ())) is not None
    tight = certify(network).upper_bound
    assert tight == 1e-200
    assert certify(blurred).upper_bound >= 2e-200


def test_norms_of_extreme_matrices():
    for size in (1e-310, 1e-200, 1e200, 1e307):
        matrix = np.array([[1.0, 1.0], [1.0, -1.0]]) * size
        bound = norm_upper_bound(matrix)
        assert Fraction(bound) ** 2 >= 2 * Fraction(float(matrix[0, 0])) ** 2
        assert bound <= 1.42 * size
        assert norm_holds(matrix, 1.7e308)
        assert not norm_holds(matrix, 1e-320)
    assert norm_upper_bound(np.full((2, 2), 1.7e308)) == np.inf
    assert norm_upper_bound(np.array([[np.inf, 1.0], [1.0, 1.0]])) == np.inf


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e150, 1e200, 1e300])
def test_depthwise_convolutions_of_extreme_kernels(size):
    geometry = {"image": (4, 40, 40), "stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 4}
    kernel = np.random.default_rng(0).normal(size=(4, 1, 3, 3))
    plain, scaled = (node_norm(Convolution(sources=(0,), kernel=kernel * s, **geometry)) for s in (1.0, size))
    assert scaled == pytest.approx(plain * size, rel=1e-9)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_graphs_of_extreme_matrices_end_in_a_bound(size):
    rng = np.random.default_rng(0)
    nodes = (
        Input(size=3),
        Along(sources=(0,), matrix=rng.normal(size=(4, 3)) * size),
        Scaling(sources=(1,), factors=rng.normal(size=4) / size, relative=2.0**-53),
        Elementwise(sources=(2,), size=4, alpha=0.0, beta=1.0),
        Along(sources=(3,), matrix=rng.normal(size=(2, 4))),
    )
    linear = nodes[4].matrix @ (nodes[2].factors[:, None] * nodes[1].matrix)
    assert certify(Graph(nodes), method="composed").upper_bound >= 0.25 * np.linalg.norm(linear, 2)
