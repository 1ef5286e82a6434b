"""The interior-point method: its formulas against loops, its answers against an independent solver and known values."""

from __future__ import annotations

from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lipschitz.bounds.interior_point import Progress, propose, solve
from lightning_lipschitz.bounds.interior_point.centring import centre
from lightning_lipschitz.bounds.interior_point.definite import Definite
from lightning_lipschitz.bounds.interior_point.iterate import Iterate, advance
from lightning_lipschitz.bounds.interior_point.linear import Equilibrated
from lightning_lipschitz.bounds.interior_point.problem import Problem
from lightning_lipschitz.bounds.interior_point.schur import schur_complement
from lightning_lipschitz.bounds.interior_point.start import recursion
from lightning_lipschitz.bounds.lipsdp import Sharing, reduce
from lightning_lipschitz.certificate import Status
from lightning_lipschitz.errors import ArgumentError, SolverError
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term
from tests import helpers
from tests.helpers import chain

rng = np.random.default_rng(3)


def normal(rows: int, columns: int) -> np.ndarray:
    return rng.standard_normal((rows, columns)) / np.sqrt(columns)


def affine(*terms: tuple[int, np.ndarray]) -> Affine:
    return Affine(tuple(Term(k, matrix) for k, matrix in terms), np.zeros(len(terms[0][1])))


def graph() -> Network:
    """Skips, slopes of their own for the units, two norm-bounded groups, and an input that reaches the output."""
    zero, one, pairs = np.zeros(6), np.ones(6), np.array([0, 0, 0, 1, 1, 1])
    layers = (
        Layer(affine((0, normal(6, 9))), zero, one),
        Layer(affine((0, normal(6, 9)), (1, normal(6, 6))), np.linspace(-0.2, 0.3, 6), np.linspace(0.5, 1.2, 6)),
        Layer(affine((1, normal(6, 6)), (2, normal(6, 6))), -one, one, group=pairs),
    )
    return Network(9, layers, affine((0, normal(3, 9)), (2, normal(3, 6)), (3, normal(3, 6))))


NETWORKS = {name: make() for name, make in helpers.NETWORKS.items() if name not in ("one affine map", "tiny", "huge")}
NETWORKS |= {
    "one hidden layer": chain((5, 8, 3)),
    "relu": chain((4, 8, 7, 2)),
    "deep sigmoid": chain((4, 7, 7, 7, 2), slopes=(0.0, 0.25)),
    "decreasing": chain((4, 6, 6, 2), slopes=(-1.0, -0.2)),
    "graph": graph(),
}
REDUCED = {name: reduce(network).network for name, network in NETWORKS.items()}
SHARING = ("neuron", "layer")


def wide(network: Network, map_: Affine) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(network.sizes)])
    full = np.zeros((map_.size, starts[-1]))
    for term in map_.terms:
        full[:, starts[term.source] : starts[term.source + 1]] = term.matrix
    return full


def constraint_matrices(network: Network, sharing: Sharing) -> list[np.ndarray]:
    """E, B_1, B_2, ... as the theorem writes them, unit by unit."""
    size, n0 = network.input_size + network.num_units, network.input_size
    matrices = [np.diag((np.arange(size) < n0).astype(float))]
    unit = n0
    for layer in network.layers:
        own: dict[int, np.ndarray] = {}
        for i, a in enumerate(wide(network, layer.affine)):
            e = np.eye(size)[unit]
            s, t = e - layer.alpha[i] * a, e - layer.beta[i] * a
            key = int(layer.group[i]) if sharing == "neuron" else 0
            own[key] = own.get(key, 0) + np.outer(s, t) + np.outer(t, s)
            unit += 1
        matrices += [own[key] for key in sorted(own)]
    return matrices


def optimum(network: Network, sharing: Sharing) -> float:
    """rho by cvxpy and Clarabel, from the constraint matrices above."""
    E, *B = constraint_matrices(network, sharing)
    F = wide(network, network.output)
    rho, lam = cp.Variable(), cp.Variable(len(B), nonneg=True)
    matrix = rho * E - F.T @ F + sum(lam[k] * b for k, b in enumerate(B))
    problem = cp.Problem(cp.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    problem.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9)
    return float(problem.value)


