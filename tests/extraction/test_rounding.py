"""The stored matrices against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from lightning_lipschitz.certificate.coefficients import Coefficients, dense, frobenius, identity, stacked, zeros
from lightning_lipschitz.extraction import Extractor, extract
from tests.models import Lambda, randomized_norm

NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 3.0, 2.0**-1074, -(2.0**-1022), 1e-160]),
    st.floats(-1e30, 1e30),
    st.floats(-4.0, 4.0, width=32),
)


@st.composite
def matrices(draw, rows=None, columns=None):
    shape = (rows or draw(st.integers(1, 4)), columns or draw(st.integers(1, 4)))
    return np.array(draw(st.lists(NUMBERS, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))).reshape(shape)


def exact(matrix):
    return np.vectorize(Fraction, otypes=[object])(dense(matrix))


def assert_within(coefficients, real, carried=Fraction(0)):
    """``| stored - real |_F <= rounding``, in rational arithmetic."""
    distance = sum(((exact(coefficients.matrix) - real) ** 2).ravel(), Fraction(0))
    assert distance <= Fraction(coefficients.rounding) ** 2


def as_stored(matrix, sparsely):
    return Coefficients(sparse.csr_array(matrix) if sparsely else matrix)


@given(matrices(), st.data(), st.booleans(), st.booleans())
def test_product(matrix, data, one, two):
    weight = data.draw(matrices(columns=len(matrix)))
    product = as_stored(matrix, one).premultiplied(sparse.csr_array(weight) if two else weight)
    assert_within(product, exact(weight) @ exact(matrix))


@settings(max_examples=40, deadline=None)
@given(matrices(3, 3), matrices(3, 3), matrices(2, 3))
def test_rounding_is_handed_on(a, b, c):
    first = Coefficients(b).premultiplied(a)
    second = first.premultiplied(c).plus(Coefficients(c)).scaled(np.array([0.3, -7.0]))
    real = (exact(c) @ exact(a) @ exact(b) + exact(c)) * np.array([[Fraction(0.3)], [Fraction(-7)]])
    assert_within(second, real)
    picked = second.rows(np.array([1, 0, 1, 1]))
    assert_within(picked, real[[1, 0, 1, 1]])
    assert_within(stacked([picked, second, zeros(1, 3)]), np.vstack([real[[1, 0, 1, 1]], real, [[Fraction(0)] * 3]]))


@given(matrices(), st.data(), st.booleans())
def test_scale(matrix, data, sparsely):
    factors = np.array(data.draw(st.lists(NUMBERS, min_size=len(matrix), max_size=len(matrix))))
    assert_within(as_stored(matrix, sparsely).scaled(factors), exact(matrix) * exact(factors[:, None]))


@given(matrices(2, 3), st.sampled_from([3.0, 7.0, 0.1]))
def test_scale_by_a_rounded_reciprocal(matrix, divisor):
    scaled = Coefficients(matrix).scaled(np.full(2, 1 / divisor), 2.0**-53)
    assert_within(scaled, exact(matrix) / Fraction(divisor))


@given(matrices(2, 3), matrices(2, 3), st.booleans(), st.booleans())
def test_sum(a, b, one, two):
    assert_within(as_stored(a, one).plus(as_stored(b, two)), exact(a) + exact(b))


@given(matrices(), st.booleans())
def test_frobenius_norm_from_above(matrix, sparsely):
    bound = frobenius(sparse.csr_array(matrix) if sparsely else matrix)
    squares = sum((exact(matrix) ** 2).ravel(), Fraction(0))
    assert Fraction(bound) ** 2 >= squares
    assert Fraction(bound) ** 2 <= squares * Fraction(1.000001) + Fraction(1e-290)


def test_picking_entries_is_exact():
    weight = np.random.default_rng(0).normal(size=(2, 3))
    for picked in (identity(5)[[4, 0, 2]], identity(3)[[2, 0, 1]], identity(3)):
        product = Coefficients(picked).premultiplied(weight)
        assert product.rounding == 0.0
        np.testing.assert_array_equal(product.matrix, weight @ picked.toarray())


def weights(layer):
    return exact(layer.weight.detach().double().numpy())


def eye(size):
    return exact(np.eye(size))


A, B = nn.Linear(5, 4), nn.Linear(4, 5)
COMPOSED = {
    "two_linear": (nn.Sequential(A, B), lambda: weights(B) @ weights(A)),
    "skip": (Lambda(lambda m, x: x + m.b(m.a(x)), a=A, b=B), lambda: eye(5) + weights(B) @ weights(A)),
    "third": (Lambda(lambda m, x: m.a(x) / 3, a=A), lambda: weights(A) / 3),
    "centred": (
        Lambda(lambda m, x: m.a(x - x.mean(1, keepdim=True)), a=A),
        lambda: weights(A) @ (eye(5) - Fraction(1, 5)),
    ),
    "sequence": (
        Lambda(lambda m, x: m.a(m.b(x.view(-1, 2, 4)))[:, 1], a=A, b=B),
        lambda: np.hstack([exact(np.zeros((4, 4))), weights(A) @ weights(B)]),
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_matrix_is_within_its_rounding(name):
    model, real = COMPOSED[name]
    (term,) = extract(model, torch.zeros(2, real().shape[1])).output.terms
    assert 0 < term.rounding < 1e-13
    assert_within(Coefficients(term.matrix, term.rounding), real())


def test_batch_norm_is_within_its_rounding():
    norm = randomized_norm(nn.BatchNorm1d, 1)
    extractor = Extractor(norm, torch.zeros(2, 1))
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        norm.weight.data = torch.randn(1, generator=generator)
        norm.running_var = torch.rand(1, generator=generator)
        (term,) = extractor.extract().network.output.terms
        variance = Fraction(norm.running_var.item()) + Fraction(norm.eps)
        real = Fraction(norm.weight.item()) / _square_root(variance)
        assert (
            abs(Fraction(term.matrix.item()) - real)
            <= Fraction(term.rounding)
            <= 16 * 2.0**-53 * abs(term.matrix.item())
        )


def _square_root(value, digits=60):
    """The square root, to 60 digits."""
    scale = 10**digits
    return Fraction(math.isqrt(value.numerator * scale**2 // value.denominator), scale)


@settings(max_examples=50, deadline=None)
@given(matrices(3, 2), matrices(3, 2), matrices(2, 3), st.integers(0, 2))
def test_an_error_that_is_already_there_is_carried_along(stored, error, weight, picked):
    """The stored matrix is off by a known error; every operation must still enclose what the true one would give."""
    real = exact(stored) + exact(error)
    known = Coefficients(stored, frobenius(error))
    assert_within(known, real)
    assert_within(known.premultiplied(weight), exact(weight) @ real)
    assert_within(known.scaled(np.array([0.0, 3.0, -0.3])), real * exact(np.array([[0.0], [3.0], [-0.3]])))
    assert_within(known.scaled(-np.ones(3)), -real)
    assert_within(known.plus(known), real + real)
    assert_within(known.rows(np.full(4, picked)), real[[picked] * 4])
    assert_within(stacked([known, zeros(1, 2), known]), np.vstack([real, [[Fraction(0)] * 2], real]))


def test_weights_that_are_only_read_are_exact():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)
    )
    extractor = Extractor(model, torch.zeros(1, 2, 3))
    linears = [module for module in model if isinstance(module, nn.Linear)]
    for _ in range(3):
        for parameter in model.parameters():
            parameter.data.normal_()
        for affine, linear in zip(extractor.network().affines, linears, strict=True):
            (term,) = affine.terms
            assert term.rounding == 0.0
            np.testing.assert_array_equal(term.matrix, linear.weight.detach().double().numpy())
            np.testing.assert_array_equal(affine.bias, linear.bias.detach().double().numpy())
