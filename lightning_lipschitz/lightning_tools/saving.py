"""Gates that every checkpoint passes: around the hooks of one LightningModule, and around the saves of one Trainer.

They stand around the module while a fit runs, so that whatever saves it passes them. Once the fit is over the module is
the user's again, and they stand there only while the Trainer of that fit saves: all files that a Trainer writes pass
``trainer.save_checkpoint``, in a fit and after it. A LightningModule by itself does not know which Trainer is saving
it: another one may have run on it since.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import PurePath
from typing import Any
from weakref import WeakMethod, ref

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_lipschitz.errors import LipschitzError

Checkpoint = dict[str, Any]
Action = Callable[[LightningModule, Checkpoint], None]

_SCRATCH = (".lr_find_", ".scale_batch_size_")  # what Lightning's finders save, go back to and delete


class _StandIn:
    """Something called in place of a method of one object, which may have had another stand-in before.

    It refers to the object weakly, and a copy or a pickle of the object gets the plain method of its class back, so the
    object can be copied and saved as if nothing stood in.
    """

    def __init__(self, owner: Any, method: str) -> None:
        self._owner, self._method = ref(owner), method
        self._inner: Callable[..., Any] | None = owner.__dict__.get(method)

    def _call_inner(self, *args: Any, **kwargs: Any) -> None:
        owner = self._owner()
        if self._inner is not None:
            self._inner(*args, **kwargs)
        elif owner is not None:
            getattr(type(owner), self._method)(owner, *args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Reached while the object is being copied: its copy is still bare, so this is the method of the class.
        return getattr, (self._owner(), self._method)


class SaveGate(_StandIn):
    """Wraps ``on_save_checkpoint`` of one LightningModule instance: the only hook that every save passes.

    ``save_weights_only=True`` skips the state and the hooks of callbacks. The gate calls what was there before, then
    ``action(module, checkpoint)``.

    Args:
        module: whose checkpoints are meant.
        action: a bound method; held weakly.
    """

    hook = "on_save_checkpoint"
    last = True  # what the module's own hook leaves is what is written

    def __init__(self, module: LightningModule, action: Action) -> None:
        super().__init__(module, self.hook)
        self._action: WeakMethod[Action] | None = WeakMethod(action)
        self.idle = False

    def install(self) -> None:
        module = self._owner()
        if module is not None:
            setattr(module, self.hook, self)

    def remove(self) -> None:
        """Put back what was there; under another wrapper, stay as a mere passage."""
        self._action = None
        module = self._owner()
        if module is None or module.__dict__.get(self.hook) is not self:
            return
        inner = self._inner
        while isinstance(inner, SaveGate) and inner._action is None:  # removed before, while this one stood in front
            inner = inner._inner
        if inner is None:
            del module.__dict__[self.hook]
        else:
            setattr(module, self.hook, inner)

    def __call__(self, checkpoint: Checkpoint) -> None:
        steps = (self._call_inner, self._act) if self.last else (self._act, self._call_inner)
        for step in steps:
            step(checkpoint)

    def _act(self, checkpoint: Checkpoint) -> None:
        action = None if self._action is None or self.idle else self._action()
        module = self._owner()
        if action is not None and module is not None:
            action(module, checkpoint)


class LoadGate(SaveGate):
    """Wraps ``on_load_checkpoint``; acts before the module's own hook and before any weight is loaded."""

    hook = "on_load_checkpoint"
    last = False


class Gates:
    """Gates of one callback.

    Args:
        on_save, on_load: bound methods, for :class:`SaveGate` and :class:`LoadGate`.
    """

    def __init__(self, on_save: Action, on_load: Action | None = None) -> None:
        self._on_save, self._on_load = on_save, on_load
        self._installed: list[SaveGate] = []

    def install(self, trainer: Trainer, module: LightningModule) -> None:
        """A fit begins."""
        self._installed = [SaveGate(module, self._on_save)]
        if self._on_load is not None:
            self._installed.append(LoadGate(module, self._on_load))
        for gate in self._installed:
            gate.install()
        Saver.of(trainer)

    def remove(self) -> None:
        """The fit is over, one way or another."""
        for gate in self._installed:
            gate.remove()
        self._installed = []

    @contextmanager
    def around_save(self, module: LightningModule) -> Iterator[None]:
        """Stand outside of what others have put there since, while the Trainer saves the module, in a fit or not."""
        outermost = SaveGate(module, self._on_save)
        outermost.install()
        for gate in self._installed:
            gate.idle = True
        try:
            yield
        finally:
            for gate in self._installed:
                gate.idle = False
            outermost.remove()


class Saver(_StandIn):
    """``trainer.save_checkpoint``, with what the Trainer's callbacks put around it.

    A callback that has something to say has a method ``around_save(trainer, module)``, a context manager, and an
    attribute ``only_looks_on``, which tells whether it leaves the file as others make it.

    Args:
        trainer: whose files are meant.

    Attributes:
        verbatim: whether the file being saved is a scratch file: training goes on from it, and it is deleted.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, "save_checkpoint")
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
        trainer = self._owner()
        if trainer is None:
            raise ReferenceError("the Trainer is gone")
        before, self.verbatim = self.verbatim, PurePath(str(filepath)).name.startswith(_SCRATCH)
        breaking_off = _is_breaking_off(trainer)
        try:
            with ExitStack() as stack:
                for guard in _guards(trainer):
                    stack.enter_context(guard)
                self._call_inner(filepath, *args, **kwargs)
        except (LipschitzError, MisconfigurationException) as refusal:
            if not breaking_off:
                raise
            # What went wrong is what the user has to read, and it is on its way.
            rank_zero_warn(f"`{filepath}` is not written: {refusal}")
            trainer.strategy.barrier("Trainer.save_checkpoint")
        finally:
            self.verbatim = before


def _guards(trainer: Trainer) -> list[AbstractContextManager[None]]:
    """What stands around a save; the callbacks that only look on come last, to see what is written."""
    model: LightningModule | None = trainer.lightning_module
    callbacks = [callback for callback in trainer.callbacks if hasattr(callback, "around_save")]  # type: ignore[attr-defined]
    callbacks.sort(key=lambda callback: bool(callback.only_looks_on))
    return [callback.around_save(trainer, model) for callback in callbacks if model is not None]


def _is_breaking_off(trainer: Trainer) -> bool:
    """Whether an exception is on its way out of the Trainer: its callbacks hear of it, and some of them save."""
    return trainer.interrupted and trainer.state.stage is not None and sys.exc_info()[1] is not None
