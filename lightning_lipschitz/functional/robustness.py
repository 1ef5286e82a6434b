r"""From logits and a Lipschitz constant to the distance within which a prediction cannot change.

Let f have the l2 Lipschitz constant L and let class i lead at x by ``m_j = f_i(x) - f_j(x)``. The linear functional
``f_i - f_j = (e_i - e_j)'f`` has a constant of at most ``|e_i - e_j| L = sqrt(2) L``, or a smaller one, L_ij, that was
proved of itself. Hence i still leads at every x' with ``|x' - x| < min_j m_j / L_ij`` (Tsuzuku, Sato, Sugiyama,
"Lipschitz-margin training", NeurIPS 2018, with L_ij = sqrt(2) L).

What is claimed: the radius is that of the function in real arithmetic whose logits at x are the numbers given. The
arithmetic here is float64 and rounded down. Logits that were themselves computed in floating point are a little off
those of the model; ``logit_error`` is for that: no logit is further off than it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.real import real_array

# Subtraction of logits and of the allowance, sqrt(2), its product, a quotient and this factor itself: relative errors
# of at most 2^-53 each, six of them; the factor takes away sixteen.
_DOWN = 1.0 - 2.0**-49
_SQRT2 = math.sqrt(2.0)
_SMALLEST = torch.finfo(torch.float64).tiny  # below it, rounding is no longer relative


def margins(logits: Tensor, target: Tensor | None = None) -> Tensor:
    """By how much the target class leads: ``f_target - max of the others``, negative where it does not lead.

    Args:
        logits: shape (batch, classes); (batch,) or (batch, 1) is a binary classifier that decides by the sign.
        target: shape (batch,), class numbers; by default the predicted class.

    Returns:
        Shape (batch,), float64, differentiable in ``logits``. NaN in a row gives NaN.

    Raises:
        ShapeError, ArgumentError: logits and target that do not belong together.

    Example:
        >>> margins(torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 4.0]]), torch.tensor([0, 1]))
        tensor([ 2., -3.], dtype=torch.float64)
    """
    scores, leader = _read(logits, target)
    if scores.shape[1] == 1:
        return _signed(scores, leader)
    return _leads(scores, leader).amin(dim=1)


def certified_radius(
    logits: Tensor, lipschitz: float | Tensor, target: Tensor | None = None, *, logit_error: float = 0.0
) -> Tensor:
    """The l2 distance within which the class cannot change; zero where the target is not predicted.

    Args:
        logits: as for :func:`margins`.
        lipschitz: one constant of the map from inputs to logits, or the matrix of constants of ``f_i - f_j``, shape
            (classes, classes), such as ``pairwise_bounds(...).matrix``. Upper bounds, or the result is no certificate.
        target: shape (batch,), class numbers; by default the predicted class.
        logit_error: no logit is further than this from the model's in real arithmetic.

    Returns:
        Shape (batch,), float64, rounded down, in the units of the input that ``lipschitz`` is for. Every input closer
        than this has the class of ``target``. Zero where a logit is not finite or ``lipschitz`` is infinite; infinity
        where a class leads and the constant is zero. Differentiable in ``logits`` and ``lipschitz``.

    Raises:
        ShapeError, ArgumentError: what does not fit together, a negative or NaN constant.

    Example:
        >>> certified_radius(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), 2.0, torch.tensor([0, 0]))
        tensor([0.7071, 0.0000], dtype=torch.float64)
        >>> certified_radius(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 9.0], [1, 0, 1], [9, 1, 0]]))
        tensor([0.3333], dtype=torch.float64)
    """
    if not (isinstance(logit_error, (int, float)) and 0 <= logit_error < math.inf):
        raise ArgumentError("logit_error", logit_error, "a finite number >= 0")
    scores, leader = _read(logits, target)
    constant = _constant(lipschitz, scores)
    usable = scores.isfinite().all(dim=1)
    scores = torch.where(usable[:, None], scores, torch.zeros_like(scores))
    if scores.shape[1] == 1:
        leads, slopes = _less(_signed(scores, leader)[:, None], logit_error), constant.expand(len(scores), 1)
    else:
        leads = _less(_leads(scores, leader), 2.0 * logit_error)
        slopes = constant[leader] if constant.ndim == 2 else (_SQRT2 * constant).expand_as(leads)
    return torch.where(usable, _least_quotient(leads, slopes), 0.0)


def _less(leads: Tensor, allowance: float) -> Tensor:
    """Leads without the allowance; rounded down first, because the subtraction may cancel."""
    return leads * _DOWN - allowance if allowance > 0 else leads


def _least_quotient(leads: Tensor, slopes: Tensor) -> Tensor:
    """min over columns of leads / slopes, rounded down and at least 0. Infinite leads stand for no competitor."""
    positive = leads > 0
    moves = positive & (slopes > 0) & leads.isfinite()
    # A subnormal slope may have been rounded by a lot: the smallest normal number is above it.
    quotients = torch.where(moves, leads, 1.0) / torch.where(moves, slopes, 1.0).clamp(min=_SMALLEST) * _DOWN
    finite = quotients.clamp(max=torch.finfo(torch.float64).max)
    radii = torch.where(moves, finite, torch.where(positive, math.inf, 0.0)).amin(dim=1)
    return torch.where(radii < _SMALLEST, 0.0, radii)


def _leads(scores: Tensor, leader: Tensor) -> Tensor:
    """``f_leader - f_j``, shape (batch, classes); infinity in the leader's own column."""
    differences = scores.gather(1, leader[:, None]) - scores
    # Finite logits whose difference overflows: the largest number is below it. The infinity of an infinite logit stays.
    largest = torch.finfo(scores.dtype).max
    finite = scores.isfinite() & scores.gather(1, leader[:, None]).isfinite()
    differences = torch.where(finite, differences.clamp(-largest, largest), differences)
    return differences.scatter(1, leader[:, None], math.inf)


