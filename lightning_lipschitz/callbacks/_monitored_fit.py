"""One fit of a callback that certifies: what is looked at, who computes, and for which weights it was done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from weakref import ref

from lightning_lipschitz import api
from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer, isolated_rng
from lightning_lipschitz.bounds.settings import Settings
from lightning_lipschitz.callbacks._measurement import Measurement, measure
from lightning_lipschitz.callbacks._saved_weights import as_saved, averaged_model, saved_model
from lightning_lipschitz.callbacks._submodule import Submodule
from lightning_lipschitz.certificate import Certificate, Multipliers, mark_proved
from lightning_lipschitz.errors import CertificateError, LipschitzError
from lightning_lipschitz.extraction.reading import ReadNetwork
from lightning_lipschitz.lightning_tools.ranks import Failure, Ranks, refuse_sharded
from lightning_lipschitz.lightning_tools.saving import Checkpoint, Saver
from lightning_lipschitz.lightning_tools.submodule import Choice
from lightning_lipschitz.report import Subject

T = TypeVar("T")

_OWNER = "LipschitzCallback"


class MonitoredFit:
    """Measures one submodule during one fit. To be made in ``setup("fit")``; all ranks have to call every method.

    Args:
        trainer: whose fit it is.
        choice: the callback's ``module``, ``input`` and ``output``.
        settings: those of every measurement.
        lower_bound: whether to sample one as well.
        pairs: whether the differences of two outputs are bounded as well.

    Raises:
        MisconfigurationException: the strategy shards parameters.
    """

    def __init__(
        self, trainer: Trainer, choice: Choice, settings: Settings, lower_bound: bool, pairs: bool = False
    ) -> None:
        refuse_sharded(trainer, _OWNER)
        self._trainer = ref(trainer)
        self.submodule = Submodule(choice, _OWNER, settings.method)
        self._ranks = Ranks(trainer)
        self._settings, self._lower_bound = replace(settings, workers=self._ranks.share), lower_bound
        self._choice, self._pairs = choice, pairs
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
        self.submodule.find(pl_module)
        self.trace(trainer, pl_module)
        if not self._traced:
            self.submodule.listen(pl_module)

    def trace(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace, if that is not done and an example input has been seen. Raises as :meth:`start`."""
        if self._traced:
            return
        submodule = self.submodule
        outcome = self._once(lambda: (submodule.trace(saved_model(trainer, pl_module)), submodule.held))
        if isinstance(outcome, Failure):
            outcome.reraise()
        self._traced, held = outcome
        submodule.hold(held)

    def listen(self, pl_module: LightningModule) -> None:
        """Take new inputs for the next lower bound."""
        if self._lower_bound:
            self.submodule.listen(pl_module)

    def hear(self, trainer: Trainer, pl_module: LightningModule, batch: object) -> None:
        """A training batch has been processed."""
        self._batches += 1
        self.submodule.hear(pl_module, batch)
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
                f"`{_OWNER}(module={self.submodule.name!r})`: the submodule was not called in {self._batches}"
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
        with as_saved(trainer, saved_model(trainer, pl_module)) as root:
            result = measure(
                lambda: self.submodule.network(root),
                (lambda seconds: self.submodule.lower_bound(root, seconds)) if self._lower_bound else None,
                self._settings,
                warm_start=self._warm_start or last,
                at=(trainer.current_epoch, trainer.global_step),
                offered=(lambda: _multipliers_in_loss(trainer, self._choice)) if self._pairs else None,
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
        with as_saved(trainer, saved_model(trainer, pl_module)) as root:
            network = self.submodule.network(root)
        if network.digest != certificate.network_digest:
            return False
        if certificate.unverified:
            with suppress(CertificateError):
                api.verify(certificate, network)
        return not certificate.unverified

    def certifies(self, certificate: Certificate, pl_module: LightningModule, checkpoint: Checkpoint) -> bool:
        """Whether the certificate speaks about the weights in a checkpoint, in a fit or after it. No collective."""
        trainer = self._trainer()
        if trainer is None or not trainer.is_global_zero or Saver.of(trainer).verbatim:
            return False
        if certificate.unverified or not (checkpoint.get("state_dict") and self.is_measured(trainer)):
            return False
        try:
            with isolated_rng():
                digest = self.submodule.digest(saved_model(trainer, pl_module), checkpoint["state_dict"])
        except (LipschitzError, MisconfigurationException):
            return False  # what cannot be read has no certificate, and is saved all the same
        finally:
            if self._closed:
                self.submodule.rest()
        return digest == certificate.network_digest

    def subject(self, trainer: Trainer, pl_module: LightningModule, certificate: Certificate, **known: Any) -> Subject:
        """What a report at the end of the fit is about. No other rank is needed."""
        with (
            isolated_rng(),
            as_saved(trainer, saved_model(trainer, pl_module)) as root,
        ):
            extraction: Any = self.submodule.reader(root).extract()
        return Subject(
            certificate,
            extraction.network,
            module=self.submodule.name,
            model=type(pl_module).__name__,
            source="Written as the fit ended",
            extraction=extraction if isinstance(extraction, ReadNetwork) else None,
            inputs=self.submodule.flat_inputs,
            **known,
        )

    def _once(self, work: Callable[[], T]) -> T | Failure:
        """What ``work()`` returns on rank 0; the global random streams stay as they were before."""
        with isolated_rng():
            return self._ranks.once(work)

    def close(self) -> None:
        """Keep nothing of the model, after a fit that went well."""
        self.submodule.rest()
        self._warm_start, self._closed = None, True
        self._ranks.close()


def _multipliers_in_loss(trainer: Trainer, choice: Choice) -> list[Multipliers]:
    """Those of a loss with margins of the same part of the model: they prove more than a search for others finds."""
    losses = [each for each in trainer.callbacks if hasattr(each, "bound_in_loss")]  # type: ignore[attr-defined]
    found = [each.multipliers for each in losses if Choice.of(each) == choice]
    return [each for each in found if each is not None]
