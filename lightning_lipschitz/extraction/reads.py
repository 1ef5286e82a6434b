"""Tensors that become Python values: noted when a model runs, answered alike when it is traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

TRUTHS = frozenset(("__bool__", "is_nonzero", "equal", "allclose", "__contains__"))
NUMBERS = frozenset(("item", "__int__", "__float__", "__index__", "__complex__", "tolist", "numpy", "__array__"))


@dataclass(frozen=True, eq=False)
class Read:
    """A tensor that was turned into a Python value.

    Args:
        operation: how.
        value: what Python got.
        of_input: whether it depends on the input.
        where: the user's line, in parentheses.
    """

    operation: str
    value: Any
    of_input: bool
    where: str


class Replay(TorchFunctionMode):
    """Answers reads as they were answered in an execution, wherever Python asks the same in the same order.

    A Python number that is written into a tensor stays the float64 that it is; in the graph it would have been rounded.

    Args:
        reads: of the execution.
    """

    def __init__(self, reads: Sequence[Read]) -> None:
        super().__init__()
        self._reads, self._next = reads, 0

    def rewind(self, *_: Any) -> None:
        """The model is called, perhaps again."""
        self._next = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in TRUTHS | NUMBERS and self._next < len(self._reads) and self._reads[self._next].operation == name:
            self._next += 1
            return self._reads[self._next - 1].value
        if name == "__setitem__" and type(args[2]) is float and _is_place(args[1]):
            args = (*args[:2], torch.full((), args[2], dtype=torch.float64))
        return func(*args, **(kwargs or {}))


def _is_place(index: Any) -> bool:
    """Whether every entry of an index is a number, a slice, ``None`` or an ellipsis."""
    plain = (int, slice, type(None), type(...))
    return all(type(each) in plain for each in (index if isinstance(index, tuple) else (index,)))


class Unused:
    """Stands for a number, and notes whether anything was done with it."""

    used = False


def _use(self: Unused, *args: Any, **kwargs: Any) -> Any:
    self.used = True
    raise TypeError("a Python number that depends on the values of the input is used")


_ANY_USE = """
    abs add and array bool ceil complex contains divmod eq float floor floordiv ge getattr getitem gt hash index int
    invert iter le len lshift lt matmul mod mul ne neg or pos pow radd rand rdivmod reversed rfloordiv rlshift rmatmul
    rmod rmul ror round rpow rrshift rshift rsub rtruediv rxor setitem sub truediv trunc xor
"""
for _name in _ANY_USE.split():
    setattr(Unused, f"__{_name}__", _use)
