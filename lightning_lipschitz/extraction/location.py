"""What a node of the graph is to the user: which submodule, which operator, which line of his code."""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_lipschitz.extraction.patterns import operator_name
from lightning_lipschitz.extraction.undisturbed import clean

_PACKAGE = str(Path(__file__).parents[1])
_CONTAINERS = ("container", "transformer")  # modules of torch.nn whose name would hide the operator's


def cast_resolution(node: torch.fx.Node) -> float:
    """Relative rounding of an operator whose result has another floating-point type than an argument; else zero."""
    values = [each.meta.get("val") for each in (node, *node.all_input_nodes)]
    dtypes = {each.dtype for each in values if isinstance(each, torch.Tensor) and each.is_floating_point()}
    return max(torch.finfo(dtype).eps for dtype in dtypes) if len(dtypes) > 1 else 0.0


def _stack(node: torch.fx.Node) -> list[tuple[str, Any]]:
    return list((node.meta.get("nn_module_stack") or {}).values())


def path(node: torch.fx.Node) -> str:
    """Dotted name of the innermost submodule."""
    stack = _stack(node)
    return clean(stack[-1][0]) if stack else ""


def display_name(node: torch.fx.Node) -> str:
    """The class of a ready-made module of torch.nn, else the operator."""
    stack = _stack(node)
    parts = str(stack[-1][1]).removeprefix("<class '").removesuffix("'>").split(".") if stack else []
    if parts[:3] == ["torch", "nn", "modules"] and parts[3] not in _CONTAINERS:
        return parts[-1]
    return operator_name(node.target)


def line(node: torch.fx.Node) -> str:
    """Where the user wrote it, from the stack that torch.export recorded."""
    lines = [each.strip() for each in (node.meta.get("stack_trace") or "").splitlines()]
    for place, code in reversed(list(itertools.pairwise(lines))):
        match = re.match(r'File "(.*)", line (\d+)', place)
        if match and "/torch/" not in place:
            return f"(at {match[1]}:{match[2]}: `{code}`)"
    return ""


def users_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of the user's own, in parentheses; empty if there is none."""
    users = [f for f in frames if "/torch/" not in f.filename and not f.filename.startswith(_PACKAGE)]
    return f" (at {users[-1].filename}:{users[-1].lineno}: `{users[-1].line}`)" if users else ""
