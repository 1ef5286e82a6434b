"""SHA-256 of a sequence of parts, each under its own length, so that no two sequences are hashed as the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


def digest(parts: Iterable[str | npt.NDArray[Any]]) -> str:
    """The hash of strings and arrays in order: kind, dtype, shape and length stand before the bytes of each.

    Example:
        >>> digest(["ab", "c"]) == digest(["a", "bc"])
        False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            head, data = "text", part.encode()
        else:
            array = np.ascontiguousarray(part.astype(part.dtype.newbyteorder("<")))
            head, data = f"array {array.dtype.str} {part.shape}", array.tobytes()
        sha.update(f"{head} {len(data)}\n".encode())
        sha.update(data)
    return sha.hexdigest()
