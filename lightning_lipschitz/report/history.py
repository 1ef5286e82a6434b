"""The measurements of a training run, from a file that may hold anything in their place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_lipschitz.certificate.scalars import count, number


def readable(history: Iterable[Any]) -> list[dict[str, Any]]:
    """The records that can be read, with what a report looks at; others are left out.

    Example:
        >>> readable([{"epoch": 0, "global_step": 3, "upper_bound": 2.0}, {"epoch": "one"}, None])
        [{'epoch': 0, 'global_step': 3, 'upper_bound': 2.0, 'lower_bound': None, 'relative_gap': None, 'seconds': None}]
    """
    found = (_record(each) for each in history)
    return [record for record in found if record is not None]


def _record(given: Any) -> dict[str, Any] | None:
    if not isinstance(given, Mapping):
        return None
    try:
        record: dict[str, Any] = {name: count(given.get(name)) for name in ("epoch", "global_step")}
        record["upper_bound"] = number(given.get("upper_bound"))
        for name in ("lower_bound", "relative_gap", "seconds"):
            value = given.get(name)
            record[name] = None if value is None else number(value)
    except (TypeError, ValueError, OverflowError):
        return None
    lower = record["lower_bound"]
    believable = record["upper_bound"] >= 0 and (
        lower is None or math.isnan(lower) or 0 <= lower <= record["upper_bound"]
    )
    return record if believable else None
