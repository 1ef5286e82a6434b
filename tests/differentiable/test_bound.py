"""DifferentiableBound: its number, its gradient, what follows the weights, and what is left alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.certificate import prove
from lightning_lipschitz.differentiable import DifferentiableBound
from lightning_lipschitz.errors import ArgumentError, SolverError
from lightning_lipschitz.extraction import extract


class Residual(nn.Module):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.activation = activation()

    def forward(self, x):
        h = self.activation(self.first(x))
        return self.last(h + self.activation(self.inner(h)))


def chain(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 6), activation(), nn.Linear(6, 3))


def normed():
    net = chain()
    for k in (0, 2):
        nn.utils.parametrizations.weight_norm(net[k])
    return net


def shared():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(5, 3))


MODELS = {
    "chain": chain,
    "tanh": lambda: chain(nn.Tanh),
    "leaky": lambda: chain(lambda: nn.LeakyReLU(0.2)),
    "silu": lambda: chain(nn.SiLU),
    "residual": Residual,
    "residual tanh": lambda: Residual(nn.Tanh),
    "weight norm": normed,
    "shared": shared,
    "batch norm": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ),
    "one output": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)),
}
X = torch.zeros(2, 5)


def made(name):
    torch.manual_seed(0)
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_it_is_above_lipsdp_and_proved_at_its_value(name):
    model = made(name)
    bound = DifferentiableBound(model, X, method="sweep")
    for _ in range(20):
        bound()
        bound.step()
    value, network = float(bound().detach()), extract(model.eval(), X)
    proved = prove(network, bound.multipliers())
    best = ll.certify(network, method="lipsdp-neuron").upper_bound
    assert best * (1 - 1e-5) <= proved <= value * (1 + 1e-6)
    assert value <= 1.25 * ll.certify(network, method="closed-form").upper_bound


@pytest.mark.parametrize("name", [name for name in MODELS if name != "one output"])
def test_pairs_are_proved_by_the_multipliers(name):
    model = made(name)
    bound = DifferentiableBound(model, X)
    K = bound.pairs()
    assert not torch.diagonal(K).any()
    found = ll.pairwise_bounds(model.eval(), X, refine=False, warm_start=bound.multipliers())
    assert np.all(found.matrix <= K.detach().numpy() * (1 + 1e-6))
    found.verify(model, X)


@pytest.mark.parametrize("name", ["chain", "residual", "weight norm", "shared", "batch norm", "convolution"])
@pytest.mark.parametrize("what", ["whole", "pairs"])
def test_the_gradient_is_that_of_finite_differences(name, what):
    """At multipliers that are best for these weights: near the best, what they depend on does not matter."""
    model = made(name).double().eval()
    bound = DifferentiableBound(model, X.double())

    def value():
        return bound() if what == "whole" else bound.pairs().square().sum()

    for _ in range(300):
        value()
        bound.step()
    value().backward()
    parameters = [p for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 1e-9]
    assert parameters
    generator, step = torch.Generator().manual_seed(0), 1e-6
    moves = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((p.grad * move).sum()) for p, move in zip(parameters, moves, strict=True))
    ends = []
    for sign in (step, -step):
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.add_(move, alpha=sign)
            ends.append(float(value()))
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move, alpha=sign)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-3)


def test_nothing_of_the_model_or_of_torch_is_touched():
    model = made("batch norm").train()
    keys, flags, state = list(model.state_dict()), [m.training for m in model.modules()], torch.get_rng_state()
    buffers = [b.clone() for b in model.buffers()]
    bound = DifferentiableBound(model, X)
    bound()
    bound.pairs()
    bound.step()
    assert list(model.state_dict()) == keys
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_it_follows_the_weights():
    model = made("chain")
    bound = DifferentiableBound(model, X)
    before = float(bound().detach())
    with torch.no_grad():
        model[4].weight.mul_(3.0)
    assert float(bound().detach()) == pytest.approx(3.0 * before, rel=1e-5)


def test_weights_that_were_zero_when_it_was_made_are_seen_later():
    model = made("residual")
    nn.init.zeros_(model.inner.weight)
    bound = DifferentiableBound(model, X)
    nn.init.eye_(model.inner.weight)
    with torch.no_grad():
        assert float(bound()) >= ll.certify(model, X, method="lipsdp-neuron").upper_bound * (1 - 1e-6)


def test_the_state_goes_on():
    one, other = (DifferentiableBound(made("chain"), X) for _ in range(2))

    def run(bound, steps):
        for _ in range(steps):
            bound.pairs()
            bound.step()
        return bound.pairs().detach()

    run(one, 5)
    other.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    assert torch.equal(run(one, 3), run(other, 3))


def test_copies_go_with_the_copied_model():
    model = made("chain")
    holder = nn.Module()
    holder.net, holder.bound = model, DifferentiableBound(model, X)
    other = copy.deepcopy(holder)
    with torch.no_grad():
        other.net[4].weight.mul_(2.0)
        assert float(other.bound()) == pytest.approx(2.0 * float(holder.bound()), rel=1e-6)
    assert "bound" not in "".join(other.state_dict())


def test_autocast_and_gradients_that_are_off_change_nothing():
    bound = DifferentiableBound(made("chain"), X)
    state = bound.state_dict()
    plain = bound.pairs().detach()
    bound.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.allclose(bound.pairs(), plain, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"method": "norm"}, ArgumentError, "one of 'auto', 'sweep', 'product'"),
        ({"example_input": None}, ArgumentError, "example_input"),
        ({"module": "nothing"}, ArgumentError, "module"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, error, said):
    with pytest.raises(error, match=said):
        DifferentiableBound(made("chain"), **{"example_input": X, **arguments})


def test_weights_that_are_all_zero_are_named():
    model = made("chain")
    bound = DifferentiableBound(model, X)
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(SolverError, match="zero"):
        bound()
