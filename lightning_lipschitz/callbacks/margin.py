"""LipschitzMargin: training for certified accuracy, in one line."""

from __future__ import annotations

from typing import Any, get_args

from torch import Tensor

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer
from lightning_lipschitz.callbacks._cross_entropy import RaisedCrossEntropy
from lightning_lipschitz.callbacks._metric_keys import choose_prefix
from lightning_lipschitz.callbacks._part_callback import PartCallback
from lightning_lipschitz.callbacks._submodule import Submodule
from lightning_lipschitz.differentiable import BoundMethod, DifferentiableBound
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.functional.margin import Schedule, margin_logits, scheduled_radius
from lightning_lipschitz.lightning_tools.arguments import require, require_choice, require_positive
from lightning_lipschitz.lightning_tools.log import MetricLog, validates_training
from lightning_lipschitz.lightning_tools.ranks import refuse_sharded
from lightning_lipschitz.lightning_tools.submodule import Choice

_WORDS = ("auto", "constant", "linear", "over")
_BY_METHOD: dict[str, Schedule] = {"sweep": "over", "product": "linear"}

_EXPLICIT = """
    def configure_model(self):
        self.bound = lightning_lipschitz.DifferentiableBound(self.net, example_input)
    def training_step(self, batch, batch_idx):
        x, y = batch
        return lightning_lipschitz.functional.margin_cross_entropy(self.net(x), y, self.bound.pairs(), radius={})
    def on_train_batch_end(self, *_):
        self.bound.step()
"""


