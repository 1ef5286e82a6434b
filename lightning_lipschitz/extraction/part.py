"""What of a model is looked at: a submodule, one of several inputs, one of several outputs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_lipschitz.errors import ArgumentError, ExtractionError
from lightning_lipschitz.extraction.undisturbed import (
    clean,
    computes_in,
    name_of,
    refuse_script,
    undisturbed,
    unwrapped,
)

_AGREE = 1e-3  # relative: what differs by less is rounding of the model's own dtype

Input: TypeAlias = int | str | None
Output: TypeAlias = int | str | Callable[[Any], Tensor] | None


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The submodule with this dotted name, the model itself for "".

    Raises:
        ArgumentError: there is none; the message lists some that there are.
        ExtractionError: it is a TorchScript module.
    """
    refuse_script(model)
    try:
        return unwrapped(unwrapped(model).get_submodule(name))
    except AttributeError:
        names = [repr(clean(each)) for each, _ in model.named_modules() if clean(each)]
        listed = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
        raise ArgumentError("module", name, f"the name of a submodule ({listed or 'there is none'})") from None


def input_of(model: nn.Module, name: str, given: Any) -> Any:
    """What the submodule is called with when the model runs on ``given``: a tensor, or a mapping of several by name.

    Raises:
        ExtractionError: the model does not call the submodule.
    """
    target, met = submodule(model, name), []
    args, kwargs = ((), given) if isinstance(given, Mapping) else (given if isinstance(given, tuple) else (given,), {})
    hook = target.register_forward_pre_hook(lambda _, *called: met.append(called), with_kwargs=True)
    try:
        with undisturbed(model), torch.random.fork_rng(devices=[]):
            unwrapped(model)(*args, **kwargs)
    finally:
        hook.remove()
    if not met:
        raise ExtractionError(
            f"`{name}`",
            f"{name_of(model)} does not call it on its example input.",
            "Give the example input of `module`.",
        )
    args, kwargs = met[0]
    if len(args) == 1 and not kwargs:
        return args[0]
    return dict(inspect.signature(target.forward).bind(*args, **kwargs).arguments)


def part(model: nn.Module, given: Any, wanted: Input = None, output: Output = None) -> tuple[nn.Module, Any]:
    """A module of one input and one output, and the example of that input.

    Args:
        model: with any number of inputs and outputs.
        given: its example: a tensor, a tuple of positional ones, or a mapping of named ones.
        wanted: which of them the bound is for, by position or name; needed when there are several.
        output: which output, by position or name; "all" for all of them as one vector; or a function of them.

    Raises:
        ExtractionError: several inputs and none named.
        ArgumentError: no such input.
    """
    several = isinstance(given, (tuple, list, Mapping))
    if not several and wanted in (None, 0) and output is None:
        return model, given
    args, kwargs = ((), dict(given)) if isinstance(given, Mapping) else (tuple(given) if several else (given,), {})
    key = _key(model, args, kwargs, wanted)
    chosen = args[key] if isinstance(key, int) else kwargs[key]
    if not isinstance(chosen, Tensor):
        if wanted is None:
            accepted = "a floating-point tensor, or a tuple or mapping of those that the forward takes"
            raise ArgumentError("example_input", type(chosen).__name__, accepted)
        raise ArgumentError("input", wanted, f"an input that is one tensor, and not a {type(chosen).__name__}")
    if output is None and len(args) + len(kwargs) == 1 and isinstance(key, int):
        return model, chosen
    whole = Part(model, args, kwargs, key, output)
    _settle(whole, args, kwargs, key, output)
    return whole, chosen


def _settle(part: Part, args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str, output: Output) -> None:
    """Tell fixed inputs that count samples from those that only happen to be as long, by what the model does.

    Raises:
        ExtractionError: neither reading gives the first sample what the whole batch gives it.
    """
    unclear = [i for i, batched in part.batched.items() if batched]
    chosen = args[key] if isinstance(key, int) else kwargs[key]
    if not unclear or len(chosen) < 2 or not chosen.is_floating_point():
        return
    model: nn.Module = part._certified_part
    random = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    like = computes_in(model, chosen)
    x = random.to(like.device, like.dtype)
    args, kwargs = tree_map(lambda each: _beside(each, like), (args, kwargs))
    given = ((*args[:key], x, *args[key + 1 :]), kwargs) if isinstance(key, int) else (args, kwargs | {key: x})
    with undisturbed(part):
        try:
            expected = _chosen(model(*given[0], **given[1]), output, len(x))[:1].double()
        except (ArgumentError, ExtractionError):
            raise
        except Exception:
            return  # it does not run on such numbers, and the trace will say what it makes of zeros
        readings = [
            {i: i not in longer for i in unclear}
            for count in range(len(unclear) + 1)
            for longer in itertools.combinations(unclear, count)
        ]
        found = next((each for each in readings if _agrees(part, each, x[:1], expected)), None)
    if found is not None:
        part.batched.update(found)
        return
    raise ExtractionError(
        name_of(model),
        "its first sample alone, with the first row of the other inputs or with all of them, gives another output"
        " than in the batch.",
        "The model must treat every sample on its own. Give an example of one sample.",
    )


