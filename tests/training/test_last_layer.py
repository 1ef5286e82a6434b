"""The last affine layer: found by trial, multiplied to a bound, decisions as before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lightning_lipschitz as ll
from lightning_lipschitz.errors import ArgumentError, NonFiniteError, ProjectionError, SolverError
from lightning_lipschitz.training import decisions
from lightning_lipschitz.training.last_layer import last_layer
from tests.models import Lambda

X, IMAGE = torch.zeros(2, 6), torch.zeros(2, 1, 6, 6)


def mlp(*behind, last=None):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), last or nn.Linear(8, 3), *behind)


def old_weight_norm(module):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


def pruned():
    model = mlp()
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


def zero_head():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model


def siamese():
    """The last layer is used twice, and both uses are part of the sum."""

    def forward(m, x):
        h = torch.relu(m.first(x))
        return m.last(h) - 3.0 * m.last(h.flip(1))

    return Lambda(forward, first=nn.Linear(6, 8), last=nn.Linear(8, 3))


def unused_behind():
    """Layers that are called later, and nobody reads what they give."""

    def forward(m, x):
        h = torch.relu(m.first(x))
        y = m.last(h)
        m.spare(h)
        return y[:, :2]

    return Lambda(forward, first=nn.Linear(6, 8), last=nn.Linear(8, 3), spare=nn.Linear(8, 4))


def images(*tail):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *tail)


def residual():
    def forward(m, x):
        h = torch.relu(m.first(x))
        return m.last(h + torch.tanh(m.second(h)))

    return Lambda(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 8), last=nn.Linear(8, 3))


FOUND = {  # the model, its input, the module, and the tensors of it that are multiplied
    "linear": (mlp, X, "2", {"weight", "bias"}),
    "without a bias": (lambda: mlp(last=nn.Linear(8, 3, bias=False)), X, "2", {"weight"}),
    "one layer": (lambda: nn.Linear(6, 3), X, "", {"weight", "bias"}),
    "dropout, reshape": (lambda: mlp(nn.Dropout(), nn.Unflatten(1, (3, 1))), X, "2", {"weight", "bias"}),
    "batch norm": (lambda: mlp(nn.BatchNorm1d(3)), X, "3", {"weight", "bias"}),
    "convolution": (lambda: images(nn.Conv2d(4, 3, 2), nn.AvgPool2d(2), nn.Flatten()), IMAGE, "3", {"weight", "bias"}),
    "transposed": (
        lambda: images(nn.ConvTranspose2d(4, 2, 3), nn.Upsample(scale_factor=2)),
        IMAGE,
        "3",
        {"weight", "bias"},
    ),
    "weight norm": (
        lambda: mlp(last=parametrizations.weight_norm(nn.Linear(8, 3))),
        X,
        "2",
        {"parametrizations.weight.original0", "bias"},
    ),
    "old weight norm": (lambda: mlp(last=old_weight_norm(nn.Linear(8, 3))), X, "2", {"weight_g", "bias"}),
    "pruned": (pruned, X, "2", {"weight_orig", "bias"}),
    "zeros": (zero_head, X, "2", {"weight", "bias"}),
    "used twice": (siamese, X, "last", {"weight", "bias"}),
    "unused behind": (unused_behind, X, "last", {"weight", "bias"}),
    "residual": (residual, X, "last", {"weight", "bias"}),
    "frozen wholly": (lambda: mlp().requires_grad_(False), X, "2", {"weight", "bias"}),
    "relu": (lambda: mlp(nn.ReLU()), X, "2", {"weight", "bias"}),
    "double": (lambda: mlp().double(), X.double(), "2", {"weight", "bias"}),
    "bfloat16": (lambda: mlp().bfloat16(), X.bfloat16(), "2", {"weight", "bias"}),
}


@pytest.fixture(params=FOUND)
def case(request):
    torch.manual_seed(0)
    make, x, path, tensors = FOUND[request.param]
    return make().train(), x, path, tensors


def test_the_last_affine_layer_is_found(case):
    model, x, path, tensors = case
    before, hooks = copy.deepcopy(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    layer = last_layer(model, x)
    assert (layer.path, set(layer.names)) == (path, {f"{path}.{name}" if path else name for name in tensors})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(m.training for m in model.modules())


def test_decisions_are_kept_at_the_bound(case):
    model, x, path, tensors = case
    samples = torch.randn(200, *x.shape[1:], generator=torch.Generator().manual_seed(1)).to(x.dtype)
    model.eval()
    full = ll.certify(model, x).upper_bound
    bound = 0.37 * full if full else 1.0
    outputs, before = model(samples).detach().double(), copy.deepcopy(model.state_dict())
    certificate = ll.project(model, bound, x, keep="decisions")
    assert certificate.upper_bound <= bound
    assert ll.verify(certificate, model, x) == certificate.upper_bound
    assert ll.certify(model, x).upper_bound <= bound * (1 + 1e-9)
    after = model(samples).detach().double()
    fine = x.dtype is not torch.bfloat16
    assert torch.allclose(
        after, (0.37 if full else 1.0) * outputs, rtol=1e-4 if fine else 0.05, atol=1e-5 if fine else 0.02
    )
    if fine:
        assert torch.equal(after.flatten(1).argmax(1), outputs.flatten(1).argmax(1))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= {f"{path}.{name}" if path else name for name in tensors}


def half_shared():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def frozen_head():
    model = mlp()
    model[2].weight.requires_grad_(False)
    return model


def gated_skip():
    """The skip connection is closed at the beginning, and training may open it."""
    return Lambda(
        lambda m, x: m.gate(x) + m.g(x),
        gate=nn.Linear(6, 3).requires_grad_(True),
        g=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def closed(model):
    for parameter in model.gate.parameters():
        nn.init.zeros_(parameter)
    return model


REFUSED = {
    "softmax": (lambda: mlp(nn.Softmax(1)), "Something stands behind it, such as a softmax"),
    "tanh": (lambda: mlp(nn.Tanh()), "last affine layer"),
    "clipped far out": (lambda: mlp(nn.Hardtanh(-100.0, 100.0)), "last affine layer"),
    "skip": (lambda: Lambda(lambda m, x: x - m.g(x), g=mlp(last=nn.Linear(8, 6))), "skip connection"),
    "skip that is closed": (lambda: closed(gated_skip()), "skip connection"),
    "constant behind": (lambda: Lambda(lambda m, x: m.g(x) + 1.0, g=mlp()), "last affine layer"),
    "batch norm without parameters": (lambda: mlp(nn.BatchNorm1d(3, affine=False)), "`2`"),
    "shared weights": (half_shared, "shares weights"),
    "used twice, in a row": (
        lambda: Lambda(lambda m, x: m.g(torch.relu(m.g(x))), g=nn.Linear(6, 6)),
        "shares weights",
    ),
    "frozen": (frozen_head, "`2.weight` is frozen"),
    "spectral norm": (lambda: mlp(last=parametrizations.spectral_norm(nn.Linear(8, 3))), "_SpectralNorm"),
    "no parameters": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), "affine layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_end_in_an_affine_layer_is_refused(name):
    make, words = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ProjectionError, match=words) as caught:
        ll.project(model, 0.1, X, keep="decisions")
    assert "module=" in str(caught.value) or name == "spectral norm"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_layer_is_found_whatever_stands_behind_is_closed_today():
    """With parameters as they are, half of the last layer is half of the output: only the disturbance shows more."""
    torch.manual_seed(0)
    model = closed(gated_skip()).eval()
    x = torch.randn(5, 6)
    full = model(x)
    with torch.no_grad():
        for parameter in model.g[2].parameters():
            parameter.mul_(0.5)
    assert torch.equal(model(x), 0.5 * full)


def test_a_model_beyond_explicit_matrices():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4096, 10),
    ).eval()
    x = torch.randn(64, 3, 32, 32)
    with pytest.raises(ProjectionError, match="explicit matrices"):
        ll.project(model, 0.3, x)
    outputs = model(x)
    assert ll.project(model, 0.3, x, keep="decisions").upper_bound <= 0.3
    found = ll.certify(model, x)
    assert found.method == "composed"
    assert 0.3 * (1 - 1e-4) <= found.upper_bound <= 0.3
    assert torch.equal(model(x).argmax(1), outputs.argmax(1))


def test_a_model_that_meets_the_bound_is_not_touched():
    torch.manual_seed(0)
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    assert ll.project(model, 1e3, X, keep="decisions").upper_bound < 1e3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_reads_back_otherwise_is_put_back(monkeypatch):
    torch.manual_seed(0)
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    copied, real = [], decisions._copy

    def wrong_at_first(live, values):
        real(live, values if copied else {name: value + 1.0 for name, value in values.items()})
        copied.append(values)

    monkeypatch.setattr(decisions, "_copy", wrong_at_first)
    with pytest.raises(SolverError, match="do not read back"):
        ll.project(model, 0.01, X, keep="decisions")
    assert len(copied) == 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="keep"):
        ll.project(mlp(), 1.0, X, keep="everything")
    model = mlp()
    model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        ll.project(model, 1.0, X, keep="decisions")
