r"""Lower bounds: the steepest pair of inputs found.

For every pair, :math:`|f(u) - f(v)| / |u - v| \le \mathrm{Lip}(f)`. Pairs are pushed up-hill by gradient ascent on the
logarithm of the quotient
(Bungert et al., "CLIP: cheap Lipschitz training of neural networks", SSVM 2021, section 2.1), each with a step of its
own that grows while it helps and shrinks when it does not; a step that lowers the quotient is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

FIRST_STEP = 0.1  # relative to |u - v|
GROWTH, SHRINKAGE = 1.5, 0.5
CLOSEST = (
    1e-3  # |u - v| relative to the spread of the inputs: below it float64 cancels and shows slopes that are not there
)


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
    u, v = _first_pairs(inputs.detach().double(), max(pairs, sampled or 0), generator)
    closest = CLOSEST * (1.0 + u.std().nan_to_num()).item()
    value, gradient = _slope(function, u, v)
    steepest = value.topk(pairs).indices
    u, v, value, gradient = u[steepest], v[steepest], value[steepest], (gradient[0][steepest], gradient[1][steepest])
    step = torch.full((pairs,), FIRST_STEP, dtype=torch.float64, device=u.device)
    for _ in range(steps):
        new_u, new_v = (_moved(x, g, step, u, v) for x, g in zip((u, v), gradient, strict=True))
        new_value, new_gradient = _slope(function, new_u, new_v)
        better = (new_value > value) & (_norms(new_u - new_v) > closest)
        u, v = _where(better, new_u, u), _where(better, new_v, v)
        gradient = (_where(better, new_gradient[0], gradient[0]), _where(better, new_gradient[1], gradient[1]))
        value = torch.where(better, new_value, value)
        step = torch.where(better, GROWTH * step, SHRINKAGE * step)
    best = int(value.argmax())
    return LowerBound(float(value[best]), u[best], v[best])


def _first_pairs(inputs: Tensor, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pairs are two inputs, half an input and a neighbour at a tenth of the inputs' spread."""
    device = generator.device
    left = inputs[torch.randint(len(inputs), (pairs,), generator=generator, device=device).to(inputs.device)]
    right = inputs[torch.randint(len(inputs), (pairs,), generator=generator, device=device).to(inputs.device)]
    noise = torch.randn(left.shape, generator=generator, dtype=torch.float64, device=device).to(inputs.device)
    spread = 0.1 * (inputs.std(unbiased=False) + 1e-2 * inputs.abs().max() + 1e-6)
    near = left + spread * noise
    same = _norms(left - right) == 0
    take_near = same | (torch.arange(pairs, device=inputs.device) % 2 == 0)
    return left, _where(take_near, near, right)


def _slope(function: Function, u: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Quotients, shape (pairs,), and the gradients of their logarithms; the model's parameters get no gradient."""
    with torch.inference_mode(False), torch.enable_grad():
        u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
        change = function(torch.cat([u, v])).flatten(1)
        quotient = _norms(change[: len(u)] - change[len(u) :]) / _norms(u - v)
        gradient = torch.autograd.grad(quotient.clamp_min(1e-300).log().sum(), (u, v), allow_unused=True)
    left, right = (torch.zeros_like(u) if g is None else g.nan_to_num() for g in gradient)
    return quotient.detach().nan_to_num(nan=0.0), (left, right)


def _moved(x: Tensor, gradient: Tensor, step: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """A step of ``step |u - v|`` along the gradient."""
    length = step * _norms(u - v) / _norms(gradient).clamp_min(1e-300)
    return x + gradient * length.reshape(-1, *[1] * (x.ndim - 1))


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms
