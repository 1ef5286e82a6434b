"""Run the extracted network beside the model: they must agree, or there is no network."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from lightning_lipschitz.errors import ExtractionError
from lightning_lipschitz.extraction.reading import Runnable
from lightning_lipschitz.extraction.state import ModelState, kept
from lightning_lipschitz.extraction.trace import Trace
from lightning_lipschitz.extraction.undisturbed import computes_in, name_of
from lightning_lipschitz.extraction.widened import Unwritten, Widened
from lightning_lipschitz.graph.arrays import Array

_SCALES = (1.0, 0.1, 1.0, 10.0)  # of the random samples of a quick check: the first goes alone, the others together
_BATCHES = (1, 2, 3, 17, 64)  # of a wide one
_MORE = (4, 8, 16, 32, 100, 128, 256, 300)  # of a model whose Python may have looked at the number
_DECADES = 6.0  # a wide check looks at samples of 10^-6 to 10^6
_ENTRIES = 2**24  # computed at once: a larger batch of a large model is left out
_NOISE = 2.0**-30  # relative disturbance that shows how much rounding, at its own scale, moves the outputs
_ROUNDING = 2.0**10  # roundings that may pile up in one product, as a multiple of the resolution
_FEW = 8.0  # roundings of an output at the scale of one
_CALLS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 32, 64, 100, 1_000, 10_000, 1_000_000)  # further ones, of a model that counts

Weights = Mapping[str, torch.Tensor]


def check(
    model: torch.nn.Module,
    weights: Weights,
    extraction: Runnable[Any],
    shape: tuple[int, ...],
    trace: Trace,
    *,
    wide: bool,
) -> None:
    """Compare on random inputs; the model must be :func:`~.undisturbed.undisturbed`.

    The model runs in float64 (its parameters and buffers are cast for the time of the call), so a difference is an
    error and not rounding; if its code insists on another dtype it runs in its own.

    Args:
        model: evaluated without touching its parameters, buffers, flags or Python state.
        weights: parameters and buffers by name.
        extraction: what should agree with it.
        shape: of one input sample.
        trace: that was read.
        wide: at many orders of magnitude, with batches of several sizes, with gradients and without, and in the state
            that further calls would leave; otherwise a sample or three at the scale of one.

    Raises:
        ExtractionError: the two differ, or the model cannot run with such a batch.
    """
    if not wide:
        x = _samples(_SCALES, shape)
        for part in (x[:1], x[1:]):
            _compare(model, weights, extraction, part, "no_grad", trace.dtype)
        return
    largest = _ENTRIES * 2 // max(trace.execution.entries, 1)
    for number, batch in enumerate(_BATCHES + _MORE * trace.fixed):
        if batch <= 3 or batch <= largest:
            scales = 10.0 ** np.linspace(-_DECADES, _DECADES, batch) if batch > 3 else _SCALES[:batch]
            mode = "grad" if number % 2 else "no_grad"
            _compare(model, weights, extraction, _samples(scales, shape), mode, trace.dtype)
    x = _samples(_SCALES[1:3], shape)
    _compare(model, weights, extraction, x, "inference", trace.dtype)
    for _ in _later(model, weights, x, trace.dtype):
        _compare(model, weights, extraction, x, "no_grad", trace.dtype)


def _samples(scales: Any, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(scales), *shape, generator=generator, dtype=torch.float64)
    return x * torch.as_tensor(scales, dtype=torch.float64).reshape(-1, *[1] * len(shape))


def _compare(
    model: torch.nn.Module, weights: Weights, extraction: Runnable[Any], x: torch.Tensor, mode: str, dtype: torch.dtype
) -> None:
    """In every sample by itself: what rounding explains of a large one must not hide a difference in a small one."""
    try:
        found, resolution = evaluate(model, weights, x, mode, dtype)
    except ExtractionError:
        if mode == "inference":  # nobody can call it in a mode in which it, or its device, does not run
            return
        raise
    flat = x.reshape(len(x), -1).numpy()
    with np.errstate(all="ignore"):
        ours, blurred = extraction(flat), extraction(flat, noise=_NOISE)
        sensitivity = np.maximum(np.abs(ours), np.abs(blurred - ours) / _NOISE)
    share = min(_ROUNDING * max(resolution, extraction.resolution), 0.1)
    same = found.shape == ours.shape
    usable = np.isfinite(found) & np.isfinite(ours) & np.isfinite(sensitivity) if same else np.zeros((1, 1), dtype=bool)
    if usable.any():
        allowed = share * np.where(usable, sensitivity, 0.0).max(axis=1)
        difference = np.where(usable, np.abs(found - ours), 0.0).max(axis=1)
        if (difference <= allowed).all():
            return
        allowed = allowed + _floor(extraction, flat, resolution)
        if (difference <= allowed).all():
            return
        worst = int(np.argmax(difference - allowed))
        found_out = f"difference {difference[worst]:.3g}, rounding would explain {allowed[worst]:.3g}"
    else:
        found_out = "no finite output" if same else f"shapes {found.shape} and {ours.shape}"
    raise ExtractionError(
        name_of(model),
        f"the network read from it does not reproduce it on {len(found)} random samples ({found_out}).",
        "Does its forward depend on the batch size, on a global state, or on anything but its input?",
    )


def _floor(extraction: Runnable[Any], flat: Array, resolution: float) -> float:
    """What vanishes beside the outputs of common inputs: ``log(1 + exp(x))`` is zero where ``softplus`` is 10^-20."""
    with np.errstate(all="ignore"):
        common = extraction(_samples(_SCALES[:1], flat.shape[1:]).numpy())
    return _FEW * resolution * float(np.abs(common[np.isfinite(common)]).max(initial=0.0))


def evaluate(
    model: torch.nn.Module, weights: Weights, x: torch.Tensor, mode: str, dtype: torch.dtype
) -> tuple[Array, float]:
    """Outputs of an undisturbed model with given tensors, shape (batch, outputs), and the resolution of the dtype that
    it ran in: float64, or its own where its code insists on that.

    Raises:
        ExtractionError: it runs in neither.
    """
    error: Exception | None = None
    for cast in _casts(model, x, dtype):
        try:
            with kept(model):
                return _outputs(model, weights, cast, mode, dtype), torch.finfo(cast.dtype).eps
        except Exception as raised:
            error = error or raised
    advice = "The forward must work for every batch size."
    if isinstance(model, torch.fx.GraphModule):
        advice += " An exported module may keep that of its example: give the nn.Module that it was made from."
    raise ExtractionError(name_of(model), f"it fails on a batch of {len(x)}: {error}.", advice) from error


def _casts(model: torch.nn.Module, x: torch.Tensor, own: torch.dtype) -> Iterator[torch.Tensor]:
    """In float64, then in what the model itself computes in, for code that insists on it."""
    device = computes_in(model, x).device
    for dtype in dict.fromkeys((torch.float64, own)):
        yield x.to(device, dtype)


def _outputs(model: torch.nn.Module, weights: Weights, x: torch.Tensor, mode: str, own: torch.dtype) -> Array:
    is_bound = any(p.is_inference() for p in model.parameters())  # such a model runs in no other mode
    with torch.inference_mode(mode == "inference" or is_bound), torch.set_grad_enabled(mode == "grad" and not is_bound):
        cast = {
            name: tensor.detach().to(x.device, x.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
            for name, tensor in weights.items()
        }
        with Unwritten(), contextlib.nullcontext() if x.dtype == own else Widened(own):
            y = functional_call(model, cast, (x.clone(),), tie_weights=False)
        return np.asarray(y.detach().to("cpu", torch.float64).reshape(len(x), -1).numpy())


def _later(model: torch.nn.Module, weights: Weights, x: torch.Tensor, dtype: torch.dtype) -> Iterator[None]:
    """Put the model into the state that it would be in after more calls, if a call changes its state at all.

    Two calls are made. Numbers and tensors that they change go on changing at that rate, lists and the like go on
    growing.
    """
    with kept(model) as before:
        _run_on(model, weights, x, dtype)
        changes = [each for each in before.changes() if _goes_on(*each[2:])]
        if not changes:
            return
        yield
        _run_on(model, weights, x, dtype)
        yield
    for calls in _CALLS:
        with kept(model):
            for owner, key, was, now in changes:
                _advance(owner, key, was, now, calls)
            yield


def _run_on(model: torch.nn.Module, weights: Weights, x: torch.Tensor, dtype: torch.dtype) -> None:
    """A call whose effect on the state stays."""
    for cast in _casts(model, x, dtype):
        state = ModelState(model)
        try:
            _outputs(model, weights, cast, "no_grad", dtype)
            return
        except Exception:
            state.restore()


def _goes_on(was: Any, now: Any) -> bool:
    numbers = (bool, int, float)
    return (
        (type(was) in (*numbers, type(None)) and type(now) in numbers)
        or (isinstance(now, torch.Tensor) and isinstance(was, torch.Tensor) and now.shape == was.shape)
        or (isinstance(now, np.ndarray) and isinstance(was, np.ndarray) and now.shape == was.shape)
        or (isinstance(now, (list, set)) and isinstance(was, type(now)) and len(now) != len(was))
    )


def _advance(owner: Any, key: Any, was: Any, now: Any, calls: int) -> None:
    """The state after so many calls in place of the one that was made."""
    if isinstance(now, list) and key is None:
        owner[:] = list(was) + list(now[len(was) :]) * min(calls + 1, 100)
    elif isinstance(now, set) and key is None:
        owner |= now
    elif isinstance(now, (torch.Tensor, np.ndarray)):
        later = was + ((now - was) * (calls + 1)) if now.dtype not in (torch.bool, np.bool_) else now
        if key is None:
            owner[...] = later
        else:
            owner[key] = later
    else:
        owner[key] = now if isinstance(now, bool) else copy.copy((was or 0) + (now - (was or 0)) * (calls + 1))
