r"""Losses that train for what is certified.

An input x of class y is certified at the radius R if ``f_y(x) - f_j(x) > R K_yj`` for every other class j, K_ij a bound
of the l2 Lipschitz constant of ``f_i - f_j``. Raising the other logits by ``R K_yj`` before the loss makes a loss that
is small only where that holds (Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", NeurIPS 2018, here with a bound a
pair of classes in place of sqrt(2) times that of the whole map).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_lipschitz.errors import ArgumentError, ShapeError

Schedule: TypeAlias = Literal["constant", "linear", "over"] | Callable[[float], float]


def scheduled_radius(radius: float, schedule: Schedule, progress: float) -> float:
    """The radius of the loss at a moment of training.

    Args:
        radius: R, that of the certificates aimed at.
        schedule: "constant" is R; "linear" grows from 0 to R in the first half of training, and "over" from R to 2 R;
            then they stay. Or a function of the progress that returns a multiple of R.
        progress: share of training done, in [0, 1].

    Example:
        >>> [scheduled_radius(0.5, schedule, 0.25) for schedule in ("constant", "linear", "over")]
        [0.5, 0.25, 0.75]
    """
    if callable(schedule):
        return radius * float(schedule(progress))
    first_half = min(1.0, 2.0 * progress)
    return radius * {"constant": 1.0, "linear": first_half, "over": 1.0 + first_half}[schedule]


def margin_logits(logits: Tensor, target: Tensor, bounds: Tensor, radius: float | Tensor) -> Tensor:
    """Logits with those of other classes than the target's raised by ``radius * K``.

    Args:
        logits: shape (batch, classes).
        target: shape (batch,), class numbers; a row with a negative one, such as the ``ignore_index`` of a loss, stays.
        bounds: K, shape (classes, classes), bounds of the differences of two logits; its diagonal is not read.
        radius: l2 distance, in the units of the module's input.

    Returns:
        Shape (batch, classes), differentiable in ``logits`` and ``bounds``; float32 where ``logits`` has fewer digits.

    Raises:
        ShapeError, ArgumentError: what does not fit together.

    Example:
        >>> K = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
        >>> margin_logits(torch.tensor([[3.0, 1.0]]), torch.tensor([0]), K, radius=0.5)
        tensor([[3., 2.]])
    """
    _check(logits, target, bounds)
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = bounds.to(scores)[target.clamp(min=0)]
    own = torch.arange(bounds.shape[1], device=scores.device) == target[:, None]
    return scores + radius * rows.masked_fill(own | (target < 0)[:, None], 0.0)


def margin_cross_entropy(
    logits: Tensor, target: Tensor, bounds: Tensor, radius: float | Tensor, **keywords: Any
) -> Tensor:
    """Cross entropy of :func:`margin_logits`: small where inputs are right with all others closer than ``radius``.

    Args:
        logits: as for :func:`margin_logits`.
        target: as for :func:`margin_logits`.
        bounds: as for :func:`margin_logits`; ``DifferentiableBound.pairs()``, for training.
        radius: as for :func:`margin_logits`.
        keywords: of ``torch.nn.functional.cross_entropy``.

    Raises:
        ShapeError, ArgumentError: what does not fit together.

    Example:
        >>> K, logits, target = torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([[3.0, 1.0]]), torch.tensor([0])
        >>> round(margin_cross_entropy(logits, target, K, radius=1.0).item(), 4)  # log 2: the lead is 2, and so is R K
        0.6931
    """
    return F.cross_entropy(margin_logits(logits, target, bounds, radius), target, **keywords)


def _check(logits: Tensor, target: Tensor, bounds: Tensor) -> None:
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ShapeError("`logits`", tuple(logits.shape), "(batch, classes), floating-point numbers")
    if target.shape != logits.shape[:1] or target.is_floating_point():
        raise ShapeError("`target`", tuple(target.shape), f"({len(logits)},), one class number an input")
    classes = logits.shape[1]
    if bounds.shape != (classes, classes):
        raise ShapeError("`bounds`", tuple(bounds.shape), f"({classes}, {classes}) for these logits")
    if classes < 2:
        raise ArgumentError("logits", f"{classes} class", "two classes or more")


__all__ = ["Schedule", "margin_cross_entropy", "margin_logits", "scheduled_radius"]
