r"""Training inside the certified set: the log-determinant barrier's gradient, multipliers, steps that stay inside.

With ``b(W, lambda) = log det M(L^2, lambda; W) - sum_i log lambda_i``, training minimises ``loss(W) - mu b(W, lambda)``
over the weights, by whatever optimizer, while lambda maximises b (after Pauli, Funcke, Gramlich, Msalmi, Allgöwer,
"Neural network training under semidefinite constraints", CDC 2022). A step that leaves the set is halved until it does
not. What differs from there:

1. The sum over log lambda: b is then the log-determinant of M scaled to the diagonal of ``W = 0``, and bounded above.
   Without it, a unit whose weights are near zero gains without limit as they vanish and its lambda grows.
2. One optimizer moves both there. Newton steps do for lambda in one what gradient steps do in hundreds: log det M is
   concave, minus its Hessian bounds that of b, and the damping ``1 / (1 + decrement)`` keeps a step strictly inside
   (Nesterov, "Lectures on convex optimization", 2018, section 5.2).
3. Gradients in the weights come from the block recursion of :mod:`lightning_lipschitz.projection.barrier`, run
   backwards by hand: three products a layer. Slopes with alpha * beta < 0 take automatic differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_lipschitz.projection.barrier import log_det, strictly_inside
from lightning_lipschitz.projection.certified_set import Slopes

MARGIN = 1e-7  # of the bound: kept for the kernel, which proves more than a Cholesky factorisation that runs through
SMALLEST_STEP = 2.0**-20

Weights = Callable[[float], Sequence[Tensor]]


class Inside(Protocol):
    """What training strictly inside a certified set needs of it."""

    @property
    def multipliers(self) -> list[Tensor]:
        """lambda, one tensor a layer."""

    def gradient(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Of -b in the weights, in their dtype. The weights must be inside."""

    def contains(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights are strictly inside, in floating point."""

    def largest_step(self, weights: Weights) -> float:
        """The largest t of 1/2, 1/4, ... with ``weights(t)`` strictly inside; 0 where none is."""

    def centre(self, weights: Sequence[Tensor]) -> None:
        """Move the multipliers up b."""


class Interior:
    """Multipliers that keep a chain strictly inside the certified set.

    Args:
        multipliers: lambda, float64, shape (n_k,) a layer; with the weights of the start strictly inside.
        max_lipschitz: L.
        slopes: (alpha, beta) a layer, alpha <= 0 <= beta; [0, 1] by default.

    Example:
        >>> interior = Interior([torch.ones(1, dtype=torch.float64)], 2.0)
        >>> weights = [torch.ones(1, 1), torch.ones(1, 1)]
        >>> [round(g.item(), 3) for g in interior.gradient(weights)]  # of -log det [[4, -1], [-1, 1]]
        [0.667, 2.667]
    """

    def __init__(self, multipliers: Sequence[Tensor], max_lipschitz: float, slopes: Slopes | None = None) -> None:
        self.multipliers = [lam.detach().clone() for lam in multipliers]
        self._bound = max_lipschitz * (1.0 - MARGIN)
        self._slopes = _tensors(slopes, self.multipliers)
        self._by_hand = bool(self.multipliers) and all(not (a * b).any() for a, b in self._slopes)
        self._given_slopes = slopes
        self._scales: _Scales | None = None
        self._last: _Recursion | None = None

    @torch.no_grad()
    def gradient(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Of -b in the weights, in their dtype. The weights must be inside."""
        gradients = self._recursion(weights).gradient() if self._by_hand else self._automatic(weights)
        return [g.to(w.dtype) for g, w in zip(gradients, weights, strict=True)]

    @torch.no_grad()
    def contains(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights are strictly inside, in floating point."""
        if self._by_hand:
            return self._recursion(weights).definite
        if not all(bool(w.isfinite().all()) for w in weights):
            return False
        logs = [lam.log() for lam in self.multipliers]
        return strictly_inside(weights, logs, self._bound, self._given_slopes)

    def largest_step(self, weights: Weights) -> float:
        """The largest t of 1/2, 1/4, ... with ``weights(t)`` strictly inside; 0 where none is."""
        return halved(lambda t: self.contains(weights(t)))

    @torch.no_grad()
    def centre(self, weights: Sequence[Tensor]) -> None:
        """One damped Newton step of the multipliers up b."""
        if self.multipliers:
            flat = torch.cat(self.multipliers)
            moved = _newton(weights, flat, self._bound**2, self._slopes)
            if moved is not None:
                self.multipliers = list(torch.split(moved, [len(lam) for lam in self.multipliers]))
                self._last = self._scales = None

    def _recursion(self, weights: Sequence[Tensor]) -> _Recursion:
        """That of these weights; a step is checked with it, and the next gradient starts from it."""
        if self._last is None or not self._last.is_of(weights):
            self._scales = self._scales or _Scales.of(self.multipliers, self._slopes, self._bound**2)
            self._last = _Recursion.run(weights, self._scales)
        return self._last

    def _automatic(self, weights: Sequence[Tensor]) -> list[Tensor]:
        doubles = [w.detach().to(torch.float64, copy=True).requires_grad_() for w in weights]
        logs = [lam.log() for lam in self.multipliers]
        with torch.enable_grad():
            value = log_det(doubles, logs, self._bound, self._given_slopes)
            return list(torch.autograd.grad(-value, doubles))


def halved(accepted: Callable[[float], bool]) -> float:
    """The largest t of 1/2, 1/4, ... that is accepted; 0 where none is."""
    t = 0.5
    while t >= SMALLEST_STEP:
        if accepted(t):
            return t
        t /= 2
    return 0.0


@dataclass(frozen=True, eq=False)
class _Scales:
    """What of the recursion depends on the multipliers alone, from one Newton step to the next."""

    outer: list[Tensor]  # b b' with b the diagonal of B_k, the first over rho
    twice: list[Tensor]  # 2 Lambda_k

    @classmethod
    def of(cls, multipliers: Sequence[Tensor], slopes: Sequence[tuple[Tensor, Tensor]], rho: float) -> _Scales:
        rows = [lam * (a + b) for lam, (a, b) in zip(multipliers, slopes, strict=True)]
        outer = [torch.outer(row, row) for row in rows]
        outer[0] /= rho
        return cls(outer, [torch.diag(2.0 * lam) for lam in multipliers])


@dataclass(frozen=True, eq=False)
class _Recursion:
    """``T_k = W_k S_{k-1}^-1 W_k'``, ``S_k = 2 Lambda_k - B_k T_k B_k``, the last - ``W_out' W_out``; S_0 = rho I."""

    given: list[Tensor]
    doubles: list[Tensor]
    scales: _Scales
    factors: list[Tensor]
    definite: bool

    @classmethod
    def run(cls, weights: Sequence[Tensor], scales: _Scales) -> _Recursion:
        doubles = [w.detach().double() for w in weights]
        factors: list[Tensor] = []
        definite = True
        T = doubles[0] @ doubles[0].T
        for k, (outer, twice) in enumerate(zip(scales.outer, scales.twice, strict=True)):
            if k:
                half = torch.linalg.solve_triangular(factors[-1], doubles[k].T, upper=False)
                T = half.T @ half
            S = torch.addcmul(twice, T, outer, value=-1.0)
            if k == len(scales.outer) - 1:
                S.addmm_(doubles[-1].T, doubles[-1], alpha=-1.0)
            factor, info = torch.linalg.cholesky_ex(S)
            factors.append(factor)
            # a factor with NaN anywhere has it in its last entry
            definite = not int(info) and math.isfinite(float(factor[-1, -1]))
            if not definite:
                break
        return cls([w.detach().clone() for w in weights], doubles, scales, factors, definite)

    def is_of(self, weights: Sequence[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.given, weights, strict=True))

    def gradient(self) -> list[Tensor]:
        """Of -log det M, by the derivatives of log det in S_k, here ``inner``, from the last layer to the first."""
        inner = torch.cholesky_inverse(self.factors[-1])
        gradients = [self.doubles[-1] @ (2.0 * inner)]
        for k in range(len(self.factors) - 1, 0, -1):
            before = torch.cholesky_inverse(self.factors[k - 1])
            seen = self.doubles[k] @ before
            pulled = inner.mul_(self.scales.outer[k]) @ seen
            gradients.append(2.0 * pulled)
            inner = before.addmm_(seen.T, pulled)
        gradients.append(inner.mul_(self.scales.outer[0]) @ (2.0 * self.doubles[0]))
        return gradients[::-1]


def _newton(
    weights: Sequence[Tensor], lam: Tensor, rho: float, slopes: Sequence[tuple[Tensor, Tensor]]
) -> Tensor | None:
    """lambda after a damped step up b, by the Hessian of log det M; None where that cannot be computed.

    M is affine in lambda: ``M = M_0 + sum_i lambda_i (s_i t_i' + t_i s_i')``, ``s_i = e_i - alpha_i a_i`` and ``t_i =
    e_i - beta_i a_i``, a_i the row of y_i. With X the inverse of M, its derivative is ``2 s_i' X t_i`` and minus its
    Hessian ``2 (s_i' X s_j)(t_i' X t_j) + 2 (s_i' X t_j)(t_i' X s_j)``.
    """
    A, C, inputs = _dense(weights)
    alpha, beta = (torch.cat([pair[side] for pair in slopes]) for side in (0, 1))
    units = torch.cat([lam.new_zeros(inputs, len(lam)), torch.eye(len(lam), dtype=lam.dtype, device=lam.device)])
    S, T = units - A.T * alpha, units - A.T * beta
    cross = (S * lam) @ T.T
    M = cross + cross.T
    M.diagonal()[:inputs] += rho
    M[-C.shape[1] :, -C.shape[1] :] -= C.T @ C
    factor, info = torch.linalg.cholesky_ex(M)
    if int(info):
        return None
    XS, XT = torch.cholesky_solve(torch.cat([S, T], dim=1), factor).tensor_split(2, dim=1)
    P = S.T @ XT
    gradient, hessian = 2.0 * P.diagonal() - 1.0 / lam, 2.0 * ((S.T @ XS) * (T.T @ XT) + P * P.T)
    direction, info = torch.linalg.solve_ex(hessian, gradient)
    decrement = gradient @ direction
    moved = lam + direction / (1.0 + decrement.clamp(min=0).sqrt())
    usable = not int(info) and bool(moved.isfinite().all()) and bool((moved > 0).all())
    return moved if usable else None


def _dense(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Rows a_i in the coordinates (x, z), the output's matrix, and the length of x.

    Only the row space of W_1 matters: ``W_1 = R' Q'`` with orthonormal columns of Q, and x is replaced by Q'x.
    """
    *hidden, output = [w.detach().double() for w in weights]
    first = hidden[0] if hidden[0].shape[1] <= hidden[0].shape[0] else torch.linalg.qr(hidden[0].T, mode="r")[1].T
    sizes = [first.shape[1], *(len(w) for w in hidden)]
    A = first.new_zeros(sum(sizes[1:]), sum(sizes))
    row = column = 0
    for w, size in zip([first, *hidden[1:]], sizes, strict=False):
        A[row : row + len(w), column : column + size] = w
        row, column = row + len(w), column + size
    return A, output, sizes[0]


def _tensors(slopes: Slopes | None, multipliers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if slopes is None:
        return [(torch.zeros_like(lam), torch.ones_like(lam)) for lam in multipliers]
    device = multipliers[0].device if multipliers else "cpu"
    return [
        (torch.as_tensor(alpha.copy(), device=device), torch.as_tensor(beta.copy(), device=device))
        for alpha, beta in slopes
    ]
