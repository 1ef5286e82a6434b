"""Known tensors and Python numbers, as a reading takes them: float64, and nothing rounded on the way.

A Python number is a float64 (or an integer): ``0.3`` in a forward is not the float32 next to it. What a forward
computes from parameters is computed in float64 too, so that a reading is that of the model in real arithmetic and not
of one precision.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lipschitz.extraction.patterns import operator_name

UNWRITTEN = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
_EXACT_INTEGERS = 2**53  # beyond, float64 skips integers


def double(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer on the CPU; float64 if it holds floating-point numbers, which fit exactly."""
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def exactly(value: Any) -> torch.Tensor:
    """A known tensor or number in float64 on the CPU.

    Raises:
        ValueError: complex numbers, or integers that float64 cannot hold.
    """
    tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else _of_number(value)
    if tensor.is_complex():
        raise ValueError("Complex numbers have no rule.")
    if tensor.dtype in (torch.int64, torch.uint64) and bool((tensor.double().abs() >= _EXACT_INTEGERS).any()):
        raise ValueError("Integers of 2^53 and more have no rule: double precision does not hold them.")
    return tensor.to(torch.float64)


def _of_number(value: Any) -> torch.Tensor:
    made = torch.tensor(value)  # an integer beyond int64 fails here
    return torch.tensor(value, dtype=torch.float64) if made.is_floating_point() else made


def folded(node: torch.fx.Node, args: Any, kwargs: Any, working: torch.dtype) -> Any:
    """The result of an operator on known values, as the same model in float64 computes it.

    Tensors that are no parameters or buffers keep their dtype; where an operator does not mix them with float64, they
    are taken to it.

    Args:
        node: of the traced graph.
        args, kwargs: of the operator.
        working: the model's own dtype. A conversion to it, or to a wider one, is none in real arithmetic.
    """
    args, kwargs = tree_map(lambda each: _widened(each, working), (args, kwargs))
    try:
        return known(node.target(*args, **kwargs), operator_name(node.target))  # type: ignore[operator]
    except RuntimeError:
        args, kwargs = tree_map(lambda each: double(each) if isinstance(each, torch.Tensor) else each, (args, kwargs))
        return node.target(*args, **kwargs)  # type: ignore[operator]


def known(result: Any, operator: str) -> Any:
    """The result itself, or zeros for memory that nobody has written yet; the check writes something else there."""
    return torch.zeros_like(result) if operator in UNWRITTEN else result


def _widened(value: Any, working: torch.dtype) -> Any:
    known = isinstance(value, torch.dtype) and value.is_floating_point and not narrower(value, working)
    return torch.float64 if known else value


def narrower(dtype: torch.dtype, working: torch.dtype) -> bool:
    """Whether a value of ``working`` may have to be rounded, or may overflow, in ``dtype``."""
    if not dtype.is_floating_point:
        return True
    here, there = torch.finfo(working), torch.finfo(dtype)
    return there.eps > here.eps or there.max < here.max


def conversion(node: torch.fx.Node, result: Any, kind: type, working: torch.dtype) -> torch.dtype | None:
    """The dtype that an operator converts values of the input to, where that is no identity in real arithmetic.

    Args:
        node: of the traced graph.
        result: what its rule made of it.
        kind: of values that depend on the input.
        working: the model's own dtype.
    """
    computed: Any = node.meta.get("val")
    several = isinstance(result, (tuple, list)) and isinstance(computed, (tuple, list))
    pairs = zip(result, computed, strict=False) if several else [(result, computed)]
    for made, like in pairs:
        if isinstance(made, kind) or any(isinstance(each, kind) for each in tree_leaves(made)):
            for each in tree_leaves(like):
                if isinstance(each, torch.Tensor) and narrower(each.dtype, working):
                    return each.dtype
    return None


def resolution(context: Any, table: Callable[..., Any]) -> dict[str, float]:
    """The keyword for entries of the table of slopes that depend on what the model's dtype can tell apart."""
    asked = "resolution" in inspect.signature(table).parameters
    return {"resolution": torch.finfo(context.dtype).eps} if asked and context.dtype is not None else {}
