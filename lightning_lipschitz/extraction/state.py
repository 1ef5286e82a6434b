"""What a model keeps in Python: remembered before it is run, compared and put back afterwards.

Parameters and buffers are not part of it, but which objects stand under their names is. Everything else is: plain
attributes, containers however nested, tensors and arrays that are no buffers, and objects of the model's own.
"""

from __future__ import annotations

import contextlib
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, Counter, deque)
_NOT_THE_MODELS = ("torch", "torchvision", "pytorch_lightning", "lightning", "lightning_fabric", "numpy")
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_MOST = 20_000  # values looked into; a data set that a model happens to hold is not walked to its end
_LONGEST = 1_000  # elements of one container that are looked into
_BYTES = 2**28  # of tensors and arrays that are copied
_LARGE = 2**16  # bytes of a tensor from which on it is copied when somebody writes into it, and not before

Changes = list[tuple[Any, Any, Any, Any]]


class ModelState:
    """The Python state of a module and of all that it holds, at the moment of construction.

    Args:
        model: the module.
        values: remember the values of parameters and buffers too. They cost a copy, and only code of the model's own
            that runs outside of a functional call can change them.
    """

    def __init__(self, model: torch.nn.Module, values: bool = False) -> None:
        self._seen: dict[int, Any] = {}
        self._kept: list[tuple[Any, Any]] = []
        self._left = _MOST
        self._bytes = _BYTES
        self._large: defaultdict[int, list[torch.Tensor]] | None = None if values else defaultdict(list)
        self.tensors = {*map(id, model.parameters()), *map(id, model.buffers())}
        if values:
            self._bytes, self.tensors = 2**62, set()
        for module in list(model.modules()):
            self._add_members(module)
        if values:
            for tensor in [*model.parameters(), *model.buffers()]:
                self._look(tensor)

    def _look(self, value: Any) -> None:
        if isinstance(value, _OPAQUE) or id(value) in self._seen or self._left <= 0:
            return
        if isinstance(value, torch.nn.Module) or id(value) in self.tensors:
            return
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self._add_array(value)
        elif type(value) in (*_CONTAINERS, tuple):
            self._add_container(value)
        elif type(value).__module__.partition(".")[0] not in (*_NOT_THE_MODELS, "builtins"):
            self._add_members(value)

    def _add_members(self, owner: Any) -> None:
        """The attributes of a module or of an object that belongs to it."""
        self._seen[id(owner)] = owner
        members = vars(owner) if hasattr(owner, "__dict__") else None
        if isinstance(members, dict):
            self._kept.append((members, dict(members)))
            self._look_into(members.values())

    def _add_container(self, container: Any) -> None:
        self._seen[id(container)] = container
        if not isinstance(container, tuple):
            self._kept.append((container, container.copy()))
        if len(container) <= _LONGEST:
            self._look_into(container.values() if isinstance(container, Mapping) else container)

    def _look_into(self, values: Any) -> None:
        for value in list(values):
            if value is not None and not isinstance(value, (bool, int, float, complex, str, bytes)):
                self._left -= 1
                self._look(value)

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        self._seen[id(tensor)] = tensor
        size = tensor.numel() * tensor.element_size()
        if tensor.is_meta or tensor.layout is not torch.strided or size > self._bytes:
            return
        self._bytes -= size
        if self._large is not None and size > _LARGE and type(tensor) is torch.Tensor:
            self._large[tensor.untyped_storage().data_ptr()].append(tensor)
        else:
            self._kept.append((tensor, tensor.detach().clone()))

    def is_written(self, tensor: torch.Tensor) -> None:
        """Somebody is about to write into a tensor, or into a view of one."""
        if self._large and type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided:
            with _disable_current_modes():  # a tracer's copies hold no numbers
                for owner in self._large.pop(tensor.untyped_storage().data_ptr(), ()):
                    self._kept.append((owner, owner.detach().clone()))

    def _add_array(self, array: np.ndarray[Any, Any]) -> None:
        self._seen[id(array)] = array
        if array.nbytes <= self._bytes and not array.dtype.hasobject:
            self._bytes -= array.nbytes
            self._kept.append((array, array.copy()))

    def changes(self) -> Changes:
        """What is no longer as it was: (owner, key, before, now); key None for what changed as a whole."""
        found: Changes = []
        for owner, before in self._kept:
            if isinstance(owner, dict):
                found += [
                    (owner, key, before.get(key), owner.get(key))
                    for key in {**before, **owner}
                    if key not in before or key not in owner or before[key] is not owner[key]
                ]
            elif isinstance(owner, list) and len(owner) == len(before):
                pairs = enumerate(zip(before, owner, strict=True))
                found += [(owner, place, was, now) for place, (was, now) in pairs if was is not now]
            elif not _same(owner, before):
                found.append((owner, None, before, owner.copy() if hasattr(owner, "copy") else owner.detach().clone()))
        return found

    def restore(self) -> None:
        """Put everything back, into the very objects that held it."""
        for owner, before in self._kept:
            if _same(owner, before):
                continue
            if isinstance(owner, torch.Tensor):
                with torch.no_grad(), torch.inference_mode(owner.is_inference()):
                    owner.detach().copy_(before)
            elif isinstance(owner, np.ndarray):
                np.copyto(owner, before)
            else:
                owner.clear()
                (owner.extend if hasattr(owner, "extend") else owner.update)(before)


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, torch.Tensor):
        return now.shape == before.shape and _bits_equal(now.detach(), before)
    if isinstance(now, np.ndarray):
        return bool(np.array_equal(now.view(np.uint8), before.view(np.uint8))) if now.flags.c_contiguous else False
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(a is b and now[a] is before[b] for a, b in zip(now, before, strict=True))
    if isinstance(now, set):
        return bool(now == before)
    return all(a is b for a, b in zip(now, before, strict=True))


def _bits_equal(now: torch.Tensor, before: torch.Tensor) -> bool:
    """Also where both are NaN."""
    return torch.equal(now, before) or bool((now.isnan() & before.isnan() | (now == before)).all())


class _Writes(TorchDispatchMode):
    """Tells a state of every operation in place."""

    def __init__(self, state: ModelState) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._state = state

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in written(func, args, kwargs or {}):
            self._state.is_written(each)
        return func(*args, **(kwargs or {}))


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The arguments that an operation in place changes."""
    schema = func._schema
    if not schema.is_mutable:
        return []
    given = [*zip(schema.arguments, args, strict=False)]
    given += [(each, kwargs[each.name]) for each in schema.arguments if each.name in kwargs]
    changed = [value for each, value in given if each.alias_info is not None and each.alias_info.is_write]
    return [each for each in tree_leaves(changed) if isinstance(each, torch.Tensor)]


@contextlib.contextmanager
def kept(model: torch.nn.Module) -> Iterator[ModelState]:
    """Whatever the block does to the Python state of the model is undone at its end; for blocks that run it."""
    state = ModelState(model)
    try:
        with _Writes(state):
            yield state
    finally:
        state.restore()
