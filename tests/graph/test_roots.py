"""Roots of unity are where they are claimed to be."""

from fractions import Fraction

import mpmath
import pytest

from lightning_lipschitz.certificate.roots import ROOT_ERROR, cosine_below, roots_of_unity


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 33, 306, 1024])
def test_within_the_error_that_is_claimed(n):
    with mpmath.workprec(200):
        for j, (c, s) in enumerate(zip(*(values.tolist() for values in roots_of_unity(n)), strict=True)):
            exact = mpmath.expjpi(mpmath.mpf(2 * j) / n)
            assert abs(exact.real - mpmath.mpf(c)) <= ROOT_ERROR
            assert abs(exact.imag - mpmath.mpf(s)) <= ROOT_ERROR


def test_the_cosine_is_below():
    with mpmath.workprec(200):
        for numerator, denominator in ((1, 16), (2, 33), (5, 192)):
            below = cosine_below(numerator, denominator)
            exact = mpmath.cospi(mpmath.mpf(2 * numerator) / denominator)
            assert 0 <= exact - mpmath.mpf(below.numerator) / below.denominator < 1e-15
            assert isinstance(below, Fraction)
