"""The table of slopes: for every elementwise activation phi, an interval that holds every

    (phi(s) - phi(t)) / (s - t),     s != t.

All of them are continuous and piecewise differentiable, so the interval that holds every derivative will do (mean value
theorem). A function of this table takes the operator's own arguments (without the input) and returns (alpha, beta).

Numbers that are not read off a closed form are extrema of the derivative of a smooth function: its stationary point was
found with 40 digits (mpmath), and the value moved outwards to the tenth decimal. The tests enclose the same derivatives
by interval arithmetic.

    activation    derivative                    smallest, largest                         at x =
    SiLU          sigma(x) + x sigma'(x)        -0.09983932012886..., 1.09983932012886... -+2.39935728051546...
    GELU (exact)  Phi(x) + x Phi'(x)            -0.12890414518515..., 1.12890414518515... -+sqrt(2)
    GELU (tanh)   (x (1 + tanh u(x)) / 2)'      -0.12899306865877..., 1.12899306865877... -+1.41850400879082...
    Mish          (x tanh(softplus(x)))'        -0.11252612238946..., 1.08849816125172... -2.256376..., 1.490571...
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Slopes = tuple[float, float]
_TABLE: dict[str, Callable[..., Slopes]] = {}


class NotLipschitzError(ValueError):
    """With these arguments the activation jumps or has an unbounded slope; the message says which."""


def slopes(*operators: str) -> Callable[[Callable[..., Slopes]], Callable[..., Slopes]]:
    """Register a function of this table for ATen operators."""

    def register(function: Callable[..., Slopes]) -> Callable[..., Slopes]:
        _TABLE.update(dict.fromkeys(operators, function))
        return function

    return register


def activations() -> dict[str, Callable[..., Slopes]]:
    """The table, by ATen operator."""
    return dict(_TABLE)


_ONE_SIXTH = float(np.float32(1 / 6))  # above 1/6; some kernels of PyTorch multiply by this rounded constant


def _fixed(alpha: float, beta: float, *operators: str) -> None:
    slopes(*operators)(lambda: (alpha, beta))


_fixed(0.0, 1.0, "relu", "relu6", "tanh", "atan", "arctan", "log_sigmoid", "softsign", "tanhshrink")
_fixed(-1.0, 1.0, "abs", "sin", "cos", "squared_sine", "squared_cosine")
_fixed(0.0, 0.25, "sigmoid", "special_expit")
_fixed(0.0, _ONE_SIXTH, "hardsigmoid")
_fixed(0.0, 1.1283791670955128, "erf", "special_erf")  # 2 / sqrt(pi) = 1.12837916709551257...
_fixed(0.0, 1.7580993408473770, "selu")  # lambda alpha = 1.75809934084737685...
_fixed(-3.0 * _ONE_SIXTH, 9.0 * _ONE_SIXTH, "hardswish")  # (2 x + 3) / 6 on [-3, 3]
_fixed(-0.0998393202, 1.0998393202, "silu")
_fixed(-0.1125261224, 1.0884981613, "mish")


@slopes("gelu")
def gelu(approximate: str = "none") -> Slopes:
    """The exact one and the tanh approximation differ in the fourth decimal."""
    return (-0.1289041452, 1.1289041452) if approximate == "none" else (-0.1289930687, 1.1289930687)


@slopes("root")
def root(offset: float) -> Slopes:
    """``sqrt(x^2 + offset)``."""
    if offset < 0:
        raise NotLipschitzError("Its slope is unbounded where the root is zero.")
    return -1.0, 1.0


@slopes("tanh_gelu")
def tanh_gelu(cubic: float, scale: float) -> Slopes:
    """As GELU(tanh), whose constants people write with more or fewer digits.

    With ``x = t sqrt(2 / pi) / scale`` its derivative is that of ``t (1 + tanh(sqrt(2 / pi) (t + c t^3))) / 2`` in t,
    ``c = 2 cubic / (pi scale^2)``. The numbers hold for every c within 1e-5 c of 0.044715.
    """
    if not is_gelu(cubic, scale):
        raise ValueError("these are the constants of another function")
    return -0.129, 1.129


def is_gelu(cubic: float, scale: float) -> bool:
    """Whether :func:`tanh_gelu` with these constants is GELU(tanh), stretched along both axes or not."""
    return scale != 0 and abs(2.0 * cubic / (math.pi * scale * scale) / 0.044715 - 1.0) < 9e-6


@slopes("hardtanh")
def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Slopes:
    """The identity between two values; constant when they leave no room."""
    return (0.0, 1.0) if min_val < max_val else (0.0, 0.0)


@slopes("leaky_relu")
def leaky_relu(negative_slope: float = 0.01) -> Slopes:
    """Slope a below zero, 1 above."""
    return min(negative_slope, 1.0), max(negative_slope, 1.0)


@slopes("rrelu")
def rrelu(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: object = None) -> Slopes:
    """In evaluation mode: LeakyReLU with the mean of the two slopes."""
    if training:
        raise NotLipschitzError("Its slope is drawn at random in training mode.")
    return leaky_relu((lower + upper) / 2)


@slopes("elu")
def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Slopes:
    """Derivative ``alpha scale input_scale exp(input_scale x)`` below zero, ``scale`` above."""
    if input_scale < 0:
        raise NotLipschitzError("Its slope is unbounded for a negative input scale.")
    steepest = alpha * scale * input_scale
    if steepest not in (0.0, alpha, scale):
        steepest = float(
            np.nextafter(np.nextafter(steepest, math.copysign(math.inf, steepest)), math.copysign(math.inf, steepest))
        )
    return min(0.0, steepest, scale), max(0.0, steepest, scale)


@slopes("celu")
def celu(alpha: float = 1.0) -> Slopes:
    """Derivative ``exp(x / alpha)`` below zero, 1 above."""
    if alpha <= 0:
        raise NotLipschitzError("Its slope is unbounded for a negative alpha.")
    return 0.0, 1.0


@slopes("softplus")
def softplus(beta: float = 1.0, threshold: float = 20.0, *, resolution: float = 2.0**-23) -> Slopes:
    """The integral of a logistic function, whose slope is in [0, 1].

    Past the threshold PyTorch returns x itself, a jump of log(1 + exp(-threshold)) / beta. Where this is below half a
    unit in the last place of the value there, threshold / beta, it is a correctly rounded implementation of the smooth
    function, and read as such: at the default of 20 in float32, from 34 on in float64.
    """
    jump = math.log1p(math.exp(-threshold)) if threshold > -700 else math.inf
    if not jump <= resolution / 4 * threshold:
        raise NotLipschitzError(
            f"It jumps by {jump / beta:.2g} at its threshold, which is more than rounding in this dtype; "
            "use threshold=20 or more in float32, 40 or more in float64."
        )
    return 0.0, 1.0


@slopes("softshrink")
def softshrink(lambd: float = 0.5) -> Slopes:
    """Zero between -lambd and lambd, moved towards zero outside."""
    return 0.0, 1.0


@slopes("threshold")
def threshold(threshold: float, value: float) -> Slopes:
    """``max(x, t)`` when the value below the threshold is the threshold; otherwise it jumps."""
    if threshold != value:
        raise NotLipschitzError(f"It jumps from {value} to {threshold}; use value = threshold.")
    return 0.0, 1.0


@slopes("hardshrink")
def hardshrink(lambd: float = 0.5) -> Slopes:
    """The identity for lambd = 0; otherwise it jumps at +-lambd."""
    if lambd > 0:
        raise NotLipschitzError(f"It jumps at {lambd} and -{lambd}; use Softshrink.")
    return 1.0, 1.0
