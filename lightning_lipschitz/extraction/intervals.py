"""Intervals that hold every value of a node, whatever the input of the model.

They make products Lipschitz: a gate ``sigmoid(x) * tanh(y)``, the states of a recurrent layer after a number of steps,
a quotient by what stays away from zero. Units say between which numbers their results lie (a rule notes it in
``Builder.intervals``); affine nodes carry intervals on, with centre c and radius r as ``W c`` and ``|W| r``. What
rounding may add is a billionth of ``|W| (|c| + r)``: no sum of fewer than four million terms rounds by more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch

from lightning_lipschitz.extraction.builder import Builder, Interval
from lightning_lipschitz.extraction.reading import Known, on_device, run_node
from lightning_lipschitz.graph import Along, Convolution, Elementwise, Input, Node, Scaling, Sum, VectorUnits
from lightning_lipschitz.graph.arrays import Array

Ends: TypeAlias = tuple[float, float]

_SLACK = 2.0**-30
_QUARTER_TURN = math.nextafter(math.pi / 2, 2.0)
_HALF_LINE = (0.0, math.inf)

#: What activations give, as functions of the operator's arguments beside the input; of all others it is not known.
VALUES: dict[str, Callable[..., Ends]] = {
    **dict.fromkeys(("sigmoid", "special_expit"), lambda: (0.0, 1.0)),
    "hardsigmoid": lambda: (0.0, 1.0 + 2.0**-24),  # some kernels of PyTorch multiply by a rounded 1/6
    **dict.fromkeys(("tanh", "sin", "cos", "erf", "special_erf", "softsign"), lambda: (-1.0, 1.0)),
    **dict.fromkeys(("squared_sine", "squared_cosine"), lambda: (0.0, 1.0)),
    **dict.fromkeys(("atan", "arctan"), lambda: (-_QUARTER_TURN, _QUARTER_TURN)),
    **dict.fromkeys(("relu", "abs"), lambda: _HALF_LINE),
    "softplus": lambda *_, **__: _HALF_LINE,
    "log_sigmoid": lambda: (-math.inf, 0.0),
    "relu6": lambda: (0.0, 6.0),
    "hardtanh": lambda min_val=-1.0, max_val=1.0: (min_val, max_val),
    "root": lambda offset: (math.sqrt(offset) * (1.0 - _SLACK), math.inf),
}


@np.errstate(over="ignore", invalid="ignore")  # of infinite ends
def interval(builder: Builder, number: int) -> Interval:
    """Numbers below and above every entry of a node, shape (size,) each; infinite where none are known."""
    waiting = [number]
    while waiting:
        node = builder.nodes[waiting[-1]]
        missing = [source for source in node.sources if source not in builder.intervals]
        if waiting[-1] in builder.intervals:
            waiting.pop()
        elif missing:
            waiting.extend(missing)
        else:
            made = waiting.pop()
            low, high = _of_node(builder, made, [builder.intervals[source] for source in node.sources])
            bias = builder.biases.get(made, np.zeros(()))
            builder.intervals[made] = _wider(low + bias, high + bias, np.abs(bias))
    return builder.intervals[number]


def _of_node(builder: Builder, number: int, given: list[Interval]) -> Interval:
    node = builder.nodes[number]
    if isinstance(node, (Elementwise, VectorUnits)):
        return _of_units(node, builder.functions[number], *given[0])
    if isinstance(node, Scaling):
        ends = np.stack([np.where(node.factors == 0.0, 0.0, node.factors * each) for each in given[0]])
        return _wider(ends.min(axis=0), ends.max(axis=0), np.abs(ends).max(axis=0))
    if isinstance(node, (Along, Convolution)):
        return _of_map(node, *given[0])
    if isinstance(node, Input):
        return np.full(node.size, -np.inf), np.full(node.size, np.inf)
    # Of all others, no entry falls as one that it is made of rises.
    low, high = (_run(node, on_device("cpu"), *ends) for ends in zip(*given, strict=True))
    return _wider(low, high, np.abs(low) + np.abs(high)) if isinstance(node, Sum) else (low, high)


def _of_units(
    node: Elementwise | VectorUnits, function: Callable[[torch.Tensor], torch.Tensor], *given: Array
) -> Interval:
    """The value at the middle, and as far around it as the slopes allow."""
    low, high = given
    finite = np.isfinite(low) & np.isfinite(high)
    centre = np.where(finite, 0.5 * (low + high), 0.0)
    radius = np.where(finite, 0.5 * (high - low), np.inf)
    middle = function(torch.from_numpy(centre)[None])[0].numpy()
    steepest = np.maximum(np.abs(node.alpha), np.abs(node.beta))
    if isinstance(node, VectorUnits):
        lengths = np.linalg.norm(radius.reshape(-1, node.width), axis=1)
        radius = lengths if node.scalar else np.repeat(lengths, node.width)
    known = np.isfinite(middle) & np.isfinite(radius)
    middle, reach = np.where(known, middle, 0.0), np.where(known, steepest * radius, np.inf)
    return _wider(middle - reach, middle + reach, np.abs(middle) + reach)


def _of_map(node: Along | Convolution, low: Array, high: Array) -> Interval:
    finite = np.isfinite(low) & np.isfinite(high)
    centre = np.where(finite, 0.5 * (low + high), 0.0)
    radius = np.where(finite, 0.5 * (high - low), 0.0)
    known = on_device("cpu")
    size = _magnitudes(node)
    middle, reach, largest = (
        _run(node, known, centre),
        _run(size, known, radius),
        _run(size, known, np.abs(centre) + radius),
    )
    unknown = _run(size, known, (~finite).astype(float)) > 0.0
    rounding = node.rounding * float(np.linalg.norm(np.abs(centre) + radius))  # of what is known up to it only
    reach = np.where(unknown, np.inf, reach + rounding)
    return _wider(middle - reach, middle + reach, largest)


def _run(node: Node, known: Known, *given: Array) -> Array:
    made: Array = run_node(node, known, *(torch.tensor(x)[None] for x in given))[0].numpy()
    return made


def _magnitudes(node: Along | Convolution) -> Node:
    if isinstance(node, Along):
        return replace(node, matrix=np.abs(node.matrix))
    return replace(node, kernel=np.abs(node.kernel))


def _wider(low: Array, high: Array, magnitude: Array) -> Interval:
    slack = np.where(np.isfinite(magnitude), _SLACK * magnitude, 0.0)
    return low - slack, high + slack
