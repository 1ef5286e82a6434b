"""One published model: where it comes from, how it is made and how a user of it would certify it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """A model of a package.

    Args:
        package: name on PyPI; the page names its version.
        name: what the package calls the model, with its size where that is not the published one.
        make: returns the model and one example of its input, with the package imported inside.
        arguments: of :func:`lightning_lipschitz.certify` beside the model and the example.
        unbounded: why no bound for all inputs exists ("attention", "gate"), where that is so.
        small: whether it takes one tensor, and two short epochs with it are a matter of seconds.
    """

    package: str
    name: str
    make: Callable[[], tuple[nn.Module, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    unbounded: str = ""
    small: bool = False


def reason(answer: Mapping[str, Any]) -> str:
    """Why there is no bound, fit for a cell of a table; files are named from their package on, wherever it lies."""
    sentence = str(answer.get("refusal") or answer.get("crash", ""))
    return re.sub(r"\S*site-packages/", "", sentence.replace("\n", " ").replace("|", "/"))
