"""Several inputs or outputs under each callback: the part that is named is watched, held, and found in files."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.callbacks import stamped_certificates
from lightning_lipschitz.callbacks._bounded_weights import BoundedWeights
from lightning_lipschitz.checkpoint_report import report_checkpoint
from lightning_lipschitz.errors import ArgumentError, ExtractionError
from lightning_lipschitz.lightning_tools.inputs import plain
from lightning_lipschitz.lightning_tools.submodule import Choice
from tests.callbacks.files import MESSAGES
from tests.modules import UNAVOIDABLE

pytestmark = [pytest.mark.filterwarnings(message) for message in (*UNAVOIDABLE, *MESSAGES)]

BOUND = 0.4
STATES, ACTIONS = 4, 2
generator = torch.Generator().manual_seed(3)
X = torch.randn(24, STATES, generator=generator)
A = torch.randn(24, ACTIONS, generator=generator)
LEVEL = torch.rand(24, generator=generator) + 0.5
LABEL = torch.randint(3, (24,), generator=generator)


class Base(LightningModule):
    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(*batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class Critic(Base):
    """Q(state, action), the second by name; the states act on more than the sum."""

    data = (X, A)

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(STATES + ACTIONS, 8), nn.Linear(8, 1)

    def forward(self, state, action):
        return self.head(torch.relu(self.body(torch.cat([state, action], 1))))

    def loss(self, x, a):
        return (self(x, action=a).squeeze(-1) - x.sum(1) * 3).square().mean()


class ByKeyword(Critic):
    """The action can be given by its name only."""

    def forward(self, state, *, action):
        return super().forward(state, action)


class Denoiser(Base):
    """f(x, level), one level a sample, which multiplies what the network adds: the bound depends on its value."""

    data = (X, LEVEL)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(STATES, 8), nn.Tanh(), nn.Linear(8, STATES))

    def forward(self, x, level):
        return level[:, None] * self.net(x)

    def loss(self, x, level):
        return (self(x, level) - 2 * x).square().mean()


class Heads(Base):
    """A dictionary of outputs."""

    data = (X, LABEL)
    kind = dict

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(STATES, 8), nn.ReLU())
        self.logits, self.value = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.made(self.logits(h), self.value(h))

    def made(self, logits, value):
        return {"logits": logits, "value": value}

    def loss(self, x, y):
        first, second = self.read(self(x))
        return nn.functional.cross_entropy(first, y) + (second - 4 * x[:, :1]).square().mean()

    def read(self, found):
        return found["logits"], found["value"]


class Tuples(Heads):
    def made(self, logits, value):
        return logits, value

    def read(self, found):
        return found


Outputs = namedtuple("Outputs", "logits value")


class Named(Tuples):
    def made(self, logits, value):
        return Outputs(logits, value)


def difference(found):
    return found["logits"][:, :1] - found["logits"][:, 1:2]


MODELS = {
    "a state": (Critic, {"input": "state"}),
    "an action by position": (Critic, {"input": 1}),
    "an action by keyword": (ByKeyword, {"input": "action"}),
    "a denoiser": (Denoiser, {"input": "x"}),
    "one head of a dictionary": (Heads, {"output": "logits"}),
    "a function of the outputs": (Heads, {"output": difference}),
    "all heads": (Tuples, {"output": "all"}),
    "a head of a tuple": (Tuples, {"output": 0}),
    "a head by its field": (Named, {"output": "logits", "input": "x"}),
}
CALLBACKS = {
    "lipschitz": lambda **choice: ll.LipschitzCallback(**choice),
    "admm": lambda **choice: ll.LipschitzADMM(BOUND, every_n_steps=2, **choice),
    "barrier": lambda **choice: ll.LipschitzBarrier(BOUND, **choice),
    "scale": lambda **choice: ll.LipschitzScale(BOUND, **choice),
}
NOT_SCALED = ("a function of the outputs", "all heads")  # one has no output to multiply, the other two last layers


def loader(make, shuffle=False):
    return DataLoader(TensorDataset(*make.data), 8, shuffle=shuffle)


def example(make):
    """The first batch, as the forward takes it."""
    first = tuple(part[:8] for part in make.data)
    if make is ByKeyword:
        return {"state": first[0], "action": first[1]}
    return first[0] if issubclass(make, Heads) else first


def trainer(folder, *callbacks, epochs=2, **options):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**quiet, max_epochs=epochs, callbacks=list(callbacks), default_root_dir=folder, **options)


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


def slopes(model, make, choice):
    """Sampled quotients of the named part, other inputs as in the first sample."""
    where = choice.get("input", 0)
    place = {"state": 0, "x": 0, "action": 1}.get(where, where)
    wide = make.data[place].shape[1]
    u, v = 2 * torch.randn(2, 400, wide, generator=torch.Generator().manual_seed(1))

    def function(x):
        fixed = [part[:1].expand(400, *part.shape[1:]) for part in make.data]
        args = [x if k == place else fixed[k] for k in range(1 if issubclass(make, Heads) else 2)]
        found = model(args[0], action=args[1]) if make is ByKeyword else model(*args)
        wanted = choice.get("output")
        if callable(wanted):
            return wanted(found)
        if wanted == "all":
            return torch.cat(found, 1)
        if wanted is None:
            return found
        return found[wanted] if isinstance(found, dict) or isinstance(wanted, int) else getattr(found, wanted)

    with torch.no_grad():
        return float(((function(u) - function(v)).norm(dim=1) / (u - v).norm(dim=1)).max())


SLOW = ("an action by position", "one head of a dictionary", "a head of a tuple")  # their likes are done every time


@pytest.mark.parametrize(
    ("name", "key"),
    [
        pytest.param(name, key, marks=[pytest.mark.slow] * (name in SLOW and key != "lipschitz"))
        for name in MODELS
        for key in CALLBACKS
        if key != "scale" or name not in NOT_SCALED
    ],
)
def test_every_file_speaks_of_the_part_that_was_named(tmp_path, name, key):
    make, choice = MODELS[name]
    callback, model = CALLBACKS[key](**choice), made(make)
    run = trainer(tmp_path, callback)
    run.fit(model, loader(make), loader(make))
    run.save_checkpoint(tmp_path / "after.ckpt")
    files = sorted(tmp_path.rglob("*.ckpt"))
    assert len(files) >= 2
    for path in files:
        file = torch.load(path, weights_only=True)
        fresh = make()
        fresh.load_state_dict(file["state_dict"])
        bound = ll.verify(stamped_certificates(file)[key], fresh, example(make), **choice)
        assert 0 < slopes(fresh, make, choice) <= bound
        assert key == "lipschitz" or bound <= BOUND
    assert callback.certificate.upper_bound == callback.history[-1]["upper_bound"]
    if key == "lipschitz":
        assert all(0 < each["lower_bound"] <= each["upper_bound"] for each in callback.history)


@pytest.mark.parametrize("key", ["admm", "barrier"])
def test_layers_that_the_part_does_not_read_stay_free(tmp_path, key):
    """The other head learns a slope far above the bound, and is written as it is."""
    model = made(Heads)
    callback = CALLBACKS[key](output="logits")
    seen = []
    callback.on_train_epoch_end = watched(callback, seen)
    run = trainer(tmp_path, callback, epochs=3)
    run.fit(model, loader(Heads))
    assert seen[-1] == {"trunk.0.weight", "logits.weight"}
    whole = ll.certify(model, X[:2], output="value", method="norm-product").upper_bound
    assert ll.certify(model, X[:2], output="logits").upper_bound <= BOUND < whole
    for path in tmp_path.rglob("*.ckpt"):
        assert set(torch.load(path, weights_only=True)[key].get("training_weights", {})) <= seen[-1]


def watched(callback, seen):
    before = callback.on_train_epoch_end

    def hook(trainer, pl_module):
        before(trainer, pl_module)
        seen.append(set(callback.bounded_names()))

    return hook


@pytest.mark.parametrize("key", CALLBACKS)
def test_a_resumed_run_holds_the_other_inputs_where_they_were(tmp_path, key):
    """Batches come in another order after the resume; the level that the bound is for stays."""

    def run(folder, epochs, seed, path=None):
        model, callback = made(Denoiser), CALLBACKS[key](input="x")
        torch.manual_seed(seed)
        fit = trainer(folder, callback, epochs=epochs)
        fit.fit(model, loader(Denoiser, shuffle=True), ckpt_path=path)
        fit.save_checkpoint(folder / "end.ckpt")
        return torch.load(folder / "end.ckpt", weights_only=True)

    def held(file):
        (state,) = [value for name, value in file["callbacks"].items() if name.startswith("Lipschitz")]
        return state["held"]

    first = run(tmp_path / "a", 1, 5)
    second = run(tmp_path / "b", 2, 6, tmp_path / "a" / "end.ckpt")
    assert all(torch.equal(x, y) for x, y in zip(held(first), held(second), strict=True))
    fresh = Denoiser()
    fresh.load_state_dict(second["state_dict"])
    assert ll.verify(stamped_certificates(second)[key], fresh, tuple(held(second)), input="x") > 0
    with pytest.raises(ll.errors.CertificateError, match="another network"):
        ll.verify(stamped_certificates(second)[key], fresh, (X[:2], LEVEL[:2] * 3), input="x")


class WithExample(Denoiser):
    def __init__(self):
        super().__init__()
        self.example_input_array = (torch.zeros(2, STATES), torch.tensor([2.0, 9.0]))


@pytest.mark.parametrize("key", CALLBACKS)
def test_an_example_input_says_at_which_values(tmp_path, key):
    callback, model = CALLBACKS[key](input=0), made(WithExample)
    trainer(tmp_path, callback).fit(model, loader(Denoiser))
    assert ll.verify(callback.certificate, model, (X[:2], torch.full((2,), 2.0)), input=0) > 0


def test_two_instances_on_two_inputs(tmp_path):
    both = [ll.LipschitzCallback(input="state"), ll.LipschitzCallback(input="action")]
    model = made(Critic)
    run = trainer(tmp_path, *both)
    run.fit(model, loader(Critic), loader(Critic))
    metrics = {name for name in run.callback_metrics if name.endswith("upper_bound")}
    assert metrics == {"lipschitz/upper_bound", "lipschitz/input=action/upper_bound"}
    run.save_checkpoint(tmp_path / "end.ckpt")
    stamps = stamped_certificates(torch.load(tmp_path / "end.ckpt", weights_only=True))
    for key, name in (("lipschitz", "state"), ("lipschitz/input=action", "action")):
        ll.verify(stamps[key], model, example(Critic), input=name)
    again = [ll.LipschitzCallback(input="state"), ll.LipschitzCallback(input="action")]
    trainer(tmp_path, *again, epochs=3).fit(made(Critic), loader(Critic), ckpt_path=tmp_path / "end.ckpt")
    assert [len(each.history) for each in again] == [3, 3]


def test_certified_accuracy_of_one_head(tmp_path):
    callback, model = ll.LipschitzCallback(output="logits", certified_radii=[0.0, 0.1]), made(Heads)
    run = trainer(tmp_path, callback)
    run.fit(model, loader(Heads), loader(Heads))
    right = (model(X)["logits"].argmax(1) == LABEL).float().mean()
    assert run.callback_metrics["lipschitz/certified_accuracy_0"] == pytest.approx(float(right), abs=1e-6)
    assert run.callback_metrics["lipschitz/certified_accuracy_0.1"] <= right


@pytest.mark.parametrize("name", ["one head of a dictionary", "an action by keyword"])
def test_the_report_finds_the_part_in_the_checkpoint(tmp_path, name):
    make, choice = MODELS[name]
    run = trainer(tmp_path, ll.LipschitzCallback(**choice))
    run.fit(made(make), loader(make))
    run.save_checkpoint(tmp_path / "end.ckpt")
    given = {} if make is ByKeyword else {"data": loader(make)}
    written = report_checkpoint(tmp_path / "end.ckpt", tmp_path / "page.html", model=make, **given)
    assert "proved again" in written.read_text()


# What cannot be


class Example(Named):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, STATES)


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=list(CALLBACKS))
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("input", "output") for value in (-1, 0.5, True, "", ["x"], nn.Linear)]
    + [("input", difference)],
)
def test_what_is_no_name_is_refused_by_the_constructor(make, name, value):
    with pytest.raises(MisconfigurationException, match=f"`{name}` must be the position"):
        make(**{name: value})


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=list(CALLBACKS))
@pytest.mark.parametrize("wanted", ["velocity", 2])
def test_an_input_that_is_not_there_is_refused_before_a_batch(tmp_path, make, wanted):
    model = made(Critic)
    model.loss = None
    with pytest.raises(MisconfigurationException, match=r"one of the inputs of `Critic\.forward`: 'state', 'action'"):
        trainer(tmp_path, make(input=wanted)).fit(model, loader(Critic))


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=list(CALLBACKS))
@pytest.mark.parametrize("wanted", ["logit", 2])
def test_an_output_that_is_not_there_is_refused_as_soon_as_an_input_is_known(tmp_path, make, wanted):
    model = made(Example)
    model.loss = None
    with pytest.raises(ArgumentError, match="`output` must be one of 0, 1, 'logits', 'value', 'all'"):
        trainer(tmp_path, make(output=wanted)).fit(model, loader(Heads))
    with pytest.raises(ArgumentError, match="`output` must be one of"):
        trainer(tmp_path, make(output=wanted)).fit(made(Heads), loader(Heads))


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=list(CALLBACKS))
def test_who_names_none_of_several_is_told_what_to_name(tmp_path, make):
    with pytest.raises(ExtractionError, match="Name it with `input=`"):
        trainer(tmp_path, make()).fit(made(Critic), loader(Critic))
    with pytest.raises(ExtractionError, match="Name one with `output=`"):
        trainer(tmp_path, make()).fit(made(Heads), loader(Heads))


class NeverCalled(Critic):
    def loss(self, x, a):
        return self.head(torch.relu(self.body(torch.cat([x, a], 1)))).square().mean()


def test_a_forward_of_several_that_nobody_calls_needs_an_example(tmp_path):
    with pytest.raises(MisconfigurationException, match="takes more inputs than a batch shows"):
        trainer(tmp_path, ll.LipschitzCallback(input="state")).fit(made(NeverCalled), loader(Critic))


def test_processes_must_hold_other_inputs_at_the_same_values():
    model = made(Denoiser)
    heard = BoundedWeights(Choice("", "x"), "LipschitzADMM", BOUND, many=True)
    heard.start(model)
    model(X[:4], LEVEL[:4])
    with pytest.raises(MisconfigurationException, match="example_input_array"):
        heard.trace(model)
    given = BoundedWeights(Choice("", "x"), "LipschitzADMM", BOUND, many=True)
    given.start(made(WithExample))
    assert given.traced


def test_samples_that_are_kept_cannot_be_taken_for_what_counts_none():
    arguments = (torch.arange(20.0).reshape(10, 2), torch.ones(2, 5), torch.arange(10), torch.ones(3), None, 1.5)
    x, two, count, three, nothing, number = plain(arguments, arguments[0])
    assert [len(each) for each in (x, two, count, three)] == [4, 2, 4, 3]
    assert (nothing, number) == (None, 1.5)
    assert plain((X, nn.ReLU()), X) is None


def test_a_callback_with_a_function_is_copied_and_pickled():
    callback = ll.LipschitzCallback(output=difference)
    assert copy.deepcopy(callback).output is pickle.loads(pickle.dumps(callback)).output is difference
    assert callback.state_key == "LipschitzCallback{'module': '', 'output': 'difference'}"
    assert ll.LipschitzADMM(1.0).state_key == "LipschitzADMM{'module': ''}"
