"""The public functions: what they accept, what they refuse, and that they leave the model alone."""

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz import Certificate, Status, certify, lower_bound, verify
from lightning_lipschitz.errors import (
    ArgumentError,
    CertificateError,
    EmptyNetworkError,
    ExtractionError,
    NonFiniteError,
    ShapeError,
    SolverError,
    UnsupportedModuleError,
)
from tests.helpers import COUNTEREXAMPLE, TWO_BY_TWO, chain

X = torch.zeros(2, 2)


def model(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), *extra, nn.Linear(8, 3))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


NAN_MODEL = model()
with torch.no_grad():
    NAN_MODEL[2].weight[0, 0] = torch.nan

BAD_INPUT = {
    "NaN weights": (lambda: certify([[[1.0, np.nan]]]), NonFiniteError, "weight matrix 0"),
    "infinite weights": (lambda: certify([[[1.0, np.inf]]]), NonFiniteError, "weight matrix 0"),
    "NaN in a module": (lambda: certify(NAN_MODEL, X), NonFiniteError, "2.weight"),
    "data-dependent control flow": (lambda: certify(Branching(), X), ExtractionError, "Branching"),
    "unsupported operation": (lambda: certify(model(nn.Hardshrink()), X), UnsupportedModuleError, "`2`"),
    "shapes that do not chain": (lambda: certify([np.ones((3, 2)), np.ones((1, 4))]), ShapeError, "weight matrix 1"),
    "not matrices": (lambda: certify([np.ones(3)]), ShapeError, "weight matrix 0"),
    "no layer": (lambda: certify([]), EmptyNetworkError, "no layer"),
    "not a model": (lambda: certify("weights"), ArgumentError, "`model`"),
    "no example input": (lambda: certify(model()), ArgumentError, "`example_input`"),
    "slopes the wrong way": (lambda: certify(TWO_BY_TWO, slopes=(1, 0)), ArgumentError, "`slopes`"),
    "method": (lambda: certify(TWO_BY_TWO, method="lipsdp"), ArgumentError, "`method`"),
    "solver": (lambda: certify(TWO_BY_TWO, solver="mosek"), ArgumentError, "`solver`"),
    "rtol": (lambda: certify(TWO_BY_TWO, rtol=0), ArgumentError, "`rtol`"),
    "rtol, a word": (lambda: certify(TWO_BY_TWO, rtol="small"), ArgumentError, "`rtol`"),
    "device": (lambda: certify(TWO_BY_TWO, device="a large one"), ArgumentError, "`device`"),
    "time limit, a word": (lambda: certify(TWO_BY_TWO, time_limit="1 h"), ArgumentError, "`time_limit`"),
    "time limit": (lambda: certify(TWO_BY_TWO, time_limit=-1), ArgumentError, "`time_limit`"),
    "workers": (lambda: certify(TWO_BY_TWO, workers=0), ArgumentError, "`workers`"),
    "split size": (lambda: certify(TWO_BY_TWO, split_size=1.5), ArgumentError, "`split_size`"),
    "no inputs": (lambda: lower_bound(model(), torch.zeros(0, 2)), ArgumentError, "`inputs`"),
    "steps": (lambda: lower_bound(model(), X, steps=-1), ArgumentError, "`steps`"),
    "pairs": (lambda: lower_bound(model(), X, pairs=0), ArgumentError, "`pairs`"),
    "beyond float64": (lambda: certify([np.full((2, 2), 1e200)] * 3), SolverError, "range of float64"),
}


