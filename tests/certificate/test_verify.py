"""The kernel: what it signs is true in exact arithmetic; what is wrong it does not sign."""

from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lipschitz.bounds import closed_form, norm_product
from lightning_lipschitz.certificate import Multipliers, Norms, prove, strengthen
from lightning_lipschitz.certificate.spectral import norm_holds, norm_upper_bound
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term
from tests.helpers import NETWORKS, exact_lmi, exactly_positive_definite

WITH_POINT = [name for name in NETWORKS if closed_form.propose(NETWORKS[name]())]


@cache
def signed(name):
    """A proof at the edge: the closed-form multipliers with the least rho that the kernel accepts for them."""
    network = NETWORKS[name]()
    proof = strengthen(network, closed_form.propose(network)[0].multipliers)
    low, high = 0.0, proof.rho
    for _ in range(45):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if prove(network, replace(proof, rho=middle)) is not None else (middle, high)
    proof = replace(proof, rho=high)
    return proof


@pytest.mark.parametrize("name", WITH_POINT)
def test_what_is_signed_is_true_in_exact_arithmetic(name):
    network = NETWORKS[name]()
    proof = signed(name)
    assert exactly_positive_definite(exact_lmi(network, proof))
    assert not exactly_positive_definite(exact_lmi(network, replace(proof, rho=proof.rho * (1 - 1e-6))))
    assert Fraction(prove(network, proof)) ** 2 >= Fraction(proof.rho)


@pytest.mark.parametrize("name", WITH_POINT)
def test_signing_loses_little(name):
    network = NETWORKS[name]()
    point = closed_form.propose(network)[0].multipliers
    assert strengthen(network, point).rho <= point.rho * (1 + 1e-7)


@pytest.mark.parametrize("name", WITH_POINT)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_corrupted_proofs_are_refused_unless_still_true(name, data):
    network = NETWORKS[name]()
    proof = signed(name)
    factor = data.draw(st.sampled_from([1 - 1e-3, 1 - 1e-6, 1 - 1e-9, 1 + 1e-6, 1.1, 0.5, 0.0, -1.0, 1e9, np.nan]))
    where = data.draw(st.integers(0, len(proof.values)))
    if where == 0:
        corrupted = replace(proof, rho=proof.rho * factor)
    else:
        values = [np.array(v) for v in proof.values]
        unit = data.draw(st.integers(0, len(values[where - 1]) - 1))
        values[where - 1][unit] *= factor
        corrupted = Multipliers(proof.rho, tuple(values))
    if prove(network, corrupted) is not None:
        assert all((v >= 0).all() for v in corrupted.values)
        assert exactly_positive_definite(exact_lmi(network, corrupted))


@pytest.mark.parametrize("name", WITH_POINT)
def test_a_proof_is_not_a_proof_of_a_steeper_network(name):
    network = NETWORKS[name]()
    proof = signed(name)
    terms = tuple(Term(t.source, 1.5 * t.matrix) for t in network.output.terms)
    steeper = replace(network, output=Affine(terms, network.output.bias))
    assert prove(network, proof) is not None
    assert prove(steeper, proof) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: Multipliers(p.rho, p.values[:-1]),
        lambda p: Multipliers(p.rho, (*p.values[:-1], p.values[-1][:-1])),
        lambda p: Multipliers(np.inf, p.values),
        lambda p: Multipliers(0.0, p.values),
        lambda p: Multipliers(-p.rho, p.values),
        lambda p: Multipliers(p.rho, tuple(-v for v in p.values)),
        lambda p: Multipliers(p.rho, tuple(np.full_like(v, np.inf) for v in p.values)),
        lambda p: Multipliers(p.rho, tuple(0 * v for v in p.values)),
    ],
)
def test_inadmissible_multipliers_prove_nothing(wrong):
    network = NETWORKS["chain"]()
    proof = wrong(signed("chain"))
    assert prove(network, proof) is None
    assert strengthen(network, proof) is None


