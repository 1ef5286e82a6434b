"""What every optimising bound method returns, so that one place can verify and report it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_lipschitz.certificate.proofs import Multipliers

Sharing = Literal["neuron", "layer"]


@dataclass(frozen=True, eq=False)
class Proposal:
    """A candidate for the kernel, and what its solver says of it.

    Attributes:
        multipliers: for the network as given; may be slightly infeasible.
        lower_bound: no multipliers of this kind prove less than this (sqrt of the dual value), None where the solver
            does not say.
        converged: whether the solver reached its tolerance.
        timed_out: whether it stopped for the time limit.
        solver: its name.
        state: anything the same solver can start from next time.
    """

    multipliers: Multipliers
    lower_bound: float | None
    converged: bool
    timed_out: bool
    solver: str
    state: Any = field(default=None, repr=False)
