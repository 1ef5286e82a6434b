"""Both routes on every model of the zoo that is small enough for both, and what is said of models too large for one."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.errors import LipschitzError, UnsupportedModuleError
from lightning_lipschitz.extraction import Extractor
from tests.models import ZOO, Lambda, make

SMALL = 300  # hidden units


@pytest.mark.parametrize("name", ZOO)
def test_sampled_below_explicit_below_composed(name):
    model, shape = make(name)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    if Extractor(model, x).network().num_units > SMALL:
        pytest.skip("too large for the matrix inequality in a test")
    explicit = ll.certify(model, x, method="lipsdp-neuron", rtol=1e-5)
    composed = ll.certify(model, x, method="composed", rtol=1e-5)
    assert ll.lower_bound(model, x, steps=20, pairs=16).value <= explicit.upper_bound
    assert explicit.upper_bound <= composed.upper_bound * (1 + 1e-4)


# Too large for explicit matrices, and with an operator that has no rule: it is the operator that is named.

LARGE = torch.zeros(1, 3, 64, 64)


def large(forward):
    """``forward`` after a convolution and an activation of 12,288 units, which no explicit matrix is made for."""
    torch.manual_seed(0)
    layers = {"c": nn.Conv2d(3, 3, 1), "last": nn.Conv2d(4, 2, 1), "gate": nn.Linear(3, 3)}
    return Lambda(lambda m, x: forward(m, m.c(x).relu()), **layers).eval()


def tokens(y):
    return y.flatten(2).mT


UNREAD = {
    "squeeze and excitation": (
        "`mul` has a finite Lipschitz constant on bounded inputs only",
        lambda m, y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    ),
    "excitation by a layer": ("`mul`", lambda m, y: y * m.gate(y.mean((2, 3))).sigmoid()[:, :, None, None]),
    "product of two values": ("`mul`", lambda m, y: m.c(y).tanh() * m.c(y)),
    "gate of half the channels": ("`glu`", lambda m, y: F.glu(m.last(F.pad(y, (0, 0, 0, 0, 0, 1))), 1)),
    "quotient": ("`div`", lambda m, y: y / (1 + m.c(y).abs())),
    "attention": (
        "`scaled_dot_product_attention` has a finite Lipschitz constant on bounded inputs only",
        lambda m, y: F.scaled_dot_product_attention(*[tokens(y)] * 3),
    ),
    "attention by hand": ("`matmul`", lambda m, y: (tokens(y) @ tokens(y).mT).softmax(-1) @ tokens(y)),
    "transform": ("`fft_fft2`", lambda m, y: torch.fft.fft2(y).real),
    "real transform": ("`fft_rfft`", lambda m, y: torch.fft.rfft(y).abs()),
    "dropout that never ends": ("`dropout` is not supported, but an equivalent", lambda m, y: F.dropout(y)),
}


def said(error, model, method):
    with pytest.raises(error) as caught:
        ll.certify(model, LARGE, method=method)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("name", UNREAD)
def test_of_a_large_model_every_method_gives_the_reason_that_composed_gives(name):
    says, forward = UNREAD[name]
    reason = said(UnsupportedModuleError, large(forward), "composed")
    assert says in reason[1]
    assert said(LipschitzError, large(forward), "auto") == reason
    assert said(LipschitzError, large(forward), "norm-product") == reason


def zeros(m, y):
    out = torch.zeros(len(y), 4, *y.shape[2:], dtype=y.dtype)
    out[:, :3] = y
    return m.last(out)


def through_a_view(m, y):
    out = y.new_zeros(len(y), 4, *y.shape[2:])
    out.narrow(1, 1, 3).copy_(y)
    return m.last(out)


def scaled(m, y):
    y = y.clone()
    y[:, 1:] = 0.5 * y[:, 1:]
    return m.c(y)


def added(m, y):
    z = m.c(y)
    z[:, :1] += y[:, 2:]
    return z


def slope(model):
    """That of a pair of inputs."""
    x, y = torch.randn(2, *LARGE.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((model(x) - model(y)).norm() / (x - y).norm())


@pytest.mark.parametrize("forward", [zeros, through_a_view, scaled, added])
def test_a_large_model_that_writes_channels_in_place(forward):
    model = large(forward)
    auto, composed = (ll.certify(model, LARGE, method=method) for method in ("auto", "composed"))
    assert auto.method == composed.method == "composed"
    assert auto.network_digest == composed.network_digest
    assert slope(model) <= auto.upper_bound == composed.upper_bound
