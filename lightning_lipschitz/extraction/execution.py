"""What a model's Python does when it runs: which operations in which order, and what it asks tensors for.

A graph of tensor operations stands for a model only while its Python takes one path. Two things can lead it to another:
a value of the input that Python looks at (``if x.max() > 100``), and state that changes between two calls. The first is
found by following the input through one execution; the second by comparing two.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_lipschitz.errors import ExtractionError
from lightning_lipschitz.extraction.location import users_line
from lightning_lipschitz.extraction.reads import NUMBERS, TRUTHS, Read, Unused
from lightning_lipschitz.extraction.state import kept, written
from lightning_lipschitz.extraction.undisturbed import name_of, tensors_of

_LARGE = 2**22  # bytes of a constant above which a sum stands for its values


@dataclass(frozen=True, eq=False)
class Execution:
    """One execution.

    Args:
        digest: of all operations, of how they are connected, of every number and constant in them, and of the reads
            that do not depend on the input. Equal for two executions that compute the same function of their inputs
            and weights.
        reads: in order.
        entries: computed in all, for two samples.
    """

    digest: str
    reads: tuple[Read, ...]
    entries: int


def execute(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> Execution:
    """Run the model once. State that it keeps is put back."""
    return _run(model, weights, x, None)


def observe(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> Execution:
    """:func:`execute`, and whether the execution is that of every input.

    What Python reads of the input is harmless where nothing follows from it: a number that is only stored, or a truth
    without which the model raises an error (the check of an argument). Each is tried out.

    Raises:
        ExtractionError: a read decides what is computed; or the model does not run.
    """
    found = execute(model, weights, x)
    reads = list(found.reads)
    for number, read in enumerate(reads):
        if read.of_input:
            reads[number] = replace(read, value=_harmless(model, weights, x, found, number))
    return replace(found, reads=tuple(reads))


def _harmless(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor, found: Execution, number: int
) -> Any:
    read = found.reads[number]
    is_truth = read.operation in TRUTHS
    value = (not read.value) if is_truth else Unused()
    try:
        other: Execution | None = _run(model, weights, x, (number, value))
    except Exception:
        other = None  # an argument that is refused
    if (isinstance(value, Unused) and value.used) or (other is None and not is_truth):
        other = replace(found, digest="")
    if other is None or other.digest == found.digest:
        return read.value if is_truth else value
    raise ExtractionError(
        name_of(model),
        f"its control flow or a Python number depends on the values of the input{read.where}.",
        "Compute with tensors only: a branch on values has no single graph.",
    )


def _run(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor, other: tuple[int, Any] | None
) -> Execution:
    own = tensors_of(model).items()
    mine = {name: weights[name].detach().to(each.device, each.dtype, copy=True) for name, each in own}
    x = x.clone()
    record = _Record({**mine, "input": x}, other)
    record.depends(x)
    with kept(model), _Operations(record), _Reads(record):
        functional_call(model, mine, (x,), tie_weights=False)
    return Execution(record.digest.hexdigest(), tuple(record.reads), record.entries)


class _Record:
    """What is noted of an execution.

    Args:
        named: tensors that are known by a name and not by their values.
        other: number of a read, and what it answers instead.
    """

    def __init__(self, named: dict[str, torch.Tensor], other: tuple[int, Any] | None) -> None:
        self.digest = hashlib.sha256()
        self.reads: list[Read] = []
        self.entries = 0
        self.reading = False
        self._other = other
        self._names = {id(tensor): name for name, tensor in reversed(named.items())}
        self._alive: list[Any] = list(named.values())  # an identity must not be given twice
        self._dependent: set[int] = set()
        self._steps = 0

    def depends(self, tensor: torch.Tensor) -> None:
        """Everything that shares the memory of ``tensor`` depends on the input."""
        self._dependent.add(_memory(tensor))

    def is_dependent(self, values: Any) -> bool:
        return any(_memory(each) in self._dependent for each in tree_leaves(values) if isinstance(each, torch.Tensor))

    def operation(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        arguments = (tuple(args), dict(kwargs))
        if not self.reading:
            self.digest.update(f"{self._steps} {func} {self._text(arguments)}\n".encode())
        outputs = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        for place, each in enumerate(outputs):
            self._names.setdefault(id(each), f"{self._steps}.{place}")
            self.entries += each.numel()
        if self.is_dependent(arguments):
            for each in (*outputs, *written(func, args, kwargs)):
                self.depends(each)
        self._alive.append((arguments, outputs))
        self._steps += not self.reading

    def read(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        of_input = self.is_dependent((args, kwargs))
        self.reading = True
        try:
            value = func(*args, **kwargs)
        finally:
            self.reading = False
        if self._other is not None and self._other[0] == len(self.reads):
            value = self._other[1]
        if not of_input:
            self.digest.update(f"{func.__name__} {_value_text(value)}\n".encode())
        self.reads.append(Read(func.__name__, value, of_input, users_line(traceback.extract_stack()[:-1])))
        return value

    def _text(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            if id(value) not in self._names:
                self._names[id(value)] = _value_text(value)
                self._alive.append(value)
            return f"<{self._names[id(value)]} {tuple(value.shape)} {value.dtype}>"
        if isinstance(value, (list, tuple)):
            return f"({','.join(map(self._text, value))})"
        if isinstance(value, dict):
            return f"({','.join(f'{key}={self._text(value[key])}' for key in sorted(value))})"
        if isinstance(value, (torch.device, torch.Generator)):
            return ""  # a model that has moved to another device is the same
        return value.hex() if type(value) is float else repr(value)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, record: _Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._record.operation(func, args, kwargs or {}, result)
        return result


class _Reads(TorchFunctionMode):
    def __init__(self, record: _Record) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in TRUTHS | NUMBERS:
            return self._record.read(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)  # sparse ones have no storage


def _value_text(value: Any) -> str:
    """What stands for a constant: its values."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.numel() * value.element_size() > _LARGE:
            value = value.sum(dtype=torch.float64), value.abs().sum(dtype=torch.float64)
            return f"{tuple(float(each) for each in value)}"
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return repr(value)
