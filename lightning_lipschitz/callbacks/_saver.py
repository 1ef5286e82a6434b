"""Who saves: ``trainer.save_checkpoint``, which every file that a Trainer writes passes, in a fit and after it.

A LightningModule does not know which Trainer is saving it: another one may have run on it since. And once a fit is over
the module is the user's again, while files of the Trainer that held it to a bound still have to meet that bound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import PurePath
from typing import Any
from weakref import ref

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_lipschitz.errors import LipschitzError

_SCRATCH = (".lr_find_", ".scale_batch_size_")  # what Lightning's finders save, go back to and delete


class Saver:
    """``trainer.save_checkpoint``, with what the Trainer's callbacks put around it.

    A callback that has something to say has a method ``around_save(trainer, module)``, a context manager. Copies and
    pickles of the Trainer get the plain method of its class back.

    Args:
        trainer: whose files are meant.

    Attributes:
        verbatim: whether the file being saved is a scratch file: training goes on from it, and it is deleted.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = ref(trainer)
        self._inner: Callable[..., None] | None = trainer.__dict__.get("save_checkpoint")
        self.verbatim = False

    @classmethod
    def of(cls, trainer: Trainer) -> Saver:
        """The one of this Trainer, installed if it has none."""
        present = trainer.__dict__.get("save_checkpoint")
        if isinstance(present, cls):
            return present
        saver = cls(trainer)
        trainer.__dict__["save_checkpoint"] = saver
        return saver

    def __call__(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        trainer = self._trainer()
        if trainer is None:
            raise ReferenceError("the Trainer is gone")
        before, self.verbatim = self.verbatim, PurePath(str(filepath)).name.startswith(_SCRATCH)
        breaking_off = _is_breaking_off(trainer)
        try:
            with ExitStack() as stack:
                for guard in _guards(trainer):
                    stack.enter_context(guard)
                self._save(trainer, filepath, *args, **kwargs)
        except (LipschitzError, MisconfigurationException) as refusal:
            if not breaking_off:
                raise
            # What went wrong is what the user has to read, and it is on its way.
            rank_zero_warn(f"`{filepath}` is not written: {refusal}")
            trainer.strategy.barrier("Trainer.save_checkpoint")
        finally:
            self.verbatim = before

    def _save(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._inner is not None:
            self._inner(*args, **kwargs)
        else:
            type(trainer).save_checkpoint(trainer, *args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Reached while the Trainer is being copied: its copy is still bare, so this is the method of the class.
        return getattr, (self._trainer(), "save_checkpoint")


def _guards(trainer: Trainer) -> list[AbstractContextManager[None]]:
    """Of every callback that has one; those that only look on come last, to see what is written."""
    model: LightningModule | None = trainer.lightning_module
    callbacks = [callback for callback in trainer.callbacks if hasattr(callback, "around_save")]  # type: ignore[attr-defined]
    callbacks.sort(key=lambda callback: bool(callback.only_looks_on))
    return [callback.around_save(trainer, model) for callback in callbacks if model is not None]


def _is_breaking_off(trainer: Trainer) -> bool:
    """Whether an exception is on its way out of the Trainer: its callbacks hear of it, and some of them save."""
    return trainer.interrupted and trainer.state.stage is not None and sys.exc_info()[1] is not None
