"""What is read is the model, as explicit matrices and as a graph, and the slopes are the units'."""

import functools
import re
import warnings

import numpy as np
import pytest
import torch

from lightning_lipschitz import certify
from lightning_lipschitz.errors import UnsupportedModuleError
from lightning_lipschitz.extraction import Extractor, GraphExtractor
from tests.graph import models as graphs
from tests.models import MODELS, OPERATORS, REFUSED, ZOO, make
from tests.models.operators import BOUNDED

EVERY = {name: functools.partial(make, name) for name in MODELS} | {
    f"graph_{name}": functools.partial(graphs.make, name) for name in graphs.MODELS
}


@functools.cache
def read(name, form="network"):
    """Tracing is the slow part, so it is done once for all tests of this file."""
    if form == "network":
        model, shape, graph = read(name, "graph")
        return model, shape, graph.lowered()
    model, shape = EVERY[name]()
    return model, shape, GraphExtractor(model, torch.zeros(1, *shape)).extract()


def outputs(model, x):
    """The model in its own arithmetic, and the precision of that."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return model(x.to(dtype)).double().reshape(len(x), -1).numpy(), torch.finfo(dtype).eps


@pytest.mark.parametrize("form", ["network", "graph"])
@pytest.mark.parametrize("name", EVERY)
def test_either_form_computes_what_the_model_computes(name, form):
    model, shape, extraction = read(name, form)
    assert extraction.network.input_size == np.prod(shape)
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 4, 7):
        x = torch.randn(batch, *shape, generator=generator).bfloat16().float()  # exact in every dtype of the zoo
        ours = extraction(x.double().reshape(batch, -1).numpy())
        found, eps = outputs(model, x)
        np.testing.assert_allclose(ours, found, rtol=0, atol=50 * eps * max(1, np.abs(found).max()))


@pytest.mark.parametrize("name", [name for name in MODELS if name.removeprefix("operator_") not in BOUNDED])
def test_every_group_of_units_keeps_its_inequality(name):
    """(dz - alpha dy)(dz - beta dy) <= 0, summed over each group."""
    extraction = read(name)[2]
    rng = np.random.default_rng(0)
    for layer, units in zip(extraction.network.layers, extraction.units, strict=True):
        count = max(20, min(2000, 10**6 // layer.size))
        s = rng.normal(size=(count, layer.size)) * 10.0 ** rng.uniform(-3, 2, size=(count, 1))
        t = s + rng.normal(size=s.shape) * 10.0 ** rng.uniform(-3, 1, size=(count, 1))
        at_s, at_t = (units(torch.from_numpy(y)).numpy() for y in (s, t))
        dz, dy = at_s - at_t, s - t
        noise = 1e-14 * (np.abs(at_s) + np.abs(at_t) + np.abs(s) + np.abs(t))  # rounding of the evaluation
        low, high = dz - layer.alpha * dy, dz - layer.beta * dy
        steepest = np.maximum(1.0, np.maximum(np.abs(layer.alpha), np.abs(layer.beta)))
        allowed = noise * steepest * (np.abs(low) + np.abs(high) + noise * steepest)
        order, starts = _groups(layer.group)
        assert np.all(np.add.reduceat((low * high - allowed)[:, order], starts, axis=1) <= 0)


@pytest.mark.parametrize("name", [*ZOO, *(f"operator_{name}" for name in OPERATORS)])
def test_no_pair_of_inputs_is_steeper_than_the_bound(name):
    _, shape, extraction = read(name)
    bound = certify(extraction.network, method="norm-product")
    assert bound.certified
    generator = torch.Generator().manual_seed(2)
    for scale, step in ((1.0, 1.0), (1.0, 1e-3), (1e-3, 1e-3), (10.0, 1.0)):
        x = scale * torch.randn(200, *shape, generator=generator, dtype=torch.float64)
        dx = step * torch.randn(200, *shape, generator=generator, dtype=torch.float64)
        x, y = x.flatten(1).numpy(), (x + dx).flatten(1).numpy()
        rise, run = np.linalg.norm(extraction(y) - extraction(x), axis=1), np.linalg.norm(y - x, axis=1)
        assert np.all(rise <= bound.upper_bound * run + 1e-12 * (1 + np.abs(extraction(x)).max()))


OVERLAP = {  # the true constant of a pooling layer alone: the root of the most windows that an entry is in
    "operator_max_pool_overlapping": np.sqrt(6),  # 3 x 3 windows at 2 x 3 places
    "operator_max_pool_1d": 1.0,
    "operator_softmin": 0.5,
}


@pytest.mark.parametrize("name", OVERLAP)
def test_the_bound_of_a_single_layer_is_its_constant(name):
    bound = certify(read(name)[2].network, method="norm-product").upper_bound
    assert OVERLAP[name] <= bound <= OVERLAP[name] * (1 + 1e-9)


def _groups(group):
    order = np.argsort(group, kind="stable")
    return order, np.unique(group[order], return_index=True)[1]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence_that_says_why(name):
    case = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.make().eval()
    with pytest.raises(case.error, match=re.escape(case.says)) as caught:
        Extractor(model, torch.zeros(3, *case.shape))
    assert type(caught.value) is case.error
    if isinstance(caught.value, UnsupportedModuleError):
        assert caught.value.verdict == case.verdict, str(caught.value)
