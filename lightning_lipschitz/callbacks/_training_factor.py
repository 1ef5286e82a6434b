"""A number that multiplies what a module returns, inside of the graph, while a training batch runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from lightning_lipschitz.extraction import Output
from lightning_lipschitz.lightning_tools.inputs import is_redirected

Call = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], "Tensor | None"]


class TrainingFactor:
    """Hooks of one module. They are idle but between :meth:`open` and :meth:`close`, and in evaluation mode.

    Args:
        output: which of the module's outputs is multiplied: position, name, "all", or None for the only one.
        factor: gives the number for a call, from the module and its arguments; None for one.

    Attributes:
        calls: how often the factor was asked for.

    Example:
        >>> layer, half = nn.Identity(), TrainingFactor(None, lambda module, args, kwargs: torch.tensor(0.5))
        >>> half.attach(layer)
        >>> half.open()
        >>> layer(torch.ones(2)), layer.eval()(torch.ones(2))
        (tensor([0.5000, 0.5000]), tensor([1., 1.]))
        >>> half.remove()
    """

    def __init__(self, output: Output, factor: Call) -> None:
        self._output, self._factor = output, factor
        self._handles: list[RemovableHandle] = []
        self._redirected: list[bool] = []  # of the calls that are running, the innermost last
        self._open = self._busy = False
        self.calls = 0
        # none of this is part of what is compiled
        self.before: Callable[..., None] = torch.compiler.disable(self._before)  # type: ignore[no-untyped-call]
        self.after: Callable[..., Any] = torch.compiler.disable(self._after)  # type: ignore[no-untyped-call]

    def attach(self, module: nn.Module) -> None:
        """Stand behind the calls of a module."""
        self.remove()
        self._handles = [
            module.register_forward_pre_hook(_Before(self)),
            module.register_forward_hook(_After(self), with_kwargs=True),
        ]

    def remove(self) -> None:
        """Leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], False

    def open(self) -> None:
        """A training batch begins."""
        self._open, self._redirected = True, []

    def close(self) -> None:
        """It is over."""
        self._open = False

    def _before(self, module: nn.Module) -> None:
        """A call begins."""
        if self._open and not self._busy:
            self._redirected.append(is_redirected(module))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> Any:
        """A call ends: what it returns from now on."""
        if not self._open or self._busy:
            return None
        redirected = self._redirected.pop() if self._redirected else False
        if redirected or not module.training:
            return None
        self.calls += 1
        self._busy = True  # whoever works out the factor may call the module
        try:
            factor = self._factor(module, args, kwargs)
        finally:
            self._busy = False
        return None if factor is None else multiplied(outputs, self._output, factor)


def multiplied(outputs: Any, output: Output, factor: Tensor) -> Any:
    """Outputs of a module, the chosen one times ``factor`` in its own dtype.

    Args:
        outputs: a tensor, a tuple, a list, a mapping, or an object with fields.
        output: position, name, "all", or None for the only one.
        factor: a scalar.

    Example:
        >>> multiplied({"logits": torch.ones(1), "features": torch.ones(1)}, "logits", torch.tensor(0.5))
        {'logits': tensor([0.5000]), 'features': tensor([1.])}
    """

    def times(each: Any) -> Any:
        floating = isinstance(each, Tensor) and each.is_floating_point()
        return each * factor.to(each.device, each.dtype) if floating else each

    if output is None or isinstance(outputs, Tensor):
        return times(outputs)
    if isinstance(outputs, Mapping) and output in outputs:
        changed = copy.copy(outputs)
        changed[output] = times(outputs[output])  # type: ignore[index]
        return changed
    if output == "all":
        return tree_map(times, outputs)
    if hasattr(outputs, "_replace"):  # a tuple with names
        name = outputs._fields[output] if isinstance(output, int) else str(output)
        return outputs._replace(**{name: times(getattr(outputs, name))})
    listed = [times(each) if place == output else each for place, each in enumerate(outputs)]
    return type(outputs)(listed)


class _InUsersModule:
    """A hook. It lives inside the user's module, so a copy or a pickle of that module holds an inert one."""

    def __init__(self, owner: TrainingFactor | None = None) -> None:
        self._owner: ReferenceType[TrainingFactor] | None = None if owner is None else ref(owner)

    @property
    def owner(self) -> TrainingFactor | None:
        return None if self._owner is None else self._owner()

    def __reduce__(self) -> tuple[type[_InUsersModule], tuple[()]]:
        return type(self), ()


class _Before(_InUsersModule):
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        owner = self.owner
        if owner is not None:
            owner.before(module)


class _After(_InUsersModule):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        owner = self.owner
        return None if owner is None else owner.after(module, args, kwargs, outputs)
