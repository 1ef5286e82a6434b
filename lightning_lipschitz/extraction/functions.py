"""Functions with a rule that are no single ATen operator: ``patterns`` finds them where they are written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def swish(x: Tensor, beta: Tensor | float) -> Tensor:
    """``x sigmoid(beta x)``: ``silu(beta x) / beta``, of the slopes of SiLU for every beta (1/2 for beta = 0)."""
    return x * torch.sigmoid(beta * x)


def stretched_gelu(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x (1 + erf(factor x)) / 2``: GELU of ``sqrt(2) factor x`` over ``sqrt(2) factor``, of its slopes."""
    return 0.5 * x * (1.0 + torch.erf(factor * x))


def shrunk_gelu(x: Tensor, divisor: Tensor | float) -> Tensor:
    """``x (1 + erf(x / divisor)) / 2``, of the slopes of GELU."""
    return 0.5 * x * (1.0 + torch.erf(x / divisor))


def tanh_gelu(x: Tensor, cubic: float, scale: float) -> Tensor:
    """``x (1 + tanh(scale (x + cubic x^3))) / 2``."""
    return 0.5 * x * (1.0 + torch.tanh(scale * (x + cubic * x * x * x)))


def leaky(x: Tensor, slope: Tensor | float) -> Tensor:
    """LeakyReLU with a slope for every entry."""
    return torch.where(x > 0, x, slope * x)


def root(x: Tensor, offset: float) -> Tensor:
    """``sqrt(x^2 + offset)``, the norm of ``(x, sqrt(offset))``."""
    return torch.sqrt(x * x + offset)


def squared_sine(x: Tensor) -> Tensor:
    """``sin(x)^2``, of derivative ``sin(2 x)``."""
    return torch.sin(x).square()


def squared_cosine(x: Tensor) -> Tensor:
    """``cos(x)^2``, of derivative ``-sin(2 x)``."""
    return torch.cos(x).square()


def l2_pool(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
    """The l2 norm of every window."""
    if len(kernel) == 1:
        return F.lp_pool1d(x, 2.0, kernel[0], stride[0])
    pool: Callable[..., Tensor] = F.lp_pool2d if len(kernel) == 2 else F.lp_pool3d
    return pool(x, 2.0, kernel, stride)


def unit_ball(x: Tensor, dim: int, least: float) -> Tensor:
    """``x / max(|x|, least)`` of the vectors along a dimension."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / length.clamp_min(least)


SCALED = {swish: "silu", stretched_gelu: "gelu", shrunk_gelu: "gelu"}  # function -> the activation of its slopes

BY_NAME: dict[str, Callable[..., Tensor]] = {
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    **{each.__name__: each for each in (root, squared_sine, squared_cosine, tanh_gelu)},
}


def of_activation(operator: str) -> Callable[..., Tensor]:
    """What an entry of the table of slopes computes."""
    return BY_NAME.get(operator) or getattr(torch.ops.aten, operator)
