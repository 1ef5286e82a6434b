"""The registry: which ATen operator is carried out by which rule.

A rule is a function of the operator's own arguments, after a ``Context``. Tensors that depend on the model's input
arrive as ``Traced``, all others as plain CPU tensors or numbers. To support one more operator, write one such function:

    @rule("neg")
    def neg(context: Context, x: Traced) -> Traced:
        return ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lightning_lipschitz.errors import ArgumentError, ExtractionError, NonFiniteError, UnsupportedModuleError
from lightning_lipschitz.extraction.constants import exactly
from lightning_lipschitz.extraction.expression import Expression
from lightning_lipschitz.extraction.size import DENSE_ENTRY, require_room
from lightning_lipschitz.network import Array

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
class Units:
    """What a layer's units do: ``function(y, *parameters)``, slopes in [alpha, beta] unit by unit or group by group.

    Args:
        alpha: lower slopes, one a unit.
        beta: upper slopes, one a unit.
        function: on a float64 tensor whose last dimension counts the units. It only serves to run the network.
        parameters: arrays with one entry a unit, handed to ``function``.
        group: units with the same number satisfy inequality (1) of ``network`` only jointly; None: each on its own.
    """

    alpha: Array
    beta: Array
    function: Callable[..., torch.Tensor]
    parameters: tuple[Array, ...] = ()
    group: npt.NDArray[np.int64] | None = None

    def __call__(self, y: Array) -> Array:
        """The outputs for pre-activations of shape (batch, units)."""
        parameters = [torch.from_numpy(each) for each in self.parameters]
        return self.function(torch.from_numpy(y), *parameters).numpy()

    def take(self, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Units:
        """These units only; a group stays whole, because all of its units have the same slopes."""
        parameters = tuple(each[chosen] for each in self.parameters)
        group = None if self.group is None else self.group[chosen]
        return Units(self.alpha[chosen], self.beta[chosen], self.function, parameters, group)


@dataclass(frozen=True, eq=False)
class Activated:
    """A layer as it is met while the graph is walked."""

    before: Expression
    units: Units
    name: str


@dataclass(frozen=True, eq=False)
class Context:
    """Where in the model a rule is being applied, and the layers found so far.

    Args:
        path: dotted name of the innermost submodule, "" for the model itself.
        operator: what stands there, as the user would call it.
        line: the user's own line of code, if it is known.
        batch: number of samples in every traced tensor.
        layers: grows as activations are met.
        names: of the tensors that are not traced, by ``id``.
        dtype: of the result, as the model computes it.
    """

    path: str
    operator: str
    line: str
    batch: int
    layers: list[Activated]
    names: Mapping[int, str] = field(default_factory=dict)
    dtype: torch.dtype | None = None

    @property
    def layer_name(self) -> str:
        """The path when it is the activation's own, else the path and the operator."""
        if self.operator[:1].isupper() and self.path:
            return self.path
        return ".".join(part for part in (self.path, self.operator) if part)

    def unsupported(self, verdict: Literal["never", "not yet", "replace"], advice: str) -> UnsupportedModuleError:
        """The error to raise for what stands here."""
        return UnsupportedModuleError(self.path, self.operator, verdict, f"{advice} {self.line}".strip())

    def refused(self, reason: str, advice: str) -> ExtractionError:
        """The error to raise when it is not the operator that is at fault."""
        where = f"`{self.path}`" if self.path else "the model"
        return ExtractionError(where, f"{reason} {self.line}".strip(), advice)

    def require_room(self, before: Expression) -> None:
        """Refuse a layer whose explicit matrices, with those of the layers before it, would not fit.

        Raises:
            ModelSizeError: with the size.
        """
        entries = sum(term.shape[0] * term.shape[1] for e in (*self.before, before) for term in e.terms.values())
        require_room(entries * DENSE_ENTRY, f"the matrices up to `{self.layer_name}`")

    @property
    def before(self) -> tuple[Expression, ...]:
        """The pre-activations of the layers found so far."""
        return tuple(layer.before for layer in self.layers)

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
        raise ArgumentError(name, f"a tensor of {tensor.dtype}", "real")
    # A finite sum proves every entry finite, at a fraction of the cost of looking at each.
    if not math.isfinite(tensor.sum().item()):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise NonFiniteError(name, bad, tensor.numel())
