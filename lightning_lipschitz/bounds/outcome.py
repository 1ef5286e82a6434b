"""What a search has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_lipschitz.bounds.signing import Signed
from lightning_lipschitz.certificate import Status


@dataclass(frozen=True, eq=False)
class Outcome:
    """Signed bounds, how the search ended, and what its solver knows.

    Attributes:
        signed: in no order; empty where nothing could be proved.
        status: of the method that was asked for.
        lower_bound: no proof of the chosen kind reaches below this; None where the solver does not say.
        state: what the solver can start from next time.
    """

    signed: tuple[Signed, ...]
    status: Status = Status.SOLVED
    lower_bound: float | None = None
    state: Any = None

    def gap(self, upper_bound: float) -> float | None:
        """Relative distance of a bound from ``lower_bound``."""
        return None if self.lower_bound is None else max(0.0, 1.0 - self.lower_bound / upper_bound)
