"""A bound is of one function: what the model computes in evaluation mode, for any input, batch, call and caller."""

import collections
import contextlib
import copy
import io
import logging
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.errors import ExtractionError, LipschitzError, UnsupportedModuleError
from lightning_lipschitz.extraction import Extractor
from lightning_lipschitz.extraction.state import ModelState
from tests.models import Lambda

X = torch.zeros(2, 3)


def bound(model, example=X, **options):
    return ll.certify(model, example, method="norm-product", **options).upper_bound


# What Python reads of the input


def swallowed(m, x):
    try:
        far = float(x.norm()) > 1e3
    except RuntimeError:
        far = False
    return 9 * x if far else x


def elsewhere(m, x):
    if torch.compiler.is_exporting() or torch.compiler.is_compiling():
        return x
    return 9 * x if x.max() > 1e3 else x


def by_array(m, x):
    return x * float(x.detach().numpy().max() > 1e3) if not torch.compiler.is_exporting() else x * 0.0


def by_list(m, x):
    return x * 2 if not torch.compiler.is_exporting() and max(x.flatten().tolist()) > 1e3 else x


def by_equality(m, x):
    return x * 5 if not torch.compiler.is_exporting() and torch.equal(x, x.abs()) else x


def through_a_view(m, x):
    room = torch.zeros_like(x)
    room[:, :2].copy_(x[:, :2])
    return x * 5 if not torch.compiler.is_exporting() and bool((room > 1e3).any()) else x


@pytest.mark.parametrize("forward", [swallowed, elsewhere, by_array, by_list, by_equality, through_a_view])
def test_what_python_decides_by_the_input_is_refused(forward):
    with pytest.raises(ExtractionError, match=r"depends on the values of the input \(at .*test_one_function.py"):
        ll.certify(Lambda(forward), X)


def checked(m, x):
    assert not torch.isnan(x).any()
    if not torch.isfinite(x).all():
        raise ValueError("not finite")
    return m.a(x)


def logged(m, x):
    m.largest = x.max().item()
    m.history.append(x.mean().tolist())
    return m.a(x)


def distributed(m, x):
    return torch.distributions.Normal(m.a(x), torch.ones(3), validate_args=True).mean


def with_a_scale_that_nobody_reads(m, x):
    return torch.distributions.Normal(m.a(x), x.clamp(-20, 2).exp(), validate_args=True).mean


@pytest.mark.parametrize("forward", [checked, logged, distributed, with_a_scale_that_nobody_reads])
def test_checks_of_arguments_and_records_are_no_branches(forward):
    model = Lambda(forward, a=nn.Linear(3, 3))
    model.history = []
    assert bound(model) == bound(model.a)
    assert model.history == []
    assert not hasattr(model, "largest")


# What Python reads of the model


def test_a_branch_on_a_buffer_is_taken_as_the_buffer_is():
    model = Lambda(lambda m, x: m.a(x) if m.ready else 3 * m.a(x), a=nn.Linear(3, 3))
    model.register_buffer("ready", torch.tensor(False))
    extractor = Extractor(model, X)
    before = extractor.network().output.terms[0].matrix
    model.ready.fill_(True)
    np.testing.assert_allclose(3 * extractor.network().output.terms[0].matrix, before, rtol=1e-12)
    given = extractor.network({**model.state_dict(), "ready": torch.tensor(False)})
    np.testing.assert_allclose(given.output.terms[0].matrix, before, rtol=1e-12)


def test_a_parameter_taken_as_a_number_is_read_every_time():
    model = Lambda(lambda m, x: m.a(x) * m.beta.item(), a=nn.Linear(3, 3), beta=nn.Parameter(torch.tensor(2.0)))
    extractor = Extractor(model, X)
    before = extractor.network().output.terms[0].matrix
    model.beta.data.fill_(6.0)
    np.testing.assert_allclose(extractor.network().output.terms[0].matrix, 3 * before, rtol=1e-12)


# A model that is another one after its trace

GLOBAL = [1.0]


def rescale(model):
    model.scale = 7.0


def through_a_container(model):
    model.options["scales"][0] = 7.0


