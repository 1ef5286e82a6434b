"""The differentiable bounds of models whose parameters live on another device, against the same on the CPU."""

from __future__ import annotations

import pytest
import torch

from lightning_lipschitz.differentiable.product import ProductForm
from lightning_lipschitz.differentiable.torus import TorusForm
from tests.devices.test_devices import BODIES, DEVICE, NAME, elsewhere, made


def found(body, device):
    """Bound, pairs and gradients, of a training step and of the one after it."""
    model = made(None, body).train().to(device)
    form = ProductForm(model, torch.zeros(1, 6))
    torch.manual_seed(5)
    x = torch.randn(8, 6).to(device)
    results = []
    for _ in range(2):
        output = model(x)
        value, pairs = form.whole(), form.pairs()
        assert value.device.type == pairs.device.type == torch.device(device).type
        (output.square().sum() + value + pairs.sum()).backward()
        form.step()
        results += [value, pairs, *(p.grad for p in model.parameters())]
    state = form.state_dict()
    assert all(each.device.type == "cpu" for each in state.values())
    form.load_state_dict(state)
    return [each.detach().cpu() for each in [*results, form.whole()]]


@pytest.mark.parametrize("body", BODIES)
def test_the_product_is_the_same_there(body):
    here = found(body, "cpu")
    with elsewhere():
        there = found(body, DEVICE)
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one, other, rtol=1e-5 if NAME == "pretend" else 1e-2, atol=1e-6)


def test_an_evaluation_waits_for_the_device_once():
    """After the first one a single look at the lengths of the last evaluation crosses over, whatever the depth."""
    if NAME != "pretend":
        pytest.skip("traffic is counted on the pretend device")
    from tests import pretend_device as pretend

    with elsewhere():
        model = made(None, "CNN").to(DEVICE)
        form = ProductForm(model, torch.zeros(1, 6))
        form.whole()
        pretend.TRIPS.clear()
        form.whole().backward()
        assert pretend.TRIPS["to the host"] <= 1
        assert pretend.TRIPS["from the host"] <= 1


def swept(device):
    """Bound, pairs, gradients and multipliers of convolutions on the torus, of two training steps."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 4, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3, padding=1), torch.nn.Tanh()
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(48, 6), torch.nn.ReLU())
    model.append(torch.nn.Linear(6, 3)).to(device)
    form = TorusForm(model, torch.zeros(1, 1, 8, 8))
    results = []
    for _ in range(2):
        value, pairs = form.whole(), form.pairs()
        (value + pairs.sum()).backward()
        form.step()
        results += [value, pairs, *(p.grad for p in model.parameters() if p.grad is not None)]
    form.load_state_dict(form.state_dict())
    proposed = [torch.tensor(each) for each in form.multipliers().values]
    return [each.detach().cpu() for each in [*results, form.whole(), *proposed]]


def test_the_sweep_on_the_torus_is_the_same_there():
    here = swept("cpu")
    with elsewhere():
        there = swept(DEVICE)
    if NAME == "pretend":  # it loses lazy conjugations, which derivatives of complex products leave
        here, there = here[:2], there[:2]
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one, other, rtol=1e-5 if NAME == "pretend" else 1e-2, atol=1e-6)
