"""The nearest weights with a certified bound: projections and multipliers by turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from torch import Tensor

from lightning_lipschitz.certificate import Certificate, Status
from lightning_lipschitz.network import Network
from lightning_lipschitz.projection.certified_set import CertifiedSet, Projected, State
from lightning_lipschitz.projection.multipliers import Solved, solve_multipliers, widened, with_weights
from lightning_lipschitz.projection.rounding import Realise, Rounded, round_and_sign, rounding_to


@dataclass(frozen=True, eq=False)
class Nearest:
    """Weights that can be stored, with their certificate.

    Attributes:
        weights: in the dtype and on the device of those given.
        certificate: proves a bound of at most the one asked for, of the chain with exactly these weights.
        multipliers: the last, of the widened network, at rho = bound squared; for :class:`CertifiedSet`.
        state, warm_start: for the next call on similar weights.
        distance: Frobenius distance from the weights given, all layers together.
        rounds: projections made.
    """

    weights: list[Tensor]
    certificate: Certificate
    multipliers: Any
    state: State | None
    warm_start: Any
    distance: float
    rounds: int


def nearest(
    weights: Sequence[Tensor],
    network: Network,
    max_lipschitz: float,
    *,
    rtol: float = 1e-3,
    max_rounds: int = 10,
    time_limit: float | None = None,
    device: str = "auto",
    state: State | None = None,
    warm_start: Any = None,
    realise: Realise | None = None,
) -> Nearest:
    r""":math:`\arg\min_{\bar W} \sum_k |\bar W_k - W_k|_F^2` such that some multipliers prove a bound of at most
    ``max_lipschitz``.

    The joint problem is not convex. Each round solves LipSDP on the last weights and projects the given ones on the
    set of these multipliers; the distance falls from round to round, from below that of all layers scaled alike, to
    a point that neither step improves.

    Args:
        weights: of a chain, shape (n_k, n_{k-1}), first layer first.
        network: the chain; its slopes, groups and biases are used, not its matrices.
        max_lipschitz: the l2 bound that the result must meet.
        rtol: stop when a round brings the distance down by less than this, relatively; projections and LipSDP are
            solved to a tenth of it.
        max_rounds: at most so many projections.
        time_limit: seconds after which no new round begins.
        device: where LipSDP computes; the projection stays on the device of the weights.
        state, warm_start: of an earlier answer.
        realise: float64 weights -> what the parameters hold once these are written into them; rounding to the given
            dtypes by default.

    Raises:
        ArgumentError, ShapeError, SolverError.
    """
    start = time.perf_counter()
    given = [weight.detach().double() for weight in weights]
    realise = realise or rounding_to(weights)
    solve = _Solve(network, max_lipschitz, rtol / 10, device)
    solved = solve(given, warm_start)
    best: tuple[Projected, Solved] | None = None
    rounds = 0
    while rounds < max(1, max_rounds):
        ball = CertifiedSet.of(solve.wide, solved.multipliers)
        projected = ball.project(given, state, rtol=rtol / 10)
        rounds, state = rounds + 1, projected.state
        before = best[0].distance if best else float("inf")
        if projected.distance < before:
            best = projected, solved
        late = time_limit is not None and time.perf_counter() - start > time_limit
        if projected.distance >= (1.0 - rtol) * before or projected.distance == 0.0 or late:
            break
        solved = solve(projected.weights, solved.warm_start)
    assert best is not None  # distances are finite
    rounded = round_and_sign(best[0].weights, network, best[1].multipliers, realise)
    distance = sqrt(sum(float((a.double() - b).square().sum()) for a, b in zip(rounded.weights, given, strict=True)))
    certificate = signed(rounded, time.perf_counter() - start)
    return Nearest(rounded.weights, certificate, best[1].multipliers, state, best[1].warm_start, distance, rounds)


def scaled(
    weights: Sequence[Tensor], network: Network, max_lipschitz: float, *, realise: Realise | None = None
) -> Nearest:
    """All weights times the same number, so that LipSDP proves ``max_lipschitz``: the cheap point to start from, or
    to fall back to.

    Arguments and errors as of :func:`nearest`. Weights that meet the bound already are not touched.
    """
    start = time.perf_counter()
    given = [weight.detach().double() for weight in weights]
    solved = solve_multipliers(with_weights(network, given), max_lipschitz)
    factor = min(solved.scale, 1.0)
    moved = [factor * weight for weight in given]
    rounded = round_and_sign(moved, network, solved.multipliers, realise or rounding_to(weights))
    distance = sqrt(sum(float((a.double() - b).square().sum()) for a, b in zip(rounded.weights, given, strict=True)))
    certificate = signed(rounded, time.perf_counter() - start)
    return Nearest(rounded.weights, certificate, solved.multipliers, None, solved.warm_start, distance, 0)


def signed(rounded: Rounded, seconds: float) -> Certificate:
    """The certificate of signed weights."""
    return Certificate(
        upper_bound=rounded.bound,
        certified=True,
        status=Status.SOLVED,
        method="lipsdp-neuron",
        solver="native",
        relative_gap=None,
        verification_loss=0.0,
        seconds=seconds,
        network_digest=rounded.network.digest,
        proof=rounded.proof,
    )


class _Solve:
    """LipSDP for the target, on given weights."""

    def __init__(self, network: Network, max_lipschitz: float, rtol: float, device: str) -> None:
        self.wide = widened(network)
        self._target, self._rtol, self._device = max_lipschitz, rtol, device

    def __call__(self, weights: Sequence[Tensor], warm_start: Any) -> Solved:
        network = with_weights(self.wide, weights)
        return solve_multipliers(network, self._target, rtol=self._rtol, device=self._device, warm_start=warm_start)
