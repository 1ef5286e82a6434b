"""Other values in live parameters, for a while."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Swap:
    """Other values in some parameters, for a while."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def put(self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Write ``values`` into the parameters of the same names."""
        self.back()
        self._kept = [(parameters[name], parameters[name].detach().clone()) for name in values]
        for name, value in values.items():
            parameters[name].copy_(value)

    @torch.no_grad()
    def back(self) -> None:
        """As it was before."""
        for parameter, value in self._kept:
            parameter.copy_(value)
        self._kept = []
