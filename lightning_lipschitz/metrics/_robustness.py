"""The base of the metrics of certified radii: the constant, the units, the radii of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_lipschitz.certificate import Certificate, require_proved
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.functional.robustness import certified_radius
from lightning_lipschitz.pairwise import PairwiseBounds
from lightning_lipschitz.real import real_array

Lipschitz: TypeAlias = float | Tensor | Certificate | PairwiseBounds
Scale: TypeAlias = float | Sequence[float] | Tensor


class RadiusMetric(Metric):
    r"""A metric of certified radii in the units of raw inputs.

    If the model sees ``(x - mean) / std`` channel by channel, then a change dx of the raw input is one of
    ``|dx / std| <= |dx| / min(std)`` of what the model sees, so a radius of the model times min(std) is one of raw
    inputs. That is ``scale``: the ``std`` of the normalisation, and 1 where the model normalises by itself or radii in
    normalised units are wanted.

    A ``MetricCollection`` lets metrics share states that were equal after the first batch. Those of different radii or
    constants often are, and go apart later. ``nothing`` keeps them apart: NaN equals none, not even itself.
    """

    nothing: Tensor

    def __init__(self, lipschitz: Lipschitz | None, scale: Scale, logit_error: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nothing", torch.tensor(torch.nan), dist_reduce_fx="sum")
        self.lipschitz = lipschitz
        self.scale = _smallest(scale)
        if not (isinstance(logit_error, (int, float)) and 0 <= logit_error < math.inf):
            raise ArgumentError("logit_error", logit_error, "a finite number >= 0")
        self.logit_error = logit_error

    @property
    def lipschitz(self) -> Tensor | None:
        """The constant in use, float64: one number, or a matrix for the pairs. Set it anew when weights change."""
        return self._lipschitz

    @lipschitz.setter
    def lipschitz(self, value: Lipschitz | None) -> None:
        self._lipschitz = None if value is None else _constant(value)

    def _radii(self, logits: Tensor, target: Tensor) -> Tensor:
        """Shape (batch,), float64, rounded down, raw units."""
        if self._lipschitz is None:
            raise ArgumentError("lipschitz", None, "set before the first batch: a bound, or what `certify` returned")
        constant = self._lipschitz
        radii = certified_radius(logits.detach(), constant, target, logit_error=self.logit_error)
        return radii if self.scale == 1.0 else radii * self.scale * (1.0 - 2.0**-51)


def _constant(value: Lipschitz) -> Tensor:
    if isinstance(value, Certificate):
        require_proved(value, _NO_RADIUS)
        return torch.tensor(value.upper_bound, dtype=torch.float64)
    if isinstance(value, PairwiseBounds):
        require_proved(value.whole, _NO_RADIUS)
    array = value.matrix if isinstance(value, PairwiseBounds) else value
    try:
        constant = _double(array)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError("lipschitz", value, _ACCEPTED) from None
    square = constant.ndim == 2 and constant.shape[0] == constant.shape[1]
    if not (constant.ndim == 0 or square) or not bool((constant >= 0).all()):
        raise ArgumentError("lipschitz", value, _ACCEPTED)
    return constant


def _double(values: Any) -> Tensor:
    """A copy as float64. A Python float does not pass through float32, which may be smaller."""
    return torch.from_numpy(real_array(values, "lipschitz or scale"))


def share(part: Tensor, total: int) -> Tensor:
    """``part / total`` of integers as float32, rounded down: it is 1 only where the two are equal."""
    device, part = part.device, part.cpu()
    ratio = part.double() / total
    nearest = ratio.float()
    below = torch.nextafter(nearest, torch.tensor(-math.inf))
    # In integers, as float64 has rounded too: nearest = m / 2^k <= part / total.
    down = [x if Fraction(x) * total <= n else y for x, y, n in zip(*_lists(nearest, below, part), strict=True)]
    return torch.tensor(down, dtype=torch.float32).reshape(ratio.shape).to(device)


def _lists(*tensors: Tensor) -> list[list[Any]]:
    return [tensor.flatten().tolist() for tensor in tensors]


_NO_RADIUS = "no certified radius comes from it"
_ACCEPTED = "a bound >= 0, a square matrix of such bounds, a Certificate or PairwiseBounds"


def _smallest(scale: Scale) -> float:
    try:
        values = _double(scale).flatten()
    except (TypeError, ValueError, RuntimeError):
        values = torch.zeros(0)
    if not len(values) or not bool(((values > 0) & values.isfinite()).all()):
        raise ArgumentError("scale", scale, "the std of the normalisation: a number > 0, or one for each channel")
    return float(values.min())
