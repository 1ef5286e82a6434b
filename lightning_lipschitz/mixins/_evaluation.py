"""Running a module on inputs of our own without a trace in it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.extraction.undisturbed import unwrapped

_LOGS = ("log", "log_dict")


@contextlib.contextmanager
def evaluating(root: nn.Module, target: nn.Module, device: str) -> Iterator[None]:
    """``target`` in eval mode, autocast and compilation off, ``self.log`` of ``root`` mute; all put back after.

    Flags are set one module at a time: ``eval()`` and ``train()`` would overwrite a user's frozen submodules. The
    lighter sister of :func:`lightning_lipschitz.extraction.undisturbed.undisturbed`, for every training step.
    """
    training = [module for module in target.modules() if module.training]
    kept = {name: root.__dict__[name] for name in _LOGS if name in root.__dict__}
    for module in training:
        module.training = False
    root.__dict__.update(dict.fromkeys(_LOGS, _nothing))
    try:
        with torch.autocast(device, enabled=False), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True
        for name in _LOGS:
            del root.__dict__[name]
        root.__dict__.update(kept)


class OneTensor:
    """A module as a function of one tensor of samples that returns one; what is in the way is told in the user's words.

    Args:
        target: the module.
        name: its name in the model, "" for the model itself.
        whole: the module itself, where ``target`` is that with one of its inputs or outputs chosen.

    Example:
        >>> OneTensor(nn.Linear(2, 1), "net")(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """

    def __init__(self, target: nn.Module, name: str, whole: nn.Module | None = None) -> None:
        self._target, self._name, self._whole = target, name, target if whole is None else whole

    def __call__(self, x: Tensor) -> Tensor:
        try:
            outputs = self._target(x)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # the user's code, on inputs that it may not be made for
            told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise self._misconfigured(x, f"which failed: {told}") from error
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            found = f"a tensor of {outputs.dtype}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise self._misconfigured(x, f"which returned {found} and not one tensor of floating-point outputs")
        if outputs.ndim == 0 or len(outputs) != len(x):
            raise self._misconfigured(x, f"which returned shape {tuple(outputs.shape)} and not an output a sample")
        return outputs

    def _misconfigured(self, x: Tensor, what: str) -> MisconfigurationException:
        module = unwrapped(self._whole)
        where = f"{type(module).__name__}.forward({', '.join(inspect.signature(module.forward).parameters)})"
        named = f"`{where}` of `{self._name}`" if self._name else f"`{where}`"
        return MisconfigurationException(
            f"`CLIPMixin` took inputs of shape {tuple(x.shape[1:])} from the batch to {named}, {what}."
            " Override `clip_inputs(self, batch)` to return one tensor of what it takes, name one of several inputs and"
            " outputs with `clip_input` and `clip_output`, or with `clip_module` a submodule of one input and one"
            " output whose slope is meant."
        )


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
