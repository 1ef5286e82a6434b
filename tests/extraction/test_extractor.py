"""Extractor leaves the model as it was, reads it as it is, and says what is wrong with it."""

import copy
import io
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_lipschitz._lightning import LightningModule, Trainer
from lightning_lipschitz.errors import ArgumentError, ExtractionError, NonFiniteError, UnsupportedModuleError
from lightning_lipschitz.extraction import Extractor, extract
from lightning_lipschitz.extraction.check import check
from tests.models import Lambda, compiled, mlp, randomized_norm


class Classifier(LightningModule):
    """Logs in its forward and keeps a frozen submodule."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 4), randomized_norm(nn.BatchNorm1d, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3)
        )

    def forward(self, x):
        y = self.net(x)
        self.log("mean", y.mean())
        self.log_dict({"max": y.max()})
        return y


def weights(model):
    return [module.weight.detach().double().numpy() for module in model.modules() if isinstance(module, nn.Linear)]


def matrices(network):
    return [term.matrix for affine in network.affines for term in affine.terms]


def state(model):
    return {
        "flags": [module.training for module in model.modules()],
        "own": [{name: id(value) for name, value in module.__dict__.items()} for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "tensors": {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires": [p.requires_grad for p in model.parameters()],
        "generator": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
    }


def assert_same(one, two):
    for key in ("flags", "own", "hooks", "requires"):
        assert one[key] == two[key], key
    assert torch.equal(one["generator"], two["generator"])
    np.testing.assert_array_equal(one["numpy"], two["numpy"])
    for name, (number, version, values) in one["tensors"].items():
        assert two["tensors"][name][:2] == (number, version), name
        assert torch.equal(two["tensors"][name][2], values), name
    for name, gradient in one["gradients"].items():
        assert (gradient is None) == (two["gradients"][name] is None)
        assert gradient is None or torch.equal(gradient, two["gradients"][name])


def test_the_model_is_left_as_it_was():
    model = Classifier().train()
    model.log = own_log = lambda *args, **kwargs: None
    model.net[1].eval()
    model.net[0].bias.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # self.log without a trainer
        model(torch.randn(3, 5)).sum().backward()
    example = torch.randn(3, 5, requires_grad=True)
    before = state(model)
    extractor = Extractor(model, example)
    extractor.network()
    assert_same(before, state(model))
    assert model.log is own_log


def test_a_failure_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(5, 4), nn.GLU()).train()
    before = state(model)
    with pytest.raises(ExtractionError):
        Extractor(model, torch.zeros(2, 5))
    assert_same(before, state(model))


def test_what_the_forward_keeps_is_put_back():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls, self.seen, self.last = nn.Linear(5, 4), 0, [], {"old": 1}

        def forward(self, x):
            y = self.layer(x).relu()
            self.calls += 1
            self.seen.append(y)
            self.last.clear()
            self.last["output"] = self.feature = y
            return y * 2

    model = Keeps()
    seen, last = model.seen, model.last
    before = state(model)
    Extractor(model, torch.zeros(2, 5)).network()
    assert_same(before, state(model))
    assert (model.seen is seen, model.last is last, seen, last) == (True, True, [], {"old": 1})


def test_buffers_that_the_forward_changes_are_put_back():
    def forward(m, x):
        m.calls += 1
        return m.a(x)

    model = Lambda(forward, a=nn.Linear(5, 2))
    model.register_buffer("calls", torch.zeros(()))
    before = state(model)
    Extractor(model, torch.zeros(2, 5))
    assert_same(before, state(model))


def test_an_output_that_depends_on_its_own_history_is_refused():
    def forward(m, x):
        m.calls += 1
        return m.a(x) * m.calls

    model = Lambda(forward, a=nn.Linear(5, 2))
    model.register_buffer("calls", torch.zeros(()))
    with pytest.raises(ExtractionError, match="`calls`"):
        Extractor(model, torch.zeros(2, 5))


def test_inside_a_run_of_the_trainer():
    extractors, networks = [], []

    class Module(Classifier):
        def training_step(self, batch, batch_idx):
            extractors.append(extractors[0] if extractors else Extractor(self, batch))
            extractors[0].network()
            return self(batch).sum()

        def validation_step(self, batch, batch_idx):
            networks.append(extract(self, batch))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.DataLoader(torch.randn(8, 5), batch_size=4)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model := Module(), data, data)
        trainer.validate(model, data, verbose=False)
    assert set(trainer.callback_metrics) <= {"mean", "max"}
    np.testing.assert_array_equal(extractors[0].network().output.terms[0].matrix, weights(model)[-1])
    assert networks[-1].digest == extractors[0].network().digest != networks[0].digest


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.random.fork_rng(devices=[]),
    ],
)
def test_the_context_does_not_matter(context):
    model = mlp(nn.ReLU())
    with context():
        network = Extractor(model, torch.zeros(2, 5)).network()
    for found, weight in zip(matrices(network), weights(model), strict=True):
        np.testing.assert_array_equal(found, weight)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = mlp(nn.Tanh())
    assert extract(model, torch.zeros(2, 5)).sizes == (5, 6)


def test_weights_are_read_at_the_time_of_the_call():
    model = nn.Sequential(randomized_norm(nn.BatchNorm1d, 5), nn.ReLU())
    extractor = Extractor(model, torch.zeros(2, 5))
    first = extractor.network()
    with torch.no_grad():
        model[0].weight.mul_(2)
    np.testing.assert_array_equal(
        extractor.network().layers[0].affine.terms[0].matrix, 2 * first.layers[0].affine.terms[0].matrix
    )
    model[0].running_var = torch.full((5,), 4 - model[0].eps)  # replaced, as by `Module.to`
    model[0].weight = nn.Parameter(torch.full((5,), 6.0))
    np.testing.assert_allclose(extractor.network().layers[0].affine.terms[0].matrix, 3 * np.eye(5), rtol=1e-6)
    model.double()
    np.testing.assert_allclose(extractor.network().layers[0].affine.terms[0].matrix, 3 * np.eye(5), rtol=1e-6)


def test_other_weights_by_name():
    model = nn.Sequential(nn.Linear(5, 4), compiled(nn.Linear(4, 2)))
    before = state(model)
    extractor = Extractor(model, torch.zeros(2, 5))
    doubled = {name.replace("_orig_mod.", ""): 2 * tensor for name, tensor in model.state_dict().items()}
    expected = 4 * weights(model)[1] @ weights(model)[0]
    np.testing.assert_allclose(extractor.network(doubled).output.terms[0].matrix, expected, rtol=1e-12)
    assert_same(before, state(model))
    with pytest.raises(ExtractionError, match=r"`2\.weight`"):
        extractor.network({"2.weight": torch.zeros(1)})


@pytest.mark.parametrize("round_trip", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), "torch.save"])
def test_copies_trace_again(round_trip):
    extractor = Extractor(mlp(nn.ReLU()), torch.zeros(2, 5), name="net")
    if round_trip == "torch.save":
        torch.save(extractor, file := io.BytesIO())
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = round_trip(extractor)
    assert twin._trace is None
    assert twin.network().digest == extractor.network().digest


def test_names_of_the_layers():
    def forward(m, x):
        return torch.relu(m.block(x)).tanh()

    block = nn.Sequential(nn.Linear(5, 4), compiled(nn.ReLU()), nn.Linear(4, 4), Lambda(lambda m, x: x.sigmoid()))
    network = extract(compiled(Lambda(forward, block=block)), torch.zeros(2, 5))
    assert [layer.name for layer in network.layers] == ["block.1", "block.3.sigmoid", "relu", "tanh"]


def test_shapes_of_the_networks():
    assert extract(mlp(nn.ReLU()), torch.zeros(1, 5)).is_chain
    assert extract(nn.Linear(5, 2), torch.zeros(1, 5)).layers == ()
    constant = extract(Lambda(lambda m, x: torch.ones(len(x), 3)), torch.zeros(1, 5))
    np.testing.assert_array_equal(constant.output.terms[0].matrix, np.zeros((3, 5)))
    skip = extract(Lambda(lambda m, x: x + m.a(x).relu(), a=nn.Linear(5, 5)), torch.zeros(1, 5))
    assert [term.source for term in skip.output.terms] == [0, 1]


def test_affine_units_are_folded():
    prelu = nn.PReLU(6)
    prelu.weight.data = torch.tensor([0.5, 1.0, 1.0, -1.0, 0.0, 1.0])
    network = extract(mlp(prelu), torch.zeros(2, 5))
    assert network.sizes == (5, 3)
    np.testing.assert_array_equal(network.layers[0].alpha, [0.5, -1.0, 0.0])
    assert [term.source for term in network.output.terms] == [0, 1]
    assert extract(mlp(nn.LeakyReLU(1.0)), torch.zeros(2, 5)).layers == ()


def test_layers_that_no_one_reads_are_dropped():
    unread = extract(Lambda(lambda m, x: torch.cat([x.relu(), x.tanh()], 1)[:, 5:]), torch.zeros(2, 5))
    assert [layer.name for layer in unread.layers] == ["tanh"]
    softsign = extract(mlp(nn.Softsign()), torch.zeros(2, 5))
    assert [layer.name for layer in softsign.layers] == ["1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    model = nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.ReLU(), compiled(nn.Linear(4, 2))))
    extractor = Extractor(model, torch.zeros(2, 5))
    model[1][1].weight.data[0, 1] = value
    with pytest.raises(NonFiniteError, match=re.escape("`1.1.weight` holds 1 ")):
        extractor.network()


def test_a_buffer_or_a_computed_weight_that_is_not_finite():
    norm = nn.BatchNorm1d(5)
    norm.running_mean[2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"`0\.running_mean`"):
        extract(nn.Sequential(norm), torch.zeros(2, 5))
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))
    layer.parametrizations.weight.original1.data[0] = 0.0
    with pytest.raises(NonFiniteError, match=re.escape("computed in `0.parametrizations.weight.0`")):
        extract(nn.Sequential(layer), torch.zeros(2, 5))


def test_weights_whose_product_overflows():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double()
    for parameter in model.parameters():
        parameter.data.fill_(1e200)
    with pytest.raises(NonFiniteError, match="product"):
        extract(model, torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (None, ArgumentError, "must be given"),
        (torch.zeros(2, 5, dtype=torch.int64), ArgumentError, "int64"),
        (torch.zeros(5), ArgumentError, "first dimension is the batch"),
        (torch.zeros(0, 5), ArgumentError, "shape (0, 5)"),
        (np.zeros((2, 5)), ArgumentError, "ndarray"),
        ((torch.zeros(2, 5), torch.zeros(2)), ExtractionError, "2 inputs"),
        ({"x": torch.zeros(2, 5)}, ExtractionError, "unexpected keyword argument 'x'"),
        (torch.zeros(2, 6), ExtractionError, "6"),
    ],
)
def test_example_inputs(given, error, says):
    with pytest.raises(error, match=re.escape(says)):
        Extractor(mlp(nn.ReLU()), given)


def test_a_forward_of_two_arguments():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ExtractionError, match="Two"):
        Extractor(Two(), torch.zeros(2, 5))


def test_the_example_may_have_another_dtype_or_need_gradients():
    assert extract(mlp(nn.ReLU()).double(), torch.zeros(1, 5, requires_grad=True)).sizes == (5, 6)
    assert extract(mlp(nn.ReLU()).bfloat16(), torch.zeros(1, 5, dtype=torch.float64)).sizes == (5, 6)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.data.mul_(1.0001),
        lambda model: model[2].bias.data.add_(1e-4),
        lambda model: model.register_forward_hook(lambda module, args, output: output * 1.0001),
    ],
)
def test_the_check_sees_a_difference(change):
    model = mlp(nn.Tanh())
    extractor = Extractor(model, torch.zeros(2, 5))
    tensors, extraction = extractor._tensors(None), extractor.extract()
    check(model, tensors, extraction, (5,), extractor._trace, wide=False)
    change(model)
    with pytest.raises(ExtractionError, match="does not reproduce"):
        check(model, extractor._tensors(None), extraction, (5,), extractor._trace, wide=False)


def test_rounding_is_not_taken_for_a_difference():
    """Large numbers cancel in the last layer: rounding alone moves the output by far more than its last digits."""
    model = mlp(nn.ReLU()).double()
    model[0].bias.data += 1e7
    model[2].bias.data -= model[2].weight.data @ model[0].bias.data
    extractor = Extractor(model, torch.zeros(2, 5))
    assert extractor.network().sizes == (5, 6)
    extraction = extractor.extract()
    model[2].weight.data[0, 0] *= 1 + 1e-6
    with pytest.raises(ExtractionError, match="does not reproduce"):
        check(model, extractor._tensors(None), extraction, (5,), extractor._trace, wide=False)


def test_a_changed_forward_is_noticed():
    model = Lambda(lambda m, x: x.relu())
    extractor = Extractor(model, torch.zeros(2, 5))
    assert extractor.network().layers[0].alpha[0] == 0.0
    assert extractor.traces == 1
    model.function = lambda m, x: nn.functional.leaky_relu(x, 0.3)
    assert extractor.network().layers[0].alpha[0] == 0.3
    assert extractor.traces == 2


def test_a_tensor_that_is_a_plain_attribute_is_read_live():
    model = Lambda(lambda m, x: m.a(x) * m.scale, a=nn.Linear(5, 3))
    model.scale = torch.tensor(2.0)
    extractor = Extractor(model, torch.zeros(2, 5))
    model.scale = torch.tensor(3.0)
    np.testing.assert_allclose(matrices(extractor.network())[0], 3 * weights(model)[0], rtol=1e-15)


def test_a_convolution_is_read_without_rounding():
    convolution = nn.Conv2d(2, 3, 2, padding=1)
    network = extract(nn.Sequential(nn.Tanh(), convolution), torch.zeros(1, 2, 3, 3))
    (term,) = network.output.terms
    assert term.rounding == 0.0
    with torch.no_grad():
        columns = (
            convolution.double()(torch.eye(18, dtype=torch.float64).reshape(18, 2, 3, 3))
            - convolution.bias[:, None, None]
        )
    np.testing.assert_allclose(term.matrix, columns.flatten(1).T.numpy(), atol=1e-15)


def test_autocast_inside_the_forward_is_refused():
    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.a(x).float().relu()

    model = Lambda(forward, a=nn.Linear(5, 3))
    with pytest.raises(UnsupportedModuleError, match=r"converts values to torch\.bfloat16, and rounding jumps"):
        extract(model, torch.zeros(2, 5))


def test_the_name_of_a_part_stands_before_those_of_its_submodules():
    assert Extractor(mlp(nn.ReLU()), torch.zeros(2, 5), name="net.head").network().layers[0].name == "net.head.1"
    with pytest.raises(UnsupportedModuleError, match=r"`net\.head\.1`"):
        Extractor(mlp(nn.Hardshrink()), torch.zeros(2, 5), name="net.head")
    model = mlp(nn.ReLU())
    model[2].bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"`net\.2\.bias`"):
        Extractor(model, torch.zeros(2, 5), name="net")


def test_own_dtype_is_respected_when_the_code_insists():
    model = Lambda(lambda m, x: m.a(x.float()).relu(), a=nn.Linear(5, 3))
    np.testing.assert_array_equal(matrices(extract(model, torch.zeros(2, 5)))[0], weights(model)[0])
