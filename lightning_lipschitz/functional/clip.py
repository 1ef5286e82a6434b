r"""Cheap Lipschitz training: the quotient of pairs, its ascent, and the penalty.

Bungert, Raab, Roith, Schwinn, Tenbrinck, "CLIP: cheap Lipschitz training of neural networks", SSVM 2021, equations (3)
to (5): training minimises :math:`\mathrm{loss} + \lambda \max_{(u,v)} |f(u) - f(v)| / |u - v|` over a few pairs that
are kept from step to step and pushed up-hill by gradient ascent on the quotient. The quotient is a LOWER bound of the
Lipschitz constant. What differs from the paper's code: the step of a pair is stored; its length is relative to
:math:`|u - v|` along the normalised gradient, so that it has no unit; gradients are taken in the inputs alone.

Nothing here touches parameter gradients, buffers, flags or global random numbers; ``function`` has to keep to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_lipschitz.errors import ArgumentError

Function = Callable[[Tensor], Tensor]
Start = Literal["noise", "halves", "random"]

FIRST_STEP = 0.1  # relative to |u - v|
GROWTH, SHRINKAGE = 1.5, 0.5
CLOSEST = 1e-3  # |u - v| relative to 1 + |u|: below it float32, and in the end float64, shows slopes that are not there


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of inputs.

    Attributes:
        u, v: shape (pairs, ...).
        step: shape (pairs,), the next step's length relative to |u - v|.
    """

    u: Tensor
    v: Tensor
    step: Tensor

    @classmethod
    def of(cls, u: Tensor, v: Tensor) -> Pairs:
        """With the step to begin with."""
        return cls(u.detach(), v.detach(), torch.full((len(u),), FIRST_STEP, dtype=u.dtype, device=u.device))

    def __len__(self) -> int:
        return len(self.u)

    def to(self, like: Tensor) -> Pairs:
        """In another dtype and on another device."""
        return Pairs(self.u.to(like), self.v.to(like), self.step.to(like))

    def chosen(self, indices: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.u[indices], self.v[indices], self.step[indices])


