r"""The log-determinant barrier of the set of certified weights, differentiable in the weights and in the multipliers.

``loss(W) - mu log det M(L^2, exp(q); W)`` keeps every iterate strictly inside ``M >= 0``, so every one of them is
certified (Pauli, Funcke, Gramlich, Msalmi, Allgöwer, "Neural network training under semidefinite constraints", CDC
2022). For a chain M is block tridiagonal, and Schur complements from the input on need no matrix larger than a
layer. With ``T_k = W_k S_{k-1}^{-1} W_k'``, S_0 = rho I, lambda_k = exp(q_k),

    S_k = 2 Lambda_k - B_k T_k B_k,   B_k = Lambda_k (alpha_k + beta_k),      log det M = n_0 log rho + sum_k log det
    S_k,

where the last S_K loses ``W_out' W_out`` before its determinant is taken. An interval with alpha * beta != 0 adds
``2 W_k' diag(lambda alpha beta) W_k`` to S_{k-1}: by Woodbury's identity ``T <- T - s T e (I + s e T e)^{-1} e T``
with ``e = sqrt(2 lambda |alpha beta|)`` and s the sign of the product, and ``log det (I + s e T e)`` joins the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lipschitz.certificate import Multipliers, prove
from lightning_lipschitz.certificate.verify import SIGNING_MARGIN
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.projection.certified_set import Slopes
from lightning_lipschitz.projection.multipliers import narrowed, solve_multipliers, squared, with_weights
from lightning_lipschitz.projection.nearest import nearest, scaled

SMALLEST_STEP = 2.0**-30
START_INSIDE = 0.95  # of the bound, by default, where training starts


def log_det(
    weights: Sequence[Tensor], log_multipliers: Sequence[Tensor], max_lipschitz: float, slopes: Slopes | None = None
) -> Tensor:
    r""":math:`\log\det M(L^2, e^q; W)`, minus infinity outside of the set (its gradient is then of no use).

    Args:
        weights: of a chain, shape (n_k, n_{k-1}); any floating dtype, the work is done in float64.
        log_multipliers: q, shape (n_k,) a layer.
        max_lipschitz: L > 0.
        slopes: (alpha, beta) a layer, shape (n_k,) each; [0, 1] by default.

    Returns:
        A float64 scalar, differentiable in weights and q.

    Example:
        >>> value = log_det([torch.ones(1, 1), torch.ones(1, 1)], [torch.zeros(1)], 2.0)
        >>> round(value.exp().item(), 6)  # det [[4, -1], [-1, 1]]
        3.0
    """
    pivots = _pivots(weights, log_multipliers, max_lipschitz, slopes)
    total = 2.0 * weights[0].shape[1] * math.log(max_lipschitz)
    value = torch.full((), total, dtype=torch.float64, device=weights[0].device)
    for factor in pivots:
        if factor is None:
            return torch.full_like(value, -math.inf)
        value = value + 2.0 * factor.diagonal().log().sum()
    return value


@torch.no_grad()
def strictly_inside(
    weights: Sequence[Tensor], log_multipliers: Sequence[Tensor], max_lipschitz: float, slopes: Slopes | None = None
) -> bool:
    """Whether M is positive definite in floating point (every Cholesky factorisation runs through). Not a proof: see
    :func:`proved`."""
    return all(factor is not None for factor in _pivots(weights, log_multipliers, max_lipschitz, slopes))


@torch.no_grad()
def largest_feasible_step(
    start: tuple[Sequence[Tensor], Sequence[Tensor]],
    end: tuple[Sequence[Tensor], Sequence[Tensor]],
    max_lipschitz: float,
    slopes: Slopes | None = None,
) -> float:
    """The largest t of 1, 1/2, 1/4, ... for which ``start + t (end - start)`` is strictly inside; 0 where none is.

    Args:
        start, end: (weights, log_multipliers). The weights are rounded to their own dtype, as a parameter would hold
            them.
        max_lipschitz, slopes: as in :func:`log_det`.
    """
    t = 1.0
    while t >= SMALLEST_STEP:
        weights, log_multipliers = between(start[0], end[0], t), between(start[1], end[1], t)
        if strictly_inside(weights, log_multipliers, max_lipschitz, slopes):
            return t
        t *= 0.5
    return 0.0


def between(start: Sequence[Tensor], end: Sequence[Tensor], t: float) -> list[Tensor]:
    """``start + t (end - start)``; exactly ``end`` at t = 1."""
    return [torch.lerp(a, b, t) if t < 1.0 else b for a, b in zip(start, end, strict=True)]


@dataclass(frozen=True, eq=False)
class Start:
    """A strictly feasible start.

    Attributes:
        weights: in the dtype and on the device of those given.
        log_multipliers: q, float64, on the same device.
        moved: Frobenius distance from the weights given; 0 where they were inside.
    """

    weights: list[Tensor]
    log_multipliers: list[Tensor]
    moved: float


def start_inside(
    weights: Sequence[Tensor],
    network: Network,
    max_lipschitz: float,
    *,
    project: bool = True,
    fraction: float = START_INSIDE,
) -> Start:
    """Weights with a bound of at most ``fraction * max_lipschitz`` and multipliers that leave room up to
    ``max_lipschitz``.

    Args:
        weights: of a chain, shape (n_k, n_{k-1}).
        network: the chain; its slopes are used, not its matrices.
        max_lipschitz: the bound that training is to keep.
        project: to the nearest weights found (True), or scale all layers alike (False).
        fraction: below 1.

    Raises:
        ArgumentError, ShapeError, SolverError.
    """
    if not 0 < fraction < 1:
        raise ArgumentError("fraction", fraction, "a number between 0 and 1")
    moved = 0.0
    inside = [weight.detach().clone() for weight in weights]
    solved = solve_multipliers(with_weights(network, inside), max_lipschitz)
    if solved.bound > fraction * max_lipschitz:
        move = nearest if project else scaled
        found = move(weights, network, fraction * max_lipschitz)
        inside, moved = found.weights, found.distance
        solved = solve_multipliers(with_weights(network, inside), max_lipschitz)
    values = narrowed(network, solved.multipliers).values
    device = inside[0].device
    return Start(inside, [torch.as_tensor(value.copy(), device=device).log() for value in values], moved)


def multipliers(log_multipliers: Sequence[Tensor], max_lipschitz: float) -> Multipliers:
    """What the kernel checks: rho = L^2 rounded down, lambda = exp(q)."""
    return Multipliers(squared(max_lipschitz), tuple(q.detach().double().exp().cpu().numpy() for q in log_multipliers))


def proved(
    weights: Sequence[Tensor], log_multipliers: Sequence[Tensor], network: Network, max_lipschitz: float
) -> float | None:
    """The bound that the kernel signs for these weights as they are stored, or None.

    Args:
        network: the chain; its slopes are used, not its matrices.
    """
    return prove(with_weights(network, weights), multipliers(log_multipliers, max_lipschitz), SIGNING_MARGIN)


def _pivots(
    weights: Sequence[Tensor], log_multipliers: Sequence[Tensor], max_lipschitz: float, slopes: Slopes | None
) -> list[Tensor | None]:
    """Cholesky factors of the Schur complements, input first; None, and no more, where one does not exist."""
    *hidden, output = [weight.to(torch.float64) for weight in weights]
    factors: list[Tensor | None] = []
    first = hidden[0] if hidden else output
    T = first @ first.T / max_lipschitz**2
    for k, q in enumerate(log_multipliers):
        lam = q.to(torch.float64).exp()
        total, product = _sum_and_product(slopes, k, lam)
        T, extra = _bypass(T, lam, product)
        factors += extra
        if extra and extra[-1] is None:
            return factors
        row = lam * total
        S = torch.diag(2.0 * lam) - row[:, None] * T * row
        last = k == len(log_multipliers) - 1
        source = _factor(S - output.T @ output if last else S)
        factors.append(source)
        if source is None or last:
            return factors
        half = torch.linalg.solve_triangular(source, hidden[k + 1].T, upper=False)
        T = half.T @ half
    return [_factor(torch.eye(len(T), dtype=T.dtype, device=T.device) - T)]


def _sum_and_product(slopes: Slopes | None, k: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha + beta and alpha beta of layer k + 1."""
    if slopes is None:
        return torch.ones_like(like), torch.zeros_like(like)
    alpha, beta = (torch.as_tensor(slope.copy(), device=like.device) for slope in slopes[k])
    return alpha + beta, alpha * beta


def _bypass(T: Tensor, lam: Tensor, product: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """T behind the quadratic part of the layer, and the factors that join the sum; negative products first, then
    positive ones."""
    factors: list[Tensor | None] = []
    for sign in (-1.0, 1.0):
        square = lam.sqrt() * (2.0 * sign * product).clamp(min=0).sqrt()  # no gradient through a root of zero
        if not bool(square.any()):
            continue
        seen = square[:, None] * T
        factor = _factor(torch.eye(len(T), dtype=T.dtype, device=T.device) + sign * seen * square)
        factors.append(factor)
        if factor is None:
            break
        half = torch.linalg.solve_triangular(factor, seen, upper=False)
        T = T - sign * half.T @ half
    return T, factors


def _factor(S: Tensor) -> Tensor | None:
    """Lower Cholesky factor, or None."""
    factor, info = torch.linalg.cholesky_ex(S)
    return None if int(info) or not bool(factor.isfinite().all()) else factor
