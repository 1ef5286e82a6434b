"""CLIPMixin: a word in a class line, and training is regularised by the steepest slopes found."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from lightning_lipschitz.lightning_tools.inputs import names_of
from lightning_lipschitz.lightning_tools.submodule import find_target
from lightning_lipschitz.mixins._config import PREFIX, ClipConfig, check_names, configured
from lightning_lipschitz.mixins._regulariser import Regulariser
from lightning_lipschitz.mixins._schedule import ClipSchedule

_MARK = "_clip_wrapped"


class CLIPMixin:
    r"""Cheap Lipschitz regularisation: inherit it, and nothing else changes.

    Training minimises :math:`\mathrm{loss} + \lambda \max_{(u, v)} |f(u) - f(v)| / |u - v|` over pairs of inputs that
    are drawn from training batches, kept, and pushed up-hill step by step (Bungert, Raab, Roith, Schwinn, Tenbrinck,
    "CLIP: cheap Lipschitz training of neural networks", SSVM 2021). The quotient is a LOWER bound of the Lipschitz
    constant: this lowers the constant, and proves nothing. For a proof add
    :class:`~lightning_lipschitz.LipschitzCallback` to the Trainer.

    The term is added to what ``training_step`` returns, after it: what you log in there is untouched. In manual
    optimization it is added to the first ``manual_backward`` of each training step, and again where an optimizer that
    was toggled lets other parameters take their turn: zero gradients after the step, not before the next backward.
    Whoever divides the loss by a number of batches divides ``clip_weight`` by it too. It follows precision,
    accumulation, clipping and distribution as your loss does. The model runs on the pairs in eval mode without
    autocast; its flags, buffers, gradients, ``state_dict`` keys and the global random numbers stay as they are.

    Settings (:class:`~lightning_lipschitz.mixins.ClipConfig` lists them): class keywords, class or instance attributes
    of the same names, or what :meth:`configure_clip` returns. The batch's inputs: its tensor, or its first as in ``(x,
    y)``, or what :meth:`clip_inputs` returns.

    Logged, when validation starts or else when the training epoch ends:

    * ``clip/lower_bound``: the steepest slope between the pairs with the weights of this moment;
    * ``clip/weight``: :math:`\lambda`;
    * ``clip/penalty``: the last penalty, before :math:`\lambda`.

    Checkpoints hold the pairs under ``callbacks``, and a resumed run goes on exactly. Of several processes each has
    pairs of its own; those of the first are saved, and the others draw new ones after a resume. The schedule goes by
    the mean of the metric over the processes.

    Raises:
        MisconfigurationException: a setting; a batch without floating-point inputs, or with others than the
            forward takes; a metric that is not logged.

    Example:
        >>> import pytorch_lightning as pl
        >>> class Net(CLIPMixin, pl.LightningModule, clip_weight=0.05):
        ...     pass
        >>> Net.clip_weight
        0.05
    """

    _clip: Regulariser | None = None
    _clip_depth = 0
    _clip_batch: Any = None
    _clip_reached: Set[int] = frozenset()  # parameters, by id

    def __init_subclass__(cls, **keywords: Any) -> None:
        settings = {name: keywords.pop(name) for name in list(keywords) if name.startswith(PREFIX)}
        check_names(name.removeprefix(PREFIX) for name in settings)
        super().__init_subclass__(**keywords)
        for name, value in settings.items():
            setattr(cls, name, staticmethod(value) if inspect.isfunction(value) else value)  # no method of the class
        for name, wrap in _WRAPPERS.items():
            method = getattr(cls, name, None)
            if method is not None and not getattr(method, _MARK, False) and not _is_stub(method):
                setattr(cls, name, wrap(method))

    def configure_clip(self) -> ClipConfig | Mapping[str, Any] | None:
        """Override to return settings that are known only when the module is made; None for those of the class."""
        return None

    def clip_inputs(self, batch: Any) -> Any:
        """The inputs of a batch, shape (batch, ...): where pairs are drawn. With ``clip_input``, all inputs."""
        if not isinstance(batch, (tuple, list)) or not batch:
            return batch
        config = None if self._clip is None else self._clip.config
        if config is None or config.input is None:
            return batch[0]
        target = find_target(self, config.module, "CLIPMixin")  # type: ignore[arg-type]
        return tuple(batch[: len(names_of(target))])

    def _start_clip(self, rank: int) -> Regulariser:
        self._clip = Regulariser(configured(self), rank)
        return self._clip

    def _clip_term(self, batch: Any) -> Tensor | None:
        """What to add to the loss of this batch; None outside of ``fit``."""
        trainer = getattr(self, "_trainer", None)
        if self._clip is None or trainer is None or trainer.state.fn != "fit" or not trainer.training:
            return None
        # not `global_step`, which runs faster with several optimizers
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        return self._clip.term(self, self.clip_inputs(batch), step)  # type: ignore[arg-type]

    def _clip_manual_term(self) -> Tensor | None:
        """What to add in this ``manual_backward``: each parameter gets the penalty once in a training step."""
        if self._clip is None or not self._clip_batch:
            return None
        trained = self._clip.trained(self)  # type: ignore[arg-type]
        if trained <= self._clip_reached:
            return None
        self._clip_reached = self._clip_reached | trained
        return self._clip_term(*self._clip_batch)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Left to Python, with all that it calls, where the module is compiled."""
    left: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return left


