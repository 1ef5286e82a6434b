"""Norms of convolutions against the singular values of their explicit matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lipschitz.certificate import operators, symbols
from lightning_lipschitz.certificate.matrices import convolution_matrix
from lightning_lipschitz.certificate.operators import node_norm, node_norm_holds, norm_work
from lightning_lipschitz.errors import ArgumentError, NonFiniteError, ShapeError
from lightning_lipschitz.graph import Convolution


def conv(rows, columns, taps, lengths, stride=1, padding=0, dilation=1, groups=1, seed=0, **kind):
    """One number stands for all dimensions."""
    dims = len(lengths)
    taps, stride, padding, dilation = (
        (each,) * dims if isinstance(each, int) else each for each in (taps, stride, padding, dilation)
    )
    kernel = np.random.default_rng(seed).normal(size=(rows, columns // groups, *taps))
    pairs = tuple((p, p) if isinstance(p, int) else p for p in padding)
    return Convolution(
        sources=(0,),
        kernel=kernel,
        image=(columns, *lengths),
        stride=stride,
        padding=pairs,
        dilation=dilation,
        groups=groups,
        **kind,
    )


CONVOLUTIONS = {
    "1d": lambda: conv(3, 2, 3, (12,), padding=1),
    "1d valid": lambda: conv(3, 2, 3, (9,)),
    "1d strided": lambda: conv(3, 2, 4, (13,), stride=3, padding=2),
    "1d dilated and strided": lambda: conv(2, 3, 3, (15,), stride=2, padding=2, dilation=3),
    "1d even": lambda: conv(2, 2, 2, (8,), padding=((0, 1),)),
    "2d": lambda: conv(4, 3, 3, (8, 8), padding=1),
    "2d valid": lambda: conv(4, 3, 3, (8, 8)),
    "2d one by one": lambda: conv(5, 3, 1, (4, 6)),
    "2d one by one, strided": lambda: conv(5, 3, 1, (7, 6), stride=2),
    "2d strided": lambda: conv(4, 3, 3, (8, 8), stride=2, padding=1),
    "2d strided, odd": lambda: conv(4, 3, 3, (9, 7), stride=2, padding=1),
    "2d patches": lambda: conv(4, 2, 4, (8, 8), stride=4),
    "2d stride beyond the kernel": lambda: conv(4, 2, 2, (9, 9), stride=3),
    "2d dilated": lambda: conv(3, 2, 3, (8, 8), padding=2, dilation=2),
    "2d mixed": lambda: conv(3, 2, (3, 2), (9, 6), stride=(2, 1), padding=((1, 1), (0, 1)), dilation=(1, 3)),
    "2d groups": lambda: conv(6, 4, 3, (7, 7), padding=1, groups=2),
    "2d depthwise": lambda: conv(4, 4, 3, (8, 8), padding=1, groups=4),
    "2d depthwise, multiplied, strided": lambda: conv(8, 4, 3, (8, 8), stride=2, padding=1, groups=4),
    "2d wide padding": lambda: conv(2, 3, 3, (4, 4), padding=4),
    "2d kernel beyond the image": lambda: conv(3, 3, 5, (2, 2), padding=2),
    "2d one pixel": lambda: conv(3, 3, 3, (1, 1), padding=1),
    "2d to one channel": lambda: conv(1, 3, 3, (6, 6), padding=1),
    "3d": lambda: conv(3, 2, 3, (4, 4, 3), padding=1),
    "3d strided": lambda: conv(2, 2, 2, (4, 5, 4), stride=2),
    "circular 1d": lambda: conv(3, 2, 3, (9,), padding=1, circular=True),
    "circular 2d": lambda: conv(3, 2, 3, (6, 5), padding=1, circular=True),
    "circular strided": lambda: conv(3, 2, 3, (6, 8), stride=2, padding=1, circular=True),
    "circular strided, odd": lambda: conv(3, 2, 3, (7, 7), stride=2, padding=1, circular=True),
    "circular groups": lambda: conv(4, 4, 3, (6, 6), padding=1, groups=2, circular=True),
    "zero": lambda: Convolution(
        sources=(0,),
        kernel=np.zeros((2, 2, 3)),
        image=(2, 5),
        stride=(1,),
        padding=((1, 1),),
        dilation=(1,),
    ),
}


@pytest.fixture(params=["explicit", "torus", "grid"])
def way(request, monkeypatch):
    """Each of the three ways in which a norm is found, whatever the size."""
    if request.param != "explicit":
        monkeypatch.setattr(operators, "EXPLICIT_SIDE", 0)
    if request.param == "grid":
        monkeypatch.setattr(symbols, "BUDGET", 0.0)
    return request.param


def apply(node, x):
    run = (F.conv1d, F.conv2d, F.conv3d)[node.dims - 1]
    pads = [side for pair in reversed(node.padding) for side in pair]
    padded = F.pad(x, pads, mode="circular" if node.circular else "constant")
    return run(padded, torch.tensor(node.kernel), None, node.stride, 0, node.dilation, node.groups)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_matrix_is_the_convolution(name):
    node = CONVOLUTIONS[name]()
    x = torch.randn(4, *node.image, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = apply(node, x)
    assert y.shape[1:] == node.result
    ours = convolution_matrix(node) @ x.reshape(4, -1).numpy().T
    np.testing.assert_allclose(ours.T, y.reshape(4, -1).numpy(), atol=1e-12)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_never_below_the_largest_singular_value(name, way):
    node = CONVOLUTIONS[name]()
    exact = np.linalg.norm(convolution_matrix(node).toarray(), 2)
    bound = node_norm(node, margin=2.0)
    assert bound >= exact * (1 - 1e-13)
    assert node_norm_holds(node, bound)
    assert not node_norm_holds(node, exact * 0.999) or exact == 0
    if way == "explicit" or (node.circular and way == "torus" and not odd_stride(node)):
        assert bound <= exact * (1 + 1e-9)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_coarser_levels_are_looser_and_hold(name, monkeypatch):
    monkeypatch.setattr(operators, "EXPLICIT_SIDE", 0)
    node = CONVOLUTIONS[name]()
    exact = np.linalg.norm(convolution_matrix(node).toarray(), 2)
    for level in range(len(norm_work(node))):
        bound = node_norm(node, 2.0, level)
        assert bound >= exact * (1 - 1e-13)
        assert node_norm_holds(node, bound)


def test_each_level_costs_more_and_gives_more(monkeypatch):
    monkeypatch.setattr(operators, "EXPLICIT_SIDE", 0)
    node = conv(4, 4, 3, (40, 40), padding=1)
    works, bounds = norm_work(node), [node_norm(node, level=level) for level in range(3)]
    assert len(works) == 3
    assert 6 * works[0] < works[2]
    assert 3 * works[1] < works[2]
    finest = bounds[2]
    assert finest <= bounds[1] <= 1.04 * finest <= bounds[0] <= 1.18 * finest


def odd_stride(node):
    return any(n % s for n, s in zip(node.lengths, node.stride, strict=True))


@pytest.mark.parametrize(
    ("lengths", "stride", "factor"), [((8, 8), 1, 1.06), ((16, 16), 1, 1.02), ((16, 16), 2, 1.03), ((32,), 1, 1.02)]
)
@pytest.mark.parametrize("seed", range(3))
def test_tight_for_zero_padding(lengths, stride, factor, seed, monkeypatch):
    monkeypatch.setattr(operators, "EXPLICIT_SIDE", 0)
    node = conv(4, 3, 3, lengths, stride=stride, padding=1, seed=seed)
    assert node_norm(node) <= factor * np.linalg.norm(convolution_matrix(node).toarray(), 2)


def test_the_grid_costs_little(monkeypatch):
    monkeypatch.setattr(operators, "EXPLICIT_SIDE", 0)
    node = conv(4, 4, 3, (32, 32), padding=1)
    torus = node_norm(node)
    monkeypatch.setattr(symbols, "BUDGET", 1.6e8)
    assert torus != node_norm(node)
    # The supremum lies above the largest value on either grid by at most 1 / cos(pi / points)^2.
    assert torus * np.cos(np.pi / 33) ** 2 <= node_norm(node) <= torus / (np.cos(np.pi / 32) * np.cos(np.pi / 33)) ** 2


def test_transposed_is_the_adjoint():
    node = conv(3, 2, 3, (6, 6), stride=2, padding=1)
    adjoint = conv(3, 2, 3, (6, 6), stride=2, padding=1, transposed=True)
    np.testing.assert_array_equal(convolution_matrix(adjoint).toarray(), convolution_matrix(node).toarray().T)
    assert node_norm(adjoint) == pytest.approx(node_norm(node), rel=1e-9)
    assert (adjoint.size, adjoint.expected()) == (node.expected()[0], (node.size,))


def test_a_rounding_of_the_kernel_is_paid_for(way):
    rounding = 0.5
    node, exact = (conv(3, 2, 3, (6, 6), padding=1, rounding=r) for r in (rounding, 0.0))
    worst = exact.kernel + rounding * exact.kernel / np.linalg.norm(exact.kernel)
    moved = np.linalg.norm(convolution_matrix(exact).toarray(), 2) * (1 + rounding / np.linalg.norm(exact.kernel))
    assert np.linalg.norm(worst - exact.kernel) <= rounding * (1 + 1e-12)
    assert node_norm(node) >= moved


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_convolution(data):
    dims = data.draw(st.integers(1, 2))

    def numbers(low, high):
        return data.draw(st.tuples(*[st.integers(low, high)] * dims))

    groups = data.draw(st.sampled_from([1, 1, 2]))
    taps, dilation, padding = numbers(1, 3), numbers(1, 2), numbers(0, 3)
    lengths = tuple(
        max(n, d * (k - 1) + 1 - 2 * p) for n, d, k, p in zip(numbers(1, 7), dilation, taps, padding, strict=True)
    )
    scale = 10.0 ** data.draw(st.integers(-12, 12))
    rows, columns = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    node = conv(rows, columns, taps, lengths, numbers(1, 3), padding, dilation, groups, data.draw(st.integers(0, 99)))
    node = replace(node, kernel=node.kernel * scale)
    exact = np.linalg.norm(convolution_matrix(node).toarray(), 2)
    for side, budget in ((1100, 1e11), (0, 1e11), (0, 0.0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(operators, "EXPLICIT_SIDE", side)
            patch.setattr(symbols, "BUDGET", budget)
            assert node_norm(node) >= exact * (1 - 1e-13)


def test_refusals():
    with pytest.raises(ShapeError, match="channels"):
        conv(4, 3, 3, (8, 8), groups=2)
    with pytest.raises(ShapeError, match="position"):
        conv(4, 3, 3, (2, 2))
    with pytest.raises(ArgumentError, match="meet"):
        conv(2, 2, 3, (2,), padding=1, circular=True)
    with pytest.raises(NonFiniteError):
        Convolution(sources=(0,), kernel=[[[np.nan]]], image=(1, 3), stride=(1,), padding=((0, 0),), dilation=(1,))
