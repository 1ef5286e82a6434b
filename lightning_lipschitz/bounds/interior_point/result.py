"""What goes into the solver and what comes out, beside the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_lipschitz.certificate.proofs import Multipliers

Ending = Literal["solved", "time limit", "stalled"]


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Where a run on a network with slightly different weights can start.

    Attributes:
        path: points near the central path, from well inside to close to the optimum; of the original network.
    """

    path: tuple[Multipliers, ...]


@dataclass(frozen=True)
class Progress:
    """One iteration, in squared units of the network as given.

    Attributes:
        iteration: from 1, centring steps included.
        rho: the least feasible rho so far.
        lower_bound: the LipSDP optimum is not below this; 0 before there is a primal point.
        relative_gap: ``1 - sqrt(lower_bound / rho)``.
        seconds: since the start.
    """

    iteration: int
    rho: float
    lower_bound: float
    relative_gap: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Solution:
    """The best strictly feasible multipliers found.

    Attributes:
        multipliers: of the network as given.
        lower_bound: no multipliers of this kind have a rho below this (up to the rounding of the primal residuals).
        relative_gap: ``1 - sqrt(lower_bound / rho)``: how far sqrt(rho) is above the optimum at most, relatively.
        iterations: centring and primal-dual steps together.
        seconds: wall time.
        ending: "solved" (the gap is within rtol), "time limit", or "stalled" (no further progress in floating point).
        warm_start: for the next, similar network.
    """

    multipliers: Multipliers
    lower_bound: float
    relative_gap: float
    iterations: int
    seconds: float
    ending: Ending
    warm_start: WarmStart

    @property
    def rho(self) -> float:
        """The squared bound."""
        return self.multipliers.rho