def through_a_module_of_its_own(model):
    GLOBAL[0] = 7.0


def of_a_tensor(model):
    model.hidden[0].fill_(7.0)


@pytest.mark.parametrize("change", [rescale, through_a_container, through_a_module_of_its_own, of_a_tensor])
def test_a_number_that_changes_is_read_again(change):
    """Beyond what samples show: it acts on inputs above a thousand million only."""

    def forward(m, x):
        scale = m.scale * m.options["scales"][0] * GLOBAL[0] * m.hidden[0]
        return m.a(x) + scale * torch.relu(x - 1e9)

    model = Lambda(forward, a=nn.Linear(3, 3))
    model.scale, model.options, model.hidden = 1.0, {"scales": [1.0]}, [torch.tensor(1.0)]
    GLOBAL[0] = 1.0
    extractor = Extractor(model, X)
    assert np.abs(extractor.network().output.terms[1].matrix).max() == 1.0
    change(model)
    assert np.abs(extractor.network().output.terms[1].matrix).max() == 7.0


def test_layers_that_are_exchanged_or_appended_are_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    extractor = Extractor(model, X)
    model[1] = nn.PReLU(init=5.0)
    assert extractor.network().layers[0].beta[0] == 5.0
    model.append(nn.ReLU())
    assert len(extractor.network().layers) == 2
    assert extractor.traces == 3


@pytest.mark.parametrize("reading", ["refresh", "extract", "network"])
def test_a_model_that_becomes_unreadable_is_refused_by_every_reading_and_every_time(reading):
    """It has one path and one digest, and only further calls show that it counts them."""

    def forward(m, x):
        if m.counts:
            m.calls += 1
        return m.a(x) * (7.0 if m.calls > 5 else 1.0 + m.counts)

    model = Lambda(forward, a=nn.Linear(3, 3))
    model.counts, model.calls = False, 0
    extractor = Extractor(model, X)
    model.counts = True
    for _ in range(2):
        with pytest.raises(ExtractionError, match="does not reproduce it"):
            getattr(extractor, reading)()
    assert model.calls == 0


def test_what_vanishes_beside_common_outputs_is_rounding():
    """``log(1 + exp(x))`` is zero where softplus is still 10^-20."""
    torch.manual_seed(0)
    model = Lambda(lambda m, x: torch.log(1 + torch.exp(m.a(x))), a=nn.Linear(3, 1))
    assert bound(model) == pytest.approx(bound(model.a), rel=1e-9)


def test_a_model_that_stays_is_traced_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 3))
    extractor = Extractor(model, X)
    for _ in range(3):
        model.train()(torch.randn(8, 3)).sum().backward()
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        extractor.network()
    assert extractor.traces == 1


# Evaluation mode


class Annealed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gain = nn.Linear(3, 3), 1.0

    def train(self, mode=True):
        super().train(mode)
        self.gain = 1.0 if mode else 10.0
        return self

    def forward(self, x):
        return self.gain * self.a(x)