class LipschitzMargin(PartCallback):
    r"""Train a classifier for certified accuracy: each of its margins shall be worth a radius.

    While training, the logits that ``torch.nn.functional.cross_entropy`` (or ``torch.nn.CrossEntropyLoss``) sees are
    those of the module with :math:`R(t) K_{yj}` added to every class j but the target y, K the bounds of the
    differences of two logits as functions of the weights (:class:`~lightning_lipschitz.DifferentiableBound`). The loss
    is then small only where inputs are classified right, and so is everything within R (Tsuzuku et al., NeurIPS 2018).
    Nothing else of the step sees other logits, and validation sees none. Nothing is proved here:
    ``LipschitzCallback(certified_radii=[R])`` logs what is, and :func:`~lightning_lipschitz.pairwise_bounds` proves
    most when it is given :attr:`multipliers`.

    Logged, when validation starts or else when the training epoch ends:

    * ``lipschitz/margin_radius``: R(t);
    * ``lipschitz/margin_bound``: the largest K_ij of the last loss. It proves nothing.

    Checkpoints hold the multipliers under ``callbacks``, and a resumed run goes on exactly.

    Args:
        radius: R, l2, in the units of the module's input (after any normalisation in the data).
        schedule: how R(t) runs over training: "over", from R to 2 R in the first half; "linear", from 0 to R;
            "constant"; or a function of the share of training done that returns a multiple of R. "auto" is "over"
            for the bound "sweep" and "linear" for "product".
        bound: see :class:`~lightning_lipschitz.DifferentiableBound`.
        module: dotted name of the submodule whose output are the logits; ``""`` for the model's ``forward``, or for
            its only child if it has none.
        input: as for :class:`LipschitzCallback`.
        output: as for :class:`LipschitzCallback`.
        prog_bar: whether to show ``margin_bound`` in the progress bar.

    Attributes:
        history: one dictionary of plain Python values for every entry logged.
        bound_in_loss: the :class:`~lightning_lipschitz.DifferentiableBound` of this fit, None before its first batch.

    Raises:
        MisconfigurationException: an argument; a ``module`` that does not exist; a fit without an end, for a schedule
            that runs over it; FSDP, DeepSpeed or model parallelism; no cross entropy of the module's logits in the
            first training step.
        LipschitzError: in the first batch: the submodule cannot be read.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[LipschitzMargin(radius=0.3)], accelerator="cpu", logger=False)
    """

    base = "lipschitz"
    only_looks_on = True  # at files: it writes weights as training leaves them

    def __init__(
        self,
        radius: float,
        *,
        schedule: Schedule | str = "auto",
        bound: BoundMethod = "auto",
        module: str = "",
        input: Input = None,
        output: Output = None,
        prog_bar: bool = False,
    ) -> None:
        super().__init__(module, input, output, prog_bar)
        owner = type(self).__name__
        require_positive(owner, "radius", radius)
        accepted = f"one of {', '.join(map(repr, _WORDS))}, or a function of the share of training done"
        require(schedule in _WORDS or callable(schedule), owner, "schedule", schedule, accepted)
        require_choice(owner, "bound", bound, get_args(BoundMethod))
        self.radius, self.schedule, self.bound = radius, schedule, bound
        self._restored: dict[str, Any] | None = None
        self._begin()

    def _begin(self) -> None:
        super()._begin()
        self.bound_in_loss: DifferentiableBound | None = None
        self._mode: RaisedCrossEntropy | None = None
        self._batch: Any = None
        self._radius, self._largest = self.radius, Tensor()  # of the last loss
        self._seen, self._stepped, self._logged = False, -1, -1

    @property
    def multipliers(self) -> Any:
        """What :func:`~lightning_lipschitz.pairwise_bounds` takes as ``warm_start``: those of the loss, for the
        weights of this moment; None before the first batch, or where the bound has none."""
        return None if self.bound_in_loss is None else self.bound_in_loss.multipliers()

    # Life of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._begin()
        owner = type(self).__name__
        refuse_sharded(trainer, owner)
        self._log = MetricLog(choose_prefix(self, trainer, self.base), self.prog_bar, shown="margin_bound")
        self._submodule = Submodule(Choice.of(self), owner, "auto")
        self._submodule.hold(self._held)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._submodule is not None:
            self._submodule.find(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stepped = trainer.global_step
        endless = trainer.estimated_stepping_batches == float("inf")
        if endless and self.schedule != "constant":
            raise MisconfigurationException(
                f"`LipschitzMargin(schedule={self.schedule!r})` runs over the whole of training, and this one has no"
                " end. Set `max_epochs` or `max_steps`, or `schedule='constant'`."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._submodule is None:
            return
        if not self._submodule.knows_input:
            self._submodule.listen(pl_module)
        self._batch = batch
        self._mode = RaisedCrossEntropy(lambda logits, target: self._raised(trainer, pl_module, logits, target))
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        mode = self._leave()
        if mode is None:
            return
        if not self._seen and mode.count == 0 and not (outputs is None and pl_module.automatic_optimization):
            self._refuse(mode)
        self._seen = self._seen or mode.count > 0
        if self.bound_in_loss is not None and self._stepped != trainer.global_step:
            self._stepped = trainer.global_step
            self.bound_in_loss.step()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if validates_training(trainer):
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()
        if self.bound_in_loss is not None:
            self.bound_in_loss.close()

    # A step

    def _leave(self) -> RaisedCrossEntropy | None:
        mode, self._mode, self._batch = self._mode, None, None
        if mode is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if self._submodule is not None:
            self._submodule.inputs.disarm()
        return mode

    def _raised(self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, target: Tensor) -> Tensor | None:
        bound = self.bound_in_loss or self._make(trainer, pl_module)
        K = bound.pairs()
        if K.shape[0] != logits.shape[1]:
            return None
        schedule = _BY_METHOD[bound.method] if self.schedule == "auto" else self.schedule
        self._radius = scheduled_radius(self.radius, schedule, _progress(trainer))  # type: ignore[arg-type]
        self._largest = K.detach().amax()
        return margin_logits(logits, target, K.to(logits.device), self._radius)

    def _make(self, trainer: Trainer, pl_module: LightningModule) -> DifferentiableBound:
        submodule = self._submodule
        if submodule is None:
            raise RuntimeError("no fit has begun")
        submodule.hear(pl_module, self._batch)
        if not submodule.knows_input:
            raise MisconfigurationException(
                f"`LipschitzMargin(module={self.module!r})`: the module was not called before the loss. Name the"
                " submodule whose output are the logits."
            )
        part, example = submodule.part(pl_module)
        if submodule.held is not None and trainer.world_size > 1:  # every process saw other samples
            submodule.hold(trainer.strategy.broadcast(submodule.held))
            part, example = submodule.part(pl_module)
        self.bound_in_loss = DifferentiableBound(part, example, method=self.bound)
        restored, self._restored = self._restored, None
        if restored is not None:
            self.bound_in_loss.load_state_dict(restored)
        return self.bound_in_loss

    def _refuse(self, mode: RaisedCrossEntropy) -> None:
        met = f"it was called with {', '.join(sorted(mode.others))}" if mode.others else "it was not called"
        raise MisconfigurationException(
            "`LipschitzMargin` raises the logits that `torch.nn.functional.cross_entropy` sees in `training_step`, of"
            f" shape (batch, classes) with class numbers as targets: {met}. (What is compiled together with its loss"
            " is not seen: compile the network instead.) With another loss, use the explicit form:"
            + _EXPLICIT.format(f"{self.radius:g}")
        )

    # What is logged and kept

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._largest.numel() == 0 or self._logged == trainer.global_step:
            return
        self._logged = trainer.global_step
        values = {"margin_radius": self._radius, "margin_bound": float(self._largest)}
        self.history.append({"epoch": trainer.current_epoch, "global_step": trainer.global_step, **values})
        self._log.log(trainer, pl_module, values)

    def state_dict(self) -> dict[str, Any]:
        bound = self._restored if self.bound_in_loss is None else self.bound_in_loss.state_dict()
        return super().state_dict() | {"bound": bound}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._restored = state_dict["bound"]

    def __getstate__(self) -> dict[str, Any]:
        run = {"bound_in_loss": None, "_mode": None, "_batch": None}
        return super().__getstate__() | run


def _progress(trainer: Trainer) -> float:
    """Share of training done, by batches; or by steps of all optimizers, where these are limited."""
    total = float(trainer.estimated_stepping_batches)
    done = trainer.fit_loop.epoch_loop._batches_that_stepped / total if total > 0 else 0.0
    if trainer.max_steps > 0:
        done = max(done, trainer.global_step / trainer.max_steps)
    return min(1.0, done)
