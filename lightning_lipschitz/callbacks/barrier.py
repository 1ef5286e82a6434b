"""LipschitzBarrier: training that never leaves the certified set, by a log-determinant barrier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lightning_lipschitz._lightning import LightningModule, Trainer
from lightning_lipschitz.callbacks._bounded_training import Fit
from lightning_lipschitz.callbacks._bounded_weights import BoundedWeights
from lightning_lipschitz.callbacks._interior_path import InteriorPath
from lightning_lipschitz.callbacks._pulled_training import PulledTraining, gradient_scale
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.lightning_tools.arguments import require_positive
from lightning_lipschitz.lightning_tools.ranks import Failure
from lightning_lipschitz.training import Start, start_inside
from lightning_lipschitz.training.multipliers import widened

_MANY, _FEW = 0.2, 20  # rejected steps, as a share and as a number, beyond which the end of training warns


class LipschitzBarrier(PulledTraining):
    r"""Train strictly inside the weights that are certified for ``max_lipschitz``: the bound holds after every step.

    Your optimizer minimises :math:`\mathrm{loss} - \mu \log\det M(L^2, \lambda; W)`, M being the matrix of
    :mod:`lightning_lipschitz.certificate.lmi`, which is positive definite exactly where :math:`\lambda` proves the
    bound L (Pauli, Funcke, Gramlich, Msalmi, Allgöwer, "Neural network training under semidefinite constraints", CDC
    2022). The multipliers :math:`\lambda` are trained along, by Newton steps. An optimizer step that would leave the
    set is halved until it does not, so the weights in training, every checkpoint and the final module meet the bound,
    and resuming needs nothing special. Weights that start outside are first moved to the nearest certified ones.
    That holds for every optimizer of torch, whoever makes it and calls its ``step``, and for layers that are frozen at
    first and trained later; frozen layers of a model that is trained stay as they are.

    Compared with :class:`LipschitzADMM`: the live weights are certified, not only what is written; each step costs a
    factorisation of every layer (of one matrix of all inputs and units, where the model is no chain of ``nn.Linear``),
    where ADMM works in rounds; accuracy is usually a little lower.

    Logged, when validation starts or else when the training epoch ends:

    * ``barrier/upper_bound``: certified, of the weights as they are written. Lies a little below ``max_lipschitz``.
    * ``barrier/strength``: :math:`\mu` at this moment; it falls with the learning rate.
    * ``barrier/rejected``: share of optimizer steps since the last entry that had to be shortened.

    What to set when accuracy drops: many rejected steps mean that the barrier is too weak for the step size: raise
    ``strength`` or lower the learning rate. None rejected and a bound well below ``max_lipschitz``: lower ``strength``.
    A learning rate that decays to zero takes the barrier's own cost with it.

    Under weight averaging the averages, which need not be certified by any one choice of multipliers, are certified on
    their own and projected where they must be.

    Args:
        max_lipschitz: the bound L > 0, l2 output change per l2 input change.
        strength: :math:`\mu` at the largest learning rate, in units of loss.
        module: dotted name of the submodule that is held to the bound; ``""`` for the model's ``forward``, or for its
            only child if it has none. Chains of ``nn.Linear`` are fastest; also residual connections, concatenations,
            convolutions, pooling, shared weights: see :func:`~lightning_lipschitz.project`.
            Batch norm that keeps running statistics moves the bound between steps and is refused.
        input: as for :class:`LipschitzADMM`.
        output: as for :class:`LipschitzADMM`.
        prog_bar: whether to show the upper bound in the progress bar.

    Attributes:
        history: one dictionary of plain Python values for every entry logged.
        certificate: the last, of the weights as they are written.

    Raises:
        MisconfigurationException: an argument; a ``module`` that does not exist; LBFGS; ``ModelPruning``; another
            callback that holds some of the same weights to a bound; FSDP, DeepSpeed or model parallelism, which this
            does not support yet.
        LipschitzError: at the start of the fit, or in the first batch: the submodule cannot be read, or holds layers
            that cannot be projected.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[LipschitzBarrier(max_lipschitz=10.0)], accelerator="cpu", logger=False)
    """

    base = "barrier"
    _keys = ("upper_bound", "strength", "rejected")
    max_lipschitz: float

    def __init__(
        self,
        max_lipschitz: float,
        *,
        strength: float = 3e-4,
        module: str = "",
        input: Input = None,
        output: Output = None,
        prog_bar: bool = True,
    ) -> None:
        super().__init__(module, input, output, prog_bar)
        owner = type(self).__name__
        require_positive(owner, "max_lipschitz", max_lipschitz)
        require_positive(owner, "strength", strength)
        self.max_lipschitz, self.strength = max_lipschitz, strength

    def _begin(self) -> None:
        super()._begin()
        self._path: InteriorPath | None = None
        self._restored: dict[str, Any] | None = None

    # Hooks

    def _hint(self, weights: BoundedWeights) -> Callable[[], Multipliers | None]:
        self._path = InteriorPath(weights, self.max_lipschitz)
        return self._path.multipliers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._path
        if path is None:
            return

        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # With a closure, which Lightning's loops have, the gradient is not there yet: `on_before_optimizer_step`
            # follows. Without one, it has been there, or this is a step that Lightning does not know of.
            closed = len(args) > 1 or kwargs.get("closure") is not None
            if not closed and not path.stepping and self._concerns(optimizer, pl_module):
                self.on_before_optimizer_step(trainer, pl_module, optimizer)

        def after(optimizer: Optimizer, *_: Any) -> None:
            if path.stepping:
                path.after_step()
            elif self._fit is not None and self._concerns(optimizer, pl_module):
                self._return(trainer, pl_module, self._fit, path)

        path.watch(before, after)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # where an optimizer has stepped, that was looked at; what moves weights by hand has no hooks
        if self._fit is not None and self._path is not None and self._path.entered and not self._path.was_held():
            self._return(trainer, pl_module, self._fit, self._path)

    def _concerns(self, optimizer: Optimizer, pl_module: LightningModule) -> bool:
        """Whether it trains the weights, or the model that holds them while it is not known which these are."""
        if self._fit is not None and self._fit.weights.traced:
            return self._fit.weights.is_trained_by(optimizer)
        known = {id(parameter) for parameter in pl_module.parameters()}
        return any(id(parameter) in known for group in optimizer.param_groups for parameter in group["params"])

    def _return(
        self, trainer: Trainer, pl_module: LightningModule, fit: Fit[BoundedWeights], path: InteriorPath
    ) -> None:
        """Back into the set, should something have moved the weights in a way that could not be followed."""
        if self._ready(fit, pl_module) and not path.inside():
            self._enter(trainer, fit, path)

    def _forget(self) -> None:
        if self._path is not None:
            self._path.leave()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        fit, path = self._fit, self._path
        if fit is None or path is None or not self._ready(fit, pl_module):
            return
        if not path.inside():
            self._enter(trainer, fit, path)
        if fit.weights.is_trained_by(optimizer):
            pull = path.before_step(optimizer)
            scale = self.strength * path.factor * gradient_scale(trainer, optimizer)
            fit.weights.add_gradient(optimizer, pull, scale)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        path = self._path
        if path is not None and path.all_shortened > max(_FEW, _MANY * path.all_steps):
            self._warn(
                "rejected",
                f"{path.all_shortened} of {path.all_steps} optimizer steps would have broken"
                f" `max_lipschitz={self.max_lipschitz:g}` and were shortened. The bound holds, but training was held"
                " up: raise `strength`, lower the learning rate, or allow a larger bound.",
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit":
            self._path = None

    # Into the set, and out of the fit

    def _enter(self, trainer: Trainer, fit: Fit[BoundedWeights], path: InteriorPath) -> None:
        """Move the weights inside, on every rank alike."""
        restored, self._restored = self._restored, None
        if restored is not None and path.resume(restored):
            return
        outcome = fit.ranks.once(lambda: self._start(fit))
        if isinstance(outcome, Failure):
            outcome.reraise()
        path.enter(outcome)
        if outcome.moved:
            self._warn(
                "moved", f"the weights were outside of `max_lipschitz={self.max_lipschitz:g}` and were projected."
            )

    def _start(self, fit: Fit[BoundedWeights]) -> Start:
        wide = widened(fit.weights.network())
        found = start_inside(fit.weights.stored, fit.weights.matrices(), wide, self.max_lipschitz)
        if not fit.ranks.many:
            return found
        return Start([w.cpu() for w in found.weights], [q.cpu() for q in found.log_multipliers], found.moved)

    def _leave(self) -> None:
        if self._path is not None:
            self._path.close()

    # State

    def _values(self) -> dict[str, float]:
        path = self._path
        if path is None:
            return {"strength": self.strength, "rejected": 0.0}
        return {"strength": self.strength * path.factor, "rejected": path.rejected()}

    def state_dict(self) -> dict[str, Any]:
        entered = self._path is not None and self._path.entered
        return super().state_dict() | {"path": self._path.plain() if self._path is not None and entered else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._restored = state_dict["path"]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_path": None}