def _skipped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Left to Python; what it calls is compiled as it would be without the mixin."""
    left: Callable[..., Any] = torch.compiler.disable(function, recursive=False)  # type: ignore[no-untyped-call]
    return left


def _training_step(method: Callable[..., Any]) -> Callable[..., Any]:
    """The term is added once, by the outermost of a chain of ``super().training_step()``."""

    @_skipped
    @functools.wraps(method)  # Lightning looks for `batch_idx` and `dataloader_iter` among the arguments
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._clip_depth:
            return method(self, *args, **kwargs)
        self._clip_depth, self._clip_batch, self._clip_reached = 1, (*args, *kwargs.values())[:1], set()
        try:
            output = method(self, *args, **kwargs)
            return _added(output, self, self._clip_batch) if self.automatic_optimization else output
        finally:
            self._clip_depth, self._clip_batch = 0, None

    setattr(training_step, _MARK, True)
    return training_step


@_uncompiled
def _added(output: Any, module: Any, batch: Any) -> Any:
    """The output with the term in its loss; None, by which a step is skipped, stays None."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    term = module._clip_term(*batch) if loss is not None and batch else None
    if term is None:
        return output
    return {**output, "loss": loss + term} if isinstance(output, Mapping) else loss + term


def _manual_backward(method: Callable[..., Any]) -> Callable[..., Any]:
    @_uncompiled
    @functools.wraps(method)
    def manual_backward(self: Any, loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        term = self._clip_manual_term()
        return method(self, loss if term is None else loss + term, *args, **kwargs)

    setattr(manual_backward, _MARK, True)
    return manual_backward


def _configure_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def configure_callbacks(self: Any) -> Any:
        given = method(self)
        callbacks = list(given) if isinstance(given, (list, tuple)) else [given]
        ours = any(isinstance(callback, ClipSchedule) for callback in callbacks)
        return callbacks if ours else [*callbacks, ClipSchedule()]

    setattr(configure_callbacks, _MARK, True)
    return configure_callbacks


def _is_stub(method: Callable[..., Any]) -> bool:
    """Lightning's own ``training_step``, of either package: a module with that one only is not trained."""
    return method.__qualname__ == "LightningModule.training_step"


_WRAPPERS = {
    "training_step": _training_step,
    "manual_backward": _manual_backward,
    "configure_callbacks": _configure_callbacks,
}
