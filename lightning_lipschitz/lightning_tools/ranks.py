"""Work that one process does for all: rank 0 solves, every rank learns the result or the error.

Two things go wrong otherwise. Ranks that each compute "the" bound disagree, because the running statistics of batch
normalisation differ between them; and an error on one rank alone leaves the others waiting in a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar
from weakref import ref

import torch.distributed as dist

from lightning_lipschitz._lightning import MisconfigurationException, Trainer
from lightning_lipschitz.errors import LipschitzError

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

# A solve may take longer than the 10 to 30 minutes that the default group waits for a peer.
_PATIENCE = timedelta(days=7)
_SHARDING = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}  # by name: there are two packages


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


def refuse_sharded(trainer: Trainer, owner: str) -> None:
    """Weights that no process holds whole cannot be read here.

    Raises:
        MisconfigurationException: the strategy shards parameters.
    """
    strategy = type(trainer.strategy)
    if _SHARDING & {cls.__name__ for cls in strategy.__mro__}:
        raise MisconfigurationException(
            f"`{owner}` does not support `{strategy.__name__}` yet: no process holds the whole weights."
            " Use `strategy='ddp'`, or certify a consolidated checkpoint with `lightning_lipschitz.certify`."
        )


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
        self._ref = ref(trainer)
        self._group: dist.ProcessGroup | None = None
        if trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def _trainer(self) -> Trainer:
        trainer = self._ref()
        if trainer is None:
            raise ReferenceError("the Trainer is gone")
        return trainer

    @property
    def many(self) -> bool:
        """Whether there is more than one process."""
        return self._trainer.world_size > 1

    def once(self, work: Callable[[], T]) -> T | Failure:
        """What ``work()`` returns on rank 0, or how it failed. All ranks have to call; only rank 0 works.

        The others wait, and take their part of whatever ``work`` hands to :meth:`share`.
        """
        if self._group is None:
            return self._once_by_strategy(work)
        if not self._trainer.is_global_zero:
            served: T | Failure = self._serve()
            return served
        outcome = _attempt(work)
        self._tell(Failure(outcome.sentence) if isinstance(outcome, Failure) else outcome)
        return outcome

    def share(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``[function(item) for item in items]``, dealt out to all ranks. For rank 0, inside of :meth:`once`.

        Raises:
            Exception: what ``function`` raised on any rank.
        """
        if self._group is None:
            return [function(item) for item in items]
        task = _Task(function, items)
        self._tell(task)
        parts: list[Any] = [None] * dist.get_world_size(self._group)
        dist.gather_object(_attempt(partial(task.part, self._group)), parts, dst=0, group=self._group)
        for part in parts:
            if isinstance(part, Failure):
                part.reraise()
        results = [iter(part) for part in parts]
        return [next(results[k % len(parts)]) for k in range(len(items))]

    def _serve(self) -> Any:
        """Work for rank 0 until it tells the outcome."""
        while isinstance(told := self._tell(None), _Task):
            part = _attempt(partial(told.part, self._group))
            dist.gather_object(Failure(part.sentence) if isinstance(part, Failure) else part, dst=0, group=self._group)
        return told

    def _tell(self, message: Any) -> Any:
        box = [message]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _once_by_strategy(self, work: Callable[[], T]) -> T | Failure:
        """One process, or several without torch.distributed: whatever the strategy has."""
        outcome = _attempt(work) if self._trainer.is_global_zero else None
        if not self.many:
            return outcome  # type: ignore[return-value]
        told = Failure(outcome.sentence) if isinstance(outcome, Failure) else outcome
        heard = self._trainer.strategy.broadcast(told)
        return heard if outcome is None else outcome  # type: ignore[return-value]

    def close(self) -> None:
        """Give the process group back. Only after a fit that went well: a peer may be gone otherwise."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None


@dataclass(frozen=True)
class _Task:
    """A function and items; rank r of n takes items r, r + n, r + 2n ..."""

    function: Callable[[Any], Any]
    items: Sequence[Any]

    def part(self, group: dist.ProcessGroup | None) -> list[Any]:
        mine = self.items[dist.get_rank(group) :: dist.get_world_size(group)]
        return [self.function(item) for item in mine]


def _attempt(work: Callable[[], T]) -> T | Failure:
    try:
        return work()
    except Exception as error:  # whatever it is, the other ranks have to hear of it
        return Failure(f"{type(error).__name__}: {error}", error)
