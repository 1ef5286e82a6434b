"""LipschitzADMM: training under a certified Lipschitz bound, by the alternating direction method of multipliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from lightning_lipschitz._lightning import LightningModule, Trainer
from lightning_lipschitz.callbacks._bounded_training import Fit
from lightning_lipschitz.callbacks._bounded_weights import BoundedWeights
from lightning_lipschitz.callbacks._pulled_training import PulledTraining, gradient_scale
from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.lightning_tools.arguments import (
    require,
    require_choice,
    require_count,
    require_flag,
    require_positive,
)
from lightning_lipschitz.lightning_tools.ranks import Failure
from lightning_lipschitz.training import Consensus, ConsensusProblem, advance

Mode = Literal["enforce", "regularize"]

_FAR = 0.05  # relative distance from the certified weights at which the end of training is worth a warning


class LipschitzADMM(PulledTraining):
    r"""Train under a certified Lipschitz bound: every file that is saved, and the final module, meets it.

    In ``mode="enforce"`` no input pair is ever stretched by more than ``max_lipschitz`` by what leaves the run:
    checkpoints of every kind, validation metrics and the module after ``fit`` are those of the certified weights
    nearest to the ones in training. In ``mode="regularize"`` the bound is free and priced:
    :math:`\mathrm{loss} + \mathrm{weight} \cdot L^2`; files hold the training weights and their certificate.

    How it works (Pauli, Koch, Berberich, Kohler, Allgöwer, "Training robust neural networks using Lipschitz bounds",
    L-CSS 2021): your optimizer trains the weights W; before each of its steps the gradient gets
    :math:`Y + r (W - \bar W)`, a pull towards certified weights :math:`\bar W`. Every ``every_n_steps`` optimizer
    steps, and at the end of every ``every_n_epochs``-th epoch, a *round* renews the multipliers of LipSDP, projects for
    a new :math:`\bar W`, and lets Y remember the difference. The pull is no part of the loss that you log, and gradient
    clipping comes after it.

    Logged, when validation starts or else when the training epoch ends:

    * ``admm/upper_bound``: certified, of the weights as they are written at that moment.
    * ``admm/primal_residual``: :math:`|W - \bar W|` over :math:`|W|` at the last round: how far the weights in training
      are from certified ones. Below 0.02 the two networks are the same for most purposes. While it stays high, the
      files are projected from far away and lose accuracy: raise ``penalty``, or make rounds more often.
    * ``admm/dual_residual``: how far :math:`\bar W` moved in the last round, times r, over :math:`|Y|`: how far the
      method is from having settled. While it stays high with a low primal residual, the pull is too strong: lower
      ``penalty``.
    * ``admm/seconds``: wall time spent in rounds and certificates since the last entry.

    What to set when accuracy drops: first ``penalty``, by factors of three (too high and the pull outweighs the loss
    from the start; too low and the weights drift away from what can be written; ``balance`` mends it on the way). Then
    ``every_n_steps=20``. A learning rate that decays to zero helps both residuals to vanish. Where the primal residual
    stays high all the same, as for bounds a hundredth of what training tends to,
    :class:`~lightning_lipschitz.LipschitzBarrier` does better. If accuracy on the training data is low as well, the
    bound is what costs it: compare with ``max_lipschitz`` doubled.

    In a checkpoint, ``checkpoint["admm"]`` holds the certificate and, under ``"training_weights"``, the raw weights of
    the constrained layers; ``fit(ckpt_path=...)`` goes on from those, exactly. ``state_dict`` is certified, so
    ``trainer.test(ckpt_path=...)`` and ``load_from_checkpoint``, also without this package, get certified weights.

    Args:
        max_lipschitz: the bound L > 0 of ``"enforce"``, l2 output change per l2 input change.
        mode: "enforce" or "regularize".
        weight: factor of L squared in the objective of ``"regularize"``.
        penalty: r, in units of loss per squared weight; where it starts, with ``balance``.
        every_n_epochs: a round at the end of each epoch whose number, from one, this divides.
        every_n_steps: a round after so many optimizer steps as well; None for epochs only, where rounds are slow (a
            round costs a LipSDP solve: 0.04 s for 196-50-10, seconds from a thousand units on; for other models than
            chains it is some thirty factorisations of a matrix of all inputs and units).
        module: dotted name of the submodule that is held to the bound; ``""`` for the model's ``forward``, or for its
            only child if it has none. Chains of ``nn.Linear`` are fastest; also residual connections, concatenations,
            convolutions, pooling, batch norm in evaluation mode, shared weights: see
            :func:`~lightning_lipschitz.project`.
        input: position or name of the one of several inputs that the bound is for. It holds for the others at their
            values in the first sample of ``example_input_array``, or else of the fit's first call; checkpoints keep it.
        output: see :func:`lightning_lipschitz.certify`: position or name of one of several, "all", or a function.
            Layers that it does not read stay free.
        balance: let the penalty follow the residuals: doubled or halved when one is three times the other. Bounds far
            below what training tends to need it.
        prog_bar: whether to show the upper bound in the progress bar.

    Attributes:
        history: one dictionary of plain Python values for every entry logged.
        certificate: the last, of the weights as they are written.

    Raises:
        MisconfigurationException: an argument; a ``module`` that does not exist; LBFGS; ``ModelPruning``; another
            callback that holds some of the same weights to a bound; FSDP, DeepSpeed or model parallelism, which this
            does not support yet.
        LipschitzError: at the start of the fit, or after the first batch: the submodule cannot be read, or holds
            layers that cannot be projected. While saving: weights that are NaN cannot meet any bound.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[LipschitzADMM(max_lipschitz=10.0)], accelerator="cpu", logger=False)
    """

    base = "admm"
    _keys = ("upper_bound", "primal_residual", "dual_residual", "seconds")

    def __init__(
        self,
        max_lipschitz: float | None = None,
        *,
        mode: Mode = "enforce",
        weight: float | None = None,
        penalty: float = 1e-2,
        every_n_epochs: int = 1,
        every_n_steps: int | None = 50,
        module: str = "",
        input: Input = None,
        output: Output = None,
        balance: bool = True,
        prog_bar: bool = True,
    ) -> None:
        super().__init__(module, input, output, prog_bar)
        owner = type(self).__name__
        require_choice(owner, "mode", mode, ("enforce", "regularize"))
        self._check_goal(owner, mode, max_lipschitz, weight)
        require_positive(owner, "penalty", penalty)
        require_count(owner, "every_n_epochs", every_n_epochs)
        if every_n_steps is not None:
            require_count(owner, "every_n_steps", every_n_steps)
        require_flag(owner, "balance", balance)
        self.max_lipschitz, self.mode, self.weight, self.penalty = max_lipschitz, mode, weight, penalty
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.balance = balance

    @staticmethod
    def _check_goal(owner: str, mode: str, max_lipschitz: float | None, weight: float | None) -> None:
        other = "None: it belongs to the other `mode`"
        if mode == "enforce":
            require_positive(owner, "max_lipschitz", max_lipschitz)
            require(weight is None, owner, "weight", weight, other)
        else:
            require_positive(owner, "weight", weight)
            require(max_lipschitz is None, owner, "max_lipschitz", max_lipschitz, other)

    def _begin(self) -> None:
        super()._begin()
        self._consensus: Consensus | None = None
        self._last_round = 0
        self._missed = False

    # Hooks

    def _hint(self, weights: BoundedWeights) -> Callable[[], Multipliers | None]:
        return lambda: None if self._consensus is None else self._consensus.multipliers

    def _forget(self) -> None:
        self._consensus = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        fit = self._fit
        if fit is None or not self._ready(fit, pl_module):
            return
        if self._missed:
            self._missed = False
            self._round(trainer)
        if self._consensus is None:
            return
        if fit.weights.is_trained_by(optimizer):
            weights = fit.weights.matrices()
            self._consensus = self._consensus.to(weights[0].device)  # a checkpoint, or rank 0, sends it to the CPU
            fit.weights.add_gradient(optimizer, self._consensus.pull(weights), gradient_scale(trainer, optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.every_n_steps is not None and trainer.global_step - self._last_round >= self.every_n_steps:
            self._round(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # A run that goes on from a file of the last batch of an epoch does not get to the end of that epoch.
        if batch_idx == 0:
            self._missed = trainer.current_epoch > 0 and self._is_due(trainer, trainer.current_epoch)

    def _is_due(self, trainer: Trainer, epochs: int) -> bool:
        """Whether a round belongs to the end of this epoch, counted from one, and was not made yet."""
        return epochs % self.every_n_epochs == 0 and trainer.global_step > self._last_round

    def end_epoch(self, trainer: Trainer) -> None:
        if self._is_due(trainer, trainer.current_epoch + 1):
            self._round(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end_epoch(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        far = self._consensus.primal_residual if self._consensus is not None else 0.0
        if self.mode == "enforce" and far > _FAR:
            self._warn(
                "far",
                f"the training weights did not come to meet `max_lipschitz={self.max_lipschitz:g}`: they are"
                f" {100 * far:.0f} % away from certified ones, to which the module and its files were projected."
                " Raise `penalty`, train longer, or allow a larger bound.",
            )

    # A round

    def _round(self, trainer: Trainer) -> None:
        fit = self._fit
        if fit is None or not fit.weights.traced:
            return
        self._last_round = trainer.global_step
        try:
            fit.weights.refresh(trainer.lightning_module)
        except LipschitzError as error:
            self._warn_of_round(trainer, str(error))
            return
        self._ready(fit, trainer.lightning_module)
        outcome = fit.timed(lambda: fit.ranks.once(lambda: self._advance(fit)))
        if isinstance(outcome, Failure):  # the pull of the last round goes on; what is written is certified anyway
            self._warn_of_round(trainer, outcome.sentence)
            return
        self._consensus = outcome

    def _warn_of_round(self, trainer: Trainer, sentence: str) -> None:
        self._warn("round", f"a round failed in epoch {trainer.current_epoch}, training goes on: {sentence}")

    def _advance(self, fit: Fit[BoundedWeights]) -> Consensus:
        weights = fit.weights.matrices()
        consensus = (self._consensus or Consensus.start(weights, self.penalty)).to(weights[0].device)
        problem = ConsensusProblem(self.max_lipschitz, self.weight, self.balance)
        moved = advance(fit.weights.stored, consensus, weights, fit.weights.network(), problem)
        return moved.to(torch.device("cpu")) if fit.ranks.many else moved

    # State

    def _values(self) -> dict[str, float]:
        consensus = self._consensus
        if consensus is None:
            return {"primal_residual": 0.0, "dual_residual": 0.0, "penalty": self.penalty}
        return {name: getattr(consensus, name) for name in ("primal_residual", "dual_residual", "penalty")}

    def state_dict(self) -> dict[str, Any]:
        consensus = None if self._consensus is None else self._consensus.plain()
        return super().state_dict() | {"consensus": consensus, "last_round": self._last_round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        consensus = state_dict["consensus"]
        self._consensus = None if consensus is None else Consensus.from_plain(consensus)
        self._last_round = state_dict["last_round"]