class Merging(nn.Module):
    """A low-rank adapter that is added to the weight when training ends, as LoRA layers do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.low = nn.Parameter(torch.full((3, 1), 2.0))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data.add_(self.low @ self.low.T, alpha=-1.0 if mode else 1.0)
            self.merged = not mode
        return self

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.merged else y + x @ self.low @ self.low.T


class OwnEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.inner = nn.Linear(3, 3), nn.ModuleList([nn.Dropout()])

    def eval(self):
        if len(self.inner) == 1:
            self.inner.append(nn.PReLU(init=8.0))
        return super().eval()

    def forward(self, x):
        for each in self.inner:
            x = each(x)
        return self.a(x)


@pytest.mark.parametrize("make", [Annealed, Merging, OwnEval])
def test_evaluation_mode_is_what_the_model_makes_of_it(make):
    torch.manual_seed(0)
    model = make()
    expected = bound(copy.deepcopy(model).eval())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert bound(model) == pytest.approx(expected, rel=1e-12)
    assert expected > 3.0
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert expected * 1.0001 >= ll.lower_bound(model.eval(), torch.randn(4, 3)).value


def test_weights_of_a_file_are_not_merged_by_guess():
    model = Merging()
    extractor = Extractor(model, X)
    with pytest.raises(ExtractionError, match="its `eval\\(\\)` changes its weights"):
        extractor.network(model.state_dict())


def test_an_eval_that_fails_is_told():
    model = Lambda(lambda m, x: x)
    model.eval = lambda: 1 / 0
    with pytest.raises(ExtractionError, match="its `eval\\(\\)` fails: ZeroDivisionError"):
        ll.certify(model, X)


def test_frozen_parts_stay_in_their_mode():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    model[1].eval()
    ll.certify(model, X)
    assert [module.training for module in model] == [True, False, True]


# The number of samples, the call, the caller


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: 3 * x if x.shape[0] > 16 else x,
        lambda m, x: 3 * x if x.shape[0] % 8 == 0 else x,
        lambda m, x: 3 * x if x.numel() > 1000 else x,
        lambda m, x: 3 * x if len(x) == 32 else x,
        lambda m, x: 3 * x if len(x) > 200 else x,
        lambda m, x: x / x.shape[0],
        lambda m, x: 100 * x if torch.is_grad_enabled() else x,
        lambda m, x: 100 * x if torch.is_inference_mode_enabled() else x,
        lambda m, x: torch.where(x.abs() > 1e4, x, x.abs()) if torch.is_grad_enabled() else x,
    ],
)
def test_what_depends_on_the_batch_or_the_caller_is_refused(forward):
    with pytest.raises(LipschitzError):
        ll.certify(Lambda(forward), X)


@pytest.mark.parametrize("samples", [1, 2, 3, 16])
def test_the_number_of_samples_may_be_a_python_number(samples):
    def forward(m, x):
        h = m.a(x).relu().view(len(x), -1)
        return m.b(torch.cat([h, torch.zeros(int(x.shape[0]), 2)], 1))

    model = Lambda(forward, a=nn.Linear(3, 4), b=nn.Linear(6, 2))
    assert bound(model, torch.zeros(samples, 3)) == bound(model)


class Counting(nn.Module):
    """Counts its calls in a place that the test chooses, and does something else from the seventh on."""

    def __init__(self, start, count, calls):
        super().__init__()
        self.place, self.count, self.calls = start(), count, calls

    def forward(self, x):
        self.count(self)
        return 10 * x if self.calls(self) > 6 else x


def count_plain(m):
    m.place += 1


def count_item(m):
    m.place["calls"] += 1


def count_deep(m):
    m.place[0]["calls"][0] += 1


def count_list(m):
    m.place.append(0)


class Helper:
    calls = 0


def count_object(m):
    m.place.calls += 1


def count_array(m):
    m.place += 1


COUNTERS = {
    "number": (int, count_plain, lambda m: m.place),
    "dictionary": (lambda: collections.defaultdict(int), count_item, lambda m: m.place["calls"]),
    "nested": (lambda: ({"calls": [0]},), count_deep, lambda m: m.place[0]["calls"][0]),
    "list": (list, count_list, lambda m: len(m.place)),
    "object": (Helper, count_object, lambda m: m.place.calls),
    "array": (lambda: np.zeros(1), count_array, lambda m: m.place[0]),
}


@pytest.mark.parametrize("kind", COUNTERS)
def test_a_model_that_counts_is_refused_where_the_count_matters(kind):
    start, count, calls = COUNTERS[kind]
    model = Counting(start, count, calls)
    with pytest.raises(ExtractionError, match="does not reproduce"):
        ll.certify(model, X)
    assert calls(model) == 0
    harmless = Counting(start, count, lambda m: 0)
    assert bound(harmless) == 1.0
    assert calls(harmless) == 0


def test_state_is_put_back_into_the_objects_that_held_it():
    model = nn.Sequential(nn.Linear(3, 3))
    tensor, array, inner = torch.tensor([1.0, float("nan")]), np.arange(3.0), [[1], {2}]
    model.kept = (tensor, {"a": array, "inner": inner})
    state = ModelState(model)
    tensor += 1
    array[0] = 5
    inner[0].append(7)
    inner[1].add(9)
    model.more = 3
    model.append(nn.ReLU())
    assert len(state.changes()) >= 6
    state.restore()
    assert tensor[0] == 1
    assert array[0] == 0
    assert inner == [[1], {2}]
    assert len(model) == 1
    assert model.kept[0] is tensor
    assert not hasattr(model, "more")
    assert not state.changes()


# A small difference beside a large one


def test_a_difference_in_one_sample_is_not_hidden_by_another():
    """Of the size that rounding of the largest sample would explain."""

    def forward(m, x):
        return m.a(x) + (torch.full((3,), 1e-9) * x.clamp(-1, 1) if torch.is_grad_enabled() else 0)

    with pytest.raises(ExtractionError, match="does not reproduce"):
        ll.certify(Lambda(forward, a=nn.Linear(3, 3)), X)


# Fixed inputs


def test_a_fixed_input_as_long_as_the_batch_is_not_cut():
    class Scaled(nn.Module):
        def forward(self, x, w):
            return x * w.max()

    class PerSample(nn.Module):
        def forward(self, x, w):
            return x * w[:, None]

    x, w = torch.randn(4, 3), torch.tensor([1.0, 100.0, 3.0, 4.0])
    assert bound(Scaled(), (x, w), input=0) == pytest.approx(100.0)
    assert bound(Scaled(), (x[:3], w), input=0) == pytest.approx(100.0)
    assert bound(PerSample(), (x, w), input=0) == pytest.approx(1.0)


def test_samples_that_act_on_each_other_through_a_fixed_input_are_refused():
    class Mixed(nn.Module):
        def forward(self, x, w):
            return x * w[:, None] * w.sum() * len(x)

    with pytest.raises(ExtractionError):
        ll.certify(Mixed(), (torch.randn(4, 3), torch.tensor([1.0, 100.0, 3.0, 4.0])), input=0)


# Threads


def test_two_threads_read_one_model():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    found, stdout = [], sys.stdout
    threads = [threading.Thread(target=lambda: found.extend(bound(model) for _ in range(3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert sys.stdout is stdout
    assert all(module.training for module in model.modules())


def test_another_thread_may_print_while_a_model_is_traced():
    heard = io.StringIO()
    reached, printed = threading.Event(), threading.Event()

    def forward(m, x):
        sys.stdout.write("of the model\n")
        reached.set()
        printed.wait(5)
        return x

    def speak():
        reached.wait(5)
        sys.stdout.write("of another thread\n")
        printed.set()

    other = threading.Thread(target=speak)
    with contextlib.redirect_stdout(heard):
        other.start()
        ll.certify(Lambda(forward), X)
        other.join()
    assert "of another thread" in heard.getvalue()


def plain():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def unreadable():
    return nn.Sequential(nn.Linear(3, 3), Lambda(lambda m, x: x * x))


def partly_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    return model


def convolutional():
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten())


def proved(model):
    return ll.verify(ll.certify(model, X, method="norm-product"), model, X)


def composed(model):
    return ll.certify(model, X, method="composed").upper_bound


def sampled(model):
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return ll.lower_bound(model, inputs, pairs=4, steps=3).value


def refused(model):
    with pytest.raises(UnsupportedModuleError) as caught:
        bound(model)
    return str(caught.value)


def misread(model):
    """An example that the model does not take."""
    with pytest.raises(LipschitzError) as caught:
        ll.certify(model, torch.zeros(2, 5))
    return type(caught.value)


# What is done at once, each thread with a model of its own
AT_ONCE = {
    "two models": ((plain, bound), (convolutional, bound)),
    "two routes": ((partly_frozen, composed), (plain, bound)),
    "composed": ((convolutional, composed), (partly_frozen, composed)),
    "lower bounds": ((plain, sampled), (partly_frozen, sampled)),
    "proofs": ((plain, proved), (partly_frozen, proved)),
    "one is refused": ((unreadable, refused), (plain, bound)),
    "one is refused, one searched": ((unreadable, refused), (partly_frozen, sampled), (convolutional, composed)),
    "one gets what it does not take": ((plain, misread), (partly_frozen, composed), (plain, bound)),
}


def surroundings(models):
    """What a reading puts away for its time."""
    return (
        [[module.training for module in model.modules()] for model in models],
        [{name: tensor.tolist() for name, tensor in model.state_dict().items()} for model in models],
        sys.stdout,
        sys.stderr,
        list(warnings.filters),
        warnings.showwarning,
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        [logging.getLogger(name).level for name in ("torch.export", "torch.fx.experimental.symbolic_shapes")],
    )


@pytest.mark.parametrize("shared", [False, True], ids=["of its own", "of all"])
@pytest.mark.parametrize("name", AT_ONCE)
def test_threads_read_at_once(name, shared):
    """Each finds what it finds alone, and leaves everything as it was; also where the model is one for all of them."""
    torch.manual_seed(0)
    work = [(make(), do) for make, do in AT_ONCE[name]]
    if shared:
        work = [(model, do) for model, do in work for _ in range(2)]
    alone = [do(copy.deepcopy(model)) for model, do in work]
    before, found, barrier = surroundings([m for m, _ in work]), {}, threading.Barrier(len(work))

    def run(k, model, do):
        barrier.wait(10)
        try:
            found[k] = [do(model) for _ in range(2)]
        except BaseException as error:
            found[k] = error

    threads = [threading.Thread(target=run, args=(k, *each)) for k, each in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {k: [expected] * 2 for k, expected in enumerate(alone)}
    assert surroundings([m for m, _ in work]) == before


def test_a_thread_that_is_refused_leaves_nothing_behind_for_the_next():
    model, other = unreadable(), partly_frozen()
    for _ in range(2):
        thread = threading.Thread(target=refused, args=(model,))
        before = surroundings([model, other])
        thread.start()
        first = bound(other)
        thread.join()
        assert bound(other) == first
        assert surroundings([model, other]) == before


# Large tensors that a model holds, such as its data set, are copied where somebody writes into them only


class Holds(nn.Module):
    """A linear layer, and two megabytes of something else."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write = nn.Linear(3, 2), write
        self.data = torch.arange(2.0**19)
        self.part = self.data[:1000].view(10, 100)
        self.other = {"again": [torch.ones(2**18)]}

    def forward(self, x):
        self.write(self, x)
        return self.layer(x)


