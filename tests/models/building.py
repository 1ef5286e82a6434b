"""What the tables of models are written with."""

from __future__ import annotations

import warnings

import torch
from torch import nn


class Lambda(nn.Module):
    """A forward written as a function of (submodules, x)."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def mlp(activation, inputs=5, hidden=6, outputs=3):
    return nn.Sequential(nn.Linear(inputs, hidden), activation, nn.Linear(hidden, outputs))


def of(function, shape=(5,), **modules):
    return lambda: Lambda(function, **{name: make() for name, make in modules.items()}), shape


def randomized_norm(kind, channels):
    """A batch norm that has seen data: nothing at its initial value."""
    norm = kind(channels)
    generator = torch.Generator().manual_seed(3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data = torch.randn(channels, generator=generator)
    norm.running_var = torch.rand(channels, generator=generator) + 0.1
    return norm


def legacy(wrap, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrap(module)


def channel_prelu(slopes):
    prelu = nn.PReLU(len(slopes))
    prelu.weight.data = torch.tensor(slopes)
    return prelu


def linear(*size):
    return lambda: nn.Linear(*size)


def conv(*arguments, **options):
    return lambda: nn.Conv2d(*arguments, **options)


def sequential(*makers):
    return lambda: nn.Sequential(*(make() for make in makers))
