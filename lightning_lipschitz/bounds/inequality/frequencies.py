r"""The sweep over convolutions, one frequency at a time, up to the first matrix behind them.

Layers of convolutions on a torus, with one multiplier a channel, have an M that the Fourier transform makes block
diagonal: at frequency w, with the symbols H_k(w), slopes [0, beta] and ``L_k`` of the channels (the same at all w),

    G_1 = H_1 H_1^H,   X_k = 2 L_k - beta^2 L_k G_k L_k,   G_k+1 = H_k+1 X_k^-1 H_k+1^H,

and X_k is positive definite at every frequency if and only if c in ``L_k = c T^2``, T = diag(t), is below
2 / (p beta^2), with p the largest eigenvalue of ``E = T G_k(w) T`` over all w. With ``kappa = c beta^2 / 2``,

    G_k+1 = H_k+1 T^-1 (I / kappa - E)^-1 T^-1 H_k+1^H / (beta c)^2,

so that scaling by multipliers and weights is left to the kernels, which are small and real. Where H_1 has few columns,
``(I / kappa - H H^H)^-1 = kappa I + kappa H (I / kappa - H^H H)^-1 H^H`` has small matrices too.

A matrix that reads all positions, with transforms What(w) of its rows, sums over the N frequencies: ``G = sum of
What X_K^-1 What^H / N``. From there on the sweep is that of :mod:`lightning_lipschitz.bounds.inequality.sweep`. Kernels
are real, so of two opposite frequencies one will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality.structure import Structure
from lightning_lipschitz.bounds.inequality.sweep import SLACK, Largest, congruent, estimates, gram

#: Factors of the channels of the source and of the result -> ``(diag(of result) H diag(of source))^H`` at all
#: frequencies; real parts above imaginary ones, shape (frequencies, 2, channels times phases of the source, those of
#: the result), phases last.
Columns: TypeAlias = "Callable[[Tensor | None, Tensor | None], Tensor]"

_POWER = 32  # of the norm in place of a largest number: of 100 that are alike it is 1.15 times the largest


def sweep_frequencies(
    structure: Structure,
    columns: Sequence[Columns],
    log_weights: Sequence[Tensor],
    shares: Sequence[Tensor],
    largest: Largest,
) -> tuple[list[Tensor], Tensor] | None:
    """The multipliers of the channels, and the covariance of what the matrix behind the convolutions gives.

    Args:
        structure: its first layers are the channels of those on the torus; slopes [0, beta], the same in a layer.
        columns: of every convolution, and last of What, whose columns are multiplied by the root of how often their
            frequency counts, divided by the root of the number of positions.
        log_weights, shares: as for :func:`.sweep`, of the first layers at least.
        largest: gets E of all frequencies at once, or of the same eigenvalues a smaller matrix.

    Returns:
        None where a layer does not depend on the input.
    """
    multipliers = []
    roots = [(0.5 * each).exp() for each in log_weights[: len(columns) - 1]]
    first = _complex(columns[0](None, roots[0]))
    few = 2 * first.shape[1] <= first.shape[2]
    seen = gram(first) if few else _square(first)
    for k, following in enumerate(columns[1:], 1):
        root, after = roots[k - 1], roots[k] if k < len(roots) else None
        beta = structure.spans[k - 1][1]
        pivot = _Pivots.of(k, seen, shares[k - 1], largest)
        if pivot is None:
            return None
        c = pivot.kappa * 2.0 / beta**2
        multipliers.append(c * root.square())
        if few and k == 1:
            read = following(1.0 / ((2.0 * c).sqrt() * root), after)
            seen = _with_few(pivot, first, read, last=after is None)
        elif after is None:
            seen = _summed(pivot.scaled(beta * c * root), following(None, None).flatten(1, 2))
        else:
            seen = _congruent(pivot, _complex(following(1.0 / (beta * c * root), after)))
    return multipliers, seen


@dataclass(frozen=True, eq=False)
class _Pivots:
    """``form = I / kappa - E`` of all frequencies, and its lower factors."""

    kappa: Tensor
    form: Tensor
    factor: Tensor

    @classmethod
    def of(cls, k: int, seen: Tensor, share: Tensor, largest: Largest) -> _Pivots | None:
        """None where the layer does not depend on the input."""
        for p in estimates(k, seen, None, largest, largest_of_all):
            if not bool(p > 0):
                return None
            kappa = (1.0 - SLACK) * share / p
            form = torch.eye(seen.shape[-1], dtype=seen.dtype, device=seen.device) / kappa - seen
            factor, info = torch.linalg.cholesky_ex(form.detach())
            if not bool(info.any()):
                return cls(kappa, form, factor)
        return None

    def scaled(self, by: Tensor) -> _Pivots:
        """With ``diag(by) form diag(by)``, by the channel."""
        by = by.repeat_interleave(self.form.shape[-1] // len(by))
        return _Pivots(self.kappa, self.form * torch.outer(by, by), self.factor * by.detach()[:, None])


def largest_of_all(_: int, matrices: Tensor, scale: Tensor | None = None) -> Tensor:
    """The largest eigenvalue of ``diag(scale) matrix diag(scale)`` over all matrices, to rounding."""
    seen = matrices if scale is None else matrices * torch.outer(scale, scale)
    largest: Tensor = torch.linalg.eigvalsh(seen)[:, -1].amax()
    return largest


class WarmFrequencies:
    r"""A smooth number near :func:`largest_of_all`, for a product with a vector a frequency.

    One step of power iteration a call, from where the last call ended, gives a number r for every frequency;
    ``(sum of r^32)^(1/32)`` pulls at all that are near the largest. The vectors are held in the gradient. What is too
    small a number has to be found out by a factorisation.

    Attributes:
        vectors: complex, shape (frequencies, n), by the number of the layer.

    Example:
        >>> find = WarmFrequencies()
        >>> matrices = torch.stack([torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2)]).cdouble()
        >>> round(find(1, matrices).item(), 3)
        2.0
    """

    def __init__(self) -> None:
        self.vectors: dict[int, Tensor] = {}

    def __call__(self, number: int, matrices: Tensor, scale: Tensor | None = None) -> Tensor:
        matrices = matrices if scale is None else matrices * torch.outer(scale, scale)
        vectors = self.vectors.get(number)
        if vectors is None or vectors.shape != matrices.shape[:2]:
            vectors = torch.linalg.eigh(matrices.detach())[1][..., -1]
        moved = (matrices @ vectors.to(matrices)[..., None])[..., 0]
        self.vectors[number] = ends = _directions(moved.detach())
        sizes = (torch.view_as_real(ends) * torch.view_as_real(moved)).sum((-2, -1))
        most = sizes.detach().amax()  # powers of small numbers would be zero
        largest: Tensor = most * torch.linalg.vector_norm(sizes / most, ord=_POWER)
        return largest

    def state_dict(self) -> dict[int, Tensor]:
        """The vectors, on the CPU."""
        return {number: each.to("cpu", copy=True) for number, each in self.vectors.items()}

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.vectors = dict(state)


def _directions(vectors: Tensor) -> Tensor:
    """Unit vectors; where one has died, that of equal entries."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    tiny = torch.finfo(lengths.dtype).tiny
    equal = torch.full_like(vectors, vectors.shape[-1] ** -0.5)
    return torch.where(lengths > tiny, vectors / lengths.clamp(min=tiny), equal)


