"""Models whose forward takes the number of samples as a Python number: under every callback, in every route."""

import re

import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier, LipschitzCallback
from lightning_lipschitz.errors import ExtractionError
from tests.callbacks.files import MESSAGES
from tests.modules import CLASSES, INPUTS, Classifier, loader

pytestmark = [pytest.mark.filterwarnings(message) for message in MESSAGES]
SIZES = (1, 3, 16)


def zeros(m, x):
    return m.wide(torch.cat([m.body(x), x.new_zeros(len(x), 2)], 1))


def zeros_of_a_shape(m, x):
    return m.wide(torch.cat([m.body(x).view(x.size(0), -1), torch.zeros((int(x.shape[0]), 2), dtype=x.dtype)], 1))


def token(m, x):
    return m.wide(torch.cat([m.body(x), m.token.expand(len(x), -1)], 1))


def first_token(m, x):
    """A learned row before the others, as of a transformer, and their mean."""
    rows = torch.cat([m.rows.expand(x.shape[0], -1, -1), m.body(x).view(len(x), 3, 2)], 1)
    return m.narrow(rows.mean(1))


def unpacked(m, x):
    batch, entries = x.shape
    return m.wide(torch.cat([m.body(x), x.new_ones(batch, entries - 2)], 1))


def flattened(m, x):
    return m.wide(torch.cat([m.body(x.view(x.size(0), 2, -1).view(len(x), -1)), x[:, :2].reshape(len(x), -1)], 1))


def filled(m, x):
    out = torch.full((len(x), 8), 0.5, dtype=x.dtype)
    out[:, :6] = m.body(x)
    return m.wide(out)


def every_index(m, x):
    return m.wide(torch.cat([m.body(x), m.token.repeat(len(x), 1)[torch.arange(len(x))]], 1))


READ = [zeros, zeros_of_a_shape, token, first_token, unpacked, flattened, filled, every_index]


def one_by_one(m, x):
    return torch.stack([m.wide(torch.cat([m.body(each), m.token[0]])) for each in x])


def by_index(m, x):
    return torch.stack([m.wide(torch.cat([m.body(x[k]), m.token[0]])) for k in range(len(x))])


def unbound(m, x):
    return torch.stack([m.narrow(y.view(3, 2).sum(0)) for y in m.body(x).unbind()])


def averaged(m, x):
    return m.narrow(m.body(x).view(len(x), 3, 2).sum(1)) / len(x)


REFUSED = [one_by_one, by_index, unbound, averaged]


def split(m, x):
    return torch.cat([m.narrow(m.body(part)[:, :2]) for part in x.split(4)])


def split_beside_a_token(m, x):
    return torch.cat([m.wide(torch.cat([m.body(part), m.token.expand(len(part), -1)], 1)) for part in x.split(4)])


def halves(m, x):
    return torch.cat([m.narrow(m.body(part)[:, :2]) for part in x.chunk(2)])


def first_and_rest(m, x):
    return torch.cat([m.narrow(m.body(part)[:, :2]) for part in (x[:1], x[1:])])


PIECES = [split, split_beside_a_token, halves, first_and_rest]


class Counting(Classifier):
    def __init__(self, count):
        super().__init__(lr=0.1)
        self.count = count
        self.net = nn.Identity()
        self.body = nn.Sequential(nn.Linear(INPUTS, 6), nn.ReLU())
        self.wide, self.narrow = nn.Linear(8, CLASSES), nn.Linear(2, CLASSES)
        self.token, self.rows = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.ones(1, 1, 2))

    def forward(self, x):
        return self.count(self, x)


def made(count):
    torch.manual_seed(0)
    return Counting(count)


@pytest.mark.parametrize("method", ["norm-product", "composed"])
@pytest.mark.parametrize("count", READ)
def test_the_bound_does_not_depend_on_the_example(count, method):
    model = made(count)
    bounds = {ll.certify(model, torch.zeros(size, INPUTS), method=method).upper_bound for size in SIZES}
    assert len(bounds) == 1
    assert ll.lower_bound(model, torch.randn(16, INPUTS), pairs=4, steps=4).value <= bounds.pop()


