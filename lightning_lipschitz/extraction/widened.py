"""How the check runs a model: in float64 although its code names the dtype that it computes in, and with memory that
shows whether it was written before it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.extraction.constants import UNWRITTEN, narrower

_UNWRITTEN = 12345.0  # in any dtype
_LIFTS = ("lift_fresh", "lift")  # what ``torch.tensor`` ends with: an alias of nothing that anyone else has


class Unwritten(TorchDispatchMode):
    """Memory that nobody has written yet holds a number, where a reading has zeros."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.partition("::")[2] in UNWRITTEN and result.is_floating_point():
            result.fill_(_UNWRITTEN)
        return result


class Widened(TorchDispatchMode):
    """Operators compute in float64 where the model's own would be in a dtype that holds all that it computes with.

    A conversion to such a dtype is none, and a known tensor of it keeps its values. What is narrower stays: there the
    model rounds.

    Args:
        own: dtype that the model computes in.
    """

    def __init__(self, own: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema, kwargs = func._schema, kwargs or {}
        shared = {each.name for each in schema.arguments if each.alias_info is not None}
        named = zip(schema.arguments, args, strict=False)
        mixed = any(
            isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in tree_leaves((args, kwargs))
        )
        widen = self._wide if mixed else self._dtype
        args = tuple(value if each.name in shared else tree_map(widen, value) for each, value in named)
        kwargs = {name: value if name in shared else tree_map(widen, value) for name, value in kwargs.items()}
        result = func(*args, **kwargs)
        is_alias = any(each.alias_info is not None for each in schema.returns)
        return result if is_alias and schema.name.partition("::")[2] not in _LIFTS else tree_map(self._wide, result)

    def _dtype(self, value: Any) -> Any:
        holds = isinstance(value, torch.dtype) and value.is_floating_point and not narrower(value, self._own)
        return torch.float64 if holds else value

    def _wide(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not narrower(value.dtype, self._own):
            return value.double()
        return self._dtype(value)
