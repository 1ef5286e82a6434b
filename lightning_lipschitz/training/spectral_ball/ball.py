r"""The nearest point of a spectral ball seen through a linear map: argmin over w of |w - v|^2 / 2 subject to
||G(w)||_2 <= 1.

Alternating direction method of multipliers on ``G(w) = Z``, ``||Z||_2 <= 1`` (Boyd et al., "Distributed optimization
and statistical learning via the alternating direction method of multipliers", 2011, sections 3.3 and 3.4), with U
the scaled dual and s the penalty:

    w <- (v + s G*(Z - U)) / (1 + s G*G)          G*G is diagonal: every weight is an entry of G
    A <- r G(w) + (1 - r) Z + U
    Z <- A with its singular values cut at one,   U <- A - Z

Differences from the textbook:
1. Only singular vectors whose values exceed one are needed: one eigendecomposition of the Gram matrix of the smaller
side. 2. It stops by a duality gap, not by residuals. For any Y, ``|w - v|^2 / 2 >= <G*Y, v> - |G*Y|^2 / 2 -
||Y||_*``; at ``Y = s U`` the nuclear
   norm is known from the cut, and ``w = v - G*Y``, divided by its norm where that is above one, is feasible.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lipschitz.training.spectral_ball.gain_matrix import GainMatrix

OVER_RELAXATION = 1.8
CHECK_EVERY = 4  # iterations; a check costs about half of one
BALANCE = 1.5  # residuals further apart than this squared move the penalty
ROUNDING = 1e-16  # the gap is not asked to fall below this times |v|^2 / 2


@dataclass(frozen=True, eq=False)
class Found:
    """The feasible point, and what it took.

    Attributes:
        vector: w, feasible to rounding.
        dual: Y, of the shape of G.
        penalty: the last one, for a warm start.
        iterations: of the method.
        gap: |w - v|^2 / 2 is at most this much above the least value possible.
        converged: whether the gap met the tolerance.
    """

    vector: Tensor
    dual: Tensor
    penalty: float
    iterations: int
    gap: float
    converged: bool


def nearest_point(
    gains: GainMatrix, v: Tensor, *, dual: Tensor | None, penalty: float | None, rtol: float, max_iterations: int
) -> Found:
    """argmin over w of |w - v|^2 / 2 subject to ||G(w)||_2 <= 1.

    Args:
        gains: G.
        v: shape (number of weights,), float64.
        dual, penalty: of a similar problem, or None.
        rtol: stop when the gap is below ``rtol`` times |w - v|^2 / 2.
        max_iterations: stop anyway; the point is feasible all the same.
    """
    image = gains.matrix(v)
    norm = spectral_norm(image)
    if norm <= 1.0:
        return Found(v, torch.zeros_like(image), 0.0, 0, 0.0, True)
    if not penalty:
        penalty = float(v.square().sum() / image.square().sum())
    warm = dual is not None
    if dual is not None:  # at an optimal dual the primal is v - G*(Y): the first iteration does not leave it
        U, Z = dual / penalty, gains.matrix(v - gains.adjoint(dual))
    else:  # where all entries of G carry the same factor this is the solution
        U, _ = excess(image)
        Z = image - U
    weight = 1.0 + penalty * gains.curvature
    best = Found(v / norm, torch.zeros_like(image), penalty, 0, float("inf"), False)
    for iteration in range(1, max_iterations + 1):
        w = torch.add(v, gains.adjoint(Z - U), alpha=penalty).div_(weight)
        G, before = gains.matrix(w), Z
        A = torch.lerp(Z, G, OVER_RELAXATION).add_(U)
        U, cut = excess(A)
        Z = A - U
        if iteration % CHECK_EVERY and iteration < max_iterations and not (warm and iteration == 1):
            continue
        pull = penalty * gains.adjoint(U)
        best = _better(
            best, _measure(gains, v, pull, penalty * float(cut.sum()), penalty * U, penalty, iteration, rtol)
        )
        if best.converged:
            break
        change = _imbalance(G - Z, G, penalty * gains.adjoint(Z - before), pull)
        if change != 1.0:
            penalty, U = penalty * change, U / change
            weight = 1.0 + penalty * gains.curvature
    return best


def excess(A: Tensor) -> tuple[Tensor, Tensor]:
    """``A - Z``, Z its projection on the unit spectral ball, and the singular values of the difference."""
    wide = A.shape[0] <= A.shape[1]
    squares, Q = torch.linalg.eigh(A @ A.T if wide else A.T @ A)
    s = squares.clamp_(min=1.0).sqrt_()
    cut = s - 1.0
    scaled = Q * (cut / s)
    return (scaled @ (Q.T @ A) if wide else (A @ Q) @ scaled.T), cut


def spectral_norm(A: Tensor) -> float:
    """The largest singular value."""
    gram = A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0).sqrt())


def _measure(
    gains: GainMatrix,
    v: Tensor,
    pull: Tensor,
    nuclear: float,
    dual: Tensor,
    penalty: float,
    iteration: int,
    rtol: float,
) -> Found:
    """The feasible point of this dual, and its gap."""
    w = v - pull
    w = w / max(1.0, spectral_norm(gains.matrix(w)))
    value = 0.5 * float((w - v).square().sum())
    gap = value - (float(pull @ v) - 0.5 * float(pull.square().sum()) - nuclear)
    small = max(rtol * value, 0.5 * ROUNDING * float(v.square().sum()))
    return Found(w, dual, penalty, iteration, max(gap, 0.0), gap <= small)


def _better(a: Found, b: Found) -> Found:
    return b if b.gap <= a.gap else a


def _imbalance(primal: Tensor, image: Tensor, dual: Tensor, pull: Tensor) -> float:
    """Factor for the penalty: residual balancing with relative residuals (Wohlberg, "ADMM penalty parameter
    selection", 2017)."""
    r = float(primal.norm() / image.norm().clamp(min=1e-300))
    s = float(dual.norm() / pull.norm().clamp(min=1e-300))
    ratio = (max(r, 1e-300) / max(s, 1e-300)) ** 0.5
    return min(max(ratio, 0.2), 5.0) if not 1.0 / BALANCE <= ratio <= BALANCE else 1.0
