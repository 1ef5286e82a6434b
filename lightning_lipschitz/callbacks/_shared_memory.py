"""Weights held to a bound that share memory with others: whoever writes the ones writes the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException
from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction.undisturbed import tensors_of
from lightning_lipschitz.lightning_tools.submodule import find_target


def aliases(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Other names, in the whole model, of the tensors called ``names``, each with the one that it follows.

    Args:
        model: the whole of it, with all parameters and buffers.
        names: names of the parameters that are written.

    Raises:
        ProjectionError: two tensors overlap in memory without being the same, as a matrix and its transpose do: a file
            holds a value of each, and whichever is loaded last overwrites the other.
    """
    tensors = tensors_of(model)
    mine = {name: tensors[name] for name in names}
    spans = {name: _span(tensor) for name, tensor in mine.items()}
    found: dict[str, str] = {}
    for other, tensor in tensors.items():
        span = _span(tensor)
        for name, own in mine.items():
            if name == other or not (own is tensor or _overlap(spans[name], span)):
                continue
            if not _is_same(own, tensor):
                raise _half_shared(model, name, other)
            if other not in mine:
                found[other] = name
    return found


def refuse_overlap(mine: Any, others: Iterable[Any], model: LightningModule) -> None:
    """Two bounds on the same weights: each callback would write what the other has not certified.

    Args:
        mine, others: callbacks that hold weights to a bound.
        model: the model that both train.

    Raises:
        MisconfigurationException: some parameter belongs to both.
    """
    own = dict(find_target(model, mine.module, type(mine).__name__).named_parameters(remove_duplicate=False))
    for other in others:
        name = _shared(own, find_target(model, other.module, type(other).__name__).parameters())
        if name is not None:
            one, two = (f"{type(each).__name__}(module={each.module!r})" for each in (mine, other))
            raise MisconfigurationException(
                f"`{one}` and `{two}` hold the same weights, `{name}` of the former among them: what one of them"
                " writes is not what the other has certified. Keep one of them, or name submodules that share no"
                " weights."
            )


def _shared(one: Mapping[str, Tensor], other: Iterable[Tensor]) -> str | None:
    """The first name of ``one`` whose tensor is some tensor of ``other``, or lies in its memory."""
    known = [(each, _span(each)) for each in other]
    for name, tensor in one.items():
        span = _span(tensor)
        if any(each is tensor or _overlap(span, its) for each, its in known):
            return name
    return None


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte, and the one after the last; nothing for what has no memory, or none that has an address."""
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # fake ones, and those of devices whose memory is not addressed
        start = 0
    if start == 0 or tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    )


def _half_shared(model: nn.Module, name: str, other: str) -> ProjectionError:
    path = name.rpartition(".")[0]
    return ProjectionError(
        path,
        type(model.get_submodule(path)).__name__,
        f"`{name}` and `{other}` share memory in different forms, and a file has room for either.",
        "Give one of them memory of its own (`clone`), or assign one nn.Parameter to both.",
    )
