"""What must be put away while a module is traced or run, and put back after it."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_lipschitz.errors import ExtractionError, LipschitzError
from lightning_lipschitz.extraction.state import ModelState

#: One reading at a time: it puts a model into evaluation mode, and torch.export is not made for two threads.
READING = threading.RLock()

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


def tensors_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the model, tied ones under every name."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def computes_in(model: torch.nn.Module, otherwise: Tensor) -> Tensor:
    """A tensor of the device and dtype that the model computes in; ``otherwise`` where it has no parameters.

    It is the largest parameter: a model of float32 may hold a scalar of float64 that NumPy made, and one of bfloat16
    the norms of float32.
    """
    return max((p for p in model.parameters() if p.is_floating_point()), key=Tensor.numel, default=otherwise)


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
def undisturbed(model: torch.nn.Module) -> Iterator[bool]:
    """Evaluation mode, no gradients, no autocast, no compilation, no logging; everything is put back at the end.

    Evaluation mode is what the model's own ``eval()`` makes of it. What is put back are the flags of every module by
    itself, for ``train()`` would overwrite a user's frozen submodules, and the Python state of :mod:`state`: what the
    forward keeps (counters, cached features), what ``eval()`` changes, and what torch.export replaces by a copy.

    Yields:
        Whether ``eval()`` has changed the values of parameters or buffers, as a layer does that merges its adapters.

    Raises:
        ExtractionError: ``eval()`` fails.
    """
    with READING, contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        # A model that was made in inference mode can be traced nowhere else; any other, only outside.
        stack.enter_context(torch.inference_mode(any(p.is_inference() for p in model.parameters())))
        stack.enter_context(torch.no_grad())
        devices = {p.device for p in model.parameters()} - {torch.device("meta")}
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        for device in {"cpu", *(d.type for d in devices)}:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        state = ModelState(model, values=any(_has_own_mode(module) for module in model.modules()))
        stack.callback(state.restore)
        _evaluate(model)
        for module in model.modules():
            if any(base.__name__ == "LightningModule" for base in type(module).__mro__):  # of either package
                module.__dict__.update(log=_nothing, log_dict=_nothing)
        weights = {*map(id, model.parameters()), *map(id, model.buffers())}
        yield any(id(owner) in weights for owner, *_ in state.changes())


def _has_own_mode(module: torch.nn.Module) -> bool:
    """Whether ``train`` or ``eval`` is code of the module's own."""
    plain = torch.nn.Module
    return type(module).train is not plain.train or type(module).eval is not plain.eval


def _evaluate(model: torch.nn.Module) -> None:
    if isinstance(model, torch.fx.GraphModule):  # an exported one refuses, and its graph is what it is
        for module in model.modules():
            module.__dict__["training"] = False
        return
    try:
        model.eval()
    except LipschitzError:
        raise
    except Exception as error:
        reason = f"its `eval()` fails: {type(error).__name__}: {error}."
        raise ExtractionError(name_of(model), reason, "A bound is of the model in evaluation mode.") from error


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


class _Muted:
    """A stream that is silent in one thread, until it is taken away."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()
        self.over = False

    def write(self, text: str) -> int:
        if not self.over and threading.get_ident() == self._thread:
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """torch.export prints the graph it fails on; the error that is raised says it better.

    Other threads go on printing.
    """
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    before = sys.stdout, sys.stderr
    muted = _Muted(sys.stdout), _Muted(sys.stderr)
    sys.stdout, sys.stderr = muted
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for stream in muted:
            stream.over = True
        if sys.stdout is muted[0]:
            sys.stdout = before[0]
        if sys.stderr is muted[1]:
            sys.stderr = before[1]