def positive(size: int) -> torch.Tensor:
    root = torch.from_numpy(rng.standard_normal((size, size)))
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["one block", "blocks"])
def one_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr("lightning_lipschitz.bounds.interior_point.problem._DENSE", 0)


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("one_block")
def test_operators_agree_with_constraint_matrices(name: str, sharing: Sharing) -> None:
    network = NETWORKS[name]
    problem, matrices = Problem(network, sharing), constraint_matrices(network, sharing)
    assert problem.num_groups == len(matrices) - 1
    y = rng.standard_normal(len(matrices))
    K = positive(problem.size).numpy()
    combined = sum(value * matrix for value, matrix in zip(y, matrices, strict=True))
    F = wide(network, network.output)
    np.testing.assert_allclose(problem.combine(torch.tensor(y)), combined, atol=1e-12)
    np.testing.assert_allclose(problem.slack(torch.tensor(y)), combined - F.T @ F, atol=1e-12)
    np.testing.assert_allclose(problem.adjoint(torch.tensor(K)), [np.sum(m * K) for m in matrices], atol=1e-10)
    images = problem.rows(torch.tensor(K)).T
    np.testing.assert_allclose(problem.times(torch.tensor(K), images, torch.tensor(y)), K @ combined, atol=1e-10)
    np.testing.assert_allclose(problem.value(torch.tensor(K)), np.trace(F @ K @ F.T))


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("one_block")
def test_schur_complement_agrees_with_traces(name: str, sharing: Sharing) -> None:
    problem, matrices = Problem(NETWORKS[name], sharing), constraint_matrices(NETWORKS[name], sharing)
    X, V = positive(problem.size), positive(problem.size)
    for left, right in ((X, V), (X, X)):
        H = schur_complement(problem, left, problem.rows(left), right, problem.rows(right))
        images = [left.numpy() @ m @ right.numpy() for m in matrices]
        np.testing.assert_allclose(H, [[np.sum(a * b.T) for b in images] for a in matrices], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_start_and_every_step_are_strictly_feasible_on_both_sides(name: str) -> None:
    problem = Problem(REDUCED[name], "neuron")
    point = Iterate.at(problem, recursion(problem))
    assert point is not None
    while point.X is None:
        point = centre(problem, point)
    goal = torch.eye(1 + problem.num_groups, dtype=torch.float64)[0]
    for _ in range(3):
        assert point.X is not None
        assert torch.linalg.eigvalsh(problem.slack(point.y))[0] > 0
        assert torch.linalg.eigvalsh(point.X.matrix)[0] > 0
        assert (problem.adjoint(point.X.matrix) - goal).abs().max() < 1e-9
        assert 0 < point.lower_bound(problem) < point.rho
        point = advance(problem, point, point.X)


def test_a_point_outside_is_refused() -> None:
    problem = Problem(NETWORKS["relu"], "neuron")
    assert Iterate.at(problem, torch.zeros(1 + problem.num_groups, dtype=torch.float64)) is None


@pytest.mark.parametrize("size", [1, 5, 90, 300])
@pytest.mark.parametrize("largest", [0.003, 0.4, 0.97, 50.0])
def test_steps_stop_just_inside_the_cone(size: int, largest: float) -> None:
    matrix, root = positive(size), torch.from_numpy(rng.standard_normal((size, 1)))
    direction = -(root @ root.T) / (root.T @ torch.linalg.solve(matrix, root)) / largest
    point = Definite.of(matrix)
    assert point is not None
    length = point.step_length(direction, 0.95, 0.03)
    assert 0.95 * 0.95 * min(1.0, largest) < length <= 0.95 * largest + 1e-9
    assert point.step_length(-direction, 0.95, 0.03) == 1.0


@pytest.mark.parametrize("size", [60, 300])
def test_steps_along_directions_with_a_spread_spectrum(size: int) -> None:
    """Both ways of finding the length agree with the generalised eigenvalues."""
    for scale in (0.01, 0.1, 1.0):
        point = Definite.of(positive(size))
        assert point is not None
        direction = torch.from_numpy(rng.standard_normal((size, size))) * scale
        direction = direction + direction.T
        relative = torch.linalg.eigvals(point.inverse @ direction).real.min().item()
        for length in (point._bracket(direction, 0.95, 0.02), min(1.0, 0.95 * point._lanczos(direction, 0.95, 0.02))):
            assert 0.95 * min(1.0, -0.95 / relative) < length <= min(1.0, -0.95 / relative) * 1.001


def test_nearly_singular_systems_are_solved() -> None:
    scale = torch.logspace(-6, 6, 30, dtype=torch.float64)
    H = positive(30) * scale * scale[:, None]
    right = torch.from_numpy(rng.standard_normal(30)) * scale
    np.testing.assert_allclose(H @ Equilibrated(H.clone()).solve(right), right, rtol=1e-8)
    singular = torch.ones(4, 4, dtype=torch.float64)
    np.testing.assert_allclose(singular @ Equilibrated(singular.clone()).solve(singular[0]), singular[0], rtol=1e-6)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_optimum_as_an_independent_solver(name: str, sharing: Sharing) -> None:
    found = solve(NETWORKS[name], sharing=sharing, rtol=1e-8)
    assert found.ending == "solved"
    reduced = reduce(NETWORKS[name])  # scaled: Clarabel needs it; unmoving units share no multiplier with their layer
    assert found.rho == pytest.approx(reduced.unit * optimum(reduced.network, sharing), rel=1e-6)
    assert found.lower_bound <= found.rho
    for layer, moving, values in zip(NETWORKS[name].layers, reduced.moving, found.multipliers.values, strict=True):
        key = layer.group if sharing == "neuron" else np.zeros(layer.size, int)
        assert all(np.ptp(values[moving & (key == g)]) == 0 for g in np.unique(key[moving]))


@pytest.mark.parametrize("name", NETWORKS)
def test_multipliers_are_feasible_for_the_network_as_given(name: str) -> None:
    network = NETWORKS[name]
    found = solve(network)
    apart = tuple(Layer(layer.affine, layer.alpha, layer.beta) for layer in network.layers)
    E, *B = constraint_matrices(Network(network.input_size, apart, network.output), "neuron")
    F, lam = wide(network, network.output), np.concatenate(found.multipliers.values)
    M = found.rho * E - F.T @ F + sum(value * matrix for value, matrix in zip(lam, B, strict=True))
    scale = 1 / np.sqrt(np.diag(M))
    assert np.linalg.eigvalsh(scale[:, None] * M * scale)[0] > 0
    assert min(lam) >= 0


@pytest.mark.parametrize(
    ("name", "sharing", "bound"),
    [
        ("random", "neuron", 36.48223),
        ("random", "layer", 39.83862),
        ("mnist", "neuron", 24.36635),
        ("mnist", "layer", 26.25597),
    ],
)
def test_published_values(name: str, sharing: Sharing, bound: float) -> None:
    """The examples of the LipSDP repository (Fazlyab et al. 2019)."""
    found = solve(Network.from_weights(helpers.lipsdp_weights(name)), sharing=sharing, rtol=1e-7)
    assert found.rho**0.5 == pytest.approx(bound, abs=1e-5)


def test_the_bound_is_homogeneous() -> None:
    """Scaling every weight by g scales the bound by g^3, over many orders of magnitude."""
    base = solve(chain((3, 5, 4, 2))).rho ** 0.5
    for gain in (1e-6, 1e6):
        assert solve(chain((3, 5, 4, 2), gain=gain)).rho ** 0.5 == pytest.approx(gain**3 * base, rel=3e-6)


@pytest.mark.parametrize(
    ("weights", "slopes", "bound"),
    [
        ([[[1.0, 2.0], [1.0, -2.0]], [[1.0, 1.0]]], (0, 1), 4 / 3**0.5),
        ([[[1.0], [1.0]], [[1.0, -1.0]]], (0, 1), 1.0),
        ([[[1.0], [-1.0]], [[1.0, -1.0]]], (0, 1), 2.0),
        ([[[3.0]], [[-2.0]]], (0.0, 0.25), 1.5),
        ([[[3.0, 4.0]]], (0, 1), 5.0),
        ([np.zeros((3, 2)), np.ones((1, 3))], (0, 1), 0.0),
        ([np.ones((3, 2)), np.zeros((1, 3))], (0, 1), 0.0),
    ],
)
def test_known_values(weights: list, slopes: tuple[float, float], bound: float) -> None:
    assert solve(Network.from_weights(weights, slopes=slopes)).rho ** 0.5 == pytest.approx(bound, rel=1e-6)


def test_non_negative_weights_are_exact() -> None:
    """With non-negative weights and slopes [0, 1] all units open is the worst case, and LipSDP attains it."""
    weights = [abs(normal(6, 4)), abs(normal(6, 6)), abs(normal(2, 6))]
    exact = np.linalg.norm(weights[2] @ weights[1] @ weights[0], 2)
    assert solve(Network.from_weights(weights)).rho ** 0.5 == pytest.approx(exact, rel=2e-6)


def test_deep_networks_reach_the_gap() -> None:
    found = solve(chain((4, *[10] * 20, 1), slopes=(0.0, 0.25)))
    assert found.ending == "solved"
    assert found.relative_gap <= 1e-6


@pytest.mark.parametrize(("width", "depth", "seed"), [(30, 10, 0), (30, 12, 3), (40, 8, 2)])
def test_deep_networks_whose_first_steps_are_short(width: int, depth: int, seed: int) -> None:
    """Of their kind, one in five stalled at a gap of 0.98 by Mehrotra's rule for sigma."""
    solution = solve(chain((4, *[width] * depth, 1), seed))
    assert solution.ending == "solved"


@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1e-6, 1e6),
    slopes=st.sampled_from([(0.0, 1.0), (0.0, 0.25), (0.1, 1.0), (-0.13, 1.13), (-1.0, 1.0), (-1.0, 0.0)]),
    sparsity=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_any_small_network_is_solved(
    sizes: list[int], seed: int, scale: float, slopes: tuple[float, float], sparsity: float
) -> None:
    draw = np.random.default_rng(seed)
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    weights = [scale * draw.standard_normal(s) * (draw.random(s) >= sparsity) for s in shapes]
    found = solve(Network.from_weights(weights, slopes=slopes))
    assert found.ending == "solved"
    assert found.lower_bound <= found.rho
    steepest = max(slopes, key=abs)
    linear = np.linalg.multi_dot(weights[::-1]) * steepest ** (
        len(weights) - 1
    )  # one of the networks that the slopes allow
    assert np.linalg.norm(linear, 2) <= found.rho**0.5 * (1 + 1e-9)


