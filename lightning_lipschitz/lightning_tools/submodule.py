"""The part of a model that a callback or a mixin speaks about: a submodule, one of its inputs, one of its outputs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.lightning_tools.arguments import require
from lightning_lipschitz.lightning_tools.inputs import names_of

_NO_FORWARD = ("LightningModule.forward", "_forward_unimplemented")


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
        """Choice in the arguments of a callback."""
        return cls(callback.module, callback.input, callback.output)

    def check(self, owner: str, prefix: str = "") -> Choice:
        """Itself, if these can be names and positions.

        Args:
            owner: the class whose arguments they are.
            prefix: of their names there.

        Raises:
            MisconfigurationException: naming the argument.
        """
        require(isinstance(self.module, str), owner, f"{prefix}module", self.module, "the dotted name of a submodule")
        named = _is_place(self.input) or self.input is None
        require(
            named, owner, f"{prefix}input", self.input, "the position (an int >= 0) or the name of an input, or None"
        )
        accepted = "the position (an int >= 0) or the name of an output, 'all', a function of the outputs, or None"
        named = _is_place(self.output) or self.output is None
        require(named or _is_function(self.output), owner, f"{prefix}output", self.output, accepted)
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
    def state(self) -> dict[str, Any]:
        """What is in a callback's ``state_key``; only the module, where nothing else was chosen."""
        chosen = {"input": self.input, "output": _name(self.output)}
        return {"module": self.module} | {key: value for key, value in chosen.items() if value is not None}

    @property
    def label(self) -> str:
        """Tells apart instances, in keys of metrics and of checkpoints."""
        _, *others = self.state.items()
        return ",".join([self.module] * bool(self.module) + [f"{key}={value}" for key, value in others])


def find_target(root: nn.Module, name: str, owner: str) -> nn.Module:
    """The submodule called ``name``; for ``""`` the model itself, or its only child if it has no ``forward``.

    Args:
        root: the LightningModule, or a copy of it that holds averaged weights.
        name: dotted, as in ``root.named_modules()``.
        owner: the class whose argument ``module`` this is, for the message.

    Raises:
        MisconfigurationException: no such submodule, or none that could be meant by ``""``.
    """
    if name:
        return _named(root, name, owner)
    if type(root).forward.__qualname__ not in _NO_FORWARD:
        return root
    children = [child for child in root.children() if any(True for _ in child.parameters())]
    if len(children) == 1:
        return children[0]
    raise MisconfigurationException(
        f"`{owner}(module='')` stands for the forward of `{type(root).__name__}`, which has none. Define `forward`, or"
        f" name the submodule to certify: `module` can be {_choices(root)}."
    )


def _named(root: nn.Module, name: str, owner: str) -> nn.Module:
    try:
        return root.get_submodule(name)
    except AttributeError:
        raise MisconfigurationException(
            f"`{owner}(module={name!r})` names no submodule of `{type(root).__name__}`."
            f" `module` can be {_choices(root)}."
        ) from None


def _choices(root: nn.Module, limit: int = 8) -> str:
    names = [repr(name) for name, _ in root.named_modules() if name]
    listed = ", ".join(names[:limit]) or "''"
    return listed if len(names) <= limit else f"{listed}, ... ({len(names)} in all)"


def _is_place(value: Any) -> bool:
    return (type(value) is int and value >= 0) or (isinstance(value, str) and value != "")


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _name(output: Output) -> int | str | None:
    if output is None or isinstance(output, (int, str)):
        return output
    return str(getattr(output, "__name__", type(output).__name__))
