"""What cannot stand beside a callback that holds weights to a bound, said before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException
from lightning_lipschitz.callbacks._target import find_target
from lightning_lipschitz.callbacks._ties import shared


def refuse_overlap(mine: Any, others: Iterable[Any], model: LightningModule) -> None:
    """Two bounds on the same weights: each callback would write what the other has not certified.

    Args:
        mine, others: callbacks that hold weights to a bound.
        model: in which they do.

    Raises:
        MisconfigurationException: some parameter belongs to both.
    """
    own = dict(find_target(model, mine.module, type(mine).__name__).named_parameters(remove_duplicate=False))
    for other in others:
        name = shared(own, find_target(model, other.module, type(other).__name__).parameters())
        if name is not None:
            one, two = (f"{type(each).__name__}(module={each.module!r})" for each in (mine, other))
            raise MisconfigurationException(
                f"`{one}` and `{two}` hold the same weights, `{name}` of the former among them: what one of them"
                " writes is not what the other has certified. Keep one of them, or name submodules that share no"
                " weights."
            )


def refuse_pruning(owner: str, callbacks: Iterable[Any]) -> None:
    """Weights that are cut while they are trained: the tensors that are held to the bound are exchanged for others.

    Raises:
        MisconfigurationException: there is a ``ModelPruning`` among the callbacks.
    """
    for callback in callbacks:
        if any(cls.__name__ == "ModelPruning" for cls in type(callback).__mro__):  # by name: there are two packages
            raise MisconfigurationException(
                f"`{owner}` does not support `{type(callback).__name__}`, which exchanges the parameters while they are"
                " trained. Prune before the fit, with `torch.nn.utils.prune` and without `prune.remove`: masks that"
                " are there are kept, in training and in what is written."
            )