def initial_pairs(
    inputs: Tensor, pairs: int, *, start: Start = "noise", noise: float = 0.1, generator: torch.Generator
) -> Pairs:
    """Where the ascent begins.

    Args:
        inputs: shape (batch, ...), floating point.
        pairs: at most this many; a small batch gives fewer.
        start: "noise", an input and itself plus noise; "halves", an input of the batch's first half and one of its
            second; "random", normal noise in place of the input, and that plus noise.
        noise: standard deviation of the noise, in units of the inputs.
        generator: on the CPU; the only source of randomness.

    Raises:
        ArgumentError: an empty batch; one input, for "halves"; an unknown ``start``.

    Example:
        >>> made = initial_pairs(torch.zeros(8, 3), 4, generator=torch.Generator().manual_seed(0))
        >>> made.u.shape, bool((made.u != made.v).all())
        (torch.Size([4, 3]), True)
    """
    if start not in ("noise", "halves", "random"):
        raise ArgumentError("start", start, "'noise', 'halves' or 'random'")
    needed = 2 if start == "halves" else 1
    if len(inputs) < needed:
        raise ArgumentError("inputs", f"a batch of {len(inputs)}", f"a batch of {needed} or more")

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(
            like
        )  # whatever the default dtype is

    inputs = inputs.detach()
    if start == "halves":
        half = min(len(inputs) // 2, pairs)
        return Pairs.of(inputs[:half].clone(), inputs[half : 2 * half].clone())
    u = inputs[:pairs].clone()
    u = normal(u) if start == "random" else u
    return Pairs.of(u, u + noise * normal(u))


def quotients(function: Function, u: Tensor, v: Tensor, *, p_in: float = 2.0, p_out: float = 2.0) -> Tensor:
    """``|f(u) - f(v)|_p_out / |u - v|_p_in`` pair by pair, shape (pairs,); one call of ``function`` on 2 pairs inputs.

    Differentiable in u, v and whatever ``function`` holds. Where u and v all but coincide the denominator is the
    least distance at which rounding leaves a slope, so the quotient is too low there, and its gradient is finite.

    Example:
        >>> quotients(lambda x: 3 * x, torch.ones(2, 4), torch.tensor([[1.0] * 4, [0.0] * 4])).tolist()
        [0.0, 3.0]
    """
    outputs = function(torch.cat([u, v]))
    outputs = outputs.reshape(len(outputs), -1)  # of models with one number a sample, too
    change = torch.linalg.vector_norm(outputs[: len(u)] - outputs[len(u) :], p_out, dim=1)
    slopes: Tensor = change / _distances(u, v, p_in)
    return slopes


def ascend(
    function: Function,
    pairs: Pairs,
    *,
    steps: int = 1,
    p_in: float = 2.0,
    p_out: float = 2.0,
    within: tuple[float, float] | None = None,
) -> tuple[Pairs, Tensor]:
    """Gradient ascent on the logarithm of every pair's quotient; a step that does not raise it is not taken.

    Args:
        function: maps (batch, ...) to (batch, ...), differentiable in its input.
        pairs: where to start.
        steps: a pair's step grows by half after a success, and is halved after a failure.
        p_in, p_out: norms, 1 to infinity.
        within: range that inputs are clamped to.

    Returns:
        The pairs, and their quotients, shape (pairs,), without a graph.
    """
    value, gradient = _slopes(function, pairs, p_in, p_out, steps > 0)
    for k in range(steps):
        there = _moved(pairs, gradient, within)
        new_value, new_gradient = _slopes(function, there, p_in, p_out, k < steps - 1)
        better = (new_value > value) & (_lengths(there.u - there.v) > _closest(there.u))
        step = torch.where(better, GROWTH * pairs.step, SHRINKAGE * pairs.step)
        pairs = Pairs(_where(better, there.u, pairs.u), _where(better, there.v, pairs.v), step)
        value = torch.where(better, new_value, value)
        if new_gradient:
            gradient = tuple(_where(better, new, old) for new, old in zip(new_gradient, gradient, strict=True))
    return pairs, value


def penalty(
    function: Function,
    pairs: Pairs,
    values: Tensor,
    *,
    worst: bool = True,
    squared: bool = False,
    p_in: float = 2.0,
    p_out: float = 2.0,
) -> Tensor:
    """The largest quotient, or the mean of all, with a graph to what ``function`` holds.

    Args:
        values: the quotients as :func:`ascend` returned them; they choose the worst.
        worst: only that pair goes through ``function`` again.
        squared: the quotient's square, as in the paper's code.

    Example:
        >>> weight = torch.tensor(2.0, requires_grad=True)
        >>> pairs = Pairs.of(torch.ones(3, 4), torch.zeros(3, 4))
        >>> penalty(lambda x: weight * x, pairs, torch.ones(3)).backward()
        >>> weight.grad
        tensor(1.)
    """
    chosen = pairs.chosen(values.argmax()[None]) if worst else pairs
    slopes = quotients(function, chosen.u, chosen.v, p_in=p_in, p_out=p_out)
    return (slopes.square() if squared else slopes).mean()


def _slopes(
    function: Function, pairs: Pairs, p_in: float, p_out: float, wanted: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Quotients, and the gradients of their logarithms in u and v if they are wanted."""
    with torch.inference_mode(False), torch.set_grad_enabled(wanted):
        u, v = (x.clone().requires_grad_(wanted) for x in (pairs.u, pairs.v))
        value = quotients(function, u, v, p_in=p_in, p_out=p_out)
        if not wanted:
            return value.nan_to_num(nan=0.0, posinf=0.0), ()
        tiny = torch.finfo(value.dtype).tiny
        gradient = torch.autograd.grad(value.clamp_min(tiny).log().sum(), (u, v), allow_unused=True)
    gradients = tuple(torch.zeros_like(pairs.u) if g is None else g.nan_to_num(0.0, 0.0, 0.0) for g in gradient)
    return value.detach().nan_to_num(nan=0.0, posinf=0.0), gradients


def _moved(pairs: Pairs, gradient: tuple[Tensor, ...], within: tuple[float, float] | None) -> Pairs:
    """Both ends a step of ``step |u - v|`` along their gradients."""
    reach = pairs.step * _lengths(pairs.u - pairs.v)
    ends = []
    for x, g in zip((pairs.u, pairs.v), gradient, strict=True):
        length = reach / _lengths(g).clamp_min(torch.finfo(g.dtype).tiny)
        moved = x + g * length.reshape(-1, *[1] * (x.ndim - 1))
        ends.append(moved if within is None else moved.clamp(*within))
    return Pairs(ends[0], ends[1], pairs.step)


def _distances(u: Tensor, v: Tensor, p: float) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm((u - v).flatten(1), p, dim=1)
    return torch.maximum(distances, _closest(u).to(distances))


def _closest(u: Tensor) -> Tensor:
    """The least distance, shape (): for a typical coordinate, not for the sum over all of them."""
    relative = max(CLOSEST, math.sqrt(torch.finfo(u.dtype).eps))
    with torch.no_grad():
        return relative * (1.0 + u.abs().mean())


def _lengths(x: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return lengths


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)
