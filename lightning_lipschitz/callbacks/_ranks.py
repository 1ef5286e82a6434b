"""Work that one process does for all: rank 0 solves, every rank learns the result or the error.

Two things go wrong otherwise. Ranks that each compute "the" bound disagree, because the running statistics of batch
normalisation differ between them; and an error on one rank alone leaves the others waiting in a collective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch.distributed as dist

from lightning_lipschitz._lightning import Trainer
from lightning_lipschitz.errors import LipschitzError

T = TypeVar("T")

# A solve may take longer than the 10 to 30 minutes that the default group waits for a peer.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Failure:
    """An error of rank 0: the exception where it was raised, its sentence everywhere."""

    sentence: str
    error: Exception | None = None

    def reraise(self) -> NoReturn:
        """Raise what happened: the exception itself on rank 0, its sentence elsewhere.

        Raises:
            Exception: always.
        """
        raise self.error if self.error is not None else LipschitzError(f"rank 0 failed: {self.sentence}")


class Ranks:
    """The processes of one fit. To be made by all of them at the same point.

    Args:
        trainer: whose processes they are.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> Ranks(trainer).once(lambda: 1 + 1)
        2
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._group: dist.ProcessGroup | None = None
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def many(self) -> bool:
        """Whether there is more than one process."""
        return self._trainer.world_size > 1

    def once(self, work: Callable[[], T]) -> T | Failure:
        """What ``work()`` returns on rank 0, or how it failed. All ranks have to call; only rank 0 works."""
        outcome = _attempt(work) if self._trainer.is_global_zero else None
        told = self._tell(Failure(outcome.sentence) if isinstance(outcome, Failure) else outcome)
        return told if outcome is None else outcome  # type: ignore[return-value]

    def _tell(self, outcome: T | Failure | None) -> T | Failure | None:
        if self._trainer.world_size == 1:
            return outcome
        if self._group is None:  # not torch.distributed: whatever the strategy has
            return self._trainer.strategy.broadcast(outcome)
        box = [outcome]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def close(self) -> None:
        """Give the process group back. Only after a fit that went well: a peer may be gone otherwise."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None


def _attempt(work: Callable[[], T]) -> T | Failure:
    try:
        return work()
    except Exception as error:  # whatever it is, the other ranks have to hear of it
        return Failure(f"{type(error).__name__}: {error}", error)
