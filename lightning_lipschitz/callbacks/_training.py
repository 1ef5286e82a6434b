"""What training under a bound has in common, whichever method pulls: when to read, certify, log and let go."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from lightning_lipschitz._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_lipschitz.callbacks._choice import Choice
from lightning_lipschitz.callbacks._constrained import ConstrainedWeights
from lightning_lipschitz.callbacks._gate import Gate
from lightning_lipschitz.callbacks._inputs import Arguments
from lightning_lipschitz.callbacks._labels import choose_prefix
from lightning_lipschitz.callbacks._overlap import refuse_overlap, refuse_pruning
from lightning_lipschitz.callbacks._ranks import Ranks
from lightning_lipschitz.callbacks._report import Report, Values
from lightning_lipschitz.callbacks._target import refuse_sharded
from lightning_lipschitz.callbacks._written import Author
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.extraction import Input, Output

T = TypeVar("T")

_RENEWED = "the model has changed since it was read (a layer, an activation or a number); it is held to the bound anew."


@dataclass(eq=False)
class Fit:
    """What belongs to one fit and is never copied or saved."""

    weights: ConstrainedWeights
    author: Author
    ranks: Ranks
    gate: Gate
    seconds: float = 0.0
    batch: Any = None
    logged: int = -1

    def timed(self, work: Callable[[], T]) -> T:
        """``work()``; its time is added to ``seconds``."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds += time.perf_counter() - start


