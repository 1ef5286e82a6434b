"""The weights that a checkpoint of this moment gets: averages, and certified ones in place of those in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_lipschitz._lightning import LightningModule, Trainer


def averaged_model(trainer: Trainer) -> AveragedModel | None:
    """The average that a ``WeightAveraging`` callback writes into checkpoints in place of the live weights."""
    models = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    averages = [model for model in models if isinstance(model, AveragedModel)]
    return averages[-1] if averages else None  # the last one writes last


def saved_model(trainer: Trainer, pl_module: LightningModule) -> nn.Module:
    """The model whose weights a full checkpoint of this moment holds: the average, or the live one."""
    average = averaged_model(trainer)
    return pl_module if average is None else average.module


def bounding_callbacks(trainer: Trainer) -> list[Any]:
    """The callbacks that hold weights to a bound, each a :class:`._bounded_training.BoundedTraining`."""
    return [callback for callback in trainer.callbacks if hasattr(callback, "bounded_names")]  # type: ignore[attr-defined]


def bounded_names(trainer: Trainer) -> frozenset[str]:
    """Parameters of the model that are written otherwise than they are trained."""
    return frozenset(name for callback in bounding_callbacks(trainer) for name in callback.bounded_names())


def end_epoch(trainer: Trainer) -> None:
    """What the bounding callbacks do when an epoch of training ends, now and not when it is their turn: what they write
    depends on it. Every rank has to call this."""
    for callback in bounding_callbacks(trainer):
        callback.end_epoch(trainer)


@contextmanager
def as_saved(trainer: Trainer, root: nn.Module) -> Iterator[nn.Module]:
    """``root`` with certified weights where a checkpoint would hold them; what it had is back afterwards.

    Raises:
        LipschitzError: nothing can be written, as with weights that are not finite.
    """
    parameters = dict(root.named_parameters(remove_duplicate=False))
    with ExitStack() as stack:
        for callback in bounding_callbacks(trainer):
            tensors = callback.saved_tensors(root)
            swap = Swap()
            stack.callback(swap.back)
            swap.put(parameters, {name: tensor for name, tensor in tensors.items() if name in parameters})
        yield root


class Swap:
    """Other values in live parameters, for a while."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def put(self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Write ``values`` into the parameters of the same names."""
        self.back()
        self._kept = [(parameters[name], parameters[name].detach().clone()) for name in values]
        for name, value in values.items():
            parameters[name].copy_(value)

    @torch.no_grad()
    def back(self) -> None:
        """Write the values of before."""
        for parameter, value in self._kept:
            parameter.copy_(value)
        self._kept = []
