"""project: which models can be written, and what is left of them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lightning_lipschitz as ll
from lightning_lipschitz.bounds import cost
from lightning_lipschitz.errors import ArgumentError, NonFiniteError, ProjectionError, SolverError
from lightning_lipschitz.training import project
from lightning_lipschitz.weights import chain_weights

X = torch.zeros(2, 6)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


class Nested(nn.Module):
    """Layers out of order, a functional activation, a reshaped input."""

    example_input_array = torch.zeros(2, 2, 3)

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(5, 2), nn.Linear(6, 5, bias=False)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flatten(1))))


MODELS = {
    "plain": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)),
    "dropout, flatten, identity": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8), nn.Dropout(), nn.ReLU(), nn.Identity(), nn.Linear(8, 3)
    ),
    "one layer": lambda: nn.Linear(6, 3),
    "leaky": lambda: nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)),
    "gelu": lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)),
    "weight norm of columns": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 3), dim=1)
    ),
    "weight norm of all": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 3), dim=None)
    ),
    "old weight norm": lambda: nn.Sequential(old_weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)),
    "nested": Nested,
    "frozen": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False),
    "double": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double(),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


def inputs(model):
    return getattr(model, "example_input_array", X).to(next(model.parameters()))


def test_the_model_meets_the_bound_and_keeps_everything_else(model):
    bound = ll.certify(model, inputs(model)).upper_bound
    before, training = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    certificate = project(model, bound / 2, inputs(model))
    assert certificate.upper_bound <= bound / 2
    assert ll.verify(certificate, model, inputs(model)) == certificate.upper_bound
    assert [m.training for m in model.modules()] == training
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if "bias" in name)
    assert all(value.isfinite().all() for value in after.values())


def test_a_model_that_meets_the_bound_is_not_touched(model):
    bound = ll.certify(model, inputs(model)).upper_bound
    before = copy.deepcopy(model.state_dict())
    assert project(model, 1.001 * bound, inputs(model)).upper_bound <= bound * (1 + 1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["plain", "weight norm", "one layer"])
def test_a_tiny_bound_leaves_finite_parameters(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    for bound in (1e-20, 1e-100):
        assert project(model, bound, X).upper_bound <= bound
        assert all(value.isfinite().all() for value in model.state_dict().values())


def test_the_example_input_of_the_module_is_used():
    assert project(Nested(), 0.1).upper_bound <= 0.1


def test_weights_written_are_weights_read(model):
    weights = chain_weights(model, inputs(model))
    new = [0.5 * w.double() for w in weights.read()]
    promised, encoded = weights.realise(new), weights.encode(new)
    weights.write(new)
    assert all(torch.equal(a, b) for a, b in zip(promised, weights.read(), strict=True))
    state = model.state_dict()
    assert set(encoded) == set(weights.parameter_names) <= set(state)
    assert all(torch.equal(state[name], value) for name, value in encoded.items())
    assert all(torch.equal(a, b) for a, b in zip(weights.read(state), promised, strict=True))
    assert all(torch.allclose(a.double(), b, rtol=1e-6) for a, b in zip(promised, new, strict=True))


def test_the_matrices_are_functions_of_the_parameters():
    model = MODELS["weight norm"]()
    sum(w.sum() for w in chain_weights(model, X).differentiable()).backward()
    assert model[0].parametrizations.weight.original0.grad is not None
    assert model[2].weight.grad is not None


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight.requires_grad_(False)
    return model


def convolution(wrap=lambda module: module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 6)), wrap(nn.Conv1d(1, 2, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def partly_frozen_convolution() -> nn.Module:
    model = convolution()
    model[1].weight.requires_grad_(False)
    return model


class Skip(nn.Module):
    """x + g(x)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.relu(self.layer(x))


def old_spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2))


REFUSED = {
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2)),
        "`0`.*_SpectralNorm",
    ),
    "old spectral norm": (old_spectral_norm, "`0`.*spectral_norm"),
    "orthogonal": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), parametrizations.orthogonal(nn.Linear(6, 6))),
        "`2`.*_Orthogonal",
    ),
    "spectral norm of a convolution": (
        lambda: convolution(parametrizations.spectral_norm),
        r"`1` \(Conv1d\).*_Spectral",
    ),
    "skip connection alone": (Skip, "skip connections, frozen layers and .* has a Lipschitz bound of 1 "),
    "no weights": (lambda: nn.Sequential(nn.ReLU(), nn.Sigmoid()), "no weights"),
    "too large": (lambda: nn.Sequential(Skip(), nn.Linear(6, 4100), nn.ReLU()), "4112 inputs and units"),
}


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer in (model[0], model[2]):
        prune.l1_unstructured(layer, "weight", 0.5)
    return model


def pruned_convolution() -> nn.Module:
    model = convolution()
    prune.l1_unstructured(model[1], "weight", 0.5)
    return model


def pruned_channels() -> nn.Module:
    """A channel of a convolution, and all that reads an input channel of the next."""
    layers = (nn.Conv1d(2, 4, 2), nn.Tanh(), nn.Conv1d(4, 2, 1))
    model = nn.Sequential(nn.Unflatten(1, (2, 3)), *layers, nn.Flatten(), nn.Linear(4, 2))
    prune.ln_structured(model[1], "weight", amount=1, n=2, dim=0)
    prune.ln_structured(model[3], "weight", amount=0.25, n=1, dim=1)
    return model


