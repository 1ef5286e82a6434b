"""Predictions of a data set, and the share of them that a Lipschitz bound makes safe, radius by radius."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_lipschitz._lightning import isolated_rng
from lightning_lipschitz.extraction.undisturbed import computes_in, undisturbed
from lightning_lipschitz.functional.robustness import certified_radius, margins
from lightning_lipschitz.graph.arrays import Array

LARGEST = 20_000_000  # logits that are kept: 80 MB as float32
_PLACES = 201


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits, shape (n, classes), or (n,) and (n, 1) of a binary classifier; class numbers, shape (n,).

    ``whose`` says in words which inputs these are, ``digest`` of which network.
    """

    logits: Tensor
    target: Tensor
    whose: str = "inputs"
    digest: str = ""

    @property
    def classes(self) -> int:
        return self.logits.shape[1] if self.logits.ndim == 2 else 1


class PredictionLog:
    """Collects predictions batch by batch, on the CPU, up to so many numbers.

    Example:
        >>> log = PredictionLog()
        >>> log.add(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        >>> log.predictions().logits.shape
        torch.Size([1, 2])
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._numbers = 0
        self.full = False

    def add(self, logits: Tensor, target: Tensor) -> None:
        self.full = self.full or self._numbers + logits.numel() > LARGEST
        if not self.full:
            self._numbers += logits.numel()
            self._batches.append((logits.detach().cpu(), target.detach().cpu().reshape(-1)))

    def predictions(self, whose: str = "inputs", digest: str = "") -> Predictions | None:
        """Predictions of all batches; None where there was none."""
        if not self._batches:
            return None
        logits, target = (torch.cat(parts) for parts in zip(*self._batches, strict=True))
        words = f"the first {len(target)} {whose}" if self.full else f"{len(target)} {whose}"
        return Predictions(logits, target, words, digest)


def predict(module: nn.Module, x: Tensor) -> Tensor:
    """Logits in evaluation mode, of the module's own precision; user code does not notice.

    Raises:
        TypeError: the output is no tensor of shape (batch,) or (batch, classes).
    """
    with isolated_rng(), undisturbed(module):
        logits = module(x.to(computes_in(module, x).dtype) if x.is_floating_point() else x)
    if not isinstance(logits, Tensor) or logits.ndim > 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"the output is {found}.")
    return logits


@dataclass(frozen=True, eq=False)
class Curve:
    """Certified accuracy against radius.

    Attributes:
        radii: l2 distances in the units of the module's input, ascending from 0, shape (m,).
        accuracy: share of the inputs that are classified right, as is every input within the radius, shape (m,).
        pairs: the same with a constant of its own for every difference of two logits; None where there are none.
        clean: the share that is classified right.
        median: radius that half of the inputs reach, and with the constants of the pairs.
        whose: which inputs these are.
    """

    radii: Array
    accuracy: Array
    pairs: Array | None
    clean: float
    median: tuple[float, float | None]
    whose: str


def accuracy_curve(predictions: Predictions, bound: float, pairs: Array | None = None) -> Curve:
    """The curve for one constant, and for a matrix of them, shape (classes, classes).

    Raises:
        ShapeError, ArgumentError: logits and targets that do not belong together.

    Example:
        >>> seen = Predictions(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 0]))
        >>> curve = accuracy_curve(seen, 1.0)
        >>> curve.clean, curve.accuracy[0], curve.accuracy[-1]
        (0.5, np.float64(0.5), np.float64(0.0))
    """
    logits, target = predictions.logits, predictions.target
    constants = [torch.tensor(bound, dtype=torch.float64)] + ([] if pairs is None else [torch.tensor(pairs)])
    radii = [np.sort(certified_radius(logits, constant, target).numpy()) for constant in constants]
    largest = max(float(np.max(each[np.isfinite(each)], initial=0.0)) for each in radii)
    places = np.linspace(0.0, largest or 1.0, _PLACES)
    shares = [1.0 - np.searchsorted(each, places, side="right") / len(each) for each in radii]
    medians = [float(each[(len(each) - 1) // 2]) for each in radii]
    return Curve(
        radii=places,
        accuracy=shares[0],
        pairs=None if pairs is None else shares[1],
        clean=float((margins(logits, target) > 0).double().mean()),
        median=(medians[0], None if pairs is None else medians[1]),
        whose=predictions.whose,
    )
