"""The reduced problem has the same optimum, and its points come back as points of the original one."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_lipschitz.bounds.lipsdp import moving_units, reduce
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term

rng = np.random.default_rng(7)


def normal(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
    return scale * rng.standard_normal((rows, columns)) / np.sqrt(columns)


def affine(*terms: tuple[int, np.ndarray]) -> Affine:
    return Affine(tuple(Term(k, matrix) for k, matrix in terms), np.zeros(len(terms[0][1])))


def with_still_units() -> Network:
    first, second, third = normal(4, 6), normal(5, 4), normal(3, 5)
    first[[0, 2]] = 0.0
    second[1] = [3.0, 0.0, -2.0, 0.0]  # reads still units only
    return Network.from_weights([first, second, third])


def residual() -> Network:
    zero, one = np.zeros(4), np.ones(4)
    layers = (
        Layer(affine((0, normal(4, 9))), zero, one),
        Layer(affine((0, normal(4, 9)), (1, normal(4, 4))), 0.1 * one, one),
        Layer(affine((1, normal(4, 4)), (2, normal(4, 4))), -one, one, group=np.array([0, 0, 1, 1])),
    )
    return Network(9, layers, affine((0, normal(8, 9)), (2, normal(8, 4)), (3, normal(8, 4))))


NETWORKS = {
    "wide input": Network.from_weights([normal(3, 50), normal(4, 3), normal(2, 4)]),
    "wide output": Network.from_weights([normal(4, 3), normal(30, 4)]),
    "deep": Network.from_weights([normal(6, 6, 40.0) for _ in range(15)], slopes=(0.0, 0.25)),
    "tiny": Network.from_weights([[[1e-3]], [[-1e4]], [[2.0]]], slopes=(0.1, 1.0)),
    "low rank": Network.from_weights([np.ones((5, 3)), np.ones((2, 5))]),
    "still units": with_still_units(),
    "residual": residual(),
}


def inequality(network: Network, values: tuple[np.ndarray, ...]) -> np.ndarray:
    """M(0, lambda), unit by unit, as the theorem writes it."""
    starts = np.concatenate([[0], np.cumsum(network.sizes)])

    def rows(map_: Affine) -> np.ndarray:
        full = np.zeros((map_.size, starts[-1]))
        for term in map_.terms:
            full[:, starts[term.source] : starts[term.source + 1]] += term.matrix
        return full

    total = -rows(network.output).T @ rows(network.output)
    for k, (layer, value) in enumerate(zip(network.layers, values, strict=True), start=1):
        for i, a in enumerate(rows(layer.affine)):
            e = np.eye(starts[-1])[starts[k] + i]
            s, t = e - layer.alpha[i] * a, e - layer.beta[i] * a
            total += value[i] * (np.outer(s, t) + np.outer(t, s))
    return total


def least_rho(network: Network, values: tuple[np.ndarray, ...]) -> float:
    """The least rho with M(rho, lambda) >= 0, by a Schur complement on the input."""
    n0, matrix = network.input_size, inequality(network, values)
    root = np.linalg.solve(np.linalg.cholesky(matrix[n0:, n0:]), matrix[n0:, :n0])  # fails where nothing is feasible
    return float(np.linalg.eigvalsh(root.T @ root - matrix[:n0, :n0]).max())


def growing(network: Network) -> tuple[np.ndarray, ...]:
    """Multipliers that make the hidden block positive: far larger towards the input."""
    depth = len(network.layers)
    return tuple(np.full(size, 50.0 ** (depth - k)) for k, size in enumerate(network.sizes[1:]))


@pytest.mark.parametrize("name", NETWORKS)
def test_multipliers_come_back_with_the_same_bound(name: str) -> None:
    network = NETWORKS[name]
    reduced = reduce(network)
    values = growing(reduced.network)
    rho = least_rho(reduced.network, values)
    restored = reduced.restore(rho, values)
    assert [v.shape for v in restored.values] == [(size,) for size in network.sizes[1:]]
    assert least_rho(network, restored.values) == pytest.approx(restored.rho, rel=1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_scaling_is_undone_exactly(name: str) -> None:
    reduced = reduce(NETWORKS[name])
    values = growing(reduced.network)
    rho, back = reduced.scale(reduced.restore(3.0, values))
    assert rho == 3.0
    assert all(np.array_equal(a, b) for a, b in zip(back, values, strict=True))


def test_sizes_shrink_to_what_the_maps_can_see() -> None:
    assert reduce(NETWORKS["wide input"]).network.sizes == (3, 3, 4)
    assert reduce(NETWORKS["wide output"]).network.output.size == 4
    assert reduce(NETWORKS["still units"]).network.sizes == (2, 2, 4)


def test_layers_are_scaled_to_gain_one() -> None:
    network = reduce(NETWORKS["deep"]).network
    gains = [0.25 * np.linalg.norm(layer.affine.terms[0].matrix, 2) for layer in network.layers]
    assert min(gains) > 0.5
    assert max(gains) < 2.0


def test_still_units_follow_zero_weights_and_whole_groups() -> None:
    assert [mask.tolist() for mask in moving_units(NETWORKS["still units"])] == [
        [False, True, False, True],
        [True, False, True, True, True],
    ]
    half_zero = np.array([[1.0], [0.0], [0.0], [0.0]])
    layer = Layer(affine((0, half_zero)), -np.ones(4), np.ones(4), group=np.array([5, 5, 6, 6]))
    network = Network(1, (layer,), affine((1, np.ones((1, 4)))))
    assert moving_units(network)[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("weights", [[np.zeros((3, 2)), np.ones((1, 3))], [np.ones((3, 2)), np.zeros((1, 3))]])
def test_a_constant_network_is_no_trouble(weights: list[np.ndarray]) -> None:
    network = Network.from_weights(weights)
    reduced = reduce(network)
    values = tuple(np.ones(size) for size in reduced.network.sizes[1:])
    restored = reduced.restore(0.0, values)
    assert np.all(restored.values[0] > 0)
    assert reduced.network.output.size == 1
