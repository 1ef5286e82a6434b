"""The registry: which ATen operator is carried out by which rule.

A rule is a function of the operator's own arguments, after a ``Context``. Tensors that depend on the model's input
arrive as ``Value``, all others as plain CPU tensors or numbers. It adds nodes to the graph, or only moves data. To
support one more operator, write one such function in a file of ``rules/``:

    @rule("neg")
    def neg(context: Context, x: Value) -> Value:
        return mul(context, x, -1.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from lightning_lipschitz.errors import ArgumentError, ExtractionError, NonFiniteError, UnsupportedModuleError, Verdict
from lightning_lipschitz.extraction.builder import Builder
from lightning_lipschitz.extraction.constants import exactly

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[AnyRule], AnyRule]:
    """Register a function for these ATen operators, named as in ``aten::name``, whatever their overload."""

    def register(function: AnyRule) -> AnyRule:
        for operator in operators:
            if operator in _RULES:
                raise RuntimeError(f"two rules for {operator}")
            _RULES[operator] = function
        return function

    return register


def find_rule(operator: str) -> Rule | None:
    """The rule for an operator, if there is one."""
    return _RULES.get(operator)


@dataclass(frozen=True, eq=False)
class Context:
    """Where in the model a rule is being applied, and the graph so far.

    Args:
        builder: the graph as it grows.
        path: dotted name of the innermost submodule, "" for the model itself.
        operator: what stands there, as the user would call it.
        line: the user's own line of code, if it is known.
        names: of the tensors that do not depend on the input, by ``id``.
        dtype: of the result, as the model computes it.
    """

    builder: Builder
    path: str
    operator: str
    line: str
    names: Mapping[int, str] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """The name of a node that is made here: the path when it is the operator's own, else the path and the
        operator."""
        if self.operator[:1].isupper() and self.path:
            return self.path
        return ".".join(part for part in (self.path, self.operator) if part)

    def unsupported(self, verdict: Verdict, advice: str) -> UnsupportedModuleError:
        """The error to raise for what stands here."""
        return UnsupportedModuleError(self.path, self.operator, verdict, f"{advice} {self.line}".strip())

    def refused(self, reason: str, advice: str) -> ExtractionError:
        """The error to raise when it is not the operator that is at fault."""
        where = f"`{self.path}`" if self.path else "the model"
        return ExtractionError(where, f"{reason} {self.line}".strip(), advice)

    def refuse_conversion(self, dtype: torch.dtype | None) -> None:
        """Raise where values of the input are converted to a dtype that rounds them."""
        if dtype is not None:
            sentence = f"It converts values to {dtype}, and rounding jumps. Leave them in the model's own dtype."
            raise self.unsupported("never", sentence)

    def constant(self, value: torch.Tensor | float) -> torch.Tensor:
        """A known tensor or number in float64 on the CPU (every narrower float fits exactly).

        Raises:
            NonFiniteError: with the parameter's name.
        """
        try:
            tensor = exactly(value)
        except (ValueError, RuntimeError) as error:
            raise self.unsupported("not yet", str(error)) from None
        require_finite(
            tensor, self.names.get(id(value), "a constant in " + (f"`{self.path}`" if self.path else "the model"))
        )
        return tensor


def require_finite(tensor: torch.Tensor, name: str) -> None:
    """Raise ``NonFiniteError`` with this name for NaN or infinite entries, ``ArgumentError`` for complex ones."""
    if tensor.is_complex():
        raise ArgumentError(name.strip("`"), tensor.dtype, "real: complex numbers have no rule yet")
    # A finite sum proves every entry finite, at a fraction of the cost of looking at each.
    if not math.isfinite(tensor.sum().item()):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise NonFiniteError(name, bad, tensor.numel())
