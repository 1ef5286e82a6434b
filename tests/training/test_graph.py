"""project on models beyond chains: the map is the extractor's, the bound holds of what a file holds, and it is near."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.bounds.inequality import blocks_of
from lightning_lipschitz.errors import ProjectionError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.units import NotLinearisedError
from lightning_lipschitz.training import nearest, project, spectral_ball
from lightning_lipschitz.training.multipliers import widened
from lightning_lipschitz.training.path.quasi_newton import Evaluation, minimise
from lightning_lipschitz.weights import Store, graph_weights
from tests import models
from tests.models import Lambda
from tests.training.graphs import GRAPHS, build


@pytest.fixture(params=GRAPHS)
def case(request):
    return (request.param, *build(request.param))


# The map


ZOO = {name: made for name, made in models.ZOO.items() if isinstance(made, tuple)}
NOT_YET = (  # normalisations with weights
    "MLP-Mixer block",
    "ConvNeXt block",
    "group-normalised CNN",
    "style network",
    "RMS-normalised MLP",
    "layer-normalised MLP",
)


@pytest.mark.parametrize("name", ZOO)
def test_the_differentiable_map_gives_the_matrices_of_the_extractor(name):
    make, shape = ZOO[name]
    torch.manual_seed(0)
    model = make()
    extractor = Extractor(model, torch.zeros(2, *shape))
    network = extractor.network()
    if sum(network.sizes) > 500:
        pytest.skip("takes long")
    given = {name: p.detach().double() for name, p in model.named_parameters(remove_duplicate=False)}
    if name in NOT_YET:
        with pytest.raises(NotLinearisedError):
            extractor.linearised()
        return
    found = torch.cat(extractor.linearised()(given or {"none": torch.zeros(1)})).numpy()
    expected = network.rows()
    assert found == pytest.approx(expected, abs=1e-6 * max(1.0, np.abs(expected).max(initial=0.0)))
    rebuilt = network.with_matrices({key: block.numpy() for key, block in blocks_of(network).items()})
    assert rebuilt.sizes == network.sizes
    assert np.array_equal(rebuilt.rows(), expected)


def test_it_follows_the_parameters_and_the_buffers(case):
    _, model, x = case
    weights, generator = graph_weights(model, x), torch.Generator().manual_seed(1)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*moved.parameters(), *moved.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    own = {name: tensor.detach() for name, tensor in [*moved.named_parameters(), *moved.named_buffers()]}
    there = graph_weights(moved, x)
    network = there.network()
    found = weights.map(network, own).network(network, there.read())
    assert found.rows() == pytest.approx(network.rows(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("bias", [1e3, 1e9, 1e15, 1e30])
@pytest.mark.parametrize("name", ["residual", "cnn", "transposed", "max pooling", "standardised"])
def test_it_keeps_its_digits_beside_large_biases(name, bias):
    model, x = build(name)
    with torch.no_grad():
        for each in model.modules():
            if getattr(each, "bias", None) is not None:
                each.bias.fill_(bias)
    weights = graph_weights(model, x)
    network = weights.network()
    found = weights.map(network).network(network, weights.read())
    assert found.rows() == pytest.approx(network.rows(), rel=1e-6, abs=1e-9)


def test_only_what_acts_on_the_matrices_is_a_weight(case):
    _, model, x = case
    names = graph_weights(model, x).parameter_names
    assert not any("bias" in name for name in names)
    assert set(names) <= set(model.state_dict())


def test_weights_written_are_weights_read(case):
    _, model, x = case
    weights = graph_weights(model, x)
    new = [0.5 * w.double() for w in weights.read()]
    promised, state = weights.realise(new), weights.encode(new)
    weights.write(new)
    assert all(torch.equal(a, b) for a, b in zip(promised, weights.read(), strict=True))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_the_quasi_newton_method_stays_inside_and_finds_the_centre():
    """x - log(x) and the like, far from the start."""
    goal = torch.linspace(0.5, 4.0, 8, dtype=torch.float64)

    def function(x):
        return Evaluation(float((x / goal - x.log()).sum()), lambda: 1 / goal - 1 / x) if (x > 0).all() else None

    found, values = minimise(function, torch.full((8,), 9.0, dtype=torch.float64), iterations=100, tolerance=1e-14)
    assert found == pytest.approx(goal, rel=1e-5)
    assert values < 100


# The projection


@pytest.mark.parametrize(
    ("name", "share"), [*((name, 0.6) for name in GRAPHS), ("residual", 0.1), ("cnn", 0.1), ("transposed", 0.1)]
)
def test_the_bound_holds_of_the_file_and_all_else_stays(name, share, tmp_path):
    model, x = build(name)
    bound = ll.certify(model, x).upper_bound
    target = 1 + share * (bound - 1) if name == "skip" else share * bound
    before = copy.deepcopy(model.state_dict())
    certificate = project(model, target, x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = build(name)[0]
    again.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert certificate.upper_bound <= target
    assert ll.verify(certificate, again, x) == certificate.upper_bound
    steep = name not in ("transposed",)  # slopes without zero are widened, at some cost
    assert ll.certify(again, x).upper_bound >= (0.97 if steep else 0.9) * target
    written = set(graph_weights(again, x).parameter_names)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in before.items() if key not in written)


@pytest.mark.parametrize("name", ["residual", "skip", "tied", "cnn", "transposed", "one convolution"])
def test_it_is_nearer_than_all_weights_scaled_alike(name):
    model, x = build(name)
    weights, bound = graph_weights(model, x), ll.certify(model, x).upper_bound
    target = 1 + 0.3 * (bound - 1) if name == "skip" else 0.3 * bound
    given, network = weights.read(), weights.network()
    found = nearest(weights, given, network, target, Store(weights))
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = 0.5 * (low + high)
        there = weights.map(network).network(widened(network), [middle * w.double() for w in given])
        low, high = (middle, high) if ll.certify(there, rtol=1e-3).upper_bound <= target else (low, middle)
    scaled = (1 - low) * math.sqrt(sum(float(w.double().square().sum()) for w in given))
    assert found.distance <= scaled * (1 + 1e-2)
    if name != "one convolution":  # of one layer, little can be gained
        assert found.distance <= 0.95 * scaled


def test_a_model_that_meets_the_bound_is_not_touched(case):
    _, model, x = case
    bound, before = ll.certify(model, x).upper_bound, copy.deepcopy(model.state_dict())
    assert project(model, 1.001 * bound, x).upper_bound <= bound * (1 + 1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_on_a_chain_it_is_about_as_near_as_the_method_of_chains(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4))
    weights = graph_weights(model, torch.zeros(2, 8))
    network, given = weights.network(), weights.read()
    target = share * ll.certify(network).upper_bound
    there = spectral_ball.nearest(given, network, target)
    here = nearest(weights, given, network, target, Store(weights))
    assert here.distance <= 1.03 * there.distance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_of_weights_is_signed(dtype):
    model = build("residual")[0].to(dtype)
    x = torch.zeros(2, 6, dtype=dtype)
    target = 0.3 * ll.certify(model, x).upper_bound
    certificate = project(model, target, x)
    assert certificate.upper_bound <= target
    assert ll.certify(model, x).upper_bound >= 0.5 * target


@pytest.mark.parametrize("target", [1e-3, 1e-20])
def test_bounds_that_leave_next_to_nothing_give_finite_weights(target):
    model, x = build("residual")
    assert project(model, target, x).upper_bound <= target
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("divide", "found"),
    [
        (lambda w: w / w.norm(dim=1, keepdim=True), "has a Lipschitz bound of"),  # whatever the weights are
        (lambda w: torch.sqrt(w.abs() - w.abs().amin() / 2 - 1e-3), "its matrices are not finite at weights near zero"),
    ],
)
def test_what_no_small_weights_can_hold_is_refused_as_that(divide, found):
    torch.manual_seed(0)
    model = Lambda(lambda m, x: torch.relu(x) @ divide(m.a.weight).mT, a=nn.Linear(3, 3))
    with torch.no_grad():
        model.a.weight.copy_(1 + torch.rand(3, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ProjectionError, match=found):
        project(model, 0.1, torch.zeros(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
