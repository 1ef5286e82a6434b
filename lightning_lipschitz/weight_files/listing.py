"""What lies in a weight file, before its numbers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Listing:
    """Names and shapes, and a way to the numbers.

    Attributes:
        shapes: of everything, in the order of the file.
        read: the numbers of one name, float64.
        ordered: whether the order of the file means anything.
        module: whether the names are those of a module's state dict.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], npt.NDArray[np.float64]]
    ordered: bool = True
    module: bool = False
