"""The registry of the structured route: which ATen operator makes which node.

A rule is a function of the operator's own arguments, after a ``Context``. Tensors that depend on the model's input
arrive as ``Value``, all others as plain CPU tensors or numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch

from lightning_lipschitz.errors import ExtractionError, UnsupportedModuleError
from lightning_lipschitz.extraction.constants import exactly
from lightning_lipschitz.extraction.registry import require_finite
from lightning_lipschitz.extraction.structured.builder import Builder

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
_RULES: dict[str, Rule] = {}

PRODUCT = "By itself the product of two values that both depend on the input grows without bound."


def rule(*operators: str) -> Callable[[AnyRule], AnyRule]:
    """Register a function for these ATen operators, named as in ``aten::name``, whatever their overload."""

    def register(function: AnyRule) -> AnyRule:
        for operator in operators:
            if operator in _RULES:
                raise RuntimeError(f"two structured rules for {operator}")
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
        builder: of the graph.
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
        """For the node that is made here."""
        return ".".join(part for part in (self.path, self.operator) if part)

    def unsupported(self, verdict: Literal["never", "not yet", "replace"], advice: str) -> UnsupportedModuleError:
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
        """A known tensor or number in float64 on the CPU.

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
