"""Example inputs of a submodule, taken from the run itself: no extra forward, no batch drawn from a dataloader."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ROWS = 64  # enough for sampling slopes, and nothing worth mentioning in memory


class InputCapture:
    """Holds the arguments of one forward call.

    Example:
        >>> layer, capture = nn.Linear(3, 1), InputCapture()
        >>> capture.arm(layer)
        >>> _ = layer(torch.zeros(5, 3))
        >>> capture.arguments[0].shape, capture.armed
        (torch.Size([5, 3]), False)
    """

    def __init__(self) -> None:
        self.arguments: tuple[Any, ...] | None = None
        self._handle: RemovableHandle | None = None

    @property
    def armed(self) -> bool:
        return self._handle is not None

    def arm(self, module: nn.Module) -> None:
        """Keep the arguments of the next forward of ``module``."""
        self.disarm()
        self._handle = module.register_forward_pre_hook(_Hook(self), with_kwargs=True)

    def disarm(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def take(self, arguments: tuple[Any, ...]) -> None:
        """Keep copies of the first rows of ``arguments`` and stop listening."""
        self.arguments = tuple(_first_rows(value) for value in arguments)
        self.disarm()

    def take_from_batch(self, batch: Any) -> bool:
        """For a forward that the training step never calls: the batch's tensor, or its first as in ``(x, y)``."""
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(first, Tensor):
            self.take((first,))
        return isinstance(first, Tensor)

    def take_example(self, example: Any, module: nn.Module) -> None:
        """``example_input_array``: a tensor, a tuple of arguments or a dictionary of keyword arguments."""
        if isinstance(example, dict):
            example = _positional(module, (), example)
        self.take(example if isinstance(example, tuple) else (example,))

    @property
    def example(self) -> Any:
        """The one argument, or the tuple of them."""
        return self.arguments[0] if self.arguments is not None and len(self.arguments) == 1 else self.arguments


class _Hook:
    """The forward pre-hook. Lives inside the user's module, so a copy or a pickle of that module holds an inert one."""

    def __init__(self, capture: InputCapture | None = None) -> None:
        self._capture: ReferenceType[InputCapture] | None = None if capture is None else ref(capture)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return  # what is compiled is none of ours; the batch is asked instead, see `take_from_batch`
        capture = None if self._capture is None else self._capture()
        if capture is not None and not _redirected(module):
            capture.take(_positional(module, args, kwargs))

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _redirected(module: nn.Module) -> bool:
    """Whether a distributed strategy is calling ``training_step`` in the name of ``forward``: a batch, not an input."""
    return "ForwardRedirection" in getattr(module.__dict__.get("forward"), "__qualname__", "")


def _positional(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return inspect.signature(module.forward).bind(*args, **kwargs).args if kwargs else args


def _first_rows(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(False), torch.no_grad():
        return (value[:_ROWS] if value.ndim > 1 else value).detach().clone()
