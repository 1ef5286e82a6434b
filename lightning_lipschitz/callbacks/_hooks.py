"""Gates around the hooks of one LightningModule that every checkpoint passes on its way out and in.

They stand there while a fit runs, so that whatever saves the module passes them. Afterwards the module is left alone,
and they stand there while the Trainer of that fit saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakMethod, ref

from lightning_lipschitz._lightning import LightningModule, Trainer
from lightning_lipschitz.callbacks._saver import Saver

Checkpoint = dict[str, Any]
Action = Callable[[LightningModule, Checkpoint], None]


class SaveGate:
    """Wraps ``on_save_checkpoint`` of one LightningModule instance: the only hook that every save passes.

    ``save_weights_only=True`` skips the state and the hooks of callbacks. The gate calls what was there before, then
    ``on_save(module, checkpoint)``. It holds weak references only, and a copy or a pickle of the module gets the plain
    method of its class back, so the module can be copied and saved as if the gate were not there.

    Args:
        module: whose checkpoints are meant.
        action: a bound method; held weakly.
    """

    hook = "on_save_checkpoint"
    last = True  # what the module's own hook leaves is what is written

    def __init__(self, module: LightningModule, action: Action) -> None:
        self._module = ref(module)
        self._action: WeakMethod[Action] | None = WeakMethod(action)
        self._inner = module.__dict__.get(self.hook)
        self.idle = False

    def install(self) -> None:
        module = self._module()
        if module is not None:
            setattr(module, self.hook, self)

    def remove(self) -> None:
        """Put back what was there; under another wrapper, stay as a mere passage."""
        self._action = None
        module = self._module()
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

    def _call_inner(self, checkpoint: Checkpoint) -> None:
        module = self._module()
        if self._inner is not None:
            self._inner(checkpoint)
        elif module is not None:
            getattr(type(module), self.hook)(module, checkpoint)

    def _act(self, checkpoint: Checkpoint) -> None:
        action = None if self._action is None or self.idle else self._action()
        module = self._module()
        if action is not None and module is not None:
            action(module, checkpoint)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Reached while the module is being copied: its copy is still bare, so this is the method of the class.
        return getattr, (self._module(), self.hook)


class LoadGate(SaveGate):
    """The same around ``on_load_checkpoint``, before the module's own hook and before any weight is loaded."""

    hook = "on_load_checkpoint"
    last = False


class Gates:
    """Those of one callback.

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
        """While the Trainer saves the module, in a fit or not: outside of what others have put there since."""
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