def _beside(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)


def _agrees(part: Part, batched: dict[int, bool], x: Tensor, expected: Tensor) -> bool:
    part.batched.update(batched)
    try:
        found = part(x).double()
    except Exception:
        return False
    scale = max(float(expected.abs().max()), 1e-30)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= _AGREE * scale)


def _key(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Input) -> int | str:
    """Where the wanted input is: a position among ``args`` or a name in ``kwargs``."""
    keys: list[int | str] = [*range(len(args)), *kwargs]
    if wanted is None and len(keys) != 1:
        raise ExtractionError(
            name_of(model),
            f"it was given {len(keys)} inputs, several inputs, and a bound is for one of them.",
            "Name it with `input=` (position or name); the others are held at the values of the first sample.",
        )
    names = dict(zip(inspect.signature(model.forward).parameters, range(len(args)), strict=False))
    places: dict[int | str, int | str] = dict(enumerate(keys))
    places.update(names)
    places.update((key, key) for key in kwargs)
    if wanted is not None and wanted not in places:
        raise ArgumentError("input", wanted, f"one of {', '.join(map(repr, places))}")
    return keys[0] if wanted is None else places[wanted]


class Part(nn.Module):
    """The model as a function of one input.

    Attributes:
        batched: which of the fixed tensors count samples: of these, every sample gets the first row.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], key: int | str, output: Output
    ) -> None:
        super().__init__()
        self._certified_part = model
        self._output = output
        given = args[key] if isinstance(key, int) else kwargs[key]
        like = computes_in(model, given)
        batch = len(given)
        hole = object()
        if isinstance(key, int):
            args = (*args[:key], hole, *args[key + 1 :])
        else:
            kwargs = kwargs | {key: hole}
        self._leaves, self._spec = tree_flatten((args, kwargs))
        self._place = next(i for i, leaf in enumerate(self._leaves) if leaf is hole)
        self._leaves[self._place] = None
        self.batched: dict[int, bool] = {}
        for i, leaf in enumerate(self._leaves):
            if isinstance(leaf, Tensor):
                self.batched[i] = leaf.ndim > 0 and len(leaf) == batch
                fixed = leaf.detach()
                dtype = like.dtype if fixed.is_floating_point() else fixed.dtype
                self.register_buffer(f"_fixed_{i}", fixed.to(like.device, dtype, copy=True), persistent=False)
                self._leaves[i] = None

    def forward(self, x: Tensor) -> Tensor:
        """The chosen output for samples ``x`` of the chosen input."""
        leaves = list(self._leaves)
        for i, batched in self.batched.items():
            fixed = getattr(self, f"_fixed_{i}")
            fixed = fixed[:1] if batched else fixed
            leaves[i] = fixed.expand(x.shape[0], *fixed.shape[1:]) if batched else fixed
        leaves[self._place] = x
        args, kwargs = tree_unflatten(leaves, self._spec)
        return _chosen(self._certified_part(*args, **kwargs), self._output, x.shape[0])


def _chosen(outputs: Any, output: Output, batch: int) -> Tensor:
    """The output of this name or position, a function of all, or all as one vector a sample."""
    if output is None:
        return outputs  # type: ignore[no-any-return]
    if callable(output):
        return output(outputs)
    several = isinstance(outputs, (tuple, list, Mapping))
    names = [*outputs] if isinstance(outputs, Mapping) else [*range(len(outputs))] if several else []
    names += list(getattr(outputs, "_fields", ()))
    if output in names:
        return outputs[output] if isinstance(outputs, Mapping) or isinstance(output, int) else getattr(outputs, output)  # type: ignore[no-any-return]
    if output == "all" and several:
        return torch.cat([leaf.reshape(batch, -1) for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor)], 1)
    accepted = (
        f"one of {', '.join(map(repr, [*names, 'all']))}" if several else "None or a function: there is one output"
    )
    raise ArgumentError("output", output, accepted)
