r"""The sweep over convolutions, one frequency at a time, up to the first matrix behind them.

Layers of convolutions on a torus, with one multiplier a channel, have an M that the Fourier transform makes block
diagonal: at frequency w, with the symbols H_k(w), slopes [0, beta] and ``L_k`` of the channels (the same at all w),

    G_1 = H_1 H_1^H,   X_k = 2 L_k - beta^2 L_k G_k L_k,   G_k+1 = H_k+1 X_k^-1 H_k+1^H,

and X_k is positive definite at every frequency if and only if c in ``L_k = c diag(t)^2`` is below 2 / (p beta^2), with
p the largest eigenvalue of ``diag(t) G_k(w) diag(t)`` over all w. A matrix that reads all positions, with transforms
What(w) of its rows, sums over the N frequencies: ``G = sum of What X_K^-1 What^H / N``. From there on the sweep is that
of :mod:`lightning_lipschitz.bounds.inequality.sweep`. Kernels are real, so of two opposite frequencies one will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality.structure import Structure
from lightning_lipschitz.bounds.inequality.sweep import SLACK, Largest, congruent, estimates, gram

_SQUARINGS = 5  # the 32nd root of the sum of 32nd powers: of 100 numbers that are alike it is 1.15 times the largest


def sweep_frequencies(
    structure: Structure,
    symbols: Sequence[Tensor],
    rows: Tensor,
    log_weights: Sequence[Tensor],
    shares: Sequence[Tensor],
    largest: Largest,
) -> tuple[list[Tensor], Tensor] | None:
    """The multipliers of the channels, and the covariance of what the matrix behind the convolutions gives.

    Args:
        structure: its first layers are the channels of those on the torus; slopes [0, beta], the same in a layer.
        symbols: complex, shape (frequencies, channels times phases, those of the source), a layer; phases last.
        rows: What, complex, shape (frequencies, outputs, those of the last source), each times the root of how often
            its frequency counts, divided by the number of positions.
        log_weights, shares: as for :func:`.sweep`, of the first layers at least.
        largest: gets G of all frequencies at once, and t of all channels and phases.

    Returns:
        None where a layer does not depend on the input.
    """
    multipliers = []
    own = gram(symbols[0])
    for k in range(1, len(symbols) + 1):
        found = _pivot(structure, k, own, log_weights[k - 1].exp(), shares[k - 1], largest)
        if found is None:
            return None
        lam, form, factor = found
        multipliers.append(lam)
        last = k == len(symbols)
        following = rows if last else symbols[k]
        columns = (following / _spread(lam, following.shape[-1])).mH
        own = _summed(form, factor, columns) if last else congruent(form, factor, columns)
    return multipliers, own


def largest_of_all(_: int, matrices: Tensor, scale: Tensor | None = None) -> Tensor:
    """The largest eigenvalue of ``diag(scale) matrix diag(scale)`` over all matrices, to rounding."""
    seen = matrices if scale is None else matrices * torch.outer(scale, scale)
    largest: Tensor = torch.linalg.eigvalsh(seen)[:, -1].amax()
    return largest


class WarmFrequencies:
    r"""A smooth number near :func:`largest_of_all`, for a product with a vector a frequency.

    One step of power iteration a call, from where the last call ended; the Rayleigh quotients r of all frequencies give
    ``(sum of r^32)^(1/32)``, so that all that are near the largest are pulled at together. The vectors are held in the
    gradient. A factorisation has to find out what is too small.

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
        one = torch.ones_like(matrices[0, 0].real) if scale is None else scale
        with torch.no_grad():
            vectors = self.vectors.get(number)
            if vectors is None or vectors.shape != matrices.shape[:2]:
                vectors = torch.linalg.eigh(matrices * torch.outer(one, one))[1][..., -1]
            else:
                vectors = _directions(one * _times(matrices, one * vectors.to(matrices)))
            self.vectors[number] = vectors
        scaled = one * vectors
        quotients = (scaled.conj() * _times(matrices, scaled)).sum(-1).real
        most = quotients.detach().amax()
        power = quotients / most
        for _ in range(_SQUARINGS):
            power = power.square()
        return most * power.sum() ** 2.0**-_SQUARINGS

    def state_dict(self) -> dict[int, Tensor]:
        """The vectors, on the CPU."""
        return {number: each.to("cpu", copy=True) for number, each in self.vectors.items()}

    def load_state_dict(self, state: Mapping[int, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.vectors = dict(state)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors[..., None])[..., 0]


def _directions(vectors: Tensor) -> Tensor:
    """Unit vectors; where one has died, that of equal entries."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    tiny = torch.finfo(lengths.dtype).tiny
    equal = torch.full_like(vectors, vectors.shape[-1] ** -0.5)
    return torch.where(lengths > tiny, vectors / lengths.clamp(min=tiny), equal)


def _spread(lam: Tensor, size: int) -> Tensor:
    """The numbers of the channels, for all phases of each."""
    return lam.repeat_interleave(size // len(lam))


def _pivot(
    structure: Structure, k: int, own: Tensor, weights: Tensor, share: Tensor, largest: Largest
) -> tuple[Tensor, Tensor, Tensor] | None:
    """``lambda``, and ``L^-1 X L^-1`` with its lower factor; None where the layer does not depend on the input."""
    square = structure.spans[k - 1][1] ** 2
    candidates: Iterable[Tensor] = estimates(k, own, _spread(weights, own.shape[-1]).sqrt(), largest, largest_of_all)
    for p in candidates:
        if not bool(p > 0):
            return None
        lam = (1.0 - SLACK) * share * 2.0 / square / p * weights
        form = torch.diag(2.0 / _spread(lam, own.shape[-1])) - square * own
        factor, info = torch.linalg.cholesky_ex(form.detach())
        if not bool(info.any()):
            return lam, form, factor
    return None


class _SummedCongruence(torch.autograd.Function):
    """The sum over a batch of the real parts of ``V^H X^-1 V``: one real product of all frequencies at once."""

    @staticmethod
    def forward(ctx: Any, form: Tensor, factor: Tensor, V: Tensor) -> Tensor:
        half: Tensor = torch.linalg.solve_triangular(factor, V, upper=False)
        ctx.save_for_backward(torch.linalg.solve_triangular(factor.mH, half, upper=True))
        flat = _flat(half)
        return flat.mT @ flat

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (solved,) = ctx.saved_tensors
        both = torch.view_as_complex(
            (_flat(solved) @ (slope + slope.mT)).reshape(*solved.shape[:2], 2, -1).mT.contiguous()
        )
        of_form, _, of_rows = ctx.needs_input_grad
        return -0.5 * both @ solved.mH if of_form else None, None, both if of_rows else None


def _flat(matrices: Tensor) -> Tensor:
    """Real and imaginary parts as rows, shape (2 times matrices times rows, columns)."""
    parts = torch.stack([matrices.real, matrices.imag], dim=2)
    return parts.reshape(-1, matrices.shape[-1])


def _summed(form: Tensor, factor: Tensor, V: Tensor) -> Tensor:
    return _SummedCongruence.apply(form, factor, V)  # type: ignore[no-any-return, no-untyped-call]