def _with_few(pivot: _Pivots, first: Tensor, read: Tensor, *, last: bool) -> Tensor:
    """``V^H V + (U V)^H form^-1 U V`` for ``U = first`` and V the next columns, ``read``; summed for the last ones."""
    V = _complex(read)
    if not last:
        return _square(V) + _congruent(pivot, first @ V)
    moved = first @ V
    return _square(read.reshape(-1, read.shape[-1])) + _summed(pivot, torch.cat([moved.real, moved.imag], 1))


def _congruent(pivot: _Pivots, V: Tensor) -> Tensor:
    return congruent(pivot.form, pivot.factor, V)


def _complex(parts: Tensor) -> Tensor:
    return torch.complex(*parts.unbind(1))


class _Square(torch.autograd.Function):
    """``V^H V``; :func:`gram` of ``V^H`` would leave conjugations and transpositions to be copied."""

    @staticmethod
    def forward(ctx: Any, V: Tensor) -> Tensor:
        ctx.save_for_backward(V)
        return V.mH @ V

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        V: Tensor = ctx.saved_tensors[0]
        return V @ (slope + slope.mH)


def _square(V: Tensor) -> Tensor:
    return _Square.apply(V)  # type: ignore[no-any-return, no-untyped-call]


class _SummedCongruence(torch.autograd.Function):
    """The sum over a batch of ``V^H X^-1 V``, in real arithmetic: one product of all frequencies at once.

    V comes as its real part above its imaginary one, shape (frequencies, 2 n, columns). The derivative is computed in
    single precision, in half of the time: it is that of a loss.
    """

    @staticmethod
    def forward(ctx: Any, form: Tensor, factor: Tensor, V: Tensor) -> Tensor:
        one = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        half = torch.linalg.solve_triangular(factor, one, upper=False)
        solved = _embedded(half.mH @ half) @ V
        ctx.save_for_backward(solved.float())
        return V.reshape(-1, V.shape[-1]).mT @ solved.reshape(-1, V.shape[-1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        solved: Tensor = ctx.saved_tensors[0]
        both = (solved.reshape(-1, solved.shape[-1]) @ (slope + slope.mT).float()).reshape(solved.shape)
        of_form = None
        if ctx.needs_input_grad[0]:
            n = solved.shape[1] // 2
            found = -0.5 * (both @ solved.mT).to(slope.dtype)
            (a, b), (c, d) = ((rows[..., :n], rows[..., n:]) for rows in (found[:, :n], found[:, n:]))
            of_form = torch.complex(a + d, c - b)
        return of_form, None, both.to(slope.dtype) if ctx.needs_input_grad[2] else None


def _embedded(matrices: Tensor) -> Tensor:
    """[[Re, -Im], [Im, Re]]."""
    real, imaginary = matrices.real, matrices.imag
    return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)


def _summed(pivot: _Pivots, V: Tensor) -> Tensor:
    return _SummedCongruence.apply(pivot.form, pivot.factor, V)  # type: ignore[no-any-return, no-untyped-call]
