"""LipschitzScale: training under a certified Lipschitz bound at any size, by one number that multiplies the output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer, isolated_rng
from lightning_lipschitz.callbacks._bounded_training import BoundedTraining, Fit
from lightning_lipschitz.callbacks._certified_weights import Certifier, LastLayerScaler
from lightning_lipschitz.callbacks._held_weights import trained_by
from lightning_lipschitz.callbacks._last_layer_weights import LastLayerWeights
from lightning_lipschitz.callbacks._training_factor import TrainingFactor
from lightning_lipschitz.differentiable import BoundMethod, DifferentiableBound
from lightning_lipschitz.extraction import Input, Output
from lightning_lipschitz.extraction.undisturbed import unwrapped
from lightning_lipschitz.graph import Graph
from lightning_lipschitz.lightning_tools.arguments import require, require_choice, require_positive
from lightning_lipschitz.lightning_tools.inputs import arguments_of
from lightning_lipschitz.lightning_tools.submodule import Choice, find_target


class LipschitzScale(BoundedTraining[LastLayerWeights]):
    r"""Train under a certified Lipschitz bound, with any layers and at any size; files and final module meet it.

    While training, the loss sees :math:`f(x) \min(1, L / b(W))`, b a differentiable bound of the module f
    (:class:`~lightning_lipschitz.DifferentiableBound`) and L ``max_lipschitz``: the factor is part of the graph, so
    that your optimizer minimises the loss of a network that always meets the bound. What is validated and what is
    written is f with the weight and the bias of its last affine layer multiplied by one number, at most 1, such that
    the bound is *certified*. That multiplies every output and changes no argmax. No pull, no penalty, no projection,
    nothing to set; your optimizer, gradients and random numbers are as they were.

    The module has to end in an affine layer: ``nn.Linear``, a convolution, a batch norm with weights, possibly followed
    by what multiples pass through (reshapes, pooling, dropout, upsampling, ReLU). It is found by trial, and a softmax
    at the end, ``x + g(x)`` or a spectral norm on the last layer are refused: name the part with ``module=``, or take
    :class:`LipschitzADMM`. For regression, where the size of outputs matters, training has seen the size that b stands
    for; what is written has the larger one, up to L, that the certificate allows.

    A step costs b, and each validation or save two certificates (of the weights in training, and of what is written).

    Logged, when validation starts or else when the training epoch ends:

    * ``scale/upper_bound``: certified, of the weights as they are written at that moment.
    * ``scale/factor``: what the last layer is multiplied by in what is written; 1 where it meets the bound as it is.
    * ``scale/training_bound``: b(W) of the last training batch. It proves nothing.

    In a checkpoint, ``checkpoint["scale"]`` holds the certificate and, under ``"training_weights"``, the last layer as
    it is trained; ``fit(ckpt_path=...)`` goes on from that, exactly. ``state_dict`` is certified, so
    ``trainer.test(ckpt_path=...)`` and ``load_from_checkpoint``, also without this package, get certified weights.

    Args:
        max_lipschitz: the bound L > 0, l2 output change per l2 input change.
        bound: b, as the ``method`` of :class:`~lightning_lipschitz.DifferentiableBound`: "sweep", "product" or "auto".
            "auto" is "product" for models that are certified node by node.
        module: dotted name of the submodule that is held to the bound; ``""`` for the model's ``forward``, or for its
            only child if it has none. Any that :func:`~lightning_lipschitz.certify` reads.
        input: position or name of the one of several inputs that the bound is for. It holds for the others at their
            values in the first sample of ``example_input_array``, or else of the fit's first call; checkpoints keep it.
        output: position or name of one of several outputs, which is the one that is multiplied, or "all".
        prog_bar: whether to show the upper bound in the progress bar.

    Attributes:
        history: one dictionary of plain Python values for every entry logged.
        certificate: the last, of the weights as they are written.

    Raises:
        MisconfigurationException: an argument; a ``module`` that does not exist, or that the first training step does
            not call; ``ModelPruning``; another callback that holds some of the same weights to a bound; FSDP, DeepSpeed
            or model parallelism, which this does not support yet.
        LipschitzError: at the start of the fit, or in the first batch: the submodule cannot be read, or does not end in
            an affine layer. While saving: weights that are NaN cannot meet any bound.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[LipschitzScale(max_lipschitz=5.0)], accelerator="cpu", logger=False)
    """

    base = "scale"
    _keys = ("upper_bound", "factor", "training_bound")
    max_lipschitz: float

    def __init__(
        self,
        max_lipschitz: float,
        *,
        bound: BoundMethod = "auto",
        module: str = "",
        input: Input = None,
        output: Output = None,
        prog_bar: bool = True,
    ) -> None:
        super().__init__(module, input, output, prog_bar)
        owner = type(self).__name__
        require_positive(owner, "max_lipschitz", max_lipschitz)
        require_choice(owner, "bound", bound, get_args(BoundMethod))
        accepted = "the position (an int >= 0) or the name of an output, 'all', or None: it is multiplied"
        require(not callable(output), owner, "output", output, accepted)
        self.max_lipschitz, self.bound = max_lipschitz, bound

    def _begin(self) -> None:
        super()._begin()
        self._scaler: LastLayerScaler | None = None
        self._hooks: TrainingFactor | None = None
        self._seen = False
        self._forget()

    def _forget(self) -> None:
        self._in_loss: DifferentiableBound | None = None
        self._restored: dict[str, Any] | None = None
        self._last: Tensor | None = None  # b(W) of the last training batch

    def _written(self, many: bool) -> tuple[LastLayerWeights, Certifier]:
        weights = LastLayerWeights(Choice.of(self), type(self).__name__, self.max_lipschitz, many)
        self._scaler = LastLayerScaler(weights, self.max_lipschitz)
        return weights, self._scaler

    # Life of a fit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._fit is None:
            return
        if self._fit.weights.traced:
            self._bound_in_loss(self._fit, pl_module)  # what has no such bound is refused before training
        self._hooks = TrainingFactor(self.output, partial(self._factor, self._fit, pl_module))
        self._hooks.attach(find_target(pl_module, self.module, type(self).__name__))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._hooks is not None:
            self._hooks.open()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._fit is None or self._in_loss is None:
            return
        target = self._fit.weights.submodule.target(pl_module)
        if not trained_by(optimizer).isdisjoint(map(id, target.parameters())):
            self._in_loss.step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._fit is not None and self._hooks is not None:
            self._hooks.close()
            self._require_called(self._fit, self._hooks, pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._let_go()
        super().teardown(trainer, pl_module, stage)

    def _let_go(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None
        if self._in_loss is not None:  # it knows the module; what it has learnt is still saved after the fit
            self._restored = self._in_loss.state_dict()
            self._in_loss.close()
            self._in_loss = None

    # A step

    def _factor(
        self,
        fit: Fit[LastLayerWeights],
        model: LightningModule,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor | None:
        """What a call of the module in a training batch is multiplied by; None for one."""
        submodule = fit.weights.submodule
        if not submodule.knows_input:  # compiled: the hook that takes the input was left out
            submodule.inputs.take(arguments_of(unwrapped(module), args, kwargs), unwrapped(module))
        if not self._ready(fit, model):
            return None
        with torch.autocast(model.device.type, enabled=False):
            b = self._bound_in_loss(fit, model)()
        self._last = b.detach()
        # No graph where the factor is one: a bound of zero has no gradient.
        return self.max_lipschitz / b if bool(b > self.max_lipschitz) else None

    def _bound_in_loss(self, fit: Fit[LastLayerWeights], model: LightningModule) -> DifferentiableBound:
        if self._in_loss is None:
            with isolated_rng():
                self._in_loss = DifferentiableBound(*fit.weights.submodule.part(model), method=self._method(fit))
            restored, self._restored = self._restored, None
            if restored is not None:
                self._in_loss.load_state_dict(restored)
        return self._in_loss

    def _method(self, fit: Fit[LastLayerWeights]) -> BoundMethod:
        """The bound that is nearest to what certifies the files: of a model that is certified node by node, a sweep
        would be far below it, and take longer."""
        composed = self.bound == "auto" and isinstance(fit.weights.network(), Graph)
        return "product" if composed else self.bound

    def _require_called(self, fit: Fit[LastLayerWeights], hooks: TrainingFactor, model: LightningModule) -> None:
        """Never silently off.

        Raises:
            MisconfigurationException: the module was trained and not called.
        """
        self._seen = self._seen or hooks.calls > 0
        target = find_target(model, self.module, type(self).__name__)
        if self._seen or all(parameter.grad is None for parameter in target.parameters()):
            return
        raise MisconfigurationException(
            f"`LipschitzScale(module={self.module!r})` multiplies what `{type(unwrapped(target)).__name__}` returns in"
            " training, and `training_step` has not called it in training mode: it was trained without the bound. Call"
            " it there as a whole, or name the submodule that is called."
        )

    # State

    def _values(self) -> dict[str, float]:
        answer = None if self._scaler is None else self._scaler.answer
        if self._last is None and self._in_loss is not None:  # no batch yet
            with torch.no_grad():
                self._last = self._in_loss()
        last = float("nan") if self._last is None else float(self._last)
        return {"factor": 1.0 if answer is None else answer.factor, "training_bound": last}

    def state_dict(self) -> dict[str, Any]:
        bound = self._restored if self._in_loss is None else self._in_loss.state_dict()
        last = None if self._last is None else self._last.cpu()
        return super().state_dict() | {"bound": bound, "training_bound": last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._last, self._restored = state_dict["training_bound"], state_dict["bound"]
        if self._in_loss is not None and self._restored is not None:
            self._in_loss.load_state_dict(self._restored)

    def __getstate__(self) -> dict[str, Any]:
        run = {"_scaler": None, "_hooks": None, "_in_loss": None}
        return super().__getstate__() | run
