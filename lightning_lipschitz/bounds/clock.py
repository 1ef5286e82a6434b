"""The clock of a call: one deadline for reading, searching and proving."""

from __future__ import annotations

import time
from collections.abc import Callable

from lightning_lipschitz.bounds.cost import Work

GRACE = 0.1  # seconds beyond the limit in which the simple methods for small models end


class Clock:
    """Seconds since the start, and seconds left.

    What cannot be interrupted (a factorisation, an eigenvalue, a proof) is estimated by
    :mod:`lightning_lipschitz.bounds.cost` and begun only where it ``fits``.

    Args:
        limit: seconds from now; None for no limit.
        now: tells the time in seconds.

    Example:
        >>> Clock(None).left is None, Clock(2.0).fits(1.0), Clock(2.0).fits(3.0)
        (True, True, False)
    """

    def __init__(self, limit: float | None, now: Callable[[], float] = time.perf_counter) -> None:
        self.limit, self._now, self.start = limit, now, now()

    @property
    def seconds(self) -> float:
        return self._now() - self.start

    @property
    def left(self) -> float | None:
        return None if self.limit is None else max(self.limit - self.seconds, 0.0)

    @property
    def over(self) -> bool:
        return self.left is not None and self.left <= 0.0

    def needs(self, work: Work) -> float:
        """Seconds that the work takes; 0 without a limit, where nothing depends on it and nothing is measured."""
        return 0.0 if self.limit is None else work.seconds

    def fits(self, seconds: float) -> bool:
        """Whether work of so many seconds ends in time, or all but in time."""
        return self.limit is None or seconds <= self.limit + GRACE - self.seconds

    def share(self, parts: float, less: float = 0.0) -> Clock:
        """A clock that starts now, for one of ``parts`` equal parts of what is left but for ``less`` seconds."""
        left = self.left
        return Clock(None if left is None else max(left - less, 0.0) / parts, self._now)
