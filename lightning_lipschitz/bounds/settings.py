"""How to search for a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["auto", "norm-product", "closed-form", "lipsdp-layer", "lipsdp-neuron", "lipsdp-network", "composed"]
Solver = Literal["auto", "native", "clarabel", "scs"]


MapLike = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`lightning_lipschitz.certify` of the same names; ``warm_start`` is a solver's state."""

    method: Method = "auto"
    solver: Solver = "auto"
    rtol: float = 1e-6
    time_limit: float | None = None
    device: str = "auto"
    split_size: int | None = None
    workers: int | MapLike = 1
    warm_start: Any = None
    couplings: str = "all"