def pruned_over_all_layers() -> nn.Module:
    model = convolution()
    pairs = [(model[1], "weight"), (model[4], "weight"), (model[4], "bias")]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.4)
    return model


def pruned_transposed() -> nn.Module:
    layers = (nn.ConvTranspose1d(2, 3, 2), nn.ReLU(), nn.Conv1d(3, 1, 2, groups=1))
    model = nn.Sequential(nn.Unflatten(1, (2, 3)), *layers, nn.Flatten())
    for layer in (model[1], model[3]):
        prune.random_unstructured(layer, "weight", 3)
    return model


def pruned_and_frozen_convolution() -> nn.Module:
    """The mask is of one layer, the frozen weights are another's."""
    model = pruned_convolution()
    model[4].weight.requires_grad_(False)
    return model


PRUNED = [
    pruned,
    pruned_convolution,
    pruned_channels,
    pruned_over_all_layers,
    pruned_transposed,
    pruned_and_frozen_convolution,
]


@pytest.mark.parametrize("make", [partly_frozen, partly_frozen_convolution, *PRUNED])
def test_what_is_frozen_or_masked_stays_and_the_rest_gives_way(make):
    torch.manual_seed(0)  # of some weights, pruning over all layers leaves one layer whole
    model = make()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    masks = {name: mask.clone() for name, mask in model.named_buffers()}
    assert project(model, 0.05, X).upper_bound <= 0.05
    assert ll.certify(model, X, rtol=1e-6).upper_bound <= 0.05 * (1 + 1e-6)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    model(X)  # masks are applied in the forward
    for name, mask in masks.items():
        layer, _, which = name.removesuffix("_mask").partition(".")
        assert (mask == 0).any() or which == "bias"
        assert torch.equal(model.get_buffer(name), mask)
        assert not getattr(model.get_submodule(layer), which)[mask == 0].any()


def test_a_weight_that_is_frozen_in_part_is_refused():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    model[0].parametrizations.weight.original0.requires_grad_(False)
    with pytest.raises(ProjectionError, match=r"frozen in part.*`0.parametrizations.weight.original0` and"):
        project(model, 0.1, X)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_by_name(name):
    make, message = REFUSED[name]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ProjectionError, match=message):
        project(model, 1e-3, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_lipschitz": 0.0}, "max_lipschitz"),
        ({"max_lipschitz": -1.0}, "max_lipschitz"),
        ({"max_lipschitz": math.nan}, "max_lipschitz"),
        ({"max_lipschitz": 1.0, "rtol": 0.0}, "rtol"),
        ({"max_lipschitz": 1.0, "max_rounds": 0}, "max_rounds"),
        ({"max_lipschitz": 1.0, "time_limit": -1.0}, "time_limit"),
    ],
)
def test_unusable_arguments_are_named(arguments, name):
    with pytest.raises(ArgumentError, match=name):
        project(nn.Linear(6, 2), example_input=X, **arguments)


def test_weights_that_are_not_finite_are_refused():
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="weight"):
        project(model, 1.0, X)


def test_explicit_matrices_that_would_be_too_large_are_refused_before_they_are_made():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
    with pytest.raises(ProjectionError, match=r"the matrices up to `.` take .* GiB: not yet.*CLIPMixin"):
        project(model, 1e-3, torch.zeros(2, 1, 128, 128))


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(30, 60), nn.Linear(60, 60), nn.Linear(60, 5)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h + torch.relu(self.second(h)))


LARGE = {
    "chain": lambda: nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 5)),
    "residual": Skips,
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 30)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten()),
}


@pytest.mark.parametrize("share", [0.5, 1e-3])
@pytest.mark.parametrize("name", LARGE)
def test_without_the_time_for_a_projection_all_weights_are_scaled_alike(name, share, monkeypatch):
    monkeypatch.setattr(cost, "seconds", lambda network: 1e6)
    monkeypatch.setattr(cost, "first_step", lambda network: cost.Work(product=1e30))
    torch.manual_seed(0)
    model, x = LARGE[name](), torch.zeros(2, 30)
    before = copy.deepcopy(model.state_dict())
    target = share * ll.certify(model, x, method="closed-form").upper_bound
    certificate = ll.project(model, target, x, time_limit=20.0)
    assert certificate.upper_bound <= target
    assert certificate.status is ll.Status.TIME_LIMIT
    assert ll.verify(certificate, model, x) == certificate.upper_bound
    ratios = [float((p.detach() / before[n]).mean()) for n, p in model.named_parameters() if "weight" in n]
    assert 0 < ratios[0] < 1
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-5)
    assert certificate.upper_bound >= 0.9 * target


def test_a_skip_that_no_scaling_changes_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(cost, "seconds", lambda network: 1e6)
    torch.manual_seed(0)
    model = Skip()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SolverError, match="in time"):
        ll.project(model, 0.5, torch.zeros(2, 6), time_limit=20.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
