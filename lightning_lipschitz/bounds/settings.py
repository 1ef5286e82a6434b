"""How to search for a bound."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from lightning_lipschitz.errors import ArgumentError, MissingExtraError

MatrixMethod = Literal["auto", "norm-product", "closed-form", "sweep", "lipsdp-layer", "lipsdp-neuron"]
ProvedMethod = Literal[MatrixMethod, "composed"]
Method = Literal[ProvedMethod, "lipsdp-network"]
Solver = Literal["auto", "native", "clarabel", "scs"]

MapLike = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`lightning_lipschitz.certify` of the same names; ``warm_start`` is a solver's state.

    Raises:
        ArgumentError: one that cannot be used.
        MissingExtraError: the method calls a solver that is not installed.
    """

    method: Method = "auto"
    solver: Solver = "auto"
    rtol: float = 1e-6
    time_limit: float | None = None
    device: str = "auto"
    split_size: int | None = None
    workers: int | MapLike = 1
    warm_start: Any = None
    couplings: str = "all"

    def __post_init__(self) -> None:
        require_choice("method", self.method, get_args(Method))
        require_choice("solver", self.solver, get_args(Solver))
        called = self.solver == "scs" and self.method not in ("norm-product", "closed-form")
        if called and importlib.util.find_spec("scs") is None:
            raise MissingExtraError("`solver='scs'`", "scs", "scs")
        require_fraction("rtol", self.rtol)
        require_time_limit(self.time_limit)
        _require_device(self.device)
        if not callable(self.workers):
            require_count("workers", self.workers)
        if self.split_size is not None:
            require_count("split_size", self.split_size)


def require_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
    """Refuse what is none of the accepted words."""
    if not isinstance(value, str) or value not in accepted:
        raise ArgumentError(name, value, f"one of {', '.join(map(repr, accepted))}")


def require_fraction(name: str, value: Any) -> None:
    """Refuse what is no number between 0 and 1."""
    if not _is_between(0.0, value, 1.0):
        raise ArgumentError(name, value, "a number between 0 and 1")


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number, or one below ``least``."""
    if not isinstance(value, int) or value < least:
        raise ArgumentError(name, value, f"an integer >= {least}")


def require_time_limit(value: Any) -> None:
    """Refuse what is no number of seconds."""
    if value is not None and not _is_between(0.0, value, math.inf):
        raise ArgumentError("time_limit", value, "a number of seconds > 0, or None")


def _require_device(value: str) -> None:
    try:
        if value != "auto":
            torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError("device", value, 'a device that torch knows, or "auto"') from error


def _is_between(low: float, value: Any, high: float) -> bool:
    """Whether it is a number, of any type that compares, and inside of the interval."""
    try:
        return not isinstance(value, bool) and bool(low < value < high)
    except (TypeError, ValueError):
        return False
