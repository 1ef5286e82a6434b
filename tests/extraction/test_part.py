"""A submodule, one of several inputs, one of several outputs."""

import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.errors import ArgumentError, ExtractionError, ModelSizeError
from lightning_lipschitz.extraction import Extractor, reading


class Critic(nn.Module):
    """Two inputs."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, state, action):
        return self.head(torch.relu(self.body(torch.cat([state, action], 1))))


class ActorCritic(nn.Module):
    """Two outputs behind an encoder, by name or by position."""

    def __init__(self, kind=dict):
        super().__init__()
        self.encoder = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 6), nn.Tanh()), "spare": nn.Linear(2, 2)})
        self.policy, self.value, self.kind = nn.Linear(6, 3), nn.Linear(6, 1), kind
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, x):
        h = self.encoder["body"](2 * x)
        both = {"policy": self.policy(h), "value": self.value(h)}
        return both if self.kind is dict else tuple(both.values())


def critic():
    torch.manual_seed(0)
    model = Critic()
    return model, {"state": torch.randn(3, 3), "action": torch.randn(3, 2)}


@pytest.mark.parametrize(("wanted", "width"), [("state", 3), (0, 3), ("action", 2), (1, 2)])
@pytest.mark.parametrize("kind", [tuple, dict])
def test_one_of_several_inputs_with_the_others_at_the_first_sample(kind, wanted, width):
    model, example = critic()
    given = example if kind is dict else tuple(example.values())
    extractor = Extractor(model, given, input=wanted)
    assert extractor.network().input_size == width
    assert [layer.name for layer in extractor.network().layers] == ["relu"]
    name = "state" if width == 3 else "action"
    x = torch.randn(7, width)
    fixed = {key: value[:1].expand(7, -1) for key, value in example.items()}
    torch.testing.assert_close(extractor.function()(x.double()).float(), model(**fixed | {name: x}))
    columns = model.body.weight[:, :3] if width == 3 else model.body.weight[:, 3:]
    alone = ll.certify([columns, model.head.weight], method="lipsdp-neuron").upper_bound
    certificate = ll.certify(model, given, input=wanted, method="lipsdp-neuron")
    assert certificate.upper_bound == pytest.approx(alone, rel=1e-5)
    assert ll.verify(certificate, model, given, input=wanted) == certificate.upper_bound


def test_an_input_has_to_be_named_and_to_exist():
    model, example = critic()
    with pytest.raises(ExtractionError, match=r"several inputs.*input="):
        ll.certify(model, example)
    with pytest.raises(ArgumentError, match="'action'"):
        ll.certify(model, example, input="reward")


@pytest.mark.parametrize(
    ("kind", "output", "rows"),
    [
        (dict, "value", 1),
        (tuple, 0, 3),
        (dict, "all", 4),
        (tuple, "all", 4),
        (dict, lambda y: y["policy"][:, 0] - y["policy"][:, 1], 1),
    ],
)
def test_one_of_several_outputs_or_their_joint_norm(kind, output, rows):
    model = ActorCritic(kind)
    certificate = ll.certify(model, output=output, method="closed-form")
    network = Extractor(model, torch.zeros(1, 4), output=output).network()
    assert network.output.size == rows
    assert certificate.network_digest == network.digest


def test_an_output_has_to_be_named_and_to_exist():
    with pytest.raises(ExtractionError, match=r"several outputs.*output="):
        ll.certify(ActorCritic())
    with pytest.raises(ArgumentError, match="'policy', 'value', 'all'"):
        ll.certify(ActorCritic(), output="reward")
    with pytest.raises(ArgumentError, match="one output"):
        ll.certify(nn.Linear(2, 1), torch.zeros(1, 2), output=0)


def test_a_submodule_by_its_name():
    model = ActorCritic()
    body = model.encoder["body"]
    expected = ll.certify(body, torch.zeros(1, 4))
    for example in (None, torch.zeros(1, 4)):  # what the model's own example becomes on its way there, or given
        found = ll.certify(model, example, module="encoder.body")
        assert found.network_digest == expected.network_digest
        assert ll.verify(found, model, example, module="encoder.body") == found.upper_bound
    assert not body._forward_pre_hooks
    with pytest.raises(ArgumentError, match=r"'encoder\.body'"):
        ll.certify(model, module="encoder.bodi")
    with pytest.raises(ExtractionError, match=r"`encoder\.spare`.*does not call it"):
        ll.certify(model, module="encoder.spare")
    with pytest.raises(ArgumentError, match=r"nn\.Module"):
        ll.certify([[[1.0]]], module="encoder")


def test_the_lower_bound_looks_at_the_same_part():
    model, example = critic()
    found = ll.lower_bound(model, example, input="state")
    assert found.value <= ll.certify(model, example, input="state").upper_bound
    fixed = example["action"][:1].double()
    u, v = (model.double()(x[None], fixed).detach() for x in (found.u, found.v))
    assert float((u - v).norm() / (found.u - found.v).norm()) == pytest.approx(found.value, rel=1e-9)
    both = ActorCritic()
    x = torch.randn(8, 4)
    assert ll.lower_bound(both, x, output="value").value <= ll.certify(both, x, output="value").upper_bound
    body = ll.lower_bound(both, x, module="encoder.body")
    assert body.value == ll.lower_bound(both.encoder["body"], x).value
    assert body.value <= ll.certify(both, x, module="encoder.body").upper_bound
    with pytest.raises(ExtractionError, match=r"several inputs.*input="):
        ll.lower_bound(*critic())


def test_the_parts_leave_the_model_as_it_was():
    model, example = critic()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    ll.certify(model.train(), example, input="state", method="norm-product")
    assert model.training
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_explicit_matrices_that_do_not_fit_are_refused_with_their_size(monkeypatch):
    monkeypatch.setattr(reading, "LIMIT", 1000)
    model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 2))
    with pytest.raises(ModelSizeError, match=r"too large.*GiB") as caught:
        ll.certify(model, torch.zeros(1, 8), method="closed-form")
    assert caught.value.size > caught.value.limit == 1000
