r"""Lower bounds: the steepest pair of inputs found.

For every pair, :math:`|f(u) - f(v)| / |u - v| \le \mathrm{Lip}(f)`. Pairs are pushed up-hill by gradient ascent on the
logarithm of the quotient
(Bungert et al., "CLIP: cheap Lipschitz training of neural networks", SSVM 2021, section 2.1), each with a step of its
own that grows while it helps and shrinks when it does not; a step that lowers the quotient is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lipschitz.bounds.clock import Clock
from lightning_lipschitz.functional.clip import CLOSEST, Function, Pairs, ascend, quotients

_GRADIENT = 3.0  # times an evaluation, with its gradient
_CLIMB = 10.0  # times an evaluation, what one pair must be able to climb
_SAMPLED, _PAIRS, _STEPS = 64, 8, 30  # in passing; 64 climbing 50 steps: five times the time for 2 % more
_AT_ONCE = 10  # steps between two looks at the clock


@dataclass(frozen=True, eq=False)
class LowerBound:
    """The best slope found.

    Attributes:
        value: ``|f(u) - f(v)| / |u - v|`` in the l2 norm, a LOWER bound of the Lipschitz constant.
        u, v: the pair that attains it, without a batch dimension, float64.
    """

    value: float
    u: Tensor
    v: Tensor


def steepest_pair(
    function: Function,
    inputs: Tensor,
    *,
    steps: int,
    pairs: int,
    generator: torch.Generator,
    sampled: int | None = None,
    clock: Clock | None = None,
) -> LowerBound:
    """Search from ``pairs`` of the given inputs.

    Args:
        function: maps (batch, ...) to (batch, ...), float64, differentiable.
        inputs: shape (batch, ...), where to start.
        steps: ascent steps; 0 only samples.
        pairs: how many pairs climb.
        generator: the only source of randomness.
        sampled: pairs to start with, of which the steepest climb; ``pairs`` if not given.
        clock: that ends the search; fewer pairs climb, and fewer steps, as one pair shows what they take.
    """
    clock = Clock(None) if clock is None else clock
    start = Pairs.of(*_first_pairs(inputs.detach().double(), max(pairs, sampled or 0), generator))
    each = _seconds_of_one(function, start, clock)
    start, pairs = start.chosen(torch.arange(_most(len(start), clock, each))), _most(pairs, clock, _CLIMB * each)
    if len(start) > pairs:
        with torch.no_grad():
            slopes = quotients(function, start.u, start.v)
        start = start.chosen(slopes.nan_to_num(nan=0.0).topk(pairs).indices)
    found, values = _climbed(function, start, steps, clock)
    best = int(values.argmax())
    return LowerBound(float(values[best]), found.u[best], found.v[best])


def sampled_slope(function: Function, inputs: Tensor, clock: Clock | None = None) -> float:
    """A lower bound for a look in passing, by random numbers of its own: arguments as of :func:`steepest_pair`."""
    generator = torch.Generator().manual_seed(0)
    found = steepest_pair(
        function, inputs, steps=_STEPS, pairs=_PAIRS, sampled=_SAMPLED, generator=generator, clock=clock
    )
    return found.value


def _seconds_of_one(function: Function, pairs: Pairs, clock: Clock) -> float:
    """Time to evaluate one pair; 0 where nothing depends on it."""
    if clock.limit is None:
        return 0.0
    start = clock.seconds
    with torch.no_grad():
        quotients(function, pairs.u[:1], pairs.v[:1])
    return clock.seconds - start


def _most(pairs: int, clock: Clock, each: float) -> int:
    """How many pairs there is time for, at least one, if each takes so long and half of the time is for something
    else."""
    left = clock.left
    return pairs if left is None or each * pairs <= 0.5 * left else max(1, int(0.5 * left / each))


def _climbed(function: Function, pairs: Pairs, steps: int, clock: Clock) -> tuple[Pairs, Tensor]:
    """The pairs after as many steps as there is time for, some at a time: a pair keeps its step length in between."""
    if clock.limit is None:
        return ascend(function, pairs, steps=steps)
    start = clock.seconds
    pairs, values = ascend(function, pairs, steps=0)
    taken, each = 0, _GRADIENT * (clock.seconds - start)
    while taken < steps and clock.left:
        count = min(_AT_ONCE, steps - taken, int(clock.left / each) - 1 if each > 0 else steps)
        if count < 1:
            break
        start = clock.seconds
        pairs, values = ascend(function, pairs, steps=count)
        taken, each = taken + count, (clock.seconds - start) / (count + 1)
    return pairs, values


def _first_pairs(inputs: Tensor, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pairs are two inputs, half an input and a neighbour at a tenth of the inputs' spread, or as far as it
    takes to tell slopes from rounding."""
    device = generator.device
    left = inputs[torch.randint(len(inputs), (pairs,), generator=generator, device=device).to(inputs.device)]
    right = inputs[torch.randint(len(inputs), (pairs,), generator=generator, device=device).to(inputs.device)]
    noise = torch.randn(left.shape, generator=generator, dtype=torch.float64, device=device).to(inputs.device)
    spread = torch.maximum(0.1 * inputs.std(unbiased=False), 10.0 * CLOSEST * (1.0 + inputs.abs().mean()))
    near = left + spread * noise
    same = (left == right).flatten(1).all(dim=1)
    take_near = same | (torch.arange(pairs, device=inputs.device) % 2 == 0)
    return left, torch.where(take_near.reshape(-1, *[1] * (left.ndim - 1)), near, right)
