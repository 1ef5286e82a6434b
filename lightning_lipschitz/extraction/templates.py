"""The table of activations as people write them out: the function, and the operators that it is written with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from lightning_lipschitz.extraction import functions
from lightning_lipschitz.extraction.slopes import is_gelu

# (operator, *arguments). "x" stands for one tensor, "known" for a number or a tensor that does not depend on the input,
# "*name" for anything that is no tensor, other strings for a number. Sums and products match in both orders.
Template = tuple[Any, ...]


def _in_order(**found: Any) -> tuple[Any, ...] | None:
    return tuple(found.values())


@dataclass(frozen=True)
class WrittenOut:
    """A function written out.

    Attributes:
        function: of "x" and of ``arguments``.
        template: how it is written.
        arguments: makes them of what the other strings stand for; None where it is another function.
    """

    function: Callable[..., Any]
    template: Template
    arguments: Callable[..., tuple[Any, ...] | None] = _in_order


def _pooled(kernel: list[int], volume: float, stride: list[int] | None = None) -> tuple[Any, ...] | None:
    """A mean of squares times as many as they are."""
    return (kernel, stride or kernel) if math.prod(kernel) == volume else None


def _on_ball(dim: list[int], least: float) -> tuple[Any, ...] | None:
    return (dim[0], least) if len(dim or ()) == 1 and least > 0 else None


def _cubic(cubic: float, scale: float) -> tuple[Any, ...] | None:
    return (cubic, scale) if is_gelu(cubic, scale) else None


def _smoothed(softplus: tuple[Any, ...]) -> list[WrittenOut]:
    """Past its threshold F.softplus jumps by less than any dtype tells apart; the sum written out does not jump."""
    return [WrittenOut(F.softplus, softplus, lambda: (1.0, 40.0))]


def _halved(function: Template) -> list[Template]:
    """``x (1 + function) / 2``."""
    more = ("add", function, 1)
    return [("mul", ("mul", "x", 0.5), more), ("mul", ("mul", "x", more), 0.5), ("mul", "x", ("mul", more, 0.5))]


def _squares(of: Any) -> list[Template]:
    return [("pow", of, 2), ("mul", of, of), ("square", of)]


_SHRINK = ("abs", "x"), ("mul", ("sign", "x"), "lambd")
_SIX = [(name, ("add", "x", 3), *ends) for name, *ends in (("relu6",), ("clamp", 0, 6), ("hardtanh", 0, 6))]
_LOGISTIC = ("add", ("exp", ("neg", "x")), 1)
_SQUARES = _squares("x")
_CUBES = [("add", "x", ("mul", ("pow", "x", 3), "cubic"))]  # x + cubic x^3
_BY_ONE = [("mul", ("mul", "x", "cubic"), "x"), *(("mul", square, "cubic") for square in _SQUARES)]
_CUBICS = [
    *(("mul", each, "scale") for each in _CUBES),
    *(("mul", ("mul", "x", "scale"), ("add", each, 1)) for each in _BY_ONE),
]
_SUM_OF_SQUARES = [("add", square, "offset") for square in _SQUARES]
_LENGTH = ("linalg_vector_norm", "x", 2, "*dim", True)
_FLOORED = [("clamp", _LENGTH, "least"), ("clamp_min", _LENGTH, "least")]
_MEANS = [(f"avg_pool{d}d", ("pow", "x", 2), "*kernel", *stride) for d in (1, 2, 3) for stride in ((), ("*stride",))]

TEMPLATES: list[WrittenOut] = [
    WrittenOut(torch.positive, ("pow", "x", 1)),
    WrittenOut(torch.positive, ("mul", ("sign", "x"), ("relu", ("abs", "x")))),  # in F.lp_pool2d: of nothing negative
    WrittenOut(F.softsign, ("div", "x", ("add", ("abs", "x"), 1))),
    WrittenOut(F.tanhshrink, ("sub", "x", ("tanh", "x"))),
    WrittenOut(F.softshrink, ("where", ("gt", _SHRINK[0], "lambd"), ("sub", "x", _SHRINK[1]), ("mul", "x", 0))),
    WrittenOut(F.hardshrink, ("where", ("le", ("abs", "x"), "lambd"), 0, "x")),
    WrittenOut(F.silu, ("mul", "x", ("sigmoid", "x"))),
    WrittenOut(F.silu, ("div", "x", _LOGISTIC)),
    WrittenOut(F.mish, ("mul", "x", ("tanh", ("softplus", "x")))),
    WrittenOut(torch.sigmoid, ("reciprocal", _LOGISTIC)),
    *_smoothed(("log", ("add", ("exp", "x"), 1))),
    *_smoothed(("log1p", ("exp", "x"))),
    *(WrittenOut(F.hardswish, ("div", ("mul", "x", each), 6)) for each in _SIX),
    *(WrittenOut(F.hardswish, ("mul", "x", ("div", each, 6))) for each in _SIX),
    *(WrittenOut(functions.leaky, ("where", (name, "x", 0), "x", ("mul", "x", "known"))) for name in ("gt", "ge")),
    *(WrittenOut(F.relu, ("where", (name, "x", 0), "x", 0)) for name in ("gt", "ge")),
    *(WrittenOut(F.relu, ("mul", "x", (name, "x", 0))) for name in ("gt", "ge")),
    *(WrittenOut(F.relu, ("masked_fill", "x", (name, "x", 0), 0)) for name in ("lt", "le")),
    WrittenOut(F.elu, ("where", ("gt", "x", 0), "x", ("mul", ("sub", ("exp", "x"), 1), "alpha"))),
    WrittenOut(F.elu, ("where", ("gt", "x", 0), "x", ("sub", ("exp", "x"), 1))),
    WrittenOut(F.elu, ("where", ("gt", "x", 0), "x", ("expm1", "x"))),
    WrittenOut(functions.swish, ("mul", "x", ("sigmoid", ("mul", "x", "known")))),
    *(WrittenOut(functions.stretched_gelu, each) for each in _halved(("erf", ("mul", "x", "known")))),
    *(WrittenOut(functions.shrunk_gelu, each) for each in _halved(("erf", ("div", "x", "known")))),
    *(WrittenOut(functions.tanh_gelu, each, _cubic) for inner in _CUBICS for each in _halved(("tanh", inner))),
    *(WrittenOut(functions.root, ("sqrt", each)) for each in _SUM_OF_SQUARES),
    *(WrittenOut(functions.root, ("pow", each, 0.5)) for each in _SUM_OF_SQUARES),
    *(WrittenOut(functions.squared_sine, each) for each in _squares(("sin", "x"))),
    *(WrittenOut(functions.squared_cosine, each) for each in _squares(("cos", "x"))),
    *(WrittenOut(functions.unit_ball, ("div", "x", each), _on_ball) for each in _FLOORED),
    *(WrittenOut(functions.unit_ball, ("div", "x", ("expand_as", each, "x")), _on_ball) for each in _FLOORED),
    *(WrittenOut(functions.l2_pool, ("pow", ("mul", ("positive", each), "volume"), 0.5), _pooled) for each in _MEANS),
]
