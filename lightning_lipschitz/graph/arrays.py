"""Arrays of numbers as nodes and networks hold them: float64, finite, read-only."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.errors import ArgumentError, NonFiniteError, ShapeError
from lightning_lipschitz.real import real_array, real_number, whole_array

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Arrays made here, by identity: a node that is made anew for a larger graph holds those of the old one.
_MADE: WeakValueDictionary[int, npt.NDArray[Any]] = WeakValueDictionary()


def frozen(values: npt.ArrayLike, name: str, ndim: int | None = None) -> Array:
    """A read-only float64 copy, refused when it has another number of dimensions or holds anything that is not
    finite. What is such a copy already is given back."""
    made = _made(values, np.float64)
    array = real_array(values, name) if made is None else made
    if ndim is not None and array.ndim != ndim:
        raise ShapeError(name, array.shape, f"{ndim} dimension{'s' if ndim > 1 else ''}")
    if made is not None:
        return made
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise NonFiniteError(name, bad, array.size)
    return _kept(array)


def frozen_indices(values: npt.ArrayLike, name: str) -> Indices:
    """A read-only int64 copy of one dimension, refused when it holds a number below -1; see :func:`frozen`."""
    made = _made(values, np.int64)
    if made is not None:
        return made
    indices = whole_array(values, name)
    if indices.ndim != 1 or np.any(indices < -1):
        raise ArgumentError(name, indices.shape, "one dimension of numbers >= -1")
    return _kept(indices)


def _made(values: Any, dtype: type) -> npt.NDArray[Any] | None:
    """The array itself, if it was made here."""
    made = _MADE.get(id(values))
    return made if made is values and made.dtype == dtype and not made.flags.writeable else None


def _kept(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    _MADE[id(array)] = array
    return array


def finite(value: float, name: str) -> float:
    """A float >= 0, refused when it is not finite."""
    number = real_number(value, name)
    if not (np.isfinite(number) and number >= 0):
        raise ArgumentError(name, value, "a finite number >= 0")
    return number
