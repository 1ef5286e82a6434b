"""One fit of a callback that certifies: what is looked at, who computes, and for which weights it was done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from weakref import ref

from torch import nn

from lightning_lipschitz import api
from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer, isolated_rng
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.callbacks._choice import Choice
from lightning_lipschitz.callbacks._hooks import Checkpoint
from lightning_lipschitz.callbacks._inputs import Arguments
from lightning_lipschitz.callbacks._measure import Measurement, measure
from lightning_lipschitz.callbacks._ranks import Failure, Ranks
from lightning_lipschitz.callbacks._saver import Saver
from lightning_lipschitz.callbacks._shipped import shipped
from lightning_lipschitz.callbacks._target import averaged_model, deployed, refuse_sharded
from lightning_lipschitz.callbacks._watch import Watched
from lightning_lipschitz.certificate import Certificate, mark_proved
from lightning_lipschitz.errors import CertificateError, LipschitzError
from lightning_lipschitz.extraction.reading import ReadNetwork
from lightning_lipschitz.report import Subject

T = TypeVar("T")


class Session:
    """Made in ``setup("fit")`` by every rank; every method has to be called by every rank.

    Args:
        trainer: of the fit.
        choice: the callback's ``module``, ``input`` and ``output``.
        settings: of every measurement.

    Raises:
        MisconfigurationException: the strategy shards parameters.
    """

    def __init__(self, trainer: Trainer, choice: Choice, settings: Settings, lower_bound: bool) -> None:
        refuse_sharded(trainer, "LipschitzCallback")
        self._trainer = ref(trainer)
        self._choice = choice
        self._held: Arguments | None = None
        self._ranks = Ranks(trainer)
        self._settings, self._lower_bound = replace(settings, workers=self._ranks.share), lower_bound
        self._watched: Watched | None = None
        self._traced = self._closed = False
        self._batches = 0
        self._measured: tuple[int, ...] | None = None
        self._warm_start: Certificate | None = None

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the submodule; trace it if its input is known, else wait for the first call.

        Raises:
            MisconfigurationException: there is no such submodule.
            LipschitzError: it cannot be certified.
        """
        self._watched = Watched(pl_module, self._choice, method=self._settings.method)
        self._watched.hold(self._held)
        self.trace(trainer, pl_module)
        if not self._traced:
            self._watched.listen(pl_module)

    def trace(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace, if that is not done and an example input has been seen. Raises as :meth:`start`."""
        watched = self._watched
        if self._traced or watched is None:
            return
        outcome = self._once(lambda: (watched.trace(deployed(trainer, pl_module)), watched.held))
        if isinstance(outcome, Failure):
            outcome.reraise()
        self._traced, held = outcome
        watched.hold(held)

    def listen(self, pl_module: LightningModule) -> None:
        """Take new inputs for the next lower bound."""
        if self._watched is not None and self._lower_bound:
            self._watched.listen(pl_module)

    def hear(self, trainer: Trainer, pl_module: LightningModule, batch: object) -> None:
        """A training batch has been processed."""
        self._batches += 1
        if self._watched is not None:
            self._watched.hear(pl_module, batch)
        self.trace(trainer, pl_module)

    def is_new(self, trainer: Trainer) -> bool:
        """Whether there are trained weights that were not measured yet.

        Raises:
            MisconfigurationException: the submodule was never called.
        """
        if self._batches == 0 or self._weights(trainer) == self._measured:
            return False
        if not self._traced:
            raise MisconfigurationException(
                f"`LipschitzCallback(module={self._choice.module!r})`: the submodule was not called in {self._batches}"
                " batches, so its input is not known. Name one that is called; for a part of a compiled module, the"
                " whole of it."
            )
        return True

    def is_measured(self, trainer: Trainer) -> bool:
        """Whether the last measurement was of the weights as they are now."""
        return self._measured is not None and self._weights(trainer) == self._measured

    def _weights(self, trainer: Trainer) -> tuple[int, ...]:
        """Changes whenever the weights may have: steps taken, batches seen (running statistics), averages made."""
        average = averaged_model(trainer)
        return trainer.global_step, self._batches, -1 if average is None else int(average.n_averaged)

    def measure(self, trainer: Trainer, pl_module: LightningModule, last: Certificate | None) -> Measurement:
        """The bounds of the weights as they are now, starting from the last certificate. Never raises."""
        outcome = self._once(lambda: self._measure_here(trainer, pl_module, last))
        self._measured = self._weights(trainer)
        if isinstance(outcome, Failure):
            return Measurement.failed((trainer.current_epoch, trainer.global_step), outcome.sentence)
        return outcome

    def _measure_here(self, trainer: Trainer, pl_module: LightningModule, last: Certificate | None) -> Measurement:
        watched = self._watched
        if watched is None:
            raise RuntimeError("measured before it was started")
        with shipped(trainer, pl_module) as root:
            result = measure(
                lambda: watched.network(root),
                (lambda seconds: watched.lower_bound(root, seconds)) if self._lower_bound else None,
                self._settings,
                warm_start=self._warm_start or last,
                at=(trainer.current_epoch, trainer.global_step),
            )
        # The solver's state stays on rank 0: it is as large as the problem, and no part of the proof.
        self._warm_start = result.certificate
        return result.without_state()

    def is_of(self, certificate: Certificate, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the certificate speaks about the weights as they are now; one from a checkpoint is proved again."""
        outcome = self._once(lambda: self._holds(certificate, trainer, pl_module))
        if outcome is True:
            mark_proved(certificate)  # on every rank
        return outcome is True

    def _holds(self, certificate: Certificate, trainer: Trainer, pl_module: LightningModule) -> bool:
        if self._watched is None:
            return not certificate.unverified
        with shipped(trainer, pl_module) as root:
            network = self._watched.network(root)
        if network.digest != certificate.network_digest:
            return False
        if certificate.unverified:
            with suppress(CertificateError):
                api.verify(certificate, network)
        return not certificate.unverified

    def certifies(self, certificate: Certificate, pl_module: LightningModule, checkpoint: Checkpoint) -> bool:
        """Whether the certificate speaks about the weights in a checkpoint, in a fit or after it. No collective."""
        trainer, watched = self._trainer(), self._watched
        if trainer is None or watched is None or not trainer.is_global_zero or Saver.of(trainer).verbatim:
            return False
        if certificate.unverified or not (checkpoint.get("state_dict") and self.is_measured(trainer)):
            return False
        try:
            with isolated_rng():
                digest = watched.digest(deployed(trainer, pl_module), checkpoint["state_dict"])
        except (LipschitzError, MisconfigurationException):
            return False  # what cannot be read has no certificate, and is saved all the same
        finally:
            if self._closed:
                watched.rest()
        return digest == certificate.network_digest

    def part(self, root: nn.Module) -> nn.Module:
        """The function whose bound is logged, with the weights of ``root``."""
        if self._watched is None:
            raise RuntimeError("asked for before it was started")
        return self._watched.part(root)[0]

    @property
    def held(self) -> Arguments | None:
        """What other inputs than the chosen one are held at, for a checkpoint; None where there are none."""
        return self._held if self._watched is None else self._watched.plain_held

    @held.setter
    def held(self, arguments: Arguments | None) -> None:
        self._held = arguments

    def subject(self, trainer: Trainer, pl_module: LightningModule, certificate: Certificate) -> Subject:
        """What a report can say of the weights as they are now. No other rank is needed."""
        watched = self._watched
        if watched is None:
            raise RuntimeError("reported before it was started")
        with (
            isolated_rng(),
            shipped(trainer, pl_module) as root,
        ):
            extraction: Any = watched.reader(root).extract()
        explicit = extraction if isinstance(extraction, ReadNetwork) else None
        model = type(pl_module).__name__
        return Subject(certificate, extraction.network, model=model, extraction=explicit, inputs=watched.flat_inputs)

    def _once(self, work: Callable[[], T]) -> T | Failure:
        """On rank 0, and with the global random streams as they were before."""
        with isolated_rng():
            return self._ranks.once(work)

    def stop_listening(self) -> None:
        if self._watched is not None:
            self._watched.inputs.disarm()

    def close(self) -> None:
        """After a fit that went well: nothing of the model is kept."""
        if self._watched is not None:
            self._watched.rest()
        self._warm_start, self._closed = None, True
        self._ranks.close()
