"""CertifiedRadius: how far the predictions of a data set are safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.plot import plot_curve

from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.metrics._robustness import Lipschitz, RadiusMetric, Scale, share


class CertifiedRadius(RadiusMetric):
    """Certified l2 radii of all inputs (zero where misclassified): their mean or a quantile, and the whole curve.

    Args:
        reduction: what ``compute()`` returns: "mean", "median", or a number q in [0, 1] for that quantile.
        lipschitz: as for :class:`~lightning_lipschitz.CertifiedAccuracy`.
        scale: as for :class:`~lightning_lipschitz.CertifiedAccuracy`.
        logit_error: as for :class:`~lightning_lipschitz.CertifiedAccuracy`.
        kwargs: keyword arguments of ``torchmetrics.Metric``.

    ``update(logits, target)`` is that of ``CertifiedAccuracy``. ``compute()`` returns a float64 tensor in the units of
    ``scale``. A quantile is the largest radius that at least a share 1 - q of the inputs reach, one of the radii and
    not a value between two, so that it is itself certified of them.

    Raises:
        ArgumentError, ShapeError, CertificateError: as ``CertifiedAccuracy``.

    Example:
        >>> metric = CertifiedRadius("median", lipschitz=1.0)
        >>> metric.update(torch.tensor([[3.0, 1.0], [1.0, 1.5], [0.0, 4.0]]), torch.tensor([0, 1, 1]))
        >>> metric.compute()
        tensor(1.4142, dtype=torch.float64)
        >>> metric.curve([0.0, 1.0, 2.0])[1]
        tensor([1.0000, 0.6667, 0.3333])
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    radii: list[Tensor]

    def __init__(
        self,
        reduction: str | float = "mean",
        lipschitz: Lipschitz | None = None,
        *,
        scale: Scale = 1.0,
        logit_error: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(lipschitz, scale, logit_error, **kwargs)
        quantile = {"mean": None, "median": 0.5}.get(reduction, reduction) if isinstance(reduction, str) else reduction
        if isinstance(quantile, (str, bool)) or not (quantile is None or 0 <= quantile <= 1):
            raise ArgumentError("reduction", reduction, '"mean", "median" or a number from 0 to 1')
        self.reduction = reduction
        self._quantile = quantile
        self.add_state("radii", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Keep the radii of a batch, eight bytes an input."""
        self.radii.append(self._radii(logits, target))

    def compute(self) -> Tensor:
        """The mean or the quantile so far."""
        return _mean_below(self._all()) if self._quantile is None else self._at(self._quantile)

    def quantile(self, q: float) -> Tensor:
        """The quantile q of all inputs so far, over all processes; float64."""
        if not 0 <= q <= 1:
            raise ArgumentError("q", q, "a number from 0 to 1")
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._at(q)

    def curve(self, at: Sequence[float] | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Certified accuracy against radius, over all processes.

        Args:
            at: radii, shape (n,); by default 101 from zero to the largest finite one.

        Returns:
            The radii and the share of inputs whose certified radius is above each, shape (n,) both, the second float32.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            radii = self._all().sort().values
        if at is None:
            finite = radii[radii.isfinite()]
            at = torch.linspace(0.0, float(finite.max()) if len(finite) else 1.0, 101, dtype=torch.float64)
        places = (at if isinstance(at, Tensor) else torch.tensor(at, dtype=torch.float64)).to(radii)
        above = len(radii) - torch.searchsorted(radii, places, right=True)
        return places, share(above, len(radii))

    def plot(self, curve: tuple[Tensor, Tensor] | None = None, ax: Any = None) -> Any:
        """The certified-accuracy curve. Needs matplotlib.

        Args:
            curve: what :meth:`curve` returned; by default that of all inputs so far.
            ax: a matplotlib axis, by default a new one.

        Returns:
            Figure and axis.
        """
        drawn = self.curve() if curve is None else curve
        return plot_curve(drawn, ax=ax, label_names=("l2 radius", "certified accuracy"), name=type(self).__name__)  # type: ignore[arg-type]  # it takes two

    def _all(self) -> Tensor:
        if not len(self.radii):
            raise ArgumentError("CertifiedRadius", "no batch", "updated before it is computed")
        return dim_zero_cat(self.radii)

    def _at(self, q: float) -> Tensor:
        radii = self._all().sort().values
        return radii[math.floor(q * (len(radii) - 1))]


def _mean_below(radii: Tensor) -> Tensor:
    """The mean, rounded down: a sum of n terms >= 0 and a quotient, less their n + 2 roundings."""
    eps = torch.finfo(radii.dtype).eps
    return radii.mean() * (1.0 - (len(radii) + 2) * eps)
