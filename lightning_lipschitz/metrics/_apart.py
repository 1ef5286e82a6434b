"""Metrics that a MetricCollection must not merge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Apart(Metric):
    """Keeps its own counts in a ``MetricCollection``.

    A collection lets metrics share states that were equal after the first batch. Those of different radii or constants
    often are, and go apart later. A state that is NaN equals none, not even itself.
    """

    nothing: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nothing", torch.tensor(torch.nan), dist_reduce_fx="sum")
