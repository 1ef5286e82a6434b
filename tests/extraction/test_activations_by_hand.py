"""Activations written out of elementary operators are read as what they are; what only looks like one is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_lipschitz import certify
from lightning_lipschitz.errors import LipschitzError
from tests.models.building import Lambda

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
    "elu by expm1": (lambda x: torch.where(x > 0, x, torch.expm1(x)), nn.ELU()),
}
LEFT = {
    "erf of another scale": lambda x: 0.5 * x * (1 + torch.erf(x / 1.5)),
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
        certify(model(library), torch.zeros(1, 4).double(), method=method).upper_bound, rel=1e-6
    )


@pytest.mark.parametrize("name", LEFT)
def test_left(name):
    with pytest.raises(LipschitzError, match="not supported yet"):
        certify(model(by_hand(LEFT[name])), torch.zeros(1, 4).double())
