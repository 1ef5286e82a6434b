"""How many threads a solver takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SINGLE_THREAD = 200  # up to this many rows threads cost more than they bring


@contextmanager
def few_threads(size: int) -> Iterator[None]:
    """One thread for small matrices."""
    before = torch.get_num_threads()
    if size <= _SINGLE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