def test_members_of_a_group_must_share_their_multiplier():
    network = NETWORKS["groups"]()
    proof = signed("groups")
    values = [np.array(v) for v in proof.values]
    values[0][0] *= 1.0000001
    assert prove(network, proof) is not None
    assert prove(network, Multipliers(10 * proof.rho, tuple(values))) is None


def test_the_rounding_of_a_composed_matrix_is_paid_for():
    exact = NETWORKS["chain"]()
    proof = signed("chain")
    terms = tuple(Term(t.source, t.matrix, rounding=1e-3) for t in exact.output.terms)
    blurred = replace(exact, output=Affine(terms, exact.output.bias))
    assert prove(exact, proof) is not None
    assert prove(blurred, proof) is None
    assert norm_product.propose(blurred).proof.values[-1][0] >= norm_product.propose(exact).proof.values[-1][0] + 1e-3


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.integers(-300, 300))
def test_norms_hold_and_are_tight(seed, rows, columns, exponent):
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)) * 10.0 ** (exponent / 2)
    bound = norm_upper_bound(matrix)
    assert norm_holds(matrix, bound)
    scale = 2.0 ** int(np.frexp(np.abs(matrix).max())[1])
    norm = np.linalg.norm(matrix / scale, 2) * scale
    assert norm * (1 - 1e-14) <= bound <= norm * (1 + 1e-12)
    gram = [
        [sum(Fraction(a) * Fraction(b) for a, b in zip(x, y, strict=True)) for y in matrix.T.tolist()]
        for x in matrix.T.tolist()
    ]
    gap = [
        [(Fraction(bound) ** 2 if i == j else 0) - value for j, value in enumerate(row)] for i, row in enumerate(gram)
    ]
    assert exactly_positive_definite(gap) or min(rows, columns) == 1 or np.count_nonzero(matrix) <= 1
    assert not norm_holds(matrix, norm * (1 - 1e-9))


@pytest.mark.parametrize(("matrix", "norm"), [(np.zeros((2, 3)), 0.0), (np.eye(3), 1.0), (np.diag([0.3, -7.7]), 7.7)])
def test_norms_of_selections_are_exact(matrix, norm):
    assert norm_upper_bound(matrix) == norm
    assert norm_holds(matrix, norm)
    assert norm == 0 or not norm_holds(matrix, np.nextafter(norm, 0))


@pytest.mark.parametrize("copies", [1, 2, 12, 50])
@pytest.mark.parametrize("exponent", [-300, -3, 0, 300])
def test_norms_of_the_same_block_many_times(copies, exponent):
    """As of a 1 x 1 convolution: LAPACK fails on some such clusters of eigenvalues."""
    block = np.array([[0.6123724356957946, 0.3061862178478973, 0.3061862178478973], [0.5, 0.25, 0.5]])
    matrix = np.kron(block, np.eye(copies)) * 2.0**exponent
    bound = norm_upper_bound(matrix)
    assert norm_holds(matrix, bound)
    assert bound == pytest.approx(np.linalg.norm(block, 2) * 2.0**exponent, rel=1e-11)
    if abs(exponent) < 100:  # the square of the bound is a float64
        network = Network.from_weights([matrix, matrix.T])
        found = [prove(network, each.multipliers) for each in closed_form.propose(network)]
        assert min(each for each in found if each is not None) <= bound**2 * (1 + 1e-6)


@pytest.mark.parametrize("bound", [np.nan, np.inf, -1.0])
def test_a_norm_must_be_a_finite_number(bound):
    assert not norm_holds(np.zeros((2, 2)), bound)


def test_norm_products_add_up_parallel_paths():
    layer = Layer(Affine((Term(0, 2 * np.eye(2)),), np.zeros(2)), np.zeros(2), np.full(2, 0.5))
    skip = Network(2, (layer,), Affine((Term(0, np.eye(2)), Term(1, 3 * np.eye(2))), np.zeros(2)))
    assert prove(skip, norm_product.propose(skip).proof) == 1 + 3 * 0.5 * 2
    assert prove(skip, Norms(((2.0,), (1.0,)))) is None
    assert prove(skip, Norms(((2.0,), (1.0, 2.9999)))) is None
