"""Random programs of shape operations, affine maps and activations: every one is read, and agrees with the model."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lightning_lipschitz.extraction import Extractor


def linear(rng, shape):
    layer = nn.Linear(shape[-1], rng.randint(1, 4))
    return lambda x: layer(x), layer


def batch_norm(rng, shape):
    norm = nn.BatchNorm1d(shape[0])
    nn.init.normal_(norm.weight)
    return lambda x: norm(x.flatten(2) if x.ndim > 2 else x).reshape(x.shape), norm


def constant(rng, shape):
    values = torch.randn(shape[rng.randint(0, len(shape)) :])
    return rng.choice(
        [lambda x: x * values, lambda x: x + values, lambda x: values - x, lambda x: x / (values.abs() + 1)]
    )


def permuted(rng, shape):
    order = [0, *rng.sample(range(1, len(shape) + 1), len(shape))]
    return lambda x: x.permute(order)


def reshaped(rng, shape):
    return rng.choice([lambda x: x.flatten(1), lambda x: x.unsqueeze(1), lambda x: x.reshape(len(x), -1, x.shape[1])])


def activation(rng, shape):
    return rng.choice([torch.relu, torch.tanh, F.gelu, F.softsign, F.leaky_relu, torch.abs, lambda x: x.clamp(-0.5, 1)])


def skip(rng, shape):
    act = activation(rng, shape)
    return rng.choice([lambda x: x + act(x), lambda x: x - 2 * act(x), lambda x: torch.cat([act(x), x], 1)])


def reduced(rng, shape):
    dim = rng.randint(1, len(shape))
    return rng.choice(
        [
            lambda x: x - x.mean(dim, keepdim=True),
            lambda x: x.sum(dim, keepdim=True) + x,
            lambda x: x.cumsum(dim),
            lambda x: x.narrow(dim, 0, (x.shape[dim] + 1) // 2),
            lambda x: x.flip(dim),
            lambda x: x.roll(1, dim),
            lambda x: torch.maximum(x, x.flip(dim)),
            lambda x: torch.stack(x.unbind(dim)[::-1], dim),
        ]
    )


STEPS = [linear, batch_norm, constant, permuted, reshaped, activation, activation, skip, reduced]


class Program(nn.Module):
    """A random chain of steps; every step sees the shape that the ones before it left."""

    def __init__(self, seed, length=7):
        super().__init__()
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.shape = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
        self.steps, self.held = [], nn.ModuleList()
        x = torch.randn(3, *self.shape)
        for _ in range(length):
            step = rng.choice(STEPS)(rng, tuple(x.shape[1:]))
            if isinstance(step, tuple):
                step, module = step
                self.held.append(module)
            self.eval()
            if step(x).numel() <= 3 * 64:
                self.steps.append(step)
                x = step(x).detach()

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed):
    program = Program(seed)
    extraction = Extractor(program, torch.zeros(1, *program.shape)).extract()
    x = torch.randn(5, *program.shape)
    expected = program(x).detach().reshape(5, -1).double().numpy()
    found = extraction(x.reshape(5, -1).double().numpy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
