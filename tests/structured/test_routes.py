"""Both routes on every model of the zoo that is small enough for both."""

import pytest
import torch

import lightning_lipschitz as ll
from lightning_lipschitz.errors import UnsupportedModuleError
from lightning_lipschitz.extraction import Extractor
from tests.models import ZOO, make

SMALL = 300  # hidden units


@pytest.mark.parametrize("name", ZOO)
def test_sampled_below_explicit_below_composed(name):
    model, shape = make(name)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    if Extractor(model, x).network().num_units > SMALL:
        pytest.skip("too large for the matrix inequality in a test")
    explicit = ll.certify(model, x, method="lipsdp-neuron", rtol=1e-5)
    try:
        composed = ll.certify(model, x, method="composed", rtol=1e-5)
    except UnsupportedModuleError as refused:
        pytest.skip(f"the composed route does not read it: {refused}")
    assert ll.lower_bound(model, x, steps=20, pairs=16).value <= explicit.upper_bound
    assert explicit.upper_bound <= composed.upper_bound * (1 + 1e-4)