# -- behaviour ---------------------------------------------------------------------------------------------------------


def test_progress_is_reported_and_the_gap_closes() -> None:
    seen: list[Progress] = []
    found = solve(NETWORKS["relu"], progress=seen.append)
    assert [p.iteration for p in seen] == list(range(found.iterations + 1))
    assert all(a.rho >= b.rho and a.lower_bound <= b.lower_bound for a, b in pairwise(seen))
    assert seen[0].relative_gap == 1.0
    assert seen[-1].relative_gap == found.relative_gap <= 1e-6
    assert seen[-1].rho == found.rho


def test_no_time_still_gives_feasible_multipliers() -> None:
    network = NETWORKS["relu"]
    found = solve(network, time_limit=0.0)
    assert found.ending == "time limit"
    assert found.rho > solve(network).rho
    assert propose(network, time_limit=0.0).status is Status.TIME_LIMIT


@pytest.mark.parametrize("bad", [{"rtol": 0.0}, {"rtol": float("nan")}, {"time_limit": -1.0}])
def test_arguments_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ArgumentError):
        solve(NETWORKS["relu"], **bad)


@pytest.mark.parametrize("gain", [1e-100, 1e100])
def test_a_bound_that_float64_cannot_hold_is_an_error(gain: float) -> None:
    with pytest.raises(SolverError, match="range"):
        solve(chain((3, 5, 4, 2), gain=gain))


