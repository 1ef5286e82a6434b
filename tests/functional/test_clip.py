"""Pairs, their ascent and the penalty: against formulas, and safe where a quotient is not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.functional import Pairs, ascend, initial_pairs, penalty, quotients


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def drawn(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return initial_pairs(inputs, count, generator=generator)


NORMS = [1.0, 1.5, 2.0, float("inf")]


@pytest.mark.parametrize("p_in", NORMS)
@pytest.mark.parametrize("p_out", NORMS)
def test_quotient_is_its_formula(p_in, p_out):
    net, pairs = network(), drawn()
    change = (net(pairs.u) - net(pairs.v)).detach().numpy()
    expected = [
        np.linalg.norm(f, p_out) / np.linalg.norm(x, p_in)
        for f, x in zip(change, (pairs.u - pairs.v).numpy(), strict=True)
    ]
    found = quotients(net, pairs.u, pairs.v, p_in=p_in, p_out=p_out).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 20))
def test_no_quotient_falls_and_none_exceeds_the_constant(seed, steps):
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    pairs = drawn(seed=seed)
    before = quotients(lambda x: x @ matrix.T, pairs.u, pairs.v)
    after, values = ascend(lambda x: x @ matrix.T, pairs, steps=steps)
    assert (values >= before).all()
    torch.testing.assert_close(values, quotients(lambda x: x @ matrix.T, after.u, after.v), rtol=1e-9, atol=0.0)
    assert values.max() <= largest * (1 + 1e-9)


def test_the_ascent_finds_the_norm_of_a_matrix():
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, values = ascend(lambda x: x @ matrix.T, drawn(), steps=100)
    assert values.max() >= 0.999 * torch.linalg.matrix_norm(matrix, 2)


def test_steps_are_kept():
    pairs, values = ascend(network(), drawn(), steps=1)
    moved = (pairs.u != drawn().u).any(dim=1)
    torch.testing.assert_close(pairs.step, torch.where(moved, 0.15, 0.05).double())
    assert moved.any()
    assert ((ascend(network(), pairs, steps=1)[1]) >= values).all()


def test_within_a_range():
    pairs, _ = ascend(network(), Pairs.of(torch.rand(6, 5).double(), torch.rand(6, 5).double()), within=(0.0, 1.0))
    for x in (pairs.u, pairs.v):
        assert ((x >= 0) & (x <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_coinciding_ends_are_harmless(dtype):
    net = network().to(dtype)
    same = Pairs.of(torch.zeros(2, 5, dtype=dtype), torch.zeros(2, 5, dtype=dtype))
    pairs, values = ascend(net, same, steps=3)
    found = penalty(net, pairs, values)
    found.backward()
    assert values.tolist() == [0.0, 0.0]
    assert found == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("worst", [True, False])
@pytest.mark.parametrize("squared", [True, False])
def test_penalty_and_its_gradient(worst, squared):
    net, pairs = network(), drawn()
    slopes = (net(pairs.u) - net(pairs.v)).norm(dim=1) / (pairs.u - pairs.v).norm(dim=1)
    slopes = slopes**2 if squared else slopes
    expected = slopes.max() if worst else slopes.mean()
    gradient = torch.autograd.grad(expected, list(net.parameters()), allow_unused=True)
    values = quotients(net, pairs.u, pairs.v).detach()
    found = penalty(net, pairs, values, worst=worst, squared=squared)
    torch.testing.assert_close(found, expected)
    mine = torch.autograd.grad(found, list(net.parameters()), allow_unused=True)
    for a, b in zip(mine, gradient, strict=True):
        torch.testing.assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)


def test_the_ascent_leaves_no_trace():
    net, state = network(), torch.get_rng_state()
    ascend(net, drawn(), steps=3)
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state()) or torch.initial_seed() == 0
    before = torch.get_rng_state()
    ascend(net, drawn(), steps=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("start", ["noise", "halves", "random"])
@pytest.mark.parametrize("count", [2, 5, 64])
def test_where_pairs_come_from(start, count):
    inputs = torch.randn(9, 5)
    pairs = initial_pairs(inputs, count, start=start, noise=0.2, generator=torch.Generator().manual_seed(1))
    again = initial_pairs(inputs, count, start=start, noise=0.2, generator=torch.Generator().manual_seed(1))
    assert len(pairs) == min(count, 4 if start == "halves" else 9)
    assert torch.equal(pairs.v, again.v)
    assert (pairs.u != pairs.v).any(dim=1).all()
    if start != "random":
        assert torch.equal(pairs.u, inputs[: len(pairs)])


@pytest.mark.parametrize(("inputs", "start"), [(torch.ones(0, 3), "noise"), (torch.ones(1, 3), "halves")])
def test_too_few_inputs(inputs, start):
    with pytest.raises(ArgumentError, match="inputs"):
        initial_pairs(inputs, 4, start=start, generator=torch.Generator())


def test_an_unknown_start():
    with pytest.raises(ArgumentError, match="halves"):
        initial_pairs(torch.ones(4, 3), 4, start="data", generator=torch.Generator())
