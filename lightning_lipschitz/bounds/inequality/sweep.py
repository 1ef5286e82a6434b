r"""Multipliers that are feasible by construction: one sweep from the input to the output, differentiable.

With rho = 1, eliminate M's blocks in the order of the sources and keep, for the maps k, l that are still to come, the
products ``G_kl = A_k S A_l'`` of their rows A with the inverse S of M's block of all sources before. When layer k is
reached, its pivot is, with D = 2 Lambda diag(alpha beta) and s = alpha + beta,

    X = 2 Lambda - Lambda diag(s) (I + G_kk D)^-1 G_kk diag(s) Lambda,

positive definite if and only if c in ``Lambda = c diag(t / w)^2``, w = beta - alpha, is below ``2 / p`` with p the
largest eigenvalue of ``diag(t) G_kk diag(t)``: put ``z = alpha y + w u``, a congruence, and u has slopes [0, 1]. So
every t > 0 and every share of that number in (0, 1) give multipliers that prove a bound, and all multipliers that prove
one are reached: LipSDP becomes an unconstrained smooth problem. Afterwards

    G <- G - G_.k D (I + G_kk D)^-1 G_k. + V' X^-1 V,      V = W_.k' + Lambda diag(s) (I + G_kk D)^-1 G_k.

and the squared bound is the largest eigenvalue of G of the output. With t = 1 and, for slopes [0, 1], half of what c
may be, it is ECLipsE-Fast (Xu, Sivaranjani, "ECLipsE: efficient compositional Lipschitz constant estimation for deep
neural networks", NeurIPS 2024), on any graph. Cost: an eigenvalue and a Cholesky factorisation a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_lipschitz.bounds.inequality.structure import Blocks, Structure

#: A layer, G, t -> a number near the largest eigenvalue of ``diag(t) G diag(t)``; t is one where it is None.
Largest: TypeAlias = Callable[[int, Tensor, "Tensor | None"], Tensor]

SLACK = 1e-8  # relative step into the interior, where rounding cannot spoil the proof
SMALLEST_PIVOT = 1e-3  # 1 - |s| / w is kept above it: with slopes [-kappa, kappa] the best pivot is singular
SHARED_PIVOT = 0.5  # in place of it where others read what the layer reads: the best number for x + |x|
_DOUBLINGS = 60


def largest_eigenvalue(_: int, matrix: Tensor, scale: Tensor | None = None) -> Tensor:
    """The largest eigenvalue of ``diag(scale) matrix diag(scale)``, to rounding."""
    seen = matrix if scale is None else matrix * torch.outer(scale, scale)
    largest: Tensor = torch.linalg.eigvalsh(seen)[-1]
    return largest


@dataclass(frozen=True, eq=False)
class Swept:
    """A feasible point, all scaled to rho = 1.

    Attributes:
        multipliers: lambda / rho, shape (n_k,) a layer.
        covariance: ``C S C'`` of the output, whose largest eigenvalue is rho; that of a difference ``c'f`` of outputs
            is ``c' C S C' c``.
    """

    multipliers: list[Tensor]
    covariance: Tensor


def sweep(
    structure: Structure,
    blocks: Blocks,
    log_weights: Sequence[Tensor] | None = None,
    shares: Sequence[Tensor] | None = None,
    largest: Largest = largest_eigenvalue,
) -> Swept | None:
    """The feasible point of these parameters; differentiable in them and in the weights.

    Args:
        structure: of the network.
        blocks: its matrices, float64.
        log_weights: theta, shape (n_k,) a layer, equal within groups; ``lambda = c exp(theta)``. Zero by default.
        shares: how much of what c may be it is, a number in (0, 1) a layer. By default what leaves most to the layers
            behind, as in the closed form.
        largest: finds p. A number below it is good enough where shares leave room: what is not feasible in the end is
            found out by its factorisation, and made smaller.

    Returns:
        A point; None where a layer, or the output, does not depend on the input.
    """
    first = {k: block for (k, j), block in blocks.items() if j == 0}
    G = {(i, j): gram(first[i]) if i == j else first[i] @ first[j].mT for i in first for j in first if i >= j}
    return sweep_on(1, G, structure, blocks, log_weights, shares, largest)


def sweep_on(
    first: int,
    G: dict[tuple[int, int], Tensor],
    structure: Structure,
    blocks: Blocks,
    log_weights: Sequence[Tensor] | None = None,
    shares: Sequence[Tensor] | None = None,
    largest: Largest = largest_eigenvalue,
) -> Swept | None:
    """The rest of a sweep: that of the layers from the number ``first``.

    Args:
        first: the number of a layer, or of the output.
        G: by maps k >= l >= ``first``, without the layers before; it is used up.
        structure, blocks, log_weights, shares, largest: as for :func:`sweep`, of all layers.

    Returns:
        The multipliers of these layers, and the covariance; None as there.
    """
    multipliers = []
    for k in range(first, structure.last):
        if (k, k) not in G:
            return None
        weights = None if log_weights is None else log_weights[k - 1].exp()
        pivot = _Pivot.of(structure, k, G, weights, None if shares is None else shares[k - 1], largest)
        if pivot is None:
            return None
        multipliers.append(pivot.lam)
        _eliminate(G, k, pivot, {i: blocks[i, k] for i in range(k + 1, structure.last + 1) if (i, k) in blocks})
    covariance = G.get((structure.last, structure.last))
    return None if covariance is None else Swept(multipliers, covariance)


@dataclass(frozen=True, eq=False)
class _Pivot:
    """A layer with its multipliers: ``total = diag(s)``, ``bend = D``, ``inner = I + G D``, ``form = Lambda^-1 X
    Lambda^-1`` and the lower factor of that. ``total`` is None where it is one, ``bend`` where it is zero."""

    lam: Tensor
    total: Tensor | None
    bend: Tensor | None
    inner: Tensor
    form: Tensor
    factor: Tensor

    @classmethod
    def of(
        cls,
        structure: Structure,
        k: int,
        G: dict[tuple[int, int], Tensor],
        weights: Tensor | None,
        share: Tensor | None,
        largest: Largest,
    ) -> _Pivot | None:
        """None where the layer does not depend on the input; smaller multipliers than asked for where slopes that
        differ inside the layer make the formula overshoot."""
        own, (s, w) = G[k, k], structure.spans[k - 1]
        step: Tensor | float
        if share is None:
            shared = any(i != k for i, j in G if j == k)
            back = (SHARED_PIVOT if shared else SMALLEST_PIVOT) * (1.0 - abs(s) / w)
            step = (1.0 - max(SLACK, back)) * 2.0 / (w * (w + abs(s)))
        else:
            step = (1.0 - SLACK) * share * 2.0 / structure.widths[k - 1] ** 2
        weights = torch.ones_like(own[0]) if weights is None else weights
        for p in estimates(k, own, weights.sqrt(), largest):
            if not bool(p > 0):
                return None
            pivot = cls._at(structure, k, own, step / p * weights)
            if pivot is not None:
                return pivot
        return None

    @classmethod
    def _at(cls, structure: Structure, k: int, own: Tensor, lam: Tensor) -> _Pivot | None:
        """With these multipliers; None where they are not feasible."""
        bend, inner, middle = None, own, own
        if k in structure.squared:
            bend = 2.0 * lam * structure.product[k - 1]
            inner = torch.eye(len(own), dtype=own.dtype, device=own.device) + own * bend
            middle = torch.linalg.solve(inner, own)
        total = None if k in structure.plain else structure.total[k - 1]
        form = torch.diag(2.0 / lam) - (middle if total is None else middle * torch.outer(total, total))
        factor, info = torch.linalg.cholesky_ex(form.detach())
        return None if int(info) else cls(lam, total, bend, inner, form, factor)


def estimates(
    k: int, own: Tensor, scale: Tensor | None, largest: Largest, exact: Largest = largest_eigenvalue
) -> Iterator[Tensor]:
    """p as it is found, to rounding, and then twice, four times ... that number."""
    if largest is not exact:
        yield largest(k, own, scale)
    to_rounding = exact(k, own, scale)
    for doubling in range(_DOUBLINGS):
        yield to_rounding * 2.0**doubling


def _eliminate(G: dict[tuple[int, int], Tensor], k: int, pivot: _Pivot, direct: dict[int, Tensor]) -> None:
    """G without layer k, seen by the maps behind it: by ``direct`` matrices, or by the sources that it reads."""
    G.pop((k, k))
    across = {i: G.pop((i, j)) for i, j in list(G) if j == k}
    before = across
    if pivot.bend is not None:
        before = {i: torch.linalg.solve(pivot.inner.mT, b, left=False) for i, b in across.items()}
    # the columns of Lambda^-1 V, as rows
    V = {i: b if pivot.total is None else b * pivot.total for i, b in before.items()}
    V |= {i: V[i] + W / pivot.lam if i in V else W / pivot.lam for i, W in direct.items()}
    products = congruent(pivot.form, pivot.factor, torch.cat(list(V.values())).mT)
    sizes = [len(v) for v in V.values()]
    rows = (torch.split(row, sizes, dim=1) for row in torch.split(products, sizes))
    for i, blocks in zip(V, rows, strict=True):
        for j, new in zip(V, blocks, strict=True):
            if j > i:
                continue
            if pivot.bend is not None and i in across and j in across:
                new = new - before[i] * pivot.bend @ across[j].mT
            G[i, j] = G[i, j] + new if (i, j) in G else new


class _Congruence(torch.autograd.Function):
    """``V' X^-1 V`` of a positive definite X with its lower factor, whose derivative takes two products; that of the
    factorisation itself would take four solves with X. Batches and complex matrices are as good."""

    @staticmethod
    def forward(ctx: Any, form: Tensor, factor: Tensor, V: Tensor) -> Tensor:
        half: Tensor = torch.linalg.solve_triangular(factor, V, upper=False)
        ctx.save_for_backward(torch.linalg.solve_triangular(factor.mH, half, upper=True))
        return half.mH @ half

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (solved,) = ctx.saved_tensors
        both = solved @ (slope + slope.mH)
        of_form, _, of_rows = ctx.needs_input_grad
        return -0.5 * both @ solved.mH if of_form else None, None, both if of_rows else None


def congruent(form: Tensor, factor: Tensor, V: Tensor) -> Tensor:
    """``V' X^-1 V``, with a graph to X (``form``) and V; ``factor`` is the lower factor of X, without a graph."""
    return _Congruence.apply(form, factor, V)  # type: ignore[no-any-return, no-untyped-call]


class _Gram(torch.autograd.Function):
    """``A A'``, whose derivative takes one product where that of ``A @ A.mH`` takes two."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows @ rows.mH

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        rows: Tensor = ctx.saved_tensors[0]
        return (slope + slope.mH) @ rows


def gram(rows: Tensor) -> Tensor:
    """``A A'``, of every matrix of a batch."""
    return _Gram.apply(rows)  # type: ignore[no-any-return, no-untyped-call]
