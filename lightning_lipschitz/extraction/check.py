"""Run the extracted network beside the model: they must agree, or there is no network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.func import functional_call

from lightning_lipschitz.errors import ExtractionError
from lightning_lipschitz.extraction.result import Extraction
from lightning_lipschitz.extraction.undisturbed import name_of, undisturbed
from lightning_lipschitz.network import Array

_SCALES = (1.0, 0.1, 1.0, 10.0)  # of the four random samples: the first goes alone, the others together
_NOISE = 2.0**-30  # relative disturbance that shows how much rounding, at its own scale, moves the outputs
_ROUNDING = 2.0**10  # roundings that may pile up in one product, as a multiple of the resolution


def check(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor], extraction: Extraction, shape: tuple[int, ...]
) -> None:
    """Compare on random inputs, in batches of one and of three.

    The model runs in float64 (its parameters and buffers are cast for the time of the call), so a difference is an
    error and not rounding; if its code insists on another dtype it runs in its own.

    Args:
        model: evaluated without touching its parameters, buffers or flags.
        weights: parameters and buffers by name.
        extraction: what should agree with it.
        shape: of one input sample.

    Raises:
        ExtractionError: the two differ, or the model cannot run with one sample or with three.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(_SCALES), *shape, generator=generator, dtype=torch.float64)
    x = x * torch.tensor(_SCALES, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    flat = x.reshape(len(x), -1).numpy()
    with np.errstate(all="ignore"):
        ours, blurred = extraction(flat), extraction(flat, noise=_NOISE)
        sensitivity = np.maximum(np.abs(ours), np.abs(blurred - ours) / _NOISE)
    for part in (slice(0, 1), slice(1, None)):
        found, resolution = _run(model, weights, x[part])
        allowed = min(_ROUNDING * max(resolution, extraction.resolution), 0.1) * sensitivity[part].max(initial=0.0)
        _compare(name_of(model), found, ours[part], float(allowed))


def _run(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> tuple[Array, float]:
    like = next((p for p in model.parameters() if p.is_floating_point()), x)
    error: Exception | None = None
    for dtype in dict.fromkeys((torch.float64, like.dtype)):
        cast = {
            name: tensor.to(like.device, dtype) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in weights.items()
        }
        cast = {name: tensor.clone() if tensor is weights[name] else tensor for name, tensor in cast.items()}
        try:
            with undisturbed(model):
                y = functional_call(model, cast, (x.to(like.device, dtype, copy=True),), tie_weights=False)
            return y.detach().to("cpu", torch.float64).reshape(len(x), -1).numpy(), torch.finfo(dtype).eps
        except Exception as raised:
            error = error or raised
    advice = "The forward must work for every batch size."
    if isinstance(model, torch.fx.GraphModule):
        advice += " An exported module may keep that of its example: give the nn.Module that it was made from."
    raise ExtractionError(name_of(model), f"it fails on a batch of {len(x)}: {error}.", advice) from error


def _compare(model: str, found: Array, expected: Array, allowed: float) -> None:
    usable = np.isfinite(found) & np.isfinite(expected) if found.shape == expected.shape else np.zeros(1, dtype=bool)
    difference = float(np.abs(found - expected)[usable].max()) if usable.any() else np.inf
    if difference <= allowed:
        return
    raise ExtractionError(
        model,
        f"the network read from it does not reproduce it on {len(found)} random samples (difference {difference:.3g}, "
        f"rounding would explain {allowed:.3g}).",
        "Does its forward depend on the batch size, on a global state, or on anything but its input?",
    )
