"""CertifiedAccuracy: predictions that are right and cannot be changed within a radius."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.metrics._robustness import Lipschitz, RadiusMetric, Scale, share


class CertifiedAccuracy(RadiusMetric):
    """The share of inputs that are classified right, and so is every input within ``radius`` of them (l2).

    An input counts if :func:`~lightning_lipschitz.functional.certified_radius` of it is above ``radius``: with
    ``radius=0`` this is accuracy, except that ties count as wrong. It is a lower bound of the accuracy that any attack
    within the radius leaves.

    Args:
        radius: l2 distance, in the units of raw inputs if ``scale`` is given, else of what the model sees.
        lipschitz: an upper bound of the model's constant, one for each difference of logits, what
            :func:`~lightning_lipschitz.certify` or :func:`~lightning_lipschitz.pairwise_bounds` returned, or None to
            set the attribute later, as in each epoch of a training.
        scale: ``std`` of the normalisation in front of the model, a number or one a channel (the smallest counts).
        logit_error: no logit is further than this from the model's in real arithmetic.
        kwargs: keyword arguments of ``torchmetrics.Metric``.

    ``update(logits, target)`` takes logits, shape (batch, classes), or (batch,) and (batch, 1) for a binary classifier
    that decides by the sign, and classes, shape (batch,). ``compute()`` returns the share, a float32
    tensor, rounded down.

    Raises:
        ArgumentError, ShapeError: arguments that cannot be used, or no constant at the first update.
        CertificateError: a certificate that is not certified, or was read from a file and not verified since.

    Example:
        >>> metric = CertifiedAccuracy(radius=0.5, lipschitz=2.0)
        >>> metric.update(torch.tensor([[3.0, 1.0], [1.0, 1.5], [0.0, 4.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.3333)
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    certified: Tensor
    total: Tensor

    def __init__(
        self,
        radius: float,
        lipschitz: Lipschitz | None = None,
        *,
        scale: Scale = 1.0,
        logit_error: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(lipschitz, scale, logit_error, **kwargs)
        if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 <= radius < math.inf:
            raise ArgumentError("radius", radius, "a finite distance >= 0")
        self.radius = float(radius)
        self.add_state("certified", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch."""
        radii = self._radii(logits, target)
        self.certified += (radii > self.radius).sum().to(self.certified.device)
        self.total += len(radii)

    def compute(self) -> Tensor:
        """The share so far."""
        return share(self.certified, int(self.total)) if self.total else self.certified / self.total

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """One or several values; see ``torchmetrics.Metric.plot``. Needs matplotlib."""
        return self._plot(val, ax)
