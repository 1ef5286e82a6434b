"""LipschitzCallback: a certified upper bound of the Lipschitz constant, logged while the model trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from lightning_lipschitz._lightning import LightningModule, Trainer
from lightning_lipschitz.bounds.settings import ProvedMethod, Settings, Solver
from lightning_lipschitz.callbacks._certified_accuracy import ValidationAccuracy
from lightning_lipschitz.callbacks._metric_keys import checked_prefix
from lightning_lipschitz.callbacks._monitored_fit import MonitoredFit
from lightning_lipschitz.callbacks._part_callback import PartCallback
from lightning_lipschitz.callbacks._report_page import check_path, check_siblings, write_report
from lightning_lipschitz.callbacks._saved_weights import end_epoch
from lightning_lipschitz.checkpoint_files import from_plain, to_plain
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.lightning_tools.arguments import (
    arguments_of,
    require_choice,
    require_count,
    require_flag,
    require_positive,
    require_radii,
)
from lightning_lipschitz.lightning_tools.log import MetricLog, attached, validates_training
from lightning_lipschitz.lightning_tools.saving import Gates
from lightning_lipschitz.lightning_tools.submodule import Choice
from lightning_lipschitz.pairwise import PairwiseBounds
from lightning_lipschitz.report import Subject


class LipschitzCallback(PartCallback):
    r"""Certify the model every epoch: a number L with :math:`|f(x) - f(y)|_2 \le L |x - y|_2` for all x and y.

    The bound is that of the weights in the checkpoint of the same moment: the averaged ones under ``WeightAveraging``,
    the certified ones beside ``LipschitzADMM`` and ``LipschitzBarrier``.
    It is computed as validation starts, or at the end of the training epoch where there is none, so that
    ``ModelCheckpoint``, ``EarlyStopping`` and loggers find it beside ``val_loss``. Nothing else of the run changes:
    random streams, weights, ``state_dict`` keys and losses are those of a run without it.

    Logged, as float64 so that no rounding falls below the certificate:

    * ``lipschitz/upper_bound``: certified. If a solver fails or runs out of time this is the best bound that could be
      verified, and training goes on. Infinite only for weights that are themselves not finite.
    * ``lipschitz/lower_bound``: the steepest slope found between sampled inputs; the constant lies between the two.
    * ``lipschitz/relative_gap``: duality gap of the solver's answer. Absent for methods that have none.
    * ``lipschitz/seconds``: wall time of all this.
    * ``lipschitz/solver_ok``: 1 if the method reached its goal, 0 if the bound is a fallback.
    * ``lipschitz/certified_accuracy_0.5`` for ``certified_radii=[0.5]``: the share of the validation set that is
      classified right, and so is every input within that distance, by bounds proved for each pair of classes. See
      :class:`~lightning_lipschitz.CertifiedAccuracy`.

    In every checkpoint, ``checkpoint["lipschitz"]`` holds the certificate: its scalars, the ``epoch`` and
    ``global_step`` it belongs to, and the numbers that prove it. With several instances, one for each submodule, the
    first (or the one on the whole model) has these names and every other has its module's name in them, as in
    ``lipschitz/encoder.body/upper_bound``.

    Args:
        every_n_epochs: certify in the first epoch and in each whose number, from one, this divides. In between the last
            value stands: use ``ModelCheckpoint(every_n_epochs=...)`` of the same length.
        module: dotted name of the submodule to certify; ``""`` for the model's ``forward``, or for its only child if
            it has none.
        input: position or name of the one of several inputs that the bound is for. It holds for the others at their
            values in the first sample of ``example_input_array``, or else of the fit's first call; checkpoints keep it.
        output: see :func:`lightning_lipschitz.certify`: position or name of one of several, "all", or a function.
        method: see :func:`lightning_lipschitz.certify`; not "lipsdp-network", whose coupled multipliers are no bound.
        solver: see :func:`lightning_lipschitz.certify`.
        rtol: relative tolerance of the solver. Whatever it is, the bound is verified.
        time_limit: seconds a measurement may take; None for no limit, but "auto" optimises for a minute at most.
        lower_bound: whether to sample a lower bound as well; in a second, or in as long as the upper bound took.
        max_lipschitz: warn, once a fit, when the certified bound is above this.
        prog_bar: whether to show the upper bound in the progress bar.
        certified_radii: l2 distances, in the units of the module's input, at which to log certified accuracy after each
            validation that was certified. Takes validation batches ``(x, y)`` of inputs of the module, whose output is
            logits, and class numbers; costs one more forward a batch.
        report: file for a page of HTML, written when the fit ends: bounds over training, what each layer costs,
            certified accuracy (of the same validation batches, at the same cost; of a submodule with
            ``certified_radii`` only), the certificate. Its figures go to TensorBoard too. Needs the extra "report".

    Attributes:
        history: one dictionary of plain Python values a measurement: ``epoch``, ``global_step``, ``upper_bound``,
            ``lower_bound``, ``relative_gap``, ``seconds``, ``solver_ok``, ``method``. Under a launcher that spawns or
            forks (``ddp_spawn``, ``ddp_fork``, ``ddp_notebook``) it stays in the processes that trained.
        certificate: the last :class:`~lightning_lipschitz.Certificate` of this fit, or None.

    Raises:
        MisconfigurationException: an argument, or a ``module`` that does not exist.
        LipschitzError: at the start of the fit, if the model cannot be certified. The example input that this takes is
            ``example_input_array`` of the LightningModule, else what the submodule gets in the first batch.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from pytorch_lightning.callbacks import ModelCheckpoint
        >>> best = ModelCheckpoint(
        ...     monitor="lipschitz/upper_bound",
        ...     filename="{epoch}-L={lipschitz/upper_bound:.3f}",
        ...     auto_insert_metric_name=False,
        ... )
        >>> trainer = Trainer(callbacks=[LipschitzCallback(every_n_epochs=1), best], accelerator="cpu", logger=False)
    """

    base = "lipschitz"
    only_looks_on = True

    def __init__(
        self,
        every_n_epochs: int = 1,
        *,
        module: str = "",
        input: Input = None,
        output: Output = None,
        method: ProvedMethod = "auto",
        solver: Solver = "auto",
        rtol: float = 1e-4,
        time_limit: float | None = None,
        lower_bound: bool = True,
        max_lipschitz: float | None = None,
        prog_bar: bool = True,
        certified_radii: Sequence[float] = (),
        report: str | Path | None = None,
    ) -> None:
        super().__init__(module, input, output, prog_bar)
        owner = type(self).__name__
        require_count(owner, "every_n_epochs", every_n_epochs)
        require_choice(owner, "method", method, get_args(ProvedMethod))
        with arguments_of(owner):
            Settings(method, solver, rtol, time_limit)
        require_flag(owner, "lower_bound", lower_bound)
        require_positive(owner, "max_lipschitz", max_lipschitz, optional=True)
        require_radii(owner, "certified_radii", certified_radii)
        check_path(owner, report)
        self.every_n_epochs = every_n_epochs
        self.method, self.solver, self.rtol, self.time_limit = method, solver, rtol, time_limit
        self.lower_bound, self.max_lipschitz = lower_bound, max_lipschitz
        self.certified_radii = certified_radii
        self.report = report
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        self._fit: MonitoredFit | None = None
        self._pairs: PairwiseBounds | None = None  # of the last measurement
        self._guard: Gates | None = Gates(self._stamp)
        self._first_epoch: int | None = None
        self._accuracy = ValidationAccuracy(self.certified_radii, keep=self._keeps_predictions())

    def _keeps_predictions(self) -> bool:
        # What a submodule reads need not be the batch; `certified_radii` says that it is.
        return self.report is not None and (self.module == "" or len(self.certified_radii) > 0)

    # Life of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._begin()
        check_siblings(self, trainer)
        self._log = MetricLog(checked_prefix(self, trainer), self.prog_bar)
        settings = Settings(self.method, self.solver, self.rtol, self.time_limit)
        pairs = len(self.certified_radii) > 0
        self._fit = MonitoredFit(trainer, Choice.of(self), settings, self.lower_bound, pairs)
        self._submodule = self._fit.submodule

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here and not in setup: after every other gate, to see what is written in the end.
        if self._guard is not None:
            self._guard.install(trainer, pl_module)
        if self._fit is not None:
            self._fit.start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_epoch = trainer.current_epoch
        if self._fit is not None:
            self._fit.trace(trainer, pl_module)  # the sanity check may have shown an input

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._is_due(trainer):
            self._fit.listen(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._fit is not None:
            self._fit.hear(trainer, pl_module, batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if validates_training(trainer):
            self._measure_if_due(trainer, pl_module)
            fresh = self._fit is not None and self._fit.is_measured(trainer)
            self._accuracy.start(trainer, pl_module, self.certificate if fresh else None, self._pairs)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._fit is not None:
            self._accuracy.see(trainer, pl_module, batch, self._fit.submodule)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with attached(pl_module, trainer):
            self._accuracy.log(pl_module, self._log.prefix)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        end_epoch(trainer)
        self._measure_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._fit.is_new(trainer):
            self._log.log_at_end(trainer, self._measure(self._fit, trainer, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Weights may have changed since, as StochasticWeightAveraging changes them when training ends.
        fit = self._fit
        if fit is None:
            return
        if self.certificate is not None and not fit.is_of(self.certificate, trainer, pl_module):
            self._log.log_at_end(trainer, self._measure(fit, trainer, pl_module))
        if self.report is not None:
            write_report(trainer, self.report, lambda: self._subject(fit, trainer, pl_module), self._accuracy)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Whoever saves after this does it by the Trainer.
        self._leave()
        if self._fit is not None:
            self._fit.submodule.inputs.disarm()

    def _leave(self) -> None:
        if self._guard is not None:
            self._guard.remove()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._leave()
        if stage == "fit" and self._fit is not None:
            self._fit.close()

    # What a hook decides

    def _is_due(self, trainer: Trainer) -> bool:
        # The first epoch always: ModelCheckpoint(monitor=...) wants the key to exist once validation has run.
        return trainer.current_epoch == self._first_epoch or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _measure_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._fit is not None and self._is_due(trainer) and self._fit.is_new(trainer):
            self._log.log(trainer, pl_module, self._measure(self._fit, trainer, pl_module))

    def _measure(self, fit: MonitoredFit, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        result = fit.measure(trainer, pl_module, last=self.certificate)
        self.certificate, self._pairs = result.certificate, result.pairs
        self.history.append(asdict(result.entry))
        for subject, sentence in result.warnings(self.max_lipschitz).items():
            self._warned(subject, f"`LipschitzCallback` in {sentence}")
        return result.entry.metrics()

    def _subject(self, fit: MonitoredFit, trainer: Trainer, pl_module: LightningModule) -> Subject:
        if self.certificate is None:
            raise LipschitzError("nothing could be certified.")
        return fit.subject(trainer, pl_module, self.certificate, key=self._log.prefix, history=self.history)

    # State and checkpoints

    def state_dict(self) -> dict[str, Any]:
        certificate = None if self.certificate is None else to_plain(self.certificate)
        return super().state_dict() | {"certificate": certificate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        certificate = state_dict["certificate"]
        self.certificate = None if certificate is None else from_plain(certificate)

    def _stamp(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        certificate, fit = self.certificate, self._fit
        if certificate is not None and fit is not None and fit.certifies(certificate, pl_module, checkpoint):
            checkpoint[self._log.prefix] = to_plain(certificate)
