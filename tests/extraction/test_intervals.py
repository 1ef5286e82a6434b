"""What is Lipschitz because its factors are bounded: intervals hold every value, and units keep their slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_lipschitz.extraction import GraphExtractor
from lightning_lipschitz.extraction.intervals import interval
from lightning_lipschitz.extraction.reading import on_device, run_node
from lightning_lipschitz.extraction.walk import walked
from lightning_lipschitz.graph import Concatenation, Elementwise, Input, VectorUnits
from tests.models.operators import BOUNDED


def walk_of(name):
    make, shape = BOUNDED[name]
    torch.manual_seed(0)
    model = make().eval()
    reader = GraphExtractor(model, torch.zeros(1, *shape))
    traced, _ = reader._read(None)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return walked(traced, tensors)[0].builder, int(np.prod(shape))


def run(builder, x):
    """The values of all nodes, shape (batch, size) each."""
    known, values = on_device("cpu"), []
    for number, node in enumerate(builder.nodes):
        given = [values[source] for source in node.sources]
        if isinstance(node, Input):
            made = x
        elif isinstance(node, (Elementwise, VectorUnits)):
            made = builder.functions[number](*given)
        else:
            made = run_node(node, known, *given)
        values.append(made + torch.from_numpy(builder.biases[number]) if number in builder.biases else made)
    return [each.numpy() for each in values]


def inputs(size):
    """Small, usual and huge ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, size, generator=generator, dtype=torch.float64)
    return x * torch.logspace(-3, 4, 600, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("name", BOUNDED)
def test_every_value_lies_in_its_interval(name):
    builder, size = walk_of(name)
    bounded = 0
    for number, values in enumerate(run(builder, inputs(size))):
        low, high = interval(builder, number)
        assert low.shape == high.shape == (builder.nodes[number].size,)
        assert np.all((low <= values) & (values <= high))
        bounded += int(np.isfinite(low).any() or np.isfinite(high).any())
    assert bounded


@pytest.mark.parametrize("name", BOUNDED)
def test_units_keep_their_slopes_on_what_they_can_read(name):
    """Of a product, the two units together: one moves by as much as the other allows it."""
    builder, size = walk_of(name)
    x = inputs(size)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = list(zip(run(builder, x), run(builder, x + step * torch.logspace(1, -3, len(x))[:, None]), strict=True))
    met = 0
    for number, node in enumerate(builder.nodes):
        if not isinstance(node, Elementwise):
            continue
        (before, after), (z, moved) = pairs[node.sources[0]], pairs[number]
        dy, dz = after - before, moved - z
        ends = np.stack([node.alpha * dy, node.beta * dy])
        low, high = ends.min(axis=0), ends.max(axis=0)
        noise = 1e-13 * (np.abs(z) + np.abs(moved) + np.abs(before) + np.abs(after)) * (1.0 + np.abs(node.beta))
        if isinstance(builder.nodes[node.sources[0]], Concatenation):  # a product
            dz, low, high, noise = (
                each[:, : node.size // 2] + each[:, node.size // 2 :] for each in (dz, low, high, noise)
            )
            met += 1
        assert np.all((low - noise <= dz) & (dz <= high + noise))
    assert met or name in ("powers_of_bounded", "root_and_logarithm", "exponentials")
