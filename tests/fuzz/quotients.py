"""Slopes of a function in float64, and how much of them rounding may have made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_NOISE = 2.0**-30
_ROUNDINGS = 64  # of one operator: no sum here has more terms than that
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Pairs:
    """Pairs of inputs, row by row, with how far apart their outputs and they themselves are."""

    u: torch.Tensor
    v: torch.Tensor
    rise: torch.Tensor
    run: torch.Tensor

    def above(self, function, bound):
        """The steepest pair that is above the bound by more than rounding: (slope, u, v); else None.

        A difference of two computed outputs is off by what rounding did to each. Every operator is off by a relative
        2^-53 times the number of terms that it adds up, in its inputs and its outputs; what such errors come to at the
        end is measured, to first order, by disturbing every operator by 2^-30 at random (see ``Blur``), and scaled
        down.
        """
        # The difference of two inputs is rounded once an entry, and its norm once an entry more.
        excess = self.rise - bound * self.run * (1 + (self.u[0].numel() + 4) * _UNIT)
        for row in excess.nan_to_num(-1.0).argsort(descending=True)[:8].tolist():
            if not excess[row] > 0:
                return None
            moved = sum(_sensitivity(function, end[row : row + 1]) for end in (self.u, self.v))
            if excess[row] > _ROUNDINGS * _UNIT * moved:
                return float(self.rise[row] / self.run[row]), self.u[row], self.v[row]
        return None


class Blur(TorchDispatchMode):
    """Every operator that computes sees inputs, and gives outputs, that are off by random relative amounts to 2^-30.

    Sums and products are backward stable: what they compute is what exact ones make of inputs off by a rounding a term.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator between two disturbances; what only moves data is exact."""
        kwargs = kwargs or {}
        if func.is_view or func.overloadpacket.__name__ in _MOVES:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            made = func(args[0], *tree_map(_blurred, args[1:]), **kwargs)
            return made.mul_(_noise(made)) if _is_float(made) else made
        return tree_map(_blurred, func(*tree_map(_blurred, args), **kwargs))


_MOVES = ("clone", "copy_", "_to_copy", "detach", "cat", "stack", "index", "index_select", "gather", "flip", "roll")


def _is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _blurred(value):
    return value * _noise(value) if _is_float(value) else value


def _noise(like):
    return 1 + _NOISE * (2 * torch.rand(like.shape, dtype=like.dtype) - 1)


def _sensitivity(function, x):
    """What a relative error of one in every operator would do to the outputs, to first order."""
    exact, largest = function(x), 0.0
    for draw in range(4):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw)
            with Blur():
                blurred = function(x)
        largest = max(largest, float((blurred - exact).norm()) / _NOISE)
    return max(largest, float(exact.norm()))


def starts(shape, generator):
    """Inputs near and far, with ties, at the places where activations bend."""
    rows = torch.tensor([1e-3, 0.1, 1, 1, 3, 10, 1e3, 1e6], dtype=torch.float64)
    usual = torch.randn(len(rows), *shape, dtype=torch.float64, generator=generator)
    usual = usual * rows.reshape(-1, *[1] * len(shape))
    whole = torch.randint(-3, 4, (3, *shape), generator=generator).double()
    whole[1] /= 2
    whole[2] = whole[2] * 0.3
    flat = torch.stack([torch.zeros(shape), torch.ones(shape), torch.full(shape, -1e3)]).double()
    return torch.cat([usual, whole, flat])


def sample(function, shape, generator):
    """Pairs, near and far, along random directions and along those that a gradient shows to be steep."""
    x = starts(shape, generator)
    scale = x.flatten(1).abs().amax(1).clamp(min=1.0).reshape(-1, *[1] * len(shape))
    random = _unit(torch.randn(x.shape, dtype=x.dtype, generator=generator))
    steep = random
    for _ in range(2):
        steep = _steeper(function, x, steep, scale)
    us, vs = [], []
    for direction, steps in ((random, (1e-4, 1.0)), (steep, (1e-5, 1e-3, 0.3, 30.0)), (-steep, (1e-4, 1.0))):
        for step in steps:
            us.append(x)
            vs.append(x + step * scale * direction)
    order = torch.randperm(len(x), generator=generator)
    u, v = torch.cat([*us, x]), torch.cat([*vs, x[order]])
    with torch.no_grad():
        rise = (function(u) - function(v)).norm(dim=1)
    return Pairs(u, v, rise, (u - v).flatten(1).norm(dim=1))


def _unit(direction):
    return direction / direction.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(-1, *[1] * (direction.ndim - 1))


def _steeper(function, x, direction, scale):
    """One step of a power iteration on the Jacobian's square, where the function can be differentiated."""
    start = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            here = function(start)
            with torch.no_grad():
                way = function(x + 1e-3 * scale * direction) - here
            (gradient,) = torch.autograd.grad((here * _unit(way.nan_to_num())).sum(), start)
    except RuntimeError:  # what is written in place cannot always be differentiated
        return direction
    gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
    flat = gradient.flatten(1).norm(dim=1) == 0
    return torch.where(flat.reshape(-1, *[1] * (x.ndim - 1)), direction, _unit(gradient))
