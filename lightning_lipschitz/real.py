"""Real numbers, as a bound can speak of them: float64, exactly as they were given, or refused.

Whatever enters the package as numbers passes through here. Nothing is dropped on the way: no imaginary part, no digit,
no mask.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.errors import ArgumentError

_EXACT = 2**53  # every integer up to this is a float64
_ACCEPTED = "real numbers that float64 holds exactly: floats of 64 bits or fewer, or integers"


def real_array(values: Any, name: str) -> npt.NDArray[np.float64]:
    """A float64 copy, in C order, that is equal to ``values``.

    Args:
        values: an array, a tensor on any device, nested sequences of numbers, or a number.
        name: what they are, for messages.

    Raises:
        ArgumentError: numbers that are not real, that float64 cannot hold exactly, or no numbers at all.

    Example:
        >>> real_array([[1, 2.5]], "weights")
        array([[1. , 2.5]])
    """
    try:
        array = np.asarray(_from_torch(values, name))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(name, type(values).__name__, _ACCEPTED) from error
    if array.dtype.kind not in "biuf" or bool(np.any(np.ma.getmaskarray(values) if np.ma.isMA(values) else False)):
        raise ArgumentError(name, _kind(values, array), _ACCEPTED)
    with np.errstate(over="ignore", under="ignore"):
        copy = np.array(array, dtype=np.float64, order="C")
    if not _same(array, copy):
        raise ArgumentError(name, f"{array.dtype} with more digits", _ACCEPTED)
    return copy


def real_number(value: Any, name: str) -> float:
    """One number, as :func:`real_array` reads it.

    Example:
        >>> real_number(np.float32(0.5), "rounding")
        0.5
    """
    array = real_array(value, name)
    if array.ndim:
        raise ArgumentError(name, f"an array of shape {array.shape}", "one real number")
    return float(array)


def whole_array(values: Any, name: str) -> npt.NDArray[np.int64]:
    """An int64 copy of whole numbers; fractions are refused and not cut off.

    Example:
        >>> whole_array([0, 2], "indices")
        array([0, 2])
    """
    whole = type(values) is np.ndarray and values.dtype == np.int64  # no detour by float64, which twice copies
    array = values if whole else real_array(values, name)
    if not np.all((array >= -_EXACT) & (array <= _EXACT)) or not (whole or np.all(array == np.rint(array))):
        raise ArgumentError(name, "fractions, or numbers beyond 2^53", "whole numbers")
    return array.astype(np.int64)


def _from_torch(values: Any, name: str) -> Any:
    """A tensor as a float64 array (complex and unreadable ones are refused); anything else as it is."""
    torch = sys.modules.get("torch")  # without it there are no tensors; this room does not import it
    if torch is None or not isinstance(values, torch.Tensor):
        return values
    tensor = values.detach()
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta:
        raise ArgumentError(name, f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}", _ACCEPTED)
    tensor = tensor.cpu()
    return tensor.to(torch.float64).numpy() if tensor.is_floating_point() else tensor.numpy()


def _same(array: npt.NDArray[Any], copy: npt.NDArray[np.float64]) -> bool:
    if array.dtype.kind == "f":
        return array.dtype.itemsize <= 8 or bool(np.all((array == copy) | (np.isnan(array) & np.isnan(copy))))
    if array.dtype.kind == "b" or array.dtype.itemsize <= 4:
        return True
    large = (array > _EXACT) | (array < -_EXACT) if array.dtype.kind == "i" else array > _EXACT
    return all(int(a) == int(b) for a, b in zip(array[large].tolist(), copy[large].tolist(), strict=True))


def _kind(values: Any, array: npt.NDArray[Any]) -> str:
    return f"{type(values).__name__} of {array.dtype}" if array.dtype.kind in "biufc" else str(type(values).__name__)
