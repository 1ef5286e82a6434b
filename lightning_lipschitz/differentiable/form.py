"""What every way to compute a differentiable bound can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from lightning_lipschitz.certificate import Multipliers


class Form(Protocol):
    """How the number is computed. Every call uses the parameters of that moment, on their device."""

    def whole(self) -> Tensor:
        """Bound of the map to all outputs: a scalar with a graph, float32 or float64."""

    def pairs(self) -> Tensor:
        """K_ij of ``f_i - f_j``, shape (outputs, outputs), with a graph; zeros on the diagonal, without a gradient."""

    def step(self) -> None:
        """Move what is not a weight by one step of its own; once an optimizer step."""

    def multipliers(self) -> Multipliers | None:
        """A proposal for the kernel, of the network of this moment; None where there is none."""

    def close(self) -> None:
        """Take off the model whatever listens there."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors of the CPU and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