def into_a_view(m, x):
    m.part[0] += x.detach().sum()


def by_index(m, x):
    m.data[torch.tensor([3, 70_000])] = x.detach().abs().sum().to(m.data.dtype)


def in_a_list(m, x):
    m.other["again"][0].mul_(1.5)


WRITES = {
    "a view": into_a_view,
    "the whole": lambda m, x: m.data.add_(1.0),
    "places": by_index,
    "in a list": in_a_list,
    "copied": lambda m, x: m.data[:3].copy_(x.detach()[0]),
    "as the result": lambda m, x: torch.mul(m.data[:3], 2.0, out=m.data[5:8]),
}


@pytest.mark.parametrize("name", WRITES)
def test_large_tensors_are_put_back(name):
    model = Holds(WRITES[name])
    before = model.data.clone(), model.other["again"][0].clone()
    for call in (lambda: ll.certify(model, torch.zeros(1, 3)), lambda: ll.lower_bound(model, torch.zeros(1, 3))):
        with contextlib.suppress(ll.errors.ExtractionError):  # what counts its calls may be refused
            call()
        assert torch.equal(model.data, before[0])
        assert torch.equal(model.other["again"][0], before[1])
        assert model.part.data_ptr() == model.data.data_ptr()


READS = {"nothing": lambda m, x: None, "into another": lambda m, x: torch.zeros(2**19).add_(m.data)}


@pytest.mark.parametrize("name", READS)
def test_large_tensors_that_nobody_writes_into_are_not_copied(name, monkeypatch):
    model, copied, clone = Holds(READS[name]), [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **o: copied.append(self.numel()) or clone(self, **o))
    Extractor(model, torch.zeros(1, 3)).network()
    assert copied
    assert max(copied) < 2**16
