"""How to search for a bound."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_lipschitz.errors import MissingExtraError

MatrixMethod = Literal["auto", "norm-product", "closed-form", "lipsdp-layer", "lipsdp-neuron"]
ProvedMethod = Literal[MatrixMethod, "composed"]
Method = Literal[ProvedMethod, "lipsdp-network"]
Solver = Literal["auto", "native", "clarabel", "scs"]

MapLike = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def require_solver(method: str, solver: str) -> None:
    """Before long work starts.

    Raises:
        MissingExtraError: the method calls a solver that is not installed.
    """
    if solver == "scs" and method not in ("norm-product", "closed-form") and importlib.util.find_spec("scs") is None:
        raise MissingExtraError("`solver='scs'`", "scs", "scs")


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
