"""The graph is the model."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lightning_lipschitz.errors import ExtractionError, NonFiniteError, UnsupportedModuleError
from lightning_lipschitz.extraction import GraphExtractor, RoutedExtractor
from lightning_lipschitz.graph import Convolution, Gather, Graph, Scaling
from lightning_lipschitz.graph.network import Network
from tests.graph.models import make
from tests.models import Lambda, randomized_norm


def test_normalisations_become_part_of_the_convolution():
    model, shape = make("small_resnet")
    kinds = [type(node) for node in GraphExtractor(model, torch.zeros(1, *shape)).network().nodes]
    assert Scaling not in kinds
    assert Gather not in kinds
    unfolded = [type(node) for node in GraphExtractor(model, torch.zeros(1, *shape)).unfolded().nodes]
    assert unfolded.count(Scaling) == 5


def test_a_normalisation_that_others_see_unscaled_stays():
    model = Lambda(
        lambda m, x: m.norm(m.conv(x)) + m.conv(x) * 0 + torch.relu(m.conv(x)),
        conv=nn.Conv1d(2, 2, 1),
        norm=randomized_norm(nn.BatchNorm1d, 2),
    ).eval()
    GraphExtractor(model, torch.zeros(1, 2, 3))


def test_folding_accounts_for_its_rounding():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), randomized_norm(nn.BatchNorm1d, 3)).eval()
    (node,) = GraphExtractor(model, torch.zeros(1, 2, 4)).network().nodes[1:]
    assert isinstance(node, Convolution)
    conv, norm = model
    exact = [
        [float(a) for a in row]
        for row in (conv.weight.double() * (norm.weight / (norm.running_var + norm.eps).sqrt()).double()[:, None, None])
        .detach()
        .reshape(3, -1)
    ]
    assert 0 < node.rounding < 1e-14
    np.testing.assert_allclose(node.kernel.reshape(3, -1), exact, rtol=1e-6)


def test_circular_padding_is_a_torus():
    model, shape = make("conv_circular")
    (node,) = GraphExtractor(model, torch.zeros(1, *shape)).network().nodes[1:]
    assert node.circular


REFUSED = {
    "attention": ("bounded inputs", lambda x: F.scaled_dot_product_attention(*[x.unsqueeze(-1)] * 3), "attention"),
    "product": ("bounded inputs", lambda x: x * x.tanh(), "`mul`"),
    "transform": ("not yet", lambda x: torch.fft.fft(x).real, "`fft_fft`"),
    "dropout": ("replace", lambda x: F.dropout(x), "nn.Dropout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_verdict(name):
    verdict, function, says = REFUSED[name]
    model = nn.Sequential(nn.Linear(3, 4), Lambda(lambda m, x: function(x)))
    with pytest.raises(UnsupportedModuleError, match=re.escape(says)) as caught:
        GraphExtractor(model, torch.zeros(1, 3))
    assert caught.value.verdict == verdict


def test_samples_must_not_mix():
    for function in (lambda x: x - x.mean(0), lambda x: x + x.roll(1, 0), lambda x: torch.softmax(x, 0)):
        with pytest.raises(ExtractionError, match="amples of a batch"):
            GraphExtractor(Lambda(lambda m, x, f=function: f(x)), torch.zeros(1, 3))


def test_a_graph_that_is_not_the_model_is_an_error():
    model = Lambda(lambda m, x: x * 2 if x.shape[0] > 1 else x)
    with pytest.raises(ExtractionError, match="does not reproduce"):
        GraphExtractor(model, torch.zeros(1, 3))


def test_weights_must_be_finite():
    model = nn.Conv2d(1, 1, 2)
    model.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="`weight`"):
        GraphExtractor(model, torch.zeros(1, 1, 3, 3))


def test_the_route_depends_on_the_size_alone():
    small, large = nn.Conv2d(1, 2, 3), nn.Conv2d(3, 32, 3)
    assert isinstance(RoutedExtractor(small, torch.zeros(1, 1, 8, 8)).network(), Network)
    assert isinstance(RoutedExtractor(large, torch.zeros(1, 3, 64, 64)).network(), Graph)


def test_the_function_is_differentiable():
    model, shape = make("small_resnet")
    function = GraphExtractor(model, torch.zeros(1, *shape)).function()
    x = torch.randn(2, *shape, dtype=torch.float64).flatten(1).requires_grad_()
    function(x).sum().backward()
    assert x.grad.abs().sum() > 0