@pytest.mark.parametrize(("call", "error", "names"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_gets_a_typed_error_that_names_it(call, error, names):
    with pytest.raises(error) as raised:
        call()
    assert names in str(raised.value)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_weights_of_any_kind(kind):
    assert certify([kind(w) for w in TWO_BY_TWO]).upper_bound == pytest.approx(4 / 3**0.5, rel=2e-6)


def test_a_single_layer_is_its_norm():
    matrix = np.array([[3.0, 0.0], [4.0, 5.0]])
    assert certify([matrix]).upper_bound == pytest.approx(45**0.5, rel=1e-12)


def test_a_constant_function_has_constant_zero():
    assert certify([np.ones((3, 2)), np.zeros((2, 3))]).upper_bound == 0.0


def test_the_example_input_array_is_used():
    net = model()
    net.example_input_array = X
    assert certify(net).upper_bound == certify(model(), X).upper_bound


def test_nothing_of_the_model_changes():
    net = model(nn.Dropout(0.5)).train()
    net[2].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    flags = [m.training for m in net.modules()]
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1].copy()
    certify(net, X)
    lower_bound(net, torch.randn(8, 2, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert flags == [m.training for m in net.modules()]
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(rng, torch.get_rng_state())
    assert (numpy_rng == np.random.get_state()[1]).all()


def test_the_lower_bound_is_a_slope_of_the_model():
    net = model().double()
    inputs = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = lower_bound(net, inputs)
    with torch.no_grad():
        slope = ((net(found.u) - net(found.v)).norm() / (found.u - found.v).norm()).item()
    assert found.value == pytest.approx(slope, rel=1e-12)
    assert lower_bound(net, inputs, steps=0).value < found.value <= certify(net, inputs).upper_bound
    steepest = max(torch.linalg.matrix_norm(torch.func.jacrev(net)(x), 2).item() for x in inputs)
    assert found.value >= 0.95 * steepest


def test_the_lower_bound_finds_the_constant_of_a_linear_map():
    net = nn.Linear(5, 4)
    norm = torch.linalg.matrix_norm(net.weight.double(), 2).item()
    found = lower_bound(net, torch.randn(16, 5), steps=200).value
    assert norm * (1 - 1e-3) <= found <= norm * (1 + 1e-12)


def test_a_failed_solver_throws_or_falls_back(monkeypatch):
    def fail(*args, **kwargs):
        raise SolverError("it broke")

    monkeypatch.setattr("lightning_lipschitz.bounds.conic.propose", fail)
    fallback = certify(TWO_BY_TWO, solver="scs", throw=False)
    assert fallback.status is Status.FALLBACK
    assert fallback.certified
    assert fallback.method == "closed-form"
    with pytest.raises(SolverError, match="failed") as raised:
        certify(TWO_BY_TWO, solver="scs")
    assert raised.value.certificate.upper_bound == fallback.upper_bound


def test_a_time_limit_gives_the_best_bound_so_far():
    network = chain((30, 60, 60, 10))
    certificate = certify(network, time_limit=1e-6)
    assert certificate.certified
    assert certificate.status is Status.TIME_LIMIT
    assert certificate.upper_bound <= certify(network, method="closed-form").upper_bound


def test_a_certificate_belongs_to_its_network():
    certificate = certify(TWO_BY_TWO)
    assert verify(certificate, TWO_BY_TWO) == certificate.upper_bound
    with pytest.raises(CertificateError, match="another network"):
        verify(certificate, COUNTEREXAMPLE)
    with pytest.raises(CertificateError, match="another network"):
        verify(certificate, TWO_BY_TWO, slopes=(0, 0.9))


def test_a_number_that_is_not_certified_proves_nothing():
    number = Certificate(1.0, False, Status.NOT_A_BOUND, "lipsdp-network", "scs", None, 0.0, 0.0, "", None)
    with pytest.raises(CertificateError, match="not an upper bound"):
        verify(number, TWO_BY_TWO)


def test_public_names():
    assert all(hasattr(ll, name) for name in ll.__all__)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_the_lower_bound_does_not_depend_on_the_scale_of_the_inputs(scale):
    """A linear map is as steep everywhere."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    found = ll.lower_bound(model, scale * torch.randn(16, 5)).value
    norm = torch.linalg.matrix_norm(model.weight.double(), 2).item()
    assert 0.9 * norm <= found <= norm * (1 + 1e-9)
