"""What must be put away while a module is traced or run, and put back after it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import torch

from lightning_lipschitz.errors import ExtractionError

_CONTAINERS = (list, dict, set, OrderedDict, deque)
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
    """A dotted name without what ``torch.compile`` and ``part.Part`` insert."""
    return ".".join(part for part in path.split(".") if part not in ("_orig_mod", "_certified_part"))


def name_of(model: torch.nn.Module) -> str:
    """Its class, or that of the model that it is a part of."""
    return type(getattr(model, "_certified_part", model)).__name__


def refuse_script(model: torch.nn.Module) -> None:
    """TorchScript has no Python to trace.

    Raises:
        ExtractionError: the model is, or holds, such a module.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"`{path}`" if path else name_of(model)
            raise ExtractionError(where, "it is a TorchScript module.", "Give the nn.Module it was made from.")


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast, no compilation, no logging; every attribute is put back at the end.

    Flags are set one module at a time: ``eval()`` and ``train()`` would overwrite a user's frozen submodules.
    Attributes include what the forward itself keeps (counters, cached features) and what torch.export replaces by a
    copy.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # A model that was made in inference mode can be traced nowhere else; any other, only outside.
        stack.enter_context(torch.inference_mode(any(p.is_inference() for p in model.parameters())))
        stack.enter_context(torch.no_grad())
        for device in {"cpu", *(p.device.type for p in model.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in list(model.modules()):
            stack.enter_context(_remembered(module))
            module.__dict__["training"] = False
            if any(base.__name__ == "LightningModule" for base in type(module).__mro__):  # of either package
                module.__dict__.update(log=_nothing, log_dict=_nothing)
        yield


@contextlib.contextmanager
def _remembered(module: torch.nn.Module) -> Iterator[None]:
    """Put back a module's attributes, and the contents of those that are plain containers."""
    attributes = dict(module.__dict__)
    contents = [(each, copy.copy(each)) for each in attributes.values() if type(each) in _CONTAINERS]
    try:
        yield
    finally:
        for name in module.__dict__.keys() - attributes.keys():
            del module.__dict__[name]
        module.__dict__.update(attributes)
        for container, before in contents:
            _put_back(container, before)


def _put_back(container: Any, before: Any) -> None:
    """The contents of a list, dictionary or set, without replacing the object that others may hold."""
    now, then = ([*each, *(each.values() if isinstance(each, dict) else ())] for each in (container, before))
    same = len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
    if not same:
        container.clear()
        (container.extend if hasattr(container, "extend") else container.update)(before)


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