def _signed(scores: Tensor, leader: Tensor) -> Tensor:
    return torch.where(leader == 1, scores[:, 0], -scores[:, 0])


def _read(logits: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits as float64 (exact), shape (batch, classes), and the class that is to lead."""
    if (
        not isinstance(logits, Tensor)
        or not logits.is_floating_point()
        or logits.ndim not in (1, 2)
        or not logits.numel()
    ):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ArgumentError("logits", found, "a floating-point tensor of shape (batch, classes), not empty")
    scores = logits.cpu() if logits.device.type == "mps" else logits  # MPS has no float64
    scores = (scores[:, None] if scores.ndim == 1 else scores).double()
    binary = scores.shape[1] == 1
    if target is None:
        return scores, (scores[:, 0] > 0).long() if binary else scores.detach().argmax(dim=1)
    if target.shape != scores.shape[:1] and target.shape != (len(scores), 1):
        raise ShapeError("`target`", tuple(target.shape), f"({len(scores)},), one class number an input")
    leader = target.reshape(-1).to(scores.device).long()
    classes = 2 if binary else scores.shape[1]
    if bool(((leader < 0) | (leader >= classes) | (leader != target.reshape(-1).to(scores.device))).any()):
        raise ArgumentError(
            "target", sorted(set(target.cpu().flatten().tolist()))[:8], f"class numbers from 0 to {classes - 1}"
        )
    return scores, leader


def _constant(lipschitz: float | Tensor, scores: Tensor) -> Tensor:
    # A Python float would become float32, possibly a smaller number.
    exact = torch.from_numpy(real_array(lipschitz, "lipschitz"))  # refuses what is not real
    tracked = isinstance(lipschitz, Tensor) and lipschitz.requires_grad
    constant = (lipschitz if tracked else exact).to(scores)  # type: ignore[union-attr]
    classes = scores.shape[1]
    if constant.ndim and (constant.shape != (classes, classes) or classes == 1):
        raise ShapeError(
            "`lipschitz`", tuple(constant.shape), f"one number, or ({classes}, {classes}) for these logits"
        )
    if not bool((constant >= 0).all()):
        raise ArgumentError("lipschitz", lipschitz, "a bound >= 0, or a matrix of such bounds")
    return constant
