r"""Rules for functions of a whole vector: softmax, maxima, sorting, norms.

Each becomes a layer in which every vector is one group of units (inequality (1) of ``network``, summed over the group):

    sum over i of (dz_i - alpha dy_i)(dz_i - beta dy_i) <= 0.

* A function with |dz| <= kappa |dy| satisfies it with alpha = -kappa, beta = kappa: the sum is |dz|^2 - kappa^2 |dy|^2.
* The gradient of a convex function with a kappa-Lipschitz gradient satisfies |dz|^2 <= kappa dz . dy (Baillon and
  Haddad 1977), which is the same with alpha = 0, beta = kappa: half as wide.

A function from a vector to a number is written as one to a vector of the same length, zero past its first entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lightning_lipschitz.extraction import functions
from lightning_lipschitz.extraction.registry import Context, rule
from lightning_lipschitz.extraction.rules.activation import maximum, minimum
from lightning_lipschitz.extraction.rules.linear import neg, reduced
from lightning_lipschitz.extraction.slopes import Slopes
from lightning_lipschitz.extraction.value import Value
from lightning_lipschitz.graph import VectorUnits

Function = Callable[..., torch.Tensor]


def on_vectors(
    context: Context,
    x: Value,
    slopes: Slopes,
    function: Function,
    *,
    scalar: bool = False,
    parameters: tuple[torch.Tensor, ...] = (),
    values: tuple[float, float] | None = None,
) -> Value:
    """``function`` of every vector along the last dimension.

    Args:
        context: where it stands.
        x: the vectors.
        slopes: (alpha, beta) of every vector.
        function: maps (..., width) to (..., width), or to (..., 1) when ``scalar``.
        scalar: whether the result has no last dimension.
        parameters: tensors of the shape of ``x``, handed to ``function``.
        values: between which numbers the results lie; by default it is worked out.
    """
    number, layout = context.builder.laid(x, vector=True)
    rows, width = layout.entries.shape
    given = [each.reshape(-1, width)[layout.positions[0]] for each in parameters]

    def run(y: torch.Tensor) -> torch.Tensor:
        return function(y.reshape(*y.shape[:-1], rows, width), *(each.to(y.device) for each in given)).flatten(-2)

    size = rows if scalar else rows * width
    alpha, beta = slopes
    node = VectorUnits(
        sources=(number,), size=size, alpha=alpha, beta=beta, width=width, scalar=scalar, name=context.name
    )
    return layout.place(context.builder.add(node, None, run, values), *(() if scalar else (width,)))


def vector_length(y: torch.Tensor) -> torch.Tensor:
    """The l2 norm of every vector."""
    length: torch.Tensor = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return length


def _last(x: Value, dim: int) -> Value:
    return x.moved(x.index.movedim(dim, -1))


def _back(x: Value, dim: int) -> Value:
    return x.moved(x.index.movedim(-1, dim))


def _reduced(context: Context, x: Value, dim: Any, keepdim: bool, function: Function) -> Value:
    """A function of slope at most 1 from vectors to numbers."""
    return reduced(x, dim, keepdim, lambda vectors: on_vectors(context, vectors, (-1.0, 1.0), function, scalar=True))


@rule("softmax", "_softmax", "_safe_softmax")
def softmax(context: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    """The gradient of the convex log-sum-exp, whose Hessian diag(p) - p p' has norm at most 1/2.

    By Gershgorin: row i sums to p_i (1 - p_i) + p_i sum_{j != i} p_j = 2 p_i (1 - p_i) <= 1/2 in absolute value.
    """
    return _back(on_vectors(context, _last(x, dim), (0.0, 0.5), lambda y: torch.softmax(y, -1), values=(0.0, 1.0)), dim)


@rule("log_softmax", "_log_softmax")
def log_softmax(context: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    """``y - 1 logsumexp(y)``, of Lipschitz constant sqrt(n).

    Its Jacobian I - 1 p' is a projection, because p'1 = 1. For n >= 2 neither it nor 1 p' is zero, so they have the
    same norm, |1| |p| = sqrt(n) |p| <= sqrt(n). For n = 1 it is zero.
    """
    kappa = math.sqrt(x.shape[dim]) * (1.0 + 2.0**-50)  # above the real root
    return _back(on_vectors(context, _last(x, dim), (-kappa, kappa), lambda y: torch.log_softmax(y, -1)), dim)


@rule("logsumexp")
def logsumexp(context: Context, x: Value, dim: Any, keepdim: bool = False) -> Value:
    """Its gradient p has |p|_2 <= |p|_1 = 1."""
    return _reduced(context, x, dim, keepdim, lambda y: torch.logsumexp(y, -1, keepdim=True))


@rule("amax")
def amax(context: Context, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """|max u - max v| <= max |u - v| <= |u - v|_2."""
    return _reduced(context, x, dim, keepdim, lambda y: y.amax(-1, keepdim=True))


@rule("amin")
def amin(context: Context, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """``-max(-x)``."""
    return neg(context, amax(context, neg(context, x), dim, keepdim))


def _register_extremum(operator: str, of_two: Callable[..., Value], of_entries: Callable[..., Value]) -> None:
    @rule(operator)
    def extremum(context: Context, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """The extremum of two tensors, of all entries, or the values along a dimension (positions jump: no rule)."""
        if isinstance(dim, (Value, torch.Tensor)):
            return of_two(context, x, dim)
        return of_entries(context, x) if dim is None else (of_entries(context, x, dim, keepdim), None)


_register_extremum("max", maximum, amax)
_register_extremum("min", minimum, amin)


@rule("sort")
def sort(
    context: Context, x: Value, dim: int = -1, descending: bool = False, stable: bool = False
) -> tuple[Value, None]:
    """The values. |sort(u) - sort(v)| <= |u - v|: by the rearrangement inequality no other matching is closer."""

    def ordered(y: torch.Tensor) -> torch.Tensor:
        return y.sort(-1, descending=descending).values

    return _back(on_vectors(context, _last(x, dim), (-1.0, 1.0), ordered), dim), None


@rule("topk")
def topk(
    context: Context, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, None]:
    """The first entries of the sorted vector."""
    if not sorted:
        raise context.unsupported("replace", "Without an order its values change places in jumps: use sorted=True.")
    values = sort(context, x, dim, descending=largest)[0]
    return values.moved(values.index.narrow(dim, 0, k)), None


@rule("linalg_vector_norm", "norm")
def vector_norm(
    context: Context, x: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    """The l2 norm, by the triangle inequality."""
    if ord != 2:
        raise context.unsupported("not yet", "Only the l2 norm has a rule.")
    return _reduced(context, x, dim, keepdim, vector_length)


@rule("unit_ball")
def unit_ball(context: Context, x: Value, dim: int, least: float) -> Value:
    """``x / max(|x|, r)``: the projection on a ball of radius r, divided by r.

    The projection on a convex set is the gradient of a convex function and 1-Lipschitz (Moreau 1965).
    """
    steepest = 1.0 / least * (1.0 + 2.0**-50)  # above the real quotient
    ball = on_vectors(context, _last(x, dim), (0.0, steepest), lambda y: functions.unit_ball(y, -1, least))
    return _back(ball, dim)


@rule("linalg_norm")
def norm(
    context: Context, x: Value, ord: Any = None, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    """The l2 norm of vectors, the Frobenius norm of matrices."""
    if ord is not None and not isinstance(dim, int) and len(dim or ()) != 1:
        raise context.unsupported("not yet", "Of a matrix, only the Frobenius norm has a rule: leave `ord` out.")
    return vector_norm(context, x, 2 if ord is None else ord, dim, keepdim)
