"""What training under a bound has in common, whichever method pulls: when to read, certify, log and let go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer
from lightning_lipschitz.callbacks._certified_export import CertifiedExport
from lightning_lipschitz.callbacks._certified_weights import Certifier
from lightning_lipschitz.callbacks._held_weights import HeldWeights
from lightning_lipschitz.callbacks._metric_keys import choose_prefix
from lightning_lipschitz.callbacks._part_callback import PartCallback
from lightning_lipschitz.callbacks._saved_weights import bounding_callbacks
from lightning_lipschitz.callbacks._shared_memory import refuse_overlap
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.lightning_tools.log import MetricLog, validates_training
from lightning_lipschitz.lightning_tools.ranks import Ranks, refuse_sharded

T = TypeVar("T")
Held = TypeVar("Held", bound=HeldWeights)

_RENEWED = "the model has changed since it was read (a layer, an activation or a number); it is held to the bound anew."


@dataclass(eq=False)
class Fit(Generic[Held]):
    """What belongs to one fit and is never copied or saved."""

    weights: Held
    ranks: Ranks
    export: CertifiedExport
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


class BoundedTraining(PartCallback, Generic[Held]):
    """Base of the callbacks that train under a bound. Subclasses say how training hears of it, and which weights are
    written."""

    max_lipschitz: float | None
    _keys: tuple[str, ...] = ()

    def __init__(self, module: str, input: Input, output: Output, prog_bar: bool) -> None:
        super().__init__(module, input, output, prog_bar)
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        self.history = []
        self._fit: Fit[Held] | None = None

    # Life of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self._guard is not None:
            self._guard.remove()  # of a fit that broke off before it began
        self._begin()
        owner = type(self).__name__
        refuse_sharded(trainer, owner)
        _refuse_pruning(trainer, owner)
        prefix = choose_prefix(self, trainer, self.base)
        self._log = MetricLog(prefix, self.prog_bar)
        ranks = Ranks(trainer)
        weights, certifier = self._written(ranks.many)
        export = CertifiedExport(trainer, weights, certifier, ranks, prefix)
        export.install(trainer, pl_module)
        self._fit, self._guard, self._submodule = Fit(weights, ranks, export), export, weights.submodule

    def _written(self, many: bool) -> tuple[Held, Certifier]:
        """The weights that are held to the bound, and what finds those that are written of them.

        Args:
            many: whether other processes do the same.
        """
        raise NotImplementedError

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is None:
            return
        refuse_overlap(self, [c for c in bounding_callbacks(trainer) if c is not self], pl_module)
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

    def _ready(self, fit: Fit[Held], pl_module: LightningModule) -> bool:
        """Whether the weights can be read, in the middle of a batch."""
        fit.weights.fit_in(pl_module)
        if fit.weights.renewed:
            fit.weights.renewed = False
            self._forget()
            self._warn("renewed", _RENEWED)
        return fit.weights.traced or fit.weights.hear(pl_module, fit.batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._fit.weights.traced and validates_training(trainer):
            self._certify(self._fit, trainer, pl_module)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        if self._fit is not None:
            self._fit.export.before_batch()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._fit is not None:
            self._fit.export.after_batch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.export.after_validation()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._fit.weights.traced and self._fit.logged != trainer.global_step:
            self._certify(self._fit, trainer, pl_module)
            self._fit.export.after_validation()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fit = self._fit
        if fit is None or not fit.weights.traced:
            return
        self.certificate = fit.timed(lambda: fit.export.finish(trainer, pl_module))
        if trainer.global_step:
            self._log.log_at_end(trainer, self._entry(fit, trainer, self.certificate))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Whoever saves after this does it by the Trainer, and passes the gate there.
        if self._fit is not None:
            self._fit.export.after_validation()
            self._fit.export.remove()
            self._fit.weights.submodule.inputs.disarm()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._fit is not None:
            self._fit.export.remove()
            self._fit.weights.rest()
            self._fit.ranks.close()
            self._fit = None

    # What other callbacks may ask

    def end_epoch(self, trainer: Trainer) -> None:
        """What is done once when an epoch of training ends, before its weights are written; again does nothing."""

    def saved_tensors(self, root: nn.Module) -> dict[str, Tensor]:
        """What a file of this moment holds in place of tensors of ``root``, by their names in the model."""
        fit = self._fit
        return fit.export.saved_tensors(root) if fit is not None and fit.weights.traced else {}

    def bounded_names(self) -> frozenset[str]:
        """The parameters that are held to the bound, by their names in the model; none before they are known."""
        fit = self._fit
        return frozenset(fit.weights.whole(fit.weights.parameters)) if fit is not None else frozenset()

    # Logging

    def _certify(self, fit: Fit[Held], trainer: Trainer, pl_module: LightningModule) -> None:
        """Find and log what would be written of the weights of this moment; validation will see it."""
        certificate = fit.timed(lambda: fit.export.before_validation(trainer, pl_module))
        fit.logged = trainer.global_step
        self._log.log(trainer, pl_module, self._entry(fit, trainer, certificate))

    def _entry(self, fit: Fit[Held], trainer: Trainer, certificate: Certificate) -> dict[str, float]:
        """What is logged of it; the history gets all of it."""
        self.certificate = certificate
        values = {"upper_bound": certificate.upper_bound, **self._values(), "seconds": fit.seconds}
        fit.seconds = 0.0
        self.history.append({"epoch": trainer.current_epoch, "global_step": trainer.global_step, **values})
        return {name: value for name, value in values.items() if name in self._keys}

    def _values(self) -> dict[str, float]:
        """Numbers of the method, for the history; those of ``_keys`` are logged."""
        raise NotImplementedError

    def _warn(self, subject: str, sentence: str) -> None:
        """Once a fit."""
        self._warned(subject, f"`{type(self).__name__}`: {sentence}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Outside of ``fit``, what is written is what counts: ``WeightAveraging`` would go back to training weights."""
        if trainer.state.fn != "fit" and "current_model_state" in checkpoint:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)


def _refuse_pruning(trainer: Trainer, owner: str) -> None:
    """Weights that are cut while they are trained: the tensors that are held to the bound are exchanged for others.

    Raises:
        MisconfigurationException: there is a ``ModelPruning`` among the callbacks.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(cls.__name__ == "ModelPruning" for cls in type(callback).__mro__):  # by name: there are two packages
            raise MisconfigurationException(
                f"`{owner}` does not support `{type(callback).__name__}`, which exchanges the parameters while they are"
                " trained. Prune before the fit, with `torch.nn.utils.prune` and without `prune.remove`: masks that"
                " are there are kept, in training and in what is written."
            )
