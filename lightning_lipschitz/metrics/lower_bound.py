"""LipschitzLowerBound: the steepest pair among the inputs of the batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_lipschitz.errors import ShapeError


class LipschitzLowerBound(Metric):
    r"""A LOWER bound of the l2 Lipschitz constant: the largest :math:`|f(x) - f(x')| / |x - x'|` of any two inputs of a
    batch.

    It costs no evaluation of the model and says what the data show; :func:`~lightning_lipschitz.lower_bound` searches
    and finds steeper pairs. Distances are formed in float64. Outputs that were computed in lower precision are allowed
    an error of ``sqrt(K) eps`` times their largest absolute value each, which is taken off the numerator: a rule of
    thumb, that keeps pairs of nearly equal inputs from showing the rounding in place of the slope.

    Args:
        kwargs: keyword arguments of ``torchmetrics.Metric``.

    ``update(inputs, outputs)``: shapes (batch, ...), flattened; both of the same batch. Pairs at distance zero and
    values that are not finite are left out. ``compute()`` returns a float64 tensor, 0 before there is a pair.

    Raises:
        ShapeError: batches of different length.

    Example:
        >>> metric = LipschitzLowerBound()
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> metric.update(x, x**2)
        >>> round(metric.compute().item(), 3)
        4.0
    """

    is_differentiable: bool = False
    higher_is_better: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    steepest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("steepest", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, inputs: Tensor, outputs: Tensor) -> None:
        """Look at all pairs of a batch."""
        if inputs.ndim == 0 or outputs.ndim == 0 or len(inputs) != len(outputs):
            raise ShapeError("`outputs`", tuple(outputs.shape), f"one row for each of the inputs {tuple(inputs.shape)}")
        if len(inputs) < 2:
            return
        x, y = _flat(inputs), _flat(outputs)
        rounding = 2.0 * y.shape[1] ** 0.5 * torch.finfo(outputs.dtype).eps * y.abs().amax(dim=1)
        rise = torch.nn.functional.pdist(y) - torch.combinations(rounding).amax(dim=1)
        run = torch.nn.functional.pdist(x)
        slopes = (rise / run)[(run > 0) & rise.isfinite() & run.isfinite()]
        if len(slopes):
            down = 1.0 - (x.shape[1] + y.shape[1] + 8) * torch.finfo(torch.float64).eps
            self.steepest = torch.maximum(self.steepest, (slopes.max() * down).to(self.steepest.device))

    def compute(self) -> Tensor:
        """The steepest so far."""
        return self.steepest

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """One or several values; see ``torchmetrics.Metric.plot``. Needs matplotlib."""
        return self._plot(val, ax)


def _flat(values: Tensor) -> Tensor:
    """Shape (batch, n), float64; on the CPU where the device has none."""
    values = values.detach()
    values = values.cpu() if values.device.type == "mps" else values
    return values.reshape(len(values), -1).double()
