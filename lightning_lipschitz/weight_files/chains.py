"""Which arrays of a file are a chain of layers, by their names and shapes; whatever may be something else is refused.

A file shows no activations, skip connections or order of calls. What is read here is the chain of the matrices alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lightning_lipschitz.errors import NoChainError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Listing:
    """What lies in a weight file, before its numbers are read.

    Attributes:
        shapes: names and shapes of everything, in the order of the file.
        read: the numbers of one name, float64.
        ordered: whether the order of the file means anything.
        module: whether the names are those of a module's state dict.
    """

    shapes: Shapes
    read: Callable[[str], npt.NDArray[np.float64]]
    ordered: bool = True
    module: bool = False


_LISTED = 8  # sizes that are written out

_TELLING = {
    "running_mean": "belongs to a batch norm",
    "running_var": "belongs to a batch norm",
    "num_batches_tracked": "belongs to a batch norm",
    "weight_orig": "is what a weight is computed from (spectral norm or pruning)",
    "weight_mask": "is the mask of a pruned weight",
    "weight_u": "belongs to a spectral norm",
    "weight_v": "belongs to a spectral or weight norm",
    "weight_g": "belongs to a weight norm",
    "bias_orig": "is what a bias is computed from",
    "bias_mask": "is the mask of a pruned bias",
}


def described(weights: Sequence[npt.NDArray[np.float64]], slopes: tuple[float, float], place: str = "") -> str:
    """What a bound of these matrices, or of those in a place, is a bound of, in words.

    Example:
        >>> described([np.ones((8, 6)), np.ones((3, 8))], (0.0, 1.0))
        'the chain 6-8-3 of these matrices, in this order, with slopes in [0, 1]'
    """
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights)]
    if len(sizes) > _LISTED:
        sizes = [*sizes[: _LISTED // 2], "...", *sizes[-_LISTED // 2 :]]
    chain = "-".join(map(str, sizes)) + (f" ({len(weights)} layers)" if "..." in sizes else "")
    between = f", in this order, with slopes in [{slopes[0]:g}, {slopes[1]:g}]" if len(weights) > 1 else ""
    matrices = ("these matrices" if between else "this matrix") if not place else "the matrices in " + place
    return f"the chain {chain} of {matrices}{between}"


def chain_of_arrays(shapes: Shapes, ordered: bool) -> list[str]:
    """The names of the matrices, first layer first, of a file of arrays with names of the user's own.

    Args:
        shapes: shapes of everything in the file, in its order.
        ordered: whether that order means anything.

    Raises:
        NoChainError: something is neither a matrix of a chain nor a bias, or nothing says in which order they come.
    """
    if any(_is_of_a_module(name) for name in shapes):
        return chain_of_state_dict(shapes, ordered)
    matrices = [name for name, shape in shapes.items() if len(shape) == 2 and not _is_bias(name)]
    if not matrices and all(_is_bias(name) for name in shapes):
        return []
    rows = {shapes[name][0] for name in matrices}
    before = None
    for name, shape in shapes.items():
        if name not in matrices:
            positional = before in matrices and re.fullmatch(r"arr_\d+", name) is not None and len(shape) == 1
            size = shapes[before][0] if positional and before is not None else math.prod(shape)
            if (
                not (_is_bias(name) or positional)
                or len(shape) > 2
                or max(shape, default=1) != size
                or size not in rows
            ):
                raise NoChainError(name, shape, "is neither a matrix nor, by name and length, a bias of one")
        before = name
    if len(matrices) > 1 and not (ordered and _numbers(matrices) is None):
        matrices = _in_order(matrices, ordered)
    return _fitting(matrices, shapes)


def chain_of_state_dict(shapes: Shapes, ordered: bool) -> list[str]:
    """The names of the weights, first layer first, of a state dict that one ``nn.Sequential`` of linear layers, or a
    list of them, has. Arguments and errors as of :func:`chain_of_arrays`."""
    for name in sorted(shapes, key=lambda name: _telling(name) is None):  # what says most first
        role, shape, reason = name.rpartition(".")[2], shapes[name], _telling(name)
        if reason is None and role not in ("weight", "bias"):
            reason = "is no weight of a linear layer"
        elif reason is None and role == "weight" and len(shape) != 2:
            gain = len(shape) < 2
            reason = "is a gain or slope, as of a normalisation" if gain else "is no matrix, as of a convolution"
        if reason is not None:
            raise NoChainError(name, shape, reason)
    for name, shape in shapes.items():
        if name.endswith("bias"):
            weight = shapes.get(f"{name.removesuffix('bias')}weight", ())
            if len(shape) != 1 or shape != weight[:1]:
                raise NoChainError(name, shape, "is no bias of a weight matrix beside it")
    modules = [name.removesuffix("weight") for name in shapes if name.endswith("weight")]
    if len(modules) > 1:
        modules = _in_order(modules, ordered)
    return _fitting([f"{module}weight" for module in modules], shapes)


def _telling(name: str) -> str | None:
    """What a name alone says against a chain."""
    parts = name.split(".")
    return "belongs to a parametrisation" if "parametrizations" in parts else _TELLING.get(parts[-1])


def _is_of_a_module(name: str) -> bool:
    _, dotted, role = name.rpartition(".")
    return _telling(name) is not None or (bool(dotted) and role in ("weight", "bias"))


def _is_bias(name: str) -> bool:
    return re.fullmatch(r"b[_\d]*|.*(?i:bias(es)?)[_\d]*", name) is not None


def _numbers(names: Iterable[str]) -> dict[str, int] | None:
    """Numbers by name; None where the names are not one name and a number each, as 0, 2 or fc1, fc2."""
    found = {name: re.fullmatch(r"(.*?)(\d{1,9})\.?", name) for name in names}
    stems = {match and match[1] for match in found.values()}
    numbers = {name: int(match[2]) for name, match in found.items() if match is not None}
    return numbers if len(stems) == 1 and len(set(numbers.values())) == len(found) else None


def _in_order(names: Sequence[str], ordered: bool) -> list[str]:
    numbers = _numbers(names)
    if numbers is None:
        listed = ", ".join(name.rstrip(".") for name in names[:4]) + (", ..." if len(names) > 4 else "")
        raise NoChainError(names[-1].rstrip("."), None, f"is one of several ({listed}) whose names give no order")
    sequence = sorted(names, key=numbers.__getitem__)
    if ordered and sequence != list(names):
        first = next(name for name, other in zip(names, sequence, strict=True) if name != other)
        raise NoChainError(first.rstrip("."), None, "has another place in the file than its number says")
    return sequence


def _fitting(names: list[str], shapes: Shapes) -> list[str]:
    for before, name in pairwise(names):
        if shapes[name][1] != shapes[before][0]:
            raise NoChainError(name, shapes[name], f"does not read what `{before}` of shape {shapes[before]} gives")
    return names
