"""The base of all callbacks here: the part of a model that they speak about, what they say of it, their state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning_lipschitz._lightning import Callback, LightningModule, Trainer
from lightning_lipschitz.callbacks._certified_export import CertifiedExport
from lightning_lipschitz.callbacks._submodule import Submodule
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.lightning_tools.arguments import require_flag
from lightning_lipschitz.lightning_tools.inputs import Arguments
from lightning_lipschitz.lightning_tools.log import MetricLog, OneWarningEach
from lightning_lipschitz.lightning_tools.saving import Gates
from lightning_lipschitz.lightning_tools.submodule import Choice


class PartCallback(Callback):
    """Callback that certifies a part of a model.

    Args:
        module, input, output: see :class:`.Choice`.
        prog_bar: whether to show the upper bound in the progress bar.

    Attributes:
        history: one dictionary of plain Python values for every entry logged.
        certificate: the last of this fit, or None.
    """

    base = ""  # of the keys that it logs
    only_looks_on = False  # whether files are written as they were without it

    def __init__(self, module: str, input: Input, output: Output, prog_bar: bool) -> None:
        super().__init__()
        owner = type(self).__name__
        Choice(module, input, output).check(owner)
        require_flag(owner, "prog_bar", prog_bar)
        self.module, self.input, self.output, self.prog_bar = module, input, output, prog_bar
        self.history: list[dict[str, Any]] = []

    def _begin(self) -> None:
        """A fit begins."""
        self.certificate: Certificate | None = None
        self._log = MetricLog(self.base, self.prog_bar)
        self._warned = OneWarningEach()
        self._submodule: Submodule | None = None
        self._held: Arguments | None = None  # what other inputs than the chosen one are held at, in a copy
        self._guard: Gates | CertifiedExport | None = None  # of saves, in the fit and after it

    def around_save(self, trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
        """What stands around every save of the Trainer, see :class:`.saving.Saver`."""
        return nullcontext() if self._guard is None else self._guard.around_save(pl_module)

    @property
    def state_key(self) -> str:
        return self._generate_state_key(**Choice.of(self).state)

    def state_dict(self) -> dict[str, Any]:
        held = self._known_held()
        state = {"history": [dict(entry) for entry in self.history]}
        return state if held is None else state | {"held": held}

    def _known_held(self) -> Arguments | None:
        return self._held if self._submodule is None else self._submodule.plain_held

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(entry) for entry in state_dict["history"]]
        if self._submodule is not None:
            self._submodule.hold(state_dict.get("held"))

    def __getstate__(self) -> dict[str, Any]:
        """Attributes that do not point into the run: no methods of the Trainer, trace, gates or process group."""
        run = {"_fit": None, "_guard": None, "_submodule": None, "_held": self._known_held()}
        return {name: value for name, value in (self.__dict__ | run).items() if name not in ("log", "log_dict")}
