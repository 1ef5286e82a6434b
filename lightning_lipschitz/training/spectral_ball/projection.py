"""The nearest weights of a chain with a certified bound, and the cheap point that is all layers scaled alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_lipschitz.bounds.search import certify_network
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.training.multipliers import Solved, slopes_equal, solve_multipliers, squared, widened
from lightning_lipschitz.training.result import Nearest, State
from lightning_lipschitz.training.spectral_ball.certified_set import CertifiedSet
from lightning_lipschitz.training.spectral_ball.descent import MultiplierDescent
from lightning_lipschitz.training.spectral_ball.layer_factors import shrinkages
from lightning_lipschitz.training.spectral_ball.rounding import Realise, Realised, round_and_sign, rounding_to
from lightning_lipschitz.weights.maps import with_weights

_NEAR = 0.1  # relative distance up to which the multipliers of training will do
_RTOL_START = 1e-3  # of LipSDP where its multipliers are only a start


def nearest(
    weights: Sequence[Tensor],
    network: Network,
    max_lipschitz: float,
    *,
    rtol: float = 3e-3,
    max_rounds: int = 30,
    time_limit: float | None = None,
    device: str = "auto",
    start: Multipliers | None = None,
    state: State | None = None,
    warm_start: Any = None,
    realise: Realise | None = None,
) -> Nearest:
    r""":math:`\arg\min_{\bar W} \sum_k |\bar W_k - W_k|_F^2` such that some multipliers prove a bound of at most
    ``max_lipschitz``.

    The joint problem is not convex: a local minimum. The search begins with the multipliers that LipSDP finds for the
    weights given, carried to the weights with every layer scaled by a factor of its own (:mod:`.sharing`), so that
    it ends no further away than those; :mod:`.descent` goes on from there.

    Args:
        weights: of a chain, shape (n_k, n_{k-1}), first layer first.
        network: the chain; its slopes, groups and biases are used, not its matrices.
        max_lipschitz: the l2 bound that the result must meet.
        rtol: relative decrease of the distance that is worth three more projections.
        max_rounds: at most so many projections.
        time_limit: seconds after which no new projection begins.
        device: where LipSDP computes; the projection stays on the device of the weights.
        start: multipliers of an earlier answer for the same bound, in place of LipSDP.
        state, warm_start: of an earlier answer.
        realise: float64 weights -> what the parameters hold once these are written into them; rounding to the given
            dtypes by default.

    Raises:
        ArgumentError, ShapeError, SolverError.
    """
    clock = time.perf_counter()
    given = [weight.detach().double() for weight in weights]
    realise, wide = realise or rounding_to(weights), widened(network)
    if start is None:
        solved = solve_multipliers(
            with_weights(wide, given), max_lipschitz, rtol=_RTOL_START, device=device, warm_start=warm_start
        )
        start, warm_start = _shared(solved, given, max_lipschitz), solved.warm_start
    if untouched := _inside_unwidened(weights, network, wide, max_lipschitz):
        return untouched
    deadline = clock + (time_limit if time_limit is not None else float("inf"))
    descent = MultiplierDescent(
        given, squared(max_lipschitz), wide, state=state, rtol=rtol, most=max_rounds, deadline=deadline
    )
    found, ball = descent.run(start)
    rounded = round_and_sign(found.weights, network, ball.multipliers, realise)
    answer = _answer(rounded, given, ball.multipliers, clock)
    return replace(answer, state=found.state, warm_start=warm_start, rounds=descent.projections)


def nearby(weights: Sequence[Tensor], network: Network, multipliers: Multipliers, realise: Realise) -> Nearest | None:
    """The nearest weights for which these multipliers prove their bound, in one projection.

    Args:
        weights: of a chain.
        network: the chain; its slopes are used, not its matrices.
        multipliers: of the widened network.
        realise: as in :func:`nearest`.

    Returns:
        None where nothing is signed, or where the way is so long that other multipliers would cost less.
    """
    clock = time.perf_counter()
    given = [weight.detach().double() for weight in weights]
    projected = CertifiedSet.of(widened(network), multipliers).project(given)
    if projected.distance > _NEAR * sqrt(sum(float(w.square().sum()) for w in given)):
        return None
    try:
        rounded = round_and_sign(projected.weights, network, multipliers, realise)
    except SolverError:
        return None
    return _answer(rounded, given, multipliers, clock)


def scaled(
    weights: Sequence[Tensor], network: Network, max_lipschitz: float, *, realise: Realise | None = None
) -> Nearest:
    """All weights times the same number, so that LipSDP proves ``max_lipschitz``: the cheap point to start from, or to
    fall back to.

    Arguments and errors as of :func:`nearest`. Weights that meet the bound already are not touched.
    """
    clock = time.perf_counter()
    given, wide = [weight.detach().double() for weight in weights], widened(network)
    solved = solve_multipliers(with_weights(wide, given), max_lipschitz)
    if untouched := _inside_unwidened(weights, network, wide, max_lipschitz):
        return untouched
    moved = [min(solved.scale, 1.0) * weight for weight in given]
    rounded = round_and_sign(moved, network, solved.multipliers, realise or rounding_to(weights))
    return replace(_answer(rounded, given, solved.multipliers, clock), warm_start=solved.warm_start)


def _answer(rounded: Realised, given: Sequence[Tensor], multipliers: Multipliers, clock: float) -> Nearest:
    weights = [x.to(y.device) for x, y in zip(rounded.weights, given, strict=True)]  # a store works on the CPU
    distance = sqrt(sum(float((x.double() - y).square().sum()) for x, y in zip(weights, given, strict=True)))
    certificate = replace(rounded.certificate, seconds=time.perf_counter() - clock)
    return Nearest(weights, rounded.intended, certificate, multipliers, distance)


def _inside_unwidened(
    weights: Sequence[Tensor], network: Network, wide: Network, max_lipschitz: float
) -> Nearest | None:
    """The weights as they are, where slopes were widened and the bound with the true ones is low enough."""
    if slopes_equal(network, wide):
        return None
    certificate = certify_network(with_weights(network, weights), Settings())
    if certificate.upper_bound > max_lipschitz:
        return None
    solved = solve_multipliers(with_weights(wide, weights), max_lipschitz)
    doubles = [weight.detach().double() for weight in weights]
    return Nearest(list(weights), doubles, certificate, solved.multipliers, 0.0, warm_start=solved.warm_start)


def _shared(solved: Solved, weights: Sequence[Tensor], max_lipschitz: float) -> Multipliers:
    """The multipliers carried from all layers scaled alike to each scaled by its own factor."""
    reduction = min(max_lipschitz / solved.bound, 1.0) if solved.bound > 0 else 1.0
    if reduction == 1.0:
        return solved.multipliers
    norms = [float(torch.linalg.vector_norm(weight)) for weight in weights]
    ratios = [factor / solved.scale for factor in shrinkages(norms, reduction)]
    behind = np.cumprod(ratios[:0:-1])[::-1]
    values = [value * ratio**2 for value, ratio in zip(solved.multipliers.values, behind, strict=True)]
    return Multipliers(solved.multipliers.rho, tuple(values))
