"""What must be put away while a module is traced or run, and put back after it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

_NOISY = (
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
    "torch._export",
    "torch._subclasses.fake_tensor",
)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module that ``torch.compile`` wrapped."""
    while isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
        model = inner
    return model


def clean(path: str) -> str:
    """A dotted name without what ``torch.compile`` inserts."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast, no compilation and no logging, all of it put back at the end.

    Flags are set one module at a time: ``eval()`` and ``train()`` would overwrite a user's frozen submodules.
    """
    flags = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # A model that was made in inference mode can be traced nowhere else; any other, only outside.
        stack.enter_context(torch.inference_mode(any(p.is_inference() for p in model.parameters())))
        stack.enter_context(torch.no_grad())
        for device in {"cpu", *(p.device.type for p in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            stack.enter_context(_silent(module))
        try:
            for module, _ in flags:
                object.__setattr__(module, "training", False)
            yield
        finally:
            for module, training in flags:
                object.__setattr__(module, "training", training)


@contextlib.contextmanager
def _silent(module: torch.nn.Module) -> Iterator[None]:
    """A LightningModule (of either package) whose ``self.log`` does nothing."""
    names = ("log", "log_dict") if any(base.__name__ == "LightningModule" for base in type(module).__mro__) else ()
    own = {name: module.__dict__[name] for name in names if name in module.__dict__}
    module.__dict__.update(dict.fromkeys(names, _nothing))
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
        module.__dict__.update(own)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """torch.export prints the graph it fails on; the error that is raised says it better."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
