"""Numbers of Python are float64, conversions that round are refused, a view in place is the view: in both forms."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.errors import UnsupportedModuleError
from tests.models.building import Lambda

ROUTES = ("norm-product", "composed")
EYE = torch.eye(3)


# Every map is a multiple of the identity (or of a projection): its constant is the number beside it, as float64 has it.
def put(x, *pairs):
    """``x`` with numbers written into it."""
    y = x.clone()
    for place, number in pairs:
        y[place] = number
    return y


def scaled_by(x, factor):
    """Through a tensor of factors that is written number by number."""
    factors = x.new_ones(3)
    factors[0], factors[1:] = factor, factor
    return x * factors


MULTIPLES = {
    "product": (lambda m, x: x * 0.3, 0.3),
    "normalisation": (lambda m, x: (x - 0.1307) / 0.3081, 1 / 0.3081),
    "temperature": (lambda m, x: x / 0.7, 1 / 0.7),
    "alpha of add": (lambda m, x: torch.add(torch.ones(3), x, alpha=0.7), 0.7),
    "alpha of sub": (lambda m, x: torch.sub(torch.ones(3), x, alpha=0.3), 0.3),
    "alpha of rsub": (lambda m, x: torch.rsub(x, torch.ones(3), alpha=0.7), 0.7),
    "alpha of addmm": (lambda m, x: torch.addmm(m.b, x, m.w, beta=0.1, alpha=0.7), 0.7),
    "beta of addmm": (lambda m, x: torch.addmm(x, torch.zeros(len(x), 3, dtype=x.dtype), m.w, beta=0.7), 0.7),
    "lerp by a number": (lambda m, x: torch.lerp(x, torch.zeros_like(x), 0.3), 0.7),
    "lerp by a tensor": (lambda m, x: torch.lerp(torch.zeros_like(x), x, torch.full_like(x, 0.7)), 0.7),
    "lerp of known ends": (lambda m, x: torch.lerp(m.b, m.b + 0.7, x), 0.7),
    "value of addcmul": (lambda m, x: torch.addcmul(torch.ones_like(x), x, torch.ones_like(x), value=0.3), 0.3),
    "value of addcdiv": (lambda m, x: torch.addcdiv(torch.ones_like(x), x, 1 + m.b, value=0.3), 0.3),
    "full_like": (lambda m, x: x * torch.full_like(x, 0.7), 0.7),
    "new_full": (lambda m, x: x * x.new_full((), 0.7), 0.7),
    "in place": (lambda m, x: x.clone().mul_(0.7).add_(0.3), 0.7),
    "slope": (lambda m, x: F.leaky_relu(x, 1.3), 1.3),
    "weight times a number": (lambda m, x: F.linear(x, m.w * 0.7), 0.7),
    "skip": (lambda m, x: x + 0.3 * x, 1.3),
    "integer": (lambda m, x: x * 3 / 7, 3 / 7),
    "bool": (lambda m, x: x * True, 1.0),
    "chosen by a known mask": (lambda m, x: torch.where(m.w[0] > -1, x * 0.7, 0.1), 0.7),
    "factors written one by one": (lambda m, x: scaled_by(x, 0.3), 0.3),
    "power of one": (lambda m, x: (0.3 * x) ** 1, 0.3),
    "clamped between numbers": (lambda m, x: x.clamp(-0.3, 0.7), 1.0),
}


def model(forward):
    made = Lambda(forward)
    made.w, made.b = nn.Parameter(EYE.clone()), nn.Parameter(torch.zeros(3))
    return made


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", MULTIPLES)
def test_numbers_are_read_as_float64(name, double, route):
    forward, constant = MULTIPLES[name]
    read = model(forward).double() if double else model(forward)
    bound = ll.certify(read, torch.zeros(2, 3), method=route).upper_bound
    assert constant <= bound <= constant * (1 + 1e-14)


WRITTEN = {
    "a column": lambda m, x: 0.7 * put(x, ((slice(None), 0), 0.1307)),
    "an ellipsis": lambda m, x: 0.7 * put(x, ((..., slice(1, 2)), 0.3), ((slice(None), None, 0), 0.1)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_numbers_are_written_as_float64(name):
    """A composition adds the parts that are written to those that stay, and may be looser."""
    tight, loose = (ll.certify(model(WRITTEN[name]), torch.zeros(2, 3), method=route).upper_bound for route in ROUTES)
    assert 0.7 <= tight <= 0.7 * (1 + 1e-14)
    assert tight <= loose <= 2 * tight


@pytest.mark.parametrize("route", ROUTES)
def test_integers_that_float64_does_not_hold_are_refused(route):
    with pytest.raises(UnsupportedModuleError, match="2\\^53"):
        ll.certify(model(lambda m, x: x * (2**53 + 1)), torch.zeros(2, 3), method=route)


def copied(x, dtype):
    return torch.empty(x.shape, dtype=dtype).copy_(x)


def written(x, dtype):
    y = torch.zeros(x.shape, dtype=dtype)
    y[:, :2] = x[:, :2]
    return y


ROUNDING = {
    "half": lambda m, x: x.half().to(x.dtype),
    "bfloat16": lambda m, x: x.bfloat16().to(x.dtype),
    "float8": lambda m, x: x.to(torch.float8_e5m2).to(x.dtype),
    "type": lambda m, x: x.type(torch.float16).type_as(x),
    "copy of fewer bits": lambda m, x: copied(x, torch.float16).to(x.dtype),
    "copy of integers": lambda m, x: copied(x * 255, torch.uint8).to(x.dtype),
    "written into integers": lambda m, x: written(x, torch.int32).to(x.dtype),
    "written into fewer bits": lambda m, x: written(x, torch.bfloat16).to(x.dtype),
    "integers": lambda m, x: x.int().to(x.dtype),
    "bool": lambda m, x: x.bool().to(x.dtype),
    "sum": lambda m, x: x.sum(1, keepdim=True, dtype=torch.int64).to(x.dtype),
    "mean": lambda m, x: x.mean(1, keepdim=True, dtype=torch.float16).to(x.dtype),
    "cumsum": lambda m, x: x.cumsum(1, dtype=torch.int32).to(x.dtype),
    "softmax": lambda m, x: torch.softmax(x, 1, dtype=torch.bfloat16).to(x.dtype),
    "bits": lambda m, x: x + 0 * x.view(torch.int32).reshape(len(x), -1)[:, :3].to(x.dtype),
    "result": lambda m, x: x.half(),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ROUNDING)
def test_conversions_that_round_are_refused(name, route):
    with pytest.raises(UnsupportedModuleError, match="rounding jumps"):
        ll.certify(model(ROUNDING[name]), torch.zeros(2, 3), method=route)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_may_convert_to_its_own_dtype_and_to_wider_ones(dtype, route):
    read = model(lambda m, x: F.linear(x.float().double().to(x.dtype), m.w).to(m.w.dtype)).to(dtype)
    assert ll.certify(read, torch.zeros(2, 3, dtype=dtype), method=route).upper_bound == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("route", ROUTES)
def test_float64_converted_to_float32_is_refused(route):
    with pytest.raises(UnsupportedModuleError, match="float32, and rounding jumps"):
        ll.certify(model(lambda m, x: x.float().double()).double(), torch.zeros(2, 3), method=route)


@pytest.mark.parametrize("route", ROUTES)
def test_softplus_needs_a_threshold_beyond_the_resolution(route):
    def certified(dtype, **options):
        layer = nn.Sequential(nn.Linear(3, 3), nn.Softplus(**options)).to(dtype)
        return ll.certify(layer, torch.zeros(2, 3, dtype=dtype), method=route)

    assert certified(torch.float32).certified
    assert certified(torch.float64, threshold=40).certified
    for options in ({}, {"threshold": 30}, {"beta": 1e-6}, {"beta": 5.0}):
        with pytest.raises(UnsupportedModuleError, match="threshold"):
            certified(torch.float64, **options)


POSITIONS = {
    "of max pooling, as numbers": lambda x: torch.minimum(*F.max_pool1d(x[:, None], 3, return_indices=True))[:, 0],
    "of max pooling, to clamp": lambda x: x.clamp(min=F.max_pool1d(x[:, None], 3, return_indices=True)[1][:, 0]),
    "of adaptive pooling": lambda x: x * F.adaptive_max_pool1d(x[:, None], 1, return_indices=True)[1][:, 0],
    "of a maximum, to gather": lambda x: x.gather(1, x.max(1, keepdim=True).indices),
    "of sorted entries": lambda x: x + x.sort(1).indices,
    "of an order that is none": lambda x: x.topk(2, 1, sorted=False).values,
    "kth value": lambda x: x.kthvalue(2, 1).indices.to(x.dtype)[:, None],
    "argmax": lambda x: x + x.argmax(1, keepdim=True),
}


@pytest.mark.parametrize("route", [*ROUTES, "auto"])
@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_no_numbers(name, route):
    with pytest.raises(UnsupportedModuleError):
        ll.certify(model(lambda m, x: POSITIONS[name](x)), torch.zeros(2, 3), method=route)


def columns(x):
    """(batch, 3, 2): each entry beside its negative."""
    return torch.stack([x, -x], 2)


# Largest or smallest entries, with `ordered` or not, and the constant of it where they are in order.
LARGEST = {
    "two": (lambda x, ordered: x.topk(2, 1, sorted=ordered).values, 1.0),
    "the smallest": (lambda x, ordered: x.topk(2, 1, largest=False, sorted=ordered).values, 1.0),
    "all of them": (lambda x, ordered: x.topk(3, 1, sorted=ordered).values, 1.0),
    "all of the smallest": (lambda x, ordered: x.topk(3, 1, False, ordered).values, 1.0),
    "of another dimension": (lambda x, ordered: columns(x).topk(2, 1, sorted=ordered).values.flatten(1), 2**0.5),
    "counted from the end": (lambda x, ordered: columns(x).topk(2, -2, sorted=ordered).values.flatten(1), 2**0.5),
    "by the function": (lambda x, ordered: torch.topk(x, 2, 1, sorted=ordered)[0], 1.0),
    "unpacked": (lambda x, ordered: (lambda values, indices: values)(*torch.topk(x, 2, -1, True, ordered)), 1.0),
    "summed": (lambda x, ordered: x.topk(2, 1, sorted=ordered).values.sum(1, keepdim=True), 2**0.5),
    "averaged": (lambda x, ordered: torch.topk(x, 3, sorted=ordered).values.mean(1, keepdim=True), 3**-0.5),
    "after a layer": (lambda x, ordered: F.relu(x).topk(2, 1, sorted=ordered).values, 1.0),
    "in a sum": (lambda x, ordered: x[:, :2] * 0.0 + x.topk(2, 1, sorted=ordered).values, 1.0),
}


@pytest.mark.parametrize("route", [*ROUTES, "auto"])
@pytest.mark.parametrize("name", LARGEST)
def test_largest_entries_are_read_in_order_only(name, route):
    function, constant = LARGEST[name]
    read = ll.certify(model(lambda m, x: function(x, True)), torch.zeros(2, 3), method=route)
    assert constant * (1 - 1e-12) <= read.upper_bound <= 2**0.5 * constant * (1 + 1e-9)
    with pytest.raises(UnsupportedModuleError, match=r"`topk` .*use sorted=True") as caught:
        ll.certify(model(lambda m, x: function(x, False)), torch.zeros(2, 3), method=route)
    assert (caught.value.operator, caught.value.verdict) == ("topk", "replace")


MOVES = {
    "channel shuffle": lambda x: x.view(-1, 2, 2, 4, 4).transpose(1, 2).contiguous().view(-1, 4, 4, 4),
    "flattened": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "reshaped": lambda x: x.transpose(1, 2).reshape(len(x), -1),
    "patches": lambda x: x.view(len(x), 4, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(x), 4, -1),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last).flatten(2).mT.contiguous().view(-1, 64),
    "unflattened": lambda x: x.movedim(1, -1).contiguous().unflatten(1, (2, 2)),
    "written through a view": lambda x: x.clone().transpose(1, 3).mul_(1.0).reshape(len(x), -1),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", MOVES)
def test_operations_in_place_change_no_bound(name, route):
    conv = nn.Conv2d(2, 4, 3, padding=1)
    bounds = [
        ll.certify(
            Lambda(lambda m, x, inplace=inplace: MOVES[name](F.relu(m.c(x), inplace=inplace)), c=conv),
            torch.zeros(1, 2, 4, 4),
            method=route,
        ).upper_bound
        for inplace in (False, True)
    ]
    assert bounds[0] == bounds[1]


# A model without parameters computes in the dtype of its input, and may hold tensors of that dtype alone.

PLAIN = {
    "matmul": lambda m, x: x @ torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
    "linear": lambda m, x: F.linear(x, 2 * torch.eye(2), torch.ones(2)),
    "addmm": lambda m, x: torch.addmm(torch.ones(2), x, torch.eye(2), alpha=2),
    "convolution": lambda m, x: F.conv1d(x[:, None], torch.full((1, 1, 1), 2.0)).flatten(1),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", PLAIN)
def test_tensors_of_its_dtype_in_a_model_without_parameters(name, route):
    assert ll.certify(Lambda(PLAIN[name]), torch.zeros(2, 2), method=route).upper_bound == pytest.approx(2.0, rel=1e-12)


# Code that names the dtype that the model computes in, as in `return logits.float()`: no rounding but the model's own.


def assigned(x, **options):
    y = torch.zeros(len(x), 3, **options)
    y[:, :2] = x[:, :2]
    y[:, 2] = x[:, 2]
    return y


def cached(m, x):
    """A tensor of the class, no buffer."""
    return (x + m.cache.to(x)) * m.cache.new_tensor(0.5)


NAMED = {
    "result": lambda m, x: (x @ m.w).to(torch.float32),
    "float": lambda m, x: (x @ m.w).float() * 1,
    "type": lambda m, x: (x * 0.3).type(torch.FloatTensor) / 0.3,
    "sum": lambda m, x: x + x.sum(1, keepdim=True, dtype=torch.float32) - x.sum(1, keepdim=True),
    "assigned": lambda m, x: assigned(x, dtype=torch.float32),
    "assigned by default": lambda m, x: assigned(x),
    "known tensor": lambda m, x: (x.float() + torch.tensor([0.1, 0.2, 0.3])).float(),
    "cached": lambda m, x: 2 * cached(m, x),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NAMED)
def test_the_dtype_of_the_model_may_be_named(name, route):
    read = model(NAMED[name])
    read.cache = torch.full((3,), 0.1)
    assert 1 - 1e-9 <= ll.certify(read, torch.zeros(2, 3), method=route).upper_bound <= 3.0


@pytest.mark.parametrize("route", ROUTES)
def test_a_wider_dtype_inside(route):
    """A model in bfloat16 that takes its mean in float32."""
    read = model(lambda m, x: (x.float() - x.float().mean(1, keepdim=True)).to(x.dtype) @ m.w).to(torch.bfloat16)
    bound = ll.certify(read, torch.zeros(2, 3, dtype=torch.bfloat16), method=route).upper_bound
    assert 1 - 1e-9 <= bound <= 2 + 1e-9


@pytest.mark.parametrize("route", ROUTES)
def test_an_activation_of_nothing(route):
    read = model(lambda m, x: put(x @ m.w, ((slice(None), slice(3, None)), torch.tanh(x[:, 3:]))))
    assert 1 <= ll.certify(read, torch.zeros(2, 3), method=route).upper_bound <= 2


@pytest.mark.parametrize("route", ROUTES)
def test_a_model_that_fails_on_one_sample_is_refused(route):
    with pytest.raises(ll.errors.ExtractionError, match="fails on a batch of 1"):
        ll.certify(model(lambda m, x: F.group_norm(x @ m.w, 3, eps=0.1)), torch.zeros(2, 3), method=route)


# Memory that is written before it is read


def filled(made, x, *parts):
    """``made`` with the parts written into its columns."""
    for place, part in parts:
        made[:, place] = part
    return made


EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
WRITTEN_FIRST = {
    "like": lambda m, x: torch.empty_like(x).copy_(0.7 * x),
    "interleaved": lambda m, x: filled(torch.empty_like(x), x, (EVEN, 0.7 * x[:, EVEN]), (ODD, 0.7 * x[:, ODD])),
    "new": lambda m, x: filled(x.new_empty(len(x), 3), x, (EVEN, 0.7 * x[:, EVEN]), (ODD, 0.7 * x[:, ODD])),
    "of a shape": lambda m, x: filled(torch.empty(len(x), 4, dtype=x.dtype), x, (slice(0, 3), 0.7 * x), (3, 0.3)),
}
NEVER_WRITTEN = {
    "factors": lambda m, x: x * torch.empty(3),
    "a column": lambda m, x: filled(torch.empty_like(x), x, (EVEN, x[:, EVEN])),
    "added": lambda m, x: x + x.new_empty(3),
    "weights": lambda m, x: x @ torch.empty(3, 2),
}


@pytest.mark.parametrize("name", WRITTEN_FIRST)
def test_memory_that_is_written_is_read(name):
    tight, loose = (ll.certify(model(WRITTEN_FIRST[name]), torch.zeros(2, 3), method=route) for route in ROUTES)
    assert 0.7 <= tight.upper_bound <= 0.7 * (1 + 1e-12)
    assert 0.7 <= loose.upper_bound <= 1.4


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", NEVER_WRITTEN)
def test_memory_that_is_not_written_is_no_constant(name, route):
    with pytest.raises(ll.errors.ExtractionError, match="does not reproduce"):
        ll.certify(model(NEVER_WRITTEN[name]), torch.zeros(2, 3), method=route)
