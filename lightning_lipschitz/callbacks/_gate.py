"""The gate: whatever leaves a fit under a bound is what was certified, and what training needs is kept beside it.

Out go checkpoints of every kind, the metrics of validation, and the module when the fit ends. Training itself goes on
with weights of its own, and a resumed run gets exactly those back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from lightning_lipschitz._lightning import LightningModule, Trainer, isolate_rng
from lightning_lipschitz.callbacks import _atomic as atomic
from lightning_lipschitz.callbacks._constrained import ConstrainedWeights, Swap
from lightning_lipschitz.callbacks._ranks import Failure, Ranks
from lightning_lipschitz.callbacks._stamp import Checkpoint, LoadGate, SaveGate, to_plain
from lightning_lipschitz.callbacks._target import deployed
from lightning_lipschitz.callbacks._written import Author, Written
from lightning_lipschitz.certificate import Certificate

TRAINING = "training_weights"

T = TypeVar("T")


class Gate:
    """Made and installed in ``setup("fit")`` by every rank.

    Args:
        trainer, model: of the fit.
        weights: that are held to the bound.
        author: what is written of them.
        ranks: of the fit.
        key: of the certificate, and of the training weights, in a checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        weights: ConstrainedWeights,
        author: Author,
        ranks: Ranks,
        key: str,
    ) -> None:
        self.key = key
        self.certificate: Certificate | None = None
        self._trainer = ref(trainer)
        self._weights, self._author, self._ranks = weights, author, ranks
        self._hooks = [SaveGate(model, self._on_save), LoadGate(model, self._on_load)]
        self._swap = Swap()
        self._validated: Written | None = None

    def install(self, trainer: Trainer) -> None:
        for hook in self._hooks:
            hook.install()
        atomic.install(trainer)

    def remove(self) -> None:
        """After a fit that went well; after any other, files may still be written."""
        for hook in self._hooks:
            hook.remove()

    # Checkpoints

    def _on_save(self, model: LightningModule, checkpoint: Checkpoint) -> None:
        """No collective here: a rank may save alone, in an exception."""
        trainer = self._trainer()
        if trainer is None or model._trainer is not trainer or not trainer.is_global_zero:
            return
        if not checkpoint.get("state_dict"):
            return  # of a strategy that gathers the weights elsewhere
        self._weights.trace(model)
        self._weights.linear  # noqa: B018 - raises where nothing can be certified yet
        tensors = self._weights.part(checkpoint["state_dict"])
        written = _undisturbed(lambda: self._author(tensors))
        plain = to_plain(written.certificate.at(trainer.current_epoch, trainer.global_step))
        if "callbacks" in checkpoint:  # a file that training can go on from
            plain[TRAINING] = self._weights.whole({name: tensors[name].clone() for name in written.tensors})
        moved = {name: value.to(tensors[name].device) for name, value in written.tensors.items()}
        checkpoint["state_dict"].update(self._weights.whole(moved))
        checkpoint[self.key] = plain

    def _on_load(self, model: LightningModule, checkpoint: Checkpoint) -> None:
        checkpoint["state_dict"].update(checkpoint.get(self.key, {}).get(TRAINING, {}))

    # Validation

    def before_validation(self, trainer: Trainer, model: LightningModule) -> Certificate:
        """Find what would be written now; every rank gets it, or its error."""
        root = deployed(trainer, model)
        self._validated = self._agreed(root)
        self.certificate = self._validated.certificate.at(trainer.current_epoch, trainer.global_step)
        return self.certificate

    def before_batch(self) -> None:
        """The weights of the file, whatever model is being validated: weight averaging has put its own in place."""
        if self._validated is not None:
            self._swap.put(self._weights.parameters, self._validated.tensors)

    def after_batch(self) -> None:
        self._swap.back()

    def after_validation(self) -> None:
        self._swap.back()
        self._validated = None

    def written(self, root: nn.Module) -> dict[str, Tensor]:
        """What a file of this moment holds in place of tensors of ``root``, by their names in the model.

        No collective: while validation runs, every rank has what all agreed on; else the caller's own answer is given.
        """
        found = self._validated or _undisturbed(lambda: self._author(self._weights.of(root)))
        return self._weights.whole(found.tensors)

    # The module itself

    def finish(self, trainer: Trainer, model: LightningModule) -> Certificate:
        """Leave in the module what a file would hold."""
        written = self._agreed(model)
        Swap().put(self._weights.parameters, written.tensors)
        self._author.keep(self._weights.of(model), Written({}, written.certificate))
        self.certificate = written.certificate.at(trainer.current_epoch, trainer.global_step)
        return self.certificate

    def _agreed(self, root: nn.Module) -> Written:
        """Rank 0 works, all ranks know."""
        tensors = self._weights.of(root)
        outcome = _undisturbed(lambda: self._ranks.once(lambda: self._sendable(self._author(tensors))))
        if isinstance(outcome, Failure):
            outcome.reraise()
        self._author.keep(tensors, outcome)
        return outcome

    def _sendable(self, written: Written) -> Written:
        return written.cpu() if self._ranks.many else written


def _undisturbed(work: Callable[[], T]) -> T:
    """With the global random streams as they were before."""
    with isolate_rng(include_cuda=torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        return work()
