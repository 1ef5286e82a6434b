"""An accelerator for machines without one: its tensors compute on the CPU but refuse to meet those of another.

What crosses between the devices is counted in trips and in bytes. Speed and kernels are not imitated. It stands on
torch's experimental Python backends, which came with torch 2.9.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

TRIPS: Counter[str] = Counter()
BYTES: Counter[str] = Counter()
MOVES = {"aten::_to_copy", "aten::copy_", "aten::_copy_from"}
MAY_MIX = MOVES | {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Backend:
    """What torch asks of the module of a backend."""

    is_initialized = staticmethod(lambda: True)
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    set_device = staticmethod(lambda device: None)
    synchronize = staticmethod(lambda device=None: None)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=0: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=0: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    _is_in_bad_fork = staticmethod(lambda: False)


_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
DEVICE = torch.device("pretend", 0)


class Pretend(torch.Tensor):
    """A tensor of the pretend device, around the tensor of the CPU that computes for it."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretend:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **layout)
        made.inner = inner
        return made

    def __repr__(self, **_: object) -> str:
        return f"Pretend({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, leaves = func._schema.name, tree_leaves((args, kwargs))
        ours = any(isinstance(leaf, Pretend) for leaf in leaves)
        if ours and name not in MAY_MIX:
            _refuse_mixtures(name, leaves)
        there = _lands_there(name, args, kwargs, ours)
        _count(name, args, ours, there)
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        written = _written(func, args) if func._schema.is_mutable and not isinstance(out, tuple | list) else []
        if len(written) == 1:
            return written[0]
        return tree_map(lambda leaf: Pretend(leaf) if isinstance(leaf, torch.Tensor) and there else leaf, out)


torch.serialization.add_safe_globals([Pretend])  # so that checkpoints that hold some can be read as weights only


def _refuse_mixtures(name, leaves) -> None:
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Pretend) and leaf.dim() > 0:
            message = "Expected all tensors to be on the same device, but found at least two devices"
            raise RuntimeError(f"{message}, {DEVICE} and {leaf.device}! ({name})")


def _lands_there(name, args, kwargs, ours) -> bool:
    if name == "aten::copy_":
        return isinstance(args[0], Pretend)
    device = kwargs.get("device")
    return ours if device is None else torch.device(device).type == DEVICE.type


def _count(name, args, ours, there) -> None:
    moved = args[1] if name == "aten::copy_" else args[0] if args else None
    comes_from_there = isinstance(moved, Pretend)
    if (name == "aten::_local_scalar_dense" and ours) or (name in MOVES and comes_from_there and not there):
        way = "to the host"
    elif name in MOVES and there and not comes_from_there:
        way = "from the host"
    else:
        return
    TRIPS[way] += 1
    BYTES[way] += moved.numel() * moved.element_size()


def _written(func, args):
    pairs = zip(args, func._schema.arguments, strict=False)
    return [arg for arg, of in pairs if of.alias_info is not None and of.alias_info.is_write]


def _inner(leaf):
    if isinstance(leaf, Pretend):
        return leaf.inner
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == DEVICE.type else leaf


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return Pretend.__torch_dispatch__(func, types, args, kwargs)


@contextlib.contextmanager
def accelerator():
    """Where the device exists, with the counts at zero. The thread that calls runs the backward pass too."""
    before = torch.autograd.is_multithreading_enabled()
    torch.autograd.set_multithreading_enabled(False)
    TRIPS.clear()
    BYTES.clear()
    try:
        with _Mode():
            yield
    finally:
        torch.autograd.set_multithreading_enabled(before)


class PretendAccelerator(pl.accelerators.Accelerator):
    """The device as a Trainer sees it."""

    def setup_device(self, device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device) -> dict:
        return {}

    parse_devices = staticmethod(lambda devices: devices)
    get_parallel_devices = staticmethod(lambda devices: [DEVICE])
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: "pretend")


def trainer_arguments() -> dict:
    """For a Trainer on this device."""
    strategy = pl.strategies.SingleDeviceStrategy(device=DEVICE)
    return {"accelerator": PretendAccelerator(), "devices": 1, "strategy": strategy}


# torch.tensor(..., device=...) and its like make their tensors below the dispatch mode, by these.


def _without_device(options):
    return {k: v for k, v in options.items() if k not in ("device", "pin_memory", "layout") and v is not None}


@torch.library.impl("aten::empty_strided", "privateuseone")
def _empty_strided(size, stride, **options):
    return Pretend(torch.empty_strided(size, stride, **_without_device(options)))


@torch.library.impl("aten::empty.memory_format", "privateuseone")
def _empty(size, **options):
    return Pretend(torch.empty(size, **_without_device(options)))


@torch.library.impl("aten::_copy_from", "privateuseone")
def _copy_from(source, target, non_blocking=False):
    _inner(target).copy_(_inner(source))
    return target


@torch.library.impl("aten::copy_", "privateuseone")
def _copy(target, source, non_blocking=False):
    _inner(target).copy_(_inner(source))
    return target
