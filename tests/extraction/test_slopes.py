"""The table of slopes, by interval arithmetic where its numbers come from a computation."""

from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from mpmath import iv, mp

from lightning_lipschitz.extraction.functions import of_activation
from lightning_lipschitz.extraction.slopes import activations

FAR = 30  # beyond it, every derivative below is within 1e-9 of 0 (left) or 1 (right); see `test_tails`


def silu(x, context):
    s = 1 / (1 + context.exp(-x))
    return s + x * s * (1 - s), s * (1 - s) * (2 + x * (1 - 2 * s))


def gelu(x, context):
    density = context.exp(-x * x / 2) / context.sqrt(2 * context.pi)
    return (mp.ncdf(x) + x * density if context is mp else None), density * (2 - x * x)


def gelu_tanh(x, context, tolerance=0):
    c, a = context.sqrt(2 / context.pi), context.mpf("0.044715")
    if tolerance and context is iv:
        a *= iv.mpf([1 - tolerance, 1 + tolerance])
    u, du, ddu = c * (x + a * x**3), c * (1 + 3 * a * x * x), 6 * a * c * x
    t = 1 - 2 / (context.exp(2 * u) + 1)
    return (1 + t) / 2 + x * (1 - t * t) * du / 2, (1 - t * t) * (du + x * (ddu / 2 - t * du * du))


def mish(x, context):
    s, q = 1 / (1 + context.exp(-x)), (1 + context.exp(x)) ** 2
    t = 1 - 2 / (q + 1)
    return t + x * (1 - t * t) * s, (1 - t * t) * s * (2 + x * (1 - s - 2 * t * s))


SMOOTH = {
    "silu": (silu, activations()["silu"]()),
    "gelu": (gelu, activations()["gelu"]()),
    "gelu_tanh": (gelu_tanh, activations()["gelu"]("tanh")),
    "tanh_gelu": (partial(gelu_tanh, tolerance=1e-5), activations()["tanh_gelu"](0.044715, (2 / np.pi) ** 0.5)),
    "mish": (mish, activations()["mish"]()),
}


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(40):
        iv.dps = 40
        yield


@pytest.mark.parametrize("name", SMOOTH)
def test_the_derivative_lies_between_the_slopes(name):
    """Mean value form over [-FAR, FAR], halving every interval that is not yet decided."""
    derivatives, (alpha, beta) = SMOOTH[name]
    todo, decided = [(mp.mpf(-FAR), mp.mpf(FAR))], 0
    while todo:
        low, high = todo.pop()
        middle, radius = (low + high) / 2, (high - low) / 2
        around = derivatives(iv.mpf([low, high]), iv)[1] * iv.mpf([-radius, radius])
        centre = derivatives(middle, mp)[0]
        if mp.mpf(alpha) < centre + around.a and centre + around.b < mp.mpf(beta):
            decided += 1
            continue
        assert radius > 1e-9, f"the derivative leaves [{alpha}, {beta}] near {middle}"
        todo += [(low, middle), (middle, high)]
    assert decided > 10


@pytest.mark.parametrize("name", SMOOTH)
def test_tails(name):
    """On the right ``f' - 1`` and on the left ``f'`` are bounded by a polynomial times a decaying exponential."""
    derivatives, (alpha, beta) = SMOOTH[name]
    assert 10 * FAR**4 * np.exp(-FAR) < min(-alpha, beta - 1)
    for x in (FAR, 2 * FAR, 10 * FAR):
        assert abs(derivatives(mp.mpf(x), mp)[0] - 1) < 10 * x**4 * mp.exp(-x)
        assert abs(derivatives(mp.mpf(-x), mp)[0]) < 10 * x**4 * mp.exp(-x)


ARGUMENTS = {
    "gelu": [{}, {"approximate": "tanh"}],
    "elu": [{"alpha": 0.5}, {"alpha": 2.5}, {"alpha": 1.5, "scale": 0.7, "input_scale": 1.3}, {"alpha": -0.5}],
    "leaky_relu": [{"negative_slope": value} for value in (0.2, 0.0, -1.0, 4.0)],
    "softplus": [{"beta": 0.5}, {"beta": 3.0}],
    "threshold": [{"threshold": 0.5, "value": 0.5}],
    "hardshrink": [{"lambd": 0.0}],
    "root": [{"offset": 1e-4}, {"offset": 1.0}, {"offset": 0.0}],
    "tanh_gelu": [{"cubic": 0.044715, "scale": 0.797884}, {"cubic": 4 * 0.044715, "scale": 2 * (2 / np.pi) ** 0.5}],
    "hardtanh": [{}, {"min_val": -3.0, "max_val": 0.5}],
}
CASES = [(name, each) for name in activations() for each in ARGUMENTS.get(name, [{}])]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_a_dense_grid_of_derivatives_fills_the_interval(name, arguments):
    """Never outside (to rounding), and close to both ends: the interval is right and no wider than it has to be."""
    alpha, beta = activations()[name](**arguments)
    grid = torch.cat([torch.linspace(-12, 12, 480_001), torch.linspace(-400, 400, 8_001)]).double()
    grid.requires_grad_()
    function = of_activation(name)
    (slope,) = torch.autograd.grad(function(grid, **arguments).sum(), grid)
    slope = slope[(grid.abs() > 1e-9) | (name not in ("abs", "root"))]  # the subgradient 0 at the kink is no slope
    assert slope.min() >= alpha - 1e-15
    assert slope.max() <= beta + 1e-15
    assert slope.min() <= alpha + 1e-3
    assert slope.max() >= beta - 1e-3


def test_nothing_in_the_table_is_narrower_than_a_quotient():
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(200_000, generator=generator, dtype=torch.float64) * 4
    t = s + torch.randn(s.shape, generator=generator, dtype=torch.float64)
    for name, arguments in CASES:
        alpha, beta = activations()[name](**arguments)
        function = of_activation(name)
        quotient = (function(s, **arguments) - function(t, **arguments)) / (s - t)
        close = 1e-14 * (1 + (s.abs() + t.abs()) / (s - t).abs())
        assert torch.all(quotient >= alpha - close), name
        assert torch.all(quotient <= beta + close), name


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("root", {"offset": -1e-3}),
        ("tanh_gelu", {"cubic": 0.05, "scale": 0.797884}),
        ("tanh_gelu", {"cubic": 0.044715, "scale": 0.0}),
        ("tanh_gelu", {"cubic": -0.044715, "scale": 0.797884}),
    ],
)
def test_other_constants_are_other_functions(name, arguments):
    with pytest.raises(ValueError, match=r"unbounded|another function"):
        activations()[name](**arguments)