class ConstrainedTraining(Callback):
    """Base of the callbacks that train under a bound. Subclasses say what is added to gradients, and when."""

    base = ""
    max_lipschitz: float | None
    module: str
    input: Input
    output: Output
    prog_bar: bool

    def _begin(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.certificate: Certificate | None = None
        self._fit: Fit | None = None
        self._held: Arguments | None = None
        self._gate: Gate | None = None  # outlives the fit
        self._warned: set[str] = set()
        self._report = Report(self.base, self.prog_bar, None)

    # Life of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._gate is not None:
            self._gate.remove()  # of a fit that broke off before it began
        self._begin()
        owner = type(self).__name__
        refuse_sharded(trainer, owner)
        refuse_pruning(owner, trainer.callbacks)  # type: ignore[attr-defined]
        siblings = [callback for callback in trainer.callbacks if isinstance(callback, type(self))]  # type: ignore[attr-defined]
        prefix = choose_prefix(self, siblings, self.base)
        self._report = Report(prefix, self.prog_bar, None)
        ranks = Ranks(trainer)
        weights = ConstrainedWeights(Choice.of(self), owner, self.max_lipschitz, ranks.many)
        author = Author(weights, self.max_lipschitz)
        self._gate = Gate(trainer, weights, author, ranks, prefix)
        self._gate.install(trainer, pl_module)
        self._fit = Fit(weights, author, ranks, self._gate)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is None:
            return
        for optimizer in trainer.optimizers:
            _refuse_closures(optimizer, type(self).__name__)
        others = [c for c in trainer.callbacks if isinstance(c, ConstrainedTraining) and c is not self]  # type: ignore[attr-defined]
        refuse_overlap(self, others, pl_module)
        self._fit.weights.start(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if pl_module._trainer is not trainer:
            # Another Trainer has run on the module in a hook. Lightning would call *its* hooks before optimizer steps.
            pl_module.trainer = trainer
        if self._fit is None:
            return
        if self._fit.weights.has_thawed(pl_module):
            self._forget()
        if not self._fit.weights.traced:
            self._fit.batch = batch

    def _forget(self) -> None:
        """Other weights are trained, or another model is, than before: what was found for those is of no use."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._fit is not None and not self._fit.weights.traced:
            self._fit.weights.hear(pl_module, batch)
            self._fit.batch = None

    def _ready(self, fit: Fit, pl_module: LightningModule) -> bool:
        """Whether the weights can be read, in the middle of a batch."""
        fit.weights.fit_in(pl_module)
        if fit.weights.renewed:
            fit.weights.renewed = False
            self._forget()
            self._warn("renewed", _RENEWED)
        return fit.weights.traced or fit.weights.hear(pl_module, fit.batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._fit.weights.traced and _validates_training(trainer):
            self._certify(self._fit, trainer, pl_module)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        if self._fit is not None:
            self._fit.gate.before_batch()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._fit is not None:
            self._fit.gate.after_batch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.gate.after_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._fit.weights.traced and self._fit.logged != trainer.global_step:
            self._certify(self._fit, trainer, pl_module)
            self._fit.gate.after_validation()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit = self._fit
        if fit is None or not fit.weights.traced:
            return
        self.certificate = fit.timed(lambda: fit.gate.finish(trainer, pl_module))
        if trainer.global_step:
            self._report.write(trainer, self._record(fit, trainer, self.certificate))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Whoever saves after this does it by the Trainer, and passes the gate there.
        if self._fit is not None:
            self._fit.gate.after_validation()
            self._fit.gate.remove()
            self._fit.weights.stop_listening()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._fit is not None:
            self._fit.gate.remove()
            self._fit.weights.rest()
            self._fit.ranks.close()
            self._held, self._fit = self._fit.weights.held, None

    # What other callbacks may ask

    def end_epoch(self, trainer: Trainer) -> None:
        """What is done once when an epoch of training ends, before its weights are written; again does nothing."""

    def written(self, root: nn.Module) -> dict[str, Tensor]:
        """What a file of this moment holds in place of tensors of ``root``, by their names in the model."""
        fit = self._fit
        return fit.gate.written(root) if fit is not None and fit.weights.traced else {}

    def constrained_names(self) -> frozenset[str]:
        """The parameters that are held to the bound, by their names in the model; none before they are known."""
        fit = self._fit
        return frozenset(fit.weights.whole(fit.weights.parameters)) if fit is not None else frozenset()

    # Logging

    def _certify(self, fit: Fit, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find and log what would be written of the weights of this moment; validation will see it."""
        certificate = fit.timed(lambda: fit.gate.before_validation(trainer, pl_module))
        fit.logged = trainer.global_step
        self._report.log(trainer, pl_module, self._record(fit, trainer, certificate))

    def _record(self, fit: Fit, trainer: Trainer, certificate: Certificate) -> Values:
        self.certificate = certificate
        values = {"upper_bound": certificate.upper_bound, **self._values(), "seconds": fit.seconds}
        fit.seconds = 0.0
        self.history.append({"epoch": trainer.current_epoch, "global_step": trainer.global_step, **values})
        return Values({name: value for name, value in values.items() if name in self._keys})

    _keys: tuple[str, ...] = ()

    def _values(self) -> dict[str, float]:
        raise NotImplementedError

    def _warn(self, subject: str, sentence: str) -> None:
        """Once a fit."""
        if subject not in self._warned:
            self._warned.add(subject)
            rank_zero_warn(f"`{type(self).__name__}`: {sentence}")

    # State

    @property
    def state_key(self) -> str:
        return self._generate_state_key(**Choice.of(self).state)

    def state_dict(self) -> dict[str, Any]:
        held = self._held if self._fit is None else self._fit.weights.held
        history = {"history": [dict(record) for record in self.history]}
        return history if held is None else history | {"held": held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(record) for record in state_dict["history"]]
        if self._fit is not None:
            self._fit.weights.held = state_dict.get("held")

    only_looks_on = False

    def around_save(self, trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
        """What stands around every save of the Trainer, see :class:`~lightning_lipschitz.callbacks._saver.Saver`."""
        return nullcontext() if self._gate is None else self._gate.around_save(pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Outside of ``fit``, what is written is what counts: ``WeightAveraging`` would go back to training weights."""
        if trainer.state.fn != "fit" and "current_model_state" in checkpoint:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)

    def __getstate__(self) -> dict[str, Any]:
        """Without what points into the run."""
        state = self.__dict__ | {"_fit": None, "_gate": None}
        return {name: value for name, value in state.items() if name not in ("log", "log_dict")}


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Factor of gradients at ``on_before_optimizer_step``: fused optimizers undo the loss scaling themselves, later."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return 1.0
    return float(scaler.get_scale())


def learning_rate(optimizer: Optimizer) -> float:
    """The largest of its groups."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _validates_training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _refuse_closures(optimizer: Optimizer, owner: str) -> None:
    if isinstance(optimizer, LBFGS):
        raise MisconfigurationException(
            f"`{owner}` does not support `{type(optimizer).__name__}`: it evaluates the loss several times a step, and"
            " the loss that it sees lacks what is added to the gradient. Use an optimizer that takes one gradient a"
            " step, such as `torch.optim.Adam`."
        )
