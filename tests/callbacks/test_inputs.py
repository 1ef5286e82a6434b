"""Example inputs taken from a run."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from lightning_lipschitz.lightning_tools.inputs import InputCapture


class TwoArguments(nn.Module):
    def forward(self, x, scale=1.0):
        return x * scale


@pytest.mark.parametrize(
    ("args", "kwargs", "shapes"),
    [
        ((torch.zeros(5, 3),), {}, [(5, 3)]),
        ((torch.zeros(500, 3),), {}, [(64, 3)]),
        ((), {"x": torch.zeros(2, 3)}, [(2, 3)]),
        ((torch.zeros(2, 3),), {"scale": torch.ones(3)}, [(2, 3), (3,)]),
        ((torch.zeros(2, 3), 2.0), {}, [(2, 3), ()]),
    ],
)
def test_arguments_of_one_call(args, kwargs, shapes):
    module, capture = TwoArguments(), InputCapture()
    capture.arm(module)
    module(*args, **kwargs)
    assert [tuple(getattr(value, "shape", ())) for value in capture.arguments] == shapes
    assert not capture.armed
    assert not module._forward_pre_hooks


def test_a_capture_is_a_copy():
    x, capture = torch.zeros(2, 3), InputCapture()
    layer = nn.Identity()
    capture.arm(layer)
    layer(x)
    x.add_(1.0)
    assert capture.example.eq(0).all()


def test_arming_twice_leaves_one_hook():
    layer, capture = nn.Linear(3, 1), InputCapture()
    capture.arm(layer)
    capture.arm(layer)
    assert len(layer._forward_pre_hooks) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_an_armed_module_tells_nobody(copied):
    layer, capture = nn.Linear(3, 1), InputCapture()
    capture.arm(layer)
    copied(layer)(torch.zeros(2, 3))
    assert capture.arguments is None


def test_a_capture_that_is_gone():
    layer, capture = nn.Linear(3, 1), InputCapture()
    capture.arm(layer)
    del capture
    gc.collect()
    assert layer(torch.zeros(2, 3)).shape == (2, 1)


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (torch.zeros(2, 3), True),
        ((torch.zeros(2, 3), torch.zeros(2)), True),
        ([torch.zeros(2, 3)], True),
        ({"x": torch.zeros(2, 3)}, False),
        ((), False),
        (None, False),
        (("a", torch.zeros(2)), False),
    ],
)
def test_take_from_batch(batch, found):
    capture = InputCapture()
    assert capture.take_from_batch(batch, nn.Identity()) is found
    assert (capture.arguments is not None) is found


def test_take_example_by_keyword():
    capture = InputCapture()
    capture.take_example({"scale": torch.ones(1), "x": torch.zeros(2, 3)}, TwoArguments())
    assert [tuple(value.shape) for value in capture.arguments] == [(2, 3), (1,)]