def test_an_impossible_tolerance_ends_and_says_so() -> None:
    found = solve(NETWORKS["relu"], rtol=1e-18)
    assert found.ending == "stalled"
    assert found.relative_gap < 1e-9


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    solve(NETWORKS["relu"])
    assert torch.get_num_threads() == before


def test_a_warm_start_saves_iterations_and_changes_nothing_else() -> None:
    weights = [normal(30, 20), normal(20, 30), normal(3, 20)]
    state = solve(Network.from_weights(weights)).warm_start
    for move in (1e-4, 1e-2, 1.0):
        moved = Network.from_weights([w + move * normal(*w.shape) for w in weights])
        cold, found = solve(moved), solve(moved, warm_start=state)
        assert found.ending == "solved"
        assert found.rho == pytest.approx(cold.rho, rel=3e-6)
        if move == 1e-4:
            assert found.iterations < 0.75 * cold.iterations


def test_a_warm_start_of_another_network_is_ignored() -> None:
    found = solve(NETWORKS["relu"], warm_start=solve(NETWORKS["deep"]).warm_start)
    assert found.rho == solve(NETWORKS["relu"]).rho


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bound() -> None:
    network = chain((30, 200, 100, 5))
    assert solve(network, device="cuda").rho == pytest.approx(solve(network).rho, rel=3e-6)
