"""TorusForm: what its multipliers prove for the image, its gradient, what it refuses."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.bounds.inequality import frequencies
from lightning_lipschitz.bounds.inequality.sweep import congruent, gram
from lightning_lipschitz.certificate import prove
from lightning_lipschitz.differentiable import DifferentiableBound
from lightning_lipschitz.differentiable.product import ProductForm
from lightning_lipschitz.differentiable.torus import NotOnTorusError, TorusForm
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.extraction import extract


def normed(channels):
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.running_var.uniform_(0.5, 2.0)
        norm.running_mean.normal_()
    return norm


def flat(*layers):
    return nn.Sequential(*layers[:-1], nn.Flatten(), layers[-1])


MODELS = {
    "2C2F": (
        (1, 12, 12),
        lambda: nn.Sequential(
            flat(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 4, 2, 1), nn.ReLU(), nn.Linear(54, 10)),
            nn.ReLU(),
            nn.Linear(10, 4),
        ),
    ),
    "no stride": ((2, 8, 8), lambda: flat(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Linear(192, 3))),
    "no padding": (
        (1, 9, 7),
        lambda: flat(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, (3, 2), (2, 1)), nn.ReLU(), nn.Linear(48, 3)),
    ),
    "batch norm": (
        (1, 8, 8),
        lambda: flat(
            nn.Conv2d(1, 4, 3, padding=1),
            normed(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, 2, 1),
            normed(3),
            nn.ReLU(),
            nn.Linear(48, 3),
        ),
    ),
    "average pooling": (
        (1, 8, 8),
        lambda: flat(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Linear(20, 3),
        ),
    ),
    "depthwise": (
        (3, 6, 6),
        lambda: flat(
            nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Linear(180, 3)
        ),
    ),
    "global average": (
        (1, 8, 8),
        lambda: flat(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Linear(6, 3),
        ),
    ),
    "dilated, sigmoid": (
        (1, 8, 8),
        lambda: flat(nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.Sigmoid(), nn.Linear(256, 3)),
    ),
    "a padding before": (
        (1, 6, 6),
        lambda: flat(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(140, 3)),
    ),
    "two hidden layers": (
        (1, 8, 8),
        lambda: nn.Sequential(
            flat(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Linear(64, 12)),
            *(nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
        ),
    ),
    "one dimension": (
        (2, 16),
        lambda: flat(nn.Conv1d(2, 4, 4, 2, 1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.Linear(32, 3)),
    ),
}


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(1024, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last((h + torch.relu(self.inner(h))).flatten(1))


def pooled():
    first = nn.Conv2d(1, 16, 3, padding=1)
    return flat(first, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Linear(256, 3))


def counted():
    pooling = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return flat(pooling, nn.Conv2d(1, 16, 1), nn.ReLU(), nn.Linear(1024, 3))


def softmax():
    return nn.Sequential(flat(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Linear(1152, 3)), nn.Softmax(1))


REFUSED = {
    "max pooling": ((1, 8, 8), pooled),
    "skip": ((1, 8, 8), Skip),
    "leaky": ((1, 8, 8), lambda: flat(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Linear(1024, 3))),
    "reflection": (
        (1, 8, 8),
        lambda: flat(nn.Conv2d(1, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Linear(1024, 3)),
    ),
    "circular": (
        (1, 8, 8),
        lambda: flat(nn.Conv2d(1, 16, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Linear(1024, 3)),
    ),
    "another count at the border": ((1, 8, 8), counted),
    "softmax": ((1, 8, 8), softmax),
    "dense": ((8,), lambda: nn.Sequential(nn.Linear(8, 1100), nn.ReLU(), nn.Linear(1100, 3))),
}


def made(name, dtype=torch.float32):
    shape, model = {**MODELS, **REFUSED}[name]
    torch.manual_seed(0)
    return model().to(dtype).eval(), torch.zeros(1, *shape, dtype=dtype)


def descended(form, steps):
    for _ in range(steps):
        form.whole()
        form.step()
    return form


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_proves_it_and_it_is_above_lipsdp_and_below_the_product(name):
    model, x = made(name)
    network, form = extract(model, x), TorusForm(model, x)
    best = ll.certify(network, method="lipsdp-neuron", rtol=1e-6).upper_bound
    for steps in (0, 100):
        value = float(descended(form, steps).whole().detach())
        proved = prove(network, form.multipliers())
        assert best * (1 - 1e-6) <= proved <= value * (1 + 1e-6)
    product = ProductForm(model, x, iterations=200)
    assert value < float(product.whole().detach())


@pytest.mark.parametrize("name", ["2C2F", "batch norm", "global average", "one dimension"])
def test_pairs_are_proved_by_the_multipliers(name):
    model, x = made(name)
    form = TorusForm(model, x)
    for _ in range(30):
        form.pairs()
        form.step()
    K = form.pairs().detach().numpy()
    assert not np.diagonal(K).any()
    found = ll.pairwise_bounds(model, x, refine=False, warm_start=form.multipliers())
    assert np.all(found.matrix <= K * (1 + 1e-6))
    found.verify(model, x)


@pytest.mark.parametrize("name", ["2C2F", "no stride", "batch norm", "average pooling", "depthwise", "one dimension"])
@pytest.mark.parametrize("what", ["whole", "pairs"])
def test_the_gradient_is_that_of_finite_differences(name, what):
    """At multipliers that are near the best for these weights, and held there."""
    model, x = made(name, torch.float64)
    form = TorusForm(model, x)

    def value():
        return form.whole() if what == "whole" else form.pairs().square().sum()

    for _ in range(300):
        value()
        form.step()
    value().backward()
    parameters = [p for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 1e-9]
    generator, step = torch.Generator().manual_seed(0), 1e-6
    moves = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((p.grad * move).sum()) for p, move in zip(parameters, moves, strict=True))
    ends = []
    for sign in (step, -step):
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.add_(move, alpha=sign)
            ends.append(float([value() for _ in range(30)][-1]))
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move, alpha=sign)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-3)


@pytest.mark.parametrize("summed", [False, True])
def test_the_derivative_of_complex_congruences(summed):
    torch.manual_seed(0)
    B = torch.randn(3, 4, 4, dtype=torch.complex128, requires_grad=True)
    V = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def function(B, V):
        X = gram(B) + 2.0 * torch.eye(4)
        factor, W = torch.linalg.cholesky(X.detach()), torch.complex(V[:, 0], V[:, 1])
        if not summed:
            return congruent(X, factor, W)
        pivot = frequencies._Pivots(torch.ones(()), X, factor)
        return frequencies._summed(pivot, V.flatten(1, 2))

    W = torch.complex(V[:, 0], V[:, 1])
    expected = W.mH @ torch.linalg.solve(gram(B) + 2.0 * torch.eye(4), W)
    torch.testing.assert_close(function(B, V), expected.real.sum(0) if summed else expected)
    loose = {"rtol": 1e-4, "atol": 1e-5} if summed else {}  # its derivative is in single precision
    assert torch.autograd.gradcheck(function, (B, V), **loose)


def test_eigenvalues_that_lag_behind_are_found_out():
    """After a jump of the weights the warm vectors are wrong, and a factorisation says so."""
    model, x = made("2C2F")
    form = descended(TorusForm(model, x), 50)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    network, value = extract(model, x), float(form.whole().detach())
    assert prove(network, form.multipliers()) <= value * (1 + 1e-6)


def test_it_follows_the_weights_and_batch_norms_statistics():
    model, x = made("batch norm")
    form = TorusForm(model, x)

    def value():
        return float([form.whole() for _ in range(50)][-1].detach())

    before = value()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
        model[1].running_var.mul_(4.0).add_(3.0 * model[1].eps)
    assert value() == pytest.approx(before, rel=1e-5)
    with torch.no_grad():
        model[-1].weight.mul_(3.0)
    assert value() == pytest.approx(3.0 * before, rel=1e-5)


def test_weights_that_are_zero_when_it_is_made():
    model, x = made("2C2F")
    kept = model[0][2].weight.detach().clone()
    nn.init.zeros_(model[0][2].weight)
    form = TorusForm(model, x)
    with torch.no_grad():
        model[0][2].weight.copy_(kept)
    assert float(form.whole().detach()) == pytest.approx(float(TorusForm(model, x).whole().detach()))


def test_scales_far_from_one_and_weights_that_are_all_zero():
    model, x = made("2C2F", torch.float64)
    value = float(TorusForm(model, x).whole().detach())
    for scale in (1e-12, 1e12):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            scaled[0][0].weight.mul_(scale)
        form = TorusForm(scaled, x)
        assert float(form.whole().detach()) == pytest.approx(scale * value)
        form.pairs().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in scaled.parameters())
    with torch.no_grad():
        model[0][2].weight.zero_()
    with pytest.raises(SolverError):
        TorusForm(model, x).whole()


def test_its_state_goes_on_where_it_was():
    model, x = made("2C2F")
    one, other = descended(TorusForm(model, x), 20), TorusForm(model, x)
    other.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    copied = copy.deepcopy(one)
    values = [float(descended(form, 3).whole().detach()) for form in (one, other, copied)]
    assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-12)
    other.load_state_dict({"multipliers": {}, "eigenvectors": {}})  # of explicit matrices: nothing is taken


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name):
    model, x = made(name)
    with pytest.raises(NotOnTorusError):
        TorusForm(model, x)
    assert DifferentiableBound(model, x).method == "product"


def test_it_is_chosen_where_explicit_matrices_are_large():
    torch.manual_seed(0)
    model, x = flat(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Linear(3136, 10)), torch.zeros(1, 1, 28, 28)
    for method in ("auto", "sweep"):
        bound = DifferentiableBound(model, x, method=method)
        assert (bound.method, type(bound._form)) == ("sweep", TorusForm)
    bound().backward()
    bound.step()
    assert model[0].weight.grad.abs().max() > 0
    assert bound.multipliers() is not None


def test_matrices_that_would_not_fit_have_no_multipliers():
    torch.manual_seed(0)
    model = flat(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2))
    form = TorusForm(model, torch.zeros(1, 3, 32, 32))
    assert form.pairs().shape == (2, 2)
    assert form.multipliers() is None
