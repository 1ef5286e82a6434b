"""Inputs of a module: how its forward takes them, and examples of them, taken from the run itself.

There is no extra forward for that, and no batch is drawn from a dataloader.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from lightning_lipschitz.extraction import Input

Arguments: TypeAlias = "tuple[Any, ...] | dict[str, Any]"

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ROWS = 64  # enough for sampling slopes, and nothing worth mentioning in memory


def names_of(target: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of its forward."""
    try:
        return tuple(inspect.signature(target.forward).parameters)
    except (TypeError, ValueError):  # it is no Python
        return ()


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
        names: parameters of the forward, see :func:`names_of`.
        arguments: those of one call.
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


def _fills(parameter: inspect.Parameter, bound: inspect.BoundArguments) -> bool:
    return parameter.kind in _POSITIONAL and parameter.name in bound.arguments


class InputCapture:
    """Holds the arguments of one forward call.

    Args:
        wanted: position or name of the one of several that matters: what is as long as it counts samples.

    Example:
        >>> layer, capture = nn.Linear(3, 1), InputCapture()
        >>> capture.arm(layer)
        >>> _ = layer(torch.zeros(5, 3))
        >>> capture.arguments[0].shape, capture.armed
        (torch.Size([5, 3]), False)
    """

    def __init__(self, wanted: Input = None) -> None:
        self._wanted = wanted
        self.arguments: Arguments | None = None
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

    def take(self, arguments: Arguments, module: nn.Module) -> None:
        """Keep copies of the first samples of the arguments of ``module`` and stop listening."""
        self.arguments = first_samples(arguments, _ROWS, chosen_input(names_of(module), arguments, self._wanted))
        self.disarm()

    def take_from_batch(self, batch: Any, module: nn.Module) -> bool:
        """Take the batch's tensor, or its first as in ``(x, y)``, for a forward that the training step never calls."""
        first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if isinstance(first, Tensor):
            self.take((first,), module)
        return isinstance(first, Tensor)

    def take_example(self, example: Any, module: nn.Module) -> None:
        """``example_input_array``: a tensor, a tuple of arguments or a dictionary of keyword arguments."""
        if isinstance(example, dict):
            example = arguments_of(module, (), example)
        self.take(example if isinstance(example, (tuple, dict)) else (example,), module)

    @property
    def example(self) -> Any:
        """The one argument, or the tuple of them, or all by name."""
        several = self.arguments is None or isinstance(self.arguments, dict) or len(self.arguments) != 1
        return self.arguments if several else self.arguments[0]  # type: ignore[index]


def first_samples(arguments: Any, rows: int, like: Any = None) -> Any:
    """A copy, without what counts samples beyond the first ``rows``: tensors as long as ``like``, by default as the
    first with two dimensions or more."""
    tensors = [leaf for leaf in tree_leaves([like, arguments]) if isinstance(leaf, Tensor) and leaf.ndim > 1]
    batch = len(tensors[0]) if tensors else None

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with torch.inference_mode(False), torch.no_grad():
            return (value[:rows] if value.ndim and len(value) == batch else value).detach().clone()

    return tree_map(cut, arguments)


def plain(arguments: Arguments | None, chosen: Any) -> Arguments | None:
    """The arguments as a checkpoint can hold them: a few samples, tensors on the CPU and plain values; None where there
    are others.

    Args:
        arguments: those of one call.
        chosen: the one of them whose samples count.
    """
    leaves = [] if arguments is None else tree_leaves(arguments)
    if not isinstance(chosen, Tensor) or not all(
        isinstance(leaf, (Tensor, int, float, str, type(None))) for leaf in leaves
    ):
        return None
    fixed = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) != len(chosen)}
    rows = next(n for n in range(2, len(fixed) + 3) if n not in fixed)  # none may look as if it counted samples
    few: Arguments = first_samples(arguments, rows, chosen)
    return tree_map(lambda each: each.cpu() if isinstance(each, Tensor) else each, few)  # type: ignore[no-any-return]


class _Hook:
    """The forward pre-hook. Lives inside the user's module, so a copy or a pickle of that module holds an inert one."""

    def __init__(self, capture: InputCapture | None = None) -> None:
        self._capture: ReferenceType[InputCapture] | None = None if capture is None else ref(capture)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return  # what is compiled is none of ours; the batch is asked instead, see `take_from_batch`
        capture = None if self._capture is None else self._capture()
        if capture is not None and not is_redirected(module):
            capture.take(arguments_of(module, args, kwargs), module)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def is_redirected(module: nn.Module) -> bool:
    """Whether a distributed strategy is calling ``training_step`` in the name of ``forward``: a batch, not an input."""
    return "ForwardRedirection" in getattr(module.__dict__.get("forward"), "__qualname__", "")
