"""What of a model a callback speaks about: a submodule, one of its inputs, one of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_lipschitz.callbacks._arguments import require
from lightning_lipschitz.extraction import Input, Output

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Choice:
    """``module``, ``input`` and ``output`` of a callback, as those of :func:`lightning_lipschitz.certify`.

    Args:
        module: dotted name, "" for the model.
        input: position or name.
        output: position or name, "all", or a function.

    Example:
        >>> Choice("critic", "state", 0).label, Choice("critic").label
        ('critic,input=state,output=0', 'critic')
    """

    module: str = ""
    input: Input = None
    output: Output = None

    @classmethod
    def of(cls, callback: Any) -> Choice:
        """That of a callback."""
        return cls(callback.module, callback.input, callback.output)

    def check(self, owner: str) -> Choice:
        """Itself, if these can be names and positions.

        Raises:
            MisconfigurationException: naming the argument.
        """
        require(isinstance(self.module, str), owner, "module", self.module, "the dotted name of a submodule")
        named = _is_place(self.input) or self.input is None
        require(named, owner, "input", self.input, "the position (an int >= 0) or the name of an input, or None")
        accepted = "the position (an int >= 0) or the name of an output, 'all', a function of the outputs, or None"
        named = _is_place(self.output) or self.output is None
        require(named or _is_function(self.output), owner, "output", self.output, accepted)
        return self

    def check_input(self, target: nn.Module, owner: str) -> None:
        """The forward can have such an input.

        Raises:
            MisconfigurationException: it has not; names those that it has.
        """
        if self.input is None or not names_of(target):
            return
        parameters = inspect.signature(target.forward).parameters
        kinds = {each.kind for each in parameters.values()}
        takes = [name for name, each in parameters.items() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        if isinstance(self.input, str):
            known = self.input in takes or inspect.Parameter.VAR_KEYWORD in kinds
        else:
            several = inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.VAR_KEYWORD in kinds
            known = several or self.input < len(takes)
        accepted = f"one of the inputs of `{type(target).__name__}.forward`: {', '.join(map(repr, takes))}"
        require(known, owner, "input", self.input, f"{accepted}; by name or by position from 0")

    @property
    def label(self) -> str:
        """Tells apart instances, in keys of metrics and of checkpoints."""
        chosen = {"input": self.input, "output": _name(self.output)}
        return ",".join([self.module] * bool(self.module) + [f"{k}={v}" for k, v in chosen.items() if v is not None])

    @property
    def state(self) -> dict[str, Any]:
        """What is in a callback's ``state_key``; only the module, where nothing else was chosen."""
        chosen = {"input": self.input, "output": _name(self.output)}
        return {"module": self.module} | {key: value for key, value in chosen.items() if value is not None}


def needs_more(target: nn.Module) -> bool:
    """Whether its forward cannot be called with one positional argument."""
    try:
        inspect.signature(target.forward).bind(None)
    except TypeError:
        return True
    except ValueError:
        pass
    return False


def arguments_of(target: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of a call as an example for :func:`lightning_lipschitz.certify`: a tuple of positional ones in the
    order of the signature, or, where some can be given by keyword only, all by their names."""
    if not kwargs:
        return args
    bound = inspect.signature(target.forward).bind(*args, **kwargs)
    if not bound.kwargs:
        return bound.args
    named = {name: bound.arguments[name] for name, each in bound.signature.parameters.items() if _fills(each, bound)}
    return named | bound.kwargs


def chosen_input(names: Sequence[str], arguments: Any, wanted: Input) -> Any:
    """The chosen one of the arguments that :func:`arguments_of` gave; None where there is no such one.

    Args:
        names: of the parameters of the forward, see :func:`names_of`.
        arguments: of one call.
        wanted: position or name; None for the only one.

    Example:
        >>> chosen_input(names_of(nn.Bilinear(1, 1, 1)), ("a", "b"), "input2"), chosen_input(("x",), ("a",), None)
        ('b', 'a')
    """
    named = isinstance(arguments, dict)
    names, values = list(arguments if named else names), list(arguments.values() if named else arguments)
    if wanted is None:
        return values[0] if len(values) == 1 else None
    place = wanted if isinstance(wanted, int) else names.index(wanted) if wanted in names else len(values)
    return values[place] if place < len(values) else None


def names_of(target: nn.Module) -> tuple[str, ...]:
    """Of the parameters of its forward."""
    try:
        return tuple(inspect.signature(target.forward).parameters)
    except (TypeError, ValueError):  # it is no Python
        return ()


def _fills(parameter: inspect.Parameter, bound: inspect.BoundArguments) -> bool:
    return parameter.kind in _POSITIONAL and parameter.name in bound.arguments


def _is_place(value: Any) -> bool:
    return (type(value) is int and value >= 0) or (isinstance(value, str) and value != "")


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _name(output: Output) -> int | str | None:
    if output is None or isinstance(output, (int, str)):
        return output
    return str(getattr(output, "__name__", type(output).__name__))
