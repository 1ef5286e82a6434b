"""How much memory explicit matrices may take. Beyond it the extraction refuses, before it allocates."""

from __future__ import annotations

from lightning_lipschitz.errors import ModelSizeError

LIMIT = 2**30  # bytes, of all matrices of a network together; reading and proving hold a few copies
DENSE_ENTRY = 8  # bytes: one float64
SPARSE_ENTRY = 16  # bytes: one float64 and its indices


def require_room(size: int, what: str) -> None:
    """Raise ``ModelSizeError`` when ``what`` would need more than ``LIMIT`` bytes."""
    if size > LIMIT:
        raise ModelSizeError(what, size, LIMIT)