@pytest.mark.parametrize("method", ["norm-product", "composed"])
@pytest.mark.parametrize("count", REFUSED)
def test_what_is_written_for_a_number_of_samples_is_refused(count, method):
    for size in SIZES:
        with pytest.raises(ExtractionError, match=r"depends on (their|the) number|does not reproduce"):
            ll.certify(made(count), torch.zeros(size, INPUTS), method=method)


@pytest.mark.parametrize("method", ["norm-product", "composed"])
@pytest.mark.parametrize("count", PIECES)
def test_pieces_of_a_batch_are_read_right_or_refused(count, method):
    model, x = made(count).eval(), torch.randn(2, 16, INPUTS, generator=torch.Generator().manual_seed(0))
    for size in SIZES:
        try:
            bound = ll.certify(model, torch.zeros(size, INPUTS), method=method).upper_bound
        except ExtractionError as error:
            assert re.search("number of samples|their number|does not reproduce", str(error)), error  # noqa: PT017
            continue
        with torch.no_grad():
            slopes = (model(x[0]) - model(x[1])).norm(dim=1) / (x[0] - x[1]).norm(dim=1)
        assert 0 < float(slopes.max()) <= bound


@pytest.fixture
def known_to_be_unwritten():
    """Memory that was not written is NaN, as under ``Trainer(deterministic=True)``."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def empty(m, x):
    out = torch.empty(len(x), 8)
    out[:, :6] = m.body(x)
    out[:, 6:] = 0.5
    return m.wide(out)


def empty_of_a_shape(m, x):
    out = torch.empty((x.shape[0], 8), dtype=x.dtype, device=x.device)
    out[:, 6:], out[:, :6] = x[:, 2:], m.body(x)
    return m.wide(out)


@pytest.mark.parametrize("method", ["norm-product", "composed"])
@pytest.mark.parametrize("count", [empty, empty_of_a_shape])
def test_memory_that_is_written_before_it_is_read(count, method, known_to_be_unwritten):
    model = made(count)
    bounds = {ll.certify(model, torch.zeros(size, INPUTS), method=method).upper_bound for size in SIZES}
    assert len(bounds) == 1


@pytest.mark.parametrize("count", READ)
def test_watched_in_a_fit(count, trainer):
    callback, model = LipschitzCallback(method="composed", lower_bound=False), made(count)
    trainer(callback).fit(model, loader(48, 16))
    bounds = [record["upper_bound"] for record in callback.history]
    assert [record["solver_ok"] for record in callback.history] == [True, True]
    found = ll.certify(model, torch.zeros(1, INPUTS), method="composed").upper_bound
    assert bounds[-1] == pytest.approx(found, rel=1e-3)
    assert ll.verify(callback.certificate, model, torch.zeros(16, INPUTS)) == bounds[-1] != bounds[0]


@pytest.mark.parametrize("method", [LipschitzADMM, LipschitzBarrier])
@pytest.mark.parametrize("count", READ)
def test_held_to_a_bound_in_a_fit(count, method, trainer):
    model = made(count)
    before = ll.certify(model, torch.zeros(1, INPUTS), method="closed-form").upper_bound
    trainer(method(0.5 * before), max_epochs=1).fit(model, loader(48, 16))
    assert ll.certify(model, torch.zeros(16, INPUTS), rtol=1e-8).upper_bound <= 0.5 * before * (1 + 1e-7)


WATCHING = {"callback": LipschitzCallback, "admm": lambda: LipschitzADMM(1.0), "barrier": lambda: LipschitzBarrier(1.0)}


@pytest.mark.parametrize("name", WATCHING)
@pytest.mark.parametrize("count", REFUSED)
def test_refused_at_the_start_of_a_fit(count, name, trainer):
    model = made(count)
    with pytest.raises(ExtractionError, match=r"depends on (their|the) number|does not reproduce"):
        trainer(WATCHING[name]()).fit(model, loader(48, 16))
    assert model.global_step <= 1
