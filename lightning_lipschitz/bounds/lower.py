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

from lightning_lipschitz.functional.clip import CLOSEST, Function, Pairs, ascend, quotients


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
) -> LowerBound:
    """Search from ``pairs`` of the given inputs.

    Args:
        function: maps (batch, ...) to (batch, ...), float64, differentiable.
        inputs: shape (batch, ...), where to start.
        steps: ascent steps; 0 only samples.
        pairs: how many pairs climb.
        generator: the only source of randomness.
        sampled: pairs to start with, of which the steepest climb; ``pairs`` if not given.
    """
    start = Pairs.of(*_first_pairs(inputs.detach().double(), max(pairs, sampled or 0), generator))
    if len(start) > pairs:
        with torch.no_grad():
            slopes = quotients(function, start.u, start.v)
        start = start.chosen(slopes.nan_to_num(nan=0.0).topk(pairs).indices)
    found, values = ascend(function, start, steps=steps)
    best = int(values.argmax())
    return LowerBound(float(values[best]), found.u[best], found.v[best])


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
