"""Activations written out of elementary operators are read as what they are; what only looks like one is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_lipschitz import certify, lower_bound
from lightning_lipschitz.errors import LipschitzError
from tests.models.building import Lambda

BETA = torch.tensor(0.5, dtype=torch.float64)
TANH = nn.GELU("tanh")


def scaled(activation, factor):
    """Stretched along both axes: of the same slopes."""
    return Lambda(lambda m, x: m.a(factor * x) / factor, a=activation)


TAKEN = {
    "silu": (lambda x: x / (1 + torch.exp(-x)), nn.SiLU()),
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), nn.Sigmoid()),
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), nn.Softplus(threshold=40.0)),
    "hardswish": (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, nn.Hardswish()),
    "leaky": (lambda x: torch.where(x > 0, x, 0.2 * x), nn.LeakyReLU(0.2)),
    "relu by where": (lambda x: torch.where(x > 0, x, 0.0), nn.ReLU()),
    "relu by mask": (lambda x: x * (x > 0), nn.ReLU()),
    "relu by fill": (lambda x: x.masked_fill(x < 0, 0.0), nn.ReLU()),
    "relu by max": (lambda x: torch.max(x, torch.zeros_like(x)), nn.ReLU()),
    "hardswish turned round": (lambda x: nn.functional.relu6(x + 3) / 6 * x, nn.Hardswish()),
    "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), nn.GELU()),
    "elu": (lambda x: torch.where(x > 0, x, 0.7 * (torch.exp(x) - 1)), nn.ELU(0.7)),
    "steep elu": (lambda x: torch.where(x > 0, x, (torch.exp(x) - 1) * 3.0), nn.ELU(3.0)),
    "QuickGELU": (lambda x: x * torch.sigmoid(1.702 * x), scaled(nn.SiLU(), 1.702)),
    "swish of a negative factor": (lambda x: torch.sigmoid(x * -0.3) * x, scaled(nn.SiLU(), -0.3)),
    "swish of a parameter": (lambda x: x * torch.sigmoid(x * nn.functional.softplus(BETA)), scaled(nn.SiLU(), 1.5)),
    "swish by entry": (lambda x: x * torch.sigmoid(torch.linspace(-2, 2, 5) * x), nn.SiLU()),
    "gelu of another scale": (lambda x: 0.5 * x * (1 + torch.erf(x / 1.5)), scaled(nn.GELU(), 2**0.5 / 1.5)),
    "gelu by a product": (lambda x: x * (0.5 * (1 + torch.erf(x * 0.70710678))), nn.GELU()),
    "NewGELU": (lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))), TANH),
    "FastGELU": (lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))), TANH),
    "Bloom's GELU": (lambda x: x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))), TANH),
    "leaky of a parameter": (lambda x: torch.where(x > 0, x, BETA * x), nn.LeakyReLU(0.5)),
    "steep leaky": (lambda x: torch.where(x > 0, x, -3 * x), nn.LeakyReLU(-3)),
    "elu by expm1": (lambda x: torch.where(x > 0, x, torch.expm1(x)), nn.ELU()),
}
LEFT = {
    "beta that depends on the input": lambda x: x * torch.sigmoid(x * x.mean(1, keepdim=True)),
    "gelu of another cubic": lambda x: 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.05 * x**3))),
    "root of a negative": lambda x: torch.sqrt(x**2 - 1),
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "square of an unbounded": lambda x: torch.relu(x) ** 2,
    "ball of radius zero": lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=0.0),
    "ball of another vector": lambda x: x / (x + 1).norm(dim=1, keepdim=True).clamp(min=1.0),
    "cubes pooled": lambda x: nn.functional.lp_pool1d(x.repeat(1, 2)[:, None, 1:7], 3, 2, 1)[:, 0],
    "half of the squares pooled": lambda x: nn.functional.avg_pool1d(x.repeat(1, 2)[:, None, 1:7] ** 2, 2, 1).sqrt()[
        :, 0
    ],
    "gelu plus two": lambda x: 0.5 * x * (2 + torch.erf(x / 2**0.5)),
    "elu that jumps": lambda x: torch.where(x > 0, x, torch.exp(x) - 2),
    "elu on the wrong side": lambda x: torch.where(x < 0, x, torch.exp(x) - 1),
    "other constant": lambda x: torch.log(2 + torch.exp(x)),
    "jump": lambda x: torch.where(x > 1, x, 0.2 * x),
    "jump by fill": lambda x: x.masked_fill(x < 0, 1.0),
    "wrong side": lambda x: x.masked_fill(x < 1, 0.0),
    "two arguments": lambda x: x / (1 + torch.exp(-2 * x)),
    "unequal ends": lambda x: x * torch.clamp(x + 3, 0, 7) / 6,
}


def model(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 2)).double().eval()


def by_hand(function):
    return Lambda(lambda m, x: function(x))


@pytest.mark.parametrize("method", ["norm-product", "composed"])
@pytest.mark.parametrize("name", TAKEN)
def test_taken(name, method):
    function, library = TAKEN[name]
    ours = certify(model(by_hand(function)), torch.zeros(1, 4).double(), method=method).upper_bound
    assert ours == pytest.approx(
        certify(model(library), torch.zeros(1, 4).double(), method=method).upper_bound,
        rel=1e-5 if library is TANH else 1e-6,
    )


@pytest.mark.parametrize("name", LEFT)
def test_left(name):
    with pytest.raises(LipschitzError, match=r"not supported yet|on bounded inputs only"):
        certify(model(by_hand(LEFT[name])), torch.zeros(1, 4).double())


SLOPES = {  # what has no like in the library, and its constant
    "snake": (lambda x: x + torch.sin(x) ** 2, 2.0),
    "snake of a parameter": (lambda x: x + torch.sin(BETA * x).pow(2) / BETA, 2.0),
    "squared cosine": (lambda x: torch.cos(x) * torch.cos(x), 1.0),
    "square of a sine": (lambda x: torch.square(torch.sin(3 * x)), 3.0),
    "root": (lambda x: torch.sqrt(1 + x**2), 1.0),
    "Charbonnier": (lambda x: (x * x + 1e-6) ** 0.5, 1.0),
    "squareplus": (lambda x: 0.5 * (x + torch.sqrt(x.square() + 4)), 1.0),
    "unit ball": (lambda x: x / torch.clamp(x.norm(dim=1, keepdim=True), min=1.0), 1.0),
    "ball": (lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(0.5) * 3, 6.0),
    "normalized": (lambda x: nn.functional.normalize(x, eps=0.1), 10.0),
    "l2 pooling": (lambda x: nn.functional.lp_pool1d(x[:, None], 2, 2)[:, 0], 1.0),
    "overlapping l2 pooling": (lambda x: nn.LPPool1d(2, 3, stride=1)(x[:, None])[:, 0], 3**0.5),
    "l2 pooling of images": (
        lambda x: nn.LPPool2d(2, 2, stride=1)(x[:, None, None].expand(-1, 1, 2, 5)).flatten(1),
        2.0,
    ),
    "sum pooling": (lambda x: nn.functional.lp_pool1d(x[:, None], 1, 2)[:, 0], 2**0.5),
}


@pytest.mark.parametrize("method", ["auto", "composed"])
@pytest.mark.parametrize("name", SLOPES)
def test_constants(name, method):
    """Both readings are at most 1 % above the slope that the function has, and never below one that is found."""
    function, constant = SLOPES[name]
    x = torch.zeros(1, 5).double()
    bound = certify(by_hand(function), x, method=method).upper_bound
    assert 0.9 * constant <= lower_bound(by_hand(function), x).value <= bound * (1 + 1e-12)
    assert bound <= 1.01 * constant
