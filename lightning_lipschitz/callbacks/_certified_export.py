"""What leaves a training under a bound is certified: checkpoints of every kind, validation, the module at the end.

Training itself goes on with weights of its own, which are kept beside those in a checkpoint, and a resumed run gets
exactly these back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from lightning_lipschitz._lightning import LightningModule, Trainer, isolated_rng, rank_zero_warn
from lightning_lipschitz.callbacks import _atomic as atomic
from lightning_lipschitz.callbacks._certified_weights import CertifiedWeights, Certifier
from lightning_lipschitz.callbacks._held_weights import HeldWeights
from lightning_lipschitz.callbacks._saved_weights import Swap, saved_model
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.checkpoint_files import to_plain
from lightning_lipschitz.lightning_tools.ranks import Failure, Ranks
from lightning_lipschitz.lightning_tools.saving import Checkpoint, Gates, Saver

TRAINING = "training_weights"

T = TypeVar("T")


class CertifiedExport:
    """Puts certified weights into whatever leaves a fit. To be made and installed in ``setup("fit")`` by every rank.

    It outlives the fit: what the Trainer saves afterwards meets the bound as well.

    Args:
        trainer: whose fit it is.
        weights: those that are held to the bound.
        certifier: finds what is written of them.
        ranks: the processes of the fit.
        key: name in a checkpoint of the certificate and the training weights.
    """

    def __init__(self, trainer: Trainer, weights: HeldWeights, certifier: Certifier, ranks: Ranks, key: str) -> None:
        self.key = key
        self._trainer = ref(trainer)
        self._weights, self._certifier, self._ranks = weights, certifier, ranks
        self._gates = Gates(self._on_save, self._on_load)
        self._swap = Swap()
        self._validated: CertifiedWeights | None = None
        self._finished = False

    def install(self, trainer: Trainer, model: LightningModule) -> None:
        self._gates.install(trainer, model)
        atomic.install(trainer)

    def remove(self) -> None:
        """The fit is over, one way or another."""
        self._gates.remove()

    @contextmanager
    def around_save(self, model: LightningModule) -> Iterator[None]:
        """Stand there while the Trainer saves this module, in a fit or not."""
        try:
            with self._gates.around_save(model):
                yield
        finally:
            if self._finished:
                self._weights.rest()

    # Checkpoints

    def _on_save(self, model: LightningModule, checkpoint: Checkpoint) -> None:
        """Write certified weights into a file. No collective here: a rank may save alone, in an exception."""
        trainer = self._trainer()
        if trainer is None or not trainer.is_global_zero or Saver.of(trainer).verbatim:
            return
        if not checkpoint.get("state_dict"):
            return  # of a strategy that gathers the weights elsewhere
        tensors, written = _undisturbed(lambda: self._of(model, checkpoint["state_dict"]))
        self._warn_of_others(model, written)
        plain = to_plain(written.certificate.at(trainer.current_epoch, trainer.global_step))
        if "callbacks" in checkpoint:  # a file that training can go on from
            plain[TRAINING] = self._weights.whole({name: tensors[name].clone() for name in written.tensors})
        mine = {name: tensors[name] for name in self._weights.parameters if name in tensors}
        moved = {name: value.to(tensors[name].device) for name, value in written.tensors.items()}
        whole, state = self._weights.whole({**mine, **moved}), checkpoint["state_dict"]
        state.update({name: value for name, value in whole.items() if name in state})
        checkpoint[self.key] = plain

    def _of(self, model: LightningModule, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], CertifiedWeights]:
        """The weights among a state, and what is written of them."""
        self._weights.prepare(model)
        self._weights.refresh(model)
        tensors = self._weights.part(state)
        return tensors, self._certifier(tensors)

    def _warn_of_others(self, model: LightningModule, written: CertifiedWeights) -> None:
        live = self._weights.of(model)  # an average that is put into the file may have been projected there before
        if self._finished and any(not torch.equal(v.to(live[name]), live[name]) for name, v in written.tensors.items()):
            rank_zero_warn(
                f"the weights in the module are not those that the fit left there, and their bound is above that of"
                f" `{self.key}`. The module stays as it is; its file holds the nearest certified weights. To save it"
                " as it is, use a Trainer without a bound."
            )

    def _on_load(self, model: LightningModule, checkpoint: Checkpoint) -> None:
        """Load training weights; for another Trainer, which tests a file while the fit runs, the file counts."""
        trainer = self._trainer()
        if trainer is not None and trainer._checkpoint_connector._loaded_checkpoint is checkpoint:
            checkpoint["state_dict"].update(checkpoint.get(self.key, {}).get(TRAINING, {}))

    # Validation

    def before_validation(self, trainer: Trainer, model: LightningModule) -> Certificate:
        """Find what would be written now; every rank gets it, or its error."""
        self._weights.refresh(model)
        self._validated = self._agreed(saved_model(trainer, model))
        return self._validated.certificate.at(trainer.current_epoch, trainer.global_step)

    def before_batch(self) -> None:
        """Put the weights of the file where they are validated, whatever weight averaging has put there."""
        if self._validated is not None:
            self._swap.put(self._weights.parameters, self._validated.tensors)

    def after_batch(self) -> None:
        self._swap.back()

    def after_validation(self) -> None:
        self._swap.back()
        self._validated = None

    def saved_tensors(self, root: nn.Module) -> dict[str, Tensor]:
        """What a file of this moment holds in place of tensors of ``root``, by their names in the model.

        No collective: while validation runs, every rank has what all agreed on; else the caller's own answer is given.
        """
        found = self._validated or _undisturbed(lambda: self._certifier(self._weights.of(root)))
        return self._weights.whole(found.tensors)

    # The module itself

    def finish(self, trainer: Trainer, model: LightningModule) -> Certificate:
        """Leave in the module what a file would hold."""
        self._weights.refresh(model)
        written = self._agreed(model)
        Swap().put(self._weights.parameters, written.tensors)
        self._certifier.keep(self._weights.of(model), replace(written, tensors={}))
        self._finished = True
        return written.certificate.at(trainer.current_epoch, trainer.global_step)

    def _agreed(self, root: nn.Module) -> CertifiedWeights:
        """What is written of the weights of ``root``: rank 0 works, all ranks know."""
        tensors = self._weights.of(root)
        outcome = _undisturbed(lambda: self._ranks.once(lambda: self._sendable(self._certifier(tensors))))
        if isinstance(outcome, Failure):
            outcome.reraise()
        self._certifier.keep(tensors, outcome)
        return outcome

    def _sendable(self, written: CertifiedWeights) -> CertifiedWeights:
        return written.cpu() if self._ranks.many else written


def _undisturbed(work: Callable[[], T]) -> T:
    """``work()``, with the global random streams as they were before, and where tensors can be differentiated: somebody
    may save in the middle of ``trainer.validate``."""
    with isolated_rng(), torch.inference_mode(False):
        return work()
