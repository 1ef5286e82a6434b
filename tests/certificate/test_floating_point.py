"""The positive-definiteness proof against exact arithmetic, where it must never be wrong in one direction."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lipschitz.certificate.floating_point import (
    BlockCholesky,
    factorisation_error,
    frobenius,
    half_exponents,
    product_up,
    round_up,
    sqrt_up,
)
from tests.helpers import exactly_positive_definite


@given(st.fractions(min_value=0, max_value=10**300) | st.floats(0, 1e300).map(lambda v: Fraction(v) ** 2))
def test_rounding_is_upwards_and_tight(value):
    up = round_up(value)
    assert up == np.inf or Fraction(up) >= value
    assert up in (0, np.inf) or Fraction(np.nextafter(up, 0)) < value
    root = sqrt_up(value)
    assert Fraction(root) ** 2 >= value
    assert root == 0 or Fraction(np.nextafter(np.nextafter(root, 0), 0)) ** 2 < value


def test_beyond_float64_is_infinity():
    assert round_up(Fraction(10) ** 400) == np.inf


@given(st.floats(5e-324, 1.7e308))
def test_half_exponents_normalise(value):
    (exponent,) = half_exponents(np.array([value])).tolist()
    assert 0.49 <= Fraction(value) * Fraction(4) ** exponent <= 2.01


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_the_frobenius_norm_is_bounded_from_above(entries):
    squares = sum((Fraction(value) ** 2 for value in entries), start=Fraction(0))
    norm = frobenius(np.array(entries))
    assert norm == np.inf or Fraction(norm) ** 2 >= squares
    assert norm <= sqrt_up(squares) * (1 + 1e-14) + 5e-324 or norm == np.inf


@given(st.lists(st.floats(0.0, allow_infinity=False), max_size=5))
def test_products_are_rounded_up(factors):
    exact = Fraction(1)
    for factor in factors:
        exact *= Fraction(factor)
    assert product_up(*factors) == round_up(exact)


def singular(rng, n, split):
    """Integer matrix A = G'G of rank < n, so that A - tiny I is indefinite, in 2 x 2 blocks."""
    factor = rng.integers(-4, 5, size=(n - 1, n)).astype(float)
    matrix = factor.T @ factor
    cuts = [slice(0, split), slice(split, n)]
    return matrix, {(i, j): matrix[cuts[i], cuts[j]].copy() for i in range(2) for j in range(i, 2)}, [split, n - split]


@given(st.integers(0, 10**6), st.integers(3, 9), st.sampled_from([-1e-14, -1e-12, -1e-10, 1e-14, 1e-12, 1e-10, 1e-6]))
def test_never_calls_an_indefinite_matrix_definite(seed, n, offset):
    rng = np.random.default_rng(seed)
    matrix, blocks, sizes = singular(rng, n, 1 + seed % (n - 1))
    exact = [
        [Fraction(float(v)) + (Fraction(offset) if i == j else 0) for j, v in enumerate(row)]
        for i, row in enumerate(matrix)
    ]
    blocks[1, 1][np.diag_indices(sizes[1])] += 0.0
    shift = factorisation_error(blocks, sizes, float(np.trace(matrix)) + n * abs(offset)) - offset
    claimed = BlockCholesky(blocks, shift).definite_with(np.zeros(sizes[0]))
    assert not claimed or exactly_positive_definite(exact)


def test_a_comfortably_definite_matrix_is_recognised():
    rng = np.random.default_rng(0)
    _, blocks, sizes = singular(rng, 8, 3)
    assert BlockCholesky(blocks, -1e-6).definite_with(np.zeros(sizes[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_a_bad_pivot_is_not_definite(value):
    blocks = {(0, 0): np.eye(2), (1, 1): np.array([[value]]), (0, 1): np.zeros((2, 1))}
    assert not BlockCholesky(blocks, 0.0).definite_with(np.zeros(2))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.0, 1e-15, 1e-13, 1e-10, 1e-3]))
def test_the_input_first_never_calls_an_indefinite_matrix_definite(seed, pixels, units, offset):
    """[[4 I, -B], [-B', B'B / 4 - offset I]] has a negative eigenvalue, or zero, whatever B is; 4 is added last."""
    coupling = np.random.default_rng(seed).integers(-4, 5, size=(pixels, units)).astype(float)
    corner = coupling.T @ coupling / 4.0 - offset * np.eye(units)
    blocks = {(0, 0): np.zeros((pixels, pixels)), (0, 1): -coupling, (1, 1): corner}
    shift = factorisation_error(blocks, [pixels, units], 4.0 * pixels + float(np.abs(np.diagonal(corner)).sum()))
    factored = BlockCholesky(blocks, shift)
    assert (0, 1) in factored.blocks, "the input was left for last"
    assert not factored.definite_with(np.full(pixels, 4.0))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 30.0))
def test_the_input_first_or_last_is_the_same_question(seed, pixels, units, added):
    rng = np.random.default_rng(seed)
    coupling, last = rng.normal(size=(pixels, units)), rng.normal(size=(units, units))
    corner = last @ last.T + np.eye(units)
    whole = np.block([[added * np.eye(pixels), coupling], [coupling.T, corner]])
    blocks = {(0, 0): np.zeros((pixels, pixels)), (0, 1): coupling, (1, 1): corner}
    least = np.linalg.eigvalsh(whole)[0]
    if abs(least) > 1e-10:
        assert BlockCholesky(blocks, 0.0).definite_with(np.full(pixels, added)) == (least > 0)
