"""Running a module on inputs of our own without a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

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


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
