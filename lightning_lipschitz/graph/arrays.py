"""Arrays of numbers as nodes and networks hold them: float64, finite, read-only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.errors import ArgumentError, NonFiniteError, ShapeError
from lightning_lipschitz.real import real_array, real_number

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def frozen(values: npt.ArrayLike, name: str, ndim: int | None = None) -> Array:
    """A read-only float64 copy, refused when it has another number of dimensions or holds anything that is not
    finite."""
    array = real_array(values, name)
    if ndim is not None and array.ndim != ndim:
        raise ShapeError(name, array.shape, f"{ndim} dimension{'s' if ndim > 1 else ''}")
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise NonFiniteError(name, bad, array.size)
    array.setflags(write=False)
    return array


def finite(value: float, name: str) -> float:
    """A float >= 0, refused when it is not finite."""
    number = real_number(value, name)
    if not (np.isfinite(number) and number >= 0):
        raise ArgumentError(name, value, "a finite number >= 0")
    return number
