"""LipSDP-Network: reproduced, shown to be wrong, and kept away from everything that says bound."""

import pytest
import torch
from torch import nn

from lightning_lipschitz import LipschitzCallback, Status, certify, lower_bound, verify
from lightning_lipschitz.bounds.coupled import chosen_pairs
from lightning_lipschitz.errors import ArgumentError, CertificateError, NotABoundWarning
from tests.helpers import COUNTEREXAMPLE, chain


def coupled(model, **options):
    with pytest.warns(NotABoundWarning, match="NOT an upper bound"):
        return certify(model, method="lipsdp-network", **options)


def test_it_falls_below_the_constant_of_the_counterexample(tmp_path):
    number = coupled(COUNTEREXAMPLE)
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        for layer, weight in zip((model[0], model[2]), COUNTEREXAMPLE, strict=True):
            layer.weight.copy_(torch.tensor(weight))
        model[0].bias.copy_(torch.tensor([1.0, -1.0]))
    assert lower_bound(model, torch.linspace(-2, 2, 64)[:, None]).value == pytest.approx(1.0)
    assert number.upper_bound < 1e-3
    assert not number.certified
    assert number.status is Status.NOT_A_BOUND
    with pytest.raises(CertificateError):
        number.save(tmp_path / "c.npz")
    with pytest.raises(CertificateError):
        verify(number, COUNTEREXAMPLE)
    with pytest.raises(Exception, match="`method`"):
        LipschitzCallback(method="lipsdp-network")


def test_without_couplings_it_is_lipsdp_neuron_and_more_couplings_lower_it():
    network = chain((4, 6, 6, 3))
    values = [coupled(network, couplings=c).upper_bound for c in ("random:0", "spaced:10", "random:10", "all")]
    assert values[0] == pytest.approx(certify(network, method="lipsdp-neuron").upper_bound, rel=1e-5)
    assert values[3] < min(values[1:3]) * (1 + 1e-5)
    assert max(values[1:3]) <= values[0] * (1 + 1e-5)


@pytest.mark.parametrize("couplings", ["some", "random", "random:-1", "all:3"])
def test_unknown_couplings(couplings):
    with pytest.raises(ArgumentError, match="`couplings`"):
        chosen_pairs(4, couplings)
