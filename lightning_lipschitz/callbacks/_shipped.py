"""What a checkpoint of this moment holds: averaged weights, moved by whatever holds them to a bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from lightning_lipschitz._lightning import LightningModule, Trainer
from lightning_lipschitz.callbacks._swap import Swap
from lightning_lipschitz.callbacks._target import deployed
from lightning_lipschitz.callbacks._training import ConstrainedTraining


def constrained(trainer: Trainer) -> list[ConstrainedTraining]:
    """The callbacks that hold weights to a bound."""
    return [callback for callback in trainer.callbacks if isinstance(callback, ConstrainedTraining)]  # type: ignore[attr-defined]


def constrained_names(trainer: Trainer) -> frozenset[str]:
    """Parameters of the model that are written otherwise than they are trained."""
    return frozenset(name for callback in constrained(trainer) for name in callback.constrained_names())


def settle(trainer: Trainer) -> None:
    """What the constrained callbacks do when an epoch of training ends, now and not when it is their turn: what they
    write depends on it. Every rank has to call this."""
    for callback in constrained(trainer):
        callback.end_epoch(trainer)


@contextmanager
def shipped(trainer: Trainer, pl_module: LightningModule) -> Iterator[nn.Module]:
    """The model whose ``state_dict`` a checkpoint of this moment gets. Its live weights are back afterwards.

    Raises:
        LipschitzError: nothing can be written, as with weights that are not finite.
    """
    root = deployed(trainer, pl_module)
    with written_into(trainer, root):
        yield root


@contextmanager
def written_into(trainer: Trainer, root: nn.Module) -> Iterator[None]:
    """In ``root``, the weights that would be written of those that it has."""
    parameters = dict(root.named_parameters(remove_duplicate=False))
    with ExitStack() as stack:
        for callback in constrained(trainer):
            tensors = callback.written(root)
            swap = Swap()
            stack.callback(swap.back)
            swap.put(parameters, {name: tensor for name, tensor in tensors.items() if name in parameters})
        yield
