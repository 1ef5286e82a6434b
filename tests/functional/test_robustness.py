"""Margins and radii: soundness in exact arithmetic, edge cases, gradients."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_lipschitz.errors import ArgumentError, ShapeError
from lightning_lipschitz.functional import certified_radius, margins

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
positive = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)


@given(st.lists(finite, min_size=2, max_size=5), positive)
def test_one_constant_is_rounded_down(logits, lipschitz):
    """radius^2 * 2 L^2 <= margin^2, in rationals."""
    radius = certified_radius(torch.tensor([logits]), lipschitz).item()
    ordered = sorted(Fraction(v) for v in torch.tensor(logits).tolist())
    margin = ordered[-1] - ordered[-2]
    assert 0 <= radius < math.inf
    assert 2 * (Fraction(radius) * Fraction(lipschitz)) ** 2 <= margin**2


@given(st.lists(finite, min_size=3, max_size=3), st.lists(positive, min_size=3, max_size=3), st.floats(0, 10))
def test_pairs_are_rounded_down(logits, bounds, error):
    a, b, c = bounds
    matrix = torch.tensor([[0.0, a, b], [a, 0.0, c], [b, c, 0.0]], dtype=torch.float64)
    values = torch.tensor([logits])
    radius, leader = certified_radius(values, matrix, logit_error=error).item(), int(values.argmax())
    for j in range(3):
        if j != leader:
            lead = Fraction(values[0, leader].item()) - Fraction(values[0, j].item()) - 2 * Fraction(error)
            assert Fraction(radius) * Fraction(matrix[leader, j].item()) <= max(lead, 0)


def test_tight():
    logits = torch.tensor([[5.0, 1.0, 0.0]], dtype=torch.float64)
    assert certified_radius(logits, 2.0).item() == pytest.approx(4 / (2 * math.sqrt(2)), rel=1e-14)
    matrix = torch.tensor([[0.0, 4.0, 10.0], [4.0, 0.0, 1.0], [10.0, 1.0, 0.0]])
    assert certified_radius(logits, matrix).item() == pytest.approx(0.5, rel=1e-14)


def test_pairs_of_sqrt2_are_the_one_constant():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    matrix = math.sqrt(2) * 3.0 * (1 - torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(certified_radius(logits, matrix), certified_radius(logits, 3.0))


EDGES = {
    "wrong class": ([[1.0, 2.0]], 1.0, [0], 0.0),
    "tie": ([[2.0, 2.0]], 1.0, [0], 0.0),
    "tie, zero constant": ([[2.0, 2.0]], 0.0, [0], 0.0),
    "zero constant": ([[3.0, 2.0]], 0.0, [0], math.inf),
    "infinite constant": ([[3.0, 2.0]], math.inf, [0], 0.0),
    "NaN logit": ([[3.0, math.nan]], 1.0, None, 0.0),
    "NaN, zero constant": ([[3.0, math.nan]], 0.0, None, 0.0),
    "infinite logit": ([[math.inf, 0.0]], 1.0, None, 0.0),
    "binary, yes": ([[3.0]], 2.0, [1], 1.5),
    "binary, no": ([-3.0], 2.0, [0], 1.5),
    "binary, wrong": ([-3.0], 2.0, [1], 0.0),
    "binary, predicted": ([-3.0], 2.0, None, 1.5),
    "constant below the normal numbers": ([[1e-3, 0.0]], 5e-324, [0], None),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    logits, lipschitz, target, radius = EDGES[name]
    found = certified_radius(torch.tensor(logits), lipschitz, None if target is None else torch.tensor(target)).item()
    assert found == (pytest.approx(radius, rel=1e-14) if radius is not None else found)
    assert not math.isnan(found)


def test_margins():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 4.0]])
    assert margins(logits).tolist() == [2.0, 3.0]
    assert margins(logits, torch.tensor([2, 2])).tolist() == [-3.0, 3.0]


@pytest.mark.parametrize("lipschitz", [2.0, [[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]]], ids=["one", "pairs"])
def test_gradients(lipschitz):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    constant = torch.tensor(lipschitz, dtype=torch.float64, requires_grad=True)
    radii = certified_radius(logits, constant)
    assert (radii > 0).all()
    gradients = torch.autograd.grad(radii.sum(), (logits, constant))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    assert torch.autograd.gradcheck(lambda z: certified_radius(z, constant.detach()), (logits,))


@pytest.mark.parametrize(
    ("logits", "lipschitz", "target", "error"),
    [
        (torch.zeros(2, 3), -1.0, None, ArgumentError),
        (torch.zeros(2, 3), math.nan, None, ArgumentError),
        (torch.zeros(2, 3), torch.ones(2, 2), None, ShapeError),
        (torch.zeros(2, 1), torch.zeros(1, 1), None, ShapeError),
        (torch.zeros(2, 3), 1.0, torch.tensor([0, 3]), ArgumentError),
        (torch.zeros(2, 3), 1.0, torch.tensor([0, -1]), ArgumentError),
        (torch.zeros(2, 3), 1.0, torch.tensor([0]), ShapeError),
        (torch.zeros(2, 3).long(), 1.0, None, ArgumentError),
        (torch.zeros(2, 3, 4), 1.0, None, ArgumentError),
        (torch.zeros(0, 3), 1.0, None, ArgumentError),
        ([[1.0, 2.0]], 1.0, None, ArgumentError),
    ],
)
def test_bad_arguments(logits, lipschitz, target, error):
    with pytest.raises(error):
        certified_radius(logits, lipschitz, target)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_differences_beyond_the_range_are_rounded_down(dtype):
    largest = torch.finfo(dtype).max
    for constant in (1.0, torch.tensor([[0.0, 2.0], [2.0, 0.0]])):
        logits = torch.tensor([[largest, -largest]], dtype=dtype)
        radius = certified_radius(logits, constant).item()
        slope = math.sqrt(2.0) if isinstance(constant, float) else 2.0
        assert Fraction(radius) * Fraction(slope) <= 2 * Fraction(largest)
        assert radius > 0.4 * largest
    assert margins(torch.tensor([[1e308, -1e308]], dtype=torch.float64)).item() < math.inf
    assert certified_radius(torch.tensor([[1e308, -1e308]], dtype=torch.float64), 0.0).item() == math.inf
    assert certified_radius(torch.tensor([[math.inf, -1e308]], dtype=torch.float64), 1.0).item() == 0.0


@pytest.mark.parametrize("lipschitz", [1j, torch.tensor(1j), "1", torch.tensor(2**53 + 1)], ids=str)
def test_constants_that_are_not_real_are_refused(lipschitz):
    with pytest.raises(ArgumentError):
        certified_radius(torch.zeros(2, 3), lipschitz)
